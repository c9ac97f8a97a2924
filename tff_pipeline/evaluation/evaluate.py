"""How good a trained model is on clients it was not trained on: overall, by silo, by group and by label.

What comes in is a finished run and the snapshots it was trained on; what goes out is `evaluation.json` in the run and
a table. The numbers, so that nobody has to guess:

* accuracy: the share of examples (for token classification, of labelled tokens) whose most probable label is right;
* macro-F1: the mean of the labels' F1, over the labels that occur in the truth of the part that is described;
* majority accuracy: what answering always with the commonest label of that part would reach;
* loss: the mean cross-entropy in nats; calibration error: |confidence - accuracy| over 15 bins of equal width of the
  confidence, weighted by their examples (Guo et al. 2017, equation 5);
* accuracy interval: Wilson's, 1927, at 95 %, over as many independent examples as the clients' differences leave: texts of
  one client are alike, so that p (1 - p) / n_effective is the variance of accuracy between clients (Kish 1965);
* entities (token classification): exact match of span and type. A span begins at B-X and goes on with I-X; an I-X that
  continues nothing is no entity (strict IOB2). What `prepare` cut off a long sentence counts on neither side.
"""

import argparse
import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tff_pipeline import config as configuration
from tff_pipeline.artifacts import Workdir, now, read_json, write_json
from tff_pipeline.config import SPLITS, Config
from tff_pipeline.data.records import IGNORED
from tff_pipeline.data.snapshots import Snapshot, check_compatible, open_snapshot
from tff_pipeline.errors import ArtifactError
from tff_pipeline.progress import Progress

if TYPE_CHECKING:
    from tff_pipeline.training.store import Trained

BATCH_SIZE = 256
CALIBRATION_BINS = 15
ON_TRAINING_CLIENTS = (
    "these are scores on clients that the model was trained on: no differential privacy guarantee covers them, they say how much it remembers, and not how good it is. "
    "They are printed and kept in no file; do not pass them on. Scores to release are those of held-out clients (--split test)"
)
_Z_95 = 1.959964  # of the normal distribution, for two-sided 95 %
_LARGEST_PRINTED_CONFUSION = 12
_CONFUSIONS_PRINTED = 8


