"""The files that each party of a consortium writes for itself.

All parties have one file that they have agreed on, the process: a configuration (configs/README.md) that lists the silos'
names in place of [[silos]] tables. A silo's own file says where its text is, what it agrees to, and where its folder of keys
and certificates lies; the coordinator's names no path of a silo. docs/consortium.md shows all three.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from tff_pipeline.config import loading
from tff_pipeline.config.loading import assemble, read_tables
from tff_pipeline.config.schema import Config, Devices, Name, Positive
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


class Patience(_Table, frozen=True, kw_only=True):
    """How long the coordinator waits, in seconds.

    Attributes:
      stage: for the answers of a stage in which silos compute little.
      work: for their masked sums.
      silos: for enough silos to be connected.
      attempts: how often a round is begun before the run stops; it goes on from there when it is started again.
    """

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
    patience: Patience = Patience()
    path: str = ""


F = TypeVar("F", SiloFile, CoordinatorFile)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration in a file: a whole one, or that of a party of a consortium, which names its process.

    Raises:
      ConfigError: naming the file and key, what was found, what was expected and what to do.
    """
    tables = read_tables(Path(path))
    if "process" not in tables:
        return loading.load(path, overrides)
    if overrides:
        raise ConfigError(
            f"--set {overrides[0]!r}: {path} is the file of one party of a consortium; expected no --set, since what the parties agree on is changed by all of them, in {tables['process']}."
        )
    if "name" in tables:
        return silo_config(read_silo(Path(path)))
    return coordinator_config(read_coordinator(Path(path)))


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


def silo_config(own: SiloFile) -> Config:
    """The configuration as this silo has it: its own data, and of the other silos their names.

    Raises:
      ConfigError: if the process or the silo's data table is wrong, or the process does not name this silo.
    """
    inputs = _absolute_inputs(own.data.get("input", ""), Path(own.path).parent)
    data = {**own.data, "name": own.name, "input": inputs}
    if own.policy.budget_epsilon is not None:
        data["budget_epsilon"] = own.policy.budget_epsilon
    runtime = {"kind": "network", **_options(own.runtime)}
    return assemble(own.process, own=data, workdir=Path(own.workdir), runtime=runtime)


def coordinator_config(own: CoordinatorFile) -> Config:
    """The configuration as the coordinator has it: of the silos it has the names.

    Raises:
      ConfigError: if the process is wrong.
    """
    return assemble(own.process, own=None, workdir=Path(own.workdir), runtime={"kind": "network", "devices": "CPU"})


def _options(runtime: DeviceTable) -> dict[str, Any]:
    return msgspec.to_builtins(runtime)


def _absolute_inputs(inputs: Any, base: Path) -> Any:
    if isinstance(inputs, dict):
        return {split: _absolute_inputs(part, base) for split, part in inputs.items()}
    if isinstance(inputs, list | tuple):
        return [_absolute_inputs(part, base) for part in inputs]
    if not isinstance(inputs, str):
        return inputs  # refused with the rest of the table
    return inputs if "://" in inputs else str(base / Path(inputs).expanduser())


def _read(path: Path, kind: type[F]) -> F:
    tables = read_tables(path)
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
