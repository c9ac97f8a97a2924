"""Mechanisms as values: `Gaussian | AdaptiveGaussian | Tree | DistributedDiscreteGaussian | NoPrivacy`.

A configuration, a run.json and a ledger name them by strings; here, and nowhere else, a string becomes a type.
"""

from collections.abc import Mapping
from typing import Any

from tff_pipeline.config import PrivacySection
from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy.mechanisms.adaptive_gaussian import AdaptiveGaussian
from tff_pipeline.privacy.mechanisms.base import Mechanism, ServerInputs
from tff_pipeline.privacy.mechanisms.distributed_discrete_gaussian import DistributedDiscreteGaussian
from tff_pipeline.privacy.mechanisms.event import Event
from tff_pipeline.privacy.mechanisms.gaussian import Gaussian
from tff_pipeline.privacy.mechanisms.metrics import NoisedMetrics
from tff_pipeline.privacy.mechanisms.none import NoPrivacy
from tff_pipeline.privacy.mechanisms.quantization import Quantization
from tff_pipeline.privacy.mechanisms.run_numbers import RunNumbers
from tff_pipeline.privacy.mechanisms.tree import Tree

MECHANISMS: tuple[type[Mechanism], ...] = (Gaussian, AdaptiveGaussian, DistributedDiscreteGaussian, Tree, NoPrivacy)
EVENTS: dict[str, type[Event]] = {mechanism.event_type.kind: mechanism.event_type for mechanism in MECHANISMS}


def type_of(privacy: PrivacySection) -> type[Mechanism]:
    """The type of mechanism that a configuration names."""
    return _type_of(privacy.mechanism, adaptive=privacy.clipping == "adaptive")


def from_json(stored: Mapping[str, Any]) -> Mechanism:
    """The mechanism that a run.json's "plan" describes; of older versions too.

    Raises:
      PrivacyError: for a mechanism that this version does not know.
    """
    return _type_of(stored["mechanism"], adaptive=bool(stored.get("clip_count_stddev"))).from_json(stored)


def _type_of(name: str, *, adaptive: bool) -> type[Mechanism]:
    if adaptive and name == Gaussian.kind:
        return AdaptiveGaussian
    for mechanism in MECHANISMS:
        if mechanism.kind == name:
            return mechanism
    raise PrivacyError(
        f"the mechanism {name!r} is not known; expected {', '.join(dict.fromkeys(m.kind for m in MECHANISMS))}. Was it written by a newer version?"
    )


__all__ = [
    "EVENTS",
    "MECHANISMS",
    "AdaptiveGaussian",
    "DistributedDiscreteGaussian",
    "Event",
    "Gaussian",
    "Mechanism",
    "NoPrivacy",
    "NoisedMetrics",
    "Quantization",
    "RunNumbers",
    "ServerInputs",
    "Tree",
    "from_json",
    "type_of",
]
