"""What an audit observes: each party's view of every round that was played."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tff_pipeline.learning.process import Compiled
from tff_pipeline.learning.state import ServerState
from tff_pipeline.privacy.round import Round
from tff_pipeline.runtime.base import (
    Broadcast,
    Draws,
    NoLedgers,
    OnClient,
    OnCohort,
    Report,
    RoundResult,
    ServerDraws,
    SiloDraws,
)
from tff_pipeline.runtime.clients import Clients
from tff_pipeline.runtime.local import LocalRuntime


@dataclasses.dataclass
class Observed:
    """What was observed over all rounds. Units are those of the sum of updates; of the clip, where that is adaptive.

    Attributes:
      directions: float [canaries, dimension], the unit vector along which each canary's update lies.
      norms: float [canaries], of the canaries' own updates after the clip, without noise.
      sensitivities: the largest norm over the plan's sensitivity that a client reached, by what the client does.
      cohorts: bool [rounds, canaries].
      released: float [rounds, dimension], the sum that the server releases. Where silos add the noise, without the noise
        shares of those that the claim tolerates on the attacker's side.
      noise: float [rounds, coordinates], the noise on the sum over its standard deviation; of the integers, where silos
        add it.
      noise_shares: by silo int64 [rounds, coordinates], where silos add the noise.
      count_noise: float [rounds], on the number of clients within an adaptive clip, over its standard deviation.
      windows: of every draw of noise: between which two times it was drawn, in ns, and the first numbers of it.
      other_sums: in how many of the rounds compared a silo's sum was not that of the cohort's clients, each worked on by itself.
      unseen_reports: in how many rounds the server was not given one report from each silo.
      other_totals: in how many rounds the reports' sum was not that of the silos' sums and noise shares: masks are left over, or
        noise is not where it should be.
      mask_bits: int [silos, slots, 2], how many bits of masks were set, and how many there were.
      masks: a digest of every silo's mask in every round.
    """

    directions: np.ndarray
    norms: np.ndarray
    sensitivities: dict[str, float]
    cohorts: np.ndarray
    released: np.ndarray
    noise: np.ndarray
    noise_shares: dict[str, np.ndarray]
    count_noise: np.ndarray
    windows: list[tuple[int, int, np.ndarray]]
    other_sums: int = 0
    unseen_reports: int = 0
    other_totals: int = 0
    mask_bits: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0, 2), np.int64))
    masks: list[bytes] = dataclasses.field(default_factory=list)


class Watched(LocalRuntime):
    """The local runtime with an observer beside each silo, and beside the server.

    Args:
      compiled, clients, draws, options: as of `LocalRuntime`; nobody is charged for canaries.

    Attributes:
      sums: of the round by silo, before noise and masks.
      noise_shares: by silo when its draw began and ended, in ns, and the draw; nothing where the server adds the noise.
      noise_window: when the server's noise was drawn, in ns: began and ended.
      given: what the server is given, one report a silo.
    """

    def __init__(self, compiled: Compiled, clients: Sequence[Clients], draws: Draws, **options: Any):
        super().__init__(compiled, clients, draws=_WatchedDraws(self, draws), charges=NoLedgers(), **options)
        self._begin()

    def run_round(self, state: ServerState, at: Round, *, on_client: OnClient = lambda: None) -> RoundResult:
        self._begin()
        return super().run_round(state, at, on_client=on_client)

    def reports(self, broadcast: Broadcast, at: Round, on_client: OnClient, on_cohort: OnCohort) -> Iterator[Report]:
        for report in super().reports(broadcast, at, on_client, on_cohort):
            self.given.append([np.array(part) for part in report.sums])
            yield report

    def _begin(self) -> None:
        self.sums: dict[str, list[np.ndarray]] = {}
        self.noise_shares: dict[str, tuple[int, int, np.ndarray]] = {}
        self.noise_window = (0, 0)
        self.given: list[list[np.ndarray]] = []


class _WatchedDraws:
    """All parties' draws, each with an observer beside it."""

    def __init__(self, watched: Watched, draws: Draws):
        self.server = _WatchedServer(watched, draws.server)
        self.silos = {silo: _WatchedSilo(watched, silo, own) for silo, own in draws.silos.items()}


class _WatchedServer:
    def __init__(self, watched: Watched, draws: ServerDraws):
        self._watched, self._draws = watched, draws

    def noise(self, at: Round, shapes: Sequence[Sequence[int]]) -> Sequence[np.ndarray]:
        began = time.time_ns()
        noise = self._draws.noise(at, shapes)
        self._watched.noise_window = began, time.time_ns()
        return noise

    def rotation(self, at: Round) -> np.ndarray:
        return self._draws.rotation(at)


class _WatchedSilo:
    def __init__(self, watched: Watched, silo: str, draws: SiloDraws):
        self._watched, self._silo, self._draws = watched, silo, draws

    def cohort(self, at: Round, clients: int) -> np.ndarray:
        return self._draws.cohort(at, clients)

    def noise_share(self, at: Round) -> np.ndarray | None:
        began = time.time_ns()
        noise_share = self._draws.noise_share(at)
        if noise_share is not None:
            self._watched.noise_shares[self._silo] = began, time.time_ns(), np.array(noise_share)
        return noise_share

    def record(self, at: Round, sums: Sequence[np.ndarray]) -> None:
        self._watched.sums[self._silo] = [np.array(part) for part in sums]
        self._draws.record(at, sums)
