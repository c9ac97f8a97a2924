"""The whole pipeline in processes of its own: killed with SIGKILL at the borders of stages and inside rounds, and resumed.

What it is compared with runs in a process that starts Python; the others are forked from one that has imported everything.
"""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import environment
from builders.warm_pipeline import WarmPipeline

TEXTS = {
    "bank": {
        "card": ["lost my card", "block the card please", "card gone"],
        "money": ["send money", "transfer the money", "money to a friend"],
    },
    "shop": {
        "parcel": ["where is my parcel", "parcel late", "no parcel yet"],
        "money": ["money back please", "refund the money", "my money"],
    },
}
VOCABULARY = sorted(
    {word for labels in TEXTS.values() for texts in labels.values() for text in texts for word in text.split()}
)
ROUNDS = 6


def write_inputs(folder: Path) -> Path:
    """Two silos, forty clients each with one to four messages, and a configuration that trains a head on a random BERT."""
    random = np.random.default_rng(5)
    for silo, labels in TEXTS.items():
        rows = ["customer,text,label"]
        for client in range(40):
            for _ in range(random.integers(1, 5)):
                label = str(random.choice(sorted(labels)))
                rows.append(f"{silo}-{client},{random.choice(labels[label])},{label}")
        (folder / f"{silo}.csv").write_text("\n".join(rows) + "\n")
    letters = [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *VOCABULARY, *letters]) + "\n")
    silos = "".join(
        f'[[silos]]\nname = "{silo}"\ninput = "{silo}.csv"\nformat = "csv"\nclient = "customer"\n' for silo in TEXTS
    )
    config = folder / "config.toml"
    config.write_text(
        f"""
        [pipeline]
        name = "tiny"
        seed = 11
        [prepare]
        max_length = 16
        splits = {{train = 0.7, validation = 0.0, test = 0.3}}
        [model]
        checkpoint = "random"
        vocabulary = "vocab.txt"
        hidden_size = 16
        intermediate_size = 32
        [training]
        rounds = {ROUNDS}
        clients_per_round = 20
        keep_states = 2
        [privacy]
        mechanism = "gaussian"
        clip_norm = 0.5
        noise_multiplier = 0.5
        delta = 1e-3
        [export]
        examples = ["lost my card"]
        explain_steps = 2
        """
        + silos
    )
    return config


def arguments(config: Path, *more: str) -> list[str]:
    return ["run", "--config", str(config), "--json", *more]


def started_anew(config: Path, *more: str, timeout_s: float = 300.0) -> tuple[int, str, str]:
    """Runs a process that starts Python: its exit code, standard output and standard error."""
    command = [sys.executable, "-m", "tff_pipeline", *arguments(config, *more)]
    process = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=timeout_s, check=False)
    return process.returncode, process.stdout, process.stderr


def finish(warm: WarmPipeline, config: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Runs to the end; what it printed, and its events."""
    process = warm.start(*arguments(config))
    err = process.stderr.read()
    out = process.stdout.read()
    assert process.wait() == 0, err[-3000:]
    return json.loads(out), [json.loads(line) for line in err.splitlines()]


def kill_at(
    warm: WarmPipeline, config: Path, reached: Callable[[dict[str, Any]], bool], *, later_s: float = 0.0
) -> dict[str, Any]:
    """Starts the pipeline and kills it, with SIGKILL, `later_s` after an event; returns that event."""
    process = warm.start(*arguments(config))
    try:
        for line in process.stderr:
            event = json.loads(line)
            if reached(event):
                time.sleep(later_s)
                process.kill()
                assert process.wait() == -signal.SIGKILL
                return event
        raise AssertionError(f"the pipeline ended with {process.wait()} before it was to be killed")
    finally:
        process.kill()
        process.wait()


def weights(result: dict[str, Any]) -> list[np.ndarray]:
    with np.load(Path(result["paths"]["run"]) / "trained" / "arrays.npz") as stored:
        return [stored[name] for name in sorted(stored.files)]


def charges(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The ledger without what a second run cannot share: times, and the hashes of lines that hold them."""
    lines = [json.loads(line) for line in Path(result["paths"]["ledger"]).read_text().splitlines()]
    for line in lines:
        line["silos"] = {silo: position["lines"] for silo, position in line["silos"].items()}
    return [{key: value for key, value in line.items() if key not in ("time", "previous", "hash")} for line in lines]


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmPipeline]:
    with WarmPipeline(tmp_path_factory.mktemp("warm") / "log") as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    config = write_inputs(tmp_path_factory.mktemp("whole"))
    code, out, err = started_anew(config)
    assert code == 0, err[-3000:]
    return {"config": config, "events": [json.loads(line) for line in err.splitlines()], **json.loads(out)}


