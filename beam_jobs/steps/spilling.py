"""Tokenized batches to segment files, parted by ranges of client hashes, and what they counted."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from beam_jobs.reading import LineCounts, Reject
from beam_jobs.rows import Rows
from beam_jobs.segments import SegmentWriter
from beam_jobs.steps.summaries import ReadSummary
from beam_jobs.steps.tokens import Tokenized, by_range

SPILL_BYTES = 16 * 2**20  # of tokenized rows that a worker collects before it writes them


class Spill:
    """Collects batches and writes their rows by range: the more rows wait, the fewer and larger are the segments."""

    def __init__(self, folder: Path, ranges: int, reject_line: Callable[[int, Reject], bytes]):
        """`reject_line(file, reject)` is the line of rejected.jsonl for a reject."""
        self._ranges, self._reject_line = ranges, reject_line
        self._segments, self._rejected = SegmentWriter(folder), SegmentWriter(folder)
        self._waiting: list[Rows] = []
        self._waiting_bytes = 0
        self._labels: set[str] = set()
        self._groups: set[str] = set()
        self._rows, self._reasons = Counter[int](), Counter[str]()
        self._labelled, self._lines = 0, LineCounts()

    def add(self, batch: Tokenized) -> None:
        """Takes a batch; its rows wait for `write_if_large`."""
        if len(batch.rows):
            self._waiting.append(batch.rows)
            self._waiting_bytes += batch.rows.size
            self._labels.update(batch.rows.label_names)
            self._groups.update(batch.rows.group_names)
            self._labelled += batch.rows.labelled
        for reject in batch.rejects:
            self._rejected.add(batch.file, self._reject_line(batch.file, reject), order=reject.line)
            self._reasons[reject.reason] += reject.rows
        self._rows[batch.file] += batch.read
        self._lines = self._lines.plus(batch.counts)

    def write_if_large(self) -> None:
        if self._waiting_bytes >= SPILL_BYTES:
            self._write()

    def close(self) -> ReadSummary:
        """Writes what is left, and returns the summary with all segments."""
        self._write()
        summary = self.summary()
        summary.segments, summary.rejected = self._segments.close(), self._rejected.close()
        return summary

    def summary(self) -> ReadSummary:
        """What was counted so far, without segments."""
        return ReadSummary(
            rows=dict(self._rows),
            reasons=dict(self._reasons),
            labels=sorted(self._labels - {""}),
            groups=sorted(self._groups),
            labelled=self._labelled,
            lines=self._lines._asdict(),
        )

    def _write(self) -> None:
        if self._waiting:
            for number, rows in by_range(Rows.joined(self._waiting), self._ranges):
                self._segments.add(number, rows.encode())
            self._segments.flush()
        self._waiting, self._waiting_bytes = [], 0
