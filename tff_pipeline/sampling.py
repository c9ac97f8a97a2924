"""Who takes part in a round: every silo draws its own clients, each independently with the same probability.

That is Poisson sampling, which is what the accountant assumes.
"""

import numpy as np

from tff_pipeline.privacy.randomness import bernoulli, derive


def cohort(silo_secret: bytes, *, round_number: int, clients: int, probability: float) -> np.ndarray:
    """The rows of the silo's index that take part in a round, int64, ascending. The same arguments give the same rows."""
    return np.flatnonzero(bernoulli(derive(silo_secret, f"sampling/{round_number}"), probability, clients))
