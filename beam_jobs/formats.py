"""Raw files to rows: csv, tsv, jsonl, parquet and conll, gzip, bz2 and xz included. No Beam, no TensorFlow.

Every reader takes an open binary file and yields its rows in the file's order and without holding it whole, some at a
time, as `Columns`: of each row its number and either its fields or the reason why it has none. The number is the physical
line on which the row begins, counted from 1 (parquet has no lines: the row, counted from 1). Blank lines are no rows.

What makes a whole file unusable raises `InputError`. No message holds text of the silo beyond the names of columns.
"""

import bz2
import csv
import difflib
import gzip
import io
import itertools
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple, cast

import msgspec

from tff_pipeline.config import SiloSection
from tff_pipeline.errors import InputError

# A field longer than this is a quote that was never closed, not a text: without the limit it would swallow the rest of
# the file, and with it every row in there.
MAX_FIELD_CHARACTERS = 16 * 2**20

NOT_UTF8 = "not UTF-8"
NOT_JSON = "not JSON"
NOT_A_VALUE = "field is not text"
MISSING_FIELD = "missing field"
WRONG_FIELDS = "wrong number of fields"
BROKEN_QUOTING = "broken quoting"

SLICE_ROWS = 64  # how many rows come at a time: the fewer, the fewer have to be looked at one by one where one is wrong
SLICE_CHARACTERS = 2**20  # of text, about: of long texts fewer come at a time

_HEAD_ROWS = 100  # how many rows are looked at to say which columns a file has, where it has no header
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)

Value = str | tuple[str, ...]


class Fields(NamedTuple):
    """The columns of a row that the configuration names; text and label of a sentence (conll) are tuples, one item a word."""

    text: Value
    label: Value
    client: str
    group: str


class RawRow(NamedTuple):
    line: int
    fields: Fields | None
    reason: str = ""


class Columns(NamedTuple):
    """Consecutive rows: number and fields of those that have fields, column by column; number and reason of the others."""

    lines: list[int]
    texts: list[Value]
    labels: list[Value]
    clients: list[str]
    groups: list[str]
    rejects: list[tuple[int, str]]


class Source(NamedTuple):
    """Where rows come from: the silo's section of the configuration, and the file's name for messages."""

    silo: SiloSection
    name: str

    @property
    def wanted(self) -> tuple[str, str, str, str]:
        """The column names of text, label, client and group; "" for one that is not configured."""
        return self.silo.text, self.silo.label, self.silo.client, self.silo.group


def read_columns(file: BinaryIO, source: Source) -> Iterator[Columns]:
    """Every row of an open file, at most SLICE_ROWS at a time, and of long texts fewer.

    Raises:
      InputError: if the file as a whole cannot be used: empty, cut short, a missing column, a quote never closed.
    """
    readers = {"jsonl": _jsonl, "parquet": _parquet, "conll": _conll}
    with _readable(source.name):
        content = _decompressed(file, source)
        if source.silo.format in readers:
            yield from _columns(readers[source.silo.format](content, source))
        else:
            yield from _delimited(content, source)


def _columns(rows: Iterable[RawRow]) -> Iterator[Columns]:
    """Bundles what comes row by row."""
    found, characters = Columns([], [], [], [], [], []), 0
    for line, fields, reason in rows:
        if fields is None:
            found.rejects.append((line, reason))
        else:
            for column, value in zip(found, (line, *fields), strict=False):
                column.append(value)  # type: ignore[arg-type]
            characters += size_of(fields.text)
        if len(found.lines) + len(found.rejects) >= SLICE_ROWS or characters >= SLICE_CHARACTERS:
            yield found
            found, characters = Columns([], [], [], [], [], []), 0
    if found.lines or found.rejects:
        yield found


def size_of(text: Value) -> int:
    """Characters of a text, or of the words of a sentence."""
    return len(text) if isinstance(text, str) else sum(map(len, text))


def check_columns(file: BinaryIO, source: Source) -> None:
    """Looks at the head of an open file: InputError if it is empty or lacks a configured column."""
    checks = {
        "csv": _check_delimited,
        "tsv": _check_delimited,
        "jsonl": _check_jsonl,
        "parquet": _check_parquet,
        "conll": _check_conll,
    }
    with _readable(source.name):
        checks[source.silo.format](_decompressed(file, source), source)


