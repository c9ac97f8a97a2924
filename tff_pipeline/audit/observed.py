"""What an audit observes: each party's view of every round that was played."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from tff_pipeline.runtime.base import OnSum, RoundResult, Shares, State
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

    Attributes:
      state: of the round, as the server is given it.
      entered_ns: when the round began.
      sums: by silo, before noise and masks.
      noise_shares: by silo when its draw began and ended, and the draw; nothing where the server adds the noise.
      reports: what the server is given, one a silo.
    """

    state: State
    entered_ns: int
    sums: dict[str, list[np.ndarray]]
    noise_shares: dict[str, tuple[int, int, np.ndarray]]
    reports: list[list[np.ndarray]]

    def run_round(
        self,
        state: State,
        cohorts: Any,
        *,
        round_number: int,
        shares: Shares | None = None,
        on_sum: OnSum | None = None,
        on_client: Callable[[], None] = lambda: None,
    ) -> RoundResult:
        self.entered_ns = time.time_ns()
        self.state, self.sums, self.noise_shares, self.reports = state, {}, {}, []

        def observed_sum(silo: str, sums: Sequence[np.ndarray]) -> None:
            self.sums[silo] = [np.array(part) for part in sums]
            if on_sum:
                on_sum(silo, sums)

        def observed_share(silo: str) -> np.ndarray:
            began = time.time_ns()
            noise_share = shares(silo) if shares else np.zeros(0, np.int64)
            self.noise_shares[silo] = began, time.time_ns(), np.array(noise_share)
            return noise_share

        return super().run_round(
            state,
            cohorts,
            round_number=round_number,
            shares=observed_share if shares else None,
            on_sum=observed_sum,
            on_client=on_client,
        )

    def receive(self, reports: Iterable[list[np.ndarray]]) -> list[np.ndarray]:
        def observed() -> Iterator[list[np.ndarray]]:
            for report in reports:
                self.reports.append([np.array(part) for part in report])
                yield report

        return super().receive(observed())
