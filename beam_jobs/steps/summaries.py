"""What reading and tokenizing counted, for the manifest; and whether labels and groups may be written down by name."""

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from beam_jobs.reading import Reject
from beam_jobs.segments import Segment
from tff_pipeline.config import SiloSection
from tff_pipeline.errors import InputError

MANY_NAMES = 20  # more different labels (or groups) than these, and more than one for two rows: a column of free text
MAX_NAME_CHARACTERS = 200  # of a label, or a group


class ReadSummary(msgspec.Struct):
    """What reading and tokenizing counted, of one bundle or (merged) of all. `reasons` counts rows, of which a reject can stand
    for several, and `labelled` counts the labels of rows or words; `lines` has the fields of LineCounts."""

    segments: list[Segment] = []
    rejected: list[Segment] = []
    rows: dict[int, int] = {}
    reasons: dict[str, int] = {}
    labels: list[str] = []
    groups: list[str] = []
    labelled: int = 0
    lines: dict[str, int] = {}


def merged(summaries: Iterable[ReadSummary]) -> ReadSummary:
    """All bundles' summaries as one, the same whatever their order."""
    total, rows, reasons, lines = ReadSummary(), Counter[int](), Counter[str](), Counter[str]()
    labels, groups = set[str](), set[str]()
    for summary in summaries:
        total.segments += summary.segments
        total.rejected += summary.rejected
        rows.update(summary.rows)
        reasons.update(summary.reasons)
        lines.update(summary.lines)
        labels.update(summary.labels)
        groups.update(summary.groups)
        total.labelled += summary.labelled
    total.rejected.sort(key=lambda segment: (segment.key, segment.order, segment.offset))
    total.rows, total.reasons = dict(sorted(rows.items())), dict(sorted(reasons.items()))
    total.labels, total.groups, total.lines = sorted(labels), sorted(groups), dict(lines)
    return total


def check_names(
    read: ReadSummary, silo: SiloSection, *, labels_listed: bool, limit: int, complete: bool = True
) -> None:
    """Raises InputError where label or group cannot be what the configuration says: their values are written down by name.

    A column of free text in their place would put the silo's text into the manifest, and from there into reports. As long as
    `read` is not `complete`, more rows may show that each name occurs several times. Messages hold counts only.
    """
    rows = sum(read.rows.values())
    for key, column, names, uses in (
        ("label", silo.label, () if labels_listed else read.labels, read.labelled),
        ("group", silo.group, read.groups, rows),
    ):
        longest = max(map(len, names), default=0)
        if len(names) > limit:
            defect = f"has more than {limit:,} different values; expected at most as many as prepare.max_labels"
        elif longest > MAX_NAME_CHARACTERS:
            defect = f"has a value of {longest:,} characters; expected at most {MAX_NAME_CHARACTERS}"
        elif complete and len(names) > max(MANY_NAMES, uses / 2):
            unit = "words" if key == "label" and silo.format == "conll" else "rows"
            defect = f"has {len(names):,} different values in {uses:,} {unit}; expected at least two {unit} for each"
        else:
            continue
        raise InputError(
            f"silo {silo.name!r}: the {key} column {column!r} {defect}. It looks like free text or like names of people, and each value would be "
            f"written into the manifest. Correct `{key}` of the silo"
            + (", or list the labels in task.labels." if key == "label" else ".")
        )


def reject_line(file_name: str, unit: str, reject: Reject) -> bytes:
    """A line of rejected.jsonl; `unit` is "line", or "row" for parquet. It never holds the text."""
    last = {f"last_{unit}": reject.line + reject.rows - 1} if reject.rows > 1 else {}
    return msgspec.json.encode({"file": file_name, unit: reject.line, **last, "reason": reject.reason}) + b"\n"


def percentiles(histogram: Sequence[int] | np.ndarray) -> dict[str, int]:
    """p50, p90, p99 and max of values counted by `histogram`: the smallest value that so many percent do not exceed."""
    counts = np.asarray(histogram, np.int64)
    total = int(counts.sum())
    if not total:
        return {"p50": 0, "p90": 0, "p99": 0, "max": 0}
    below = np.cumsum(counts)
    values = {f"p{percent}": int(np.searchsorted(below, -(-total * percent // 100))) for percent in (50, 90, 99)}
    return {**values, "max": int(np.flatnonzero(counts)[-1])}
