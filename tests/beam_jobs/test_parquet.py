"""Parquet: rows across row groups, types of columns, and files that cannot be read."""

import datetime
import io
import math

import pyarrow.parquet
from builders.raw_rows import parquet, refusal, rows, source


def test_parquet_rows_are_counted_across_row_groups():
    data = parquet({"text": ["a", None, "c"], "label": [1, 2, 3], "unused": [0.1, 0.2, 0.3]})

    assert [(row.line, row.fields.text, row.fields.label) for row in rows(data, source("parquet"))] == [
        (1, "a", "1"),
        (2, "", "2"),
        (3, "c", "3"),
    ]


def test_parquet_refusals():
    data = parquet({"text": ["a"], "lable": ["x"]})

    assert "the column 'label' is missing from the schema; found 'text', 'lable'. Did you mean 'lable'?" in refusal(
        data, source("parquet")
    )
    assert "data.parquet: the file is not readable as parquet" in refusal(data[:-20], source("parquet"))


def test_parquet_columns_of_the_same_name():
    file = io.BytesIO()
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 3, names=["text", "label", "text"])
    pyarrow.parquet.write_table(table, file)

    assert "the column 'text' occurs 2 times; expected once" in refusal(file.getvalue(), source("parquet"))


def test_a_missing_number_is_an_empty_text_or_label():
    data = parquet({"text": ["a", "b"], "label": [math.nan, 2.0]})

    assert [row.fields.label for row in rows(data, source("parquet"))] == ["", "2"]


def test_other_columns_of_types_that_are_no_text_are_refused_too():
    data = parquet({"text": ["a"], "label": [datetime.date(2026, 1, 2)]})

    assert "the label column 'label' is of type date32[day]; expected text, numbers or truth values" in refusal(
        data, source("parquet")
    )
