"""The list of a model's versions: a row for each, with its labels, its evaluation and its guarantee."""

from collections.abc import Mapping
from typing import Any

from serving.base_path import BasePath
from tff_pipeline.rounding import rounded_up


def rows(base: BasePath, labels: Mapping[str, int]) -> list[dict[str, Any]]:
    """A row for each version under a base path, ascending, as `list --json` prints it.

    Raises:
      ArtifactError: if an object store cannot be listed or read.
    """
    return [_row(number, manifest, labels) for number, manifest in base.manifests()]


def _row(number: int, manifest: dict[str, Any] | None, labels: Mapping[str, int]) -> dict[str, Any]:
    evaluation = (manifest or {}).get("evaluation") or {}
    return {
        "version": number,
        "labels": sorted(label for label, version in labels.items() if version == number),
        "accuracy": evaluation.get("accuracy"),
        "epsilon": manifest["epsilon"] if manifest is not None else None,
        "run": manifest["run"] if manifest is not None else "incomplete",
        "created": manifest["created"] if manifest is not None else "",
    }


def line(row: Mapping[str, Any]) -> str:
    """A row for people, with tabs between its columns."""
    accuracy = "-" if row["accuracy"] is None else f"{row['accuracy']:.3f}"
    epsilon = "-" if row["epsilon"] is None else rounded_up(row["epsilon"])
    labels = ",".join(row["labels"]) or "-"
    return f"{row['version']}\t{labels}\taccuracy {accuracy}\tepsilon {epsilon}\t{row['run']}\t{row['created']}"
