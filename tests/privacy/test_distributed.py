"""The distributed discrete Gaussian mechanism: its bounds, the integers of a client and of a sum, and what is said of it.

Keys are fixed, so nothing here can flake.
"""

import math
from typing import Any

import numpy as np
import pytest
from builders.plans import discretization
from builders.plans import plan as a_plan

from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy import distributed, statement
from tff_pipeline.privacy.distributed import Discretization, finest_discretization
from tff_pipeline.privacy.mechanisms import DistributedDiscreteGaussian
from tff_pipeline.privacy.plan import PrivacyPlan

KEY = b"k" * 32
SETTINGS = (
    "privacy.mechanism=distributed_discrete_gaussian",
    "privacy.clip_norm=1.0",
    "privacy.noise_multiplier=3.0",
    "privacy.delta=1e-3",
    "training.clients_per_round=2",
)
KIND = "poisson_distributed_discrete_gaussian"


def plan(**changes: Any) -> PrivacyPlan:
    return a_plan(DistributedDiscreteGaussian, **{"silos": 3, "tolerated_silos": 1, **changes})


# -- the plan's integers


def test_everything_follows_from_one_number():
    less, more = plan(), plan(noise_multiplier=2.4)
    # Twice the noise over the sensitivity.
    assert more.noise_stddev / more.sensitivity == pytest.approx(2 * less.noise_stddev / less.sensitivity, rel=1e-3)
    assert more.round_event["sensitivity_squared"] == discretization(more).sensitivity_squared
    assert more.curve() < less.curve()
    assert "2.4 times the sensitivity" in " ".join(statement.sentences(more, seeded=False))
    # Two honest shares of three: the noise is sqrt(3 / 2) times what counts.
    assert less.noise_stddev == pytest.approx(1.2 * less.sensitivity * math.sqrt(3 / 2), rel=1e-6)
    assert less.round_event["honest_silos"] == 2


def test_everywhere_the_noise_is_at_least_as_planned_and_the_sum_fits():
    """300 settings drawn at random, from a head to a whole BERT; those that do not fit are refused."""
    random = np.random.default_rng(9)
    found = 0
    for _ in range(300):
        silos = int(random.integers(1, 12))
        given = {
            "clip_norm": float(10 ** random.uniform(-3, 2)),
            "noise_multiplier": float(10 ** random.uniform(-1, 1)),
            "dimension": int(10 ** random.uniform(0, 7.4)),
            "clients": 10**6,
            "expected_cohort": float(10 ** random.uniform(0, 4)),
            "silos": silos,
            "tolerated": int(random.integers(0, silos)),
            "bits": int(random.choice([16, 32])),
        }
        made = finest_discretization(**given)
        if made is None:
            assert given["bits"] == 16
            continue
        found += 1
        event = {key: getattr(made, key) for key in ("sensitivity_squared", "log2_scale", "honest_silos")}
        assert distributed.noise_multiplier(**event) >= given["noise_multiplier"]
        assert made.clip_in_steps * made.step == pytest.approx(given["clip_norm"])
        # Five deviations of the noise and a cohort that all point one way are far from the ring's edge.
        aligned = given["expected_cohort"] * made.clip_in_steps / math.sqrt(made.length)
        assert 5 * math.hypot(aligned, 2**made.log2_scale * math.sqrt(silos)) < 2 ** (made.bits - 1)
        assert 1 <= made.rounding_costs <= 1.25
        assert (
            distributed.log_error(log2_scale=made.log2_scale, honest_silos=made.honest_silos, length=made.length)
            < 1e-24
        )
    assert found > 200


def test_a_sum_that_does_not_fit_says_what_to_change():
    with pytest.raises(
        PrivacyError,
        match=r"secure_sum.bits is 16: the sum of about 100 updates of 20000000 .* Set secure_sum.bits = 32",
    ):
        _ = plan(bits=16, dimension=20_000_000).round_event


# -- a client's integers


@pytest.fixture(scope="module")
def coarse() -> Discretization:
    """16 bits and 1,000 coordinates: rounding matters."""
    return discretization(plan(bits=16, dimension=1000, clip_norm=0.5))


