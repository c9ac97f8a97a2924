"""DP-FedAvg: a fixed clip on the client, and Gaussian noise at the server in each round by itself (McMahan et al. 2018)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from tff_pipeline.config import Config
from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy.mechanisms.base import ServerInputs
from tff_pipeline.privacy.mechanisms.metrics import NoisedMetrics
from tff_pipeline.privacy.mechanisms.noise import round_noise, server_secret
from tff_pipeline.privacy.mechanisms.run_numbers import RunNumbers
from tff_pipeline.privacy.mechanisms.server_noise import SampledGaussian
from tff_pipeline.privacy.round import Round


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gaussian(SampledGaussian):
    """The sampled Gaussian mechanism with a clip that is a constant of the run."""

    kind: ClassVar[str] = "gaussian"

    @classmethod
    def from_config(cls, config: Config, run: RunNumbers, *, noise_multiplier: float) -> Self:
        clip_norm = config.privacy.clip_norm
        if clip_norm is None:
            raise PrivacyError(f'{config.path}: privacy.clip_norm is missing; expected a number with "gaussian".')
        return cls(clip_norm=clip_norm, noise_multiplier=noise_multiplier, metrics=NoisedMetrics.from_config(config))

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        return cls(
            clip_norm=stored["clip_norm"],
            noise_multiplier=stored["noise_multiplier"],
            metrics=NoisedMetrics.from_json(stored),
        )

    def server_inputs(
        self, run: RunNumbers, secret: bytes, *, round: Round, shapes: Sequence[Sequence[int]]
    ) -> ServerInputs:
        return ServerInputs(
            noise=round_noise(
                server_secret(secret, round), round_number=round.number, stddev=self.noise_stddev(run), shapes=shapes
            )
        )
