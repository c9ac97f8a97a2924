"""What the mechanisms have in common whose Gaussian noise the server adds: bounds, rounding, and what one round may tell.

Where a round releases other sums beside the updates' (metrics, the count within an adaptive clip) all of them together are
one Gaussian mechanism with the plan's noise multiplier z (Andrew et al. 2021, arXiv:1905.03871, theorem 1).
"""

import abc
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from tff_pipeline.config import Config
from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy import randomness
from tff_pipeline.privacy.mechanisms.base import (
    Event,
    Mechanism,
    RunNumbers,
    require_positive,
    rounding_step,
    server_secret,
)
from tff_pipeline.privacy.mechanisms.quantization import CLIP_EXCESS, Quantization, largest_poisson_cohort
from tff_pipeline.privacy.round import Round

# Counts and metrics have noise of a twentieth of the cohort unless something else is asked for: what Andrew et al. 2021
# (section 3.1) recommend for the count of clients within an adaptive clip.
COUNT_STDDEV = 1 / 20
# Of metrics: one client adds its accuracy to one sum and itself to another.
_METRICS_SENSITIVITY = math.sqrt(2)


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
class NoisedMetrics:
    """Training metrics of a round that are released from two sums with Gaussian noise, which epsilon covers.

    Attributes:
      stddev: standard deviation of the noise on each of the two sums, in clients.
    """

    stddev: float

    def __post_init__(self) -> None:
        if not (self.stddev > 0 and math.isfinite(self.stddev)):
            raise PrivacyError(f"metrics_stddev is {self.stddev!r}; expected a number of clients above 0.")

    def noise(self, secret: bytes, *, round: Round) -> list[float]:
        """The noise on the two sums, drawn with the server's secret."""
        return randomness.metrics_noise(server_secret(secret, round), round_number=round.number, stddev=self.stddev)

    def released(self, noised: float) -> float:
        """A noised sum, rounded as `rounding_step` says why."""
        step = rounding_step(self.stddev)
        return round(noised / step) * step

    def left_of(self, left: float, run: RunNumbers, noise_multiplier: float) -> float:
        """What the metrics leave of `left`, the inverse square of the noise multiplier that everything together may have.

        Raises:
          PrivacyError: if they alone tell more than that.
        """
        left -= (_METRICS_SENSITIVITY / self.stddev) ** 2
        if left <= 0:
            raise PrivacyError(
                f"the cohort of {run.expected_cohort:g} {run.unit}s is too small for metrics with noise at noise multiplier {noise_multiplier:g}: with a standard deviation of {self.stddev:g} they "
                f"would tell more than everything together may; expected more than {noise_multiplier * _METRICS_SENSITIVITY:g}. "
                'Raise training.clients_per_round (or privacy.metrics_stddev, by default a twentieth of it), or set privacy.metrics = "withheld".'
            )
        return left

    @classmethod
    def from_config(cls, config: Config) -> Self | None:
        """None where the configuration releases no metrics with noise."""
        privacy = config.privacy
        if privacy.metrics != "noised":
            return None
        return cls(stddev=privacy.metrics_stddev or COUNT_STDDEV * config.training.clients_per_round)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self | None:
        return cls(stddev=stored["metrics_stddev"]) if stored.get("metrics_stddev") else None


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
            "The noise is computed in float64, rounded to about a thousandth of its standard deviation, and accounted for as exactly Gaussian; docs/privacy.md estimates what that leaves out."
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampledGaussian(ServerNoise, abc.ABC):
    """Gaussian noise of each round alone, under Poisson sampling.

    Attributes:
      metrics: the noise on training metrics where they are released with noise, else None.
    """

    event_type: ClassVar[type[Event]] = PoissonGaussianEvent
    metrics: NoisedMetrics | None = None

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

    def mechanism_sentence(self, run: RunNumbers) -> str:
        return (
            f"Mechanism: {poisson_sampled(run)}, its update is clipped to an L2 norm of {self._clip_in_words(run)}, and Gaussian noise of standard deviation {self.noise_stddev(run):.6g} {self._noise_in_words(run)} "
            f"is added to the sum at the server. The noised sum is divided by {run.denominator:g}, the expected cohort."
        )

    def _clip_in_words(self, run: RunNumbers) -> str:
        return f"{self.clip_norm:g}"

    def _noise_in_words(self, run: RunNumbers) -> str:
        """What the noise's standard deviation is made of."""
        said = f"{self.update_noise_multiplier(run):.6g} times the sensitivity, quantisation included"
        others = self._other_sums(run)
        if others:
            said += f"; with {' and '.join(others)}, a round is a Gaussian mechanism with noise multiplier {self.noise_multiplier:g}"
        return f"({said})"

    def _other_sums(self, run: RunNumbers) -> list[str]:
        """What a round releases beside the sum of updates."""
        if self.metrics is None:
            return []
        return [f"the metrics, whose two sums have noise of standard deviation {self.metrics.stddev:g}"]

    def metrics_sentences(self, run: RunNumbers, policy: str) -> list[str]:
        said = super().metrics_sentences(run, policy)
        if self.metrics is None or policy != "noised":
            return said
        return [
            *said,
            f"What is released of a round is the mean of the {run.unit}s' own accuracies, from two sums with Gaussian noise of standard deviation {self.metrics.stddev:g}, which epsilon covers.",
        ]


def poisson_sampled(run: RunNumbers) -> str:
    """Who takes part in a round, in words."""
    return f"{run.rounds} rounds; in each, every one of {run.clients} {run.unit}s takes part independently with probability {run.sampling_probability:.6g} (Poisson sampling)"
