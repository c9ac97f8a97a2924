"""Runs whose silos add the noise: nothing but the noised sums leaves a silo, and a round that is done again is the same."""

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders.tiny import ROWS, prepared, quiet, trained_weights

from tff_pipeline.artifacts import Workdir, read_json
from tff_pipeline.cli import main
from tff_pipeline.config import load
from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy import plan as planning
from tff_pipeline.progress import Progress
from tff_pipeline.runtime.silo import Silo
from tff_pipeline.training.run import train
from tff_pipeline.training.store import StateStore

KEY = b"k" * 32
SETTINGS = (
    "privacy.mechanism=distributed_discrete_gaussian",
    "privacy.clip_norm=1.0",
    "privacy.noise_multiplier=3.0",
    "privacy.delta=1e-3",
    "training.clients_per_round=2",
)
KIND = "poisson_distributed_discrete_gaussian"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two silos, prepared."""
    folder = tmp_path_factory.mktemp("tiny")
    prepared(folder, ROWS, changes=SETTINGS)
    return folder


def trained(folder: Path, *changes: str) -> tuple[Path, list[np.ndarray]]:
    run = train(load(folder / "config.toml", [*SETTINGS, *changes]), progress=quiet())
    return run, trained_weights(run)


@pytest.fixture(scope="module")
def uninterrupted(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray]]:
    folder = tmp_path_factory.mktemp("uninterrupted") / "tiny"
    shutil.copytree(tiny, folder)
    return trained(folder)


# Of a round, what would tell how many clients took part in it, or how long their work took.
TELLING = {"loss", "accuracy", "clients", "finite_clients", "examples", "instances", "client_accuracy", "seconds"}


@pytest.mark.parametrize("interactive", [False, True], ids=["log", "terminal"])
def test_a_run_tells_nobody_its_cohorts(tiny, tmp_path, interactive):
    """No event, and no file of the run: not rounds.csv, not a state, not TensorBoard's, nor where operations ran."""
    import tensorflow as tf
    from tensorflow.core.util import event_pb2

    folder, log = tmp_path / "tiny", io.StringIO()
    shutil.copytree(tiny, folder)
    run = train(load(folder / "config.toml", SETTINGS), progress=Progress(log, interactive=interactive))

    assert " ".join(log.getvalue().split()).count("nothing leaves a silo but its noised sum") == 1
    if not interactive:
        events = [json.loads(line) for line in log.getvalue().splitlines()]
        by_round = [event for event in events if "round" in event]
        assert [event["round"] for event in by_round] == [1, 2]
        assert not [event for event in by_round if TELLING & set(event)]
        (said,) = [event["message"] for event in events if event["event"] == "metrics"]
        assert "`tff-pipeline evaluate` measures the model on held-out clients" in said
    rounds = list(csv.DictReader((run / "rounds.csv").open()))
    assert [each["round"] for each in rounds] == ["1", "2"]
    assert not [name for each in rounds for name in TELLING if each.get(name)]
    for state in (run / "states").iterdir():
        history = read_json(state / "manifest.json")["history"]
        assert not [name for entry in history for name in TELLING if entry.get(name) is not None]
    tags = {
        value.tag
        for file in (run / "tensorboard").iterdir()
        for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator()
        for value in event_pb2.Event.FromString(record).summary.value
    }
    assert tags == {"epsilon", "bytes_down", "bytes_up"}
    assert not (run / "placement.json").exists()


def charges(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Workdir(folder / "workdir").ledger("tiny").read_text().splitlines()]


