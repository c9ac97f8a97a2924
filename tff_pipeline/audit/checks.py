"""What a sound mechanism's observations satisfy: exact equalities, and statistical tests with a stated error.

Each statistical test has a share of the probability with which all of them together refute a sound run. Where a test looks
at many things at once (clients, coordinates, pairs of rounds) its share is divided by their number (Bonferroni).
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from tff_pipeline.audit import exact
from tff_pipeline.privacy.draws import Draws

if TYPE_CHECKING:
    from tff_pipeline.audit.testbed import Observed, Testbed

# How often a sound run is refuted: at most this, half by the tests here and half by the bound on epsilon (`attack`).
FALSE_REFUTATIONS = 1e-3
_SHARE = 2e-5
SHARES = dict.fromkeys(
    (
        "noise variance",
        "noise variance by tensor",
        "noise variance by coordinate",
        "noise variance by round",
        "noise distribution",
        "noise between rounds",
        "noise between coordinates",
        "noise of each silo",
        "noise between shares",
        "noise on the count",
        "noise on the metrics",
        "sampling rate",
        "sampling of each client",
        "sampling of pairs",
        "cohort sizes",
        "cohort sizes by silo",
        "cohorts between rounds",
        "mask bits",
        "recorded cohorts",
        "recorded cohort sizes",
        "recorded noise",
    ),
    _SHARE,
)
# Cohorts that are drawn beside those of the rounds played: as a silo draws them, without the work of a round.
MORE_COHORTS = 1000
_MOST_STARTS = 100_000  # rounds that their trees may be long together: every round's draws are told of all before it
_CLOCK_DRAWS = 4
_CLOCK_NS = ((10**9, 10), (10**6, 100), (10**3, 2000))  # units, and how many of each are tried
# Noise that correlates so much with a guess was guessed. Independent vectors of 200 numbers do with a probability of 1e-70.
_SAME = 0.9
_FEW_VECTORS = 10_000  # whose cosines are all looked at; of more, repetition to the last digit
_REPEATED_COHORTS = 200


@dataclasses.dataclass(frozen=True)
class Check:
    """One check of an audit.

    Attributes:
      name: of the check; a statistical one's share of false refutations is `SHARES[name]`.
      statistic: what was measured.
      bound: what it was compared with.
      passed: whether a sound mechanism could have given that.
      meaning: what the statistic is, and on which side of the bound it has to be.
    """

    name: str
    statistic: float
    bound: float
    passed: bool
    meaning: str


def at_least(name: str, statistic: float, bound: float, meaning: str) -> Check:
    # A NaN passes nothing.
    return Check(name, float(statistic), float(bound), bool(statistic >= bound), f"{meaning}, at least")


def at_most(name: str, statistic: float, bound: float, meaning: str) -> Check:
    return Check(name, float(statistic), float(bound), bool(statistic <= bound), f"{meaning}, at most")


def probable(name: str, pvalue: float, meaning: str) -> Check:
    """A test by its p-value, already multiplied by the number of things it looked at."""
    return at_least(name, min(1.0, pvalue), SHARES[name], f"p-value of {meaning}")


def variance(name: str, squares: np.ndarray | float, numbers: int, meaning: str) -> Check:
    """Are sums of `numbers` squares, standard normal if the noise is the plan's, as large as chance makes them?

    More noise than planned refutes nothing.
    """
    bound = float(stats.chi2.ppf(SHARES[name] / np.size(squares), numbers)) / numbers
    return at_least(name, float(np.min(squares)) / numbers, bound, f"{meaning} over the plan's")


# -- noise


def noise(testbed: "Testbed", observed: "Observed") -> Iterator[Check]:
    """The noise of every round as the observer of what is released sees it."""
    plan = testbed.plan
    numbers = nodes_of(observed.noise, plan.rounds_per_tree)
    rounds, dimension = numbers.shape
    squares = np.square(numbers)
    yield variance("noise variance", squares.sum(), numbers.size, "variance of the noise")
    if not plan.integers:
        yield _by_tensor(testbed, squares)
    yield variance(
        "noise variance by coordinate", squares.sum(axis=0), rounds, "smallest variance of a coordinate's noise"
    )
    yield variance("noise variance by round", squares.sum(axis=1), dimension, "smallest variance of a round's noise")
    yield _distribution(testbed, numbers)
    yield _cosines("noise between rounds", numbers, "largest correlation of two rounds' noise")
    yield _cosines("noise between coordinates", numbers.T, "largest correlation of two coordinates' noise")
    if plan.adaptive:
        counted = np.square(observed.count_noise).sum()
        yield variance("noise on the count", counted, rounds, "variance of the noise on the count within the clip")
    if plan.metrics_stddev:
        yield _metrics(testbed, rounds)
    if plan.integers:
        yield from _shares(testbed, observed)
    guessed = clock(observed)
    yield at_most("noise from the clock", float(guessed), 0, "draws that a generator seeded by the clock gives")


def nodes_of(table: np.ndarray, rounds_per_tree: int) -> np.ndarray:
    """Of numbers by round [rounds, ...], those of the tree's node that each round finishes; without trees, the round's own.

    A round ends the node of as many rounds as the lowest set bit of its number in its tree. The prefix sums at both of the
    node's ends have all other nodes in common, so that their difference has this node's noise alone.
    """
    if not rounds_per_tree:
        return table
    nodes = np.empty_like(table)
    for start in range(0, len(table), rounds_per_tree):
        prefix = np.cumsum(table[start : start + rounds_per_tree], axis=0)
        for index in range(len(prefix)):
            before = index + 1 - ((index + 1) & -(index + 1))
            nodes[start + index] = prefix[index] - (prefix[before - 1] if before else 0)
    return nodes


def _by_tensor(testbed: "Testbed", squares: np.ndarray) -> Check:
    """The tensors differ in size by no more than two, so that the smallest ratio of all tells."""
    name, sizes = "noise variance by tensor", [math.prod(shape) for shape in testbed.shapes]
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    sums = np.add.reduceat(squares.sum(axis=0), starts)
    return variance(name, sums, len(squares) * sizes[0], "smallest variance of a tensor's noise")


def _distribution(testbed: "Testbed", numbers: np.ndarray) -> Check:
    """Kolmogorov and Smirnov's test; whole numbers are spread evenly over their rounding interval."""
    flat, integers = numbers.ravel(), testbed.plan.integers
    if integers:
        step = 1 / (2.0**integers.log2_share * math.sqrt(integers.silos))
        spread = np.random.default_rng(len(flat)).uniform(-0.5, 0.5, flat.size) * step
        flat = (flat + spread) / math.sqrt(1 + step**2 / 12)
    pvalue = stats.kstest(flat, "norm").pvalue if np.isfinite(flat).all() else 0.0
    return probable("noise distribution", pvalue, "the noise's distribution, a normal one with the plan's variance")


