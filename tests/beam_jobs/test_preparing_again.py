"""Preparing a second time: what is finished is used as it is, what is damaged is refused, what was killed is made anew."""

import json
import signal
import subprocess
import sys

import pytest
from builders import ROOT
from builders.prepare_helpers import GOOD, VOCABULARY, data_bytes, many, refusal

from beam_jobs import planning, running
from tff_pipeline.errors import ArtifactError, InputError, PipelineError


def test_a_finished_snapshot_is_not_made_again(case, capsys, monkeypatch):
    case.write("data.csv", GOOD)
    first = case.prepare_it()
    made = (first / "COMPLETE").stat().st_mtime_ns
    monkeypatch.setattr(running, "run", lambda *_: pytest.fail("the pipeline ran"))
    capsys.readouterr()

    assert case.prepare_it() == first
    assert (first / "COMPLETE").stat().st_mtime_ns == made
    event = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert (event["event"], event["reused"], event["examples"]) == ("prepare", True, 4)
    assert "exists already" in event["message"]


def test_whatever_changes_the_bytes_changes_the_id(case, monkeypatch):
    def name() -> str:
        configuration = case.config()
        return planning.plan_job(configuration, configuration.silo("bank")).id

    case.write("data.csv", GOOD)
    names = {name(), name()}
    for change in ({"max_length": 16}, {"max_examples_per_client": 1}, {"shards": 2}, {"splits": {"train": 1.0}}):
        case.prepare = change
        names.add(name())
    case.prepare, case.labels = {}, ["lost", "help", "bye"]
    names.add(name())
    monkeypatch.setattr("builders.prepare_helpers.VOCABULARY", [*VOCABULARY, "more"])  # another tokenizer
    names.add(name())
    case.workdir, case.seed = "other", 8  # another key: other clients, other splits
    names.add(name())
    case.write("data.csv", GOOD + "lost,lost,anna\n")
    names.add(name())
    assert len(names) == 9

    case.prepare = {"max_reject_share": 0.01}  # decides whether there is a snapshot, not what is in it
    assert name() in names


def test_a_damaged_snapshot_is_not_taken_for_a_finished_one(case):
    case.write("data.csv", GOOD)
    snapshot = case.prepare_it()
    (snapshot / "train.index.npy").write_bytes(b"other")

    with pytest.raises(ArtifactError, match=r"train\.index\.npy: has changed since it was written"):
        case.prepare_it()


def test_killed_in_the_middle_and_started_again(case):
    """The child stops before its last step, with the shards written, and is killed there; the next run makes what a first one would."""
    case.write("data.csv", many(20))
    case.config()
    script = (
        "import os, signal, sys\n"
        "from beam_jobs import prepare_silo, publishing\n"
        "publishing._write_split = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "prepare_silo.main(['--config', sys.argv[1]])\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script, str(case.folder / "config.toml")],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert list(case.silo_folder.glob(".preparing-*"))
    assert list((case.silo_folder / "snapshots").glob(".staging-*"))
    assert not (case.silo_folder / "snapshot.json").exists()

    snapshot = case.prepare_it()
    case.workdir = "other"

    assert data_bytes(snapshot) == data_bytes(case.prepare_it())
    case.workdir = "work"
    assert not list(case.silo_folder.glob(".preparing-*"))
    assert [path.name for path in (case.silo_folder / "snapshots").iterdir()] == [snapshot.name]


def test_a_second_prepare_of_the_same_silo_is_refused_while_one_runs(case, monkeypatch):
    case.write("data.csv", GOOD)
    refused = []

    def run_meanwhile(*_):
        with pytest.raises(PipelineError) as raised:
            case.prepare_it()
        refused.append(str(raised.value))
        raise InputError("stop here")

    monkeypatch.setattr(running, "run", run_meanwhile)
    assert refusal(case) == "stop here"
    assert "another prepare of this silo is running" in refused[0]
