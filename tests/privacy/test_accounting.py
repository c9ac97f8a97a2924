"""Plan, accounting, randomness, ledger and statement: against arithmetic of their own wherever there is one."""

import math
from typing import Any

import dp_accounting
import numpy as np
import pytest
from builders.plans import gaussian_epsilon, plan
from dp_accounting.pld import PLDAccountant
from scipy import optimize, stats

from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy import accounting, randomness, sampling, statement
from tff_pipeline.privacy.mechanisms import NoPrivacy, Tree

EVENT = {"kind": "poisson_gaussian", "sampling_probability": 0.1, "noise_multiplier": 1.2}


# -- accounting


@pytest.mark.parametrize(("noise_multiplier", "rounds"), [(1.0, 1), (3.0, 1), (5.0, 25), (10.0, 4)])
def test_without_sampling_epsilon_is_the_analytic_gaussians(noise_multiplier, rounds):
    """T Gaussian rounds are one Gaussian with noise divided by sqrt(T). The bound is tight from above."""
    event = {"kind": "poisson_gaussian", "sampling_probability": 1.0, "noise_multiplier": noise_multiplier}
    exact = gaussian_epsilon(noise_multiplier / math.sqrt(rounds), 1e-5)

    assert exact <= accounting.epsilon([(event, rounds)], 1e-5) <= exact * 1.01 + 1e-3


def test_an_absurd_epsilon_is_bounded_in_bounded_memory():
    """Hardly any noise: in steps of 1e-4 these distributions would take tens of gigabytes."""
    for noise_multiplier, rounds in ((0.01, 30), (0.1, 10_000)):
        event = {"kind": "poisson_gaussian", "sampling_probability": 1.0, "noise_multiplier": noise_multiplier}
        mu = math.sqrt(rounds) / noise_multiplier
        # Theorem 8 without its second term, which is next to nothing here.
        exact = mu**2 / 2 + mu * stats.norm.ppf(1 - 1e-3)
        assert 0.9999 * exact < accounting.epsilon([(event, rounds)], 1e-3) < 1.01 * exact


def test_one_sampled_round_is_the_integral():
    """Epsilon of one Poisson-sampled Gaussian round, from the hockey-stick divergence by numerical integration."""
    q, z, delta = 0.1, 1.2, 1e-3
    grid = np.linspace(-30, 30, 2_000_001)
    without = stats.norm.pdf(grid, 0, z)
    with_client = (1 - q) * without + q * stats.norm.pdf(grid, 1, z)

    def divergence(epsilon: float, upper: np.ndarray, lower: np.ndarray) -> float:
        return float(np.maximum(upper - math.exp(epsilon) * lower, 0).sum() * (grid[1] - grid[0]))

    def exact_in_one_direction(upper: np.ndarray, lower: np.ndarray) -> float:
        return optimize.brentq(lambda epsilon: divergence(epsilon, upper, lower) - delta, 0, 10)

    exact = max(exact_in_one_direction(with_client, without), exact_in_one_direction(without, with_client))
    assert exact - 1e-5 <= accounting.epsilon([(EVENT, 1)], delta) <= exact + 2e-3


@pytest.mark.parametrize(("target", "q", "rounds"), [(1.0, 0.01, 50), (4.0, 0.1, 10), (8.0, 0.5, 5)])
def test_calibration_never_exceeds_the_target_and_wastes_little(target, q, rounds):
    event = {"kind": "poisson_gaussian", "sampling_probability": q}
    noise = accounting.calibrate(target, 1e-5, event=lambda z: {**event, "noise_multiplier": z}, rounds=rounds)
    event["noise_multiplier"] = noise

    assert accounting.epsilon([(event, rounds)], 1e-5) <= target
    assert accounting.epsilon([({**event, "noise_multiplier": noise - 0.001}, rounds)], 1e-5) > target


