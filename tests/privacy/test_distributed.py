"""The distributed discrete Gaussian mechanism: its sampler, its bounds, its integers, and a round of it in every runtime.

Keys are fixed, so nothing here can flake.
"""

import csv
import io
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders.cases import COHORT, Case, head_case, started
from builders.cases import DISTRIBUTED as PLAN
from builders.cases import plan as a_runtime_plan
from builders.plans import changed, discretization
from builders.plans import plan as a_plan
from builders.tiny import ROWS, prepared, quiet, trained_weights
from scipy import optimize, special, stats

from tff_pipeline.artifacts import Workdir, read_json
from tff_pipeline.cli import main
from tff_pipeline.config import load
from tff_pipeline.errors import InsecureProcessError, PrivacyError
from tff_pipeline.privacy import accounting, distributed, statement
from tff_pipeline.privacy import discrete_gaussian as discrete
from tff_pipeline.privacy import plan as planning
from tff_pipeline.privacy.discrete_gaussian import discrete_gaussian
from tff_pipeline.privacy.distributed import Discretization, finest_discretization
from tff_pipeline.privacy.mechanisms import DistributedDiscreteGaussian
from tff_pipeline.privacy.plan import PrivacyPlan
from tff_pipeline.progress import Progress
from tff_pipeline.runtime.scripted import ScriptedRuntime
from tff_pipeline.runtime.silo import Silo
from tff_pipeline.training.run import train
from tff_pipeline.training.store import StateStore

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


# -- the sampler


def masses(variance: float, reach: int) -> np.ndarray:
    """Probabilities of -reach ... reach."""
    found = np.exp(-(np.arange(-reach, reach + 1.0) ** 2) / (2 * variance))
    return found / found.sum()


@pytest.mark.parametrize("log2_scale", [0, 1, 3])
def test_the_sampler_has_the_discrete_gaussians_probabilities(log2_scale):
    """Chi-square over every integer that is expected at least ten times among 300,000, the rest together."""
    drawn = discrete_gaussian(KEY, log2_scale, 300_000)
    reach = 12 * 2**log2_scale
    expected = masses(4.0**log2_scale, reach) * drawn.size
    seen = np.bincount(drawn + reach, minlength=2 * reach + 1)
    often = expected >= 10

    counts, hoped = np.append(seen[often], seen[~often].sum()), np.append(expected[often], expected[~often].sum())
    assert stats.chisquare(counts, hoped).pvalue > 1e-3
    assert drawn.dtype == np.int64


@pytest.mark.parametrize("log2_scale", [12, 20, 24])
def test_at_a_large_scale_it_is_normal(log2_scale):
    drawn = discrete_gaussian(KEY, log2_scale, 200_000) / 2.0**log2_scale
    assert stats.kstest(drawn, "norm").pvalue > 1e-3
    assert abs(drawn.var() - 1) < 4 * math.sqrt(2 / drawn.size)
    # The low bits are as uniform as they should be.
    low = discrete_gaussian(KEY, log2_scale, 200_000) & 255
    assert stats.chisquare(np.bincount(low, minlength=256)).pvalue > 1e-3


@pytest.mark.parametrize(("numerator", "log2_denominator"), [(0, 4), (1, 1), (5, 4), (2**20 - 1, 20), (1, 0)])
def test_a_coin_falls_with_exp_of_the_fraction(numerator, log2_denominator):
    thrown = discrete._coin(discrete._Bits(KEY), np.full(200_000, numerator, np.uint64), log2_denominator)
    chance = math.exp(-numerator / 2**log2_denominator)
    assert abs(thrown.mean() - chance) <= 4 * math.sqrt(chance * (1 - chance) / thrown.size)


def test_one_key_gives_one_draw_whatever_the_machine(monkeypatch):
    """Blocks have keys of their own, so the number of cores changes nothing, and no block repeats another."""
    size = 2 * discrete._BLOCK + 5
    drawn = discrete_gaussian(KEY, 10, size)
    monkeypatch.setattr(discrete.os, "cpu_count", lambda: 1)
    np.testing.assert_array_equal(discrete_gaussian(KEY, 10, size), drawn)
    assert (drawn[: discrete._BLOCK] == drawn[discrete._BLOCK : 2 * discrete._BLOCK]).mean() < 0.01
    assert (discrete_gaussian(b"l" * 32, 10, 1000) == drawn[:1000]).mean() < 0.01


