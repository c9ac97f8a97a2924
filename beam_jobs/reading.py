"""What all readers of raw files share: a row and its fields, reasons for a reject, counts of lines, checks of column names.

No message holds a value of a row. The first line of a csv may be a row where a header was expected, and the keys of a JSON
object may be names of people; so messages give the number of columns, and show only names that the configuration holds.
"""

import difflib
import operator
from collections.abc import Sequence
from typing import Literal, NamedTuple

from tff_pipeline.config import PrepareSection, SiloSection
from tff_pipeline.errors import InputError

NOT_UTF8 = "not UTF-8"
NOT_JSON = "not JSON"
NOT_A_VALUE = "field is not text"
MISSING_FIELD = "missing field"
REPEATED_KEY = "repeated key"
WRONG_FIELDS = "wrong number of fields"
BROKEN_QUOTING = "broken quoting"
ROWS_IN_A_FIELD = "quoted line breaks that look like rows"
TOO_LONG = "too long"

MAX_ROW_BYTES = PrepareSection().max_row_bytes
SLICE_ROWS = 64  # how many rows a reader yields at a time; one that is wrong costs a closer look at this many
INEXACT_FLOATS = 2**53  # from this size on, one float may stand for several whole numbers
CONFIGURED = ("text", "label", "client", "group")  # the keys of a silo's section that name columns
_SIMILAR = 0.8  # difflib's ratio above which a name counts as a misspelling of another

Value = str | tuple[str, ...]


class Fields(NamedTuple):
    """The columns of a row that the configuration names. A sentence (conll) has tuples for text and label, one item a word."""

    text: Value
    label: Value
    client: str
    group: str


class Reject(NamedTuple):
    """A row that is not used. Where damaged quotes hide the limits of rows, it stands for each of its `rows` lines, from
    `line` on."""

    line: int
    reason: str
    rows: int = 1


class RawRow(NamedTuple):
    line: int
    fields: Fields | None
    reason: str = ""


class LineCounts(NamedTuple):
    """How many lines of a file (of parquet: rows) a reader took in, and how many of them are of each kind.

    `read` is counted where the file is cut into lines, before any reader interprets them; the others are counted where a line
    is dealt with. A line is of exactly one kind, so the kinds add up to `read`.
    """

    read: int = 0
    rows: int = 0
    rejected: int = 0  # lines from which no row could be made
    header: int = 0
    blank: int = 0
    comments: int = 0
    document_marks: int = 0

    @property
    def missing(self) -> int:
        """How many lines were read and not accounted for: 0, or prepare has a defect."""
        return self.read - sum(self[1:])

    def plus(self, other: "LineCounts") -> "LineCounts":
        return LineCounts(*map(operator.add, self, other))


class Columns(NamedTuple):
    """Consecutive rows: line and fields of the good ones, column by column; the others as rejects."""

    lines: list[int]
    texts: list[Value]
    labels: list[Value]
    clients: list[str]
    groups: list[str]
    rejects: list[Reject]
    counts: LineCounts = LineCounts()

    @classmethod
    def without_rows(cls, rejects: Sequence[Reject] = (), counts: LineCounts | None = None) -> "Columns":
        return cls([], [], [], [], [], list(rejects), counts or LineCounts())

    def add(self, line: int, fields: Sequence[Value]) -> None:
        """Appends one row."""
        for column, value in zip(self[:5], (line, *fields), strict=True):
            column.append(value)  # type: ignore[arg-type]

    def plus(self, other: "Columns") -> "Columns":
        """These rows and those of `other` behind them; the lists of `self` grow."""
        for column, values in zip(self[:6], other[:6], strict=True):
            column.extend(values)  # type: ignore[arg-type]
        return self._replace(counts=self.counts.plus(other.counts))


class Source(NamedTuple):
    """How a file is read: its silo's section of the configuration, its name for messages, the size limit of a row, and the
    labels, where the configuration lists them."""

    silo: SiloSection
    name: str
    max_row_bytes: int = MAX_ROW_BYTES
    labels: frozenset[str] | None = None

    @property
    def columns(self) -> tuple[str, str, str, str]:
        """The names of the columns for text, label, client and group; "" for one that is not configured."""
        return self.silo.text, self.silo.label, self.silo.client, self.silo.group


def text_size(text: Value) -> int:
    """Characters of a text, or of the words of a sentence."""
    return len(text) if isinstance(text, str) else sum(map(len, text))


# -- the columns that a file must have ---------------------------------------------------------------------------------

Shown = Literal["all", "near", "none"]


def require_columns(
    names: Sequence[str], source: Source, *, kind: str, location: str, shown: Shown = "none", hint: str = ""
) -> None:
    """Raises InputError for the first configured column that `names` lacks, or has more than once.

    Args:
      names: what the file has.
      kind: what they are: "column", "field", "comment key".
      location: where they were looked for.
      shown: which of them the message may hold beside configured ones: all; those that are spelled much like a configured
        one; or none, where they could be a row's values, so that the message gives positions only.
      hint: what else helps where one is missing.
    """
    for key, column in zip(CONFIGURED, source.columns, strict=True):
        if not column or names.count(column) == 1:
            continue
        if column in names:
            raise InputError(
                f"{source.name}: the {kind} {column!r} occurs {names.count(column)} times; expected once. Rename one of them."
            )
        raise InputError(
            f"{source.name}: the {kind} {column!r} is missing from {location}; {_described(names, source, kind, shown)}."
            f"{_similar(column, names, kind, shown)} Correct `{key}` of silo {source.silo.name!r} in the configuration{hint}."
        )


def _described(names: Sequence[str], source: Source, kind: str, shown: Shown) -> str:
    if shown == "all":
        return f"found {', '.join(map(repr, names)) or 'none'}"
    configured = [column for column in dict.fromkeys(source.columns) if column and column in names]
    among = f", among them {', '.join(map(repr, configured))}" if configured else ", none of them configured"
    return f"found {len(names)} {kind}{'s' if len(names) != 1 else ''}{among if names else ''}"


def _similar(column: str, names: Sequence[str], kind: str, shown: Shown) -> str:
    """A hint at a misspelled name: the name itself, or where it may be a row's value, its position."""
    similar = difflib.get_close_matches(column, names, n=1, cutoff=0.6 if shown == "all" else _SIMILAR)
    if not similar:
        return ""
    if shown == "none":
        return f" The {kind} at position {names.index(similar[0]) + 1} is spelled much like it."
    return f" Did you mean {similar[0]!r}?"
