"""Noise that the silos add: the distributed discrete Gaussian (Kairouz, Liu and Steinke 2021, arXiv:2102.06387).

Each silo adds a share of discrete Gaussian noise to its sum before it is masked, so that the server never sees a sum without
noise. `privacy.distributed` has the numbers and the proof of what the noise is worth.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from tff_pipeline.config import Config
from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy import distributed, randomness
from tff_pipeline.privacy.discrete_gaussian import discrete_gaussian
from tff_pipeline.privacy.distributed import Integers
from tff_pipeline.privacy.mechanisms.base import (
    Event,
    Mechanism,
    RunNumbers,
    ServerInputs,
    require_positive,
    server_secret,
)
from tff_pipeline.privacy.mechanisms.server_noise import PoissonGaussianEvent, poisson_sampled
from tff_pipeline.privacy.round import Round


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributedDiscreteGaussianEvent(Event):
    """Noise that the silos add in shares, on integers; accounted for as the Gaussian noise that `distributed` proves it to be worth.

    Attributes:
      sampling_probability: of Poisson sampling.
      sensitivity_squared: bound of a client's squared L2 norm, in quantization steps.
      log2_share: s; every silo's noise share has a variance of 4**s.
      honest_silos: how many noise shares the guarantee counts on.
      length: coordinates after rotation.
    """

    kind: ClassVar[str] = "poisson_distributed_discrete_gaussian"
    sampling_probability: float
    sensitivity_squared: int
    log2_share: int
    honest_silos: int
    length: int

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        return cls(
            unit=stored.get("unit", "client"),
            sampling_probability=float(stored["sampling_probability"]),
            sensitivity_squared=int(stored["sensitivity_squared"]),
            log2_share=int(stored["log2_share"]),
            honest_silos=int(stored["honest_silos"]),
            length=int(stored["length"]),
        )

    def numbers(self) -> dict[str, Any]:
        return {
            "sampling_probability": self.sampling_probability,
            "sensitivity_squared": self.sensitivity_squared,
            "log2_share": self.log2_share,
            "honest_silos": self.honest_silos,
            "length": self.length,
        }

    @property
    def gaussian_noise_multiplier(self) -> float:
        return distributed.noise_multiplier(
            sensitivity_squared=self.sensitivity_squared, log2_share=self.log2_share, honest=self.honest_silos
        )

    @property
    def poisson_probability(self) -> float:
        return self.sampling_probability

    @property
    def log_error(self) -> float:
        return distributed.log_error(log2_share=self.log2_share, honest=self.honest_silos, length=self.length)

    def __str__(self) -> str:
        return f"a distributed discrete gaussian with sampling probability {self.sampling_probability:.6g}, worth a noise multiplier of {self.gaussian_noise_multiplier:g} by {self.honest_silos} silos' shares"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributedDiscreteGaussian(Mechanism):
    """Clip, rotate, round to integers, sum modulo 2**bits with every silo's noise share in it.

    Attributes:
      noise_multiplier: of the noise shares that the guarantee counts on.
      tolerated_silos: how many silos' noise shares the guarantee does without, t.
      bits: the sum is taken modulo 2**bits.
    """

    kind: ClassVar[str] = "distributed_discrete_gaussian"
    event_type: ClassVar[type[Event]] = DistributedDiscreteGaussianEvent
    silos_add_noise: ClassVar[bool] = True
    clip_norm: float
    tolerated_silos: int = 0
    bits: int = 32

    def __post_init__(self) -> None:
        require_positive(self, clip_norm=self.clip_norm, noise_multiplier=self.noise_multiplier)
        if self.tolerated_silos < 0:
            raise PrivacyError(f"tolerated_silos is {self.tolerated_silos!r}; expected 0 or more.")
        if self.bits not in (16, 32):
            raise PrivacyError(f"secure_sum.bits is {self.bits!r}; expected 16 or 32.")

    @classmethod
    def from_config(cls, config: Config, run: RunNumbers, *, noise_multiplier: float) -> Self:
        clip_norm = config.privacy.clip_norm
        if clip_norm is None:
            raise PrivacyError(f'{config.path}: privacy.clip_norm is missing; expected a number with "{cls.kind}".')
        return cls(
            clip_norm=clip_norm,
            noise_multiplier=noise_multiplier,
            tolerated_silos=config.tolerated_silos,
            bits=config.secure_sum.bits,
        )

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        return cls(
            clip_norm=stored["clip_norm"],
            noise_multiplier=stored["noise_multiplier"],
            tolerated_silos=stored.get("tolerated_silos", 0),
            bits=stored.get("ring_bits", 32),
        )

    def numbers(self) -> dict[str, Any]:
        return {
            "clip_norm": self.clip_norm,
            "noise_multiplier": self.noise_multiplier,
            "tolerated_silos": self.tolerated_silos,
            "ring_bits": self.bits,
        }

    def integers(self, run: RunNumbers) -> Integers:
        """How updates become integers, and the noise on them.

        Raises:
          PrivacyError: if the sum of a round does not fit the ring.
        """
        integers = distributed.integers(
            clip_norm=self.clip_norm,
            noise_multiplier=self.noise_multiplier,
            dimension=run.dimension,
            clients=run.clients,
            expected_cohort=run.expected_cohort,
            silos=run.silos,
            tolerated=self.tolerated_silos,
            bits=self.bits,
        )
        if integers is None:
            raise PrivacyError(
                f"secure_sum.bits is {self.bits}: the sum of about {run.expected_cohort:g} updates of {run.dimension} coordinates and its noise does not fit "
                "without rounding that costs more than a quarter more noise. Set secure_sum.bits = 32, or plan smaller cohorts or fewer weights."
            )
        return integers

    def event(self, run: RunNumbers) -> DistributedDiscreteGaussianEvent:
        integers = self.integers(run)
        return DistributedDiscreteGaussianEvent(
            unit=run.unit,
            sampling_probability=run.sampling_probability,
            sensitivity_squared=integers.sensitivity_squared,
            log2_share=integers.log2_share,
            honest_silos=integers.honest,
            length=integers.length,
        )

    def gaussian_event(self, noise_multiplier: float, *, sampling_probability: float, unit: str = "client") -> Event:
        """Of the Gaussian noise which the silos' is worth."""
        return PoissonGaussianEvent(
            unit=unit, sampling_probability=sampling_probability, noise_multiplier=noise_multiplier
        )

    def sensitivity(self, run: RunNumbers) -> float:
        """The bound of a client's integers, in units of the update."""
        return self.integers(run).sensitivity

    def noise_stddev(self, run: RunNumbers) -> float:
        """Of all silos' noise shares together."""
        return self.integers(run).noise_stddev

    def server_inputs(
        self, run: RunNumbers, secret: bytes, *, round: Round, shapes: Sequence[Sequence[int]]
    ) -> ServerInputs:
        key = randomness.derive(server_secret(secret, round), f"rotation/{round.number}")
        return ServerInputs(rotation=randomness.uniform_words(key, 2).view(np.int64))

    def noise_share(self, run: RunNumbers, secret: bytes, *, silo: str, round: Round) -> np.ndarray:
        integers = self.integers(run)
        key = randomness.derive(secret, f"share/{silo}/{round.binding}/{round.number}")
        return discrete_gaussian(key, integers.log2_share, integers.length)

    def mechanism_sentence(self, run: RunNumbers) -> str:
        integers = self.integers(run)
        return (
            f"Mechanism: {poisson_sampled(run)}, its update is clipped to an L2 norm of {self.clip_norm:g}, rotated at random and rounded to whole multiples of {integers.quantum:.6g}. Each of {integers.silos} silos adds to its sum, before it is masked, discrete Gaussian noise of "
            f"standard deviation 2^{integers.log2_share} such multiples, {integers.quantum * 2**integers.log2_share:.6g}. The guarantee counts on {integers.honest} of these shares, which together are at least {self.noise_multiplier:g} times the sensitivity, "
            f"rotation and rounding included; all of them have a standard deviation of {integers.noise_stddev:.6g}. The sum is taken modulo 2^{integers.bits}, and divided by {run.denominator:g}, the expected cohort."
        )

    def accounting_sentences(self, run: RunNumbers) -> list[str]:
        log_error = run.rounds * self.event(run).log_error
        return [
            f"The silos' integers are accounted for as the Gaussian noise they are proven to be worth, which no probability differs from by more than a factor of 1 + 10^{math.ceil(math.log10(2 * log_error))} over all rounds; that is counted."
        ]

    def holds_against_silos(self, run: RunNumbers) -> bool:
        """It does where the guarantee does without the noise share that a silo knows: its own."""
        integers = self.integers(run)
        return integers.honest < integers.silos

    def secure_sum_sentences(self, run: RunNumbers, silos: int) -> list[str]:
        integers = self.integers(run)
        sends_alike = f"Nothing else leaves a silo in a round: no loss, no accuracy and no number of clients, and it sends as much when {'it was not' if run.unit == 'silo' else 'none of its clients was'} drawn."
        timing = "How long a silo works is not hidden: it grows with what was drawn, and whoever measures it (times in logs and files are enough) may learn how large a cohort was, which the guarantee assumes nobody does."
        if integers.silos == 1:
            return [
                "Secure sum: there is one silo.",
                "The server sees what it sends, which has the noise in it already, so nobody outside the silo sees a sum of updates without noise.",
                sends_alike,
                timing,
                "The guarantee holds against the server.",
                "The silo trusts nobody; its clients trust it to sample, clip and add the noise as stated.",
            ]
        return [
            (
                f"Secure sum: what a silo sends has its share of the noise in it, and is masked with keys agreed pairwise among the {integers.silos} silos; a server that follows the protocol learns the noised sum over all silos, "
                "never a sum of updates without noise."
            ),
            sends_alike,
            timing,
            *_against_whom(integers, "for the others" if run.unit == "silo" else "for the clients of the others"),
            f"Each silo trusts {integers.honest} of the {integers.silos} to add their shares as stated, and all to sample and clip.",
        ]

    def metrics_sentences(self, run: RunNumbers, policy: str) -> list[str]:
        return [
            "Training metrics: there are none, in no file and no log.",
            "An update that is not finite counts as zero, and nobody is told.",
        ]


def _against_whom(integers: Integers, others: str) -> list[str]:
    several = integers.silos - integers.honest
    if not several:
        return [
            "The guarantee holds against the server.",
            "It does not hold against a silo, which sees every round's model and can take its own share away: privacy.tolerated_silos = 1 covers that.",
        ]
    if several == 1:
        return [
            f"The guarantee holds against the server together with any one of the silos, which may tell it its share or leave it out, {others}."
        ]
    return [
        f"The guarantee holds against the server together with any {several} of the silos, which may tell it their shares or leave them out, {others}."
    ]
