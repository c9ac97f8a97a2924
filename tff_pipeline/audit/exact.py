"""Tail probabilities that the audit's tests rest on: exact ones, so that no test refutes a sound run more often than it says."""

import numpy as np
from scipy import stats
from scipy.fft import next_fast_len

_BLOCK = 1024  # rows of a matrix of cosines that are held at once
# Squared deviations count up to this many variances: a bounded statistic is as exact, and its distribution is short.
_MOST_VARIANCES = 64
_STEPS = 16  # to a variance, at least, where it is a large one


def binomial(counts: np.ndarray, trials: int | np.ndarray, probability: float) -> np.ndarray:
    """Two-sided p-values of binomial counts."""
    below = stats.binom.cdf(counts, trials, probability)
    above = stats.binom.sf(np.asarray(counts) - 1, trials, probability)
    return np.minimum(1.0, 2 * np.minimum(below, above))


def spread(sizes: np.ndarray, clients: np.ndarray, probability: float) -> float:
    """Two-sided p-value of how much cohort sizes vary, int [rounds, groups], each Binomial(clients of the group, probability).

    The statistic is the sum of squared distances to the integer nearest to the mean, each in whole steps of a fraction
    of the variance and truncated at 64 variances. Its distribution is that of a sum of independent integers: a product of
    discrete Fourier transforms.
    """
    rounds, variances = len(sizes), clients * probability * (1 - probability)
    centres = np.rint(clients * probability).astype(np.int64)
    steps = np.maximum(1, variances // _STEPS).astype(np.int64)
    most = np.maximum(4, np.ceil(_MOST_VARIANCES * variances / steps)).astype(np.int64)
    most = np.minimum(most, np.maximum(centres, clients - centres) ** 2 // steps)
    length = next_fast_len(int(rounds * most.sum()) + 1, real=True)
    transform = np.ones(length // 2 + 1, np.complex128)
    for count, centre, step, limit in zip(clients, centres, steps, most, strict=True):
        sampled = np.arange(count + 1)
        weights = stats.binom.pmf(sampled, count, probability)
        distances = np.minimum((sampled - centre) ** 2 // step, limit)
        transform *= np.fft.rfft(np.bincount(distances, weights, minlength=length), length) ** rounds
    masses = np.maximum(0.0, np.fft.irfft(transform, length))
    observed = int(np.minimum((sizes - centres) ** 2 // steps, most).sum())
    return min(1.0, 2 * min(masses[: observed + 1].sum(), masses[observed:].sum()))


def overlaps(cohorts: np.ndarray, probability: float) -> float:
    """The smallest p-value, times their number, of how cohorts agree at every lag; bool [rounds, clients].

    At a lag only pairs of rounds without a round in common are counted. So the clients that are in both rounds are
    Binomial(pairs * clients, q squared), which shows where few are sampled that a sampler repeats itself; and those in both
    or in neither, which shows it for any cohort, with q squared + (1 - q) squared. Large numbers only.
    """
    rounds, clients = cohorts.shape
    if rounds < 2:
        return 1.0
    numbers = np.arange(rounds)
    both, alike, trials = [], [], []
    for lag in range(1, rounds):
        first = numbers[(numbers // lag % 2 == 0) & (numbers + lag < rounds)]
        both.append(int((cohorts[first] & cohorts[first + lag]).sum()))
        alike.append(int((cohorts[first] == cohorts[first + lag]).sum()))
        trials.append(len(first) * clients)
    q = probability
    pvalues = [
        stats.binom.sf(np.array(counts) - 1, np.array(trials), chance)
        for counts, chance in ((both, q**2), (alike, q**2 + (1 - q) ** 2))
    ]
    return float(min(1.0, np.min(pvalues) * np.size(pvalues)))


def cosine_bound(dimension: int, probability: float) -> float:
    """What the cosine of two independent normal vectors exceeds, in magnitude, with that probability."""
    return float(np.sqrt(stats.beta.isf(probability, 0.5, (dimension - 1) / 2)))


def largest_cosine(vectors: np.ndarray) -> tuple[float, int]:
    """The largest cosine in magnitude of any two of some vectors [count, dimension], and how many pairs there are."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = (vectors / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)
    largest, count = 0.0, len(units)
    for start in range(0, count, _BLOCK):
        cosines = np.abs(units[start : start + _BLOCK] @ units[start:].T)
        cosines[np.tril_indices(len(cosines))] = 0.0
        largest = max(largest, float(cosines.max(initial=0.0)))
    return largest, count * (count - 1) // 2


def upper_rate(errors: int, trials: int, failure: float) -> float:
    """Clopper and Pearson's upper bound on an error rate, wrong with a probability of `failure`."""
    return float(stats.beta.ppf(1 - failure, errors + 1, trials - errors)) if errors < trials else 1.0


def lower_rate(hits: int, trials: int, failure: float) -> float:
    """Clopper and Pearson's lower bound on a rate, wrong with a probability of `failure`."""
    return float(stats.beta.ppf(failure, hits, trials - hits + 1)) if hits else 0.0
