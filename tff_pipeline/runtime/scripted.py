"""A runtime whose cohorts and noise are said, not drawn: for benchmarks and tests over synthetic clients.

Training never uses it (an import contract in pyproject.toml says so). It plays the same silos and the same server.
"""

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from tff_pipeline.learning.process import Compiled
from tff_pipeline.learning.state import ServerState
from tff_pipeline.privacy.round import Round
from tff_pipeline.runtime.base import NoLedgers, OnClient, RoundResult, Runtime
from tff_pipeline.runtime.clients import Clients

Cohorts = Mapping[str, Sequence[int] | np.ndarray]


class _Summing(Runtime, Protocol):
    """A runtime that shows sums without noise and masks, as `LocalRuntime` and `ReferenceRuntime` do."""

    def secure_sums(self, state: ServerState, at: Round, cohorts: Cohorts) -> list[np.ndarray]: ...


class _Draws:
    """What the round at hand is given; for the server, for every silo."""

    def __init__(self, clients: Sequence[Clients]):
        self.server = self
        self.silos = {own.name: _Silo(self, own.name) for own in clients}
        self.cohorts: Cohorts = {}
        self.shares: Callable[[str], np.ndarray] | None = None
        self.on_sum: Callable[[str, Sequence[np.ndarray]], None] = lambda silo, sums: None
        self.state: ServerState | None = None

    def noise(self, at: Round, shapes: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """What the state holds: it is "not supplied" unless the caller supplied it."""
        state = self._stated()
        return [state.arrays[index] for index in state.layout.noise]

    def rotation(self, at: Round) -> np.ndarray:
        state = self._stated()
        if state.layout.rotation is None:
            raise ValueError("the learning process has no rotation; expected one whose state has it.")
        return state.arrays[state.layout.rotation]

    def _stated(self) -> ServerState:
        if self.state is None:
            raise ValueError("no round was begun; expected a call of `run_round` or `secure_sums`.")
        return self.state


class _Silo:
    def __init__(self, script: _Draws, name: str):
        self._script, self._name = script, name

    def cohort(self, at: Round, clients: int) -> np.ndarray:
        return np.asarray(self._script.cohorts.get(self._name, ()), np.int64)

    def noise_share(self, at: Round) -> np.ndarray | None:
        return self._script.shares(self._name) if self._script.shares else None

    def record(self, at: Round, sums: Sequence[np.ndarray]) -> None:
        self._script.on_sum(self._name, sums)


class ScriptedRuntime:
    """Runs rounds with the cohorts that it is told, and with the noise and the rotation that the state holds.

    Args:
      kind: `LocalRuntime` or `ReferenceRuntime`.
      compiled: the process.
      clients: of each silo.
      options: of `kind`.
    """

    def __init__(self, kind: Callable[..., _Summing], compiled: Compiled, clients: Sequence[Clients], **options: Any):
        self._draws = _Draws(clients)
        self.runtime = kind(compiled, clients, draws=self._draws, charges=NoLedgers(), **options)

    def __enter__(self) -> Self:
        self.runtime.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def devices(self) -> Sequence[str]:
        return self.runtime.devices

    def initial_state(self) -> ServerState:
        return self.runtime.initial_state()

    def run_round(
        self,
        state: ServerState,
        cohorts: Cohorts,
        *,
        round_number: int,
        shares: Callable[[str], np.ndarray] | None = None,
        on_sum: Callable[[str, Sequence[np.ndarray]], None] = lambda silo, sums: None,
        on_client: OnClient = lambda: None,
    ) -> RoundResult:
        """One round.

        Args:
          state: with noise and rotation as the round is to have them.
          cohorts: by silo, indices of its clients.
          round_number: from 0; a silo masks each once.
          shares: gives a silo's noise share for its name, int64 [length], where silos add the noise. Without it nothing is
            released.
          on_sum: told each silo's name and its sums, before noise and masks.
          on_client: called as each client's work ends.
        """
        script = self._draws
        script.state, script.cohorts, script.shares, script.on_sum = state, cohorts, shares, on_sum
        return self.runtime.run_round(state, _at(round_number), on_client=on_client)

    def secure_sums(self, state: ServerState, cohorts: Cohorts) -> list[np.ndarray]:
        """The sum of every secure slot over these clients, each in its ring, without noise and masks."""
        self._draws.state = state
        return self.runtime.secure_sums(state, _at(0), cohorts)

    def placement(self) -> dict[str, dict[str, int]]:
        return self.runtime.placement()

    def close(self) -> None:
        self.runtime.close()


def _at(number: int) -> Round:
    """A round with this number, from 0; what it starts from is not looked at."""
    return Round("scripted", ("",) * (number + 1))