@contextmanager
def opened(open_file: Callable[[str], BinaryIO], path: str) -> Iterator[BinaryIO]:
    """`open_file(path)`, closed at the end; InputError if it cannot be opened."""
    with _readable(path):
        file = open_file(path)
    try:
        yield file
    finally:
        file.close()


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turns what libraries raise on a damaged file into an InputError that names it."""
    try:
        yield
    except _DAMAGED as error:
        raise InputError(
            f"{name}: the compressed data is cut short or damaged ({type(error).__name__}). Copy the file again, and check it with `gzip -t` or its like."
        ) from None
    except OSError as error:
        raise InputError(
            f"{name}: cannot be read ({error.strerror or type(error).__name__}). Check that the file is there, whole, and that this account may read it."
        ) from None


def _decompressed(file: BinaryIO, source: Source) -> io.BufferedReader:
    """The file's content; compression is recognised by its first bytes, so that a wrong file name does no harm.

    Beam would decompress too, but takes a gzip that is cut short for one that has ended.
    """
    buffered = file if isinstance(file, io.BufferedReader) else io.BufferedReader(file)  # type: ignore[arg-type]
    head = buffered.peek(8)
    if not head:
        raise InputError(
            f"{source.name}: the file is empty (0 bytes); expected {source.silo.format} rows. Export it again, or take it out of the silo's input."
        )
    if head.startswith(b"\x1f\x8b"):
        content: Any = gzip.GzipFile(fileobj=buffered)
    elif head.startswith(b"\xfd7zXZ\x00"):
        content = lzma.LZMAFile(buffered)  # noqa: SIM115, the caller closes what lies below
    elif head.startswith(b"BZh") and head[4:8] == b"1AY&":
        content = bz2.BZ2File(buffered)
    else:
        content = buffered
    content = content if content is buffered else io.BufferedReader(content, 1 << 20)
    start = content.peek(4)
    if not start:
        raise InputError(
            f"{source.name}: the file is empty (nothing is compressed in it); expected {source.silo.format} rows. Export it again, or take it out of the silo's input."
        )
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(
            f"{source.name}: the file is UTF-16; expected UTF-8. Convert it, for instance with `iconv -f UTF-16 -t UTF-8`."
        )
    return cast(io.BufferedReader, content)


def _require(found: Sequence[str], source: Source, *, what: str, hint: str = "") -> None:
    """InputError for the first configured column that `found` lacks."""
    for key, column in zip(("text", "label", "client", "group"), source.wanted, strict=True):
        if column and column not in found:
            near = difflib.get_close_matches(column, found, n=1)
            guess = f" Did you mean {near[0]!r}?" if near else ""
            raise InputError(
                f"{source.name}: there is no {what} {column!r}; found {', '.join(map(_shown, found)) or 'none'}.{guess} Correct `{key}` of silo {source.silo.name!r} in the configuration{hint}."
            )


def _shown(column: str) -> str:
    """A column's name, unless it looks like a line of text: a file without header must not put its first row in an error."""
    return repr(column) if len(column) <= 32 and len(column.split()) <= 3 else f"({len(column)} characters)"


# -- csv and tsv -------------------------------------------------------------------------------------------------------


