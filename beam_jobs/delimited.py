"""csv and tsv: rows of quoted fields, told apart also where a quote is missing.

A quoted field may hold line breaks, so a quote that is never closed, or closed by the next stray one, can glue other
people's rows together into one field. What is done about it:

- A record of several lines is looked at line by line (`_Table.glued`). Where lines inside the field look like rows of this
  file, nobody can tell whose text it is: all of its lines are rejected.
- A record that breaks the rules of quoting is rejected with all of its lines.
- A record longer than the limit is rejected; only the state of its quotes is kept on the way to its end, and how many of its lines
  look like rows.
- A quote still open at the end of the file stops the job.
- The next row begins on the line after, unless the quote that broke the rules opens another row's field of several lines: then
  the lines up to its end are rejected too.
"""

import csv
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from io import BufferedReader
from typing import Any, cast

from beam_jobs.lines import Lines, LongLine, text_lines
from beam_jobs.reading import (
    BROKEN_QUOTING,
    ROWS_IN_A_FIELD,
    TOO_LONG,
    WRONG_FIELDS,
    Columns,
    LineCounts,
    Reject,
    Source,
    require,
)
from tff_pipeline.errors import InputError

SLICE_ROWS = 64  # how many rows come at a time: the fewer, the fewer have to be looked at one by one where one is wrong

_LINE_END = re.compile(r"\r\n|\r|\n")
_SEEN_LABELS = 10_000  # of one file, to recognise its rows by
_STYLE_ROWS = 64  # how many rows tell whether this file has blanks after its delimiters


def check(content: BufferedReader, source: Source) -> None:
    """Looks at the head of a file: InputError if it lacks a configured column."""
    next(read(content, source), None)


def read(content: BufferedReader, source: Source) -> Iterator[Columns]:
    """Every row of a file, at most SLICE_ROWS at a time."""
    lines = Lines(content, limit=source.limit, carriage_returns=True)
    reader = _Reader(source)
    for block in lines:
        if isinstance(block, LongLine):
            yield from reader.long_line(block)
        else:
            yield from reader.block(text_lines(block, carriage_returns=True))
    yield reader.end(lines.read)


class _Rejecting:
    """Lines that are rejected together; `quotes` knows whether the last of them ends what they are part of.

    They stand for as many rows as they are lines, or for one, where they are one text that is too long and the lines inside it
    (`like_rows` of `inner`) do not look like rows.
    """

    def __init__(self, line: int, reason: str, quotes: "_Quotes", lines: int = 0):
        self.line, self.reason, self.quotes, self.lines = line, reason, quotes, lines
        self.certain, self.like_rows, self.inner = False, 0, 0

    @property
    def rows(self) -> int:
        several = self.reason != TOO_LONG or self.certain or self.like_rows > self.inner / 2
        return self.lines if several else 1


