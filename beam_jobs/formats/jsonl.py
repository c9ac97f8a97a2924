"""jsonl: one object a line."""

import io
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from beam_jobs.formats.values import row_of
from beam_jobs.lines import BYTE_ORDER_MARK, Lines, numbered_lines
from beam_jobs.reading import (
    MISSING_FIELD,
    NOT_JSON,
    NOT_UTF8,
    REPEATED_KEY,
    TOO_LONG,
    LineCounts,
    RawRow,
    Source,
    require_columns,
)

_HEAD_LINES = 100  # by which `check` knows the fields of a file


def check(content: io.BufferedReader, source: Source) -> None:
    """Raises InputError if no object in the head of a file has a configured field."""
    fields: dict[str, None] = {}
    objects = 0
    for number, line in numbered_lines(Lines(content, limit=source.max_row_bytes), io.BytesIO):
        value = _object(line) if line is not None else TOO_LONG
        if isinstance(value, dict):
            objects += 1
            fields.update(dict.fromkeys(value))
        if number >= _HEAD_LINES:
            break
    if objects:
        require_columns(list(fields), source, kind="field", location=f"the first {objects} objects", shown="near")


def read(content: io.BufferedReader, source: Source) -> Iterator[RawRow | LineCounts]:
    """Every row of a file, and at its end what became of its lines."""
    lines = Lines(content, limit=source.max_row_bytes)
    keys = [msgspec.json.encode(column) for column in dict.fromkeys(source.columns) if column]
    rows = rejected = blank = 0
    for number, line in numbered_lines(lines, io.BytesIO):
        if line is not None and line.isspace():
            blank += 1
            continue
        row = _row(number, line, keys, source) if line is not None else RawRow(number, None, TOO_LONG)
        rows, rejected = (rows, rejected + 1) if row.fields is None else (rows + 1, rejected)
        yield row
    yield LineCounts(read=lines.read, rows=rows, rejected=rejected, blank=blank)


def _row(number: int, line: bytes, keys: Sequence[bytes], source: Source) -> RawRow:
    value = _object(line)
    if isinstance(value, str):
        return RawRow(number, None, value)
    for key in keys:
        if line.count(key) > 1 and _repeats(line, source):
            return RawRow(number, None, REPEATED_KEY)
    if b"\\u" in line and _has_escaped_key(line) and _repeats(line, source):
        return RawRow(number, None, REPEATED_KEY)
    try:
        values = [value[column] if column else "" for column in source.columns]
    except KeyError:
        return RawRow(number, None, MISSING_FIELD)
    return row_of(number, values, source)


def _object(line: bytes) -> dict[str, Any] | str:
    """The object on a line, or the reason why there is none."""
    line = line.removeprefix(BYTE_ORDER_MARK)
    try:
        line.decode()
        value = msgspec.json.decode(line)
    except UnicodeDecodeError:
        return NOT_UTF8
    except (msgspec.DecodeError, RecursionError):
        return NOT_JSON
    return value if isinstance(value, dict) else NOT_JSON


# Whole strings, each matched once (possessive): a search that starts anew at every escape takes quadratic time.
_STRING = re.compile(rb'"((?:[^"\\]|\\.)*+)"(\s*+:)?')


def _has_escaped_key(line: bytes) -> bool:
    """Whether a key on the line is written with \\u, so that it may be a configured one that does not look like it."""
    return any(string[2] is not None and b"\\u" in string[1] for string in _STRING.finditer(line))


def _repeats(line: bytes, source: Source) -> bool:
    """Whether the object has a configured key twice: readers of JSON differ in which value they take."""
    try:
        pairs = json.loads(line.removeprefix(BYTE_ORDER_MARK), object_pairs_hook=list)
    except (ValueError, RecursionError):
        return True
    names = [name for name, _ in pairs]
    return any(names.count(column) > 1 for column in source.columns if column)
