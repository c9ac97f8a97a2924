"""The audit catches each fault that is planted in mechanisms whose noise the silos add.

Keys are fixed, so cohorts and noise cannot flake.
"""

import numpy as np
import pytest
from builders.faults import (
    Planted,
    by_the_clock,
    caught,
    clip_skipped,
    cohorts,
    everybody_works,
    fixed_size,
    norm_without,
    repeating,
    scaled,
    share_of_the_first,
    whole_silo,
    without_a_silos_share,
    without_masks,
)

from tff_pipeline.privacy.silo_draws import SiloDraws
from tff_pipeline.runtime.silo import Silo
from tff_pipeline.secagg.masking import Party

FAULTS: list[tuple[str, str, Planted, str]] = [
    ("noise times 0.9", "distributed", scaled(0.9), "noise of each silo"),
    ("noise zero, by the generator", "distributed", scaled(0.0), "noise variance"),
    ("a tensor left out of the norm", "distributed", norm_without(slice(0, -1)), "clip"),
    ("the clip skipped for one example", "distributed", clip_skipped(lambda count: count == 1), "clip"),
    ("the clip skipped for many", "distributed", clip_skipped(lambda count: count > 50), "clip"),
    *(
        (f"noise repeating every {period} rounds", "distributed", repeating(period), "noise between rounds")
        for period in (1, 7, 29)
    ),
    ("whole silos in or out", "distributed", cohorts(whole_silo), "cohort sizes by silo"),
    ("a cohort of fixed size", "distributed", cohorts(fixed_size), "cohort sizes by silo"),
    ("everybody in every round", "distributed", cohorts(lambda key, clients, q: np.arange(clients)), "sampling rate"),
    (
        "everybody in every round, past the cohorts",
        "distributed",
        [(Silo, "report", everybody_works)],
        "sum of the cohort",
    ),
    ("masks left out", "distributed", [(Party, "mask", without_masks)], "mask bits"),
    ("a silo without noise", "distributed", [(SiloDraws, "noise_share", without_a_silos_share)], "noise of each silo"),
    (
        "silos with one share",
        "distributed",
        [(SiloDraws, "noise_share", share_of_the_first)],
        "noise between shares",
    ),
    ("a share from the clock in us", "distributed", by_the_clock(1_000), "noise from the clock"),
    ("noise times 0.9", "distributed 16 bits", scaled(0.9), "noise of each silo"),
]


@pytest.mark.parametrize(
    ("name", "planted", "check"),
    [pytest.param(name, planted, check, id=f"{fault}, {name}") for fault, name, planted, check in FAULTS],
)
def test_a_fault_in_what_training_runs_is_caught(monkeypatch, name, planted, check):
    caught(monkeypatch, name, planted, check)