class _Reader:
    """Takes a file's lines block by block, returns its rows. Between blocks it keeps the lines of a record without end."""

    def __init__(self, source: Source):
        csv.field_size_limit(sys.maxsize)  # of the whole process; what is given to csv here is within the limit already
        self._source = source
        self._delimiter = "\t" if source.silo.format == "tsv" else ","
        self._table: _Table | None = None
        self._line = 1  # the number of the first line not dealt with
        self._waiting: list[str] = []  # lines from there on, of a record whose end has not come
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
            elif (rows := self._one_by_line(lines[at : at + SLICE_ROWS])) is not None:
                count, columns = len(rows), cast(_Table, self._table).columns(self._line, rows)
            else:
                count, columns = self._one_by_one(lines[at:])
            if count:
                at, self._line = at + count, self._line + count
                yield columns
            elif _size(lines[at:]) <= self._source.limit:
                self._waiting = lines[at:]
                return
            else:
                self._rejecting = _Rejecting(self._line, TOO_LONG, self._quotes())

    def long_line(self, line: LongLine) -> Iterator[Columns]:
        """A line above the limit is rejected, with the record it belongs to."""
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
        """The number of lines of the file, when all have been given.

        Raises:
          InputError: if a quote is still open, or there is no header.
        """
        if self._waiting or self._rejecting is not None:
            line = self._rejecting.line if self._rejecting is not None else self._line
            raise InputError(
                f"{self._source.name}: a quote opened in the row that begins on line {line} is still open at the end of the file; the rows after it cannot be told apart. "
                f"Close it, or set quoting = false for silo {self._source.silo.name!r} if its quotes have no meaning. A file that was cut short ends so too."
            )
        if self._table is None:
            self._table = _Table.of(self._source.silo.columns, self._source, self._delimiter)
        return _columns(counts=LineCounts(read=read))

    def _quotes(self) -> "_Quotes":
        return _Quotes(self._delimiter if self._source.silo.quoting else "")

    def _csv(self, lines: Sequence[str]) -> Any:
        if not self._source.silo.quoting:
            return csv.reader(lines, delimiter=self._delimiter, quoting=csv.QUOTE_NONE)
        # strict: a quote that is still open at the end is an error, not one long last field.
        return csv.reader(lines, delimiter=self._delimiter, strict=True)

    def _one_by_line(self, lines: Sequence[str]) -> list[list[str]] | None:
        """The rows of these lines if each is a row, or blank, as mostly; None if they need a closer look."""
        if self._table is None:
            return None
        try:
            rows = list(self._csv(lines))
        except csv.Error:
            return None
        return rows if len(rows) == len(lines) else None

    def _one_by_one(self, lines: list[str]) -> tuple[int, Columns]:
        """Record by record, for SLICE_ROWS lines or until one has no end here: how many lines those were, and their rows."""
        rows, collected = self._csv(lines), _columns()
        plain: list[list[str]] = []  # rows of one line each, the last ones before `at`
        at = 0
        while at < min(len(lines), SLICE_ROWS) and self._rejecting is None:
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
            collected = _joined(collected, columns)
            at = rows.line_num
        return at, self._with(collected, self._line + at, plain)

    def _with(self, collected: Columns, line: int, plain: list[list[str]]) -> Columns:
        """`collected`, with rows of one line each behind it, which end before `line`."""
        return _joined(collected, cast(_Table, self._table).columns(line - len(plain), plain)) if plain else collected

    def _reason(self, record: Sequence[str], row: Sequence[str] | None) -> str:
        """Why the lines of a record cannot be trusted to be one row; "" if they can."""
        if row is None:
            return BROKEN_QUOTING
        if len(record) > 1 and self._table is not None and self._table.glued(record, row):
            return ROWS_IN_A_FIELD
        if len(record) > 1 and _size(record) > self._source.limit:
            return TOO_LONG
        return ""

    def _reject(self, line: int, record: Sequence[str], reason: str) -> Columns:
        """Rejects a record. One of broken quotes mostly ends at a quote that opens another row's field, not at its own closing
        one: then, if the last line as the beginning of a row leaves a quote open, the lines up to its end are rejected too."""
        rejecting = _Rejecting(line, reason, self._quotes(), len(record))
        if len(record) > 1 and reason == BROKEN_QUOTING:
            rejecting.quotes.feed(record[-1])
        if rejecting.quotes.open:
            self._rejecting = rejecting
            return _columns()
        return self._end_rejecting(rejecting)

    def _reject_more(self, rejecting: _Rejecting, lines: Sequence[str]) -> tuple[int, Columns]:
        """Rejects lines up to the end of the record: how many, and the reject where the end is among them."""
        for count, line in enumerate(lines, start=1):
            inner = rejecting.lines > 0
            rejecting.quotes.feed(line)
            rejecting.lines += 1
            if not rejecting.quotes.open:
                return count, self._end_rejecting(rejecting)
            if inner and self._table is not None and rejecting.reason == TOO_LONG and line.strip():
                like, certain = self._table.like_a_row(line)
                rejecting.inner, rejecting.like_rows = rejecting.inner + 1, rejecting.like_rows + like
                rejecting.certain = rejecting.certain or certain
        return len(lines), _columns()

    def _end_rejecting(self, rejecting: _Rejecting) -> Columns:
        self._rejecting = None
        if self._table is None and not self._source.silo.columns:
            raise InputError(
                f"{self._source.name}: the header, on line {rejecting.line}, cannot be read ({rejecting.reason}); expected the names of the columns in at most "
                f"{self._source.limit:,} bytes, and a closing quote for each opening one."
            )
        reject = Reject(rejecting.line, rejecting.reason, rejecting.rows)
        return _columns([reject], LineCounts(rejected=rejecting.lines))

    def _take(self, line: int, lines: int, row: list[str]) -> Columns:
        """A record as columns; the first one says what the columns are."""
        if not row:
            return _columns(counts=LineCounts(blank=lines))
        if self._table is None:
            given = self._source.silo.columns
            self._table = _Table.of(given or row, self._source, self._delimiter)
            self._table.prime(self._head)
            if not given:
                return _columns(counts=LineCounts(header=lines))
            _refuse_header(row, self._source)
        columns = self._table.columns(line, [row])
        kind = "rows" if columns.lines else "rejected"
        return columns._replace(counts=LineCounts(**{kind: lines}))


# -- the table ---------------------------------------------------------------------------------------------------------


