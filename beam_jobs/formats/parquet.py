"""parquet: typed columns, in bounded memory.

pyarrow unpacks a column page by page. So in memory are the values of the rows read at a time (see READ_ROWS), and one page of
each column, which writers make of 1 MB, or of one value where that is larger.
"""

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from beam_jobs.formats.values import row_of
from beam_jobs.reading import CONFIGURED, TOO_LONG, LineCounts, RawRow, Source, require_columns
from tff_pipeline.errors import InputError

READ_ROWS = 4096  # at a time, where these columns of a row group are at most
READ_BYTES = 64 * 2**20  # and fewer in proportion where they are larger, but at least
LEAST_ROWS = 64


def check(content: BinaryIO, source: Source) -> None:
    """Raises InputError if the file is damaged, lacks a configured column, or has one of a type that is no text."""
    _opened(content, source)


def read(content: BinaryIO, source: Source) -> Iterator[RawRow | LineCounts]:
    """Every row of a file, and at its end how many there were."""
    import pyarrow

    file = _opened(content, source)
    number = rows = 0
    try:
        for batch in _batches(file, source):
            for values, too_long in _rows(batch, source):
                number += 1
                row = RawRow(number, None, TOO_LONG) if too_long else row_of(number, values, source)
                rows += row.fields is not None
                yield row
    except pyarrow.ArrowException as error:
        raise InputError(
            f"{source.name}: the parquet data after row {number} is damaged ({type(error).__name__}); expected {file.metadata.num_rows:,} rows. Export the file again."
        ) from None
    yield LineCounts(read=file.metadata.num_rows, rows=rows, rejected=number - rows)


def _batches(file: Any, source: Source) -> Iterator[Any]:
    """The configured columns of some thousand rows at a time."""
    columns = list(dict.fromkeys(filter(None, source.columns)))
    for group in range(file.num_row_groups):
        size = _rows_at_a_time(file.metadata.row_group(group), columns, group, source)
        yield from file.iter_batches(batch_size=size, row_groups=[group], columns=columns)


def _rows(batch: Any, source: Source) -> Iterator[tuple[tuple[Any, ...], bool]]:
    """The values of each row for text, label, client and group, and whether they are above the limit together."""
    lists = {name: _values(batch.column(index)) for index, name in enumerate(batch.schema.names)}
    empty = [""] * batch.num_rows
    small = sum(map(_largest, batch.columns)) <= source.max_row_bytes
    for values in zip(*(lists[column] if column else empty for column in source.columns), strict=True):
        size = 0 if small else sum(len(value) for value in values if isinstance(value, bytes))
        yield values, size > source.max_row_bytes


def _opened(content: BinaryIO, source: Source) -> Any:
    import pyarrow
    import pyarrow.parquet

    if not content.seekable():
        raise InputError(
            f"{source.name}: parquet is read from several positions of a file, and this one can be read from its beginning only; "
            "expected it uncompressed, on a file system that allows seeking."
        )
    try:
        schema = pyarrow.parquet.ParquetFile(content).schema_arrow
        texts = [
            name
            for name, kind in zip(schema.names, schema.types, strict=True)
            if name in source.columns and _is_text(kind)
        ]
        content.seek(0)
        # As dictionaries: a text that a file holds once and a million rows refer to is in memory once as well.
        file = pyarrow.parquet.ParquetFile(content, read_dictionary=texts, buffer_size=2**20, pre_buffer=False)
    except pyarrow.ArrowException as error:
        raise InputError(
            f"{source.name}: the file is not readable as parquet ({type(error).__name__}); expected one that was written to its end. Export it again."
        ) from None
    require_columns(schema.names, source, kind="column", location="the schema", shown="all")
    for key, column in zip(CONFIGURED, source.columns, strict=True):
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


def _rows_at_a_time(group: Any, columns: Sequence[str], number: int, source: Source) -> int:
    """How many rows of a row group are in memory at a time.

    Raises:
      InputError: if its rows are on average larger than a row may be.
    """
    chunks = [group.column(index) for index in range(group.num_columns)]
    size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in columns)
    if size > max(source.max_row_bytes * group.num_rows, READ_BYTES):
        raise InputError(
            f"{source.name}: row group {number} has {group.num_rows:,} rows of {size:,} bytes in the configured columns; expected at most {source.max_row_bytes:,} bytes a row. "
            "Leave such rows out, or raise prepare.max_row_bytes."
        )
    return max(LEAST_ROWS, min(READ_ROWS, READ_ROWS * READ_BYTES // max(size, 1)))


def _values(column: Any) -> list[Any]:
    """A column as Python values; strings as bytes, since parquet does not promise that they are UTF-8."""
    import pyarrow

    if not pyarrow.types.is_dictionary(column.type):
        return (column.cast(pyarrow.large_binary()) if _is_text(column.type) else column).to_pylist()
    if _largest(column) * len(column) <= READ_BYTES:
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
