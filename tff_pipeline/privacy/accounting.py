"""Epsilon, by `dp_accounting`'s privacy loss distributions, for exactly the events the plan describes.

An event is the JSON that the ledger holds: {"kind": "poisson_gaussian", "sampling_probability": q, "noise_multiplier":
z}, or {"kind": "none"}. The neighbouring relation is adding or removing one client. The distributions are discretised
pessimistically: the epsilon given is an upper bound.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import dp_accounting
from dp_accounting.pld import PLDAccountant

from tff_pipeline.errors import PrivacyError

# Its events are attrs classes, which the type checker takes for empty ones.
_EVENTS: Any = dp_accounting
_RELATION = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE


def event_unknown_to_graph() -> dp_accounting.DpEvent:
    """What a TFF process reports in place of an event: its graph does not know the sampling, so it cannot know it."""
    return dp_accounting.UnsupportedDpEvent()


def dp_event(event: Mapping[str, Any]) -> dp_accounting.DpEvent:
    """A ledger's event as `dp_accounting` has it. Raises PrivacyError for a kind that cannot be accounted for."""
    if event.get("kind") == "poisson_gaussian":
        gaussian = _EVENTS.GaussianDpEvent(float(event["noise_multiplier"]))
        return _EVENTS.PoissonSampledDpEvent(float(event["sampling_probability"]), gaussian)
    if event.get("kind") == "none":
        return dp_accounting.NonPrivateDpEvent()
    raise PrivacyError(
        f"an event of kind {event.get('kind')!r} cannot be accounted for; expected poisson_gaussian or none. Was the ledger written by a newer version?"
    )


def epsilon(events: Iterable[tuple[Mapping[str, Any], int]], delta: float) -> float:
    """Epsilon at `delta` of all events together, each given with how often it happened."""
    accountant = PLDAccountant(_RELATION)
    for event, count in events:
        if event.get("kind") == "none" and count:
            return math.inf
        if count:
            accountant.compose(dp_event(event), count)
    return float(accountant.get_epsilon(delta))


def calibrate(target_epsilon: float, delta: float, *, sampling_probability: float, rounds: int) -> float:
    """The noise multiplier with which `rounds` rounds stay at or under `target_epsilon`, to a thousandth.

    Raises:
      PrivacyError: if no noise multiplier up to 1000 does.
    """

    def spent(noise_multiplier: float) -> float:
        event = {
            "kind": "poisson_gaussian",
            "sampling_probability": sampling_probability,
            "noise_multiplier": noise_multiplier,
        }
        return epsilon([(event, rounds)], delta)

    # In thousandths, so that the answer is the same whatever the starting bracket was. `high` always stays at or under
    # the target, `low` never does.
    low, high = 100, 1000
    while spent(high / 1000) > target_epsilon:
        low, high = high, 2 * high
        if high > 1_000_000:
            raise PrivacyError(
                f"privacy.target_epsilon {target_epsilon:g} at delta {delta:g} is not reached by any noise multiplier up to 1000; expected a larger epsilon, fewer rounds or a smaller cohort."
            )
    if low == 100 and spent(low / 1000) <= target_epsilon:
        return low / 1000
    while high - low > 1:
        middle = (low + high) // 2
        if spent(middle / 1000) > target_epsilon:
            low = middle
        else:
            high = middle
    return high / 1000
