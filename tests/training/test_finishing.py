"""A run that is killed while it finishes: sealed first, its keys removed after, so that nothing is drawn or charged again."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import BuiltinFunctionType
from typing import Any

import numpy as np
import pytest
from builders.tiny import PRIVATE, ROWS, prepared, quiet, trained_weights

from tff_pipeline.artifacts import Workdir, is_complete, read_json, read_manifest
from tff_pipeline.config import Config, load
from tff_pipeline.training import run as training
from tff_pipeline.training import secrets

SETTINGS = (*PRIVATE, "model.trainable=lora", "model.lora_rank=2")
KILLED = 77


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def all_but_finished(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run with adapters, which has frozen weights beside its keys, stopped where it begins to finish. Its budget is used up."""
    folder = tmp_path_factory.mktemp("tiny")
    config = prepared(folder, ROWS, changes=[*SETTINGS, "pipeline.seed="])

    def stop(*_: object) -> None:
        raise Stopped

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training, "finish", stop)
        with pytest.raises(Stopped):
            training.train(config, progress=quiet())
    return config


def copied(config: Config, folder: Path) -> Config:
    source = Path(config.path).parent
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    run = next((folder / "workdir" / "runs").glob("*/run.json"))
    spent = read_json(run)["guarantee"]["epsilon"]
    return load(folder / "config.toml", [*SETTINGS, "pipeline.seed=", f"privacy.budget_epsilon={spent * 1.0001}"])


def state_of(config: Config) -> tuple[bytes, list[np.ndarray]]:
    """What must not change: the ledger, and the trained weights."""
    return Workdir(config.workdir).ledger("tiny").read_bytes(), trained_weights(training.job(config).folder)


# What changes files. Between two of them it does not matter when a kill comes.
CHANGES = ("write", "fsync", "replace", "rename", "unlink", "rmdir", "mkdir", "open", "chmod", "fchmod", "close")


def system_calls() -> Iterator[Any]:
    """Profile functions; the nth ends the process before its nth call that changes a file."""
    for last in range(10_000):

        def profile(frame: Any, event: str, function: Any, last: int = last, seen: list[int] = [0]) -> None:  # noqa: B006
            if event != "c_call" or not isinstance(function, BuiltinFunctionType) or function.__name__ not in CHANGES:
                return
            if function.__module__ == "posix" or function.__name__ == "write":
                if seen[0] == last:
                    os._exit(KILLED)
                seen[0] += 1

        yield profile


def finished_in_a_child(config: Config, profile: Any) -> int:
    """Finishes the run in a forked process, which `profile` may kill; its exit status."""
    work = training.job(config)
    facts = read_json(work.folder / "run.json")
    child = os.fork()
    if child == 0:
        try:
            sys.setprofile(profile)
            training.finish(work, facts, quiet())
            sys.setprofile(None)
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_killed_before_any_system_call_of_finishing_it_is_finished_by_the_next_call(all_but_finished, tmp_path):
    sealed_with_keys, kills = 0, 0
    before = state_of(copied(all_but_finished, tmp_path / "killed"))
    for profile in system_calls():
        config = copied(all_but_finished, tmp_path / "killed")
        status = finished_in_a_child(config, profile)
        assert status in (0, KILLED)
        run = training.job(config).folder
        sealed_with_keys += is_complete(run) and bool(secrets.unfinished_files(Workdir(config.workdir), run.name))

        assert training.train(config, progress=quiet()) == run

        assert is_complete(run)
        read_manifest(run, check_files=True)
        ledger, weights = state_of(config)
        assert ledger == before[0]
        for one, other in zip(weights, before[1], strict=True):
            np.testing.assert_array_equal(one, other)
        assert not list(Path(config.workdir).rglob("sampling-*"))
        assert not (run / "keys").exists()
        assert not (run / "frozen").exists()
        if status == 0:
            break
        kills += 1
    print(f"killed {kills} times")
    assert kills > 50
    assert sealed_with_keys > 3


def test_a_sealed_run_lists_neither_keys_nor_what_was_computed_for_it_alone(all_but_finished, tmp_path):
    config = copied(all_but_finished, tmp_path / "sealed")
    run = training.train(config, progress=quiet())
    names = read_manifest(run)["files"]
    assert not [name for name in names if name.startswith(("keys", "frozen"))]
    assert "trained/arrays.npz" in names
    assert "run.json" in names


# -- runs that are given up


def test_abandoned_runs_lose_their_keys_and_keep_their_charges(all_but_finished, tmp_path, capsys):
    from tff_pipeline.cli import main

    config = copied(all_but_finished, tmp_path / "abandoned")
    arguments = ["abandon", "--config", config.path]
    for change in (*SETTINGS, "pipeline.seed="):
        arguments += ["--set", change]
    run = training.job(config).folder
    before = state_of(config)

    assert main(arguments) == 0
    assert capsys.readouterr().out.split() == [run.name]
    assert (run / "keys" / "noise.key").exists()
    assert main([*arguments, "--run", "0123456789abcdef"]) == 2
    assert main([*arguments, "--run", run.name]) == 0
    assert "removed" in capsys.readouterr().out

    assert (
        not list(Path(config.workdir).rglob("*.key"))
        or [path.name for path in Path(config.workdir).rglob("*.key")] == ["clients.key"] * 2
    )
    assert Workdir(config.workdir).ledger("tiny").read_bytes() == before[0]
    assert main(arguments) == 0
    assert "no unfinished run" in capsys.readouterr().out


def test_a_run_whose_folder_is_gone_still_has_keys_to_abandon(all_but_finished, tmp_path):
    config = copied(all_but_finished, tmp_path / "gone")
    run = training.job(config).folder
    shutil.rmtree(run)
    assert secrets.unfinished(Workdir(config.workdir)) == [run.name]
    removed = secrets.abandon(config, [run.name])[run.name]
    assert len([path for path in removed if "sampling-" in path]) == 2
    assert secrets.unfinished(Workdir(config.workdir)) == []
