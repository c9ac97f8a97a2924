"""What the mechanisms have in common that draw Gaussian noise at the server."""

import math
from collections.abc import Sequence

import numpy as np

from tff_pipeline.privacy import randomness
from tff_pipeline.privacy.randomness import derive
from tff_pipeline.privacy.round import Round

# Counts and metrics have noise of a twentieth of the cohort unless something else is asked for: what Andrew et al. 2021
# (section 3.1) recommend for the count of clients within an adaptive clip.
COUNT_STDDEV = 1 / 20


def server_secret(secret: bytes, round: Round) -> bytes:
    """What the server's draws of a round follow from, where no other round has a part in them."""
    return derive(secret, f"noise/{round.binding}")


def rounding_step(stddev: float) -> float:
    """A power of two, about a thousandth of the noise's standard deviation.

    It hides what float64 arithmetic does to a Gaussian, the better the coarser it is, and costs nothing: uniform
    rounding adds step**2 / 12 to the variance, less than a ten-millionth of it.
    """
    return 2.0 ** math.floor(math.log2(stddev) - 10)


def round_noise(
    secret: bytes, *, round_number: int, stddev: float, shapes: Sequence[Sequence[int]]
) -> list[np.ndarray]:
    """The noise of one round by itself, float64, one array a weight. The same arguments give the same noise."""
    return randomness.gaussian(randomness.derive(secret, f"round/{round_number}"), stddev, shapes)
