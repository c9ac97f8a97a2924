"""A plan to change some numbers of, and the exact epsilon of a Gaussian to hold against ours."""

import dataclasses
import math
from typing import Any

from scipy import optimize, stats

from tff_pipeline.privacy.distributed import Discretization
from tff_pipeline.privacy.mechanisms import DistributedDiscreteGaussian, Gaussian, Mechanism
from tff_pipeline.privacy.plan import PrivacyPlan

_PLAN = PrivacyPlan(
    mechanism=Gaussian(clip_norm=1.0, noise_multiplier=1.2),
    unit="client",
    clients=1000,
    expected_cohort=100.0,
    sampling_probability=0.1,
    rounds=20,
    delta=1e-5,
    dimension=10_000,
    max_examples_per_client=30,
    local_epochs=1,
)


def plan(mechanism: type[Mechanism] = Gaussian, **numbers: Any) -> PrivacyPlan:
    """A plan with a mechanism of this type; `numbers` are the run's or the mechanism's own."""
    return changed(_PLAN, mechanism, **numbers)


def changed(made: PrivacyPlan, mechanism: type[Mechanism] | None = None, **numbers: Any) -> PrivacyPlan:
    """A plan with other numbers, the run's or the mechanism's own; or another mechanism with as many of them as it has."""
    kind = mechanism or type(made.mechanism)
    own = {field.name for field in dataclasses.fields(kind) if field.init}
    kept = {name: getattr(made.mechanism, name) for name in own if hasattr(made.mechanism, name)}
    given = {name: numbers.pop(name) for name in own & numbers.keys()}
    return dataclasses.replace(made, mechanism=kind(**{**kept, **given}), **numbers)


def discretization(made: PrivacyPlan) -> Discretization:
    """Of a plan whose noise the silos add."""
    assert isinstance(made.mechanism, DistributedDiscreteGaussian)
    return made.mechanism.discretization(made)


def gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """Balle and Wang 2018 (arXiv:1805.06530), theorem 8: the exact epsilon of one Gaussian mechanism of sensitivity 1."""

    def excess(epsilon: float) -> float:
        half, ratio = 1 / (2 * noise_multiplier), epsilon * noise_multiplier
        return stats.norm.cdf(half - ratio) - math.exp(epsilon) * stats.norm.cdf(-half - ratio) - delta

    return optimize.brentq(excess, 0, 100)