# -- what the noise is worth


@pytest.mark.parametrize("variance", [0.15, 0.3])
def test_rounding_a_gaussian_gives_the_discrete_one_within_the_bound(variance):
    """The lemma's second use, by numerical integration, at variances small enough to see a difference."""
    before = 0.1
    grid = np.linspace(-6, 6, 200_001)
    weights = stats.norm.pdf(grid, 0, math.sqrt(before)) * (grid[1] - grid[0])
    centred = sum(np.exp(-((k - grid) ** 2) / (2 * variance)) for k in range(-20, 21))
    seen = np.array([(weights * np.exp(-((x - grid) ** 2) / (2 * variance)) / centred).sum() for x in range(-4, 5)])

    off = np.abs(np.log(seen / masses(before + variance, 4))).max()
    bound = distributed._log_ratio(variance)
    assert bound / 50 < off <= bound


def summed(log2_share: int, honest: int) -> np.ndarray:
    """Probabilities of the sum of shares, around its middle, by convolution."""
    one = masses(4.0**log2_share, 14 * 2**log2_share)
    found = one
    for _ in range(honest - 1):
        found = np.convolve(found, one)
    return found


@pytest.mark.parametrize("honest", [2, 3, 6])
def test_a_sum_of_shares_is_a_discrete_gaussian_within_the_bound(honest):
    """At a variance of 1/4, where the difference can be seen; privacy.distributed uses 256 and more."""
    one = masses(0.25, 40)
    found = one
    for _ in range(honest - 1):
        found = np.convolve(found, one)
    reach = len(found) // 2
    middle = slice(reach - 8, reach + 9)
    off = np.abs(np.log(found[middle] / masses(honest * 0.25, reach)[middle])).max()
    bound = sum(distributed._log_ratio(0.25 * k / (k + 1)) for k in range(1, honest))
    assert bound / 50 < off <= bound
    # And below the tau of Kairouz, Liu and Steinke 2021.
    assert bound <= 10 * sum(math.exp(-2 * math.pi**2 * 0.25 * k / (k + 1)) for k in range(1, honest)) * 1.2


def true_epsilon(event: dict[str, Any], rounds: int, delta: float) -> float:
    """Epsilon of one or two rounds in one dimension, by adding up the probabilities of every outcome."""
    q, shift = event["sampling_probability"], math.isqrt(event["sensitivity_squared"])
    noise = summed(event["log2_share"], event["honest_silos"])
    without = np.concatenate([noise, np.zeros(shift)])
    with_client = (1 - q) * without + q * np.concatenate([np.zeros(shift), noise])
    if rounds == 2:
        without, with_client = np.outer(without, without).ravel(), np.outer(with_client, with_client).ravel()

    def exact_in_one_direction(upper: np.ndarray, lower: np.ndarray) -> float:
        def excess(epsilon: float) -> float:
            return float(np.maximum(upper - math.exp(epsilon) * lower, 0).sum()) - delta

        return optimize.brentq(excess, 0, 20, xtol=1e-9) if excess(0) > 0 else 0.0

    return max(exact_in_one_direction(with_client, without), exact_in_one_direction(without, with_client))


@pytest.mark.parametrize(
    ("q", "shift", "honest", "rounds"),
    [(0.1, 20, 2, 1), (0.5, 12, 1, 1), (0.02, 30, 3, 1), (1.0, 16, 2, 1), (0.2, 20, 2, 2)],
)
def test_epsilon_bounds_the_truth_closely(q, shift, honest, rounds):
    """The true divergence of subsampled shares is under the epsilon that is charged, and not far under."""
    event = {
        "kind": KIND,
        "sampling_probability": q,
        "sensitivity_squared": shift**2,
        "log2_share": 4,
        "honest_silos": honest,
        "length": 1,
    }
    for delta in (1e-2, 1e-4, 1e-6):
        true = true_epsilon(event, rounds, delta)
        assert true <= accounting.epsilon([(event, rounds)], delta, step=1e-3) <= 1.03 * true + 2e-3