@dataclasses.dataclass(frozen=True)
class Answers:
    """What the model said about one silo's split; a row an example, or a labelled token.

    Attributes:
      truth, predicted: int64 [n], indices into the model's labels.
      confidence: float32 [n], the probability of `predicted`.
      loss: float32 [n], minus the log of the probability of `truth`.
      groups: int64 [n], indices into the snapshot's groups.
      examples: int64 [n], the position of the example a row belongs to.
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


def evaluate(run: Path, *, split: str = "test", progress: Progress) -> dict[str, Any]:
    """Asks the run's model about a split of the snapshots it was trained on.

    The result is also written into the run, `evaluation.json` for the split "test" and `evaluation-validation.json` for
    "validation". That of "train" is not: the guarantee does not cover it, so that it lies nowhere from where it could be
    released by mistake.

    Returns:
      run, split, snapshots, overall, silos, groups, labels and confusion; a part without examples has
      {"examples": 0} and None for every number. For the split "train" also `warning`, the sentence that was said.

    Raises:
      ArtifactError: if the run is not finished, or a snapshot is missing, damaged or does not fit the model.
    """
    from tff_pipeline.training.store import config_of, load_trained

    trained = load_trained(run)
    if split == "train":
        progress.event("warning", ON_TRAINING_CLIENTS)
    snapshots = [_snapshot(run, silo, facts) for silo, facts in trained.facts["snapshots"].items()]
    check_compatible(snapshots, trained.tokenizer, config_of(run))
    answers = {}
    with progress.bar("evaluate", sum(snapshot.count(split) for snapshot in snapshots)) as bar:
        for snapshot in snapshots:
            answers[snapshot.silo] = _ask(trained, snapshot, split, bar)
    result: dict[str, Any] = {
        "run": trained.facts["id"],
        "split": split,
        "task": trained.network.task,
        "snapshots": {snapshot.silo: snapshot.id for snapshot in snapshots},
        "created": now(),
        **summarise(
            answers, {snapshot.silo: snapshot.groups for snapshot in snapshots}, trained.labels, trained.network.task
        ),
    }
    if split == "train":
        result["warning"] = ON_TRAINING_CLIENTS
    else:
        write_json(evaluation_file(run, split), result)
    overall = result["overall"]
    # Standard error is often kept: scores on training clients are for whoever asked, on standard output.
    told = ("examples", "clients") if split == "train" else ("examples", "clients", "accuracy", "macro_f1")
    progress.event("evaluate", split=split, **{key: overall[key] for key in told})
    return result


def difference(
    run: Path, trained: "Trained", change: Callable[[], None], *, split: str = "test", progress: Progress
) -> dict[str, Any] | None:
    """What `change`, which alters the trained model's weights, does to its answers to a split of the run's snapshots.

    Returns:
      split, examples (or labelled tokens), accuracy before and after and their difference, the share of changed labels, and
      the largest change of any label's probability; None where the split has no examples.

    Raises:
      ArtifactError: as `evaluate` does.
    """
    snapshots = [_snapshot(run, silo, facts) for silo, facts in trained.facts["snapshots"].items()]
    found, truths = [], []
    for number in range(2):
        if number:
            change()
        with progress.bar("compare", sum(snapshot.count(split) for snapshot in snapshots)) as bar:
            parts = [part for snapshot in snapshots for part in _asked(trained, snapshot, split, bar)]
        if not any(len(truth) for *_, truth, _ in parts):
            return None
        found.append(np.exp(np.concatenate([log_probabilities for *_, log_probabilities in parts])))
        truths.append(np.concatenate([truth for *_, truth, _ in parts]))
    (before, after), truth = found, truths[0]
    right = [float((each.argmax(axis=1) == truth).mean()) for each in found]
    return {
        "split": split,
        "examples": len(truth),
        "accuracy_as_float32": right[0],
        "accuracy": right[1],
        "accuracy_difference": right[1] - right[0],
        "changed_labels": float((before.argmax(axis=1) != after.argmax(axis=1)).mean()),
        "largest_probability_change": float(np.abs(after - before).max()),
    }


def evaluation_file(run: Path, split: str = "test") -> Path:
    """Where the evaluation on held-out clients is written."""
    return run / ("evaluation.json" if split == "test" else f"evaluation-{split}.json")


def summarise(
    answers: dict[str, Answers], groups: dict[str, Sequence[str]], labels: Sequence[str], task: str
) -> dict[str, Any]:
    """All numbers of an evaluation, from the answers by silo and the names of each silo's groups."""
    both = Answers.joined(list(answers.values()))
    tags = labels if task == "token_classification" else None
    result: dict[str, Any] = {
        "overall": {**describe(both, tags), "accuracy_interval": accuracy_interval(both)},
        "silos": {silo: describe(part, tags) for silo, part in answers.items()},
        "groups": {name: describe(part, tags) for name, part in _by_group(answers, groups).items()},
        "labels": dict(zip(labels, label_scores(both.truth, both.predicted, len(labels)), strict=True)),
        "confusion": {
            "labels": list(labels),
            "rows": "truth",
            "columns": "predicted",
            "matrix": _confusion(both, len(labels)).tolist(),
        },
    }
    if tags is not None:
        result["entities"] = entity_scores(*_tag_sequences(both, tags))
    return result


def describe(answers: Answers, tags: Sequence[str] | None = None) -> dict[str, Any]:
    """The numbers of one part; `tags` are the labels' names for token classification."""
    counts = {"examples": len(np.unique(answers.examples)), "clients": len(np.unique(answers.clients))}
    names = ["accuracy", "macro_f1", "majority_accuracy", "loss", "calibration_error"]
    if tags is not None:
        counts["tokens"] = len(answers)
        names += ["entity_f1", "entity_macro_f1"]
    if not len(answers):
        return {**counts, **dict.fromkeys(names)}
    right = answers.truth == answers.predicted
    numbers = {
        "accuracy": float(right.mean()),
        "macro_f1": macro_f1(answers.truth, answers.predicted),
        "majority_accuracy": float(np.bincount(answers.truth).max() / len(answers)),
        "loss": float(answers.loss.mean(dtype=np.float64)),
        "calibration_error": calibration_error(answers.confidence, right),
    }
    if tags is not None:
        entities = entity_scores(*_tag_sequences(answers, tags))
        numbers |= {"entity_f1": entities["micro"]["f1"], "entity_macro_f1": entities["macro_f1"]}
    return {**counts, **numbers}


