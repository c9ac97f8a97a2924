"""The distributed discrete Gaussian mechanism: quantization step, modulus, and what its noise is worth.

Kairouz, Liu and Steinke 2021 (arXiv:2102.06387): a client clips its update, rotates it, divides it by a step and rounds;
the sum is taken in integers modulo 2**bits; and every silo adds its noise share, of discrete Gaussian noise, to its sum
before it is masked, so that the server never sees a sum without noise. Here are the numbers of that, and two facts.

What one client can change. A client's integers have a squared norm of at most `sensitivity_squared`, always: the client
compares the integers that it sends, exactly (tff_pipeline.aggregators.distributed_discrete_gaussian). The bound is chosen (equation in `_inflated`) so
that ordinary rounding stays under it.

What the noise is worth. `n - t` of the silos' noise shares, each a discrete Gaussian of variance 4**s on Z, are honest. Their
sum behaves, but for a factor of exp(log_error) in every probability, as the outcome of a continuous Gaussian of variance

    (n - t) 4**s - 4                                                                                         (1)

with everything after it independent of the data. So the whole mechanism, sampling and all rounds included, is accounted
for as a Gaussian one, by the same privacy loss distributions. The two steps, for one coordinate:

  Lemma. Let f(y) be the sum over integers k of exp(-(k - y)**2 / (2 v)), and e = 2 q / (1 - q) with q = exp(-2 pi**2 v).
  By Poisson's summation formula f(y) / sqrt(2 pi v) is 1 + 2 sum over j >= 1 of exp(-2 pi**2 v j**2) cos(2 pi j y), which
  lies between 1 - e and 1 + e.

  Noise shares. The sum of two discrete Gaussians of variances a and b has at x the probability exp(-x**2 / (2 (a + b))) f(c x),
  v = a b / (a + b), but for constants. So it differs from the discrete Gaussian of variance a + b by a factor between
  (1 - e) / (1 + e) and its inverse. Adding one after the other, v = 4**s k / (k + 1) for k = 1 ... n - t - 1: the bound of
  Kairouz, Liu and Steinke (their tau, which has 10 q for each k; log((1 + e) / (1 - e)) is near 4 q).

  Rounding a Gaussian. Let y = w + G, with an integer w and a continuous Gaussian G of variance u, and let x be a discrete
  Gaussian on Z centred at y, of variance v: x has probability exp(-(x - y)**2 / (2 v)) / f(y). Integrated over G, x - w has
  a probability that differs from that of the discrete Gaussian of variance u + v by a factor between (1 - e) / (1 + e) and
  its inverse, and does not depend on w, since f has period 1. (Peikert 2010, theorem 3.1, has it for lattices, as a
  statistical distance.) Drawing x from y looks at nothing but y, so it is post-processing of a Gaussian mechanism. With
  v = 4, e is below 2e-34, and (1) is u.

If every probability of a mechanism lies within exp(-h) and exp(h) of those of an (epsilon, delta)-private one, for the same
input, it is (epsilon + 2 h, exp(h) delta)-private. h adds up over coordinates and rounds; nothing here lets it reach 1e-20.
"""

import dataclasses
import functools
import math
from typing import Any

# Variance set aside for the step from the continuous Gaussian to the integers; see (1).
SMOOTHING = 4
# A noise share's scale, 2**s steps. Above, a finer step changes nothing that could be measured; below, rounding costs too much.
_COARSEST, _FINEST = 4, 20
# Chance that a client's rounding passes the bound: it then rounds towards zero, which cannot.
_ROUNDING_FAILS = 1e-4
# Chance a round that some coordinate of the sum does not fit the ring.
_WRAPS = 1e-9
# Rounding may make the noise larger by at most this factor.
_MOST_INFLATED = 1.25


@dataclasses.dataclass(frozen=True, kw_only=True)
class Discretization:
    """How updates become integers, and the noise on them. Made by `finest_discretization`.

    Attributes:
      bits: the ring is the integers modulo 2**bits.
      dimension: coordinates d of an update.
      length: coordinates after rotation, the next power of two.
      step: what 1 stands for, in units of the update.
      clip_in_steps: the clip norm over the step.
      sensitivity_squared: bound of a client's squared L2 norm, in steps.
      log2_scale: s; every silo's noise share has a variance of 4**s.
      silos: how many add a noise share, n.
      honest_silos: how many noise shares the guarantee counts on, n - t.
    """

    bits: int
    dimension: int
    length: int
    step: float
    clip_in_steps: float
    sensitivity_squared: int
    log2_scale: int
    silos: int
    honest_silos: int

    @property
    def modulus(self) -> int:
        return 2**self.bits

    @property
    def sensitivity(self) -> float:
        """In units of the update."""
        return self.step * math.sqrt(self.sensitivity_squared)

    @property
    def noise_stddev(self) -> float:
        """Of all noise shares together, on each coordinate of the sum, in units of the update."""
        return self.step * 2.0**self.log2_scale * math.sqrt(self.silos)

    @property
    def rounding_costs(self) -> float:
        """By which factor rounding makes the noise larger than the clip alone would."""
        return math.sqrt(self.sensitivity_squared) / self.clip_in_steps

    def as_json(self) -> dict[str, Any]:
        """Under the keys of run.json's "plan"."""
        return {
            "bits": self.bits,
            "dimension": self.dimension,
            "length": self.length,
            "quantum": self.step,
            "clip": self.clip_in_steps,
            "sensitivity_squared": self.sensitivity_squared,
            "log2_share": self.log2_scale,
            "silos": self.silos,
            "honest": self.honest_silos,
        }


