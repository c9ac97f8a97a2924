"""Gaussian noise at the server with a clip that follows a quantile of the clients' norms (Andrew et al. 2021, arXiv:1905.03871).

Updates are summed in units of the round's clip, and a client sends whether its norm was within it. The noised count of
those sets the next round's clip.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from tff_pipeline.config import Config
from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy import randomness
from tff_pipeline.privacy.mechanisms.base import ServerInputs, require_positive
from tff_pipeline.privacy.mechanisms.metrics import NoisedMetrics
from tff_pipeline.privacy.mechanisms.noise import COUNT_STDDEV, round_noise, rounding_step, server_secret
from tff_pipeline.privacy.mechanisms.run_numbers import RunNumbers
from tff_pipeline.privacy.mechanisms.server_noise import SampledGaussian
from tff_pipeline.privacy.round import Round

# What Andrew et al. 2021 (section 3.1) recommend: the median.
_QUANTILE = 0.5
# Of the count: one client adds a half or subtracts it, an integer number of quantization steps.
COUNT_SENSITIVITY = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptiveGaussian(SampledGaussian):
    """The sampled Gaussian mechanism with a clip of each round's own.

    Attributes:
      clip_norm: of the first round.
      quantile: the quantile of the clients' norms that the clip follows, gamma.
      count_stddev: standard deviation of the noise on the number of clients within the clip, sigma_b.
    """

    kind: ClassVar[str] = "gaussian"  # in files it is a Gaussian with privacy.clipping = "adaptive"
    quantile: float
    count_stddev: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, clip_count_stddev=self.count_stddev)
        if not 0 < self.quantile < 1:
            raise PrivacyError(f"clip_quantile is {self.quantile!r}; expected a number between 0 and 1.")

    @classmethod
    def from_config(cls, config: Config, run: RunNumbers, *, noise_multiplier: float) -> Self:
        privacy = config.privacy
        if privacy.clip_norm is None:
            raise PrivacyError(
                f'{config.path}: privacy.clip_norm is missing; expected the first round\'s with privacy.clipping = "adaptive".'
            )
        return cls(
            clip_norm=privacy.clip_norm,
            noise_multiplier=noise_multiplier,
            quantile=privacy.clip_quantile or _QUANTILE,
            count_stddev=privacy.clip_count_stddev or COUNT_STDDEV * config.training.clients_per_round,
            metrics=NoisedMetrics.from_config(config),
        )

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        return cls(
            clip_norm=stored["clip_norm"],
            noise_multiplier=stored["noise_multiplier"],
            quantile=stored["clip_quantile"],
            count_stddev=stored["clip_count_stddev"],
            metrics=NoisedMetrics.from_json(stored),
        )

    def numbers(self) -> dict[str, Any]:
        return super().numbers() | {"clip_quantile": self.quantile, "clip_count_stddev": self.count_stddev}

    @property
    def clip_of_sum(self) -> float:
        return 1.0

    @property
    def count_rounding_step(self) -> float:
        """As `rounding_step`, of the count of clients within the clip."""
        return rounding_step(self.count_stddev)

    def update_noise_multiplier(self, run: RunNumbers) -> float:
        left = 1 / self.noise_multiplier**2
        if self.metrics is not None:
            left = self.metrics.left_of(left, run, self.noise_multiplier)
        needed = COUNT_SENSITIVITY / math.sqrt(left)
        left -= (COUNT_SENSITIVITY / self.count_stddev) ** 2
        if left <= 0:
            raise PrivacyError(
                f"the cohort of {run.expected_cohort:g} {run.unit}s is too small for adaptive clipping at noise multiplier {self.noise_multiplier:g}: counting those within the clip with noise of standard deviation "
                f"{self.count_stddev:g} would tell more than everything together may; expected more than {needed:g}. "
                'Raise training.clients_per_round (or privacy.clip_count_stddev, by default a twentieth of it, which makes the clip less steady), or set privacy.clipping = "fixed".'
            )
        return left**-0.5

    def server_inputs(
        self, run: RunNumbers, secret: bytes, *, round: Round, shapes: Sequence[Sequence[int]]
    ) -> ServerInputs:
        secret = server_secret(secret, round)
        return ServerInputs(
            noise=round_noise(secret, round_number=round.number, stddev=self.noise_stddev(run), shapes=shapes),
            count_noise=count_noise(secret, round_number=round.number, stddev=self.count_stddev),
        )

    _unit_of_noise: ClassVar[str] = "times the round's clip"

    def _clip_sentence(self, run: RunNumbers) -> str:
        return f"The update of a {run.unit} is clipped to an L2 norm of at most {self.clip_norm:g} in the first round; after that, the clip follows the {self.quantile:g} quantile of the {run.unit}s' norms (adaptive clipping)."

    def _other_sums(self, run: RunNumbers) -> list[str]:
        return [
            f"The number of {run.unit}s whose update was within the clip, from which the next round's clip follows, has Gaussian noise of standard deviation {self.count_stddev:g}.",
            *super()._other_sums(run),
        ]

    def _summed(self, run: RunNumbers) -> str:
        return f"the updates and of the number of {run.unit}s within the clip, before the noise, and of the training metrics"


def count_noise(secret: bytes, *, round_number: int, stddev: float) -> np.ndarray:
    """The noise on a round's count of clients within the clip, float64 scalar."""
    (noise,) = randomness.gaussian(randomness.derive(secret, f"count/{round_number}"), stddev, [()])
    return noise
