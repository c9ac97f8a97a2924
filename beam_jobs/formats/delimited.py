"""csv and tsv: rows of quoted fields, kept apart also where a quote is missing.

A quoted field may hold line breaks, so a quote that is never closed, or closed by the next stray one, can glue other
people's rows together into one field. The rules against that:

- A record of several lines is examined line by line (`Table.glued`). Where lines inside the field look like rows of this
  file, nobody can tell whose text it is: all of its lines are rejected.
- A record that breaks the rules of quoting is rejected with all of its lines.
- A record longer than the limit is rejected. On the way to its end only the state of its quotes is kept, and how many of
  its lines look like rows.
- A quote still open at the end of the file stops the job.
- The next row begins on the line after. But if the quote that broke the rules opens another row's field of several lines,
  the lines up to that field's end are rejected too.
"""

import csv
import sys
from collections.abc import Iterator, Sequence
from io import BufferedReader
from typing import Any

from beam_jobs import reading
from beam_jobs.formats.quoting import Quotes
from beam_jobs.formats.table import Table, refuse_header
from beam_jobs.lines import Lines, LongLine, text_lines
from beam_jobs.reading import BROKEN_QUOTING, ROWS_IN_A_FIELD, TOO_LONG, Columns, LineCounts, Reject, Source
from tff_pipeline.errors import InputError


def check(content: BufferedReader, source: Source) -> None:
    """Raises InputError if the file lacks a configured column; reads no more than its head."""
    next(read(content, source), None)


def read(content: BufferedReader, source: Source) -> Iterator[Columns]:
    """Every row of a file, at most reading.SLICE_ROWS at a time."""
    lines = Lines(content, limit=source.max_row_bytes, carriage_returns=True)
    reader = _Reader(source)
    for block in lines:
        if isinstance(block, LongLine):
            yield from reader.long_line(block)
        else:
            yield from reader.block(text_lines(block, carriage_returns=True))
    yield reader.end(lines.read)


class _Rejecting:
    """Lines that are rejected together, from `line` on; `quotes` knows whether the last one ends the record they belong to."""

    def __init__(self, line: int, reason: str, quotes: Quotes, lines: int = 0):
        self.line, self.reason, self.quotes, self.lines = line, reason, quotes, lines
        self._examined = self._like_rows = (
            0  # lines inside a record that is too long, and those of them that look like rows
        )
        self._certain = False

    def add(self, line: str, table: Table | None) -> bool:
        """Takes one more line, and returns whether the record ends with it."""
        inside = self.lines > 0
        self.quotes.feed(line)
        self.lines += 1
        if not self.quotes.open:
            return True
        if inside and table is not None and self.reason == TOO_LONG and line.strip():
            like, certain = table.like_a_row(line)
            self._examined, self._like_rows = self._examined + 1, self._like_rows + like
            self._certain = self._certain or certain
        return False

    @property
    def rows(self) -> int:
        """As many as there are lines; or one, where the lines are one long text, since those inside it do not look like rows."""
        several = self.reason != TOO_LONG or self._certain or self._like_rows > self._examined / 2
        return self.lines if several else 1


