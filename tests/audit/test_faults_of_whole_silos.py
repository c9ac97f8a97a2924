"""The audit catches each fault that is planted in mechanisms that protect whole silos.

Keys are fixed, so cohorts and noise cannot flake.
"""

import pytest
from builders.faults import (
    COHORT,
    Planted,
    caught,
    earlier,
    norm_without,
    same_number_of_silos,
    scaled,
    without_masks,
)

from tff_pipeline.privacy.silo_draws import SiloDraws
from tff_pipeline.secagg.masking import Party

FAULTS: list[tuple[str, str, Planted, str]] = [
    ("noise times 0.9", "silos", scaled(0.9), "noise variance"),
    ("a tensor left out of the norm", "silos", norm_without(slice(0, -1)), "clip"),
    (
        "the same cohort every round",
        "silos",
        [(SiloDraws, "cohort", lambda self, at, clients: COHORT(self, earlier(at, 0), clients))],
        "cohorts between rounds",
    ),
    ("a cohort of fixed size", "silos", [(SiloDraws, "cohort", same_number_of_silos)], "cohort sizes"),
    ("masks left out", "silos", [(Party, "mask", without_masks)], "mask bits"),
    ("noise times 0.9", "distributed silos", scaled(0.9), "noise of each silo"),
]


@pytest.mark.parametrize(
    ("name", "planted", "check"),
    [pytest.param(name, planted, check, id=f"{fault}, {name}") for fault, name, planted, check in FAULTS],
)
def test_a_fault_in_what_training_runs_is_caught(monkeypatch, name, planted, check):
    caught(monkeypatch, name, planted, check)
