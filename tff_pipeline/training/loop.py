"""The loop of a run's rounds. It sees interfaces only: draws, ledgers, a runtime, a store, and the one exit.

A round is noted by every silo and charged everywhere before anything of it is computed, and its state is saved before
anything of it is released. So a run that is killed at any moment goes on where it stopped, charges nothing twice, and ends
as it would have.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tff_pipeline.errors import TrainingError
from tff_pipeline.learning.state import ServerState
from tff_pipeline.privacy.charges import Account
from tff_pipeline.privacy.draws import Draws
from tff_pipeline.privacy.round import start_of
from tff_pipeline.runtime.base import RoundResult, Runtime
from tff_pipeline.training.releases import Releases
from tff_pipeline.training.store import StateStore


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


@dataclasses.dataclass(frozen=True)
class Loop:
    """What the rounds of a run need.

    Attributes:
      draws: of all parties.
      charges: the ledgers.
      runtime: runs a round.
      store: keeps the states.
      releases: the exit.
      fed: a digest of what clients are fed with, beside their texts.
      silos_with_text: the silos that have any training example.
      run: the run's folder, for errors.
    """

    draws: Draws
    charges: Account
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
            position.starts.append(start_of(state.kept, *names, self.fed, before=position.starts))
            at = self.draws.round(position.starts)
            self.draws.begin(at)
            self.charges.charge(at.number + 1, start=at.start)
            result = self.runtime.run_round(state, at)
            self.releases.placement(self.runtime)
            self._require_usable(at.number + 1, result)
            position.state = result.state
            seconds = time.monotonic() - started
            position.history.append(self.releases.entry(at, result, clip=state.clip, seconds=seconds))
            self.store.save(at.number + 1, result.state.kept, names, position.history, position.starts)
            self.releases.round(position.history)
        return position.state

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
