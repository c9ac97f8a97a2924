"""By what an observation is judged: exact equalities, and statistical tests with a stated error.

Each statistical test has a significance level; they add up to the probability with which all tests together refute a sound
run at most. Where a test looks at many things at once (clients, coordinates, pairs of rounds) its level is divided by their
number (Bonferroni).
"""

import dataclasses

import numpy as np
from scipy import stats

from tff_pipeline.audit import exact

# How often a sound run is refuted: at most this, half by the tests here and half by the bound on epsilon (`attack`).
FALSE_REFUTATIONS = 1e-3
_LEVEL = 2e-5
SIGNIFICANCE = dict.fromkeys(
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
    _LEVEL,
)
_FEW_VECTORS = 10_000  # whose cosines are all looked at; of more, repetition to the last digit


@dataclasses.dataclass(frozen=True)
class Check:
    """One check of an audit.

    Attributes:
      name: of the check; a statistical one's significance level is `SIGNIFICANCE[name]`.
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
    return at_least(name, min(1.0, pvalue), SIGNIFICANCE[name], f"p-value of {meaning}")


def variance(name: str, squares: np.ndarray | float, numbers: int, meaning: str) -> Check:
    """Are sums of `numbers` squares, standard normal if the noise is the plan's, as large as chance makes them?

    More noise than planned refutes nothing.
    """
    bound = float(stats.chi2.ppf(SIGNIFICANCE[name] / np.size(squares), numbers)) / numbers
    return at_least(name, float(np.min(squares)) / numbers, bound, f"{meaning} over the plan's")


def cosines(name: str, vectors: np.ndarray, meaning: str) -> Check:
    """Are vectors of independent numbers as far from parallel as chance makes them?"""
    few = vectors[:_FEW_VECTORS]
    largest, pairs = exact.largest_cosine(few)
    if len(few) < len(vectors) and len(np.unique(vectors, axis=0)) < len(vectors):
        largest = 1.0
    return at_most(name, largest, exact.cosine_bound(vectors.shape[1], SIGNIFICANCE[name] / max(1, pairs)), meaning)
