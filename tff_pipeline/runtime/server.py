"""The server's side of a round: it broadcasts the state, adds up what silos report, and applies the sum.

It knows the state, the sums it has unmasked, and its own secret. This module and `runtime.silo` do not import each other.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from tff_pipeline.learning.process import Compiled
from tff_pipeline.learning.state import ServerState
from tff_pipeline.privacy.round import Round
from tff_pipeline.runtime.base import Broadcast, Report, ServerDraws, named_metrics
from tff_pipeline.runtime.graphs import SessionGraph
from tff_pipeline.secagg.masking import add_up


@dataclasses.dataclass(frozen=True)
class Applied:
    """What the server has after a round: the state, the metrics by name, and how many bytes each silo sent."""

    state: ServerState
    metrics: dict[str, float]
    bytes_up: int


class Server:
    """The coordinator. What it does runs on the CPU.

    Args:
      compiled: the process.
      draws: its random draws, from its own secret.
    """

    def __init__(self, compiled: Compiled, draws: ServerDraws):
        self._compiled, self._layout, self._draws = compiled, compiled.layout, draws
        self._prepare = SessionGraph(compiled.form.prepare)
        # The noise that comes out of a round is "not supplied": nothing to fetch.
        self._update = SessionGraph(compiled.form.update, skipped=frozenset(self._layout.noise))

    def initial_state(self) -> ServerState:
        """The state before the first round, with weights of zero and no noise supplied."""
        graph = SessionGraph(self._compiled.initialize)
        try:
            return ServerState(self._layout, tuple(graph()))
        finally:
            graph.close()

    def broadcast(self, state: ServerState, at: Round) -> Broadcast:
        """What every silo is sent in this round."""
        if self._layout.rotation is not None:
            state = state.with_rotation(self._draws.rotation(at))
        return Broadcast(tuple(self._prepare(state.arrays)))

    def apply(self, state: ServerState, reports: Iterable[Report], at: Round) -> Applied:
        """Adds up the reports, adds the noise where the server is the one to add it, and updates the state.

        Args:
          state: before the round.
          reports: of every silo. Each is used as it comes, so that they are never all held at once.
          at: the round.
        """
        total = self.receive(reports)
        if self._layout.noise:
            state = state.with_noise(self._draws.noise(at, self._compiled.shapes))
        if self._layout.rotation is not None:
            state = state.with_rotation(self._draws.rotation(at))
        if self._layout.noise_shares is not None:
            # The noise is in the sums already; the server says so by a zero where it would add it.
            state = state.with_noise_shares(np.zeros_like(state.arrays[self._layout.noise_shares]))
        after, metrics = self._updated(state, total)
        # A masked report is as large as the sum of all.
        return Applied(after, metrics, bytes_up=sum(part.nbytes for part in total))

    def receive(self, reports: Iterable[Report]) -> list[np.ndarray]:
        """The sum of what the silos sent. The server is given nothing else."""
        return add_up(report.sums for report in reports)

    def close(self) -> None:
        """Ends its sessions."""
        self._prepare.close()
        self._update.close()

    def _updated(self, state: ServerState, sums: Sequence[np.ndarray]) -> tuple[ServerState, dict[str, float]]:
        # An exact sum may be below zero; one modulo a power of two never is.
        typed = [
            total.view(slot.dtype) if total.dtype.itemsize == slot.dtype.itemsize else total.astype(slot.dtype)
            for total, slot in zip(sums, self._compiled.slots, strict=True)
        ]
        results = self._update([*state.arrays, *typed])
        count, not_supplied = len(state.arrays), np.array(np.nan)
        after = [
            np.broadcast_to(not_supplied, state.arrays[index].shape) if index in self._layout.noise else results[index]
            for index in range(count)
        ]
        return ServerState(self._layout, tuple(after)), named_metrics(self._compiled.metric_names, results[count:])
