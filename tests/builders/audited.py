"""Plans of every mechanism that the audit's tests attack, and the attack."""

import dataclasses
from typing import Any

from builders.plans import changed
from builders.plans import plan as a_plan
from tff_pipeline import audit
from tff_pipeline.privacy.mechanisms import AdaptiveGaussian, DistributedDiscreteGaussian, Tree

SECRET = b"s" * 32
OBSERVATIONS = 50_000  # a hundred rounds; the default is four times that

# Noise of a bit more than the clip; epsilon is of no account here.
GAUSSIAN = a_plan(noise_multiplier=1.2, sampling_probability=0.5, expected_cohort=500.0, rounds=30, delta=1e-4)
RARE = dataclasses.replace(GAUSSIAN, sampling_probability=0.02, expected_cohort=20.0)
ADAPTIVE = changed(GAUSSIAN, AdaptiveGaussian, quantile=0.5, count_stddev=25.0)
TREE = a_plan(
    Tree,
    noise_multiplier=1.5,
    sampling_probability=0.1,
    expected_cohort=20.0,
    clients=200,
    rounds=40,
    rounds_per_tree=10,
    delta=1e-4,
)
SHARED = changed(GAUSSIAN, DistributedDiscreteGaussian, silos=3, tolerated_silos=1)
SHARED_16 = changed(SHARED, bits=16)
SILOS = dataclasses.replace(GAUSSIAN, unit="silo", clients=12, silos=12, expected_cohort=6.0)
SHARED_SILOS = dataclasses.replace(
    SHARED, unit="silo", clients=6, silos=6, expected_cohort=3.0, sampling_probability=0.5
)
PLANS = {
    "gaussian": GAUSSIAN,
    "rare": RARE,
    "adaptive": ADAPTIVE,
    "tree": TREE,
    "distributed": SHARED,
    "distributed 16 bits": SHARED_16,
    "silos": SILOS,
    "distributed silos": SHARED_SILOS,
}


def attacked(name: str, **options: Any) -> audit.Finding:
    return audit.audit(PLANS[name], **{"observations": OBSERVATIONS, "secret": SECRET, **options})
