"""The loop of a run's rounds. It sees interfaces only: draws, ledgers, a runtime, a store, and the one exit.

A round is noted by every silo and charged everywhere before anything of it is computed, and its state is saved before
anything of it is released. So a run that is killed at any moment goes on where it stopped, charges nothing twice, and ends
as it would have.
"""

import dataclasses
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tff_pipeline.errors import RoundLost, TrainingError
from tff_pipeline.learning.state import ServerState
from tff_pipeline.privacy.plan import PrivacyPlan
from tff_pipeline.privacy.round import Round, start_of
from tff_pipeline.runtime.base import RoundResult, Runtime
from tff_pipeline.training.releases import Releases
from tff_pipeline.training.store import StateStore

_MOST_LOST = 5  # rounds in a row, each of which is charged


@dataclasses.dataclass
class Position:
    """How far a run is: what `StateStore` keeps.

    Attributes:
      state: the server's, after the last round.
      history: an entry for every round (`Releases.entry`).
      starts: what every round started from (`round.start_of`).
    """

    state: ServerState
    history: list[dict[str, Any]]
    starts: list[str]

    @classmethod
    def newest(cls, store: StateStore, initial: ServerState) -> "Position":
        """What the store holds, or the beginning."""
        saved = store.latest(initial.layout.kept_names)
        if saved is None:
            return cls(initial, [], [])
        arrays, history, starts = saved
        return cls(initial.with_kept(arrays), history, starts)


class RunDraws(Protocol):
    """The draws of a run; see `privacy.draws.Draws`."""

    @property
    def plan(self) -> PrivacyPlan: ...

    def round(self, starts: Sequence[str]) -> Round: ...

    def begin(self, at: Round) -> None: ...


class Charging(Protocol):
    """The ledgers; see `privacy.charges.Account`."""

    def charge(self, round_number: int, *, start: str = "") -> None: ...


@dataclasses.dataclass(frozen=True)
class Loop:
    """What the rounds of a run need.

    Attributes:
      draws: of all parties; or of those that are here.
      charges: the ledgers; nothing where each party charges its own within the round.
      runtime: runs a round.
      store: keeps the states.
      releases: the exit.
      fed: a digest of what clients are fed with, beside their texts.
      silos_with_text: the silos that have any training example.
      run: the run's folder, for errors.
    """

    draws: RunDraws
    charges: Charging
    runtime: Runtime
    store: StateStore
    releases: Releases
    fed: str
    silos_with_text: frozenset[str]
    run: Path

    def rounds(self, position: Position) -> ServerState:
        """Runs the rounds that are left, and returns the state after the last.

        Raises:
          PrivacyError: if a budget would be passed, or a silo has reported something else under the same draw.
          TrainingError: if a round's result cannot be used; the last good state is kept.
        """
        names = position.state.layout.kept_names
        for _ in range(len(position.history), self.draws.plan.rounds):
            started = time.monotonic()
            state = position.state
            at, result = self._round(position, names)
            position.starts.append(at.start)
            self.releases.placement(self.runtime)
            self._require_usable(at.number + 1, result)
            position.state = result.state
            seconds = time.monotonic() - started
            position.history.append(self.releases.entry(at, result, clip=state.clip, seconds=seconds))
            self.store.save(at.number + 1, result.state.kept, names, position.history, position.starts)
            self.releases.round(position.history)
        return position.state

    def _round(self, position: Position, names: Sequence[str]) -> tuple[Round, RoundResult]:
        """The next round. One whose sum may have been seen by somebody, and was not used, is drawn and charged anew."""
        lost: list[str] = []
        while True:
            start = start_of(position.state.kept, *names, self.fed, *lost, before=position.starts)
            at = self.draws.round([*position.starts, start])
            self.draws.begin(at)
            self.charges.charge(at.number + 1, start=at.start)
            try:
                return at, self.runtime.run_round(position.state, at)
            except RoundLost as error:
                if not error.drawn_anew or len(lost) == _MOST_LOST:
                    raise
                lost.append(secrets.token_hex(32))

    def _require_usable(self, number: int, result: RoundResult) -> None:
        """Stops a run that diverged, with the last good state on disk."""
        kept = f"The state after round {number - 1} is kept in {self.run}. Lower training.client_learning_rate or training.server_learning_rate, which starts a new run."
        # A silo that is a client and has no text takes its turn, and adds nothing.
        # Of silos that are elsewhere nobody here knows how many were at work.
        cohorts = result.cohorts or {}
        at_work = sum(len(rows) for silo, rows in cohorts.items() if silo in self.silos_with_text)
        if at_work and not result.metrics.get("finite_clients", at_work):
            raise TrainingError(
                f"round {number}: none of the {at_work} clients' updates was finite (the loss is not a number). {kept}"
            )
        if result.metrics.get("update_non_finite") or not _finite(result.state.weights):
            raise TrainingError(f"round {number}: the sum of the updates or the new weights are not finite. {kept}")


def _finite(weights: Sequence[np.ndarray]) -> bool:
    return all(np.isfinite(array).all() for array in weights)
