"""Who has the metrics of a private run: the operator and whoever reads its log, and no exported version."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from builders.tiny import Row, prepared

from tff_pipeline.artifacts import read_manifest
from tff_pipeline.config import Config, load
from tff_pipeline.progress import Progress

SHARES = "distributed_discrete_gaussian"
BANK: list[Row] = [("a", "lost my card", "card"), ("a", "send money", "money"), ("b", "send money", "money")]
SHOP: list[Row] = [("c", "where is my parcel", "parcel"), ("d", "money to anna", "money"), ("d", "my card", "card")]
GAUSSIAN = (
    "privacy.mechanism=gaussian", "privacy.clip_norm=1.0", "privacy.noise_multiplier=1.0", "privacy.delta=1e-3",
    "training.clients_per_round=3", "training.rounds=3",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path, list[dict[str, Any]]]:
    """A run with withheld metrics, and its events as a scheduler's log has them."""
    from tff_pipeline.training.run import train

    held_out = {"bank": [("e", "lost my card", "card"), ("f", "send money", "money")]}
    folder = tmp_path_factory.mktemp("trained")
    config = prepared(folder, {"bank": BANK, "shop": SHOP}, held_out=held_out, changes=GAUSSIAN)
    log = io.StringIO()
    run = train(config, progress=Progress(log, interactive=False))
    return config, run, [json.loads(line) for line in log.getvalue().splitlines()]


def test_the_operator_has_exact_metrics_and_whoever_reads_the_log(trained):
    _, run, events = trained
    rounds = list(csv.DictReader((run / "rounds.csv").open()))
    logged = [event for event in events if event["event"] == "train" and "round" in event]
    kept = json.loads((sorted((run / "states").iterdir())[-1] / "manifest.json").read_text())["history"]

    assert len(rounds) == len(logged) == len(kept) == 3
    for name in ("loss", "accuracy", "clients"):
        written = [float(each[name]) for each in rounds if each[name]]
        assert written == [float(each[name]) for each in logged if name in each]
        assert written == [float(each[name]) for each in kept if each[name] is not None]
        assert written
    assert list((run / "tensorboard").iterdir())


def test_what_is_withheld_is_in_no_exported_file(trained):
    """Nor what `evaluate --split train` printed: neither the numbers, nor a name of one of them, in any file of a version."""
    from tff_pipeline.evaluation.evaluate import evaluate
    from tff_pipeline.export.build import export

    config, run, _ = trained
    quiet = Progress(io.StringIO(), interactive=False)
    on_training = evaluate(run, split="train", progress=quiet)
    evaluate(run, progress=quiet)
    version = export(run, config.workdir / "models" / "tiny", progress=quiet)

    manifest = read_manifest(version, check_files=True)
    assert manifest["training_metrics"] is None
    assert manifest["evaluation"]["split"] == "test"
    released = b"".join(path.read_bytes() for path in version.rglob("*") if path.is_file())
    rounds = list(csv.DictReader((run / "rounds.csv").open()))
    exact = [each["loss"] for each in rounds if each["loss"]] + [repr(on_training["overall"]["loss"])]
    assert all(len(number) > 6 for number in exact), "long enough not to be there by chance"
    assert not [number for number in exact if number.encode() in released]
    for name in ("finite_clients", "client_accuracy", "released_accuracy"):
        assert name.encode() not in released


def test_a_configuration_cannot_ask_for_metrics_that_the_mechanism_does_not_have(trained):
    """With noise that the silos add there are none, so none can be released, with noise or without."""
    from tff_pipeline.errors import ConfigError

    config, _, _ = trained
    for metrics in ("released", "noised"):
        with pytest.raises(
            ConfigError,
            match=f'privacy.metrics is .{metrics}.; expected "withheld" with "distributed_discrete_gaussian": there nothing leaves a silo',
        ):
            load(config.path, [*GAUSSIAN, f"privacy.mechanism={SHARES}", f"privacy.metrics={metrics}"])
