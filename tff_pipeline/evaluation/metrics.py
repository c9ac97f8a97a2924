"""Computes what an evaluation says from a model's answers: overall, by silo, by group and by label.

* accuracy: the fraction of examples (for token classification, of labelled tokens) whose most probable label is right;
* macro-F1: the mean of the labels' F1, over the labels that occur in the truth of the part that is described;
* majority accuracy: the accuracy of always answering with the commonest label of that part;
* loss: the mean cross-entropy in nats; calibration error: |confidence - accuracy| over 15 bins of equal width of the
  confidence, weighted by their examples (Guo et al. 2017, equation 5);
* accuracy interval: Wilson's, 1927, at 95 %, over the effective number of independent examples: texts of one client are
  alike, so that p (1 - p) / n_effective is the variance of accuracy between clients (Kish 1965);
* entities (token classification): exact match of span and type. A span begins at B-X and goes on with I-X; an I-X that
  continues nothing is no entity (strict IOB2). What `prepare` truncated of a long sentence counts on neither side.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from tff_pipeline.evaluation.answers import Answers

CALIBRATION_BINS = 15
_Z_95 = 1.959964  # of the normal distribution, for two-sided 95 %


class Score(TypedDict):
    """How well one label, or one type of entity, was predicted; a quotient whose denominator is 0 is 0.

    `support` is how often it occurs in the truth, `predicted` how often it was predicted.
    """

    precision: float
    recall: float
    f1: float
    support: int
    predicted: int


class EntityScores(TypedDict):
    """`micro` is over all entities, `macro_f1` the mean over the types that occur in the truth, None without any."""

    micro: Score
    macro_f1: float | None
    types: dict[str, Score]


def summarise(
    answers: Mapping[str, Answers], groups: Mapping[str, Sequence[str]], labels: Sequence[str], task: str
) -> dict[str, Any]:
    """All numbers of an evaluation, from the answers by silo and the names of each silo's groups."""
    all_answers = Answers.joined(list(answers.values()))
    tags = labels if task == "token_classification" else None
    result: dict[str, Any] = {
        "overall": {**describe(all_answers, tags), "accuracy_interval": accuracy_interval(all_answers)},
        "silos": {silo: describe(part, tags) for silo, part in answers.items()},
        "groups": {name: describe(part, tags) for name, part in _by_group(answers, groups).items()},
        "labels": dict(zip(labels, label_scores(all_answers.truth, all_answers.predicted, len(labels)), strict=True)),
        "confusion": {
            "labels": list(labels),
            "rows": "truth",
            "columns": "predicted",
            "matrix": _confusion(all_answers, len(labels)).tolist(),
        },
    }
    if tags is not None:
        result["entities"] = entity_scores(*_tag_sequences(all_answers, tags))
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
    numbers: dict[str, float | None] = {
        "accuracy": float(right.mean()),
        "macro_f1": macro_f1(answers.truth, answers.predicted),
        "majority_accuracy": float(np.bincount(answers.truth).max() / len(answers)),
        "loss": float(answers.loss.mean(dtype=np.float64)),
        "calibration_error": calibration_error(answers.confidence, right),
    }
    if tags is not None:
        scores = entity_scores(*_tag_sequences(answers, tags))
        numbers |= {"entity_f1": scores["micro"]["f1"], "entity_macro_f1": scores["macro_f1"]}
    return {**counts, **numbers}


def accuracy_interval(answers: Answers) -> list[float] | None:
    """Where accuracy lies at 95 %, over the choice of clients: [low, high]; None with fewer than two clients."""
    right = (answers.truth == answers.predicted).astype(np.float64)
    _, client = np.unique(answers.clients, return_inverse=True)
    examples_of, right_of = np.bincount(client).astype(np.float64), np.bincount(client, right)
    clients, examples = len(examples_of), len(right)
    if clients < 2:
        return None
    accuracy = float(right.mean())
    surplus = right_of - accuracy * examples_of
    variance = clients / (clients - 1) * float(np.square(surplus).sum()) / examples**2
    # Where all clients agree, their differences say nothing, and each client counts once. Never more than the examples.
    effective = min(accuracy * (1 - accuracy) / variance, examples) if variance > 0 else clients
    scale = 1 + _Z_95**2 / effective
    centre = (accuracy + _Z_95**2 / (2 * effective)) / scale
    half = _Z_95 / scale * float(np.sqrt(accuracy * (1 - accuracy) / effective + (_Z_95 / (2 * effective)) ** 2))
    return [max(centre - half, 0.0), min(centre + half, 1.0)]