def accuracy_interval(answers: Answers) -> list[float] | None:
    """Where accuracy lies at 95 %, over the choice of clients: [low, high]; None with fewer than two clients."""
    right = (answers.truth == answers.predicted).astype(np.float64)
    _, client = np.unique(answers.clients, return_inverse=True)
    sizes, rights = np.bincount(client).astype(np.float64), np.bincount(client, right)
    clients, total = len(sizes), len(right)
    if clients < 2:
        return None
    share = float(right.mean())
    variance = clients / (clients - 1) * float(np.square(rights - share * sizes).sum()) / total**2
    # Where all clients agree their differences say nothing: each then counts once. Never more than there are examples.
    effective = min(share * (1 - share) / variance, total) if variance > 0 else clients
    scale = 1 + _Z_95**2 / effective
    centre = (share + _Z_95**2 / (2 * effective)) / scale
    half = _Z_95 / scale * float(np.sqrt(share * (1 - share) / effective + (_Z_95 / (2 * effective)) ** 2))
    return [max(centre - half, 0.0), min(centre + half, 1.0)]


def macro_f1(truth: np.ndarray, predicted: np.ndarray) -> float:
    """The mean F1 of the labels that occur in `truth`; a label that is never predicted has 0."""
    scores = label_scores(truth, predicted, int(max(truth.max(), predicted.max())) + 1)
    return float(np.mean([score["f1"] for score in scores if score["support"]]))


def label_scores(truth: np.ndarray, predicted: np.ndarray, labels: int) -> list[dict[str, Any]]:
    """Precision, recall, F1, support and number of predictions of each label; what would divide by 0 is 0."""
    right = np.bincount(truth[truth == predicted], minlength=labels).tolist()
    expected, given = (np.bincount(column, minlength=labels).tolist() for column in (truth, predicted))
    return [_f_scores(*counts) for counts in zip(right, expected, given, strict=True)]


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """The expected calibration error over bins of equal width, (0, 1/15], (1/15, 2/15] and so on."""
    bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
    surplus = np.bincount(bins, confidence.astype(np.float64) - right, minlength=CALIBRATION_BINS)
    return float(np.abs(surplus).sum() / len(confidence))


