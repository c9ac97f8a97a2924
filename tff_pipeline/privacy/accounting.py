"""Epsilon, by `dp_accounting`'s privacy loss distributions, for exactly the events the plan describes.

An event is the JSON that the ledger holds: {"kind": "poisson_gaussian", "sampling_probability": q, "noise_multiplier":
z}, or {"kind": "none"}. The neighbouring relation is adding or removing one client. The distributions are discretised
pessimistically: the epsilon given is an upper bound.

{"kind": "poisson_distributed_discrete_gaussian", ...} is noise that the silos add in shares, on integers. It is accounted
for as the Gaussian noise that privacy.distributed proves it to be worth, so events of both kinds compose.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import dp_accounting
from dp_accounting.pld import PLDAccountant

from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy import distributed

# Its events are attrs classes, which the type checker takes for empty ones.
_EVENTS: Any = dp_accounting
_RELATION = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE

# Steps of the privacy loss that distributions are discretised to, pessimistically: a coarser one gives an epsilon that is
# higher in the fifth digit, ten times as fast. What is promised and charged is worked out finely, curves are not.
FINE, COARSE = 1e-4, 1e-3


def event_unknown_to_graph() -> dp_accounting.DpEvent:
    """What a TFF process reports in place of an event: its graph does not know the sampling, so it cannot know it."""
    return dp_accounting.UnsupportedDpEvent()


def dp_event(event: Mapping[str, Any]) -> dp_accounting.DpEvent:
    """A ledger's event as `dp_accounting` has it. Raises PrivacyError for a kind that cannot be accounted for."""
    if event.get("kind") == "poisson_gaussian":
        gaussian = _EVENTS.GaussianDpEvent(float(event["noise_multiplier"]))
        return _EVENTS.PoissonSampledDpEvent(float(event["sampling_probability"]), gaussian)
    if event.get("kind") == "poisson_distributed_discrete_gaussian":
        gaussian = _EVENTS.GaussianDpEvent(
            distributed.noise_multiplier(
                sensitivity_squared=int(event["sensitivity_squared"]),
                log2_share=int(event["log2_share"]),
                honest=int(event["honest_silos"]),
            )
        )
        return _EVENTS.PoissonSampledDpEvent(float(event["sampling_probability"]), gaussian)
    if event.get("kind") == "none":
        return dp_accounting.NonPrivateDpEvent()
    raise PrivacyError(
        f"an event of kind {event.get('kind')!r} cannot be accounted for; expected poisson_gaussian, poisson_distributed_discrete_gaussian or none. Was the ledger written by a newer version?"
    )


def epsilon(events: Iterable[tuple[Mapping[str, Any], int]], delta: float, *, step: float = FINE) -> float:
    """Epsilon at `delta` of all events together, each given with how often it happened."""
    accountant = PLDAccountant(_RELATION, step)
    error = 0.0  # see privacy.distributed: what is composed here, and what happens, differ by a factor of exp(error)
    for event, count in events:
        if event.get("kind") == "none" and count:
            return math.inf
        if count:
            accountant.compose(dp_event(event), count)
            error += count * log_error(event)
    return float(accountant.get_epsilon(delta * math.exp(-error))) + 2 * error


def log_error(event: Mapping[str, Any]) -> float:
    """How far the logarithm of a probability may be from that of the mechanism which is accounted for in its place."""
    if event.get("kind") != "poisson_distributed_discrete_gaussian":
        return 0.0
    return distributed.log_error(
        log2_share=int(event["log2_share"]), honest=int(event["honest_silos"]), length=int(event["length"])
    )


def calibrate(
    target_epsilon: float, delta: float, *, sampling_probability: float, rounds: int, step: float = FINE
) -> float:
    """The noise multiplier with which `rounds` rounds stay at or under `target_epsilon`, to a thousandth.

    Raises:
      PrivacyError: if no noise multiplier up to 1000 does.
    """

    def spent(thousandths: int, step: float) -> float:
        event = {
            "kind": "poisson_gaussian",
            "sampling_probability": sampling_probability,
            "noise_multiplier": thousandths / 1000,
        }
        return epsilon([(event, rounds)], delta, step=step)

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