def macro_f1(truth: np.ndarray, predicted: np.ndarray) -> float:
    """The mean F1 of the labels that occur in `truth`; a label that is never predicted has 0."""
    scores = label_scores(truth, predicted, int(max(truth.max(), predicted.max())) + 1)
    return float(np.mean([score["f1"] for score in scores if score["support"]]))


def label_scores(truth: np.ndarray, predicted: np.ndarray, labels: int) -> list[Score]:
    """The scores of each label, from int64 [n] indices into `labels` labels."""
    right = np.bincount(truth[truth == predicted], minlength=labels).tolist()
    support, times_predicted = (np.bincount(column, minlength=labels).tolist() for column in (truth, predicted))
    return [_score(*counts) for counts in zip(right, support, times_predicted, strict=True)]


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
    spans = set()
    start, kind = 0, ""
    for index, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        if kind and not (prefix == "I" and name == kind):
            spans.add((start, index, kind))
            kind = ""
        if prefix == "B" and name:
            start, kind = index, name
    return spans


def entity_scores(truth: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> EntityScores:
    """The scores of entities, from the tags of each sentence."""
    right, support, times_predicted = Counter[str](), Counter[str](), Counter[str]()
    for true_tags, predicted_tags in zip(truth, predicted, strict=True):
        true_entities, predicted_entities = entities(true_tags), entities(predicted_tags)
        support.update(kind for *_, kind in true_entities)
        times_predicted.update(kind for *_, kind in predicted_entities)
        right.update(kind for *_, kind in true_entities & predicted_entities)
    kinds = sorted(support | times_predicted)
    types = {kind: _score(right[kind], support[kind], times_predicted[kind]) for kind in kinds}
    in_truth = [types[kind]["f1"] for kind in types if support[kind]]
    return {
        "micro": _score(right.total(), support.total(), times_predicted.total()),
        "macro_f1": sum(in_truth) / len(in_truth) if in_truth else None,
        "types": types,
    }


def _score(right: int, support: int, predicted: int) -> Score:
    return {
        "precision": right / predicted if predicted else 0.0,
        "recall": right / support if support else 0.0,
        "f1": 2 * right / (support + predicted) if support + predicted else 0.0,
        "support": support,
        "predicted": predicted,
    }


def _tag_sequences(answers: Answers, tags: Sequence[str]) -> tuple[list[list[str]], list[list[str]]]:
    """Truth and prediction as tags, a list for each sentence."""
    borders = np.flatnonzero(np.diff(answers.examples)) + 1
    names = np.array(tags, dtype=object)
    truth, predicted = (
        [part.tolist() for part in np.split(names[column], borders)] for column in (answers.truth, answers.predicted)
    )
    return truth, predicted


def _by_group(answers: Mapping[str, Answers], groups: Mapping[str, Sequence[str]]) -> dict[str, Answers]:
    """Groups of the same name in different silos are one group; a silo without a group column has none."""
    parts: dict[str, list[Answers]] = {}
    for silo, part in answers.items():
        for index, name in enumerate(groups[silo]):
            if name:
                parts.setdefault(name, []).append(part.where(part.groups == index))
    return {name: Answers.joined(of_silos) for name, of_silos in sorted(parts.items())}


def _confusion(answers: Answers, labels: int) -> np.ndarray:
    """int64 [labels, labels]: the number of examples by truth and prediction."""
    return np.bincount(answers.truth * labels + answers.predicted, minlength=labels * labels).reshape(labels, labels)
