"""Epsilon, by `dp_accounting`'s privacy loss distributions, for exactly the events the plan describes.

An event is the JSON that the ledger holds: {"kind": "poisson_gaussian", "sampling_probability": q, "noise_multiplier":
z}, or {"kind": "none"}; `mechanisms` has all kinds, each beside its mechanism. The neighbouring relation is adding or
removing one client. The distributions are discretised pessimistically: the epsilon given is an upper bound.

An event with "unit": "silo" is of rounds whose clients are whole silos. For a silo it is what it says. One client of a
silo can change its silo's update into another one: by at most twice what removing it does, which is a Gaussian mechanism
with half the noise multiplier. No sampling is counted on then: with the silo out of the round nothing changes, and the
divergence of two mixtures with a part in common is at most that of the parts which differ (joint convexity). What was
charged for clients says nothing about a silo: its epsilon is infinite.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import dp_accounting
from dp_accounting.pld import privacy_loss_distribution
from dp_accounting.rdp import RdpAccountant

from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy.mechanisms import EVENTS, Event

# Its events are attrs classes, which the type checker takes for empty ones.
_EVENTS: Any = dp_accounting
_RELATION = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE

# Steps of the privacy loss that distributions are discretised to, pessimistically: a coarser one gives an epsilon that is
# higher in the fifth digit, ten times as fast. What is promised and charged is worked out finely, curves are not.
FINE, COARSE = 1e-4, 1e-3
# Steps that a distribution may have: with very little noise the losses are in the thousands, and steps become coarser, so
# that memory does not. What comes out is still an upper bound.
_MOST_STEPS = 2e6
# Distributions that are kept. One round's takes up to 32 MB (usually one), and the events of a ledger are few.
_KEPT = 4


def event_unknown_to_graph() -> dp_accounting.DpEvent:
    """What a TFF process reports in place of an event: its graph does not know the sampling, so it cannot know it."""
    return dp_accounting.UnsupportedDpEvent()


def event_of(stored: Mapping[str, Any]) -> Event:
    """The event that a ledger's JSON describes. Raises PrivacyError for a kind that cannot be accounted for."""
    kind = stored.get("kind")
    if kind not in EVENTS:
        *others, last = ("poisson_gaussian", "poisson_distributed_discrete_gaussian", "tree", "none")
        raise PrivacyError(
            f"an event of kind {kind!r} cannot be accounted for; expected {', '.join(others)} or {last}. Was the ledger written by a newer version?"
        )
    return EVENTS[kind].from_json(stored)


def dp_event(stored: Mapping[str, Any], unit: str = "client") -> dp_accounting.DpEvent:
    """A ledger's event as `dp_accounting` has it, for one `unit`; of a tree, that of one level.

    Raises PrivacyError for what cannot be accounted for.
    """
    hidden = stored.get("unit", "client")
    if hidden not in ("client", "silo") or unit not in ("client", "silo"):
        raise PrivacyError(
            f"an event for the unit {hidden!r} cannot be accounted for the unit {unit!r}; expected client or silo. Was the ledger written by a newer version?"
        )
    if (hidden, unit) == ("client", "silo"):
        return dp_accounting.NonPrivateDpEvent()
    event = event_of(stored)
    noise_multiplier = event.gaussian_noise_multiplier
    if noise_multiplier is None:
        return dp_accounting.NonPrivateDpEvent()
    if (hidden, unit) == ("silo", "client"):
        return _EVENTS.GaussianDpEvent(noise_multiplier / 2)
    gaussian = _EVENTS.GaussianDpEvent(noise_multiplier)
    if event.poisson_probability is None:
        return gaussian
    return _EVENTS.PoissonSampledDpEvent(event.poisson_probability, gaussian)


def epsilon(
    events: Iterable[tuple[Mapping[str, Any], int]], delta: float, *, unit: str = "client", step: float = FINE
) -> float:
    """Epsilon at `delta` of all events together for one `unit`, each event given with how often it happened.

    The rounds of two runs with trees are two pairs, since each run begins its own trees.
    """
    composed: list[tuple[Any, int]] = []
    error = 0.0  # see privacy.distributed: what is composed here, and what happens, differ by a factor of exp(error)
    for stored, count in events:
        if not count:
            continue
        mechanism = dp_event(stored, unit)
        if isinstance(mechanism, dp_accounting.NonPrivateDpEvent):
            return math.inf
        event = event_of(stored)
        composed.append((mechanism, event.gaussians(count)))
        error += count * event.log_error
    # Less by its last digit, 2**-54 of it: far more than cohorts there is no room for add (`largest_poisson_cohort`).
    delta = math.nextafter(delta * math.exp(-error), 0)
    step = max(step, _widest(composed, delta) / _MOST_STEPS)
    loss = privacy_loss_distribution.identity(step)
    for mechanism, times in composed:
        loss = loss.compose(_loss_of(mechanism, times, step))
    return float(loss.get_epsilon_for_delta(delta)) + 2 * error