class _Table:
    """The columns of a file, and what its rows look like."""

    def __init__(self, header: Sequence[str], source: Source, delimiter: str):
        self._width, self._delimiter, self._listed = len(header), delimiter, source.labels
        self._at = [header.index(column) if column else None for column in source.wanted]
        self._seen: set[str] = set(source.labels or ())
        self._styled = self._blanks = 0  # rows looked at, and those of them that have a blank after the first delimiter

    @classmethod
    def of(cls, header: Sequence[str], source: Source, delimiter: str) -> "_Table":
        """The table of a header.

        Raises:
          InputError: if it lacks a configured column, or has it twice.
        """
        given = bool(source.silo.columns)
        require(
            header,
            source,
            kind="column",
            location="`columns`" if given else "the first line",
            shown="all" if given else "none",
            hint="" if given else ", or set `columns` if the file has no header",
        )
        return cls(header, source, delimiter)

    def columns(self, line: int, rows: list[list[str]]) -> Columns:
        """Rows of one line each, the first of them on `line`; a blank line is an empty row."""
        kept, rejects, blank = range(line, line + len(rows)), list[Reject](), 0
        if set(map(len, rows)) != {self._width}:
            rejects = [
                Reject(number, WRONG_FIELDS)
                for number, row in zip(kept, rows, strict=True)
                if row and len(row) != self._width
            ]
            blank = sum(not row for row in rows)
            kept = [number for number, row in zip(kept, rows, strict=True) if len(row) == self._width]  # type: ignore[assignment]
            rows = [row for row in rows if len(row) == self._width]
        fields = [[""] * len(rows) if at is None else [row[at] for row in rows] for at in self._at]
        self._remember(fields[1], rows)
        counts = LineCounts(rows=len(rows), rejected=len(rejects), blank=blank)
        return Columns(list(kept), *fields, rejects, counts)  # type: ignore[arg-type]

    def prime(self, lines: Sequence[str]) -> None:
        """Learns labels from the head of a file, whatever its first rows are: those that several lines without quotes have."""
        rows = [line.rstrip("\r\n").split(self._delimiter) for line in lines if '"' not in line]
        rows = [
            row for row in rows if len(row) == self._width and all(row) and not any(field[0].isspace() for field in row)
        ]
        label = self._at[1]
        if label is not None:
            times = Counter(row[label] for row in rows)
            self._remember([name for name, count in times.items() if count >= max(2, len(rows) / 50)], [])

    def _remember(self, labels: list[str], rows: list[list[str]]) -> None:
        if self._listed is None and len(self._seen) < _SEEN_LABELS:
            self._seen.update(map(str.strip, set(labels) - self._seen))
            self._seen.discard("")
        if self._styled < _STYLE_ROWS and self._width > 1:
            self._styled += len(rows)
            self._blanks += sum(row[1][:1].isspace() for row in rows)

    def glued(self, record: Sequence[str], row: Sequence[str]) -> bool:
        """Whether the line breaks inside a record's fields are the ends of other rows.

        Lines inside a field are split at each delimiter, quotes counting as characters. A line looks like a row if it has as
        many fields as the header, no blank after a delimiter (where other rows of the file have none), as "Dear Sir, I write"
        has, and a label or a client where a row has them. The first and the last line belong to their own row as well: they
        are looked at where delimiters inside the field give them as many fields as a row has, and only those fields count.
        True if one of the lines has a label that the file has, or if more than half of them look like rows. No label, client
        or group has a line break of its own, so where one has it is true too.
        """
        broken = [at for at, field in enumerate(row) if "\n" in field or "\r" in field]
        names = [row[at] for at in self._at[1:] if at in broken]
        if any("\n" in name.strip() or "\r" in name.strip() for name in names):
            return True
        lines = alike = 0
        for fields, begin, end in self._parts(record, row, broken):
            like, certain = self._like_a_row(fields, begin, end)
            if certain:
                return True
            lines, alike = lines + 1, alike + like
        return alike > lines / 2

    def _parts(
        self, record: Sequence[str], row: Sequence[str], broken: Sequence[int]
    ) -> Iterator[tuple[list[str], int, int]]:
        """The fields of each line of a record, one line at a time, and which of them are evidence (see `_like_a_row`)."""
        every = len(row) != self._width or not broken
        filled = (at for at, line in enumerate(record) if line.strip())
        last_line = next((at for at in reversed(range(len(record))) if record[at].strip()), 0)
        if not every:
            next(filled, None)
        for at in filled:
            if every or at < last_line:
                yield self._split(record[at]), 0, self._width
        if every:
            return
        first, last = broken[0], broken[-1]
        if first < self._width - 1:
            begin = _LINE_END.split(row[first], maxsplit=1)[0]
            yield [*row[:first], *begin.split(self._delimiter)], first + 1, self._width
        if last > 0:
            end = row[last][max(row[last].rfind("\n"), row[last].rfind("\r")) + 1 :]
            yield [*end.split(self._delimiter), *row[last + 1 :]], 0, last

    def like_a_row(self, line: str) -> tuple[bool, bool]:
        """Whether a line inside a field looks like a row, and whether its label says that it surely is one."""
        return self._like_a_row(self._split(line), 0, self._width)

    def _split(self, line: str) -> list[str]:
        return line.rstrip("\r\n").split(self._delimiter)

    def _like_a_row(self, fields: Sequence[str], begin: int, end: int) -> tuple[bool, bool]:
        """Whether fields look like a row, and whether their label says that they surely are one; those from `begin` to `end`
        (exclusive) are evidence, the others are the row's own."""
        spaced = self._blanks > self._styled / 2
        blank = [not spaced and at > 0 and field[:1].isspace() for at, field in enumerate(fields)]
        text, label, client = self._at[:3]
        certain = False
        if label is not None and text is not None and begin <= label < end:
            # Counted from the side where no text lies between: a text whose quotes are gone may hold delimiters, or go on.
            if label < text and len(fields) > label + 1:
                certain = fields[label].strip(' \t"') in self._seen and not any(blank[label : label + 2])
            elif label > text and (at := len(fields) + label - self._width) > max(0, begin - 1):
                certain = fields[at].strip(' \t"') in self._seen and not blank[at]
        if len(fields) != self._width:
            return certain, certain
        names = [fields[at].strip(' \t"') for at in (label, client) if at is not None and begin <= at < end]
        empty = text is not None and begin <= text < end and not fields[text].strip(' \t"')  # "Dear Sir," before a text
        like = not empty and not any(blank[max(1, begin) : end + 1]) and (not names or any(names))
        return certain or like, certain