def entities(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """The entities of one sentence as (first word, word after the last, type), by strict IOB2.

    >>> sorted(entities(["B-PER", "I-PER", "O", "I-LOC", "B-LOC", "I-PER"]))
    [(0, 2, 'PER'), (4, 5, 'LOC')]
    """
    found = set()
    start, kind = 0, ""
    for index, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        if kind and not (prefix == "I" and name == kind):
            found.add((start, index, kind))
            kind = ""
        if prefix == "B" and name:
            start, kind = index, name
    return found


def entity_scores(truth: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Precision, recall and F1 of entities: micro over all, by type, and macro over the types that occur in the truth."""
    right, expected, given = Counter[str](), Counter[str](), Counter[str]()
    for true_tags, predicted_tags in zip(truth, predicted, strict=True):
        true_entities, predicted_entities = entities(true_tags), entities(predicted_tags)
        expected.update(kind for *_, kind in true_entities)
        given.update(kind for *_, kind in predicted_entities)
        right.update(kind for *_, kind in true_entities & predicted_entities)
    types = {kind: _f_scores(right[kind], expected[kind], given[kind]) for kind in sorted(expected | given)}
    in_truth = [types[kind]["f1"] for kind in types if expected[kind]]
    return {
        "micro": _f_scores(right.total(), expected.total(), given.total()),
        "macro_f1": sum(in_truth) / len(in_truth) if in_truth else None,
        "types": types,
    }


def _f_scores(right: int, expected: int, given: int) -> dict[str, Any]:
    return {
        "precision": right / given if given else 0.0,
        "recall": right / expected if expected else 0.0,
        "f1": 2 * right / (expected + given) if expected + given else 0.0,
        "support": expected,
        "predicted": given,
    }


def _tag_sequences(answers: Answers, tags: Sequence[str]) -> tuple[list[list[str]], list[list[str]]]:
    """Truth and prediction as tags, a list a sentence."""
    borders = np.flatnonzero(np.diff(answers.examples)) + 1
    names = np.array(tags, dtype=object)
    truth, predicted = (
        [part.tolist() for part in np.split(names[column], borders)] for column in (answers.truth, answers.predicted)
    )
    return truth, predicted


def _by_group(answers: dict[str, Answers], groups: dict[str, Sequence[str]]) -> dict[str, Answers]:
    """Groups of the same name in different silos are one; a silo without a group column has none."""
    parts: dict[str, list[Answers]] = {}
    for silo, part in answers.items():
        for index, name in enumerate(groups[silo]):
            if name:
                parts.setdefault(name, []).append(part.where(part.groups == index))
    return {name: Answers.joined(found) for name, found in sorted(parts.items())}


def _confusion(answers: Answers, labels: int) -> np.ndarray:
    """int64 [labels, labels]: examples by truth and prediction."""
    return np.bincount(answers.truth * labels + answers.predicted, minlength=labels * labels).reshape(labels, labels)


# -- asking the model --------------------------------------------------------------------------------------------------


def _snapshot(run: Path, silo: str, facts: dict[str, Any]) -> Snapshot:
    """The snapshot a run was trained on: where it was then, or in the work directory that the run lies in now."""
    path = Path(facts["path"])
    if not path.exists():
        path = Workdir(run.parent.parent).snapshots(silo) / facts["id"]
    snapshot = open_snapshot(path)
    if snapshot.id != facts["id"]:
        raise ArtifactError(
            f"{path}: is snapshot {snapshot.id} of silo {silo}; the run was trained on {facts['id']}. Restore it, or train again."
        )
    return snapshot


def _ask(trained: "Trained", snapshot: Snapshot, split: str, bar: Any) -> Answers:
    """The model's answers to a silo's split, in the order of the index."""
    parts = [_empty_answers()]
    for batch, rows, truth, found in _asked(trained, snapshot, split, bar):
        predicted = found.argmax(axis=-1)
        each = np.arange(len(truth))
        parts.append(
            Answers(
                truth=truth,
                predicted=predicted,
                confidence=np.exp(found[each, predicted]),
                loss=-found[each, truth],
                groups=batch.groups[rows],
                examples=batch.positions[rows],
                clients=batch.clients[rows],
            )
        )
    both = Answers(
        *(np.concatenate([getattr(part, field.name) for part in parts]) for field in dataclasses.fields(Answers))
    )
    # Stable: the tokens of an example stay in their order.
    return both.where(np.argsort(both.examples, kind="stable"))


def _asked(
    trained: "Trained", snapshot: Snapshot, split: str, bar: Any
) -> Iterator[tuple[Any, np.ndarray, np.ndarray, np.ndarray]]:
    """Batches, with the rows that have a label (an example, or a token), the labels and the log-probabilities [n, C]."""
    import tensorflow as tf

    network = trained.network
    # One trace for all shapes: a batch is as wide as its longest text, so there are many. Without AutoGraph, which has
    # nothing to rewrite here and spends five to ten seconds on reading transformers' source.
    log_probabilities = tf.function(
        lambda tokens: tf.nn.log_softmax(network(tokens)),
        input_signature=[tf.TensorSpec([None, None], tf.int32)],
        autograph=False,
        jit_compile=False,
    )
    label_map = snapshot.label_map(trained.labels)
    for batch in snapshot.examples(split, label_map, pad_id=trained.tokenizer.pad_id, batch_size=BATCH_SIZE):
        found = log_probabilities(tf.constant(batch.tokens)).numpy()
        rows = np.arange(len(batch.tokens))
        if batch.labels.ndim == 2:
            rows, columns = np.nonzero(batch.labels != IGNORED)
            found, truth = found[rows, columns], batch.labels[rows, columns]
        else:
            truth = batch.labels
        yield batch, rows, truth, found
        bar.advance(len(batch.tokens))


def _empty_answers() -> Answers:
    none, no_number = np.zeros(0, np.int64), np.zeros(0, np.float32)
    return Answers(none, none, no_number, no_number, none, none, none)


# -- the command -------------------------------------------------------------------------------------------------------


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """--config, --run and --set, for commands that work on a finished run."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--config", metavar="FILE", help="take the newest run of this configuration's pipeline")
    which.add_argument("--run", metavar="DIR", type=Path, help="take this run's folder")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="overrides", help="override a key of --config"
    )


def chosen_run(arguments: argparse.Namespace) -> tuple[Path, Config]:
    """The run that the arguments of `add_run_arguments` name, and the configuration that goes with it.

    Raises:
      ArtifactError: if there is none.
    """
    from tff_pipeline.training.store import config_of

    if arguments.run is not None:
        return arguments.run, config_of(arguments.run)
    config = configuration.load(arguments.config, arguments.overrides)
    return newest_run(Workdir(config.workdir).runs, config.pipeline.name), config


