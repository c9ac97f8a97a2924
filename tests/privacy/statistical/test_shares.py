"""Where silos add the noise: what the server receives, unmasked, less what it would receive without noise.

Real rounds of the local runtime: clip, rotation, rounding, shares, masks, sum. All secrets are fixed, so nothing here can
flake. With secrets drawn anew, the tests at the level of 1e-3 would each fail once in a thousand runs, and those of four
standard errors once in sixteen thousand.
"""

import math
from typing import Any

import numpy as np
import pytest
from builders.mechanism import CANARIES, Mechanism
from builders.plans import discretization
from builders.plans import plan as a_plan
from scipy import stats

from tff_pipeline.privacy import sampling
from tff_pipeline.privacy.discrete_gaussian import discrete_gaussian
from tff_pipeline.privacy.mechanisms import DistributedDiscreteGaussian
from tff_pipeline.privacy.randomness import derive

ROUNDS = 300
# 16 bits, so that the step is coarse: a share has a standard deviation of some hundreds.
PLAN = a_plan(
    DistributedDiscreteGaussian,
    silos=3,
    tolerated_silos=1,
    bits=16,
    noise_multiplier=0.7,
    clip_norm=0.5,
    expected_cohort=10.0,
    sampling_probability=0.25,
    dimension=123,
)
INTEGERS: Any = discretization(PLAN)
SILOS = ("silo-0000", "silo-0001", "silo-0002")


def shares(number: int) -> dict[str, np.ndarray]:
    return {
        silo: discrete_gaussian(derive(b"s" * 32, f"{silo}/{number}"), INTEGERS.log2_scale, INTEGERS.length)
        for silo in SILOS
    }


def centred(numbers: np.ndarray) -> np.ndarray:
    return numbers.astype(np.uint16).view(np.int16).astype(np.int64)


@pytest.fixture(scope="module")
def received() -> np.ndarray:
    """Integers [rounds, length]: the unmasked sum without the noiseless one. Every other round is empty."""
    found = []
    with Mechanism(PLAN) as mechanism:
        runtime, state, seen = mechanism._runtime, mechanism._state, []
        server = runtime.runtime.server
        receive = server.receive

        def watched(reports: Any) -> Any:
            sums = receive(reports)
            seen.append(sums[-1])
            return sums

        server.receive = watched
        for number in range(ROUNDS):
            clients = sampling.cohort(b"c" * 32, round_number=number, clients=CANARIES, probability=0.25)
            cohorts: dict[str, list[int]] = {silo: [] for silo in SILOS}
            for client in clients if number % 2 else ():
                cohorts[SILOS[client % 3]].append(int(client) // 3)
            (quiet,) = [total for total in runtime.secure_sums(state, cohorts) if total.dtype == np.uint16]
            drawn = shares(number)
            runtime.run_round(state, cohorts, round_number=number, shares=lambda silo, drawn=drawn: drawn[silo])
            assert seen[-1].dtype == np.uint16
            found.append(centred(seen[-1] - quiet))
            if number % 2:
                assert np.abs(centred(quiet)).max() > 0
    return np.stack(found)


VARIANCE = 3 * 4.0**INTEGERS.log2_scale


def fits(numbers: np.ndarray, variance: float) -> float:
    """The p-value of chi-square against the discrete Gaussian of that variance, in 50 cells of about equal probability."""
    reach = int(9 * math.sqrt(variance))
    masses = np.exp(-(np.arange(-reach, reach + 1.0) ** 2) / (2 * variance))
    below = np.cumsum(masses / masses.sum())
    edges = np.unique(np.searchsorted(below, np.arange(1, 50) / 50))
    expected = np.diff(np.concatenate([[0], below[edges], [1]]))
    cells = np.searchsorted(edges - reach, numbers.ravel(), side="left")
    return float(stats.chisquare(np.bincount(cells, minlength=expected.size), expected * numbers.size).pvalue)


def test_the_noise_is_the_discrete_gaussian_of_all_shares(received):
    """All 38,400 integers: mean, variance, chi-square."""
    everything = received.ravel()
    assert everything.size == ROUNDS * INTEGERS.length
    assert abs(everything.mean()) < 4 * math.sqrt(VARIANCE / everything.size)
    assert abs(everything.var() / VARIANCE - 1) < 4 * math.sqrt(2 / everything.size)
    assert fits(everything, VARIANCE) > 1e-3
    # And this would have been seen: a twentieth more or less variance.
    assert fits(everything, 1.05 * VARIANCE) < 1e-6
    assert fits(everything, 0.95 * VARIANCE) < 1e-6


@pytest.mark.parametrize("with_clients", [False, True])
def test_clients_change_nothing_about_it(received, with_clients):
    part = received[int(with_clients) :: 2]
    assert fits(part, VARIANCE) > 1e-3
    assert abs(part.var() / VARIANCE - 1) < 4 * math.sqrt(2 / part.size)


def test_without_a_silos_own_share_what_the_guarantee_counts_on_is_left(received):
    """A silo in league with the server takes its share away: two of three are left, worth the plan's noise multiplier."""
    left = received - np.stack([shares(number)["silo-0001"] for number in range(ROUNDS)])
    counted = 2 * 4.0**INTEGERS.log2_scale
    assert fits(left, counted) > 1e-3
    assert math.sqrt(left.var() / INTEGERS.sensitivity_squared) > 0.7 * (1 - 4 / math.sqrt(2 * left.size))


def test_each_coordinate_has_its_own(received):
    """128 tests at once: the smallest p-value of 128 uniform ones is below 1e-5 in 1.3 of a thousand."""
    pvalues = [stats.kstest(column / math.sqrt(VARIANCE), "norm").pvalue for column in received.T]
    assert min(pvalues) > 1e-5
    assert stats.kstest(pvalues, "uniform").pvalue > 1e-3


def test_along_any_direction_it_is_the_same(received):
    """Fifty random directions: noise that hid in the coordinates, or was shared between them, would show."""
    directions = np.random.default_rng(8).normal(size=(50, received.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True) * math.sqrt(VARIANCE)
    assert min(stats.kstest(received @ direction, "norm").pvalue for direction in directions) > 1e-5
    total = received.sum(axis=1) / math.sqrt(received.shape[1] * VARIANCE)
    assert abs(total.var() - 1) < 4 * math.sqrt(2 / ROUNDS)


def test_coordinates_and_rounds_are_independent(received):
    """The largest of all correlations of coordinates is that of independent numbers; so is that of rounds."""
    for table in (received.T, received):
        correlations = np.corrcoef(table)[np.triu_indices(len(table), 1)]
        bound = stats.norm.isf(1e-3 / correlations.size / 2) / math.sqrt(table.shape[1] - 1)
        assert np.abs(correlations).max() < bound