def test_a_pipeline_killed_again_and_again_ends_as_one_that_was_not(uninterrupted, warm, tmp_path):
    config = write_inputs(tmp_path)

    kill_at(warm, config, lambda event: event["event"] == "prepare" and event["silo"] == "bank")
    kill_at(warm, config, lambda event: event["event"] == "compile")
    kill_at(warm, config, lambda event: event["event"] == "train" and event.get("round") == 2, later_s=0.02)
    inside = kill_at(warm, config, lambda event: event["event"] == "train" and event.get("round", 0) >= 3)
    kill_at(warm, config, lambda event: event["event"] == "export")
    result, events = finish(warm, config)

    assert inside["round"] < ROUNDS
    for one, other in zip(weights(result), weights(uninterrupted), strict=True):
        np.testing.assert_array_equal(one, other)
    assert charges(result) == charges(uninterrupted)
    assert [charge["round"] for charge in charges(result)] == list(range(1, ROUNDS + 1))
    assert result["evaluation"] == uninterrupted["evaluation"]
    assert result["answers"][0]["score"] == pytest.approx(uninterrupted["answers"][0]["score"], abs=1e-6)

    # What was finished was not done again.
    assert all(event["reused"] for event in events if event["event"] == "prepare")
    assert [event.get("finished_before") for event in events if event["event"] == "train"] == [True]
    # And nothing half-made is left.
    left = [str(path) for path in tmp_path.rglob("*") if re.search(r"/\.(staging|preparing)", str(path))]
    assert left == []
    model = Path(result["paths"]["model"])
    assert [path.name for path in model.parent.iterdir() if path.name.isdigit()] == [model.name]


def test_secrets_go_with_the_run(uninterrupted):
    workdir = uninterrupted["config"].parent / "workdir"
    keys = sorted(path.name for path in workdir.rglob("*.key"))
    assert keys == ["clients.key", "clients.key"]
    assert not list(workdir.rglob("features.npy"))


def test_a_finished_pipeline_does_nothing_more(uninterrupted, warm):
    again, events = finish(warm, uninterrupted["config"])
    assert {**again} == {key: uninterrupted[key] for key in again}
    assert not [event for event in events if event["event"] in ("compile", "encode", "evaluate")]


def test_no_silo_text_in_events_or_beside_the_records(uninterrupted):
    """A word that is in the data and nowhere else is in no event, manifest, metric or ledger."""
    said = json.dumps(uninterrupted["events"])
    assert "friend" not in said
    workdir = uninterrupted["config"].parent / "workdir"
    for path in workdir.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".csv") and path.is_file():
            assert "friend" not in path.read_text(), path


def test_rounds_are_reported_and_kept(uninterrupted):
    rounds = [event for event in uninterrupted["events"] if event["event"] == "train" and "round" in event]
    assert [event["round"] for event in rounds] == list(range(1, ROUNDS + 1))
    assert {"loss", "accuracy", "clients", "epsilon", "seconds", "left_s"} <= set(rounds[-1])
    run = Path(uninterrupted["paths"]["run"])
    assert len((run / "rounds.csv").read_text().splitlines()) == ROUNDS + 1
    assert [path.name for path in sorted((run / "states").iterdir())] == ["round-00005", "round-00006"]
    assert list((run / "tensorboard").iterdir())


def test_a_mistake_is_one_clear_line_and_an_exit_code(uninterrupted):
    code, _, err = started_anew(uninterrupted["config"], "--set", "training.clients_per_rund=5", timeout_s=60)
    (event,) = [json.loads(line) for line in err.splitlines()]
    assert code == event["exit_code"] == 2
    assert "no key `clients_per_rund` in [training]. Did you mean `clients_per_round`?" in event["message"]
