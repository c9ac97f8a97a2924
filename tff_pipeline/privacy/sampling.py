"""Who takes part in a round: every silo draws its own clients, each independently with the same probability.

That is Poisson sampling, which is what the accountant assumes. With trees (DP-FTRL) the accountant assumes no sampling, but
that a client takes part in at most one round of each tree, and this is what holds it.
"""

import numpy as np

from tff_pipeline.privacy.randomness import bernoulli, derive, uniform_words


def cohort(silo_secret: bytes, *, round_number: int, clients: int, probability: float) -> np.ndarray:
    """The rows of the silo's index that take part in a round, int64, ascending. The same arguments give the same rows."""
    return np.flatnonzero(bernoulli(derive(silo_secret, f"sampling/{round_number}"), probability, clients))


def cohort_of_tree(
    silo_secret: bytes, *, round_number: int, clients: int, probability: float, rounds_per_tree: int
) -> np.ndarray:
    """As `cohort`, with no client in two rounds of one tree: each has one turn, drawn by itself, in every tree or none.

    A client's number, uniform below 2**64, falls into one of `rounds_per_tree` pieces of width `probability`, which is its
    round, or beyond them. So the expected cohort of every round is clients * probability, as it is with `cohort`.
    """
    tree, turn = divmod(round_number, rounds_per_tree)
    if probability >= 1:
        return np.arange(clients if turn == 0 else 0)
    numbers = uniform_words(derive(silo_secret, f"turns/{tree}"), clients)
    return np.flatnonzero(numbers // np.uint64(max(1, int(probability * 2**64))) == np.uint64(turn))