def published_route(q: float, z: float, rounds: int, delta: float) -> float:
    """Epsilon by Renyi divergences: alpha / (2 z**2) (Canonne, Kamath and Steinke 2020, proposition 5), Poisson sampling of
    a general mechanism (Zhu and Wang 2019, theorem 5), and the usual conversion."""
    best = math.inf
    for alpha in range(2, 80):
        terms = [
            (alpha - 1) * math.log1p(-q) + math.log(alpha * q - q + 1),
            math.log(special.comb(alpha, 2)) + 2 * math.log(q) + (alpha - 2) * math.log1p(-q) + 1 / z**2,
            *(
                math.log(3 * special.comb(alpha, order))
                + (alpha - order) * math.log1p(-q)
                + order * math.log(q)
                + (order - 1) * order / (2 * z**2)
                for order in range(3, alpha + 1)
            ),
        ]
        renyi = rounds * special.logsumexp(terms) / (alpha - 1)
        best = min(best, renyi + math.log1p(-1 / alpha) - math.log(delta * alpha) / (alpha - 1))
    return best


@pytest.mark.parametrize(("q", "z", "rounds"), [(0.1, 1.2, 60), (0.5, 3.0, 30), (0.01, 1.0, 200)])
def test_epsilon_is_the_gaussians_and_under_the_published_renyi_bound(q, z, rounds):
    made = plan(sampling_probability=q, noise_multiplier=z).round_event
    gaussian = {"kind": "poisson_gaussian", "sampling_probability": q, "noise_multiplier": z}
    ours, theirs = (accounting.epsilon([(event, rounds)], 1e-5, step=1e-3) for event in (made, gaussian))

    assert ours == pytest.approx(theirs, rel=1e-4)
    assert ours < published_route(q, z, rounds, 1e-5)


def test_it_composes_with_what_other_runs_were_charged():
    """Five rounds of each kind cost about what ten of one kind do; not what two epsilons add up to."""
    one, other = plan().round_event, a_plan().round_event
    both = accounting.epsilon([(one, 5), (other, 5)], 1e-5, step=1e-3)
    ten = accounting.epsilon([(other, 10)], 1e-5, step=1e-3)
    assert both == pytest.approx(ten, rel=1e-3)
    assert both < 0.8 * 2 * accounting.epsilon([(other, 5)], 1e-5, step=1e-3)


def test_the_error_is_counted(monkeypatch):
    """Were the probabilities off by a factor of e^0.01 a round, epsilon would say so."""
    event = plan().round_event
    before = accounting.epsilon([(event, 10)], 1e-5, step=1e-3)
    monkeypatch.setattr(distributed, "log_error", lambda **_: 0.01)
    assert accounting.epsilon([(event, 10)], 1e-5, step=1e-3) >= before + 2 * 10 * 0.01


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


# -- a round, in every runtime

SEED = np.array([11, 12], np.int64)
INTEGERS = discretization(PLAN)


@pytest.fixture(scope="module")
def case() -> Case:
    return head_case(PLAN)


@pytest.fixture(scope="module")
def local(case: Case) -> Iterator[Any]:
    from tff_pipeline.runtime.local import LocalRuntime

    with ScriptedRuntime(LocalRuntime, case.compiled, case.silos, session="test") as runtime:
        yield runtime


@pytest.fixture(scope="module")
def reference(case: Case) -> Iterator[Any]:
    from tff_pipeline.runtime.reference import ReferenceRuntime

    with ScriptedRuntime(ReferenceRuntime, case.compiled, case.silos) as runtime:
        yield runtime


def share(silo: str) -> np.ndarray:
    return discrete_gaussian(silo.encode().ljust(32), INTEGERS.log2_scale, INTEGERS.length)


def silence(silo: str) -> np.ndarray:
    return np.zeros_like(share(silo))