def sent(update: np.ndarray, made: Discretization, seed: tuple[int, int] = (3, 4)) -> np.ndarray:
    """Centred integers."""
    import tensorflow as tf

    from tff_pipeline.aggregators import distributed_discrete_gaussian as integer_aggregation

    found = integer_aggregation.encode([tf.constant(update)], tf.constant(seed, tf.int64), made).numpy()
    assert found.min() >= 0
    assert found.max() < made.modulus
    return (found + made.modulus // 2) % made.modulus - made.modulus // 2


@pytest.mark.parametrize("log2_length", [0, 1, 5, 7, 11])
def test_the_rotation_is_the_hadamard_matrix(log2_length):
    from scipy.linalg import hadamard

    from tff_pipeline.aggregators.distributed_discrete_gaussian import _hadamard

    given = np.random.default_rng(0).normal(size=2**log2_length)
    rotated = _hadamard(given, given.size).numpy()
    np.testing.assert_allclose(rotated, hadamard(given.size) @ given / math.sqrt(given.size), atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_client_sends_more_than_the_bound(coarse, dtype):
    """Whatever it has: nothing, one coordinate, all alike, a thousand times the clip, exactly the clip, no numbers at all."""
    random = np.random.default_rng(1)
    d = coarse.dimension
    one = np.eye(d)[0]
    cases = [np.zeros(d), one, 1e30 * one, np.ones(d), -1e3 * np.ones(d), random.normal(size=d), 0.5 * one]
    cases += [np.full(d, np.nan), np.full(d, np.inf), np.where(np.arange(d) == 7, np.nan, 1.0), np.full(d, 1e38)]
    cases += [0.5 * update / np.linalg.norm(update) for update in random.normal(size=(20, d))]
    norms = []
    for update in cases:
        norms.append(int((sent(update.astype(dtype), coarse) ** 2).sum()))
    assert max(norms) <= coarse.sensitivity_squared
    # The clip is reached: nearly the whole of the bound is used.
    assert min(norms[-20:]) > 0.9 * coarse.sensitivity_squared
    assert norms[0] == norms[7] == 0


def test_a_vector_that_rounds_too_long_is_rounded_towards_zero_and_one_too_long_anyway_is_not_sent(coarse):
    import tensorflow as tf

    from tff_pipeline.aggregators.distributed_discrete_gaussian import _fit

    bound = math.isqrt(coarse.sensitivity_squared)
    fitting, too_long = tf.constant([float(bound), 0.0], tf.float64), tf.constant([bound + 1.0, 0.0], tf.float64)
    assert _fit(fitting, too_long, coarse).numpy().tolist() == [bound, 0]
    assert _fit(too_long, fitting, coarse).numpy().tolist() == [bound, 0]
    assert _fit(too_long, too_long, coarse).numpy().tolist() == [0, 0]


def test_rounding_is_unbiased_and_independent_between_clients(coarse):
    """The mean of 400 roundings is the value: the error's norm falls with the root of how many there are."""
    import tensorflow as tf

    from tff_pipeline.aggregators import distributed_discrete_gaussian as integer_aggregation

    random = np.random.default_rng(2)
    update = random.normal(size=coarse.dimension)
    update *= 0.4 / np.linalg.norm(update)
    seed = tf.constant([3, 4], tf.int64)
    # Clients that differ in the last digits, so that their fingerprints do.
    totals = sum(sent(update * (1 + 1e-9 * client), coarse) for client in range(400))
    back = integer_aggregation.decode(tf.constant(totals % coarse.modulus), seed, coarse).numpy()
    error = np.linalg.norm(back / 400 - update) / (coarse.step * math.sqrt(coarse.length / 12 / 400))
    assert 0.8 < error < math.sqrt(3) * 1.2  # uniform fractions give 1 / 6 for 1 / 12 and the wrap none


def test_a_sum_beyond_the_ring_wraps_and_one_inside_does_not(coarse):
    import tensorflow as tf

    from tff_pipeline.aggregators import distributed_discrete_gaussian as integer_aggregation

    seed = tf.constant([3, 4], tf.int64)
    rotated = np.zeros(coarse.length)
    for value, read in ((5, 5), (-5, -5), (2**15 - 1, 2**15 - 1), (2**15, -(2**15))):
        rotated[0] = value
        back = integer_aggregation.decode(tf.constant(rotated.astype(np.int64)), seed, coarse)
        expected = coarse.step * integer_aggregation.rotated_back(tf.constant(rotated / value * read), seed, coarse)
        np.testing.assert_allclose(back, expected, rtol=1e-12, atol=1e-15)


# -- what is said


def test_the_statement_says_who_adds_the_noise_and_against_whom_it_holds():
    said = " ".join(statement.sentences(plan(), seeded=False))
    for words in (
        "Each of 3 silos adds its noise share to its sum before the sum is masked: discrete Gaussian noise",
        "counts on 2 of these noise shares",
        "never a sum of updates without noise",
        "the server together with any one of the silos",
        "trusts 2 of the 3 silos to add their noise shares",
        "modulo 2^32",
    ):
        assert words in said
    assert "server is trusted to add" not in said
    # Rounded up: 20 rounds of 16,384 coordinates, each within 2 e of the Gaussian, e = 2 exp(-8 pi**2).
    exact = 20 * 2**14 * 2 * 2 * math.exp(-8 * math.pi**2)
    assert f"a factor of 1 + 10^{math.ceil(math.log10(2 * exact))}, which" in said
    assert "no loss, no accuracy and no number of clients" in said
    assert "Training metrics: there are none" in said
    none = " ".join(statement.sentences(plan(tolerated_silos=0), seeded=False))
    assert "holds against the server. It does not hold against a silo" in none
    alone = " ".join(statement.sentences(plan(silos=1, tolerated_silos=0), seeded=False))
    assert "has the noise in it already" in alone
    two = " ".join(statement.sentences(plan(tolerated_silos=2), seeded=False))
    assert "any 2 of the silos" in two
