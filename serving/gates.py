"""What a version must reach before it is published: `[gates]` of the configuration, against its manifest.

One gate asks the models themselves: how many of a file's texts would get another label than from the version that serves
now. It is asked of the operator's own texts, not of the held-out clients', whose text is with the silos; and not of the
golden texts, which are too few and too odd to say how many of a service's answers will change.
"""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from tff_pipeline.config import GatesSection
from tff_pipeline.errors import ConfigError, GateError


def check(candidate: Mapping[str, Any], serving: Mapping[str, Any] | None, gates: GatesSection) -> list[str]:
    """Compares two manifests' evaluations; `serving` is None where nothing is served yet.

    Returns:
      A sentence for each gate that was passed.

    Raises:
      GateError: with the number that failed. What cannot be compared fails.
    """
    where = f"version {candidate['version']}"
    passed = []
    if gates.min_accuracy is not None:
        accuracy = _number(candidate, "accuracy", where)
        if accuracy < gates.min_accuracy:
            raise _failed(where, "accuracy", accuracy, f"at least {gates.min_accuracy:g} (gates.min_accuracy)")
        passed.append(f"accuracy {accuracy:.4f}, at least {gates.min_accuracy:g}")
    for key, limit, measure in (
        ("max_drop", gates.max_drop, "accuracy"),
        ("max_worst_silo_drop", gates.max_worst_silo_drop, "worst_silo_accuracy"),
    ):
        if limit is None or serving is None:
            continue
        before, after = (_number(each, measure, f"version {each['version']}") for each in (serving, candidate))
        if gates.other_data == "refuse" and candidate["evaluation"].get("data") != serving["evaluation"].get("data"):
            raise GateError(
                f"{where}: was evaluated on other data than version {serving['version']}, which serves; expected the same, so that "
                f'their numbers can be compared. Evaluate both on it, or set gates.other_data = "compare".'
            )
        name = measure.replace("_", " ")
        if before - after > limit:
            raise _failed(
                where,
                name,
                after,
                f"at most {limit:g} under the {before:.4f} of version {serving['version']} (gates.{key})",
            )
        passed.append(f"{name} {after:.4f}, {before:.4f} before")
    return passed


_BATCH_SIZE = 32


def check_changes(candidate: Path, serving: Path | None, gates: GatesSection) -> list[str]:
    """Asks two versions, as they lie on disk, the same texts; `serving` is None where nothing is served yet.

    Returns:
      A sentence if the gate was passed; nothing where it is not there, or there is nothing to compare with.

    Raises:
      ConfigError: if the texts cannot be read, or there are none.
      GateError: with the share of labels that changed.
    """
    if gates.max_changed is None or serving is None:
        return []
    try:
        texts = [line for line in Path(gates.texts).read_bytes().splitlines() if line.strip()]
    except OSError as error:
        raise ConfigError(
            f"{gates.texts}: cannot be read ({error.strerror}); gates.texts names a file with a text a line."
        ) from None
    if not texts:
        raise ConfigError(f"{gates.texts}: holds no text; gates.texts names a file with a text a line.")
    before, after = _answers(serving, texts), _answers(candidate, texts)
    # Words are split alike by every version; one that only one of them answers (another max_length) counts as changed.
    pairs = [pair for (old, _), (new, _) in zip(before, after, strict=True) for pair in zip_longest(old, new)]
    changed = sum(old != new for old, new in pairs)
    share = changed / max(len(pairs), 1)
    scores = [pair for (_, old), (_, new) in zip(before, after, strict=True) for pair in zip(old, new, strict=False)]
    moved = max((abs(old - new) for old, new in scores), default=0.0)
    found = f"{changed} of {len(pairs)} labels changed against version {serving.name}, scores by up to {moved:.2g}"
    if share > gates.max_changed:
        raise _failed(
            f"version {candidate.name}",
            "share of changed labels",
            share,
            f"at most {gates.max_changed:g} (gates.max_changed; {found})",
        )
    return [found]


def _answers(version: Path, texts: Sequence[bytes]) -> list[tuple[list[bytes], list[float]]]:
    """The labels and scores of each text: one, or for token classification one for each word."""
    from serving.local_server.metrics import Metrics
    from serving.local_server.servable import DEFAULT_SIGNATURE, Servable

    servable = Servable("gate", 0, version, Metrics())
    found: list[tuple[list[bytes], list[float]]] = []
    try:
        signature = servable.signatures[DEFAULT_SIGNATURE]
        by_word = "mask" in signature.outputs
        names = ("labels", "scores", "mask") if by_word else ("label", "score")
        for start in range(0, len(texts), _BATCH_SIZE):
            batch = np.array([*texts[start : start + _BATCH_SIZE], None], object)[:-1]
            answer = servable.run(signature, {"text": batch}, names, api="Predict", timeout_s=None)
            for row in range(len(batch)):
                count = int(answer["mask"][row].sum()) if by_word else 1
                labels, scores = (np.atleast_1d(answer[name][row])[:count].tolist() for name in names[:2])
                found.append((labels, scores))
    finally:
        servable.close()
    return found


def _number(manifest: Mapping[str, Any], measure: str, where: str) -> float:
    found = (manifest.get("evaluation") or {}).get(measure)
    if found is None:
        raise GateError(
            f"{where}: has no {measure.replace('_', ' ')} in its manifest; expected a run that was evaluated before it was exported. "
            "Run `tff-pipeline evaluate`, then export again."
        )
    return float(found)


def _failed(where: str, name: str, value: float, expected: str) -> GateError:
    return GateError(
        f"{where}: {name} is {value:.4f}; expected {expected}. It was not published, and stays where it was exported."
    )
