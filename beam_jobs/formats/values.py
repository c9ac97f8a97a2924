"""Typed values, as jsonl and parquet have them, as the texts of a row; a client must be a value that can name a person."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from beam_jobs.reading import INEXACT_FLOATS, NOT_A_VALUE, Fields, RawRow, Source
from tff_pipeline.errors import InputError

_KINDS = {bool: "a truth value", list: "a list", dict: "an object"}


def row_of(line: int, values: Sequence[Any], source: Source) -> RawRow:
    """The row of these values: null is an empty text, numbers and truth values are their texts, a whole number has the same
    text whatever its type, and a nested value rejects the row.

    Raises:
      InputError: if the client is a value that cannot name a person, or may stand for several.
    """
    texts: list[Any] = []
    for value in values:
        if isinstance(value, str):
            texts.append(value)
        elif isinstance(value, bytes):
            texts.append(value.decode("utf-8", "surrogateescape"))
        elif value is None or value != value:  # tables write NaN for a number that is missing
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
    """Whether a number is whole and exact. A float from INEXACT_FLOATS on may stand for several, an int or a decimal never."""
    if isinstance(number, Decimal):
        return number.is_finite() and number == int(number)
    return isinstance(number, int) or (abs(number) < INEXACT_FLOATS and number == int(number))  # False for NaN


def _require_name(value: Any, line: int, source: Source) -> None:
    """InputError for a client that is neither text nor a whole number."""
    if value is None or isinstance(value, str | bytes) or (isinstance(value, int) and not isinstance(value, bool)):
        return
    if isinstance(value, float | Decimal):
        if _is_whole(value):
            return
        kind = "a number that is not whole"
        if isinstance(value, float) and abs(value) >= INEXACT_FLOATS:
            kind = "a number of 2^53 or above as a float, which may stand for several people"
    else:
        kind = _KINDS.get(type(value), f"a value of type {type(value).__name__}")
    unit = "row" if source.silo.format == "parquet" else "line"
    raise InputError(
        f"{source.name}, {unit} {line}: the client column {source.silo.client!r} holds {kind}; expected text or whole numbers. "
        f"Write the ids as text, or correct `client` of silo {source.silo.name!r} in the configuration."
    )
