"""A plan to change one number of, and the exact epsilon of a Gaussian to hold against ours."""

import dataclasses
import math

from scipy import optimize, stats

from tff_pipeline.privacy.plan import PrivacyPlan


def plan(**changes) -> PrivacyPlan:
    made = PrivacyPlan(
        mechanism="gaussian",
        unit="client",
        clients=1000,
        expected_cohort=100.0,
        sampling_probability=0.1,
        rounds=20,
        clip_norm=1.0,
        value_range=1.0,
        noise_multiplier=1.2,
        delta=1e-5,
        dimension=10_000,
        max_examples_per_client=30,
        local_epochs=1,
    )
    return dataclasses.replace(made, **changes)


def gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """Balle and Wang 2018 (arXiv:1805.06530), theorem 8: the exact epsilon of one Gaussian mechanism of sensitivity 1."""

    def excess(epsilon: float) -> float:
        half, ratio = 1 / (2 * noise_multiplier), epsilon * noise_multiplier
        return stats.norm.cdf(half - ratio) - math.exp(epsilon) * stats.norm.cdf(-half - ratio) - delta

    return optimize.brentq(excess, 0, 100)