class _Reader:
    """Takes a file's lines block by block, and returns its rows. Between blocks it keeps the lines of an unfinished record."""

    def __init__(self, source: Source):
        csv.field_size_limit(sys.maxsize)  # of the whole process; what csv is given here is within the limit already
        self._source = source
        self._delimiter = "\t" if source.silo.format == "tsv" else ","
        self._table: Table | None = None
        self._line = 1  # the number of the first line not dealt with
        self._waiting: list[str] = []  # lines from that one on, of a record whose end has not come
        self._rejecting: _Rejecting | None = None
        self._head: list[str] = []  # the block that begins with the header

    def block(self, lines: list[str]) -> Iterator[Columns]:
        """Rows of a block of whole lines."""
        lines, self._waiting = self._waiting + lines, []
        self._head = lines if self._table is None else []
        at = 0
        while at < len(lines):
            if self._rejecting is not None:
                count, columns = self._reject_more(self._rejecting, lines[at:])
            else:
                count, columns = self._one_by_line(lines[at : at + reading.SLICE_ROWS]) or self._one_by_one(lines[at:])
            if count:
                at, self._line = at + count, self._line + count
                yield columns
            elif _size(lines[at:]) <= self._source.max_row_bytes:
                self._waiting = lines[at:]
                return
            else:
                self._rejecting = _Rejecting(self._line, TOO_LONG, self._quotes())

    def long_line(self, line: LongLine) -> Iterator[Columns]:
        """Rejects a line above the limit, with the record it belongs to."""
        rejecting = self._rejecting = self._rejecting or _Rejecting(self._line, TOO_LONG, self._quotes())
        waiting, self._waiting = self._waiting, []
        self._reject_more(rejecting, waiting)
        for piece in line.pieces:
            rejecting.quotes.feed(piece.decode("latin-1"))  # quotes and delimiters are ASCII
        rejecting.lines += 1
        self._line += len(waiting) + 1
        if not rejecting.quotes.open:
            yield self._end_rejecting(rejecting)

    def end(self, read: int) -> Columns:
        """Ends the file: returns its number of lines, in `counts`.

        Raises:
          InputError: if a quote is still open, or there is no header.
        """
        if self._waiting or self._rejecting is not None:
            line = self._rejecting.line if self._rejecting is not None else self._line
            raise InputError(
                f"{self._source.name}: a quote opened in the row that begins on line {line} is still open at the end of the file; expected a closing quote, without which the rows after it cannot be kept apart. "
                f"Close it, or set quoting = false for silo {self._source.silo.name!r} if its quotes have no meaning; if the file was cut short, export it again."
            )
        if self._table is None:
            self._table = Table(self._source.silo.columns, self._source, self._delimiter)
        return Columns.without_rows(counts=LineCounts(read=read))

    def _quotes(self) -> Quotes:
        return Quotes(self._delimiter if self._source.silo.quoting else "")

    def _csv(self, lines: Sequence[str]) -> Any:
        if not self._source.silo.quoting:
            return csv.reader(lines, delimiter=self._delimiter, quoting=csv.QUOTE_NONE)
        # strict: a quote that is still open at the end is an error, not one long last field.
        return csv.reader(lines, delimiter=self._delimiter, strict=True)

    def _one_by_line(self, lines: Sequence[str]) -> tuple[int, Columns] | None:
        """How many lines these are, and their rows, if every line is a row or blank, as in most files; None if they need a
        closer look."""
        if self._table is None:
            return None
        try:
            rows = list(self._csv(lines))
        except csv.Error:
            return None
        return (len(rows), self._table.columns(self._line, rows)) if len(rows) == len(lines) else None

    def _one_by_one(self, lines: list[str]) -> tuple[int, Columns]:
        """Takes record by record, for SLICE_ROWS lines or until one has no end here: how many lines, and their rows."""
        rows, collected = self._csv(lines), Columns.without_rows()
        plain: list[list[str]] = []  # rows of one line each, those just before `at`
        at = 0
        while at < min(len(lines), reading.SLICE_ROWS) and self._rejecting is None:
            try:
                row = next(rows)
            except csv.Error as error:
                if "unexpected end of data" in str(error):
                    break
                row = None
            if row is not None and rows.line_num == at + 1 and self._table is not None:
                plain.append(row)
                at += 1
                continue
            collected, plain = self._with(collected, self._line + at, plain), []
            record, line = lines[at : rows.line_num], self._line + at
            if reason := self._reason(record, row):
                columns = self._reject(line, record, reason)
            else:
                columns = self._take(line, len(record), row or [])
            collected = collected.plus(columns)
            at = rows.line_num
        return at, self._with(collected, self._line + at, plain)

    def _with(self, collected: Columns, line: int, plain: list[list[str]]) -> Columns:
        """`collected`, with rows of one line each behind it, which end before `line`."""
        if self._table is None or not plain:
            return collected
        return collected.plus(self._table.columns(line - len(plain), plain))

    def _reason(self, record: Sequence[str], row: Sequence[str] | None) -> str:
        """Why the lines of a record cannot be trusted to be one row; "" if they can."""
        if row is None:
            return BROKEN_QUOTING
        if len(record) > 1 and self._table is not None and self._table.glued(record, row):
            return ROWS_IN_A_FIELD
        if len(record) > 1 and _size(record) > self._source.max_row_bytes:
            return TOO_LONG
        return ""

    def _reject(self, line: int, record: Sequence[str], reason: str) -> Columns:
        """Rejects a record. One with broken quotes mostly ends at a quote that opens another row's field, not at a closing one
        of its own. So if its last line, taken as the beginning of a row, leaves a quote open, the lines up to that row's end
        are rejected too."""
        rejecting = _Rejecting(line, reason, self._quotes(), len(record))
        if len(record) > 1 and reason == BROKEN_QUOTING:
            rejecting.quotes.feed(record[-1])
        if rejecting.quotes.open:
            self._rejecting = rejecting
            return Columns.without_rows()
        return self._end_rejecting(rejecting)

    def _reject_more(self, rejecting: _Rejecting, lines: Sequence[str]) -> tuple[int, Columns]:
        """Rejects lines up to the end of the record: how many, and the reject if the end is among them."""
        for count, line in enumerate(lines, start=1):
            if rejecting.add(line, self._table):
                return count, self._end_rejecting(rejecting)
        return len(lines), Columns.without_rows()

    def _end_rejecting(self, rejecting: _Rejecting) -> Columns:
        self._rejecting = None
        if self._table is None and not self._source.silo.columns:
            raise InputError(
                f"{self._source.name}: the header, on line {rejecting.line}, cannot be read ({rejecting.reason}); expected the names of the columns in at most "
                f"{self._source.max_row_bytes:,} bytes, and a closing quote for each opening one."
            )
        reject = Reject(rejecting.line, rejecting.reason, rejecting.rows)
        return Columns.without_rows([reject], LineCounts(rejected=rejecting.lines))

    def _take(self, line: int, lines: int, row: list[str]) -> Columns:
        """A record as columns; the first record names the columns, unless the configuration does."""
        if not row:
            return Columns.without_rows(counts=LineCounts(blank=lines))
        if self._table is None:
            given = self._source.silo.columns
            self._table = Table(given or row, self._source, self._delimiter)
            self._table.prime(self._head)
            if not given:
                return Columns.without_rows(counts=LineCounts(header=lines))
            refuse_header(row, self._source)
        columns = self._table.columns(line, [row])
        kind = "rows" if columns.lines else "rejected"
        return columns._replace(counts=LineCounts(**{kind: lines}))


def _size(lines: Sequence[str]) -> int:
    """Their bytes."""
    return sum(len(line) if line.isascii() else len(line.encode("utf-8", "surrogateescape")) for line in lines)
