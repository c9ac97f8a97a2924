"""Raw files to rows: csv, tsv, jsonl, parquet and conll, one module a format. No Beam, no TensorFlow.

A format's reader takes an open binary file and yields its rows in the file's order, some at a time and without ever having
it in memory whole. A row has its line number, and either its fields or the reason why it has none. The number is that of the
physical line on which the row begins, counted from 1 (parquet has no lines: the row, counted from 1). Blank lines are no rows.

A row larger than `Source.max_row_bytes` is rejected, and is never in memory (parquet: see its module). What became of every
line is counted, and `read_columns` fails where the counts do not add up to the lines of the file.

What makes a whole file unusable raises `InputError`. No message holds a value of a row.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from beam_jobs import reading
from beam_jobs.compression import decompressed, readable
from beam_jobs.formats import conll, delimited, jsonl, parquet
from beam_jobs.reading import Columns, LineCounts, RawRow, Reject, Source, text_size
from tff_pipeline.errors import PipelineError

SLICE_CHARACTERS = 2**20  # of text, about: of rows with long texts, fewer come at a time

_CHECKS: dict[str, Callable[[Any, Source], None]] = {
    "csv": delimited.check,
    "tsv": delimited.check,
    "jsonl": jsonl.check,
    "parquet": parquet.check,
    "conll": conll.check,
}
_ROW_READERS: dict[str, Callable[[Any, Source], Iterator[RawRow | LineCounts]]] = {
    "jsonl": jsonl.read,
    "parquet": parquet.read,
    "conll": conll.read,
}


def read_columns(file: BinaryIO, source: Source) -> Iterator[Columns]:
    """Every row of an open file, at most reading.SLICE_ROWS at a time, and fewer where texts are long.

    Raises:
      InputError: if the file as a whole cannot be used: empty, cut short, a missing column, a quote never closed.
      PipelineError: if some of its lines became neither a row, nor a reject, nor anything else that is counted.
    """
    counts = LineCounts()
    with readable(source.name):
        content = decompressed(file, source)
        read_rows = _ROW_READERS.get(source.silo.format)
        slices = _bundled(read_rows(content, source)) if read_rows else delimited.read(content, source)
        for columns in slices:
            counts = counts.plus(columns.counts)
            yield columns
    if counts.missing:
        raise PipelineError(
            f"{source.name}: of {counts.read:,} lines {counts.read - counts.missing:,} are accounted for ({counts}); expected all of them. "
            "No snapshot is made. This is a defect of prepare: please report it with this line."
        )


def check_columns(file: BinaryIO, source: Source) -> None:
    """Reads the head of an open file, and raises InputError if it is empty or lacks a configured column."""
    with readable(source.name):
        _CHECKS[source.silo.format](decompressed(file, source), source)


@contextmanager
def opened(open_file: Callable[[str], BinaryIO], path: str) -> Iterator[BinaryIO]:
    """`open_file(path)`, closed at the end; InputError if it cannot be opened."""
    with readable(path):
        file = open_file(path)
    try:
        yield file
    finally:
        file.close()


def _bundled(rows: Iterable[RawRow | LineCounts]) -> Iterator[Columns]:
    """Puts rows that come one by one together."""
    bundle, characters = Columns.without_rows(), 0
    for row in rows:
        if isinstance(row, LineCounts):
            bundle = bundle._replace(counts=bundle.counts.plus(row))
            continue
        line, fields, reason = row
        if fields is None:
            bundle.rejects.append(Reject(line, reason))
        else:
            bundle.add(line, fields)
            characters += text_size(fields.text)
        if len(bundle.lines) + len(bundle.rejects) >= reading.SLICE_ROWS or characters >= SLICE_CHARACTERS:
            yield bundle
            bundle, characters = Columns.without_rows(), 0
    yield bundle
