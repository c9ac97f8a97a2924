"""Raw files to rows: csv, tsv, jsonl, parquet and conll, gzip, bz2 and xz included. No Beam, no TensorFlow.

Every reader takes an open binary file and yields its rows in the file's order and without holding it whole, some at a
time, as `Columns`: of each row its number and either its fields or the reason why it has none. The number is the physical
line on which the row begins, counted from 1 (parquet has no lines: the row, counted from 1). Blank lines are no rows.

A row larger than `Source.limit` bytes is rejected, and is never in memory (parquet: see `_parquet`). What became of every line
is counted, and `read_columns` refuses to end where the counts do not add up to the lines of the file.

What makes a whole file unusable raises `InputError`. No message holds a value of a row.
"""

import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, BinaryIO

import msgspec

from beam_jobs import delimited
from beam_jobs.lines import BYTE_ORDER_MARK, Lines, LongLine, decompressed, readable, text_lines
from beam_jobs.reading import (
    MISSING_FIELD,
    NOT_A_VALUE,
    NOT_JSON,
    NOT_UTF8,
    REPEATED_KEY,
    TOO_LONG,
    WRONG_FIELDS,
    Columns,
    Fields,
    LineCounts,
    RawRow,
    Reject,
    Source,
    Value,
    require,
)
from tff_pipeline.errors import InputError, PipelineError

SLICE_ROWS = 64  # how many rows come at a time: the fewer, the fewer have to be looked at one by one where one is wrong
SLICE_CHARACTERS = 2**20  # of text, about: of long texts fewer come at a time

_HEAD_ROWS = 100  # how many rows are looked at to say which columns a file has, where it has no header
_EXACT = 2**53  # from here on a float may stand for several whole numbers

Rows = Iterator[RawRow | LineCounts]  # what a reader yields: rows, and what became of lines since it last said so


def read_columns(file: BinaryIO, source: Source) -> Iterator[Columns]:
    """Every row of an open file, at most SLICE_ROWS at a time, and of long texts fewer.

    Raises:
      InputError: if the file as a whole cannot be used: empty, cut short, a missing column, a quote never closed.
      PipelineError: if some of its lines became neither a row, nor a reject, nor anything else that is counted.
    """
    readers: dict[str, Callable[[Any, Source], Rows]] = {"jsonl": _jsonl, "parquet": _parquet, "conll": _conll}
    counts = LineCounts()
    with readable(source.name):
        content = decompressed(file, source)
        reader = readers.get(source.silo.format)
        slices = _columns(reader(content, source)) if reader else delimited.read(content, source)
        for columns in slices:
            counts = counts.plus(columns.counts)
            yield columns
    if counts.missing:
        raise PipelineError(
            f"{source.name}: of {counts.read:,} lines {counts.read - counts.missing:,} are accounted for ({counts}). "
            "Nothing is prepared from such a count. This is a defect of prepare: please report it with this line."
        )


def _columns(rows: Iterable[RawRow | LineCounts]) -> Iterator[Columns]:
    """Bundles what comes row by row."""
    bundle, characters = Columns([], [], [], [], [], []), 0
    for row in rows:
        if isinstance(row, LineCounts):
            bundle = bundle._replace(counts=bundle.counts.plus(row))
            continue
        line, fields, reason = row
        if fields is None:
            bundle.rejects.append(Reject(line, reason))
        else:
            for column, value in zip(bundle[:5], (line, *fields), strict=True):
                column.append(value)  # type: ignore[arg-type]
            characters += size_of(fields.text)
        if len(bundle.lines) + len(bundle.rejects) >= SLICE_ROWS or characters >= SLICE_CHARACTERS:
            yield bundle
            bundle, characters = Columns([], [], [], [], [], []), 0
    yield bundle


def size_of(text: Value) -> int:
    """Characters of a text, or of the words of a sentence."""
    return len(text) if isinstance(text, str) else sum(map(len, text))


def check_columns(file: BinaryIO, source: Source) -> None:
    """Looks at the head of an open file: InputError if it is empty or lacks a configured column."""
    checks: dict[str, Callable[[Any, Source], None]] = {
        "csv": delimited.check,
        "tsv": delimited.check,
        "jsonl": _check_jsonl,
        "parquet": _check_parquet,
        "conll": _check_conll,
    }
    with readable(source.name):
        checks[source.silo.format](decompressed(file, source), source)


