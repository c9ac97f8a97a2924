"""Plans as earlier versions wrote them: a run.json that was written once is read for ever."""

import pytest
from builders.plans import discretization

from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy.mechanisms import (
    AdaptiveGaussian,
    DistributedDiscreteGaussian,
    Gaussian,
    NoisedMetrics,
    NoPrivacy,
    Tree,
)
from tff_pipeline.privacy.plan import PrivacyPlan

# As the first version wrote it.
OLDEST = {
    "mechanism": "gaussian", "unit": "client", "clients": 9900, "expected_cohort": 990.0, "sampling_probability": 0.1,
    "rounds": 20, "clip_norm": 0.5, "value_range": 0.5, "noise_multiplier": 1.25, "delta": 1e-5, "dimension": 18865,
    "max_examples_per_client": 32, "local_epochs": 1, "denominator": 990.0,
    "round_event": {"kind": "poisson_gaussian", "noise_multiplier": 1.25, "sampling_probability": 0.1},
}  # fmt: skip
LATER = {
    "silos": 6, "tolerated_silos": 0, "ring_bits": 32, "rounds_per_tree": 0, "clip_quantile": 0.0,
    "clip_count_stddev": 0.0, "metrics_stddev": 0.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "mechanism"),
    [
        ({}, Gaussian(clip_norm=0.5, noise_multiplier=1.25)),
        (LATER, Gaussian(clip_norm=0.5, noise_multiplier=1.25)),
        (
            {**LATER, "metrics_stddev": 49.5},
            Gaussian(clip_norm=0.5, noise_multiplier=1.25, metrics=NoisedMetrics(stddev=49.5)),
        ),
        (
            {**LATER, "clip_quantile": 0.5, "clip_count_stddev": 49.5, "value_range": 1.0},
            AdaptiveGaussian(clip_norm=0.5, noise_multiplier=1.25, quantile=0.5, count_stddev=49.5),
        ),
        (
            {**LATER, "mechanism": "tree", "rounds_per_tree": 10},
            Tree(clip_norm=0.5, noise_multiplier=1.25, rounds_per_tree=10),
        ),
        (
            {"mechanism": "distributed_discrete_gaussian", "silos": 6, "tolerated_silos": 1, "ring_bits": 32},
            DistributedDiscreteGaussian(clip_norm=0.5, noise_multiplier=1.25, tolerated_silos=1),
        ),
        ({"mechanism": "none", "noise_multiplier": 0.0, "clip_norm": None, "delta": None}, NoPrivacy()),
    ],
    ids=["oldest", "gaussian", "metrics", "adaptive", "tree", "distributed", "none"],
)
def test_a_stored_plan_becomes_its_mechanism(changes, mechanism):
    made = PrivacyPlan.from_json({**OLDEST, **changes})
    assert made.mechanism == mechanism
    assert made.silos == changes.get("silos", 1)
    assert (made.clients, made.rounds, made.dimension) == (9900, 20, 18865)


def test_what_is_not_known_is_refused():
    with pytest.raises(PrivacyError, match=r"the mechanism 'laplace' is not known; expected gaussian, distributed"):
        PrivacyPlan.from_json({**OLDEST, "mechanism": "laplace"})


def test_the_numbers_of_integers_keep_their_keys():
    """run.json's "integers": other names in the code, the same ones on disk."""
    made = PrivacyPlan.from_json({**OLDEST, "mechanism": "distributed_discrete_gaussian", "silos": 6})
    numbers = discretization(made)
    assert made.as_json()["integers"] == {
        "bits": 32, "dimension": 18865, "length": 32768, "quantum": numbers.step, "clip": numbers.clip_in_steps,
        "sensitivity_squared": numbers.sensitivity_squared, "log2_share": numbers.log2_scale, "silos": 6, "honest": 6,
    }  # fmt: skip
