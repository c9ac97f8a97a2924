"""All silos and the server in this process: the compiled form's own graphs in TensorFlow sessions.

broadcast = server.broadcast(state)
reports   = silo.report(broadcast) of every silo
state     = server.apply(state, reports)
"""

from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self

import numpy as np

from tff_pipeline.learning.process import Compiled
from tff_pipeline.learning.state import ServerState
from tff_pipeline.privacy.round import Round
from tff_pipeline.runtime.allocator import keep_freed_memory
from tff_pipeline.runtime.base import Broadcast, Charges, Draws, OnClient, OnCohort, Report, RoundResult
from tff_pipeline.runtime.clients import Clients
from tff_pipeline.runtime.devices import choose_devices
from tff_pipeline.runtime.server import Server
from tff_pipeline.runtime.silo import Silo
from tff_pipeline.runtime.workers import ClientWorkers
from tff_pipeline.secagg.masking import Party, add_up, introduce


class LocalRuntime:
    """Runs rounds for silos that are all in this process. Making one changes how the process allocates (`allocator`).

    The clients' work runs on `devices`, what the server does on the CPU. With a GPU, both the process is built and the
    runtime is used within `determinism.deterministic_operations(choose_devices(devices))`.

    Args:
      compiled: the process.
      clients: the training clients of each silo.
      draws: of the server and of every silo.
      charges: the silos' ledgers.
      devices: "auto" (every GPU, or else the CPU), "CPU", or names such as ["GPU:0"].
      clients_in_parallel: how many clients are worked on at a time on each device; 0 chooses.
      session: identifies the run to the secure sum.

    Raises:
      TrainingError: if a device is not there, or operations on a GPU are not deterministic.
    """

    def __init__(
        self,
        compiled: Compiled,
        clients: Sequence[Clients],
        *,
        draws: Draws,
        charges: Charges,
        devices: str | Sequence[str] = "auto",
        clients_in_parallel: int = 0,
        session: str = "",
    ):
        keep_freed_memory()
        self.devices = choose_devices(devices)
        self._workers = ClientWorkers(compiled, clients[0], devices=self.devices, in_parallel=clients_in_parallel)
        self.server = Server(compiled, draws.server)
        parties = {own.name: Party(own.name, session, noised=compiled.noised_slots) for own in clients}
        introduce(list(parties.values()))
        self.silos = [
            Silo(
                own,
                self._workers,
                draws.silos[own.name],
                masks=parties[own.name],
                noised=compiled.noised_slots,
                charges=charges,
            )
            for own in clients
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def initial_state(self) -> ServerState:
        return self.server.initial_state()

    def run_round(self, state: ServerState, at: Round, *, on_client: OnClient = lambda: None) -> RoundResult:
        cohorts: dict[str, np.ndarray] = {}
        broadcast = self.server.broadcast(state, at)
        reports = self.reports(broadcast, at, on_client, cohorts.__setitem__)
        applied = self.server.apply(state, reports, at)
        return RoundResult(applied.state, applied.metrics, cohorts, broadcast.nbytes, applied.bytes_up)

    def secure_sums(
        self, state: ServerState, at: Round, cohorts: Mapping[str, Sequence[int] | np.ndarray]
    ) -> list[np.ndarray]:
        """The sum of every secure slot over these clients, each in its ring, without noise and masks.

        Nobody but the audit, benchmarks and the contract tests, which have synthetic clients, sees it.
        """
        broadcast = self.server.broadcast(state, at)
        return add_up(silo.sum(broadcast, cohorts.get(silo.name, ())) for silo in self.silos)

    def placement(self) -> dict[str, dict[str, int]]:
        return self._workers.placement()

    def close(self) -> None:
        self._workers.close()
        self.server.close()

    def reports(self, broadcast: Broadcast, at: Round, on_client: OnClient, on_cohort: OnCohort) -> Iterator[Report]:
        """What the server is given: each silo's report, as it comes. An observer of the server overrides this."""
        for silo in self.silos:
            yield silo.report(broadcast, at, on_client=on_client, on_cohort=on_cohort)