def newest_run(runs: Path, name: str) -> Path:
    """The newest run of the pipeline `name`; several pipelines may share a work directory.

    Raises:
      ArtifactError: if there is none.
    """
    last = read_json(runs / "run.json").get("id") if (runs / "run.json").exists() else None
    found = []
    for path in runs.glob("*/run.json"):
        facts = read_json(path)
        if facts["config"]["pipeline"]["name"] == name:
            found.append((path.parent.name == last, facts["created"], path.parent.name))
    if not found:
        raise ArtifactError(
            f"{runs}: holds no run of the pipeline {name!r}. Run `tff-pipeline train` with the same configuration, or name a run's folder with --run."
        )
    return runs / max(found)[-1]


def main(argv: Sequence[str]) -> int:
    """`tff-pipeline evaluate`: prints a table, or with --json what `evaluate` returns."""
    parser = argparse.ArgumentParser(
        prog="tff-pipeline evaluate",
        description="Accuracy, F1 and confusion of a trained model on clients it has not seen.",
    )
    add_run_arguments(parser)
    parser.add_argument(
        "--split",
        choices=SPLITS,
        default="test",
        help="which clients to ask about (default: test); scores of train are not covered by the guarantee, and are printed but not kept",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    run, _ = chosen_run(arguments)
    result = evaluate(run, split=arguments.split, progress=Progress())
    if arguments.json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        print_tables(result)
    return 0


def print_tables(result: dict[str, Any]) -> None:
    """The evaluation for a person, on standard output."""
    from rich.console import Console
    from rich.table import Table

    # Labels and silos are other people's words: no markup in them is ours.
    console = Console(
        file=sys.stdout, width=None if sys.stdout.isatty() else 120, markup=False, emoji=False, highlight=False
    )
    headline = f"run {result['run']}, split {result['split']}"
    entities_too = "entities" in result
    columns = {
        "clients": "clients",
        "examples": "examples",
        "accuracy": "accuracy",
        "macro_f1": "macro-F1",
        "majority_accuracy": "majority",
    }
    columns |= {"entity_f1": "entity F1"} if entities_too else {}
    columns |= {"loss": "loss", "calibration_error": "calibration error"}
    parts = Table(title=headline, title_justify="left")
    parts.add_column("")
    for title in columns.values():
        parts.add_column(title, justify="right")
    for name, part in _parts(result):
        parts.add_row(name, *(_cell(part[key]) for key in columns))
    console.print(parts)
    if not result["overall"]["examples"]:
        console.print(
            f"No client of any silo is in the split {result['split']!r}; prepare.splits says how many clients go where."
        )
        return
    console.print(_score_table("label", result["labels"], Table))
    if entities_too:
        console.print(_score_table("entity", result["entities"]["types"], Table))
    _print_confusion(result["confusion"], console, Table)


def _parts(result: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "overall", result["overall"]
    for kind in ("silos", "groups"):
        for name, part in result[kind].items():
            yield f"{kind[:-1]} {name}", part


def _score_table(title: str, scores: dict[str, dict[str, Any]], table_type: Any) -> Any:
    table = table_type()
    table.add_column(title)
    for name in ("precision", "recall", "F1", "support", "predicted"):
        table.add_column(name, justify="right")
    for name, row in sorted(scores.items(), key=lambda item: -item[1]["support"]):
        table.add_row(name, *(_cell(row[key]) for key in ("precision", "recall", "f1", "support", "predicted")))
    return table


def _print_confusion(confusion: dict[str, Any], console: Any, table_type: Any) -> None:
    """The whole matrix where it fits a terminal, else the commonest confusions."""
    labels, matrix = confusion["labels"], np.array(confusion["matrix"])
    if len(labels) <= _LARGEST_PRINTED_CONFUSION:
        table = table_type(title="truth in rows, prediction in columns", title_justify="left")
        table.add_column("")
        for number in range(len(labels)):
            table.add_column(str(number + 1), justify="right")
        for number, (label, row) in enumerate(zip(labels, matrix, strict=True)):
            table.add_row(f"{number + 1} {label}", *map(str, row))
    else:
        table = table_type(
            "truth", "predicted as", title="commonest confusions; --json has the whole matrix", title_justify="left"
        )
        table.add_column("examples", justify="right")
        wrong = matrix * (1 - np.eye(len(labels), dtype=matrix.dtype))
        for place in np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSIONS_PRINTED]:
            truth, predicted = divmod(int(place), len(labels))
            if wrong[truth, predicted]:
                table.add_row(labels[truth], labels[predicted], str(wrong[truth, predicted]))
    console.print(table)


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}"