@contextmanager
def opened(open_file: Callable[[str], BinaryIO], path: str) -> Iterator[BinaryIO]:
    """`open_file(path)`, closed at the end; InputError if it cannot be opened."""
    with readable(path):
        file = open_file(path)
    try:
        yield file
    finally:
        file.close()


# -- values that have types --------------------------------------------------------------------------------------------


def _row_of(line: int, values: Sequence[Any], source: Source) -> RawRow:
    """A row of values that have types: null counts as empty, numbers and truth values as their text, a whole number as the
    same text whatever its type; anything nested is rejected.

    Raises:
      InputError: if the client is a value that cannot name a person, or may stand for several.
    """
    texts: list[Any] = []
    for value in values:
        if isinstance(value, str):
            texts.append(value)
        elif isinstance(value, bytes):
            texts.append(value.decode("utf-8", "surrogateescape"))
        elif value is None or value != value:  # NaN is how tables say that a number is missing
            texts.append("")
        elif isinstance(value, bool):
            texts.append("true" if value else "false")
        elif isinstance(value, int | float | Decimal):
            texts.append(_text_of(value))
        else:
            texts.append(None)
    if type(values[2]) not in (str, bytes) and source.silo.client:
        _require_name(values[2], line, source)
    return RawRow(line, None, NOT_A_VALUE) if None in texts else RawRow(line, Fields(*texts))


def _text_of(number: float | Decimal) -> str:
    """A number's text; 42 and 42.0 have the same."""
    return str(int(number)) if _is_whole(number) else str(number)


def _is_whole(number: float | Decimal) -> bool:
    """Whether a number is whole and exact: a float from 2^53 on may stand for several, an int or a decimal never does."""
    if isinstance(number, Decimal):
        return number.is_finite() and number == int(number)
    return isinstance(number, int) or (abs(number) < _EXACT and number == int(number))  # False for NaN


def _require_name(value: Any, line: int, source: Source) -> None:
    """InputError for a client that is no text and no whole number."""
    if value is None or isinstance(value, str | bytes) or (isinstance(value, int) and not isinstance(value, bool)):
        return
    expected = "expected text or whole numbers"
    if isinstance(value, float | Decimal):
        if _is_whole(value):
            return
        large = isinstance(value, float) and abs(value) >= _EXACT
        kind = (
            "a number of 2^53 or above as a float, which may stand for several people"
            if large
            else "a number that is not whole"
        )
    else:
        kinds = {bool: "a truth value", list: "a list", dict: "an object"}
        kind = kinds.get(type(value), f"a value of type {type(value).__name__}")
    where = "row" if source.silo.format == "parquet" else "line"
    raise InputError(
        f"{source.name}, {where} {line}: the client column {source.silo.client!r} holds {kind}; {expected}. "
        f"Write the ids as text, or correct `client` of silo {source.silo.name!r} in the configuration."
    )


# -- jsonl -------------------------------------------------------------------------------------------------------------


def _check_jsonl(content: io.BufferedReader, source: Source) -> None:
    fields: dict[str, None] = {}
    objects = 0
    for number, line in _json_lines(Lines(content, limit=source.limit)):
        value = _json_object(line) if line is not None else TOO_LONG
        if isinstance(value, dict):
            objects += 1
            fields.update(dict.fromkeys(value))
        if number >= _HEAD_ROWS:
            break
    if objects:
        require(list(fields), source, kind="field", location=f"the first {objects} objects", shown="near")


def _json_lines(lines: Lines) -> Iterator[tuple[int, bytes | None]]:
    """Each line with its number; None for one above the limit."""
    number = 0
    for block in lines:
        if isinstance(block, LongLine):
            for _ in block.pieces:
                pass
            number += 1
            yield number, None
            continue
        for number, line in enumerate(io.BytesIO(block), start=number + 1):  # noqa: B020, it goes on
            yield number, line


def _jsonl(content: io.BufferedReader, source: Source) -> Rows:
    lines = Lines(content, limit=source.limit)
    keys = [msgspec.json.encode(column) for column in dict.fromkeys(source.wanted) if column]
    rows = rejected = blank = 0
    for number, line in _json_lines(lines):
        if line is not None and line.isspace():
            blank += 1
            continue
        row = _json_row(number, line, keys, source) if line is not None else RawRow(number, None, TOO_LONG)
        rows, rejected = (rows, rejected + 1) if row.fields is None else (rows + 1, rejected)
        yield row
    yield LineCounts(read=lines.read, rows=rows, rejected=rejected, blank=blank)


