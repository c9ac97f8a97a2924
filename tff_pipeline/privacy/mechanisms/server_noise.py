"""What the mechanisms have in common whose Gaussian noise the server adds: bounds, rounding, and what one round may tell.

Where a round releases other sums beside the updates' (metrics, the count within an adaptive clip) all of them together are
one Gaussian mechanism with the plan's noise multiplier z (Andrew et al. 2021, arXiv:1905.03871, theorem 1).
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from tff_pipeline.privacy.mechanisms.base import Mechanism, require_positive
from tff_pipeline.privacy.mechanisms.event import Event
from tff_pipeline.privacy.mechanisms.metrics import NoisedMetrics
from tff_pipeline.privacy.mechanisms.noise import rounding_step
from tff_pipeline.privacy.mechanisms.quantization import CLIP_EXCESS, Quantization, largest_poisson_cohort
from tff_pipeline.privacy.mechanisms.run_numbers import RunNumbers


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoissonGaussianEvent(Event):
    """A Poisson-sampled Gaussian mechanism: Gaussian noise drawn for the round alone."""

    kind: ClassVar[str] = "poisson_gaussian"
    sampling_probability: float
    noise_multiplier: float

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        return cls(
            unit=stored.get("unit", "client"),
            sampling_probability=float(stored["sampling_probability"]),
            noise_multiplier=float(stored["noise_multiplier"]),
        )

    def numbers(self) -> dict[str, Any]:
        return {"sampling_probability": self.sampling_probability, "noise_multiplier": self.noise_multiplier}

    @property
    def gaussian_noise_multiplier(self) -> float:
        return self.noise_multiplier

    @property
    def poisson_probability(self) -> float:
        return self.sampling_probability

    def __str__(self) -> str:
        return f"a poisson gaussian with sampling probability {self.sampling_probability:.6g} and noise multiplier {self.noise_multiplier:g}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerNoise(Mechanism):
    """Clip on the client, secure sum, Gaussian noise at the server, which is trusted to add it."""

    clip_norm: float

    def __post_init__(self) -> None:
        require_positive(self, clip_norm=self.clip_norm, noise_multiplier=self.noise_multiplier)

    def numbers(self) -> dict[str, Any]:
        return {"clip_norm": self.clip_norm, "noise_multiplier": self.noise_multiplier}

    @property
    def clip_of_sum(self) -> float:
        return self.clip_norm

    def sensitivity(self, run: RunNumbers) -> float:
        """C (1 + CLIP_EXCESS), which is more than float32 makes of a clip to C.

        Quantization adds nothing, since it truncates toward zero, nor does the sum, which is exact (integers below 2**53 in
        float64).
        """
        return self.clip_of_sum * (1 + CLIP_EXCESS)

    def noise_stddev(self, run: RunNumbers) -> float:
        return self.update_noise_multiplier(run) * self.sensitivity(run)

    def rounding_step(self, run: RunNumbers) -> float:
        return rounding_step(self.noise_stddev(run))

    def accounting_sentences(self, run: RunNumbers) -> list[str]:
        return [
            "The noise is computed in float64 and accounted for as exactly Gaussian, and the noised sum is rounded to about a thousandth of the noise's standard deviation; docs/privacy.md estimates the error, which epsilon does not include."
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampledGaussian(ServerNoise, abc.ABC):
    """Gaussian noise of each round alone, under Poisson sampling.

    Attributes:
      metrics: the noise on training metrics where they are released with noise, else None.
    """

    event_type: ClassVar[type[Event]] = PoissonGaussianEvent
    metrics: NoisedMetrics | None = None

    @property
    def noised_metrics(self) -> NoisedMetrics | None:
        return self.metrics

    def numbers(self) -> dict[str, Any]:
        return super().numbers() | ({"metrics_stddev": self.metrics.stddev} if self.metrics else {})

    def event(self, run: RunNumbers) -> Event:
        return self.gaussian_event(self.noise_multiplier, sampling_probability=run.sampling_probability, unit=run.unit)

    def gaussian_event(self, noise_multiplier: float, *, sampling_probability: float, unit: str = "client") -> Event:
        return PoissonGaussianEvent(
            unit=unit, sampling_probability=sampling_probability, noise_multiplier=noise_multiplier
        )

    def update_noise_multiplier(self, run: RunNumbers) -> float:
        """z; somewhat more, z_u, where a round releases other sums too.

        Those are the count of the clients within an adaptive clip, and metrics with noise. Of the updates one client changes
        the sum by S, of the others by S_b. Divided by their noise they are one vector that a client changes by
        sqrt(1 / z_u**2 + (S_b / sigma_b)**2 + ...), and with z_u chosen so that this is 1 / z the round is one Gaussian
        mechanism with noise multiplier z (Andrew et al. 2021, arXiv:1905.03871, theorem 1, with all rounding in S and S_b).

        Raises:
          PrivacyError: if the others alone tell more than that.
        """
        if self.metrics is None:
            return self.noise_multiplier
        return self.metrics.left_of(1 / self.noise_multiplier**2, run, self.noise_multiplier) ** -0.5

    def quantization(self, run: RunNumbers) -> Quantization:
        """A cohort larger than there is room for does not happen under Poisson sampling."""
        clients = run.clients
        if run.sampling_probability < 1:
            clients = largest_poisson_cohort(run.clients, run.expected_cohort)
        return Quantization.finest(self._value_range, largest_cohort=clients, dimension=run.dimension)

    def mechanism_sentences(self, run: RunNumbers) -> list[str]:
        others = self._other_sums(run)
        together = f"All noised sums of a round together are one Gaussian mechanism with noise multiplier {self.noise_multiplier:g}."
        return [
            *poisson_sampled(run),
            self._clip_sentence(run),
            f"The server adds Gaussian noise to every coordinate of the sum of the updates, of standard deviation {self.noise_stddev(run):.6g} {self._unit_of_noise}.",
            f"That is {self.update_noise_multiplier(run):.6g} times the sensitivity, which is the most that one {run.unit} can change the sum (in L2 norm, quantization included).",
            *others,
            *([together] if others else []),
            f"The noised sum is divided by {run.denominator:g}, the expected number of {run.unit}s in a round.",
        ]

    _unit_of_noise: ClassVar[str] = "in the unit of the updates"

    def _clip_sentence(self, run: RunNumbers) -> str:
        return clip_sentence(run, self.clip_norm)

    def _other_sums(self, run: RunNumbers) -> list[str]:
        """What a round releases beside the sum of updates, a sentence each."""
        if self.metrics is None:
            return []
        return [
            f"Each of the two sums that the released training metrics are computed from has Gaussian noise of standard deviation {self.metrics.stddev:g}."
        ]

    def metrics_sentences(self, run: RunNumbers, policy: str) -> list[str]:
        paragraph = super().metrics_sentences(run, policy)
        if self.metrics is None or policy != "noised":
            return paragraph
        return [
            *paragraph,
            f"What is released of a round is the mean of the {run.unit}s' own accuracies, computed from two sums with Gaussian noise of standard deviation {self.metrics.stddev:g}, which epsilon covers.",
        ]


def poisson_sampled(run: RunNumbers) -> list[str]:
    """Who takes part in a round, in words."""
    return [
        f"Mechanism: training takes {run.rounds} rounds.",
        f"In each round, every one of {run.clients} {run.unit}s takes part with probability {run.sampling_probability:.6g}, independently of all others (Poisson sampling).",
    ]


def clip_sentence(run: RunNumbers, clip_norm: float) -> str:
    return f"The update of a {run.unit} is clipped to an L2 norm of at most {clip_norm:g}."
