"""No privacy: updates are quantized and summed securely, and nothing is added."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from tff_pipeline.config import Config
from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy.mechanisms.base import Mechanism, ServerInputs, require_positive
from tff_pipeline.privacy.mechanisms.event import Event
from tff_pipeline.privacy.mechanisms.run_numbers import RunNumbers
from tff_pipeline.privacy.round import Round

# Without a clip an update still has to fit a range to be quantized; a coordinate beyond it is clamped.
_RANGE_WITHOUT_CLIP = 8.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoPrivacyEvent(Event):
    """A round that guarantees nothing, to clients and silos alike."""

    kind: ClassVar[str] = "none"

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        return cls(unit=stored.get("unit", "client"))

    def numbers(self) -> dict[str, Any]:
        return {}

    @property
    def gaussian_noise_multiplier(self) -> None:
        return None

    def __str__(self) -> str:
        return "without privacy"


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoPrivacy(Mechanism):
    """Says that nothing is guaranteed; it is never the result of leaving something out.

    Without a clip coordinates are clamped to a range.
    """

    kind: ClassVar[str] = "none"
    event_type: ClassVar[type[Event]] = NoPrivacyEvent
    private: ClassVar[bool] = False
    clip_norm: float | None = None
    noise_multiplier: float = dataclasses.field(default=0.0, init=False)

    def __post_init__(self) -> None:
        if self.clip_norm is not None:
            require_positive(self, clip_norm=self.clip_norm)

    @classmethod
    def from_config(cls, config: Config, run: RunNumbers, *, noise_multiplier: float) -> Self:
        return cls(clip_norm=config.privacy.clip_norm)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        return cls(clip_norm=stored["clip_norm"])

    def numbers(self) -> dict[str, Any]:
        return {"clip_norm": self.clip_norm}

    def event(self, run: RunNumbers) -> NoPrivacyEvent:
        return NoPrivacyEvent()

    def gaussian_event(self, noise_multiplier: float, *, sampling_probability: float, unit: str = "client") -> Event:
        raise PrivacyError('mechanism "none" has no noise; expected a mechanism with a noise multiplier.')

    def sensitivity(self, run: RunNumbers) -> float:
        return math.inf

    def noise_stddev(self, run: RunNumbers) -> float:
        return 0.0

    @property
    def _value_range(self) -> float:
        return self.clip_norm or _RANGE_WITHOUT_CLIP

    def server_inputs(
        self, run: RunNumbers, secret: bytes, *, round: Round, shapes: Sequence[Sequence[int]]
    ) -> ServerInputs:
        return ServerInputs(noise=[np.zeros(shape) for shape in shapes])

    def mechanism_sentences(self, run: RunNumbers) -> list[str]:
        return [
            'No guarantee: privacy.mechanism is "none".',
            "Epsilon is infinite; the model may reveal texts that it was trained on.",
        ]

    def accounting_sentences(self, run: RunNumbers) -> list[str]:
        return []

    def _summed(self, run: RunNumbers) -> str:
        return "the updates, of the weights that they are multiplied by, and of the training metrics"

    def _trust(self) -> list[str]:
        return []
