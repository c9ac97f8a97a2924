"""The column that names clients: one person is one client whatever the type, and a value that may be several people is refused."""

import datetime
import io
import math
import uuid
from decimal import Decimal

import pyarrow.parquet
import pytest
from builders.raw_rows import clients, parquet, refusal, rows, source

from beam_jobs import formats
from tff_pipeline.errors import InputError


def test_a_whole_number_is_the_same_client_whatever_its_type():
    data = b'{"text": "a", "label": 1.0, "client": 42}\n{"text": "a", "label": 1, "client": 42.0}\n{"text": "a", "label": 1, "client": "42"}\n{"text": 2.50, "label": 1, "client": -0.0}\n'
    at = source("jsonl", client="client")

    assert clients(data, at) == ["42", "42", "42", "0"]
    assert {row.fields.label for row in rows(data, at)} == {"1"}
    assert rows(data, at)[3].fields.text == "2.5"
    for column in (pyarrow.array([42]), pyarrow.array([42.0]), pyarrow.array(["42"]), pyarrow.array([Decimal(42)])):
        assert clients(
            parquet({"text": ["a"], "label": ["x"], "client": column}), source("parquet", client="client")
        ) == ["42"]


def test_large_whole_numbers_are_exact_where_they_are_no_floats():
    large = pyarrow.array([Decimal(90071992547409931)], pyarrow.decimal128(20, 0))
    table = {"text": ["a"], "label": large, "client": large}
    (row,) = rows(parquet(table), source("parquet", client="client"))
    assert (row.fields.label, row.fields.client) == ("90071992547409931", "90071992547409931")

    at = source("jsonl", client="client")

    assert clients(b'{"text": "a", "label": "x", "client": 9007199254740993}\n', at) == ["9007199254740993"]
    assert clients(b'{"text": "a", "label": "x", "client": 123456789012345678901}\n', at) == ["123456789012345678901"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("9007199254740992.0", "a number of 2^53 or above as a float, which may stand for several people"),
        ("-1e300", "a number of 2^53 or above as a float"),
        ("42.25", "a number that is not whole"),
        ("true", "a truth value"),
        ('["anna"]', "a list"),
        ('{"name": "anna"}', "an object"),
    ],
)
def test_a_value_that_cannot_name_a_person_is_refused_by_column_and_type(value, words):
    at = source("jsonl", client="who")
    message = refusal(
        b'{"text": "a", "label": "x", "who": "ben"}\n{"text": "a", "label": "x", "who": ' + value.encode() + b"}\n", at
    )

    assert f"data.jsonl, line 2: the client column 'who' holds {words}" in message
    assert "Write the ids as text" in message
    assert not any(part in message for part in ("anna", "9007199254740992", "42.25", "1e", "300"))


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (pyarrow.array([Decimal("42.10")]), "decimal128(4, 2)"),
        (pyarrow.array([datetime.datetime(2026, 1, 2)]), "timestamp[us]"),
        (pyarrow.array([datetime.date(2026, 1, 2)]), "date32[day]"),
        (pyarrow.array([datetime.time(1)]), "time64[us]"),
        (pyarrow.array([b"0123456789abcdef"], pyarrow.binary(16)), "fixed_size_binary[16]"),
        (pyarrow.array([uuid.UUID(int=7).bytes], pyarrow.uuid()), "uuid"),
        (pyarrow.array([True]), "bool"),
        (pyarrow.array([["anna"]]), "list<"),
        (pyarrow.array([{"name": "anna"}]), "struct<"),
    ],
)
def test_a_parquet_column_that_cannot_name_people_is_refused_before_it_is_read(column, words):
    data = parquet({"text": ["a"], "label": ["x"], "who": column})

    with pytest.raises(InputError) as raised:
        formats.check_columns(io.BytesIO(data), source("parquet", client="who"))
    assert "data.parquet: the client column 'who' is of type" in str(raised.value)
    assert words in str(raised.value)
    assert "expected text or whole numbers. Write it as text" in str(raised.value)


def test_parquet_floats_as_clients():
    """NaN, as tables write a number that is missing, names nobody; null is an empty client, which is a row's own fault."""

    def data(values):
        return parquet({"text": ["a"] * 2, "label": ["x"] * 2, "who": pyarrow.array(values, pyarrow.float64())})

    assert clients(data([7.0, None]), source("parquet", client="who")) == ["7", ""]
    assert "data.parquet, row 2: the client column 'who' holds a number that is not whole" in refusal(
        data([7.0, math.nan]), source("parquet", client="who")
    )
    assert "holds a number of 2^53 or above" in refusal(data([7.0, 2.0**53]), source("parquet", client="who"))
