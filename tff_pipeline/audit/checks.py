"""What a sound mechanism's observations satisfy: noise, cohorts, clip, masks and keys, by the criteria of `criteria`."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from scipy import stats

from tff_pipeline.audit import exact
from tff_pipeline.audit.criteria import Check, at_most, cosines, probable, variance
from tff_pipeline.audit.observed import Observed
from tff_pipeline.audit.testbed import Testbed
from tff_pipeline.privacy.draws import Draws
from tff_pipeline.privacy.mechanisms import NoisedMetrics

# Cohorts that are drawn beside those of the rounds played: as a silo draws them, without the work of a round.
MORE_COHORTS = 1000
_MOST_STARTS = 100_000  # rounds that their trees may be long together: every round's draws are told of all before it
_CLOCK_DRAWS = 4
_CLOCK_NS = ((10**9, 10), (10**6, 100), (10**3, 2000))  # units, and how many of each are tried
# Noise that correlates so much with a guess was guessed. Independent vectors of 200 numbers do with a probability of 1e-70.
_SAME = 0.9
_REPEATED_COHORTS = 200


def everything(testbed: Testbed, observed: Observed, table: np.ndarray) -> Iterator[Check]:
    """Yields all checks of rounds that were played. `table` is of independent cohorts (`sampled`)."""
    yield from noise(testbed, observed)
    yield from cohorts(testbed, observed, table)
    yield from clip(observed)
    yield from masks(testbed, observed)
    yield from keys(testbed)


# -- noise


def noise(testbed: Testbed, observed: Observed) -> Iterator[Check]:
    """The noise of every round as the observer of what is released sees it."""
    plan = testbed.plan
    numbers = plan.mechanism.own_noise(observed.noise)
    rounds, dimension = numbers.shape
    squares = np.square(numbers)
    yield variance("noise variance", squares.sum(), numbers.size, "variance of the noise")
    if testbed.view.by_tensor:
        yield _by_tensor(testbed, squares)
    yield variance(
        "noise variance by coordinate", squares.sum(axis=0), rounds, "smallest variance of a coordinate's noise"
    )
    yield variance("noise variance by round", squares.sum(axis=1), dimension, "smallest variance of a round's noise")
    yield _distribution(testbed, numbers)
    yield cosines("noise between rounds", numbers, "largest correlation of two rounds' noise")
    yield cosines("noise between coordinates", numbers.T, "largest correlation of two coordinates' noise")
    yield from testbed.view.checks(observed)
    if plan.noised_metrics:
        yield _metrics(testbed, plan.noised_metrics, rounds)
    guessed = clock(observed)
    yield at_most("noise from the clock", float(guessed), 0, "draws that a generator seeded by the clock gives")


def _by_tensor(testbed: Testbed, squares: np.ndarray) -> Check:
    """The tensors differ in size by no more than two, so that the smallest ratio of all tells."""
    name, sizes = "noise variance by tensor", [math.prod(shape) for shape in testbed.shapes]
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    sums = np.add.reduceat(squares.sum(axis=0), starts)
    return variance(name, sums, len(squares) * sizes[0], "smallest variance of a tensor's noise")


def _distribution(testbed: Testbed, numbers: np.ndarray) -> Check:
    """Kolmogorov and Smirnov's test; integers are spread evenly over their rounding interval."""
    flat, step = numbers.ravel(), testbed.view.step_over_noise
    if step:
        spread = np.random.default_rng(len(flat)).uniform(-0.5, 0.5, flat.size) * step
        flat = (flat + spread) / math.sqrt(1 + step**2 / 12)
    pvalue = stats.kstest(flat, "norm").pvalue if np.isfinite(flat).all() else 0.0
    return probable("noise distribution", pvalue, "the noise's distribution, a normal one with the plan's variance")


def _metrics(testbed: Testbed, metrics: NoisedMetrics, rounds: int) -> Check:
    starts = testbed.starts(rounds)
    draws = testbed.draws
    noise = [draws.server.metrics_noise(draws.round(starts[: number + 1])) for number in range(rounds)]
    drawn = np.array(noise) / metrics.stddev
    # One number that is there twice is noise that repeats.
    squares = np.square(drawn).sum() if len(np.unique(drawn)) == drawn.size else 0.0
    return variance("noise on the metrics", squares, drawn.size, "variance of the noise on metrics")


def clock(observed: Observed) -> int:
    """How many of some draws are also drawn by numpy's generators, seeded by the clock at any time while they were drawn."""
    recognized = 0
    for began, ended, drawn in observed.windows[:_CLOCK_DRAWS]:
        length = float(np.linalg.norm(drawn)) or 1.0
        for seed in _seeds(began, ended):
            for guess in _normals(seed, drawn.size):
                if abs(float(drawn @ guess)) > _SAME * length * float(np.linalg.norm(guess)):
                    recognized += 1
                    break
            else:
                continue
            break
    return recognized