def _refuse_header(row: Sequence[str], source: Source) -> None:
    """InputError where `columns` is set and the first row is a header nevertheless."""
    given = source.silo.columns
    same = sum(field.strip().strip('"') in given for field in row)
    if same and same >= min(2, len(given)):
        raise InputError(
            f"{source.name}: the first line is a header (it holds {same} of the {len(given)} names in `columns`), and `columns` is for files without one. "
            f"Remove `columns` of silo {source.silo.name!r}, or the first line."
        )


def _columns(rejects: list[Reject] | None = None, counts: LineCounts | None = None) -> Columns:
    return Columns([], [], [], [], [], rejects or [], counts or LineCounts())


def _joined(first: Columns, second: Columns) -> Columns:
    """`first`, with what `second` holds behind it."""
    for column, values in zip(first[:6], second[:6], strict=True):
        column.extend(values)  # type: ignore[arg-type]
    return first._replace(counts=first.counts.plus(second.counts))


def _size(lines: Sequence[str]) -> int:
    """Their bytes."""
    return sum(len(line) if line.isascii() else len(line.encode("utf-8", "surrogateescape")) for line in lines)


class _Quotes:
    """Whether a quoted field is open, told from text that is not kept. Follows Python's csv in its strict mode."""

    def __init__(self, delimiter: str):
        self._delimiter = delimiter  # "" where quotes have no meaning
        self._state = "start"  # of a field; or "plain", "quoted", "quote" (inside a quoted field), "broken"

    @property
    def open(self) -> bool:
        return self._state == "quoted"

    def feed(self, text: str) -> None:
        """Goes on through text that ends anywhere; a line end outside of quotes begins a new record."""
        at = 0
        while at < len(text) and self._delimiter:
            if self._state == "quoted":
                quote = text.find('"', at)
                at = quote + 1 if quote >= 0 else len(text)
                self._state = "quote" if quote >= 0 else "quoted"
            elif self._state in ("start", "quote") and text[at] == '"':
                at, self._state = at + 1, "quoted"
            else:
                at = self._outside(text, at)

    def _outside(self, text: str, at: int) -> int:
        """To where a quote may open a field, or to the end."""
        quote = text.find('"', at)
        end = quote if quote >= 0 else len(text)
        if text[at] not in (self._delimiter, "\r", "\n") and self._state in ("quote", "start"):
            self._state = "broken" if self._state == "quote" else "plain"
        line = max(text.rfind("\n", at, end), text.rfind("\r", at, end))
        if line >= 0:
            self._state, at = "start", line + 1
        if at < end and self._state != "broken":
            self._state = "start" if text[end - 1] == self._delimiter else "plain"
        if end == quote and self._state != "start":
            return end + 1  # a quote in the middle of a field is a character
        return end
