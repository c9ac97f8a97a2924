"""The gates that a version must pass before it is published: `[gates]` of the configuration, against its manifest.

One gate runs the models themselves: it counts how many texts of a file would get another label than from the version that
serves now. It takes the operator's own texts, not the held-out clients', which stay with the silos, and not the golden
texts, which are too few and too unusual to tell how many of a service's answers will change.
"""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from serving.model_server.session import DEFAULT_SIGNATURE, ModelSession
from tff_pipeline.config import GatesSection
from tff_pipeline.errors import ArtifactError, ConfigError, GateError


def check(candidate: Mapping[str, Any], serving: Mapping[str, Any] | None, gates: GatesSection) -> list[str]:
    """Compares two manifests' evaluations; `serving` is None where nothing is served yet.

    Returns:
      A sentence for each gate that was passed.

    Raises:
      GateError: with the number that failed, also where two versions cannot be compared.
    """
    passed = []
    if gates.min_accuracy is not None:
        accuracy = _measured(candidate, "accuracy")
        if accuracy < gates.min_accuracy:
            raise _failed(
                candidate["version"], "accuracy", accuracy, f"at least {gates.min_accuracy:g} (gates.min_accuracy)"
            )
        passed.append(f"accuracy {accuracy:.4f}, at least {gates.min_accuracy:g}")
    if serving is not None:
        passed += _check_drops(candidate, serving, gates)
    return passed


def _check_drops(candidate: Mapping[str, Any], serving: Mapping[str, Any], gates: GatesSection) -> list[str]:
    passed = []
    for key, limit, measure in (
        ("max_drop", gates.max_drop, "accuracy"),
        ("max_worst_silo_drop", gates.max_worst_silo_drop, "worst_silo_accuracy"),
    ):
        if limit is None:
            continue
        before, after = _measured(serving, measure), _measured(candidate, measure)
        if gates.other_data == "refuse" and candidate["evaluation"].get("data") != serving["evaluation"].get("data"):
            raise GateError(
                f"version {candidate['version']}: was evaluated on other data than version {serving['version']}, which serves; "
                "expected the same, so that their numbers can be compared. Evaluate both on it, or set gates.other_data = "
                '"compare".'
            )
        name = measure.replace("_", " ")
        if before - after > limit:
            raise _failed(
                candidate["version"],
                name,
                after,
                f"at most {limit:g} under the {before:.4f} of version {serving['version']} (gates.{key})",
            )
        passed.append(f"{name} {after:.4f}, {before:.4f} before")
    return passed


_BATCH_SIZE = 32


def check_changes(candidate: Path, serving: Path | None, gates: GatesSection) -> list[str]:
    """Runs two versions, loaded from disk, on the same texts; `serving` is None where nothing is served yet.

    Returns:
      A sentence if the gate was passed; nothing where it is not configured, or there is nothing to compare with.

    Raises:
      ConfigError: if the texts cannot be read, or there are none.
      ArtifactError: if a version cannot be loaded.
      GateError: with the proportion of labels that changed.
    """
    if gates.max_changed is None or serving is None:
        return []
    try:
        texts = [line for line in Path(gates.texts).read_bytes().splitlines() if line.strip()]
    except OSError as error:
        raise ConfigError(
            f"{gates.texts}: cannot be read ({error.strerror}); gates.texts names a file; expected one with a text on each line."
        ) from None
    if not texts:
        raise ConfigError(
            f"{gates.texts}: holds no text; gates.texts names a file; expected one with a text on each line."
        )
    before, after = _predictions(serving, texts), _predictions(candidate, texts)
    # Every version splits words alike; a word that only one of them labels (another max_length) counts as changed.
    pairs = [pair for (old, _), (new, _) in zip(before, after, strict=True) for pair in zip_longest(old, new)]
    changed = sum(old != new for old, new in pairs)
    proportion = changed / max(len(pairs), 1)
    scores = [pair for (_, old), (_, new) in zip(before, after, strict=True) for pair in zip(old, new, strict=False)]
    moved = max((abs(old - new) for old, new in scores), default=0.0)
    sentence = f"{changed} of {len(pairs)} labels changed against version {serving.name}, scores by up to {moved:.2g}"
    if proportion > gates.max_changed:
        raise _failed(
            candidate.name,
            "proportion of changed labels",
            proportion,
            f"at most {gates.max_changed:g} (gates.max_changed; {sentence})",
        )
    return [sentence]


def _predictions(version: Path, texts: Sequence[bytes]) -> list[tuple[list[bytes], list[float]]]:
    """The labels and scores of each text: one, or for token classification one for each word."""
    session = _loaded(version)
    try:
        signature = session.signatures[DEFAULT_SIGNATURE]
        by_word = "mask" in signature.outputs
        names = ("labels", "scores", "mask") if by_word else ("label", "score")
        fetches = {name: signature.outputs[name].name for name in names}
        predictions: list[tuple[list[bytes], list[float]]] = []
        for start in range(0, len(texts), _BATCH_SIZE):
            batch = np.array([*texts[start : start + _BATCH_SIZE], None], object)[:-1]
            outputs = session.run(fetches, {signature.inputs["text"].name: batch})
            for row in range(len(batch)):
                count = int(outputs["mask"][row].sum()) if by_word else 1
                labels, scores = (np.atleast_1d(outputs[name][row])[:count].tolist() for name in names[:2])
                predictions.append((labels, scores))
        return predictions
    finally:
        session.close()


def _loaded(version: Path) -> ModelSession:
    import tensorflow as tf

    try:
        return ModelSession(version)
    except (OSError, RuntimeError, tf.errors.OpError) as error:
        reason = error.message if isinstance(error, tf.errors.OpError) else error
        raise ArtifactError(
            f"{version}: cannot be loaded to compare labels ({reason}); expected a version that a server can load. Publish "
            "another version first if it is the one that serves, or export again if it is the candidate."
        ) from error


def _measured(manifest: Mapping[str, Any], measure: str) -> float:
    value = (manifest.get("evaluation") or {}).get(measure)
    if value is None:
        raise GateError(
            f"version {manifest['version']}: has no {measure.replace('_', ' ')} in its manifest; expected a run that was "
            "evaluated before it was exported. Run `tff-pipeline evaluate`, then export again."
        )
    return float(value)


def _failed(version: int | str, name: str, value: float, expected: str) -> GateError:
    return GateError(
        f"version {version}: {name} is {value:.4f}; expected {expected}. It was not published, and stays where it was "
        "exported."
    )
