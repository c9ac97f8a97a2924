"""Evaluates a trained model on clients that it was not trained on.

What comes in is a finished run and the snapshots it was trained on; what goes out is `evaluation.json` in the run.
metrics.py defines the numbers.
"""

from pathlib import Path
from typing import Any

from tff_pipeline.artifacts import now, write_json
from tff_pipeline.data.snapshots import check_compatible
from tff_pipeline.errors import ArtifactError
from tff_pipeline.evaluation.answers import ask, run_snapshots
from tff_pipeline.evaluation.metrics import summarise
from tff_pipeline.progress import Progress

ON_TRAINING_CLIENTS = (
    "these are scores on clients that the model was trained on: no differential privacy guarantee covers them, they say how much it remembers, and not how good it is. "
    "They are printed and kept in no file; do not pass them on. Scores to release are those of held-out clients (--split test)"
)


def evaluate(run: Path, *, split: str = "test", progress: Progress) -> dict[str, Any]:
    """Asks the run's model about a split of the snapshots it was trained on.

    The result is also written into the run, `evaluation.json` for the split "test" and `evaluation-validation.json` for
    "validation". That of "train" is not written: the guarantee does not cover it, so no file holds it that could be
    released by mistake.

    Returns:
      run, split, task, snapshots, created, overall, silos, groups, labels and confusion, for token classification also
      entities; a part without examples has {"examples": 0} and None for every number. For the split "train" also
      `warning`, the sentence that was reported.

    Raises:
      ArtifactError: if the run is not finished, a snapshot is missing, damaged or does not fit the model, or the result
        cannot be written.
    """
    from tff_pipeline.training.store import config_of, load_trained

    trained = load_trained(run)
    if split == "train":
        progress.event("warning", ON_TRAINING_CLIENTS)
    snapshots = run_snapshots(run, trained.facts)
    check_compatible(snapshots, trained.tokenizer, config_of(run))
    answers = {}
    with progress.bar("evaluate", sum(snapshot.count(split) for snapshot in snapshots)) as bar:
        for snapshot in snapshots:
            answers[snapshot.silo] = ask(trained, snapshot, split, bar)
    groups = {snapshot.silo: snapshot.groups for snapshot in snapshots}
    result: dict[str, Any] = {
        "run": trained.facts["id"],
        "split": split,
        "task": trained.network.task,
        "snapshots": {snapshot.silo: snapshot.id for snapshot in snapshots},
        "created": now(),
        **summarise(answers, groups, trained.labels, trained.network.task),
    }
    if split == "train":
        result["warning"] = ON_TRAINING_CLIENTS
    else:
        _write(evaluation_file(run, split), result)
    overall = result["overall"]
    # Standard error is often kept: scores on training clients go to standard output only, to whoever asked for them.
    reported = ("examples", "clients") if split == "train" else ("examples", "clients", "accuracy", "macro_f1")
    progress.event("evaluate", split=split, **{key: overall[key] for key in reported})
    return result


def evaluation_file(run: Path, split: str = "test") -> Path:
    """Where the evaluation on held-out clients is written."""
    return run / ("evaluation.json" if split == "test" else f"evaluation-{split}.json")


def _write(file: Path, result: dict[str, Any]) -> None:
    try:
        write_json(file, result)
    except OSError as error:
        raise ArtifactError(
            f"{file}: the evaluation could not be written ({error.strerror or type(error).__name__}). Check that this account may write to the run's folder, and make room."
        ) from error
