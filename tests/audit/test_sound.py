"""The audit leaves sound mechanisms alone.

Keys are fixed, so cohorts and noise cannot flake; masks have keys of the operating system, and refute a sound run in 2 of
100,000 (`SIGNIFICANCE`).
"""

import dataclasses

import pytest
from builders.audited import GAUSSIAN, OBSERVATIONS, PLANS, SECRET, attacked
from builders.plans import plan as a_plan

from tff_pipeline import audit
from tff_pipeline.audit import attack, criteria
from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy.mechanisms import NoPrivacy


@pytest.mark.parametrize("name", PLANS)
def test_a_sound_mechanism_stands(name):
    finding = attacked(name)
    assert finding.failed == []
    assert not finding.refuted
    assert finding.noise_found_again == ""
    assert 0 < finding.at_least < finding.claimed
    assert finding.noise_multiplier_at_most >= finding.claimed_noise_multiplier
    assert finding.sampling_probability_at_least <= finding.claimed_sampling_probability


def test_the_bound_is_not_far_below_the_claim():
    finding = attacked("gaussian")
    assert finding.at_least > 0.6 * finding.claimed
    assert finding.observations == OBSERVATIONS


def test_every_client_sampled_always_stands_too():
    """Nobody is ever out; the attacker guesses about directions that are nobody's."""
    plan = dataclasses.replace(GAUSSIAN, sampling_probability=1.0, expected_cohort=1000.0)
    finding = audit.audit(plan, observations=OBSERVATIONS, secret=SECRET)
    assert finding.failed == []
    assert 0 < finding.at_least < finding.claimed


def test_a_sound_run_is_refuted_in_at_most_one_of_a_thousand():
    """By the union bound: the shares of all tests, and what the bound on epsilon may err with."""
    assert sum(criteria.SIGNIFICANCE.values()) + (1 - attack.CONFIDENCE) <= criteria.FALSE_REFUTATIONS == 1e-3


def test_a_run_without_privacy_claims_nothing():
    with pytest.raises(PrivacyError, match="the run claims nothing"):
        audit.audit(a_plan(NoPrivacy, delta=None))
