"""The audit catches each fault that is planted in the Gaussian mechanism.

Keys are fixed, so cohorts and noise cannot flake.
"""

import math

import numpy as np
import pytest
from builders.audited import attacked
from builders.faults import (
    COHORT,
    MASK_KEY,
    WITH_NOISE,
    Planted,
    by_the_clock,
    caught,
    clip_skipped,
    cohorts,
    earlier,
    everybody_works,
    fixed_size,
    no_noise_in_one_round_of_ten,
    no_noise_on,
    norm_without,
    repeating,
    scaled,
    whole_silo,
    without_masks,
    zeros,
)

from tff_pipeline.learning.state import ServerState
from tff_pipeline.privacy import randomness
from tff_pipeline.privacy.draws import Draws
from tff_pipeline.privacy.round import Round
from tff_pipeline.privacy.server_draws import ServerDraws
from tff_pipeline.privacy.silo_draws import SiloDraws
from tff_pipeline.runtime.silo import Silo
from tff_pipeline.secagg.masking import Party

FAULTS: list[tuple[str, str, Planted, str]] = [
    ("noise times 0.9", "gaussian", scaled(0.9), "noise variance"),
    ("noise zero", "gaussian", [(ServerDraws, "noise", zeros)], "noise variance"),
    (
        "noise zero, where it is given to the round",
        "gaussian",
        [(ServerState, "with_noise", lambda self, noise: WITH_NOISE(self, [0 * part for part in noise]))],
        "noise variance",
    ),
    (
        "no noise in one round of ten",
        "gaussian",
        [(ServerDraws, "noise", no_noise_in_one_round_of_ten)],
        "noise variance by round",
    ),
    ("no noise on the first tensor", "gaussian", no_noise_on(0), "noise variance by tensor"),
    ("no noise on the last tensor", "gaussian", no_noise_on(1), "noise variance by tensor"),
    ("the last tensor left out of the norm", "gaussian", norm_without(slice(0, -1)), "clip"),
    ("the first tensor left out of the norm", "gaussian", norm_without(slice(1, None)), "clip"),
    ("the clip skipped for one example", "gaussian", clip_skipped(lambda count: count == 1), "clip"),
    ("the clip skipped for many", "gaussian", clip_skipped(lambda count: count > 50), "clip"),
    *(
        (f"noise repeating every {period} rounds", "gaussian", repeating(period), "noise between rounds")
        for period in (1, 7, 29)
    ),
    (
        "the same cohort every round",
        "gaussian",
        [(SiloDraws, "cohort", lambda self, at, clients: COHORT(self, earlier(at, 0), clients))],
        "cohorts between rounds",
    ),
    ("whole silos in or out", "gaussian", cohorts(whole_silo), "cohort sizes by silo"),
    ("a cohort of fixed size", "gaussian", cohorts(fixed_size), "cohort sizes by silo"),
    (
        "everybody in every round",
        "gaussian",
        [(SiloDraws, "cohort", lambda self, at, clients: np.arange(clients))],
        "sampling rate",
    ),
    (
        "everybody in every round, past the cohorts",
        "gaussian",
        [(Silo, "report", everybody_works)],
        "sum of the cohort",
    ),
    (
        "clients counted twice",
        "gaussian",
        cohorts(lambda key, clients, q: np.repeat(np.flatnonzero(randomness.bernoulli(key, q, clients)), 2)),
        "sum of the cohort",
    ),
    ("masks left out", "gaussian", [(Party, "mask", without_masks)], "mask bits"),
    (
        "the same masks in every round",
        "gaussian",
        [(Party, "_mask_key", lambda self, peer, shared, number: MASK_KEY(self, peer, shared, 0))],
        "masks repeated",
    ),
    ("noise from the clock in us", "gaussian", by_the_clock(1_000), "noise from the clock"),
    (
        "noise that only the server's key decides",
        "gaussian",
        [(Draws, "digest", property(lambda self: self.server.key.commitment))],
        "draws bound to keys",
    ),
    (
        "noise that does not depend on the start",
        "gaussian",
        [(Round, "binding", property(lambda self: self.draw))],
        "draws bound to keys",
    ),
]


@pytest.mark.parametrize(
    ("name", "planted", "check"),
    [pytest.param(name, planted, check, id=f"{fault}, {name}") for fault, name, planted, check in FAULTS],
)
def test_a_fault_in_what_training_runs_is_caught(monkeypatch, name, planted, check):
    caught(monkeypatch, name, planted, check)


def test_noise_left_out_leaves_no_epsilon(monkeypatch):
    monkeypatch.setattr(ServerDraws, "noise", zeros)
    finding = attacked("gaussian")
    assert finding.at_least == math.inf
    assert finding.noise_found_again == "there is none"


def test_half_the_noise_is_found_out_by_guessing_alone(monkeypatch):
    for target, attribute, value in scaled(0.5):
        monkeypatch.setattr(target, attribute, value)
    finding = attacked("gaussian")
    assert finding.noise_multiplier_at_most < finding.claimed_noise_multiplier
    assert finding.at_least > finding.claimed