def _json_row(number: int, line: bytes, keys: Sequence[bytes], source: Source) -> RawRow:
    value = _json_object(line)
    if isinstance(value, str):
        return RawRow(number, None, value)
    for key in keys:
        if line.count(key) > 1 and _repeats(line, source):
            return RawRow(number, None, REPEATED_KEY)
    if b"\\u" in line and _has_escaped_key(line) and _repeats(line, source):
        return RawRow(number, None, REPEATED_KEY)
    try:
        values = [value[column] if column else "" for column in source.wanted]
    except KeyError:
        return RawRow(number, None, MISSING_FIELD)
    return _row_of(number, values, source)


def _json_object(line: bytes) -> dict[str, Any] | str:
    """The object of a line, or the reason why there is none."""
    line = line.removeprefix(BYTE_ORDER_MARK)
    try:
        line.decode()
        value = msgspec.json.decode(line)
    except UnicodeDecodeError:
        return NOT_UTF8
    except (msgspec.DecodeError, RecursionError):
        return NOT_JSON
    return value if isinstance(value, dict) else NOT_JSON


# Whole strings, each taken once (possessive): what begins anew at every escape of a text takes time in its square.
_STRING = re.compile(rb'"((?:[^"\\]|\\.)*+)"(\s*+:)?')


def _has_escaped_key(line: bytes) -> bool:
    """Whether a key of a JSON line is written with \\u, so that it may be a configured one that does not look like it."""
    return any(string[2] is not None and b"\\u" in string[1] for string in _STRING.finditer(line))


def _repeats(line: bytes, source: Source) -> bool:
    """Whether an object has a configured key twice: readers of JSON differ in which value they take."""
    try:
        pairs = json.loads(line.removeprefix(BYTE_ORDER_MARK), object_pairs_hook=list)
    except (ValueError, RecursionError):
        return True
    names = [name for name, _ in pairs]
    return any(names.count(column) > 1 for column in source.wanted if column)


# -- parquet -----------------------------------------------------------------------------------------------------------

PARQUET_ROWS = 4096  # at a time, where these columns of a row group are not larger than
PARQUET_BYTES = 64 * 2**20  # and else fewer, in proportion, but
PARQUET_LEAST_ROWS = 64


def _parquet_file(content: BinaryIO, source: Source) -> Any:
    import pyarrow
    import pyarrow.parquet

    if not content.seekable():
        raise InputError(
            f"{source.name}: parquet needs a file that can be read from any place; expected it uncompressed, on a file system that allows that."
        )
    try:
        schema = pyarrow.parquet.ParquetFile(content).schema_arrow
        texts = [
            name
            for name, kind in zip(schema.names, schema.types, strict=True)
            if name in source.wanted and _is_text(kind)
        ]
        content.seek(0)
        # As dictionaries: a text that a file holds once and a million rows refer to is in memory once as well.
        file = pyarrow.parquet.ParquetFile(content, read_dictionary=texts, buffer_size=2**20, pre_buffer=False)
    except pyarrow.ArrowException as error:
        raise InputError(
            f"{source.name}: not a readable parquet file ({type(error).__name__}); expected one that was written to its end. Export it again."
        ) from None
    require(schema.names, source, kind="column", location="the schema", shown="all")
    for key, column in zip(("text", "label", "client", "group"), source.wanted, strict=True):
        if column:
            _require_type(schema.field(column).type, key, column, source)
    return file


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind)


