"""Epsilon, by `dp_accounting`'s privacy loss distributions, for exactly the events the plan describes.

An event is the JSON that the ledger holds: {"kind": "poisson_gaussian", "sampling_probability": q, "noise_multiplier":
z}, or {"kind": "none"}. The neighbouring relation is adding or removing one client. The distributions are discretised
pessimistically: the epsilon given is an upper bound.

{"kind": "poisson_distributed_discrete_gaussian", ...} is noise that the silos add in shares, on integers. It is accounted
for as the Gaussian noise that privacy.distributed proves it to be worth, so events of both kinds compose.

{"kind": "tree", "noise_multiplier": z, "rounds_per_tree": E} is a round of DP-FTRL (Kairouz et al. 2021, arXiv:2103.00039),
and the one event whose rounds are not alike: `count` of them are the first `count` rounds of one run. A tree of t rounds
that a client takes part in at most once is floor(log2 t) + 1 Gaussian mechanisms: a round lies in at most one node of each
level (their theorem 4.1; dp_accounting's SingleEpochTreeAggregationDpEvent counts the same). Nodes finish one after the
other, later updates may follow from earlier nodes, and composition of Gaussian mechanisms allows that (Dong, Roth and Su
2019, corollary 3.3). No sampling is counted on.

Kairouz et al. define neighbours by a client whose records are replaced by nothing (definition 1.1, dp_accounting's
REPLACE_SPECIAL). Here that is the same as removing the client. Its summand becomes zero either way, since the denominator
is a public number; and the others' rounds are drawn for each by itself, so their joint distribution does not know whether
it is there. That the number of clients is public is assumed for all events alike. So they compose.

An event with "unit": "silo" is of rounds whose clients are whole silos. For a silo it is what it says. One client of a
silo can change its silo's update into another one: by at most twice what removing it does, which is a Gaussian mechanism
with half the noise multiplier. No sampling is counted on then: with the silo out of the round nothing changes, and the
divergence of two mixtures with a part in common is at most that of the parts which differ (joint convexity). What was
charged for clients says nothing about a silo: its epsilon is infinite.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import dp_accounting
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy import distributed

# Its events are attrs classes, which the type checker takes for empty ones.
_EVENTS: Any = dp_accounting
_RELATION = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE

# Steps of the privacy loss that distributions are discretised to, pessimistically: a coarser one gives an epsilon that is
# higher in the fifth digit, ten times as fast. What is promised and charged is worked out finely, curves are not.
FINE, COARSE = 1e-4, 1e-3
# Steps that a distribution may have: with very little noise the losses are in the thousands, and steps become coarser, so
# that memory does not. What comes out is still an upper bound.
_MOST_STEPS = 2e6


def event_unknown_to_graph() -> dp_accounting.DpEvent:
    """What a TFF process reports in place of an event: its graph does not know the sampling, so it cannot know it."""
    return dp_accounting.UnsupportedDpEvent()


def dp_event(event: Mapping[str, Any], unit: str = "client") -> dp_accounting.DpEvent:
    """A ledger's event as `dp_accounting` has it, for one `unit`. Raises PrivacyError for what cannot be accounted for."""
    kind, of = event.get("kind"), event.get("unit", "client")
    if of not in ("client", "silo") or unit not in ("client", "silo"):
        raise PrivacyError(
            f"an event for the unit {of!r} cannot be accounted for the unit {unit!r}; expected client or silo. Was the ledger written by a newer version?"
        )
    if kind == "none" or (of, unit) == ("client", "silo"):
        return dp_accounting.NonPrivateDpEvent()
    if kind in ("poisson_gaussian", "tree"):  # a tree's is that of one level
        noise_multiplier = float(event["noise_multiplier"])
    elif kind == "poisson_distributed_discrete_gaussian":
        noise_multiplier = distributed.noise_multiplier(
            sensitivity_squared=int(event["sensitivity_squared"]),
            log2_share=int(event["log2_share"]),
            honest=int(event["honest_silos"]),
        )
    else:
        raise PrivacyError(
            f"an event of kind {kind!r} cannot be accounted for; expected poisson_gaussian, poisson_distributed_discrete_gaussian, tree or none. Was the ledger written by a newer version?"
        )
    if (of, unit) == ("silo", "client"):
        return _EVENTS.GaussianDpEvent(noise_multiplier / 2)
    gaussian = _EVENTS.GaussianDpEvent(noise_multiplier)
    if kind == "tree":
        return gaussian
    return _EVENTS.PoissonSampledDpEvent(float(event["sampling_probability"]), gaussian)