def test_calibration_is_at_or_under_the_target_everywhere():
    """Forty settings drawn at random, from a fifth to five in epsilon; coarse steps, pessimistic as all are."""
    random = np.random.default_rng(4)
    for _ in range(40):
        target, delta = float(np.exp(random.uniform(-1.6, 1.6))), float(10 ** random.uniform(-7, -3))
        q, rounds = float(10 ** random.uniform(-3, 0)), int(10 ** random.uniform(0, 2))
        event = {"kind": "poisson_gaussian", "sampling_probability": q}
        event["noise_multiplier"] = accounting.calibrate(
            target, delta, event=lambda z, event=event: {**event, "noise_multiplier": z}, rounds=rounds, step=0.005
        )

        assert accounting.epsilon([(event, rounds)], delta, step=0.005) <= target


def test_epsilon_is_dp_accountings_own():
    """Five settings drawn at random, against the event composed by hand; to 1e-6, as an auditor would."""
    random = np.random.default_rng(6)
    for _ in range(5):
        q, z, rounds = float(random.uniform(0.01, 1)), float(random.uniform(2, 8)), int(random.integers(1, 60))
        events: Any = dp_accounting
        event = events.SelfComposedDpEvent(events.PoissonSampledDpEvent(q, events.GaussianDpEvent(z)), rounds)
        direct = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE).compose(event).get_epsilon(1e-5)

        made = plan(sampling_probability=q, noise_multiplier=z, rounds=rounds)
        assert made.epsilon() == pytest.approx(direct, abs=1e-6)
        assert direct <= made.curve() <= direct * 1.002 + 1e-3


def test_a_run_that_asks_after_every_round_discretises_its_mechanism_once(monkeypatch):
    """Every distribution is kept, for all numbers of rounds, and only for its own noise, sampling and step."""
    losses = accounting.privacy_loss_distribution
    made: list[tuple[float, float, float]] = []

    def counted(noise: float, *, value_discretization_interval: float, sampling_prob: float) -> Any:
        made.append((noise, sampling_prob, value_discretization_interval))
        return sound(noise, value_discretization_interval=value_discretization_interval, sampling_prob=sampling_prob)

    sound = losses.from_gaussian_mechanism
    monkeypatch.setattr(losses, "from_gaussian_mechanism", counted)
    event = {"kind": "poisson_gaussian", "sampling_probability": 0.123, "noise_multiplier": 1.5}
    changes = ({"noise_multiplier": 1.6}, {"sampling_probability": 0.2})
    spent = [accounting.epsilon([(event, rounds)], 1e-5, step=0.01) for rounds in range(1, 9)]
    for change in changes:
        spent.append(accounting.epsilon([({**event, **change}, 8)], 1e-5, step=0.01))
    spent.append(accounting.epsilon([(event, 8)], 1e-5, step=0.02))

    assert made == [(1.5, 0.123, 0.01), (1.6, 0.123, 0.01), (1.5, 0.2, 0.01), (1.5, 0.123, 0.02)]
    assert len(set(spent)) == len(spent)


def test_epsilon_is_monotone_in_rounds_rate_and_noise_everywhere():
    """Twenty settings drawn at random, each made a little worse in one way; coarse steps."""
    random = np.random.default_rng(5)

    def spent(q: float, z: float, rounds: int) -> float:
        event = {"kind": "poisson_gaussian", "sampling_probability": q, "noise_multiplier": z}
        return accounting.epsilon([(event, rounds)], 1e-5, step=1e-3)

    for _ in range(20):
        q, z, rounds = float(random.uniform(0.01, 0.9)), float(random.uniform(1, 5)), int(random.integers(1, 50))
        base = spent(q, z, rounds)
        assert spent(q, z, rounds + 5) > base
        assert spent(q * 1.1, z, rounds) > base
        assert spent(q, z * 1.1, rounds) < base


