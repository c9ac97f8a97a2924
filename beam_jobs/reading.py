"""What every reader of raw files shares: rows as columns, why a row is rejected, how lines are counted, what is said of columns.

No message holds a value of a row. The first line of a csv may be a row where it should be a header, and the keys of a JSON
object may be names of people; so messages give the number of columns, and only names that the configuration itself holds.
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
_RESEMBLES = 0.8  # difflib's ratio from which a name is taken for a misspelling of another one

Value = str | tuple[str, ...]


class Fields(NamedTuple):
    """The columns of a row that the configuration names; text and label of a sentence (conll) are tuples, one item a word."""

    text: Value
    label: Value
    client: str
    group: str


class Reject(NamedTuple):
    """A row that is not used. Where quotes are damaged nobody can tell rows apart: then it stands for all of its `rows`
    lines, from `line` on."""

    line: int
    reason: str
    rows: int = 1


class RawRow(NamedTuple):
    line: int
    fields: Fields | None
    reason: str = ""


class LineCounts(NamedTuple):
    """What became of a file's lines (of parquet: rows). `read` is counted where lines are told apart, before anything looks
    into them; the others where each is dealt with. A line is of exactly one kind, so these add up to `read`."""

    read: int = 0
    rows: int = 0
    rejected: int = 0  # lines of which no row could be made
    header: int = 0
    blank: int = 0
    comments: int = 0
    document_marks: int = 0

    @property
    def missing(self) -> int:
        """Lines read that nothing accounts for: 0, or prepare has a defect."""
        return self.read - sum(self[1:])

    def plus(self, other: "LineCounts") -> "LineCounts":
        return LineCounts(*map(operator.add, self, other))


class Columns(NamedTuple):
    """Consecutive rows: number and fields of those that have fields, column by column; the others as rejects."""

    lines: list[int]
    texts: list[Value]
    labels: list[Value]
    clients: list[str]
    groups: list[str]
    rejects: list[Reject]
    counts: LineCounts = LineCounts()


class Source(NamedTuple):
    """Where rows come from: the silo's section of the configuration, the file's name for messages, the largest row in bytes,
    and the labels, where the configuration lists them."""

    silo: SiloSection
    name: str
    limit: int = MAX_ROW_BYTES
    labels: frozenset[str] | None = None

    @property
    def wanted(self) -> tuple[str, str, str, str]:
        """The column names of text, label, client and group; "" for one that is not configured."""
        return self.silo.text, self.silo.label, self.silo.client, self.silo.group


Shown = Literal["all", "near", "none"]


def require(
    names: Sequence[str], source: Source, *, kind: str, location: str, shown: Shown = "none", hint: str = ""
) -> None:
    """InputError for the first configured column that `names` lacks, and for one that is there twice.

    Args:
      names: what the file has.
      kind: what they are: "column", "field", "comment key".
      location: where they were looked for.
      shown: which of them the message may hold beside configured ones: all; those that are spelled much like a configured
        one; or none, where they could be a row's values, and positions say enough.
      hint: what else may be done about a missing one.
    """
    for key, column in zip(("text", "label", "client", "group"), source.wanted, strict=True):
        if not column or names.count(column) == 1:
            continue
        if column in names:
            raise InputError(
                f"{source.name}: the {kind} {column!r} is there {names.count(column)} times; expected once. Rename one of them."
            )
        raise InputError(
            f"{source.name}: there is no {kind} {column!r} in {location}; {_described(names, source, kind, shown)}."
            f"{_near(column, names, kind, shown)} Correct `{key}` of silo {source.silo.name!r} in the configuration{hint}."
        )


def _described(names: Sequence[str], source: Source, kind: str, shown: Shown) -> str:
    if shown == "all":
        return f"found {', '.join(map(repr, names)) or 'none'}"
    configured = [column for column in dict.fromkeys(source.wanted) if column and column in names]
    among = f", among them {', '.join(map(repr, configured))}" if configured else ", none of them configured"
    return f"found {len(names)} {kind}{'s' if len(names) != 1 else ''}{among if names else ''}"


def _near(column: str, names: Sequence[str], kind: str, shown: Shown) -> str:
    """A hint at a misspelt name: the name itself, or where it may be a row's value, its position."""
    near = difflib.get_close_matches(column, names, n=1, cutoff=0.6 if shown == "all" else _RESEMBLES)
    if not near:
        return ""
    if shown == "none":
        return f" The {kind} at position {names.index(near[0]) + 1} is spelled much like it."
    return f" Did you mean {near[0]!r}?"