def begun(case: Case, runtime: Any) -> list[np.ndarray]:

    return started(case, runtime).with_rotation(SEED)


def modular(sums: list[np.ndarray]) -> np.ndarray:
    """The one sum that is taken modulo 2**32, centred."""
    found = sums[-1]
    assert found.dtype == np.uint32
    return found.view(np.int32).astype(np.int64)


def test_the_update_is_the_only_modular_sum_and_the_oracles_integers_are_the_same(case, local, reference):
    """Rounding hangs on every bit of an update: where the executors' arithmetic differs in the last one, a client's
    integers may differ by one. Here they do not differ."""
    state = begun(case, local)
    ours, theirs = local.secure_sums(state, COHORT), reference.secure_sums(state, COHORT)

    assert len(ours) == len(theirs) == 1
    assert np.abs(modular(ours) - modular(theirs)).max() <= 4
    assert np.abs(modular(ours)).max() > 1000


def test_a_report_is_the_noised_sum_alone_whatever_the_cohort(case, monkeypatch):
    """What the server receives of nobody, of two clients of each silo, and of one client that is nobody else's."""
    from tff_pipeline.runtime.local import LocalRuntime
    from tff_pipeline.secagg.masking import Party

    sent, mask = [], Party.mask

    def watched(party: Party, *arguments: Any) -> list[np.ndarray]:
        sent.append(mask(party, *arguments))
        return sent[-1]

    monkeypatch.setattr(Party, "mask", watched)
    metrics = []
    with ScriptedRuntime(LocalRuntime, case.compiled, case.silos) as runtime:
        for number, cohort in enumerate(({}, COHORT, {"bank": [3]})):
            result = runtime.run_round(begun(case, runtime), cohort, round_number=number, shares=share)
            metrics.append((result.metrics, result.bytes_up, result.bytes_down))
    assert len(sent) == 3 * len(case.silos)
    assert {tuple((part.shape, part.dtype) for part in report) for report in sent} == {
        (((INTEGERS.length,), np.dtype(np.uint32)),)
    }
    # Nor does anything that the runtime gives back tell one cohort from another but the noised sum.
    assert metrics[0] == metrics[1] == metrics[2]
    assert list(metrics[0][0]) == ["update_non_finite"]