def _csv_rows(content: BinaryIO, source: Source) -> tuple[io.TextIOWrapper, Any]:
    """A csv reader over the file, UTF-8 with or without byte order mark; bytes that are not UTF-8 become surrogates."""
    text = io.TextIOWrapper(content, encoding="utf-8-sig", errors="surrogateescape", newline="")
    csv.field_size_limit(MAX_FIELD_CHARACTERS)  # of the whole process; nothing else here reads csv
    delimiter = "\t" if source.silo.format == "tsv" else ","
    if not source.silo.quoting:
        return text, csv.reader(text, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    # strict: a quote that is still open at the end of the file is an error, not one long last field.
    return text, csv.reader(text, delimiter=delimiter, strict=True)


def _header(rows: Any, source: Source) -> list[str]:
    header = list(source.silo.columns) if source.silo.columns else next((row for row in rows if row), [])
    _require(
        header,
        source,
        what="column",
        hint=", or set `columns` if the file has no header" if not source.silo.columns else "",
    )
    for column in filter(None, source.wanted):
        if header.count(column) > 1:
            raise InputError(
                f"{source.name}: the column {column!r} is there {header.count(column)} times; expected once. Rename one of them."
            )
    return header


def _check_delimited(content: BinaryIO, source: Source) -> None:
    _, rows = _csv_rows(content, source)
    try:
        _header(rows, source)
    except csv.Error as error:
        _csv_error(error, source, line=1)


def _delimited(content: BinaryIO, source: Source) -> Iterator[Columns]:
    text, rows = _csv_rows(content, source)
    header = _header(rows, source)
    width, columns = len(header), [header.index(column) if column else None for column in source.wanted]
    step, ended = SLICE_ROWS, False
    while not ended:
        first = rows.line_num + 1
        found: list[list[str]] = []
        broken: csv.Error | None = None
        try:
            found.extend(itertools.islice(rows, step))  # keeps what came before an error
            ended = len(found) < step
        except csv.Error as error:
            broken = error
        if broken is None and rows.line_num - first + 1 == len(found):
            lines = range(first, first + len(found))
        else:
            lines = list(itertools.accumulate(map(_lines_of, found), initial=first))
        if broken is not None:
            _csv_error(broken, source, line=lines[-1])
        rejects = [(line, WRONG_FIELDS) for line, row in zip(lines, found, strict=False) if len(row) != width and row]
        rejects += [(lines[-1], BROKEN_QUOTING)] if broken is not None else []
        kept = [line for line, row in zip(lines, found, strict=False) if len(row) == width]
        if len(kept) < len(found):
            found = [row for row in found if len(row) == width]
        fields = [[""] * len(found) if at is None else [row[at] for row in found] for at in columns]
        yield Columns(kept, *fields, rejects)  # type: ignore[arg-type]
        longest = max(map(len, fields[0]), default=0)
        step = max(1, min(SLICE_ROWS, SLICE_CHARACTERS // max(longest, 1)))
    text.detach()  # the caller closes the file


def _lines_of(row: Sequence[str]) -> int:
    """The physical lines of a row: one, and one more for every line break inside a field."""
    return 1 + sum(field.count("\n") + field.count("\r") - field.count("\r\n") for field in row)


def _csv_error(error: csv.Error, source: Source, *, line: int) -> None:
    """Raises for the errors that lose the rest of the file; returns for those that lose one row."""
    message = str(error)
    if "unexpected end of data" in message or "field larger than" in message:
        found = (
            f"is not closed in the {MAX_FIELD_CHARACTERS:,} characters after it"
            if "larger" in message
            else "is still open at the end of the file"
        )
        raise InputError(
            f"{source.name}: a quote opened in the row that begins on line {line} {found}; the rows after it cannot be told apart. "
            f"Close it, or set quoting = false for silo {source.silo.name!r} if its quotes have no meaning. A file that was cut short ends so too."
        ) from None


# -- jsonl -------------------------------------------------------------------------------------------------------------


def _check_jsonl(content: BinaryIO, source: Source) -> None:
    found: dict[str, None] = {}
    objects = 0
    for _, line in zip(range(_HEAD_ROWS), content, strict=False):
        value = _json_object(line)
        if isinstance(value, dict):
            objects += 1
            found.update(dict.fromkeys(value))
    if objects:
        _require(list(found), source, what="field")


def _jsonl(content: BinaryIO, source: Source) -> Iterator[RawRow]:
    for number, line in enumerate(content, start=1):
        if line.isspace():
            continue
        value = _json_object(line)
        if isinstance(value, str):
            yield RawRow(number, None, value)
            continue
        try:
            found = [value[column] if column else "" for column in source.wanted]
        except KeyError:
            yield RawRow(number, None, MISSING_FIELD)
            continue
        yield _row_of(number, found)


def _json_object(line: bytes) -> dict[str, Any] | str:
    """The object of a line, or the reason why there is none."""
    line = line.removeprefix(b"\xef\xbb\xbf")
    try:
        line.decode()
        value = msgspec.json.decode(line)
    except UnicodeDecodeError:
        return NOT_UTF8
    except (msgspec.DecodeError, RecursionError):
        return NOT_JSON
    return value if isinstance(value, dict) else NOT_JSON


def _row_of(line: int, values: Sequence[Any]) -> RawRow:
    """A row of values that have types: numbers and truth values count as their text, null as empty, anything nested is rejected."""
    texts = []
    for value in values:
        if isinstance(value, str):
            texts.append(value)
        elif isinstance(value, bytes):
            texts.append(value.decode("utf-8", "surrogateescape"))
        elif value is None:
            texts.append("")
        elif isinstance(value, bool):
            texts.append("true" if value else "false")
        elif isinstance(value, int | float):
            texts.append(str(value))
        else:
            return RawRow(line, None, NOT_A_VALUE)
    return RawRow(line, Fields(*texts))


# -- parquet -----------------------------------------------------------------------------------------------------------


def _parquet_file(content: BinaryIO, source: Source) -> Any:
    import pyarrow
    import pyarrow.parquet

    if not content.seekable():
        raise InputError(
            f"{source.name}: parquet needs a file that can be read from any place; expected it uncompressed, on a file system that allows that."
        )
    try:
        file = pyarrow.parquet.ParquetFile(content)
    except pyarrow.ArrowException as error:
        raise InputError(
            f"{source.name}: not a readable parquet file ({type(error).__name__}); expected one that was written to its end. Export it again."
        ) from None
    _require(file.schema_arrow.names, source, what="column")
    return file


def _check_parquet(content: BinaryIO, source: Source) -> None:
    _parquet_file(content, source)


def _parquet(content: BinaryIO, source: Source) -> Iterator[RawRow]:
    import pyarrow

    file = _parquet_file(content, source)
    columns = list(dict.fromkeys(filter(None, source.wanted)))
    number = 0
    try:
        for batch in file.iter_batches(batch_size=4096, columns=columns):
            lists = {name: _values(batch.column(index)) for index, name in enumerate(batch.schema.names)}
            empty = [""] * batch.num_rows
            for values in zip(*(lists[column] if column else empty for column in source.wanted), strict=True):
                number += 1
                yield _row_of(number, values)
    except pyarrow.ArrowException as error:
        raise InputError(
            f"{source.name}: the parquet data after row {number} is damaged ({type(error).__name__}). Export it again."
        ) from None


def _values(column: Any) -> list[Any]:
    """A column as Python values; strings as bytes, since parquet does not promise that they are UTF-8."""
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type):
        column = column.cast(pyarrow.large_binary())
    return column.to_pylist()


# -- conll -------------------------------------------------------------------------------------------------------------


def _conll_columns(source: Source) -> tuple[int, int]:
    """The 0-based columns of word and tag: `text` and `label` where they are numbers, else 0 and 1."""
    text, label = source.silo.text, source.silo.label
    return int(text) if text.isdigit() else 0, int(label) if label.isdigit() else 1


def _comment(line: str) -> tuple[str, str] | None:
    """Key and value of "# key = value"; ("", "") for another comment; None for a word ("#hashtag<TAB>O" is one)."""
    if not line.startswith("#") or ("\t" in line and not line.startswith("# ")):
        return None
    key, equals, value = line[1:].partition("=")
    return (key.strip(), value.strip()) if equals else ("", "")


def _check_conll(content: BinaryIO, source: Source) -> None:
    keys: dict[str, None] = {}
    for _, line in zip(range(_HEAD_ROWS * 10), content, strict=False):
        if comment := _comment(line.decode("utf-8", "surrogateescape")):
            keys[comment[0]] = None
    if source.silo.client or source.silo.group:
        wanted = source._replace(silo=msgspec.structs.replace(source.silo, text="", label=""))
        _require([key for key in keys if key], wanted, what="comment key")


def _conll(content: BinaryIO, source: Source) -> Iterator[RawRow]:
    word_at, tag_at = _conll_columns(source)
    needed = max(word_at, tag_at) + 1
    comments: dict[str, str] = {}
    words: list[str] = []
    tags: list[str] = []
    start, reason = 0, ""

    def sentence() -> Iterator[RawRow]:
        nonlocal words, tags, start, reason
        if reason:
            yield RawRow(start, None, reason)
        elif start:
            client, group = (comments.get(key, "") for key in (source.silo.client, source.silo.group))
            yield RawRow(start, Fields(tuple(words), tuple(tags), client, group))
        words, tags, start, reason = [], [], 0, ""

    text = io.TextIOWrapper(content, encoding="utf-8-sig", errors="surrogateescape", newline="\n")
    for number, line in enumerate(text, start=1):
        line = line.rstrip("\r\n")
        if not line.strip():
            yield from sentence()
        elif (comment := _comment(line)) is not None:
            comments[comment[0]] = comment[1]
        else:
            start = start or number
            fields = line.split("\t") if "\t" in line else line.split()
            if len(fields) < needed:
                reason = WRONG_FIELDS
            else:
                words.append(fields[word_at])
                tags.append(fields[tag_at].strip())
    yield from sentence()
    text.detach()
