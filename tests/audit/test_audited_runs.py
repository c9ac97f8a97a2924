"""A finished run is audited from its folder: its mechanism, and what it recorded."""

import json

import numpy as np
import pytest
from builders.faults import zeros
from builders.tiny import PRIVATE, ROWS, prepared, quiet

from tff_pipeline.cli import main
from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy.server_draws import ServerDraws
from tff_pipeline.privacy.silo_draws import SiloDraws


def trained(tmp_path, *changes: str):
    from tff_pipeline.training.run import train

    config = prepared(tmp_path, ROWS, changes=[*PRIVATE, *changes])
    return train(config, progress=quiet())


def test_a_run_is_audited_from_its_folder(tmp_path, capsys, monkeypatch):
    run = trained(tmp_path)

    assert main(["audit", "--run", str(run), "--observations", "1", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["at_least"] <= said["claimed"]
    assert said["refuted"] is False
    assert said["rounds_not_charged"] == []
    assert said["failed"] == []
    names = [check["name"] for check in said["checks"]]
    assert {"noise variance", "clip", "mask bits", "recorded noise", "recorded cohorts"} <= set(names)

    (tmp_path / "workdir" / "ledgers" / "tiny.jsonl").unlink()
    (tmp_path / "workdir" / "ledgers" / "tiny.head.json").unlink()
    assert main(["audit", "--run", str(run), "--observations", "1"]) == PrivacyError.exit_code
    out = capsys.readouterr().out
    assert "the ledger lacks 2 of the run's rounds, round 1 first" in out
    assert "the claim stands" in out
    assert "passed  clip" in out


@pytest.mark.parametrize("trainable", ["head", "full"])
def test_a_run_that_trained_without_noise_shows_it_in_its_states(tmp_path, capsys, monkeypatch, trainable):
    with monkeypatch.context() as patched:
        patched.setattr(ServerDraws, "noise", zeros)
        run = trained(tmp_path, f"model.trainable={trainable}")

    assert main(["audit", "--run", str(run), "--observations", "1"]) == PrivacyError.exit_code
    out = capsys.readouterr().out
    assert "FAILED  recorded noise" in out
    assert "REFUTED" in out


def test_a_run_that_trained_on_everybody_shows_it_in_its_history(tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(SiloDraws, "cohort", lambda self, at, clients: np.arange(clients))
        run = trained(tmp_path, "training.clients_per_round=1", "training.rounds=6")

    assert main(["audit", "--run", str(run), "--observations", "1"]) == PrivacyError.exit_code
    assert "FAILED  recorded cohorts" in capsys.readouterr().out
