"""What a silo's policy refuses, whatever the coordinator asks for. The reasons are those that the coordinator is told."""

from collections.abc import Collection

from tff_pipeline.config import Policy
from tff_pipeline.errors import Refused
from tff_pipeline.federation.messages import Terms


def require_terms(policy: Policy, roster: Collection[str], terms: Terms) -> None:
    """Refuses a run of other silos than the roster's, of too few of them, or with too low a threshold.

    Raises:
      Refused: saying what was found and what the policy asks for.
    """
    silos = set(terms.silos)
    if silos != set(roster) or len(silos) != len(terms.silos):
        raise Refused(
            f"the run is of silos {', '.join(sorted(silos))[:200]}; this silo's process and roster have {', '.join(sorted(roster))}. Expected the same."
        )
    if len(silos) < policy.least_silos:
        raise Refused(f"the run has {len(silos)} silos; this silo's policy asks for at least {policy.least_silos}.")
    if terms.threshold < policy.threshold:
        raise Refused(
            f"the run's threshold is {terms.threshold}; this silo's policy asks for at least {policy.threshold}: no sum over fewer silos is to be seen."
        )
    if 2 * terms.threshold <= len(silos) + policy.colluding:
        raise Refused(
            f"the run's threshold is {terms.threshold} of {len(silos)} silos, of which this silo's policy counts on {policy.colluding} to collude with the coordinator; expected more than {(len(silos) + policy.colluding) / 2:g}, since they could otherwise unmask two different sums."
        )


def require_hours(policy: Policy, now: str) -> None:
    """Refuses to take part at other hours than the policy's.

    Args:
      policy: the silo's.
      now: the local time, "HH:MM".

    Raises:
      Refused: saying when the silo takes part.
    """
    if policy.hours is None:
        return
    start, end = policy.hours.split("-")
    inside = start <= now < end if start <= end else now >= start or now < end
    if not inside:
        raise Refused(f"it is {now} here; this silo takes part from {start} to {end}.")


def require_bandwidth(policy: Policy, moved: int) -> None:
    """Refuses to go on with a round that has moved more bytes than the policy allows.

    Raises:
      Refused: saying how much it is, and how much is allowed.
    """
    allowed = policy.max_mb_a_round * 1e6
    if allowed and moved > allowed:
        raise Refused(
            f"the round has come to {moved / 1e6:.1f} MB; this silo's policy allows {policy.max_mb_a_round:g} MB a round."
        )
