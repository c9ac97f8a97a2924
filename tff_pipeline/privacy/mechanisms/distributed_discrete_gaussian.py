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
from tff_pipeline.privacy.distributed import Discretization
from tff_pipeline.privacy.mechanisms.base import Mechanism, ServerInputs, require_positive
from tff_pipeline.privacy.mechanisms.event import Event
from tff_pipeline.privacy.mechanisms.noise import server_secret
from tff_pipeline.privacy.mechanisms.run_numbers import RunNumbers
from tff_pipeline.privacy.mechanisms.server_noise import PoissonGaussianEvent, clip_sentence, poisson_sampled
from tff_pipeline.privacy.round import Round


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributedDiscreteGaussianEvent(Event):
    """Noise that the silos add in shares, on integers; accounted for as the Gaussian noise that `distributed` proves it to be worth.

    Attributes:
      sampling_probability: of Poisson sampling.
      sensitivity_squared: bound of a client's squared L2 norm, in quantization steps.
      log2_share: s, under the name that ledgers have; every silo's noise share has a variance of 4**s.
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
            sensitivity_squared=self.sensitivity_squared, log2_scale=self.log2_share, honest_silos=self.honest_silos
        )

    @property
    def poisson_probability(self) -> float:
        return self.sampling_probability

    @property
    def log_error(self) -> float:
        return distributed.log_error(log2_scale=self.log2_share, honest_silos=self.honest_silos, length=self.length)

    def __str__(self) -> str:
        return f"a distributed discrete gaussian with sampling probability {self.sampling_probability:.6g}, worth a noise multiplier of {self.gaussian_noise_multiplier:g} by {self.honest_silos} silos' noise shares"


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

    def derived(self, run: RunNumbers) -> dict[str, Any]:
        return {"integers": self.discretization(run).as_json()}

    def discretization(self, run: RunNumbers) -> Discretization:
        """How updates become integers, and the noise on them.

        Raises:
          PrivacyError: if the sum of a round does not fit the ring.
        """
        if self.tolerated_silos >= run.silos:
            raise PrivacyError(
                f"the guarantee is to do without the noise shares of {self.tolerated_silos} of {run.silos} silos; expected fewer than all."
            )
        discretization = distributed.finest_discretization(
            clip_norm=self.clip_norm,
            noise_multiplier=self.noise_multiplier,
            dimension=run.dimension,
            clients=run.clients,
            expected_cohort=run.expected_cohort,
            silos=run.silos,
            tolerated=self.tolerated_silos,
            bits=self.bits,
        )
        if discretization is None:
            raise PrivacyError(
                f"secure_sum.bits is {self.bits}: the sum of about {run.expected_cohort:g} updates of {run.dimension} coordinates and its noise does not fit "
                "without rounding that costs more than a quarter more noise. Set secure_sum.bits = 32, or plan smaller cohorts or fewer weights."
            )
        return discretization

    def event(self, run: RunNumbers) -> DistributedDiscreteGaussianEvent:
        discretization = self.discretization(run)
        return DistributedDiscreteGaussianEvent(
            unit=run.unit,
            sampling_probability=run.sampling_probability,
            sensitivity_squared=discretization.sensitivity_squared,
            log2_share=discretization.log2_scale,
            honest_silos=discretization.honest_silos,
            length=discretization.length,
        )

    def gaussian_event(self, noise_multiplier: float, *, sampling_probability: float, unit: str = "client") -> Event:
        """Of the Gaussian noise which the silos' is worth."""
        return PoissonGaussianEvent(
            unit=unit, sampling_probability=sampling_probability, noise_multiplier=noise_multiplier
        )

    def sensitivity(self, run: RunNumbers) -> float:
        """The bound of a client's integers, in units of the update."""
        return self.discretization(run).sensitivity

    def noise_stddev(self, run: RunNumbers) -> float:
        """Of all silos' noise shares together."""
        return self.discretization(run).noise_stddev

    def server_inputs(
        self, run: RunNumbers, secret: bytes, *, round: Round, shapes: Sequence[Sequence[int]]
    ) -> ServerInputs:
        key = randomness.derive(server_secret(secret, round), f"rotation/{round.number}")
        return ServerInputs(rotation=randomness.uniform_words(key, 2).view(np.int64))

    def numbers_drawn_by_silos(self, run: RunNumbers) -> int:
        return run.silos * self.discretization(run).length

    def noise_share(self, run: RunNumbers, secret: bytes, *, silo: str, round: Round) -> np.ndarray:
        discretization = self.discretization(run)
        key = randomness.derive(secret, f"share/{silo}/{round.binding}/{round.number}")
        return discrete_gaussian(key, discretization.log2_scale, discretization.length)

    def mechanism_sentences(self, run: RunNumbers) -> list[str]:
        discretization = self.discretization(run)
        step, scale = discretization.step, discretization.log2_scale
        return [
            *poisson_sampled(run),
            clip_sentence(run, self.clip_norm),
            f"It is rotated at random, and rounded to integer multiples of a step of {step:.6g}.",
            f"Each of {discretization.silos} silos adds its noise share to its sum before the sum is masked: discrete Gaussian noise on every coordinate, of standard deviation 2^{scale} steps, which is {step * 2**scale:.6g}.",
            f"The guarantee counts on {discretization.honest_silos} of these noise shares, which together are worth a standard deviation of at least {self.noise_multiplier:g} times the sensitivity, the most that one {run.unit} can change the sum (in L2 norm, rotation and rounding included); all of them together have one of {discretization.noise_stddev:.6g}.",
            f"The sum is taken modulo 2^{discretization.bits}, and divided by {run.denominator:g}, the expected number of {run.unit}s in a round.",
        ]

    def accounting_sentences(self, run: RunNumbers) -> list[str]:
        log_error = run.rounds * self.event(run).log_error
        return [
            f"The sum of the silos' integers is accounted for as having the continuous Gaussian noise that it is proven to be worth; over all rounds no probability differs from that by more than a factor of 1 + 10^{math.ceil(math.log10(2 * log_error))}, which epsilon and delta include."
        ]

    def holds_against_silos(self, run: RunNumbers) -> bool:
        """It does where the guarantee does without the noise share that a silo knows: its own."""
        discretization = self.discretization(run)
        return discretization.honest_silos < discretization.silos

    def secure_sum_sentences(self, run: RunNumbers) -> list[str]:
        discretization = self.discretization(run)
        silos, honest = discretization.silos, discretization.honest_silos
        nobody = "it was not drawn" if run.unit == "silo" else "none of its clients was drawn"
        nothing_else = [
            f"Nothing else leaves a silo in a round: no loss, no accuracy and no number of clients; a silo sends as much when {nobody}.",
            "How long a silo works is not hidden: the time grows with the cohort, and whoever measures it (times in logs and files are enough) may learn how large the cohort was, which the guarantee assumes nobody does.",
        ]
        if silos == 1:
            return [
                "Secure sum: there is only one silo.",
                "What it sends to the server has the noise in it already, so nobody outside the silo sees a sum of updates without noise.",
                *nothing_else,
                "The guarantee holds against the server.",
                "The silo need not trust anybody; its clients trust it to sample, clip and add the noise as stated.",
            ]
        return [
            f"Secure sum: each silo masks what it sends, which has its noise share in it, with keys that every two of the {silos} silos agree on.",
            "A server that follows the protocol learns the noised sum over all silos, and never a sum of updates without noise.",
            *nothing_else,
            *_against_whom(
                silos - honest, "the other silos" if run.unit == "silo" else "the clients of the other silos"
            ),
            f"Each silo trusts {honest} of the {silos} silos to add their noise shares as stated, and all of them to sample and clip as stated.",
        ]

    def metrics_sentences(self, run: RunNumbers, policy: str) -> list[str]:
        return [
            "Training metrics: there are none, in no file and no log.",
            "An update that is not finite counts as zero, and nobody is told.",
        ]


def _against_whom(tolerated: int, others: str) -> list[str]:
    if not tolerated:
        return [
            "The guarantee holds against the server.",
            "It does not hold against a silo, which sees the model of every round and can subtract its own noise share: privacy.tolerated_silos = 1 covers that.",
        ]
    if tolerated == 1:
        return [
            f"For {others}, the guarantee holds against the server together with any one of the silos, which may tell the server its noise share or leave it out."
        ]
    return [
        f"For {others}, the guarantee holds against the server together with any {tolerated} of the silos, which may tell the server their noise shares or leave them out."
    ]