def epsilon(
    events: Iterable[tuple[Mapping[str, Any], int]], delta: float, *, unit: str = "client", step: float = FINE
) -> float:
    """Epsilon at `delta` of all events together for one `unit`, each event given with how often it happened.

    The rounds of two runs with trees are two pairs, since each run begins its own trees.
    """
    composed: list[tuple[Any, int]] = []
    error = 0.0  # see privacy.distributed: what is composed here, and what happens, differ by a factor of exp(error)
    for event, count in events:
        if not count:
            continue
        mechanism = dp_event(event, unit)
        if isinstance(mechanism, dp_accounting.NonPrivateDpEvent):
            return math.inf
        composed.append((mechanism, tree_levels(event, count) if event["kind"] == "tree" else count))
        error += count * log_error(event)
    # Less by its last digit, 2**-54 of it: far more than cohorts there is no room for add (`PrivacyPlan.largest_cohort`).
    delta = math.nextafter(delta * math.exp(-error), 0)
    accountant = PLDAccountant(_RELATION, max(step, _widest(composed, delta) / _MOST_STEPS))
    for mechanism, times in composed:
        accountant.compose(mechanism, times)
    return float(accountant.get_epsilon(delta)) + 2 * error


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


def gaussian_event(noise_multiplier: float, *, sampling_probability: float, rounds_per_tree: int = 0) -> dict[str, Any]:
    """A round of Gaussian noise: in trees with `rounds_per_tree`, else in each round by itself under Poisson sampling."""
    if rounds_per_tree:
        return {"kind": "tree", "noise_multiplier": noise_multiplier, "rounds_per_tree": rounds_per_tree}
    return {
        "kind": "poisson_gaussian",
        "sampling_probability": sampling_probability,
        "noise_multiplier": noise_multiplier,
    }


def tree_levels(event: Mapping[str, Any], rounds: int) -> int:
    """How many Gaussian mechanisms the first `rounds` rounds of a run with trees are, a level of a tree each.

    An unfinished tree counts as far as it went: a level appears in the round that finishes its first node, the rounds 1,
    2, 4, 8, ... of the tree, and is charged with that round.
    """
    trees, rest = divmod(rounds, int(event["rounds_per_tree"]))
    return trees * int(event["rounds_per_tree"]).bit_length() + rest.bit_length()


def log_error(event: Mapping[str, Any]) -> float:
    """How far the logarithm of a probability may be from that of the mechanism which is accounted for in its place."""
    if event.get("kind") != "poisson_distributed_discrete_gaussian":
        return 0.0
    return distributed.log_error(
        log2_share=int(event["log2_share"]), honest=int(event["honest_silos"]), length=int(event["length"])
    )


def calibrate(
    target_epsilon: float,
    delta: float,
    *,
    sampling_probability: float,
    rounds: int,
    rounds_per_tree: int = 0,
    step: float = FINE,
) -> float:
    """The noise multiplier with which `rounds` rounds stay at or under `target_epsilon`, to a thousandth.

    With `rounds_per_tree` it is that of the nodes of trees, and the sampling probability is of no account.

    Raises:
      PrivacyError: if no noise multiplier up to 1000 does.
    """

    def spent(thousandths: int, step: float) -> float:
        event = gaussian_event(
            thousandths / 1000, sampling_probability=sampling_probability, rounds_per_tree=rounds_per_tree
        )
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