def test_epsilon_grows_with_rounds_and_rate_and_falls_with_noise():
    base = accounting.epsilon([(EVENT, 10)], 1e-5)
    assert accounting.epsilon([(EVENT, 20)], 1e-5) > base
    assert accounting.epsilon([({**EVENT, "sampling_probability": 0.2}, 10)], 1e-5) > base
    assert accounting.epsilon([({**EVENT, "noise_multiplier": 1.5}, 10)], 1e-5) < base


def test_what_cannot_be_accounted_for_is_refused():
    with pytest.raises(PrivacyError, match="'hope' cannot be accounted for"):
        accounting.epsilon([({"kind": "hope"}, 1)], 1e-5)
    assert accounting.epsilon([({"kind": "none"}, 1)], 1e-5) == math.inf


# -- the plan


def test_sensitivity_is_the_clip_and_what_float32_may_add():
    assert plan(clip_norm=3.0).sensitivity == 3.0 * (1 + 2**-16)
    assert plan().noise_stddev == 1.2 * plan().sensitivity


def test_the_rounding_step_is_a_power_of_two_about_a_thousandth_of_the_noise():
    assert math.log2(plan().rounding_step).is_integer()
    assert 2**-11 <= plan().rounding_step / plan().noise_stddev <= 2**-10


def test_everything_follows_from_one_number():
    more = plan(noise_multiplier=2.4)
    assert more.noise_stddev == 2 * plan().noise_stddev
    assert more.round_event["noise_multiplier"] == 2.4
    assert more.epsilon() < plan().epsilon()
    assert "2.4 times the sensitivity" in " ".join(statement.sentences(more, seeded=False))


def test_the_statement_says_who_is_trusted_and_what_is_not_covered():
    said = " ".join(statement.sentences(plan(), seeded=True))
    for words in (
        "differentially private for the client",
        "Poisson sampling",
        "probability 0.1, ",
        "trusted to add the noise",
        "client of two silos",
        "treated as public",
        "hyperparameters",
        "Seed: pipeline.seed is set",
    ):
        assert words in said
    assert "Seed:" not in " ".join(statement.sentences(plan(), seeded=False))
    assert "no exported version contains them" in said
    released = " ".join(statement.sentences(plan(), seeded=False, metrics="released"))
    assert "released with every exported version" in released
    assert "no exported version contains them" not in released
    assert "The server sees it" in " ".join(statement.sentences(plan(silos=1), seeded=False))
    none = " ".join(statement.sentences(plan(NoPrivacy, delta=None), seeded=False))
    assert "No guarantee" in none
    assert "Epsilon is infinite" in none


@pytest.mark.parametrize(
    ("exact", "said"),
    [(3.99845, "3.999"), (4.0, "4"), (12.341, "12.35"), (0.010001, "0.01001"), (1234.5, "1235"), (math.inf, "inf")],
)
def test_a_promised_epsilon_is_rounded_up(exact, said):
    assert statement.rounded_up(exact) == said


# -- randomness


def test_the_keystream_is_chacha20s():
    """RFC 8439, appendix A.1, test vector 1: key, nonce and counter of zero."""
    expected = "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
    assert randomness.uniform_words(bytes(32), 4).astype("<u8").tobytes().hex() == expected


def test_purposes_have_keys_of_their_own():
    assert randomness.derive(b"s" * 32, "a") != randomness.derive(b"s" * 32, "b") != randomness.derive(b"t" * 32, "b")


@pytest.mark.parametrize("stddev", [1.0, 0.01])
def test_gaussian_noise_is_normal(stddev):
    """Kolmogorov-Smirnov on 400,000 numbers, mean and variance; the key is fixed, so this cannot flake."""
    (numbers,) = randomness.gaussian(b"k" * 32, stddev, [(400, 1000)])
    flat = numbers.ravel() / stddev

    assert stats.kstest(flat, "norm").pvalue > 1e-3
    assert abs(flat.mean()) < 4 / math.sqrt(flat.size)
    assert abs(flat.var() - 1) < 4 * math.sqrt(2 / flat.size)
    # The two halves of Box and Muller's pairs are independent.
    assert abs(np.corrcoef(flat[:200_000], flat[200_000:])[0, 1]) < 4 / math.sqrt(200_000)