def _cosines(name: str, vectors: np.ndarray, meaning: str) -> Check:
    few = vectors[:_FEW_VECTORS]
    largest, pairs = exact.largest_cosine(few)
    if len(few) < len(vectors) and len(np.unique(vectors, axis=0)) < len(vectors):
        largest = 1.0
    return at_most(name, largest, exact.cosine_bound(vectors.shape[1], SHARES[name] / max(1, pairs)), meaning)


def _metrics(testbed: "Testbed", rounds: int) -> Check:
    starts, stddev = testbed.starts(rounds), testbed.plan.metrics_stddev
    drawn = (
        np.array(
            [testbed.draws.server.metrics_noise(testbed.draws.round(starts[: number + 1])) for number in range(rounds)]
        )
        / stddev
    )
    # One number that is there twice is noise that repeats.
    squares = np.square(drawn).sum() if len(np.unique(drawn)) == drawn.size else 0.0
    return variance("noise on the metrics", squares, drawn.size, "variance of the noise on metrics")


def _shares(testbed: "Testbed", observed: "Observed") -> Iterator[Check]:
    """Each silo's share by itself: the claim counts on those of any silos but the tolerated ones."""
    integers = testbed.plan.integers
    assert integers is not None
    drawn = np.stack(list(observed.shares.values())) / 2.0**integers.log2_share
    squares = np.square(drawn).sum(axis=(1, 2))
    yield variance("noise of each silo", squares, drawn[0].size, "smallest variance of a silo's share")
    yield _cosines(
        "noise between shares",
        drawn.reshape(-1, drawn.shape[-1]),
        "largest correlation of two shares, of any silos and rounds",
    )


