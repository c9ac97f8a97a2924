"""The files that each party of a consortium writes for itself.

All parties have one file that they have agreed on, the process: a configuration (configs/README.md) without [[silos]]. A
silo's own file says where its text is, what it agrees to, and where its startup kit lies; the coordinator's names no path
of a silo. `examples` of both are in docs/consortium.md.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from tff_pipeline import config as configuration
from tff_pipeline.config import Config
from tff_pipeline.config.schema import Devices, Name, Positive
from tff_pipeline.errors import ConfigError

Hours = Annotated[
    str, Meta(pattern=r"\A([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d\Z", description='hours such as "19:00-06:00"')
]


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class DeviceTable(_Table, frozen=True, kw_only=True):
    """What the party computes on; see [runtime] in configs/README.md."""

    devices: Devices = "auto"
    clients_in_parallel: Annotated[int, Meta(ge=0)] = 0


class Policy(_Table, frozen=True, kw_only=True):
    """What a silo agrees to. Anything else it refuses.

    Attributes:
      least_silos: how many silos a consortium has at least.
      threshold: how many silos a sum is over at least. More than half of them, or the silo does not start.
      colluding: how many of the other silos may side with a server that breaks the protocol.
      budget_epsilon: what the silo's clients may be charged in all; None for as much as the approved processes plan.
      hours: when it takes part, local time; at any time where it is empty.
      max_mb_a_round: how much it sends and receives in a round at most, in 10^6 bytes; any amount where it is 0.
    """

    threshold: Annotated[int, Meta(ge=2)]
    least_silos: Annotated[int, Meta(ge=2)] = 2
    colluding: Annotated[int, Meta(ge=0)] = 0
    budget_epsilon: Positive | None = None
    hours: Hours | None = None
    max_mb_a_round: Annotated[float, Meta(ge=0)] = 0.0


class PatienceTable(_Table, frozen=True, kw_only=True):
    """How long the coordinator waits, in seconds; see `runtime.network.server_rounds.Patience`."""

    stage: Positive = 30.0
    work: Positive = 3600.0
    silos: Annotated[float, Meta(ge=0)] = 600.0
    attempts: Annotated[int, Meta(ge=1)] = 5


class SiloFile(_Table, frozen=True, kw_only=True):
    """A silo's own file. `path` is where it was read from."""

    name: Name
    process: str
    workdir: str
    site: str
    data: dict[str, Any]
    policy: Policy
    runtime: DeviceTable = DeviceTable()
    path: str = ""


class CoordinatorFile(_Table, frozen=True, kw_only=True):
    """The coordinator's own file."""

    process: str
    workdir: str
    site: str
    threshold: Annotated[int, Meta(ge=2)]
    patience: PatienceTable = PatienceTable()
    path: str = ""


F = TypeVar("F", SiloFile, CoordinatorFile)


def read_silo(path: Path) -> SiloFile:
    """A silo's file, with its paths made absolute.

    Raises:
      ConfigError: naming the file and key, what was found and what was expected.
    """
    return _read(path, SiloFile)


def read_coordinator(path: Path) -> CoordinatorFile:
    """The coordinator's file, with its paths made absolute.

    Raises:
      ConfigError: naming the file and key, what was found and what was expected.
    """
    return _read(path, CoordinatorFile)


def silo_config(own: SiloFile, silos: list[str]) -> Config:
    """The configuration as this silo has it: its own data, and of the other silos their names.

    Raises:
      ConfigError: if the silo is not one of `silos`, or the process or the silo's data table is wrong.
    """
    if own.name not in silos:
        raise ConfigError(
            f"{own.path}: name is {own.name!r}; expected a silo of the consortium's roster: {', '.join(silos)}."
        )
    base = Path(own.path).parent
    data = {**own.data, "name": own.name, "input": _absolute_inputs(own.data.get("input", ""), base)}
    if own.policy.budget_epsilon is not None:
        data["budget_epsilon"] = own.policy.budget_epsilon
    tables = [data if name == own.name else _elsewhere(name) for name in silos]
    return configuration.assemble(
        own.process, silos=tables, workdir=Path(own.workdir), runtime={"kind": "network", **_options(own.runtime)}
    )


def coordinator_config(own: CoordinatorFile, silos: list[str]) -> Config:
    """The configuration as the coordinator has it: of the silos it has the names.

    Raises:
      ConfigError: if the process is wrong.
    """
    tables = [_elsewhere(name) for name in silos]
    return configuration.assemble(
        own.process, silos=tables, workdir=Path(own.workdir), runtime={"kind": "network", "devices": "CPU"}
    )


def _elsewhere(name: str) -> dict[str, Any]:
    """The table of a silo whose data are not here; nothing reads its input."""
    return {"name": name, "input": (), "format": "csv"}


def _options(runtime: DeviceTable) -> dict[str, Any]:
    return msgspec.to_builtins(runtime)


def _absolute_inputs(inputs: Any, base: Path) -> Any:
    if isinstance(inputs, dict):
        return {split: _absolute_inputs(part, base) for split, part in inputs.items()}
    if isinstance(inputs, list | tuple):
        return [_absolute_inputs(part, base) for part in inputs]
    return inputs if "://" in inputs else str(base / Path(inputs).expanduser())


def _read(path: Path, kind: type[F]) -> F:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); expected the party's own file, as docs/consortium.md shows it."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}.") from None
    if "path" in tables:
        raise ConfigError(f"{path}: there is no key path; expected one of those in docs/consortium.md. Remove it.")
    try:
        own = msgspec.convert(tables, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"{path}: {str(error).replace('`', '')}. docs/consortium.md explains every key of a party's own file."
        ) from None
    base = path.resolve().parent
    places = {
        name: str((base / Path(getattr(own, name)).expanduser()).resolve()) for name in ("process", "workdir", "site")
    }
    return msgspec.structs.replace(own, path=str(path.resolve()), **places)