def test_noise_has_the_shapes_asked_for_and_no_repeats():
    parts = randomness.gaussian(b"k" * 32, 1.0, [(3, 5), (), (7,)])
    assert [part.shape for part in parts] == [(3, 5), (), (7,)]
    everything = np.concatenate([part.ravel() for part in parts])
    assert len(np.unique(everything)) == everything.size == 23


def test_cohorts_are_binomial_and_independent():
    """2,000 rounds of 500 clients at 0.3: cohort sizes and each client's count; fixed secret, so this cannot flake."""
    drawn = np.zeros((2000, 500), bool)
    for number in range(2000):
        drawn[number, sampling.cohort(b"s" * 32, round_number=number, clients=500, probability=0.3)] = True

    sizes, counts = drawn.sum(axis=1), drawn.sum(axis=0)
    assert abs(sizes.mean() - 150) < 4 * math.sqrt(500 * 0.21 / 2000)
    assert stats.kstest((sizes - 150) / math.sqrt(500 * 0.21), "norm").statistic < 0.06
    assert abs(sizes.var() / (500 * 0.21) - 1) < 0.15
    assert abs(counts.var() / (2000 * 0.21) - 1) < 0.3
    assert counts.min() > 500


def test_a_cohort_is_the_same_when_drawn_again_and_another_in_another_silo():
    again = [
        sampling.cohort(secret * 32, round_number=4, clients=1000, probability=0.1).tolist()
        for secret in (b"a", b"a", b"b")
    ]
    assert again[0] == again[1] != again[2]
    assert sampling.cohort(b"a" * 32, round_number=0, clients=10, probability=1.0).tolist() == list(range(10))


@pytest.mark.parametrize(("clients", "cohort"), [(100, 4), (9_900, 900), (1_000_000, 2_500), (40, 39)])
def test_a_cohort_larger_than_there_is_room_for_does_not_happen(clients, cohort):
    """Against the binomial distribution itself; and the room is not wasted."""
    from scipy.stats import binom

    made = plan(clients=clients, expected_cohort=float(cohort), sampling_probability=cohort / clients)
    largest = made.quantization.largest_cohort
    assert binom.logsf(largest - 1, clients, cohort / clients) <= -128 * math.log(2) or largest == clients
    assert largest <= cohort + 15 * math.sqrt(cohort) + 30
    # All that such a cohort may send is within 31 bits, or within what float64 counts exactly.
    most = 2 * made.quantization.largest_summand * largest
    assert most < 2**31 or 2**31 < most < 2**53


def test_everybody_has_room_where_the_guarantee_counts_on_no_sampling():
    assert plan(Tree, rounds_per_tree=20).quantization.largest_cohort == 1000
    assert plan(sampling_probability=1.0, expected_cohort=1000.0).quantization.largest_cohort == 1000


def test_levels_are_as_many_as_31_bits_hold_where_that_is_fine_enough():
    assert plan(dimension=1000).quantization.levels == pytest.approx(
        2**30 / plan().quantization.largest_cohort, rel=1e-4
    )
    large = plan(dimension=10**10)
    assert large.quantization.levels == 2**30  # sums of 64 bits


@pytest.mark.parametrize("clients", [3, 10, 37, 1000, 2**22 + 1])
def test_half_a_clip_is_an_integer_that_float32_holds(clients):
    """An adaptive clip counts with it, and its sensitivity is a half exactly."""
    numbers = {"clients": clients, "dimension": 1000}
    for made in (plan(Tree, rounds_per_tree=5, **numbers), plan(NoPrivacy, **numbers)):
        half = made.quantization.levels / 2
        assert half == int(half) == np.float32(half)
