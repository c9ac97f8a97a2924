"""The columns of a csv or tsv file, and what its rows look like: whether a field's lines are text, or other people's rows.

A quote that is never closed, or closed by the next stray one, glues rows together into one field. `Table.glued` recognizes
such a field by what the file's rows have: as many fields as the header, labels, and blanks after delimiters or none.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from beam_jobs.reading import WRONG_FIELDS, Columns, LineCounts, Reject, Source, require_columns
from tff_pipeline.errors import InputError

_LINE_END = re.compile(r"\r\n|\r|\n")
_KNOWN_LABELS = 10_000  # of one file, by which its rows are recognized
_STYLE_ROWS = 64  # how many rows tell whether the file has blanks after its delimiters


class Table:
    """The columns of a file, and what its rows look like. Labels are learned as rows are read."""

    def __init__(self, header: Sequence[str], source: Source, delimiter: str):
        """Takes the names of the columns.

        Raises:
          InputError: if they lack a configured column, or have it twice.
        """
        given = bool(source.silo.columns)
        require_columns(
            header,
            source,
            kind="column",
            location="`columns`" if given else "the first line",
            shown="all" if given else "none",
            hint="" if given else ", or set `columns` if the file has no header",
        )
        self._width, self._delimiter, self._listed = len(header), delimiter, source.labels
        self._at = [header.index(column) if column else None for column in source.columns]
        self._labels: set[str] = set(source.labels or ())
        self._styled = self._blanks = 0  # rows examined, and those of them with a blank after the first delimiter

    def columns(self, line: int, rows: list[list[str]]) -> Columns:
        """Rows of one line each, the first of them on `line`; a blank line is an empty row."""
        lines, rejects, blank = range(line, line + len(rows)), list[Reject](), 0
        if set(map(len, rows)) != {self._width}:
            rejects = [
                Reject(number, WRONG_FIELDS)
                for number, row in zip(lines, rows, strict=True)
                if row and len(row) != self._width
            ]
            blank = sum(not row for row in rows)
            lines = [number for number, row in zip(lines, rows, strict=True) if len(row) == self._width]  # type: ignore[assignment]
            rows = [row for row in rows if len(row) == self._width]
        fields = [[""] * len(rows) if at is None else [row[at] for row in rows] for at in self._at]
        self._learn(fields[1], rows)
        counts = LineCounts(rows=len(rows), rejected=len(rejects), blank=blank)
        return Columns(list(lines), *fields, rejects, counts)  # type: ignore[arg-type]

    def prime(self, lines: Sequence[str]) -> None:
        """Learns labels from the head of a file, whatever its first rows are: those that several lines without quotes have."""
        rows = [line.rstrip("\r\n").split(self._delimiter) for line in lines if '"' not in line]
        rows = [
            row for row in rows if len(row) == self._width and all(row) and not any(field[0].isspace() for field in row)
        ]
        label = self._at[1]
        if label is not None:
            times = Counter(row[label] for row in rows)
            self._learn([name for name, count in times.items() if count >= max(2, len(rows) / 50)], [])

    def _learn(self, labels: list[str], rows: list[list[str]]) -> None:
        if self._listed is None and len(self._labels) < _KNOWN_LABELS:
            self._labels.update(map(str.strip, set(labels) - self._labels))
            self._labels.discard("")
        if self._styled < _STYLE_ROWS and self._width > 1:
            self._styled += len(rows)
            self._blanks += sum(row[1][:1].isspace() for row in rows)

    # -- rows inside a field -------------------------------------------------------------------------------------------

    def glued(self, record: Sequence[str], row: Sequence[str]) -> bool:
        """Whether the line breaks inside a record's fields are the ends of other rows.

        Lines inside a field are split at each delimiter, quotes counting as characters. A line looks like a row if it has as
        many fields as the header, no blank after a delimiter (where other rows of the file have none), as "Dear Sir, I write"
        has, and a label or a client where a row has them. The first and the last line belong to their own row as well: they
        are examined where delimiters inside the field give them as many fields as a row has, and only those fields count.
        True if one of the lines has a label that the file has, or if more than half of them look like rows. No label, client
        or group has a line break of its own, so a line break in one of them counts too.
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
        all_lines = len(row) != self._width or not broken
        filled = (at for at, line in enumerate(record) if line.strip())
        last_line = next((at for at in reversed(range(len(record))) if record[at].strip()), 0)
        if not all_lines:
            next(filled, None)
        for at in filled:
            if all_lines or at < last_line:
                yield self._split(record[at]), 0, self._width
        if all_lines:
            return
        first, last = broken[0], broken[-1]
        if first < self._width - 1:
            begin = _LINE_END.split(row[first], maxsplit=1)[0]
            yield [*row[:first], *begin.split(self._delimiter)], first + 1, self._width
        if last > 0:
            end = row[last][max(row[last].rfind("\n"), row[last].rfind("\r")) + 1 :]
            yield [*end.split(self._delimiter), *row[last + 1 :]], 0, last

    def like_a_row(self, line: str) -> tuple[bool, bool]:
        """Whether a line inside a field looks like a row, and whether its label shows that it surely is one."""
        return self._like_a_row(self._split(line), 0, self._width)

    def _split(self, line: str) -> list[str]:
        return line.rstrip("\r\n").split(self._delimiter)

    def _like_a_row(self, fields: Sequence[str], begin: int, end: int) -> tuple[bool, bool]:
        """Whether fields look like a row, and whether their label shows that they surely are one. Those from `begin` to `end`
        (exclusive) are evidence; the others are the row's own."""
        spaced = self._blanks > self._styled / 2
        blank = [not spaced and at > 0 and field[:1].isspace() for at, field in enumerate(fields)]
        text, label, client = self._at[:3]
        certain = False
        if label is not None and text is not None and begin <= label < end:
            # Counted from the side where no text lies between: a text whose quotes are gone may hold delimiters, or go on.
            if label < text and len(fields) > label + 1:
                certain = fields[label].strip(' \t"') in self._labels and not any(blank[label : label + 2])
            elif label > text and (at := len(fields) + label - self._width) > max(0, begin - 1):
                certain = fields[at].strip(' \t"') in self._labels and not blank[at]
        if len(fields) != self._width:
            return certain, certain
        names = [fields[at].strip(' \t"') for at in (label, client) if at is not None and begin <= at < end]
        empty = text is not None and begin <= text < end and not fields[text].strip(' \t"')  # "Dear Sir," before a text
        like = not empty and not any(blank[max(1, begin) : end + 1]) and (not names or any(names))
        return certain or like, certain


def refuse_header(row: Sequence[str], source: Source) -> None:
    """InputError where `columns` is set and the first row is a header nevertheless."""
    given = source.silo.columns
    same = sum(field.strip().strip('"') in given for field in row)
    if same and same >= min(2, len(given)):
        raise InputError(
            f"{source.name}: the first line is a header (it holds {same} of the {len(given)} names in `columns`); expected a row, since `columns` is for files without a header. "
            f"Remove `columns` of silo {source.silo.name!r}, or the first line."
        )