def clock(observed: "Observed") -> int:
    """How many of some draws are found again with numpy's generators, seeded by the clock at any time while they were drawn."""
    found = 0
    for began, ended, drawn in observed.windows[:_CLOCK_DRAWS]:
        length = float(np.linalg.norm(drawn)) or 1.0
        for seed in _seeds(began, ended):
            for guess in _normals(seed, drawn.size):
                if abs(float(drawn @ guess)) > _SAME * length * float(np.linalg.norm(guess)):
                    found += 1
                    break
            else:
                continue
            break
    return found


def _seeds(began_ns: int, ended_ns: int) -> Iterator[int]:
    for unit_ns, most in _CLOCK_NS:
        last = ended_ns // unit_ns
        yield from range(max(began_ns // unit_ns, last - most), last + 1)


def _normals(seed: int, size: int) -> Iterator[np.ndarray]:
    yield np.random.default_rng(seed).normal(size=size)
    yield np.random.RandomState(seed % 2**32).normal(size=size)


# -- cohorts


def cohorts(testbed: "Testbed", observed: "Observed", table: np.ndarray) -> Iterator[Check]:
    """Is every client in every round by itself, with the plan's probability? With trees, in every tree at most once?

    `table` is of independent cohorts (`sampled`).
    """
    plan = testbed.plan
    yield at_most("sum of the cohort", observed.other_sums, 0, "rounds whose sum was not that of the clients drawn")
    q = plan.sampling_probability
    if plan.rounds_per_tree:
        yield at_most("turns in a tree", turns(testbed, observed), 1, "rounds of one tree that a client took part in")
    sizes = np.array(list(testbed.clients.values()))
    groups = np.add.reduceat(table.astype(np.int64), np.concatenate([[0], np.cumsum(sizes)[:-1]]), axis=1)
    total = exact.binomial(table.sum(), table.size, q)
    yield probable("sampling rate", float(total), "the number of clients sampled in all")
    each = exact.binomial(table.sum(axis=0), len(table), q)
    yield probable("sampling of each client", each.min() * each.size, "how often a client was sampled")
    yield probable("sampling of pairs", _pairs(table, q), "how often two clients were sampled together")
    whole = groups.sum(axis=1, keepdims=True)
    yield probable("cohort sizes", exact.spread(whole, sizes.sum(keepdims=True), q), "how much cohort sizes vary")
    by_silo = exact.spread(groups, sizes, q)
    yield probable("cohort sizes by silo", by_silo, "how much the sizes of silos' cohorts vary")
    yield probable("cohorts between rounds", exact.overlaps(table, q), "how much cohorts overlap, at any lag")


def sampled(testbed: "Testbed", observed: "Observed") -> np.ndarray:
    """Independent cohorts, bool [count, canaries]: those of all rounds; with trees, one of each tree."""
    every = max(1, testbed.plan.rounds_per_tree)
    played = observed.cohorts
    if testbed.plan.rounds_per_tree:
        # Of the trees one round each, now an early one, now a late one.
        played = played[[start + start // every % every for start in range(0, len(played) - every + 1, every)]]
    first = math.ceil(len(observed.cohorts) / every)
    more = max(1, min(MORE_COHORTS, _MOST_STARTS // every))
    numbers = [every * tree + (tree % every) for tree in range(first, first + more)]
    return np.concatenate([played, cohorts_of(testbed, testbed.draws, numbers)])


def cohorts_of(testbed: "Testbed", draws: Draws, numbers: Sequence[int]) -> np.ndarray:
    """The cohorts of some rounds, bool [rounds, canaries], as the silos draw them."""
    starts = testbed.starts(max(numbers) + 1)
    table = np.zeros((len(numbers), testbed.plan.clients), bool)
    offsets = np.cumsum([0, *testbed.clients.values()])
    for place, number in enumerate(numbers):
        at = draws.round(starts[: number + 1])
        for offset, (silo, clients) in zip(offsets, testbed.clients.items(), strict=False):
            table[place, offset + draws.silos[silo].cohort(at, clients)] = True
    return table


def turns(testbed: "Testbed", observed: "Observed") -> int:
    """With trees, the most rounds of one tree that a client took part in; else 0."""
    every = testbed.plan.rounds_per_tree
    if not every:
        return 0
    trees = np.add.reduceat(observed.cohorts.astype(np.int64), np.arange(0, len(observed.cohorts), every), axis=0)
    return int(trees.max())


def _pairs(table: np.ndarray, q: float) -> float:
    """The smallest p-value, times their number, of how often two clients are sampled together."""
    together = (table.T.astype(np.float32) @ table.astype(np.float32)).astype(np.int64)
    counts = together[np.triu_indices(len(together), 1)]
    if not counts.size:
        return 1.0
    extremes = np.array([counts.min(), counts.max()])
    return float(exact.binomial(extremes, len(table), q**2).min() * counts.size)


# -- clip, masks, keys: equalities


def clip(observed: "Observed") -> Iterator[Check]:
    """No client, whatever it does, moves the noiseless sum by more than the plan's sensitivity."""
    worst = max(observed.sensitivities, key=lambda name: _or_infinite(observed.sensitivities[name]))
    reached = _or_infinite(observed.sensitivities[worst])
    yield at_most("clip", reached, 1.0, f"norm of a client's part of the sum over the plan's sensitivity ({worst})")


def _or_infinite(value: float) -> float:
    return math.inf if math.isnan(value) else value


def masks(testbed: "Testbed", observed: "Observed") -> Iterator[Check]:
    """Does the server learn the sum of all silos, and nothing else? With one silo there is nothing to hide in."""
    rounds = len(observed.cohorts)
    yield at_most(
        "reports", observed.unseen_reports, 0, "rounds in which the server was given other than a report a silo"
    )
    yield at_most("sum of the reports", observed.other_totals, 0, "rounds whose reports added up to another sum")
    if len(testbed.clients) < 2:
        return
    # In a round of two silos one's mask is the negative of the other's, but never the same unless it is zero.
    repeated = len(testbed.clients) * (rounds - observed.unseen_reports) - len(set(observed.masks))
    yield at_most("masks repeated", repeated, 0, "masks that a silo, or another, had added before")
    ones, bits = observed.mask_bits[..., 0].ravel(), observed.mask_bits[..., 1].ravel()
    pvalues = np.where(bits > 0, exact.binomial(ones, np.maximum(bits, 1), 0.5), 0.0)
    yield probable("mask bits", float(pvalues.min() * pvalues.size), "the bits of the masks, ones and zeros alike")


def keys(testbed: "Testbed") -> Iterator[Check]:
    """Is everything new, for everybody, when one key is, or what the run or the round starts from?"""
    base, parties = testbed.draws, ["server", *list(testbed.clients)[:2]]
    others = {
        f"renewed {party}": testbed.fresh_draws(f"renewed {party}", like=base, renewed=party) for party in parties
    }
    others["origin"] = testbed.fresh_draws("origin", like=base, origin="another")
    same = [
        name
        for name, draws in others.items()
        if _same_noise(testbed, base, draws) or _same_cohorts(testbed, base, draws)
    ]
    starts = testbed.starts(2)
    if _alike(_noise_of(testbed, base, starts[:1]), _noise_of(testbed, base, starts[1:])):
        same.append("start")
    meaning = "ways to start anew (another key, other data, other weights) that repeat noise or cohorts"
    yield at_most("draws bound to keys", len(same), 0, meaning)


def _noise_of(testbed: "Testbed", draws: Draws, starts: Sequence[str]) -> list[np.ndarray]:
    """All noise of a round, by who draws it."""
    at = draws.round(starts)
    if testbed.plan.integers:
        return [draws.silos[silo].noise_share(at).astype(np.float64) for silo in testbed.clients]
    return [np.concatenate([part.ravel() for part in draws.server.noise(at, testbed.shapes)])]


def _same_noise(testbed: "Testbed", base: Draws, other: Draws) -> bool:
    starts = testbed.starts(1)
    return _alike(_noise_of(testbed, base, starts), _noise_of(testbed, other, starts))


def _alike(some: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> bool:
    return any(exact.largest_cosine(np.stack(pair))[0] > _SAME for pair in zip(some, others, strict=True))


def _same_cohorts(testbed: "Testbed", base: Draws, other: Draws) -> bool:
    """Told only where chance would hardly make them the same: with sampling of one half of many clients, not of all of two."""
    q, numbers = testbed.plan.sampling_probability, range(_REPEATED_COHORTS)
    chance = (q**2 + (1 - q) ** 2) ** (testbed.plan.clients * len(numbers) / max(1, testbed.plan.rounds_per_tree))
    if chance > 1e-9:
        return False
    return np.array_equal(cohorts_of(testbed, base, numbers), cohorts_of(testbed, other, numbers))