def _require_type(kind: Any, key: str, column: str, source: Source) -> None:
    """InputError for a column whose type is neither text nor number, and for a client's that cannot name a person."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    text = _is_text(kind) or types.is_null(kind)
    number = types.is_integer(kind) or types.is_floating(kind) or (types.is_decimal(kind) and kind.scale == 0)
    if not (text or number or (types.is_boolean(kind) and key != "client")):
        raise InputError(
            f"{source.name}: the {key} column {column!r} is of type {kind}; expected text{' or whole numbers' if key == 'client' else ', numbers or truth values'}. "
            f"Write it as text, or correct `{key}` of silo {source.silo.name!r} in the configuration."
        )


def _check_parquet(content: BinaryIO, source: Source) -> None:
    _parquet_file(content, source)


def _parquet(content: BinaryIO, source: Source) -> Rows:
    """The rows of a parquet file.

    pyarrow unpacks a column page by page, so in memory are the values of the rows read at a time (see PARQUET_ROWS) and one
    page of each column, which writers make of 1 MB, or of one value where that is larger.
    """
    import pyarrow

    file = _parquet_file(content, source)
    columns = list(dict.fromkeys(filter(None, source.wanted)))
    number = rows = 0
    try:
        for group in range(file.num_row_groups):
            size = _rows_at_a_time(file.metadata.row_group(group), columns, group, source)
            for batch in file.iter_batches(batch_size=size, row_groups=[group], columns=columns):
                lists = {name: _values(batch.column(index)) for index, name in enumerate(batch.schema.names)}
                empty = [""] * batch.num_rows
                small = sum(map(_largest, batch.columns)) <= source.limit
                for values in zip(*(lists[column] if column else empty for column in source.wanted), strict=True):
                    number += 1
                    if small or sum(len(value) for value in values if isinstance(value, bytes)) <= source.limit:
                        row = _row_of(number, values, source)
                    else:
                        row = RawRow(number, None, TOO_LONG)
                    if row.fields is not None:
                        rows += 1
                    yield row
    except pyarrow.ArrowException as error:
        raise InputError(
            f"{source.name}: the parquet data after row {number} is damaged ({type(error).__name__}). Export it again."
        ) from None
    yield LineCounts(read=file.metadata.num_rows, rows=rows, rejected=number - rows)


def _rows_at_a_time(group: Any, columns: Sequence[str], number: int, source: Source) -> int:
    """How many rows of a row group are in memory at a time.

    Raises:
      InputError: if its rows are on the average larger than one may be.
    """
    chunks = [group.column(index) for index in range(group.num_columns)]
    size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in columns)
    if size > max(source.limit * group.num_rows, PARQUET_BYTES):
        raise InputError(
            f"{source.name}: row group {number} has {group.num_rows:,} rows of {size:,} bytes in the configured columns; expected at most {source.limit:,} bytes a row. "
            "Leave such rows out, or raise prepare.max_row_bytes."
        )
    return max(PARQUET_LEAST_ROWS, min(PARQUET_ROWS, PARQUET_ROWS * PARQUET_BYTES // max(size, 1)))


def _values(column: Any) -> list[Any]:
    """A column as Python values; strings as bytes, since parquet does not promise that they are UTF-8."""
    import pyarrow

    if not pyarrow.types.is_dictionary(column.type):
        return (column.cast(pyarrow.large_binary()) if _is_text(column.type) else column).to_pylist()
    if _largest(column) * len(column) <= PARQUET_BYTES:
        return _values(column.dictionary_decode())
    values = _values(column.dictionary)
    return [None if index is None else values[index] for index in column.indices.to_pylist()]


def _largest(column: Any) -> int:
    """Bytes of the longest text in a column; 0 if it has none."""
    from pyarrow import compute, types

    if types.is_dictionary(column.type):
        column = column.dictionary
    if not _is_text(column.type):
        return 0
    return compute.call_function("max", [compute.call_function("binary_length", [column])]).as_py() or 0


# -- conll -------------------------------------------------------------------------------------------------------------

_DOCUMENT_MARK = "-DOCSTART-"
_TAG = re.compile(r"O|[BIESLU]-\S+")
_BLANKS = re.compile(" +")


def _conll_columns(source: Source) -> tuple[int, int]:
    """The 0-based columns of word and tag: `text` and `label` where they are numbers, else 0 and 1."""
    text, label = source.silo.text, source.silo.label
    return int(text) if text.isdigit() else 0, int(label) if label.isdigit() else 1


def _split(line: str) -> list[str]:
    """The fields of a line: between tabs, or where it has none, between blanks. Others, as U+00A0, are part of a word."""
    return line.split("\t") if "\t" in line else _BLANKS.split(line.strip(" "))


class _Comments:
    """Tells comments from words that begin with "#"; it knows how many fields the file's rows have."""

    def __init__(self, source: Source):
        self._source = source
        self.keys = {source.silo.client, source.silo.group} - {""}
        self._tag_at = _conll_columns(source)[1]
        self._width = 0  # of the first row

    def read(self, number: int, line: str) -> tuple[str, str] | None:
        """Key and value of "# key = value"; ("", "") for another comment; None for a word.

        "# # I-NP O", "#a=b O" and "# O" are words: they have as many fields as a row, and a tag where a row has it.

        Raises:
          InputError: if the line may be a comment that sets the client or the group, or may be a word.
        """
        if not line.startswith("#"):
            self._width = self._width or len(_split(line))
            return None
        fields = _split(line)
        key, equals, value = (part.strip() for part in line[1:].partition("="))
        spaced = line.startswith("# ")
        named = spaced and "\t" not in line and equals and (key in self.keys or (key and " = " in line))
        if not named and self._is_row(fields):
            return None
        if spaced:
            return (key, value) if equals else ("", "")
        if "\t" in line:
            return None
        if equals and key in self.keys:
            kind = "client" if key == self._source.silo.client else "group"
            raise InputError(
                f"{self._source.name}, line {number}: begins like a comment for the {kind} {key!r}, without a blank after the #; expected `# {key} = ...`, "
                "or a word and its tag. Write comments with the blank, and separate the fields of words with tabs."
            )
        return None if len(fields) > 1 and fields[1] != "=" else ("", "")

    def _is_row(self, fields: Sequence[str]) -> bool:
        alike = len(fields) in (self._tag_at + 1, self._width) and len(fields) > self._tag_at
        return alike and bool(_TAG.fullmatch(fields[self._tag_at].strip()))