def test_an_update_that_is_not_finite_counts_as_zero_and_nobody_is_told(case):
    """As on a client whose training diverged: its integers are zeros, and the round ends as one without it."""
    from tff_pipeline.runtime.clients import FeatureClients
    from tff_pipeline.runtime.local import LocalRuntime

    broken = FeatureClients(
        "bank", np.full((2, 16), np.nan, np.float32), np.zeros(2, np.int32), np.array([0, 2]), batch_size=8, epochs=1
    )
    with ScriptedRuntime(LocalRuntime, case.compiled, [broken, case.silos[1]]) as runtime:
        state, ends = begun(case, runtime), []
        (total,) = runtime.secure_sums(state, {"bank": [0]})
        for number, cohort in enumerate(({"bank": [0], "shop": [1]}, {"shop": [1]})):
            ends.append(runtime.run_round(state, cohort, round_number=number, shares=share))
    assert not total.any()
    assert ends[0].metrics == ends[1].metrics
    for one, other in zip(*(end.state.arrays for end in ends), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("planted", ["metrics", "another modular sum", "a sum without noise"])
def test_a_sum_beside_the_noised_one_is_refused(planted):
    """Each would tell the server how many clients took part; all are secure sums, so nothing else would refuse them."""
    import tensorflow_federated as tff

    from tff_pipeline.aggregators.factory import aggregator_for
    from tff_pipeline.learning import process as learning
    from tff_pipeline.model.learner import FeatureLearner

    federated: Any = tff

    def counted(_: Any) -> Any:
        def count(values: Any) -> Any:
            one = federated.federated_map(federated.tensorflow.computation(lambda _: 1), values)
            if planted == "another modular sum":
                return federated.backends.mapreduce.federated_secure_modular_sum(one, 2**16)
            return federated.federated_secure_sum_bitwidth(one, 16)

        return lambda metrics: count(metrics["instances"])

    shapes = [(16, 3), (3,)]
    process = tff.learning.algorithms.build_unweighted_fed_avg(
        lambda: FeatureLearner(hidden_size=16, labels=3),
        client_optimizer_fn=tff.learning.optimizers.build_sgdm(0.1),
        server_optimizer_fn=tff.learning.optimizers.build_sgdm(1.0),
        model_aggregator=aggregator_for(PLAN, shapes),
        metrics_aggregator=tff.learning.metrics.secure_sum_then_finalize if planted == "metrics" else counted,
    )
    seen = (0, 2) if planted == "another modular sum" else (r"\d+" if planted == "metrics" else 1, 1)
    with pytest.raises(
        InsecureProcessError,
        match=rf"sends {seen[0]} sums without noise and {seen[1]} sums modulo .* expected one sum.* Nothing was run",
    ):
        learning.compile_process(process, shapes)


def test_three_rounds_with_the_same_shares_end_in_the_oracles_weights(case, local, reference):

    ends = []
    for runtime in (local, reference):
        state = begun(case, runtime)
        for number in range(3):
            state = state.with_rotation(SEED + number)
            state = runtime.run_round(state, COHORT, round_number=number, shares=share).state
        ends.append(state.weights)
    for one, other, before in zip(*ends, case.weights, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)
        assert not np.array_equal(one, before)


def test_without_noise_the_update_is_the_gaussian_mechanisms(case, local):
    """Clip, rotation, rounding, sum and back: the mean of the clipped updates, but for the rounding."""
    from tff_pipeline.runtime.local import LocalRuntime

    ours = local.run_round(begun(case, local), COHORT, round_number=50, shares=silence)
    plain = head_case()
    with ScriptedRuntime(LocalRuntime, plain.compiled, plain.silos) as runtime:
        quiet = [np.zeros(shape) for shape in plain.compiled.shapes]
        theirs = runtime.run_round(started(plain, runtime).with_noise(quiet), COHORT, round_number=0)
    for one, other in zip(ours.state.weights, theirs.state.weights, strict=True):
        np.testing.assert_allclose(one, other, atol=20 * INTEGERS.step + a_runtime_plan().rounding_step)


def test_a_silo_with_nobody_sampled_adds_its_share_too(case, local):
    """Nobody takes part in the round: what the server reads is the two shares."""
    import tensorflow as tf

    from tff_pipeline.aggregators.distributed_discrete_gaussian import decode

    result = local.run_round(begun(case, local), {}, round_number=60, shares=share)
    noise = (share("bank") + share("shop")) % INTEGERS.modulus
    shown = decode(tf.constant(noise), tf.constant(SEED), INTEGERS).numpy() / PLAN.denominator
    moved = [(before - after).ravel() for before, after in zip(case.weights, result.state.weights, strict=True)]
    np.testing.assert_allclose(np.concatenate(moved), shown, atol=1e-6)


def test_noise_that_was_forgotten_releases_nothing(case, local, reference):
    with pytest.raises(PrivacyError, match=r"silo bank: round 70 came with noise for 0 of its 1 sums"):
        local.run_round(begun(case, local), COHORT, round_number=70)
    result = reference.run_round(begun(case, reference), COHORT, round_number=70)
    assert result.metrics["update_non_finite"] == 1
    for after, before in zip(result.state.weights, case.weights, strict=True):
        np.testing.assert_array_equal(after, before)
    # And after a round the state has forgotten it again.
    after = local.run_round(begun(case, local), COHORT, round_number=71, shares=share).state
    assert after.layout.noise_shares is not None
    assert (after.arrays[after.layout.noise_shares] == np.iinfo(np.int64).min).all()


def test_any_client_moves_the_integers_by_at_most_the_plans_bound(case, local):
    """Before the noise, exactly: for every client, its integers are what the sum moves by."""
    state, moved = begun(case, local), []
    base = modular(local.secure_sums(state, COHORT))
    for silo, other in (("bank", 1), ("bank", 3), ("shop", 0), ("shop", 2)):
        more = modular(local.secure_sums(state, {**COHORT, silo: sorted([*COHORT[silo], other])}))
        moved.append(int(((more - base) ** 2).sum()))
    assert max(moved) <= INTEGERS.sensitivity_squared
    assert max(moved) > 0.01 * INTEGERS.sensitivity_squared


def test_with_16_bits_a_silo_sends_half_and_the_round_is_the_same(case, local):
    """Two bytes for each of 64 coordinates in place of four; the update is that of 32 bits, but for coarser rounding."""
    from tff_pipeline.runtime.local import LocalRuntime

    made = changed(PLAN, bits=16)
    small = head_case(made)
    with ScriptedRuntime(LocalRuntime, small.compiled, small.silos) as runtime:
        ours = runtime.run_round(begun(small, runtime), COHORT, round_number=0, shares=silence)
    theirs = local.run_round(begun(case, local), COHORT, round_number=80, shares=silence)

    assert (theirs.bytes_up or 0) - (ours.bytes_up or 0) == 64 * 2
    for one, other in zip(ours.state.weights, theirs.state.weights, strict=True):
        np.testing.assert_allclose(one, other, atol=4 * discretization(made).step)


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


# -- training


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two silos, prepared."""
    folder = tmp_path_factory.mktemp("tiny")
    prepared(folder, ROWS, changes=SETTINGS)
    return folder


def trained(folder: Path, *changes: str) -> tuple[Path, list[np.ndarray]]:
    run = train(load(folder / "config.toml", [*SETTINGS, *changes]), progress=quiet())
    return run, trained_weights(run)


@pytest.fixture(scope="module")
def uninterrupted(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray]]:
    folder = tmp_path_factory.mktemp("uninterrupted") / "tiny"
    shutil.copytree(tiny, folder)
    return trained(folder)


# Of a round, what would tell how many clients took part in it, or how long their work took.
TELLING = {"loss", "accuracy", "clients", "finite_clients", "examples", "instances", "client_accuracy", "seconds"}


@pytest.mark.parametrize("interactive", [False, True], ids=["log", "terminal"])
def test_a_run_tells_nobody_its_cohorts(tiny, tmp_path, interactive):
    """No event, and no file of the run: not rounds.csv, not a state, not TensorBoard's, nor where operations ran."""
    import tensorflow as tf
    from tensorflow.core.util import event_pb2

    folder, log = tmp_path / "tiny", io.StringIO()
    shutil.copytree(tiny, folder)
    run = train(load(folder / "config.toml", SETTINGS), progress=Progress(log, interactive=interactive))

    assert " ".join(log.getvalue().split()).count("nothing leaves a silo but its noised sum") == 1
    if not interactive:
        events = [json.loads(line) for line in log.getvalue().splitlines()]
        by_round = [event for event in events if "round" in event]
        assert [event["round"] for event in by_round] == [1, 2]
        assert not [event for event in by_round if TELLING & set(event)]
        (said,) = [event["message"] for event in events if event["event"] == "metrics"]
        assert "`tff-pipeline evaluate` measures the model on held-out clients" in said
    rounds = list(csv.DictReader((run / "rounds.csv").open()))
    assert [each["round"] for each in rounds] == ["1", "2"]
    assert not [name for each in rounds for name in TELLING if each.get(name)]
    for state in (run / "states").iterdir():
        history = read_json(state / "manifest.json")["history"]
        assert not [name for entry in history for name in TELLING if entry.get(name) is not None]
    tags = {
        value.tag
        for file in (run / "tensorboard").iterdir()
        for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator()
        for value in event_pb2.Event.FromString(record).summary.value
    }
    assert tags == {"epsilon", "bytes_down", "bytes_up"}
    assert not (run / "placement.json").exists()


def charges(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Workdir(folder / "workdir").ledger("tiny").read_text().splitlines()]


def test_a_run_that_was_killed_draws_the_same_shares_and_is_charged_once(tiny, uninterrupted, tmp_path, monkeypatch):
    """Killed when the second round has been computed, and before what it gives is saved."""
    folder = tmp_path / "tiny"
    shutil.copytree(tiny, folder)
    save = StateStore.save

    def fails(store: StateStore, round_number: int, *rest: Any) -> None:
        if round_number == 2:
            raise KeyboardInterrupt
        save(store, round_number, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(StateStore, "save", fails)
        with pytest.raises(KeyboardInterrupt):
            trained(folder)
    run, weights = trained(folder)

    for one, other in zip(weights, uninterrupted[1], strict=True):
        np.testing.assert_array_equal(one, other)
    assert [entry["round"] for entry in charges(folder)] == [1, 2]
    assert {entry["event"]["kind"] for entry in charges(folder)} == {KIND}
    # When the run is finished its secrets are gone, and with them its shares.
    assert not (run / "keys").exists()
    assert not list((folder / "workdir").glob("silos/*/keys/sampling-*"))


def test_a_run_whose_repeated_round_has_another_sum_sends_nothing(tiny, tmp_path, monkeypatch):
    """As on a device whose arithmetic is not repeatable; when its keys are abandoned everything is drawn anew, and charged."""
    folder = tmp_path / "tiny"
    shutil.copytree(tiny, folder)
    (folder / "config.toml").write_text((folder / "config.toml").read_text().replace("seed = 3", ""))
    summed = Silo.sum

    def killed(store: StateStore, *rest: Any) -> None:
        raise KeyboardInterrupt

    def other(silo: Silo, *rest: Any) -> list[np.ndarray]:
        sums = summed(silo, *rest)
        sums[-1][0] += 1
        return sums

    with monkeypatch.context() as patched:
        patched.setattr(StateStore, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(folder)
        patched.undo()
        patched.setattr(Silo, "sum", other)
        with pytest.raises(
            PrivacyError, match=r"silo bank: round 1 is repeated, .* Nothing was sent\. .*tff-pipeline abandon"
        ):
            trained(folder)
    config = ["--config", str(folder / "config.toml"), *(word for change in SETTINGS for word in ("--set", change))]
    assert main(["abandon", *config, "--all"]) == 0
    trained(folder)
    assert [entry["round"] for entry in charges(folder)] == [1, 1, 2]


def test_the_records_of_a_run_pass_the_audit_without_cohort_sizes(uninterrupted):
    """The run keeps none with this mechanism; what it keeps is looked at."""
    from tff_pipeline.audit import recorded
    from tff_pipeline.audit.recorded import plan_of_run
    from tff_pipeline.training.store import config_of

    run = uninterrupted[0]
    checks = {check.name: check for check in recorded.checks(run, plan_of_run(run), config_of(run))}
    assert checks["recorded starts"].passed
    assert "recorded cohorts" not in checks
    assert recorded.uncharged(run) == []


def test_calibration_stays_under_the_target(tiny):
    changes = ("privacy.noise_multiplier=", "privacy.target_epsilon=2.0", "training.rounds=1")
    made = planning.make(load(tiny / "config.toml", [*SETTINGS, *changes]), clients=4, dimension=51)

    assert 1.9 < made.epsilon() <= 2.0


def test_the_command_says_it_and_the_ledger_shows_it(tiny, uninterrupted, tmp_path, capsys):
    config = uninterrupted[0].parent.parent.parent / "config.toml"
    changes = [word for setting in SETTINGS for word in ("--set", setting)]
    assert main(["privacy", "--config", str(config), *changes, "--json", "--plot", str(tmp_path / "plot.svg")]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["epsilon"] == pytest.approx(read_json(uninterrupted[0] / "run.json")["guarantee"]["epsilon"])
    assert said["integers"]["bits"] == 32
    assert said["ledger"]["rounds"] == 2
    assert said["ledger"]["epsilon"] == pytest.approx(said["epsilon"], rel=1e-6)
    assert "<svg" in (tmp_path / "plot.svg").read_text()

    assert main(["ledger", "show", "--config", str(config), *changes]) == 0
    assert "a distributed discrete gaussian with sampling probability 0.5" in capsys.readouterr().out
