"""DP-FTRL's noise as the server releases it, against the distribution that its accounting assumes.

All secrets are fixed, so nothing here can flake. With secrets drawn anew, the tests at the level of 1e-3 would each fail
once in a thousand runs, and those of four standard errors once in sixteen thousand.
"""

import math

import numpy as np
import pytest
from builders.mechanism import CANARIES, SHAPES, Mechanism
from builders.plans import plan as a_plan
from scipy import stats

from tff_pipeline.privacy.mechanisms import Tree
from tff_pipeline.privacy.mechanisms.tree import tree_noise

ROUNDS, TREES = 11, 40
PLAN = a_plan(
    Tree,
    noise_multiplier=0.7,
    clip_norm=0.5,
    clients=110,
    expected_cohort=10.0,
    sampling_probability=1 / 11,
    rounds_per_tree=ROUNDS,
    rounds=ROUNDS * TREES,
    dimension=123,
)


def noise(number: int) -> list[np.ndarray]:
    return tree_noise(b"t" * 32, round_number=number, rounds_per_tree=ROUNDS, stddev=PLAN.noise_stddev, shapes=SHAPES)


@pytest.fixture(scope="module")
def prefixes() -> np.ndarray:
    """Noise of the sum since its tree began, over a node's standard deviation: [trees, rounds, 123], through the server."""
    random = np.random.default_rng(4)
    with Mechanism(PLAN) as mechanism:
        silence = [np.zeros(shape) for shape in SHAPES]
        alone = np.stack([mechanism.released([canary], silence) for canary in range(CANARIES)])
        found = np.empty((TREES, ROUNDS, PLAN.dimension))
        for tree in range(TREES):
            turns = random.integers(0, ROUNDS, CANARIES)
            for place in range(ROUNDS):
                clients = np.flatnonzero(turns == place)
                released = mechanism.released(clients.tolist(), noise(tree * ROUNDS + place))
                found[tree, place] = (released - alone[clients].sum(axis=0)) / PLAN.noise_stddev
    return found.cumsum(axis=1)


def test_prefix_sums_have_a_node_for_each_bit_of_their_length(prefixes):
    """After rounds 1, 2, 3, ... : 1, 1, 2, 1, 2, 2, 3, ... times a node's variance; normal, with a mean of zero."""
    for place in range(ROUNDS):
        numbers = prefixes[:, place].ravel() / math.sqrt((place + 1).bit_count())
        assert abs(numbers.mean()) < 4 / math.sqrt(numbers.size)
        assert abs(numbers.var() - 1) < 4 * math.sqrt(2 / numbers.size)
        assert stats.kstest(numbers, "norm").pvalue > 1e-3


def test_prefix_sums_share_exactly_the_nodes_they_have_in_common(prefixes):
    """The covariance of N_s and N_t is the number of nodes in the covers of both, worked out as intervals."""

    def cover(length: int) -> set[tuple[int, int]]:
        nodes, start = set(), 0
        for level in reversed(range(8)):
            if length & 1 << level:
                nodes.add((start, start + 2**level))
                start += 2**level
        return nodes

    flat = prefixes.transpose(1, 0, 2).reshape(ROUNDS, -1)
    found = flat @ flat.T / flat.shape[1]
    for one in range(ROUNDS):
        for other in range(ROUNDS):
            shared = len(cover(one + 1) & cover(other + 1))
            # Of a product of normals the variance is at most twice that of the variances' product.
            tolerance = 4 * math.sqrt(2 * (one + 1).bit_count() * (other + 1).bit_count() / flat.shape[1])
            assert abs(found[one, other] - shared) < tolerance


def test_trees_and_coordinates_are_independent(prefixes):
    """The largest of all correlations is that of independent numbers, after the eighth round, which is one node."""
    node = prefixes[:, 7]
    for table in (node, node.T):
        correlations = np.corrcoef(table)[np.triu_indices(len(table), 1)]
        # Fisher's transform: few numbers in each.
        bound = math.tanh(stats.norm.isf(1e-3 / correlations.size / 2) / math.sqrt(table.shape[1] - 3))
        assert np.abs(correlations).max() < bound


def test_along_any_direction_it_is_the_same(prefixes):
    random = np.random.default_rng(8)
    directions = random.normal(size=(50, PLAN.dimension))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    nodes = prefixes[:, [0, 1, 3, 7]].reshape(-1, PLAN.dimension)
    pvalues = [stats.kstest(nodes @ direction, "norm").pvalue for direction in directions]
    assert min(pvalues) > 1e-5
