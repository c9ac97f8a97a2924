"""The command: its options, what it prints and reports, and how it fails."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from builders import ROOT
from builders.prepare_helpers import GOOD

from beam_jobs import prepare_silo, running, transforms
from tff_pipeline.errors import ConfigError, PipelineError
from tff_pipeline.progress import Progress


def test_main_prints_summaries(case, capsys):
    case.write("data.csv", GOOD + ",x,dora\n")
    case.config()

    assert (
        prepare_silo.main(
            [
                "--config",
                str(case.folder / "config.toml"),
                "--set",
                "prepare.max_reject_share=0.5",
                "--silo",
                "bank",
                "--json",
                "--",
                "--direct_num_workers=1",
            ]
        )
        == 0
    )

    (summary,) = json.loads(capsys.readouterr().out)
    assert (summary["silo"], summary["rows"], summary["accepted"], summary["rejects"]) == (
        "bank",
        5,
        4,
        {"empty text": 1},
    )
    assert Path(summary["path"]).is_dir()


def test_as_a_program_it_fails_in_one_sentence(case):
    case.config()

    run = subprocess.run(
        [sys.executable, "-m", "beam_jobs.prepare_silo", "--config", str(case.folder / "config.toml")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.returncode == 3
    assert run.stderr.splitlines() == [
        f"tff-pipeline prepare: {case.folder / 'data.csv'}: no file matches the input of silo 'bank'; expected at least one. Check the path; a relative one starts at the configuration file's folder."
    ]


def test_rows_so_far_are_reported_while_workers_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(running, "PROGRESS_EVERY_S", 0.001)
    seen = threading.Event()

    class Watched(Progress):
        def event(self, event, message="", /, **fields):
            super().event(event, message, **fields)
            seen.set()

    (tmp_path / f"a{transforms.RUNNING}").write_text("2048")
    (tmp_path / f"b{transforms.RUNNING}").write_text("100")
    with running.progress_of_rows(tmp_path, "bank", Watched(interactive=False)):
        assert seen.wait(timeout=30)

    event = json.loads(capsys.readouterr().err.splitlines()[0])
    assert (event["event"], event["silo"], event["rows"]) == ("prepare_running", "bank", 2148)


def test_beam_options_that_mean_nothing(case):
    case.write("data.csv", GOOD)

    with pytest.raises(
        ConfigError,
        match="'--direct_num_workers=some' cannot be read: argument --direct_num_workers: invalid int value",
    ):
        case.prepare_it("--direct_num_workers=some")
    with pytest.raises(ConfigError, match="unrecognized arguments: --direct_number_workers=2"):
        case.prepare_it("--direct_number_workers=2")
    with pytest.raises(PipelineError, match="the Beam runner Walker failed"):
        case.prepare_it("--runner=Walker")


def test_prism_is_never_started(case, monkeypatch):
    from apache_beam.runners.portability import prism_runner

    monkeypatch.setattr(prism_runner, "PrismRunner", lambda *_: pytest.fail("Prism was started"))
    case.write("data.csv", GOOD)

    assert case.prepare_it("--runner=DirectRunner")