def test_a_run_that_was_killed_draws_the_same_shares_and_is_charged_once(tiny, uninterrupted, tmp_path, monkeypatch):
    """Killed when the second round has been computed, and before what it gives is saved."""
    folder = tmp_path / "tiny"
    shutil.copytree(tiny, folder)
    save = StateStore.save

    def fails(store: StateStore, round_number: int, *rest: Any) -> None:
        if round_number == 2:
            raise KeyboardInterrupt
        save(store, round_number, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(StateStore, "save", fails)
        with pytest.raises(KeyboardInterrupt):
            trained(folder)
    run, weights = trained(folder)

    for one, other in zip(weights, uninterrupted[1], strict=True):
        np.testing.assert_array_equal(one, other)
    assert [entry["round"] for entry in charges(folder)] == [1, 2]
    assert {entry["event"]["kind"] for entry in charges(folder)} == {KIND}
    # When the run is finished its secrets are gone, and with them its shares.
    assert not (run / "keys").exists()
    assert not list((folder / "workdir").glob("silos/*/keys/sampling-*"))


def test_a_run_whose_repeated_round_has_another_sum_sends_nothing(tiny, tmp_path, monkeypatch):
    """As on a device whose arithmetic is not repeatable; when its keys are abandoned everything is drawn anew, and charged."""
    folder = tmp_path / "tiny"
    shutil.copytree(tiny, folder)
    (folder / "config.toml").write_text((folder / "config.toml").read_text().replace("seed = 3", ""))
    summed = Silo.sum

    def killed(store: StateStore, *rest: Any) -> None:
        raise KeyboardInterrupt

    def other(silo: Silo, *rest: Any) -> list[np.ndarray]:
        sums = summed(silo, *rest)
        sums[-1][0] += 1
        return sums

    with monkeypatch.context() as patched:
        patched.setattr(StateStore, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(folder)
        patched.undo()
        patched.setattr(Silo, "sum", other)
        with pytest.raises(
            PrivacyError, match=r"silo bank: round 1 is repeated, .* Nothing was sent\. .*tff-pipeline abandon"
        ):
            trained(folder)
    config = ["--config", str(folder / "config.toml"), *(word for change in SETTINGS for word in ("--set", change))]
    assert main(["abandon", *config, "--all"]) == 0
    trained(folder)
    assert [entry["round"] for entry in charges(folder)] == [1, 1, 2]


def test_the_records_of_a_run_pass_the_audit_without_cohort_sizes(uninterrupted):
    """The run keeps none with this mechanism; what it keeps is looked at."""
    from tff_pipeline.audit import recorded
    from tff_pipeline.audit.recorded import plan_of_run
    from tff_pipeline.training.store import config_of

    run = uninterrupted[0]
    checks = {check.name: check for check in recorded.checks(run, plan_of_run(run), config_of(run))}
    assert checks["recorded starts"].passed
    assert "recorded cohorts" not in checks
    assert recorded.uncharged(run) == []


def test_calibration_stays_under_the_target(tiny):
    changes = ("privacy.noise_multiplier=", "privacy.target_epsilon=2.0", "training.rounds=1")
    made = planning.make(load(tiny / "config.toml", [*SETTINGS, *changes]), clients=4, dimension=51)

    assert 1.9 < made.epsilon() <= 2.0


def test_the_command_says_it_and_the_ledger_shows_it(tiny, uninterrupted, tmp_path, capsys):
    config = uninterrupted[0].parent.parent.parent / "config.toml"
    changes = [word for setting in SETTINGS for word in ("--set", setting)]
    assert main(["privacy", "--config", str(config), *changes, "--json", "--plot", str(tmp_path / "plot.svg")]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["epsilon"] == pytest.approx(read_json(uninterrupted[0] / "run.json")["guarantee"]["epsilon"])
    assert said["integers"]["bits"] == 32
    assert said["ledger"]["rounds"] == 2
    assert said["ledger"]["epsilon"] == pytest.approx(said["epsilon"], rel=1e-6)
    assert "<svg" in (tmp_path / "plot.svg").read_text()

    assert main(["ledger", "show", "--config", str(config), *changes]) == 0
    assert "a distributed discrete gaussian with sampling probability 0.5" in capsys.readouterr().out
