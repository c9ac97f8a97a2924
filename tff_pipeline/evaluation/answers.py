"""Asks a trained model about a split of a silo's snapshot: what comes in are snapshots, what goes out are its answers.

An answer belongs to an example, or for token classification to a labelled token. All that metrics need is kept of it, and
no text.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tff_pipeline.artifacts import Workdir
from tff_pipeline.data.records import IGNORED
from tff_pipeline.data.snapshots import Batch, Snapshot, open_snapshot
from tff_pipeline.errors import ArtifactError
from tff_pipeline.progress import Bar

if TYPE_CHECKING:
    from tff_pipeline.training.store import Trained

BATCH_SIZE = 256


@dataclasses.dataclass(frozen=True)
class Answers:
    """What the model said about one silo's split; a row for each example, or for each labelled token.

    Attributes:
      truth, predicted: int64 [n], indices into the model's labels.
      confidence: float32 [n], the probability of `predicted`.
      loss: float32 [n], minus the log of the probability of `truth`.
      groups: int64 [n], indices into the snapshot's groups.
      examples: int64 [n], the position of the example that a row belongs to.
      clients: int64 [n], the client's row in the index.
    """

    truth: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    loss: np.ndarray
    groups: np.ndarray
    examples: np.ndarray
    clients: np.ndarray

    def __len__(self) -> int:
        return len(self.truth)

    def where(self, mask: np.ndarray) -> "Answers":
        """The rows that `mask` selects, or that it lists."""
        return Answers(*(getattr(self, field.name)[mask] for field in dataclasses.fields(self)))

    @classmethod
    def joined(cls, parts: Sequence["Answers"]) -> "Answers":
        """All parts as one; examples and clients are renumbered so that those of different parts stay different."""
        columns: dict[str, list[np.ndarray]] = {field.name: [] for field in dataclasses.fields(cls)}
        offsets = dict.fromkeys(("examples", "clients"), 0)
        for part in parts:
            for name, column in columns.items():
                column.append(getattr(part, name) + offsets.get(name, 0))
            for name in offsets:
                offsets[name] += int(getattr(part, name).max(initial=-1)) + 1
        return cls(*(np.concatenate(column) if column else np.zeros(0, np.int64) for column in columns.values()))


class LabelledRows(NamedTuple):
    """What the model said about a batch.

    Attributes:
      batch: the examples, padded to the longest among them.
      rows: int64 [n], the row of the batch that each label belongs to: its example.
      truth: int64 [n], the labels, one for each example or for each labelled token.
      log_probabilities: float32 [n, C].
    """

    batch: Batch
    rows: np.ndarray
    truth: np.ndarray
    log_probabilities: np.ndarray


def run_snapshots(run: Path, facts: dict[str, Any]) -> list[Snapshot]:
    """The snapshots that a run was trained on: where they were then, or in the work directory that the run lies in now.

    Args:
      run: the run's folder.
      facts: what its run.json says.

    Raises:
      ArtifactError: if one of them is missing or damaged, or another snapshot lies in its place.
    """
    return [_run_snapshot(run, silo, snapshot) for silo, snapshot in facts["snapshots"].items()]


def _run_snapshot(run: Path, silo: str, facts: dict[str, Any]) -> Snapshot:
    path = Path(facts["path"])
    if not path.exists():
        path = Workdir.of_run(run).snapshots(silo) / facts["id"]
    snapshot = open_snapshot(path)
    if snapshot.id != facts["id"]:
        raise ArtifactError(
            f"{path}: is snapshot {snapshot.id} of silo {silo}; the run was trained on {facts['id']}. Restore it, or train again."
        )
    return snapshot


def ask(trained: "Trained", snapshot: Snapshot, split: str, bar: Bar) -> Answers:
    """The model's answers to a silo's split, in the order of the index."""
    parts = [_no_answers()]
    for batch, rows, truth, log_probabilities in labelled_rows(trained, snapshot, split, bar):
        predicted = log_probabilities.argmax(axis=-1)
        every_row = np.arange(len(truth))
        parts.append(
            Answers(
                truth=truth,
                predicted=predicted,
                confidence=np.exp(log_probabilities[every_row, predicted]),
                loss=-log_probabilities[every_row, truth],
                groups=batch.groups[rows],
                examples=batch.positions[rows],
                clients=batch.clients[rows],
            )
        )
    # Not `joined`: batches already share the numbers of examples and clients.
    answers = Answers(
        *(np.concatenate([getattr(part, field.name) for part in parts]) for field in dataclasses.fields(Answers))
    )
    # The sort is stable, so that the tokens of an example stay in their order.
    return answers.where(np.argsort(answers.examples, kind="stable"))


def labelled_rows(trained: "Trained", snapshot: Snapshot, split: str, bar: Bar) -> Iterator[LabelledRows]:
    """Asks the model about a silo's split in batches, whose examples are not in the order of the index."""
    import tensorflow as tf

    network = trained.network
    # One trace for all shapes: a batch is as wide as its longest text, so shapes are many. Without AutoGraph, which has
    # nothing to rewrite here and spends five to ten seconds on reading transformers' source.
    log_probabilities_of = tf.function(
        lambda tokens: tf.nn.log_softmax(network(tokens)),
        input_signature=[tf.TensorSpec([None, None], tf.int32)],
        autograph=False,
        jit_compile=False,
    )
    label_map = snapshot.label_map(trained.labels)
    for batch in snapshot.examples(split, label_map, pad_id=trained.tokenizer.pad_id, batch_size=BATCH_SIZE):
        log_probabilities = log_probabilities_of(tf.constant(batch.tokens)).numpy()
        rows = np.arange(len(batch.tokens))
        if batch.labels.ndim == 2:
            rows, columns = np.nonzero(batch.labels != IGNORED)
            log_probabilities, truth = log_probabilities[rows, columns], batch.labels[rows, columns]
        else:
            truth = batch.labels
        yield LabelledRows(batch, rows, truth, log_probabilities)
        bar.advance(len(batch.tokens))


def _no_answers() -> Answers:
    no_index, no_number = np.zeros(0, np.int64), np.zeros(0, np.float32)
    return Answers(no_index, no_index, no_number, no_number, no_index, no_index, no_index)