def _check_conll(content: io.BufferedReader, source: Source) -> None:
    keys: dict[str, None] = {}
    comments = _Comments(source)
    for number, line in itertools.islice(_conll_lines(Lines(content, limit=source.limit)), _HEAD_ROWS * 10):
        if line is None or not line.strip() or line.startswith(_DOCUMENT_MARK):
            continue
        if comment := comments.read(number, line):
            keys[comment[0]] = None
    if source.silo.client or source.silo.group:
        wanted = source._replace(silo=msgspec.structs.replace(source.silo, text="", label=""))
        require(
            [key for key in keys if key],
            wanted,
            kind="comment key",
            location=f"the first {_HEAD_ROWS * 10:,} lines",
            shown="near",
        )


class _Sentence:
    """The lines of one sentence as they come."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.tags: list[str] = []
        self.line = self.lines = self.size = 0
        self.reason = ""

    def add(self, line: str, number: int, word_at: int, tag_at: int, limit: int) -> None:
        self.count(number, len(line) if line.isascii() else len(line.encode("utf-8", "surrogateescape")), limit)
        fields = _split(line)
        if len(fields) <= max(word_at, tag_at):
            self.reason = self.reason or WRONG_FIELDS
        elif not self.reason:
            self.words.append(fields[word_at])
            self.tags.append(fields[tag_at].strip())

    def count(self, number: int, size: int, limit: int) -> None:
        """Counts a line of the sentence; one that makes it too long empties it."""
        self.line, self.lines, self.size = self.line or number, self.lines + 1, self.size + size
        if self.size > limit:
            self.reason, self.words, self.tags = TOO_LONG, [], []

    def row(self, client: str, group: str) -> RawRow:
        if self.reason:
            return RawRow(self.line, None, self.reason)
        return RawRow(self.line, Fields(tuple(self.words), tuple(self.tags), client, group))


def _conll(content: io.BufferedReader, source: Source) -> Rows:
    word_at, tag_at = _conll_columns(source)
    lines = Lines(content, limit=source.limit)
    comments = _Comments(source)
    values: dict[str, str] = {}  # of `comments.keys`, up to the next document
    sentence, blank, commented, marks = _Sentence(), 0, 0, 0

    def ended() -> Rows:
        nonlocal sentence
        if sentence.lines:
            client, group = (values.get(key, "") for key in (source.silo.client, source.silo.group))
            row = sentence.row(client, group)
            kind = "rejected" if row.fields is None else "rows"
            yield LineCounts(**{kind: sentence.lines})
            yield row
        sentence = _Sentence()

    for number, line in _conll_lines(lines):
        if line is None:
            sentence.count(number, source.limit + 1, source.limit)
        elif not line.strip():
            blank += 1
            yield from ended()
        elif line.startswith(_DOCUMENT_MARK):
            marks += 1
            yield from ended()
            values.clear()
        elif (comment := comments.read(number, line)) is not None:
            commented += 1
            if comment[0] in comments.keys:
                yield from ended()  # what came before it is the client's before it
                values[comment[0]] = comment[1]
        else:
            sentence.add(line, number, word_at, tag_at, source.limit)
    yield from ended()
    yield LineCounts(read=lines.read, blank=blank, comments=commented, document_marks=marks)


def _conll_lines(lines: Lines) -> Iterator[tuple[int, str | None]]:
    """Each line with its number, without its end; None for one above the limit."""
    number = 0
    for block in lines:
        if isinstance(block, LongLine):
            for _ in block.pieces:
                pass
            number += 1
            yield number, None
        else:
            for line in text_lines(block):
                number += 1
                yield number, line.rstrip("\r\n")
