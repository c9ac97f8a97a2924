"""The exact distributions that the audit's checks compare with."""

import numpy as np
import pytest
from builders.audited import GAUSSIAN, TREE
from builders.plans import changed
from scipy import stats

from tff_pipeline.audit import exact


def test_the_spread_of_cohort_sizes_is_that_of_all_cohorts():
    """Two rounds of three clients: all 16 pairs of sizes, counted by hand."""
    masses = stats.binom.pmf(np.arange(4), 3, 0.25)
    distances = (np.arange(4) - 1) ** 2
    for one in range(4):
        for other in range(4):
            total = distances[one] + distances[other]
            sums = distances[:, np.newaxis] + distances
            joint = np.outer(masses, masses)
            expected = min(1.0, 2 * min(joint[sums <= total].sum(), joint[sums >= total].sum()))
            sizes = np.array([[one], [other]])
            assert exact.spread(sizes, np.array([3]), 0.25) == pytest.approx(expected, rel=1e-9)


def test_two_sided_binomial_tails():
    """Of ten fair coins none shows heads: one in 1024, doubled."""
    assert exact.binomial(np.array([0, 5, 10]), 10, 0.5) == pytest.approx([2 / 1024, 1.0, 2 / 1024])


def test_cosines_of_vectors_in_space_are_even():
    """On a sphere in three dimensions a coordinate is uniform (Archimedes)."""
    assert exact.cosine_bound(3, 0.1) == pytest.approx(0.9)


def test_clopper_and_pearsons_bound_is_the_textbooks():
    """No errors in 100: 1 - 0.05**(1/100). All wrong: 1."""
    assert exact.upper_rate(0, 100, 0.05) == pytest.approx(1 - 0.05**0.01)
    assert exact.upper_rate(100, 100, 0.05) == 1.0
    assert exact.lower_rate(100, 100, 0.05) == pytest.approx(0.05**0.01)


def test_a_node_of_a_tree_is_what_its_round_finishes():
    """Rounds 1 to 5 of a tree, then a new one: the nodes (1), (1, 2), (3), (1 ... 4), (5)."""
    table = np.array([1.0, 10.0, 100.0, 1000.0, 10_000.0, 7.0])
    assert changed(TREE, rounds_per_tree=5).mechanism.own_noise(table).tolist() == [
        1.0,
        11.0,
        100.0,
        1111.0,
        10_000.0,
        7.0,
    ]
    assert GAUSSIAN.mechanism.own_noise(table).tolist() == table.tolist()
