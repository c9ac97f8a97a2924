"""A file's rows as the readers of a format give them, and what they say of a file that cannot be used."""

import io

import pyarrow.parquet
import pytest

from beam_jobs import formats, reading
from tff_pipeline.config import SiloSection
from tff_pipeline.errors import InputError


def source(form: str, **keys) -> reading.Source:
    return reading.Source(SiloSection(name="bank", input="unused", format=form, **keys), f"data.{form}")


def rows(data: bytes, at: reading.Source) -> list[reading.RawRow]:
    """Every row by itself, in the order of their lines."""
    all_rows = []
    for part in formats.read_columns(io.BytesIO(data), at):
        kept = [reading.RawRow(line, reading.Fields(*fields)) for line, *fields in zip(*part[:5], strict=True)]
        all_rows += sorted([*kept, *(reading.RawRow(line, None, reason) for line, reason, _ in part.rejects)])
    return all_rows


def texts(data: bytes, at: reading.Source) -> list[tuple[int, object]]:
    """(line, text or reason) of each row."""
    return [(row.line, row.fields.text if row.fields else row.reason) for row in rows(data, at)]


def clients(data: bytes, at: reading.Source) -> list[str]:
    return [row.fields.client for row in rows(data, at) if row.fields]


def refusal(data: bytes, at: reading.Source) -> str:
    """What check_columns or, if that passes, reading the file says."""

    def look_and_read() -> None:
        formats.check_columns(io.BytesIO(data), at)
        rows(data, at)

    with pytest.raises(InputError) as raised:
        look_and_read()
    return str(raised.value)


def parquet(table: dict) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(table), file, row_group_size=2)
    return file.getvalue()
