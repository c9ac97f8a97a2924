"""Prints an evaluation for a person."""

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tff_pipeline.evaluation.metrics import Score

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_LARGEST_PRINTED_CONFUSION = 12
_CONFUSIONS_PRINTED = 8


def print_tables(result: Mapping[str, Any]) -> None:
    """Prints what `evaluate` returned, on standard output."""
    from rich.console import Console

    # Labels and silos are other people's words: no markup in them is ours.
    console = Console(
        file=sys.stdout, width=None if sys.stdout.isatty() else 120, markup=False, emoji=False, highlight=False
    )
    console.print(_parts_table(result))
    if not result["overall"]["examples"]:
        console.print(
            f"No client of any silo is in the split {result['split']!r}; prepare.splits says how many clients go where."
        )
        return
    console.print(_score_table("label", result["labels"]))
    if "entities" in result:
        console.print(_score_table("entity", result["entities"]["types"]))
    _print_confusion(result["confusion"], console)


def _parts_table(result: Mapping[str, Any]) -> "Table":
    """The numbers overall, by silo and by group."""
    from rich.table import Table

    columns = {
        "clients": "clients",
        "examples": "examples",
        "accuracy": "accuracy",
        "macro_f1": "macro-F1",
        "majority_accuracy": "majority",
    }
    columns |= {"entity_f1": "entity F1"} if "entities" in result else {}
    columns |= {"loss": "loss", "calibration_error": "calibration error"}
    table = Table(title=f"run {result['run']}, split {result['split']}", title_justify="left")
    table.add_column("")
    for title in columns.values():
        table.add_column(title, justify="right")
    for name, part in _parts(result):
        table.add_row(name, *(_cell(part[key]) for key in columns))
    return table


def _parts(result: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "overall", result["overall"]
    for kind in ("silos", "groups"):
        for name, part in result[kind].items():
            yield f"{kind[:-1]} {name}", part


def _score_table(title: str, scores: Mapping[str, Score]) -> "Table":
    from rich.table import Table

    table = Table()
    table.add_column(title)
    for name in ("precision", "recall", "F1", "support", "predicted"):
        table.add_column(name, justify="right")
    for name, score in sorted(scores.items(), key=lambda item: -item[1]["support"]):
        numbers = (score["precision"], score["recall"], score["f1"], score["support"], score["predicted"])
        table.add_row(name, *map(_cell, numbers))
    return table


def _print_confusion(confusion: Mapping[str, Any], console: "Console") -> None:
    """Prints the whole matrix where it fits a terminal, else the commonest confusions."""
    labels, matrix = confusion["labels"], np.array(confusion["matrix"])
    whole = len(labels) <= _LARGEST_PRINTED_CONFUSION
    console.print(_whole_confusion(labels, matrix) if whole else _commonest_confusions(labels, matrix))


def _whole_confusion(labels: list[str], matrix: np.ndarray) -> "Table":
    from rich.table import Table

    table = Table(title="truth in rows, prediction in columns", title_justify="left")
    table.add_column("")
    for number in range(len(labels)):
        table.add_column(str(number + 1), justify="right")
    for number, (label, row) in enumerate(zip(labels, matrix, strict=True)):
        table.add_row(f"{number + 1} {label}", *map(str, row))
    return table


def _commonest_confusions(labels: list[str], matrix: np.ndarray) -> "Table":
    from rich.table import Table

    table = Table(
        "truth", "predicted as", title="commonest confusions; --json has the whole matrix", title_justify="left"
    )
    table.add_column("examples", justify="right")
    wrong = matrix * (1 - np.eye(len(labels), dtype=matrix.dtype))
    for cell in np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSIONS_PRINTED]:
        truth, predicted = divmod(int(cell), len(labels))
        if wrong[truth, predicted]:
            table.add_row(labels[truth], labels[predicted], str(wrong[truth, predicted]))
    return table


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}"