@functools.lru_cache(maxsize=256)
def finest_discretization(
    *,
    clip_norm: float,
    noise_multiplier: float,
    dimension: int,
    clients: int,
    expected_cohort: float,
    silos: int,
    tolerated: int,
    bits: int,
) -> Discretization | None:
    """The finest step with which a round's sum fits the ring; None where even the coarsest does not, or costs too much.

    The sum fits but for a chance of 1e-9 a round: a cohort of more clients than Bernstein's inequality allows at half
    that chance, or a coordinate beyond what Hoeffding's does at the other half. After a random rotation a coordinate of a
    sum of n clipped updates is sub-Gaussian with variance at most (n clip)**2 / length, were they all the same; the noise
    is sub-Gaussian with its own (Canonne, Kamath and Steinke 2020); rounding moves it by at most n.
    """
    honest, length = silos - tolerated, 2 ** math.ceil(math.log2(dimension))
    chance = math.log(2 / _WRAPS)
    most = min(
        clients, math.ceil(expected_cohort + chance / 3 + math.sqrt(chance**2 / 9 + 2 * expected_cohort * chance))
    )
    deviations = math.sqrt(2 * (chance + math.log(2 * length)))
    for scale in range(_FINEST, _COARSEST - 1, -1):
        squared = math.floor((honest * 4**scale - SMOOTHING) / noise_multiplier**2)
        clip = _largest_clip(squared, length)
        spread = math.sqrt((most * clip) ** 2 / length + silos * 4**scale)
        # The client adds up squares as int64.
        if clip > 0 and squared < 2**62 and deviations * spread + most <= 2 ** (bits - 1):
            finest = Discretization(
                bits=bits,
                dimension=dimension,
                length=length,
                step=clip_norm / clip,
                clip_in_steps=clip,
                sensitivity_squared=squared,
                log2_scale=scale,
                silos=silos,
                honest_silos=honest,
            )
            return finest if finest.rounding_costs <= _MOST_INFLATED else None
    return None


def noise_multiplier(*, sensitivity_squared: int, log2_scale: int, honest_silos: int) -> float:
    """Of the continuous Gaussian that the noise shares are worth: the square root of (1) over the sensitivity."""
    return math.sqrt((honest_silos * 4**log2_scale - SMOOTHING) / sensitivity_squared)


def log_error(*, log2_scale: int, honest_silos: int, length: int) -> float:
    """h of one round: how far the logarithm of a probability may be from the continuous Gaussian's. Rounded up."""
    coordinate = _log_ratio(SMOOTHING) + sum(_log_ratio(4**log2_scale * k / (k + 1)) for k in range(1, honest_silos))
    return length * coordinate * (1 + 1e-9)


def _log_ratio(variance: float) -> float:
    """log((1 + e) / (1 - e)) of the lemma, from above: at most 2 e / (1 - e)."""
    q = math.exp(-2 * math.pi**2 * variance)
    e = 2 * q / (1 - q)
    return 2 * e / (1 - e)


def _inflated(clip: float, length: int) -> float:
    """A squared norm, in steps, that randomly rounded vectors of norm `clip` pass with a chance of 1e-4 at most.

    Kairouz, Liu and Steinke 2021, section 4.1: the smaller of clip**2 + D / 4 + sqrt(2 log(1 / beta)) (clip + sqrt(D) / 2)
    and (clip + sqrt(D))**2.
    """
    root = math.sqrt(length)
    likely = clip**2 + length / 4 + math.sqrt(2 * math.log(1 / _ROUNDING_FAILS)) * (clip + root / 2)
    return min(likely, (clip + root) ** 2)


def _largest_clip(squared: int, length: int) -> float:
    """The largest clip, in steps, that rounding keeps within a squared norm; 0 if there is none."""
    low, high = 0.0, math.sqrt(squared) if squared > 0 else 0.0
    if _inflated(low, length) > squared:
        return 0.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _inflated(middle, length) <= squared else (low, middle)
    return low