def _loss_of(mechanism: Any, times: int, step: float) -> privacy_loss_distribution.PrivacyLossDistribution:
    """The privacy loss of a mechanism that happened `times` times, as `dp_accounting`'s PLDAccountant composes it."""
    if isinstance(mechanism, dp_accounting.GaussianDpEvent):
        return _one_loss(mechanism.noise_multiplier / math.sqrt(times), 1.0, step)
    return _one_loss(mechanism.event.noise_multiplier, mechanism.sampling_probability, step).self_compose(times)


@functools.lru_cache(maxsize=_KEPT)
def _one_loss(
    noise_multiplier: float, sampling_probability: float, step: float
) -> privacy_loss_distribution.PrivacyLossDistribution:
    """The privacy loss of one round. It takes nearly all the time that epsilon takes, and a run asks after every round."""
    return privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier, value_discretization_interval=step, sampling_prob=sampling_probability
    )


def _widest(composed: Sequence[tuple[Any, int]], delta: float) -> float:
    """About how far apart the losses of these mechanisms are, each by itself or all together."""
    noises = [getattr(mechanism, "event", mechanism).noise_multiplier for mechanism, _ in composed]
    widest = max((_gaussian_losses(1 / noise) for noise in noises), default=0.0)
    mu = math.sqrt(sum(times / noise**2 for noise, (_, times) in zip(noises, composed, strict=True)))
    together = _gaussian_losses(mu)
    if together > FINE * _MOST_STEPS:  # with sampling it may be far less
        renyi = RdpAccountant(neighboring_relation=_RELATION)
        for mechanism, times in composed:
            renyi.compose(mechanism, times)
        together = min(together, renyi.get_epsilon(delta))
    return max(widest, together)


def _gaussian_losses(mu: float) -> float:
    """Up to where a mu-GDP mechanism's losses go, but for a probability of 1e-30."""
    return mu**2 / 2 + 12 * mu


def calibrate(
    target_epsilon: float,
    delta: float,
    *,
    event: Callable[[float], Mapping[str, Any]],
    rounds: int,
    step: float = FINE,
) -> float:
    """The noise multiplier with which `rounds` rounds stay at or under `target_epsilon`, to a thousandth.

    Args:
      target_epsilon: at `delta`.
      delta: the failure probability.
      event: a round's, as the ledger has it, for a noise multiplier.
      rounds: of the run.
      step: of the privacy loss that distributions are discretised to.

    Raises:
      PrivacyError: if no noise multiplier up to 1000 does.
    """

    def spent(thousandths: int, step: float) -> float:
        return epsilon([(event(thousandths / 1000), rounds)], delta, step=step)

    # In thousandths, so that the answer is the same whatever the starting bracket was. A first search takes coarse steps,
    # which are quick and give a little too much; what it finds is then brought down finely.
    high = 1000
    while spent(high, 10 * step) > target_epsilon:
        high *= 2
        if high > 1_000_000:
            raise PrivacyError(
                f"privacy.target_epsilon {target_epsilon:g} at delta {delta:g} is not reached by any noise multiplier up to 1000; expected a larger epsilon, fewer rounds or a smaller cohort."
            )
    high = _smallest(lambda noise: spent(noise, 10 * step) <= target_epsilon, 99 if high == 1000 else high // 2, high)
    while spent(high, step) > target_epsilon:
        high += 1
    # Wider and wider steps down, until the target is passed; the answer lies in the last of them.
    low, stride = high - 1, 1
    while low > 99 and spent(low, step) <= target_epsilon:
        high, stride = low, 2 * stride
        low = max(99, high - stride)
    return _smallest(lambda noise: spent(noise, step) <= target_epsilon, low, high) / 1000


def _smallest(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The smallest number above `low` for which `holds`, which is known to hold for `high` and for all between."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
