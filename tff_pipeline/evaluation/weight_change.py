"""Measures what a change of a trained model's weights does to its answers to held-out clients."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from tff_pipeline.data.snapshots import Snapshot
from tff_pipeline.evaluation.answers import labelled_rows, run_snapshots
from tff_pipeline.progress import Progress

if TYPE_CHECKING:
    from tff_pipeline.training.store import Trained


class WeightChange(TypedDict):
    """Accuracy before and after the change and their difference, the fraction of examples (or labelled tokens) whose label
    changed, and the largest change of any label's probability."""

    split: str
    examples: int
    accuracy_as_float32: float
    accuracy: float
    accuracy_difference: float
    changed_labels: float
    largest_probability_change: float


def measure_weight_change(
    run: Path, trained: "Trained", change: Callable[[], None], *, split: str = "test", progress: Progress
) -> WeightChange | None:
    """Asks the model about a split of the run's snapshots, calls `change`, which alters its weights, and asks again.

    Returns:
      None where the split has no examples; the weights may then be unchanged.

    Raises:
      ArtifactError: as `evaluate` does.
    """
    snapshots = run_snapshots(run, trained.facts)
    before, truth = _probabilities(trained, snapshots, split, progress)
    if not len(truth):
        return None
    change()
    after, _ = _probabilities(trained, snapshots, split, progress)
    accuracy_before, accuracy_after = (
        float((probabilities.argmax(axis=1) == truth).mean()) for probabilities in (before, after)
    )
    return {
        "split": split,
        "examples": len(truth),
        "accuracy_as_float32": accuracy_before,
        "accuracy": accuracy_after,
        "accuracy_difference": accuracy_after - accuracy_before,
        "changed_labels": float((before.argmax(axis=1) != after.argmax(axis=1)).mean()),
        "largest_probability_change": float(np.abs(after - before).max()),
    }


def _probabilities(
    trained: "Trained", snapshots: list[Snapshot], split: str, progress: Progress
) -> tuple[np.ndarray, np.ndarray]:
    """Of every example or labelled token: the labels' probabilities, float32 [n, C], and its label, int64 [n]."""
    probabilities = [np.zeros((0, len(trained.labels)), np.float32)]
    truths = [np.zeros(0, np.int64)]
    with progress.bar("compare", sum(snapshot.count(split) for snapshot in snapshots)) as bar:
        for snapshot in snapshots:
            for _, _, truth, log_probabilities in labelled_rows(trained, snapshot, split, bar):
                probabilities.append(np.exp(log_probabilities))
                truths.append(truth)
    return np.concatenate(probabilities), np.concatenate(truths)
