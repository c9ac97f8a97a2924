"""Training metrics that are released with noise: a part of what a round of some mechanisms tells."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Self

from tff_pipeline.config import Config
from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy import randomness
from tff_pipeline.privacy.mechanisms.noise import COUNT_STDDEV, rounding_step, server_secret
from tff_pipeline.privacy.mechanisms.run_numbers import RunNumbers
from tff_pipeline.privacy.round import Round

# One client adds its accuracy to one sum and itself to another.
_METRICS_SENSITIVITY = math.sqrt(2)


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
        key = randomness.derive(server_secret(secret, round), f"metrics/{round.number}")
        (noise,) = randomness.gaussian(key, self.stddev, [(2,)])
        return noise.tolist()

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
