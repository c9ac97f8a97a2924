"""What a consortium is to be: one TOML file, which all its companies agree on before anything is made.

name = "text"
threshold = 2                  # silos without which no sum is unmasked: above half of them

[coordinator]
host = "coordinator.example"   # where silos reach it
port = 8002
organization = "Coordinating Company"

[[silos]]
name = "bank"
organization = "First Bank"
"""

import re
import tomllib
from pathlib import Path

import msgspec

from tff_pipeline.errors import ConfigError

PROTOCOL = 1  # of the messages between coordinator and silos that this version speaks
# A silo's name is a part of addresses in FLARE's network, which dots would divide.
_SILO_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?")
_RESERVED = {"server", "localhost", "admin"}


class CoordinatorDefinition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where silos reach the coordinator, and whose it is."""

    host: str
    port: int
    organization: str


class SiloDefinition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A silo that may join."""

    name: str
    organization: str


class Definition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A consortium. `threshold` is the number of silos without which no sum is unmasked."""

    name: str
    threshold: int
    coordinator: CoordinatorDefinition
    silos: tuple[SiloDefinition, ...]
    protocol: int = PROTOCOL


def read_definition(path: Path) -> Definition:
    """The consortium that a TOML file describes.

    Raises:
      ConfigError: naming the file, what was found and what was expected.
    """
    try:
        definition = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Definition)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); expected the consortium's TOML file. docs/consortium.md shows one."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}.") from None
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}. docs/consortium.md explains every key.") from None
    require_sound(definition, str(path))
    return definition


def require_sound(definition: Definition, where: str) -> None:
    """Raises ConfigError if names, the port, the threshold or the protocol cannot be."""
    names = [silo.name for silo in definition.silos]
    wrong = [name for name in names if not _SILO_NAME.fullmatch(name) or name.lower() in _RESERVED]
    if wrong or len({name.lower() for name in names}) != len(names):
        raise ConfigError(
            f"{where}: silos are named {', '.join(map(repr, names))}; expected different names of letters, digits, - and _, at most 63 characters, and none of {', '.join(sorted(_RESERVED))}."
        )
    if not all(silo.organization.strip() for silo in definition.silos) or not definition.coordinator.organization:
        raise ConfigError(f"{where}: an organization is empty; expected the name of whoever operates each party.")
    host, port = definition.coordinator.host, definition.coordinator.port
    if not _HOST.fullmatch(host) or host in names or not 0 < port < 2**16:
        raise ConfigError(
            f"{where}: the coordinator is {host!r}, port {port}; expected a host name (at most 64 characters) that is no silo's, and a port from 1 to 65535."
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", definition.name):
        raise ConfigError(
            f"{where}: the consortium's name is {definition.name!r}; expected letters, digits, '.', '-' and '_', at most 63."
        )
    if not len(names) < 2 * definition.threshold <= 2 * len(names):
        raise ConfigError(
            f"{where}: threshold is {definition.threshold} of {len(names)} silos; expected more than half of them, and at most all. With half, two halves could each unmask a sum of their own."
        )
    if definition.protocol != PROTOCOL:
        raise ConfigError(
            f"{where}: protocol is {definition.protocol}; expected {PROTOCOL}, which this version of tff-pipeline speaks."
        )
