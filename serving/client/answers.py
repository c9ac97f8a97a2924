"""What both clients ask and answer: the version they address, predictions, explanations."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

AVAILABLE = "AVAILABLE"  # the state of a version that can be asked


@dataclasses.dataclass(frozen=True)
class Target:
    """A model, and one of its versions by number or label; with neither, the newest."""

    model: str
    version: int | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        if self.version is not None and self.label is not None:
            raise ValueError(
                f"version {self.version} and label {self.label!r} were given; give one of them, or neither for the newest version."
            )


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Outputs by name: strings as bytes, numbers as float32 or int32; the first dimension is the batch.

    `version` is the one that answered; over REST it is known only where the client names a version.
    """

    outputs: Mapping[str, np.ndarray]
    version: int | None


@dataclasses.dataclass(frozen=True)
class Piece:
    """A piece of a text: its bytes from `start` to `end`, and its part of the label's score, which may be negative."""

    token: str
    start: int
    end: int
    attribution: float


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Why a text has a label: the pieces' attributions add up to `score - baseline_score + gap`.

    `score` is the label's probability, `baseline_score` that of the same text with every piece masked; `gap` is the error
    of the sum that approximates an integral, and near 0 where the version was exported with enough steps.
    """

    label: str
    score: float
    baseline_score: float
    gap: float
    pieces: tuple[Piece, ...]


def explain_inputs(texts: Sequence[str | bytes], label: str) -> dict[str, Any]:
    """The inputs of the signature `explain`: texts, and for each of them the label to explain (empty: the predicted one)."""
    return {"text": texts, "label": [label] * len(texts)}


def explanations(outputs: Mapping[str, np.ndarray], label: str) -> list[Explanation]:
    """The outputs of the signature `explain` as an Explanation for each row.

    Raises:
      ValueError: if the model has no label `label`.
    """
    rows = []
    for row, explained in enumerate(outputs["label"]):
        if not explained:
            raise ValueError(
                f"label {label!r}: the model has none of that name; expected one of the labels that its predictions name."
            )
        columns = zip(
            *(outputs[name][row] for name in ("tokens", "starts", "ends", "attributions", "mask")), strict=True
        )
        pieces = tuple(
            Piece(token.decode(), int(start), int(end), float(attribution))
            for token, start, end, attribution, is_piece in columns
            if is_piece
        )
        score, baseline_score, gap = (float(outputs[name][row]) for name in ("score", "baseline_score", "gap"))
        rows.append(Explanation(explained.decode(), score, baseline_score, gap, pieces))
    return rows
