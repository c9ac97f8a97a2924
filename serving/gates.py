"""What a version must reach before it is published: `[gates]` of the configuration, against its manifest."""

from collections.abc import Mapping
from typing import Any

from tff_pipeline.config import GatesSection
from tff_pipeline.errors import GateError


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
