"""The discrete Gaussian: its sampler, what sums of noise shares are worth, and what epsilon makes of them.

Keys are fixed, so nothing here can flake.
"""

import math
from typing import Any

import numpy as np
import pytest
from builders.plans import plan as a_plan
from scipy import optimize, special, stats

from tff_pipeline.privacy import accounting, distributed
from tff_pipeline.privacy import discrete_gaussian as discrete
from tff_pipeline.privacy.discrete_gaussian import discrete_gaussian
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
