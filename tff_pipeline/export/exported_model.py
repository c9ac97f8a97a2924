"""Loads an exported version and asks it, with TensorFlow and TensorFlow Text alone: what a model server would load."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tff_pipeline.artifacts import read_manifest
from tff_pipeline.errors import ArtifactError, InputError

TOP = 3


class ExportedModel:
    """A version of a model, loaded after its files were compared with its manifest. `manifest` says what it is."""

    def __init__(self, version: Path):
        """Raises ArtifactError if the version is incomplete or a file has changed."""
        self.manifest = read_manifest(version, check_files=True)
        if self.manifest.get("kind") != "model":
            raise ArtifactError(
                f"{version}: holds {self.manifest.get('kind')!r}; expected a version that `tff-pipeline export` made."
            )
        import tensorflow as tf
        import tensorflow_text  # noqa: F401  registers the ops of the tokenizer

        self._loaded = tf.saved_model.load(str(version))
        self.labels: tuple[str, ...] = tuple(self.manifest["labels"])

    def ask(self, texts: Sequence[str | bytes]) -> list[dict[str, Any]]:
        """The answers to at least one text, in order.

        Returns:
          Classification of texts: label, score, and in `top` the three best of them. Classification of words: tokens,
          a list of {token, label, score}; label is None for a word beyond the model's length.
        """
        read_row = _text_answer if self.manifest["task"] == "sequence_classification" else _word_answer
        return [read_row(row, self.labels) for row in self._rows("serving_default", text=list(texts))]

    def explain(self, texts: Sequence[str | bytes], *, label: str = "") -> list[dict[str, Any]]:
        """Which pieces of each text made its predicted label, or `label`.

        Returns:
          For each text label, score, baseline_score, gap and pieces, a list of {text, start, end, attribution}: bytes
          `start` to `end` of the text. The attributions add up to score - baseline_score + gap
          (integrated_gradients.py).

        Raises:
          ArtifactError: if the version has no signature `explain`.
          InputError: if the model has no such label.
        """
        if "explain" not in self._loaded.signatures:
            raise ArtifactError(
                f"version {self.manifest['version']} of {self.manifest['name']}: has no signature `explain`; expected one of a sequence "
                "classification with export.explain_steps above 0. Set it, and export again."
            )
        if label and label not in self.labels:
            raise InputError(f"--label is {label!r}; expected one of {', '.join(self.labels)}.")
        rows = self._rows("explain", text=list(texts), label=[label] * len(texts))
        encoded = [text if isinstance(text, bytes) else text.encode() for text in texts]
        return [_explanation(text, row) for text, row in zip(encoded, rows, strict=True)]

    def _rows(self, signature: str, **inputs: list[Any]) -> list[dict[str, Any]]:
        """What a signature answers: its outputs by name, for each text."""
        import tensorflow as tf

        answer = self._loaded.signatures[signature](**{name: tf.constant(value) for name, value in inputs.items()})
        outputs = {name: output.numpy() for name, output in answer.items()}
        return [{name: output[row] for name, output in outputs.items()} for row in range(len(inputs["text"]))]


def _explanation(text: bytes, row: Mapping[str, Any]) -> dict[str, Any]:
    columns = zip(*(row[name] for name in ("tokens", "starts", "ends", "attributions", "mask")), strict=True)
    pieces = [
        # The last of a character's pieces has its bytes; the others are shown by their names in the vocabulary.
        {
            "text": (text[start:end] or token).decode(errors="replace"),
            "start": int(start),
            "end": int(end),
            "attribution": float(attribution),
        }
        for token, start, end, attribution, is_piece in columns
        if is_piece
    ]
    scores = {name: float(row[name]) for name in ("score", "baseline_score", "gap")}
    return {"label": row["label"].decode(), **scores, "pieces": pieces}


def _text_answer(row: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    best = np.argsort(-row["probabilities"], kind="stable")[:TOP]
    top = [{"label": labels[index], "score": float(row["probabilities"][index])} for index in best]
    return {"label": row["label"].decode(), "score": float(row["score"]), "top": top}


def _word_answer(row: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    columns = zip(row["tokens"], row["labels"], row["scores"], row["mask"], strict=True)
    return {
        "tokens": [
            {
                "token": token.decode(errors="replace"),
                "label": label.decode() if is_answered else None,
                "score": float(score),
            }
            for token, label, score, is_answered in columns
            if token
        ]
    }
