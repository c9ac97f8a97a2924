"""Tokenized batches to segment files: every row in the segment of its range, whenever it is written."""

import json
from pathlib import Path

import numpy as np
import pytest

from beam_jobs.reading import LineCounts, Reject
from beam_jobs.rows import Rows, hashes_to_numbers
from beam_jobs.segments import Segment, read_segments
from beam_jobs.steps import spilling, summaries
from beam_jobs.steps.tokens import Tokenized

LOW, HIGH = bytes(16), b"\xff" * 16  # hashes in the first and the last range


def batch_of(file: int, hashes: list[bytes], *, label: str = "x", rejects: tuple[Reject, ...] = ()) -> Tokenized:
    """One row of three tokens on each of the lines 1, 2, ... for each hash."""
    count = len(hashes)
    rows = Rows(
        hashes_to_numbers(b"".join(hashes)),
        np.full(count, file, np.int32),
        np.arange(1, count + 1),
        np.full(count, 3),
        np.tile(np.array([2, 5, 3], np.int32), count),
        np.zeros(count, np.int32),
        np.zeros(count, np.int32),
        [label],
        ["g"],
    )
    read = count + sum(reject.rows for reject in rejects)
    counts = LineCounts(read=read, rows=count, rejected=read - count)
    return Tokenized(file, read, rows, list(rejects), counts)


def reject_line(file: int, reject: Reject) -> bytes:
    return summaries.reject_line(f"{file}.csv", "line", reject)


def lines_by_range(segments: list[Segment]) -> dict[int, list[tuple[int, int]]]:
    """(file, line) of the rows in each range's segments, sorted."""
    lines: dict[int, list[tuple[int, int]]] = {}
    for segment in segments:
        for message in read_segments([segment]):
            rows = Rows.decode(message)
            lines.setdefault(segment.key, []).extend(zip(rows.files.tolist(), rows.lines.tolist(), strict=True))
    return {number: sorted(positions) for number, positions in lines.items()}


@pytest.mark.parametrize("spill_bytes", [1, 2**24])
def test_rows_are_in_the_segments_of_their_range_however_often_they_are_written(tmp_path, monkeypatch, spill_bytes):
    monkeypatch.setattr(spilling, "SPILL_BYTES", spill_bytes)
    spill = spilling.Spill(tmp_path, 4, reject_line)

    for file in range(2):
        spill.add(batch_of(file, [HIGH, LOW, HIGH]))
        spill.write_if_large()
        assert bool(list(Path(tmp_path).iterdir())) == (spill_bytes == 1)
    summary = spill.close()

    assert lines_by_range(summary.segments) == {0: [(0, 2), (1, 2)], 3: [(0, 1), (0, 3), (1, 1), (1, 3)]}


def test_a_summary_counts_rows_names_and_rejects_by_reason(tmp_path):
    """Five lines are one reject of a broken quote; the summary of all bundles says so too."""
    spill = spilling.Spill(tmp_path, 1, reject_line)

    spill.add(batch_of(0, [LOW], label="b", rejects=(Reject(7, "broken quoting", 5),)))
    spill.add(batch_of(1, [LOW, HIGH], label="a", rejects=(Reject(9, "empty text"),)))
    summary = spill.close()

    assert (summary.rows, summary.reasons) == ({0: 6, 1: 3}, {"broken quoting": 5, "empty text": 1})
    assert (summary.labels, summary.groups, summary.labelled) == (["a", "b"], ["g"], 3)
    assert LineCounts(**summary.lines) == LineCounts(read=9, rows=3, rejected=6)
    rejected = [json.loads(line) for line in read_segments(summaries.merged([summary]).rejected)]
    assert rejected == [
        {"file": "0.csv", "line": 7, "last_line": 11, "reason": "broken quoting"},
        {"file": "1.csv", "line": 9, "reason": "empty text"},
    ]
