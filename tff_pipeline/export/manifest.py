"""What a version says of itself, from its run: name, weights, signatures, guarantee, evaluation and origin.

A version goes where the model goes. So no silo is named in it, and no text, path or seed is in it.
"""

import csv
import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tff_pipeline import __version__
from tff_pipeline.artifacts import fingerprint, read_json, read_manifest
from tff_pipeline.data.tokenization import checkpoint_identity
from tff_pipeline.errors import ArtifactError, ExportError
from tff_pipeline.evaluation.evaluate import evaluation_file
from tff_pipeline.export.signatures import signatures
from tff_pipeline.training.store import config_of

if TYPE_CHECKING:
    from tff_pipeline.config import Config, ExportSection
    from tff_pipeline.training.store import Trained

_SUMMARY = (
    "examples",
    "clients",
    "accuracy",
    "accuracy_interval",
    "macro_f1",
    "entity_f1",
    "majority_accuracy",
    "loss",
    "calibration_error",
)
_TRAINING = (
    "rounds",
    "clients_per_round",
    "local_epochs",
    "batch_size",
    "algorithm",
    "weighting",
    "client_optimizer",
    "client_learning_rate",
    "server_optimizer",
    "server_learning_rate",
    "server_momentum",
)


def describe(
    run: Path, trained: "Trained", version: int, settings: "ExportSection", evaluation: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The manifest of a version, but for what building and verifying it shows.

    Args:
      run, trained: the run's folder, and its model.
      version: the version's number.
      settings: how it is exported.
      evaluation: from `held_out_evaluation`.
    """
    facts, tokenizer, network = trained.facts, trained.tokenizer, trained.network
    guarantee = facts["guarantee"]
    return {
        "kind": "model",
        "name": served_name(run, settings),
        "version": version,
        "run": run.name,
        "rounds": facts["rounds"],
        "weights": _weights_digest(run),
        "task": network.task,
        "labels": list(trained.labels),
        "max_length": tokenizer.max_length,
        "max_tokens": network.transformer.config.max_position_embeddings,
        "tokenizer": {
            "fingerprint": tokenizer.fingerprint,
            "lower_case": tokenizer.lower_case,
            "pad_id": tokenizer.pad_id,
            "cls_id": tokenizer.cls_id,
            "sep_id": tokenizer.sep_id,
        },
        "signatures": signatures(network.task, explain=settings.explain_steps > 0),
        "epsilon": guarantee["epsilon"],
        "delta": guarantee["delta"],
        "mechanism": guarantee["mechanism"],
        "statement": guarantee["statement"],
        "evaluation": _evaluation(evaluation, facts["snapshots"]),
        "data": {"silos": _data(facts["snapshots"], evaluation["silos"] if evaluation is not None else {})},
        "training": _training(config_of(run)),
        "training_metrics": training_metrics(run),
        "code": code(),
        "intended_use": settings.intended_use,
        "warmup_batch_sizes": list(settings.warmup_batch_sizes),
    }


def is_same_export(
    manifest: Mapping[str, Any], run: Path, settings: "ExportSection", evaluation: Mapping[str, Any] | None
) -> bool:
    """Whether a version has this run's weights and evaluation, whenever that was made, and was exported with these settings."""
    if manifest.get("weights") != _weights_digest(run) or manifest.get("run") != run.name:
        return False
    steps = settings.explain_steps if manifest.get("task") == "sequence_classification" else 0
    # A version of an earlier release does not say its batch sizes.
    batch_sizes = manifest.get("warmup_batch_sizes", list(settings.warmup_batch_sizes))
    return (
        manifest.get("name") == served_name(run, settings)
        and manifest.get("stored_weights", {}).get("kind") == settings.weights
        and (manifest.get("explain") or {}).get("steps") == (steps or None)
        and manifest.get("intended_use") == settings.intended_use
        and batch_sizes == list(settings.warmup_batch_sizes)
        and _is_same_evaluation(manifest.get("evaluation"), evaluation)
    )


def served_name(run: Path, settings: "ExportSection") -> str:
    """The name that a model server serves the model by."""
    return settings.name or config_of(run).pipeline.name


def held_out_evaluation(run: Path) -> dict[str, Any] | None:
    """The run's evaluation on held-out clients, or None where it was not evaluated.

    Raises:
      ExportError: if the file holds that of another split: a version goes where the model goes, and no guarantee covers
        scores on clients that it was trained on.
    """
    file = evaluation_file(run)
    if not file.exists():
        return None
    evaluation = read_json(file)
    if evaluation["split"] != "test":
        raise ExportError(
            f'{file}: holds an evaluation of the split {evaluation["split"]!r}; expected "test", the held-out clients, since a version carries it. '
            "Remove the file and run `tff-pipeline evaluate` again. No version was made."
        )
    return evaluation


def training_metrics(run: Path) -> dict[str, float] | None:
    """Those of the last round, where `privacy.metrics` has them released; otherwise they stay in the run's folder.

    Raises:
      ArtifactError: if the run's metrics are missing or cannot be read.
    """
    kind = config_of(run).privacy.metrics
    if kind == "withheld":
        return None
    try:
        with (run / "rounds.csv").open(newline="", encoding="utf-8") as file:
            last = list(csv.DictReader(file))[-1]
    except (OSError, IndexError) as error:
        raise ArtifactError(
            f"{run / 'rounds.csv'}: the metrics of the last round cannot be read ({type(error).__name__}); expected those of {config_of(run).training.rounds} "
            "rounds, since privacy.metrics has them released. Restore the file from a backup, or train again."
        ) from None
    released = ("loss", "accuracy", "clients") if kind == "released" else ("released_accuracy",)
    return {key: float(last[key]) for key in released if last[key]}


def code() -> dict[str, Any]:
    """Which code exports: the package's version, and where it runs from a checkout of its own, the commit.

    Without git, or installed as a package, `commit` is None.
    """
    package, facts = Path(__file__).parent, {"version": __version__, "commit": None, "changed": None}

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(package), *arguments], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # an installed package may lie in somebody's repository
        return facts | {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return facts


def _weights_digest(run: Path) -> str:
    return read_manifest(run / "trained")["files"]["arrays.npz"]["sha256"]


def _is_same_evaluation(in_version: Mapping[str, Any] | None, of_run: Mapping[str, Any] | None) -> bool:
    if in_version is None or of_run is None:
        return in_version is of_run
    summary = _summary(of_run)
    # They are compared as JSON, so that a number that is NaN equals itself.
    return json.dumps(summary) == json.dumps({key: in_version.get(key) for key in summary})


def _evaluation(evaluation: Mapping[str, Any] | None, snapshots: Mapping[str, Any]) -> dict[str, Any] | None:
    if evaluation is None:
        return None
    identities = sorted(snapshot["id"] for snapshot in snapshots.values())
    return {
        **_summary(evaluation),
        "created": evaluation["created"],
        # It tells whether two versions were asked about the same examples.
        "data": fingerprint([evaluation["split"], identities]),
    }


def _summary(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """What a version says of an evaluation's results. Which silo is the worst stays with the run."""
    by_silo, by_group = (
        [part["accuracy"] for part in evaluation[kind].values() if part.get("accuracy") is not None]
        for kind in ("silos", "groups")
    )
    return {
        "split": evaluation["split"],
        **{key: evaluation["overall"].get(key) for key in _SUMMARY},
        "over_silos": _spread(by_silo),
        "over_groups": _spread(by_group),
        "worst_silo_accuracy": min(by_silo, default=None),
    }


def _spread(accuracies: Sequence[float]) -> dict[str, Any] | None:
    """Over silos or groups, without saying which is which."""
    if not accuracies:
        return None
    return {
        "count": len(accuracies),
        "least": min(accuracies),
        "median": float(np.median(accuracies)),
        "most": max(accuracies),
    }


def _data(snapshots: Mapping[str, Any], held_out: Mapping[str, Any]) -> list[dict[str, int | None]]:
    """Counts by silo, the largest first, so that their order does not follow their names'."""
    counts = [
        {
            "clients": snapshot.get("clients"),
            "examples": snapshot.get("examples"),
            "held_out_clients": held_out.get(silo, {}).get("clients"),
            "held_out_examples": held_out.get(silo, {}).get("examples"),
        }
        for silo, snapshot in snapshots.items()
    ]
    return sorted(counts, key=lambda silo: [-(count or 0) for count in silo.values()])


def _training(config: "Config") -> dict[str, Any]:
    """What a reader needs to make it again. No path, no seed: who knows the seed of a seeded run can subtract its noise."""
    checkpoint = config.model.checkpoint
    if Path(checkpoint).is_absolute():
        checkpoint = (
            f"a folder with weights {checkpoint_identity(checkpoint)}" if Path(checkpoint).is_dir() else "a folder"
        )
    return {
        "checkpoint": checkpoint,
        "trainable": config.model.trainable,
        **{name: getattr(config.training, name) for name in _TRAINING},
    }