def _seeds(began_ns: int, ended_ns: int) -> Iterator[int]:
    for unit_ns, most in _CLOCK_NS:
        last = ended_ns // unit_ns
        yield from range(max(began_ns // unit_ns, last - most), last + 1)


def _normals(seed: int, size: int) -> Iterator[np.ndarray]:
    yield np.random.default_rng(seed).normal(size=size)
    yield np.random.RandomState(seed % 2**32).normal(size=size)


# -- cohorts


def cohorts(testbed: Testbed, observed: Observed, table: np.ndarray) -> Iterator[Check]:
    """Is every client in every round by itself, with the plan's probability? With trees, in every tree at most once?

    `table` is of independent cohorts (`sampled`).
    """
    plan = testbed.plan
    yield at_most("sum of the cohort", observed.other_sums, 0, "rounds whose sum was not that of the clients drawn")
    q = plan.sampling_probability
    if plan.mechanism.turns_in_a_period is not None:
        yield at_most(
            "turns in a tree",
            turns(testbed, observed),
            plan.mechanism.turns_in_a_period,
            "rounds of one tree that a client took part in",
        )
    sizes = np.array(list(testbed.clients.values()))
    groups = np.add.reduceat(table.astype(np.int64), np.concatenate([[0], np.cumsum(sizes)[:-1]]), axis=1)
    total = exact.binomial(table.sum(), table.size, q)
    yield probable("sampling rate", float(total), "the number of clients sampled in all")
    by_client = exact.binomial(table.sum(axis=0), len(table), q)
    yield probable("sampling of each client", by_client.min() * by_client.size, "how often a client was sampled")
    yield probable("sampling of pairs", _pairs(table, q), "how often two clients were sampled together")
    all_silos = groups.sum(axis=1, keepdims=True)
    yield probable("cohort sizes", exact.spread(all_silos, sizes.sum(keepdims=True), q), "how much cohort sizes vary")
    by_silo = exact.spread(groups, sizes, q)
    yield probable("cohort sizes by silo", by_silo, "how much the sizes of silos' cohorts vary")
    yield probable("cohorts between rounds", exact.overlaps(table, q), "how much cohorts overlap, at any lag")


def sampled(testbed: Testbed, observed: Observed) -> np.ndarray:
    """Independent cohorts, bool [count, canaries]: those of all rounds; with trees, one of each tree."""
    every = testbed.plan.mechanism.period
    starts = range(0, len(observed.cohorts) - every + 1, every)
    # Of the trees one round each, by turns an early one and a late one.
    played = observed.cohorts[[start + start // every % every for start in starts]]
    first = math.ceil(len(observed.cohorts) / every)
    more = max(1, min(MORE_COHORTS, _MOST_STARTS // every))
    numbers = [every * tree + (tree % every) for tree in range(first, first + more)]
    return np.concatenate([played, cohorts_of(testbed, testbed.draws, numbers)])


def cohorts_of(testbed: Testbed, draws: Draws, numbers: Sequence[int]) -> np.ndarray:
    """The cohorts of some rounds, bool [rounds, canaries], as the silos draw them."""
    starts = testbed.starts(max(numbers) + 1)
    table = np.zeros((len(numbers), testbed.plan.clients), bool)
    offsets = np.cumsum([0, *testbed.clients.values()])
    for index, number in enumerate(numbers):
        at = draws.round(starts[: number + 1])
        for offset, (silo, clients) in zip(offsets, testbed.clients.items(), strict=False):
            table[index, offset + draws.silos[silo].cohort(at, clients)] = True
    return table


def turns(testbed: Testbed, observed: Observed) -> int:
    """With trees, the most rounds of one tree that a client took part in; else 0."""
    mechanism = testbed.plan.mechanism
    if mechanism.turns_in_a_period is None:
        return 0
    every = mechanism.period
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


def clip(observed: Observed) -> Iterator[Check]:
    """No client, whatever it does, moves the noiseless sum by more than the plan's sensitivity."""
    worst = max(observed.sensitivities, key=lambda name: _or_infinite(observed.sensitivities[name]))
    reached = _or_infinite(observed.sensitivities[worst])
    yield at_most("clip", reached, 1.0, f"norm of a client's part of the sum over the plan's sensitivity ({worst})")


def _or_infinite(value: float) -> float:
    return math.inf if math.isnan(value) else value


def masks(testbed: Testbed, observed: Observed) -> Iterator[Check]:
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


def keys(testbed: Testbed) -> Iterator[Check]:
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


def _noise_of(testbed: Testbed, draws: Draws, starts: Sequence[str]) -> list[np.ndarray]:
    """All noise of a round, by who draws it."""
    return testbed.view.draw_noise(draws, draws.round(starts), testbed.shapes)


def _same_noise(testbed: Testbed, base: Draws, other: Draws) -> bool:
    starts = testbed.starts(1)
    return _alike(_noise_of(testbed, base, starts), _noise_of(testbed, other, starts))


def _alike(some: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> bool:
    return any(exact.largest_cosine(np.stack(pair))[0] > _SAME for pair in zip(some, others, strict=True))


def _same_cohorts(testbed: Testbed, base: Draws, other: Draws) -> bool:
    """Told only where chance would hardly make them the same: with sampling of one half of many clients, not of all of two."""
    q, numbers = testbed.plan.sampling_probability, range(_REPEATED_COHORTS)
    chance = (q**2 + (1 - q) ** 2) ** (testbed.plan.clients * len(numbers) / testbed.plan.mechanism.period)
    if chance > 1e-9:
        return False
    return np.array_equal(cohorts_of(testbed, base, numbers), cohorts_of(testbed, other, numbers))
