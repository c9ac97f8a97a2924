"""What silos and the server send each other, and what every runtime does with it.

A runtime runs rounds of a compiled learning process. `local` has every silo and the server in this process; `reference` runs
the uncompiled process under TFF's own executor, and is the oracle. The training loop and the contract tests need not know
which one it is.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self

import numpy as np

from tff_pipeline.learning.state import ServerState
from tff_pipeline.privacy.round import Round

# Parts of the names of operations that a BERT's time goes to.
_ARITHMETIC = ("MatMul", "Softmax", "BiasAdd", "Erf", "Tanh", "L2Loss", "ResourceGather", "SegmentSum", "Einsum")

# Called as each client's work ends, for a progress bar.
OnClient = Callable[[], None]
# Called with a silo's name and the indices of its cohort, where the silo is in this process.
OnCohort = Callable[[str, np.ndarray], None]


@dataclasses.dataclass(frozen=True)
class Broadcast:
    """What the server sends to every silo at the beginning of a round; all of it is public."""

    arrays: tuple[np.ndarray, ...]

    @property
    def nbytes(self) -> int:
        """How many bytes a silo is sent."""
        return sum(array.nbytes for array in self.arrays)


@dataclasses.dataclass(frozen=True)
class Report:
    """What a silo sends to the server: the masked sum of each slot, unsigned, in the slot's ring. The sums alone tell nothing."""

    sums: tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True)
class RoundResult:
    """What a round gave.

    Attributes:
      state: the server's state after it.
      metrics: by the last parts of their TFF names ("loss", "accuracy", ...); of the clients none where the silos add the
        noise.
      cohorts: of each silo, the indices of the clients that took part; None where the silos are in other processes.
      bytes_down, bytes_up: what the server sent to each silo, and each silo to the server; None for a simulation.
    """

    state: ServerState
    metrics: dict[str, float]
    cohorts: Mapping[str, np.ndarray] | None
    bytes_down: int | None = None
    bytes_up: int | None = None


class Charges(Protocol):
    """The ledgers, as a silo asks them."""

    def require_charged(self, silo: str, at: Round) -> None:
        """Raises PrivacyError unless the silo's own ledger holds the charge for this draw of the round."""
        ...


class SiloDraws(Protocol):
    """What a silo draws and remembers in a round; see `privacy.silo_draws.SiloDraws`."""

    def cohort(self, at: Round, clients: int) -> np.ndarray: ...

    def noise_share(self, at: Round) -> np.ndarray | None:
        """None if there is none: the silo then refuses to report."""
        ...

    def record(self, at: Round, sums: Sequence[np.ndarray]) -> None: ...


class ServerDraws(Protocol):
    """What the server draws in a round; see `privacy.server_draws.ServerDraws`."""

    def noise(self, at: Round, shapes: Sequence[Sequence[int]]) -> Sequence[np.ndarray]: ...

    def rotation(self, at: Round) -> np.ndarray: ...


class Masks(Protocol):
    """A silo's side of the secure sum; see `secagg.masking.Party`."""

    def mask(
        self, values: Sequence[np.ndarray], round_number: int, noise: Mapping[int, np.ndarray]
    ) -> list[np.ndarray]: ...


class Draws(Protocol):
    """The draws of all parties in one process, of which each party is given its own; see `privacy.draws.Draws`."""

    @property
    def server(self) -> ServerDraws: ...

    @property
    def silos(self) -> Mapping[str, SiloDraws]: ...


class NoLedgers:
    """For benchmarks, audits and tests over synthetic data, which nobody is charged for."""

    def require_charged(self, silo: str, at: Round) -> None:
        """Asks nothing."""


class Runtime(Protocol):
    """Runs rounds. Used in a `with` block; nothing it starts outlives the block."""

    @property
    def devices(self) -> Sequence[str]:
        """What the clients' work runs on, as TensorFlow names it ("GPU:0"); empty if unknown."""
        ...

    def initial_state(self) -> ServerState:
        """The state before the first round, with weights of zero and no noise supplied."""
        ...

    def run_round(self, state: ServerState, at: Round, *, on_client: OnClient = ...) -> RoundResult:
        """Runs one round: every silo draws its cohort and reports, and the server applies the sum.

        Raises:
          PrivacyError: if a silo was not charged for the round, or has reported something else under the same draw.
        """
        ...

    def placement(self) -> dict[str, dict[str, int]]:
        """Where the clients' work so far ran: by device ("GPU:0"), how many operations of each type; empty if unknown."""
        ...

    def close(self) -> None:
        """Ends what the runtime started."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def off_device(placement: Mapping[str, Mapping[str, int]], devices: Sequence[str]) -> dict[str, int]:
    """The arithmetic of the model that ran on none of `devices`, by type; input pipelines and bookkeeping may."""
    elsewhere: dict[str, int] = {}
    for device, counts in placement.items():
        for kind, count in counts.items() if device not in devices else ():
            if any(part in kind for part in _ARITHMETIC):
                elsewhere[kind] = elsewhere.get(kind, 0) + count
    return elsewhere


def named_metrics(names: Sequence[str], values: Sequence[np.ndarray]) -> dict[str, float]:
    """Scalars of the round by name; TFF's bookkeeping of the metrics' own secure sums is left out."""
    return {
        name.rsplit("/", 1)[-1]: float(value)
        for name, value in zip(names, values, strict=True)
        if "secure_sum_measurements" not in name and np.ndim(value) == 0
    }
