"""What the server receives and what a round releases, against the distributions that the guarantee assumes.

All secrets are fixed, so nothing here can flake. With secrets drawn anew, the tests at the level of 1e-3 would each fail
once in a thousand runs, and those of four standard errors once in sixteen thousand.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from builders.mechanism import CANARIES, SHAPES, Mechanism
from builders.plans import plan as a_plan
from scipy import stats

from tff_pipeline.privacy import sampling
from tff_pipeline.privacy.mechanisms.noise import round_noise

ROUNDS = 400
PLAN = a_plan(noise_multiplier=0.7, clip_norm=0.5, expected_cohort=10.0, sampling_probability=0.25, dimension=123)


@pytest.fixture(scope="module")
def mechanism() -> Iterator[Any]:
    """The real aggregation, as compiled, over canaries in two silos: every update has the norm of the clip exactly."""
    with Mechanism(PLAN) as made:
        yield made


def noise(number: int) -> list[np.ndarray]:
    return round_noise(b"r" * 32, round_number=number, stddev=PLAN.noise_stddev, shapes=SHAPES)


@pytest.fixture(scope="module")
def released(mechanism) -> np.ndarray:
    """What rounds release beyond the exact sum of their clients, over the standard deviation: [rounds, 123].

    Half of the rounds are empty; the others have the cohort that the sampler draws from the 40 canaries.
    """
    silence = [np.zeros(shape) for shape in SHAPES]
    alone = np.stack([mechanism.released([canary], silence) for canary in range(CANARIES)])
    found = []
    for number in range(ROUNDS):
        clients = sampling.cohort(b"c" * 32, round_number=number, clients=CANARIES, probability=0.25)
        clients = clients if number % 2 else clients[:0]
        result = mechanism.released(clients.tolist(), noise(number))
        found.append((result - alone[clients].sum(axis=0)) / PLAN.noise_stddev)
    return np.stack(found)


def test_the_noise_of_every_release_is_normal_with_the_stated_variance(released):
    """All 49,200 numbers together: mean, variance, Kolmogorov and Smirnov's test."""
    everything = released.ravel()
    assert abs(everything.mean()) < 4 / math.sqrt(everything.size)
    assert abs(everything.var() - 1) < 4 * math.sqrt(2 / everything.size)
    assert stats.kstest(everything, "norm").pvalue > 1e-3


@pytest.mark.parametrize("with_clients", [False, True])
def test_clients_change_nothing_about_it(released, with_clients):
    part = released[int(with_clients) :: 2].ravel()
    assert abs(part.mean()) < 4 / math.sqrt(part.size)
    assert abs(part.var() - 1) < 4 * math.sqrt(2 / part.size)
    assert stats.kstest(part, "norm").pvalue > 1e-3


def test_each_coordinate_has_its_own(released):
    """123 tests at once: the smallest p-value of 123 uniform ones is below 1e-5 in 1.2 of a thousand."""
    pvalues = [stats.kstest(column, "norm").pvalue for column in released.T]
    assert min(pvalues) > 1e-5
    # And they are spread as p-values are.
    assert stats.kstest(pvalues, "uniform").pvalue > 1e-3


def test_along_any_direction_it_is_the_same(released):
    """Fifty random directions: noise that hid in the coordinates, or was shared between them, would show."""
    random = np.random.default_rng(8)
    directions = random.normal(size=(50, released.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    pvalues = [stats.kstest(released @ direction, "norm").pvalue for direction in directions]
    assert min(pvalues) > 1e-5
    # The sum of all coordinates is the direction in which shared noise adds up.
    total = released.sum(axis=1) / math.sqrt(released.shape[1])
    assert abs(total.var() - 1) < 4 * math.sqrt(2 / ROUNDS)


def test_coordinates_and_rounds_are_independent(released):
    """The largest of all 7,503 correlations of coordinates is that of independent numbers; so is that of rounds."""
    for table in (released.T, released):
        correlations = np.corrcoef(table)[np.triu_indices(len(table), 1)]
        bound = stats.norm.isf(1e-3 / correlations.size / 2) / math.sqrt(table.shape[1] - 1)
        assert np.abs(correlations).max() < bound


def test_what_is_released_is_a_multiple_of_the_rounding_step(mechanism):
    """Low-order bits of the float noise do not leave: the noised sum is a multiple of the rounding step."""
    multiples = mechanism.released([1, 2, 3], noise(9999)) / PLAN.rounding_step
    # The release is the sum over 10 in float32, which is all that rounds it again.
    np.testing.assert_allclose(multiples, np.round(multiples), atol=1e-3)


def test_any_client_moves_the_sum_by_at_most_the_sensitivity(mechanism):
    """Forty random cohorts and a client more: in L2, before the noise, and hardly less, since canaries reach the clip.

    With the noise off the sum is rounded to the rounding step, so neighbours are compared through the secure slots.
    """
    random = np.random.default_rng(3)
    runtime, state, step = mechanism._runtime, mechanism._state, PLAN.quantization.step
    moved = []
    for _ in range(40):
        taking_part = random.permutation(CANARIES)[: int(random.integers(1, 12))]
        *others, one = taking_part.tolist()
        sums = []
        for members in (others, [*others, one]):
            cohorts = {
                name: [place for row in members for place in np.flatnonzero(rows == row)]
                for name, rows in mechanism._silos.items()
            }
            slots = runtime.secure_sums(state, cohorts)
            sums.append(np.concatenate([slot.ravel() for slot in slots if slot.shape in SHAPES and slot.size > 1]))
        difference = (sums[1] - sums[0]).astype(np.int64) - PLAN.quantization.largest_summand
        moved.append(float(np.linalg.norm(difference * step)))
    assert max(moved) <= PLAN.sensitivity
    assert min(moved) > 0.999 * PLAN.sensitivity
