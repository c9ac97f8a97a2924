"""What a silo's policy refuses, in the words that the coordinator is told."""

import pytest

from tff_pipeline.config import Policy
from tff_pipeline.errors import Refused
from tff_pipeline.federation import policy
from tff_pipeline.federation.messages import Terms

ROSTER = ["bank", "insurer", "shop"]


def terms(silos=ROSTER, threshold=2):
    return Terms(
        run="0" * 16,
        seeded="",
        silos=tuple(silos),
        threshold=threshold,
        labels=("card", "money"),
        units=10,
        largest_weight=1.0,
        process="a" * 64,
    )


def test_a_run_that_the_policy_allows():
    policy.require_terms(Policy(threshold=2, least_silos=3), ROSTER, terms())
    policy.require_terms(Policy(threshold=2, least_silos=3, colluding=1), ROSTER, terms(threshold=3))


@pytest.mark.parametrize(
    ("own", "asked", "said"),
    [
        (
            Policy(threshold=2),
            terms(["bank", "shop"]),
            "the run is of silos bank, shop; this silo's process and roster",
        ),
        (Policy(threshold=2), terms([*ROSTER, "bank"]), "the run is of silos"),
        (Policy(threshold=2, least_silos=4), terms(), "has 3 silos; this silo's policy asks for at least 4"),
        (Policy(threshold=3), terms(), "threshold is 2; this silo's policy asks for at least 3"),
        (
            Policy(threshold=2, colluding=1),
            terms(),
            "counts on 1 to collude with the coordinator; expected more than 2",
        ),
    ],
)
def test_a_run_that_it_does_not_allow(own, asked, said):
    with pytest.raises(Refused, match=said):
        policy.require_terms(own, ROSTER, asked)


@pytest.mark.parametrize(
    ("hours", "now", "inside"),
    [
        ("08:00-18:00", "08:00", True),
        ("08:00-18:00", "18:00", False),
        ("19:00-06:00", "23:59", True),
        ("19:00-06:00", "05:59", True),
        ("19:00-06:00", "12:00", False),
        (None, "12:00", True),
    ],
)
def test_hours_may_go_past_midnight(hours, now, inside):
    own = Policy(threshold=2, hours=hours)
    if inside:
        policy.require_hours(own, now)
    else:
        with pytest.raises(Refused, match=f"it is {now} here; this silo takes part from"):
            policy.require_hours(own, now)


def test_bandwidth():
    policy.require_bandwidth(Policy(threshold=2), 10**12)
    policy.require_bandwidth(Policy(threshold=2, max_mb_a_round=1.5), 1_500_000)
    with pytest.raises(Refused, match=r"come to 1\.6 MB; this silo's policy allows 1\.5 MB a round"):
        policy.require_bandwidth(Policy(threshold=2, max_mb_a_round=1.5), 1_600_000)
