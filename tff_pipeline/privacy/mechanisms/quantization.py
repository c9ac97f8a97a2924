"""How finely an update is quantized for a secure sum that the server noises, or nobody does.

An update's coordinates become integers in steps of `value_range / levels`, truncated toward zero
(`tff_pipeline.aggregators.quantized_sum` does it and has the bound for what leaves a client).
"""

import bisect
import dataclasses
import math

# By how much a client's integers may be longer than the clip, relatively: equation (1) of quantized_sum, which proves
# a little more than half of it.
CLIP_EXCESS = 2.0**-16
# Levels of a clip: at most _MOST_LEVELS, where the sum is of 64 bits; with sums of 32 bits as many as the largest cohort
# leaves room for, if truncating so coarsely shortens an update at the clip by no more than a 64th of it.
_MOST_LEVELS, _COARSEST = 2**30, 64
_CERTAIN = 128 * math.log(2)  # minus the logarithm of the probability of a larger cohort


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantization:
    """How updates become integers.

    Attributes:
      value_range: R, which is divided into `levels`: the clip, or 1 where updates are summed in units of it; without a clip
        coordinates are clamped to [-R, R].
      levels: quantization levels between 0 and R.
      largest_cohort: the most clients whose sum there is room for; of more nothing is released.
    """

    value_range: float
    levels: int
    largest_cohort: int

    @property
    def step(self) -> float:
        """The distance of two levels."""
        return self.value_range / self.levels

    @property
    def largest_summand(self) -> int:
        """What no coordinate of a client's, in levels, is above."""
        return math.ceil(self.levels * (1 + CLIP_EXCESS))

    @classmethod
    def finest(
        cls, value_range: float, *, largest_cohort: int, dimension: int, in_int32: bool = True
    ) -> "Quantization":
        """The finest quantization with which the sum over the largest cohort fits.

        It fits 32 bits if `in_int32`, where that is fine enough: what truncation takes from a vector of d coordinates is
        shorter than sqrt(d) steps, and the noise hides far more of it. Else it fits 53 bits.
        """

        def room(bits: int) -> int:
            fits = int((2**bits / (2 * largest_cohort) - 2) / (1 + CLIP_EXCESS))
            # Half a clip, which an adaptive clip counts with, has to be an integer too, and one that float32 holds.
            return min(fits - fits % (1 << max(1, fits.bit_length() - 24)), _MOST_LEVELS)

        narrow = room(31)
        enough = narrow >= _COARSEST * math.sqrt(dimension)
        levels = narrow if in_int32 and enough else room(53)
        return cls(value_range=value_range, levels=levels, largest_cohort=largest_cohort)


def largest_poisson_cohort(clients: int, expected_cohort: float) -> int:
    """The smallest size that a Poisson-sampled cohort does not reach, but with a probability of 2**-128.

    A cohort is a sum of independent draws with mean n = q N, so by Chernoff's bound P(cohort >= L) <= exp(L - n - L ln(L / n)),
    and L is where that is 2**-128. Delta is exceeded by no more than that a round, without a factor of exp(epsilon): given the
    draws of all other clients, a round with one more is the sampled Gaussian mechanism, or nothing on both sides, but for
    just L others; and there either side may be taken for one that tells nothing. `accounting.epsilon` subtracts it.
    """

    def certainty(size: int) -> float:
        return size * math.log(size / expected_cohort) - size + expected_cohort

    return bisect.bisect_left(range(clients), _CERTAIN, lo=math.ceil(expected_cohort), key=certainty)
