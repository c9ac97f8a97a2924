"""The audit catches each fault that is planted in mechanisms whose noise the server adds: with small cohorts, with an adaptive clip, in trees.

Keys are fixed, so cohorts and noise cannot flake.
"""

import numpy as np
import pytest
from builders.faults import (
    COHORT,
    Planted,
    by_the_clock,
    caught,
    cohorts,
    earlier,
    fixed_size,
    no_noise_on,
    norm_without,
    poisson_in_trees,
    repeating,
    scaled,
    taken_away,
    whole_silo,
)

from tff_pipeline.privacy import randomness, sampling
from tff_pipeline.privacy.server_draws import ServerDraws
from tff_pipeline.privacy.silo_draws import SiloDraws

FAULTS: list[tuple[str, str, Planted, str]] = [
    (
        "the same cohort every round",
        "rare",
        [(SiloDraws, "cohort", lambda self, at, clients: COHORT(self, earlier(at, 0), clients))],
        "cohorts between rounds",
    ),
    ("whole silos in or out", "rare", cohorts(whole_silo), "cohort sizes by silo"),
    ("a cohort of fixed size", "rare", cohorts(fixed_size), "cohort sizes by silo"),
    (
        "clients sampled twice as often",
        "rare",
        cohorts(lambda key, clients, q: np.flatnonzero(randomness.bernoulli(key, 2 * q, clients))),
        "sampling rate",
    ),
    ("noise times 0.9", "adaptive", scaled(0.9), "noise variance"),
    ("no noise on one tensor", "adaptive", no_noise_on(0), "noise variance by tensor"),
    ("no noise on the count of an adaptive clip", "adaptive", no_noise_on(-1), "noise on the count"),
    ("a tensor left out of the norm", "adaptive", norm_without(slice(0, -1)), "clip"),
    *(
        (f"noise repeating every {period} rounds", "adaptive", repeating(period), "noise between rounds")
        for period in (1, 7, 29)
    ),
    ("noise times 0.9", "tree", scaled(0.9), "noise variance"),
    ("noise zero, by the generator", "tree", scaled(0.0), "noise variance"),
    ("no noise on one tensor", "tree", no_noise_on(1), "noise variance by tensor"),
    ("a tensor left out of the norm", "tree", norm_without(slice(1, None)), "clip"),
    ("noise repeating every 20 rounds", "tree", repeating(20), "noise between rounds"),
    ("noise repeating every 39 rounds", "tree", repeating(39), "noise between rounds"),
    (
        "the same cohort every round",
        "tree",
        [(SiloDraws, "cohort", lambda self, at, clients: COHORT(self, earlier(at, 0), clients))],
        "turns in a tree",
    ),
    (
        "a turn in every round of a tree, by Poisson sampling",
        "tree",
        [(sampling, "cohort_of_tree", poisson_in_trees)],
        "turns in a tree",
    ),
    ("noise that later rounds take away", "tree", [(ServerDraws, "noise", taken_away)], "noise variance by round"),
    ("noise from the clock in ms", "tree", by_the_clock(1_000_000), "noise from the clock"),
]


@pytest.mark.parametrize(
    ("name", "planted", "check"),
    [pytest.param(name, planted, check, id=f"{fault}, {name}") for fault, name, planted, check in FAULTS],
)
def test_a_fault_in_what_training_runs_is_caught(monkeypatch, name, planted, check):
    caught(monkeypatch, name, planted, check)
