"""What a file is, told by its content, and its lines in bounded memory."""

import bz2
import gzip
import io
import lzma
import random
import tracemalloc
import zipfile

import pyarrow
import pyarrow.parquet
import pytest

from beam_jobs import compression, formats, lines, reading
from beam_jobs.formats import parquet
from tff_pipeline.config import SiloSection
from tff_pipeline.errors import InputError

LIMIT = 256 * 2**10
ROWS = b"text,label\nhelp,y\n"


def source(form: str = "csv", **keys) -> reading.Source:
    return reading.Source(SiloSection(name="bank", input="unused", format=form, **keys), f"data.{form}", LIMIT)


def read(file, at: reading.Source) -> tuple[list[int], list[reading.Reject], reading.LineCounts]:
    kept, rejects, counts = [], [], reading.LineCounts()
    for part in formats.read_columns(file, at):
        kept += part.lines
        rejects += part.rejects
        counts = counts.plus(part.counts)
    return kept, rejects, counts


def refusal(data: bytes, at: reading.Source) -> str:
    with pytest.raises(InputError) as raised:
        formats.check_columns(io.BytesIO(data), at)
    with pytest.raises(InputError) as again:
        read(io.BytesIO(data), at)
    assert str(raised.value) == str(again.value)
    return str(raised.value)


# -- lines -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("carriage_returns", [True, False])
@pytest.mark.parametrize("block", [1, 2, 3, 10, 1000])
def test_lines_are_those_of_python(monkeypatch, block, carriage_returns):
    """Seed 0, 300 texts: the lines of blocks are the file's, those above the limit come as pieces, and all are counted."""
    monkeypatch.setattr(lines, "BLOCK_BYTES", block)
    random_ = random.Random(0)
    for _ in range(300):
        data = bytes(random_.choice(b"aaaa\n\r") for _ in range(random_.randint(0, 40)))
        expected = data.splitlines(keepends=True) if carriage_returns else io.BytesIO(data).readlines()
        taken = lines.Lines(io.BufferedReader(io.BytesIO(data)), limit=6, carriage_returns=carriage_returns)
        lines_ = []
        for block_ in taken:
            if isinstance(block_, lines.LongLine):
                lines_.append(b"".join(block_.pieces))
                assert len(lines_[-1].rstrip(b"\r\n" if carriage_returns else b"\n")) > 6
            else:
                lines_ += [line.encode() for line in lines.text_lines(block_, carriage_returns=carriage_returns)]
        assert lines_ == expected
        assert taken.read == len(expected)


def test_lines_are_numbered_across_blocks_and_long_lines(monkeypatch):
    monkeypatch.setattr(lines, "BLOCK_BYTES", 4)
    content = io.BufferedReader(io.BytesIO(b"ab\nc\n" + b"d" * 50 + b"\n\ne"))

    numbered = list(lines.numbered_lines(lines.Lines(content, limit=6), io.BytesIO))
    assert numbered == [(1, b"ab\n"), (2, b"c\n"), (3, None), (4, b"\n"), (5, b"e")]


class Repeated(io.RawIOBase):
    """A file that begins with `head`, goes on with `piece` so many times, and ends with `tail`; never in memory as a whole."""

    def __init__(self, head: bytes, piece: bytes, times: int, tail: bytes):
        super().__init__()
        self._parts = iter([head, *(piece for _ in range(times)), tail])
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        self._left = self._left or next(self._parts, b"")
        part, self._left = self._left[: len(buffer)], self._left[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)


MEGABYTE = b"a" * 2**20
LARGE = {
    "a line": ("csv", b"text,label\nfine,x\n", MEGABYTE, b",x\nfine,y\n"),
    "a quoted line": ("csv", b'text,label\nfine,x\n"', MEGABYTE, b'",x\nfine,y\n'),
    "a quoted field of many lines": ("csv", b'text,label\nfine,x\n"', (b"a" * 999 + b"\n") * 1024, b'",x\nfine,y\n'),
    "a line of tsv": ("tsv", b"text\tlabel\nfine\tx\n", MEGABYTE, b"\tx\nfine\ty\n"),
    "a JSON string": (
        "jsonl",
        b'{"text": "fine", "label": "x"}\n{"label": "x", "text": "',
        MEGABYTE,
        b'"}\n{"text": "fine", "label": "y"}\n',
    ),
    "JSON in JSON": (
        "jsonl",
        b'{"text": "fine", "label": "x"}\n',
        b'{"a":' * 2**18,
        b'\n{"text": "fine", "label": "y"}\n',
    ),
    "a word": ("conll", b"fine\tO\n\n", MEGABYTE, b"\tO\n\nfine\tO\n"),
    "a sentence": ("conll", b"fine\tO\n\n", (b"w" * 1020 + b"\tO\n") * 1024, b"\nfine\tO\n"),
}


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", LARGE)
def test_memory_does_not_grow_with_what_is_too_long(tmp_path, kind, compressed):
    """48 MB in one row, also as a gzip of some 50 KB; limit and blocks are 256 KiB, buffers 1 MiB. The rows around it are read."""
    form, head, piece, tail = LARGE[kind]
    content = Repeated(head, piece, 48, tail)
    file: io.RawIOBase | io.BufferedReader = content
    if compressed:
        with gzip.open(tmp_path / "data.gz", "wb", compresslevel=1) as packed:
            while part := content.read(2**20):
                packed.write(part)
        file = (tmp_path / "data.gz").open("rb")
    tracemalloc.start()
    try:
        kept, rejects, counts = read(file, source(form))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        file.close()

    assert len(kept) == 2
    assert {reject.reason for reject in rejects} == {"too long"}
    assert counts.missing == 0
    assert peak < 8 * 2**20


def test_what_a_parquet_file_holds_once_is_in_memory_once(tmp_path):
    """20,000 rows that refer to one text of 50 KB: 1 GB if each had its own."""
    texts = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 20_000, pyarrow.int32()), ["a" * 50_000])
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "label": ["x"] * 20_000}), tmp_path / "data.parquet")
    assert (tmp_path / "data.parquet").stat().st_size < 100_000
    before = pyarrow.default_memory_pool().max_memory()
    with (tmp_path / "data.parquet").open("rb") as file:
        kept, _, _ = read(file, source("parquet"))

    assert len(kept) == 20_000
    assert pyarrow.default_memory_pool().max_memory() - before < 20 * 2**20


def test_large_rows_of_parquet(tmp_path, monkeypatch):
    """One above the limit is rejected; where a row group's are so on the average the file is refused before they are read."""
    path = tmp_path / "data.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["fine", "a" * (LIMIT + 1), "fine"], "label": ["x"] * 3}), path)
    with path.open("rb") as file:
        kept, rejects, counts = read(file, source("parquet"))
    assert (kept, rejects) == ([1, 3], [reading.Reject(2, "too long")])
    assert counts == reading.LineCounts(read=3, rows=2, rejected=1)

    monkeypatch.setattr(parquet, "READ_BYTES", 2**20)
    unlike = ["".join(random.Random(row).choices("abcdefgh", k=2**20)) for row in range(2)]
    pyarrow.parquet.write_table(pyarrow.table({"text": unlike, "label": ["x"] * 2}), path)
    message = refusal_on_reading(path.read_bytes(), source("parquet"))
    assert "data.parquet: row group 0 has 2 rows of 2,097," in message
    assert "expected at most 262,144 bytes a row" in message


def refusal_on_reading(data: bytes, at: reading.Source) -> str:
    with pytest.raises(InputError) as raised:
        read(io.BytesIO(data), at)
    return str(raised.value)


def test_few_rows_of_a_large_row_group_at_a_time(monkeypatch):
    monkeypatch.setattr(parquet, "READ_BYTES", 1000)
    file = io.BytesIO()
    pyarrow.parquet.write_table(
        pyarrow.table({"text": [f"help {n}" for n in range(9000)], "label": ["x"] * 9000}), file
    )
    metadata = pyarrow.parquet.ParquetFile(file).metadata.row_group(0)
    file.seek(0)

    assert parquet._rows_at_a_time(metadata, ["text", "label"], 0, source("parquet")) == 64
    assert len(read(file, source("parquet"))[0]) == 9000


# -- what a file is ----------------------------------------------------------------------------------------------------


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.csv", ROWS)
    return file.getvalue()


ZSTD = bytes.fromhex("28b52ffd2012910000") + ROWS  # the frame of an archive of one raw block


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (zipped(), "data.csv: the file is a zip archive (or a spreadsheet); expected text or parquet"),
        (gzip.compress(zipped()), "the file is a zip archive"),
        (ZSTD, "is compressed with zstd; expected text or parquet, as it is or compressed with gzip, bz2 or xz"),
        (gzip.compress(gzip.compress(ROWS)), "is compressed twice, one archive in the other; expected once"),
        (bz2.compress(gzip.compress(ROWS)), "is compressed twice"),
        (gzip.compress(lzma.compress(ROWS)), "is compressed twice"),
        (ROWS.decode().encode("utf-16"), "the file is UTF-16; expected UTF-8"),
        (ROWS.decode().encode("utf-16-le"), "the file is UTF-16LE; expected UTF-8"),
        (ROWS.decode().encode("utf-16-be"), "the file is UTF-16BE; expected UTF-8"),
        ("text,label\n你好你好你好你好你好,你\n".encode("utf-16-le"), "the file is UTF-16LE; expected UTF-8"),
        (ROWS.decode().encode("utf-32"), "the file is UTF-32; expected UTF-8"),
        (ROWS.decode().encode("utf-32-le"), "the file is UTF-32LE; expected UTF-8"),
        (ROWS.decode().encode("utf-32-be"), "the file is UTF-32BE; expected UTF-8"),
        ("text,label\n你好你好你好,你\n".encode("utf-32-be"), "the file is UTF-32BE; expected UTF-8"),
        (gzip.compress(ROWS.decode().encode("utf-16-le")), "the file is UTF-16LE"),
        (b"PAR1" + bytes(20), 'the file is a parquet file; expected csv. Set format = "parquet" for silo'),
        (bz2.compress(ROWS)[:4] + b"\x00" + bz2.compress(ROWS)[5:], "the compressed data is damaged (bz2)"),
        (bz2.compress(b""), "nothing is compressed in it"),
    ],
    # Archives hold the time; a case's name must be the same in every process that runs tests.
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_read_is_named_for_what_it_is(data, words):
    assert words in refusal(data, source())


@pytest.mark.parametrize("at", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_damaged_archives_are_called_damaged(compress, at):
    """A byte changed anywhere behind the head; 200,000 bytes that compress badly, of seed 0."""
    random_ = random.Random(0)
    data = bytearray(compress(ROWS + b"".join(b"%x,y\n" % random_.getrandbits(64) for _ in range(10_000))))
    data[int(len(data) * at)] ^= 0xFF

    assert "the compressed data is" in refusal_on_reading(bytes(data), source())
    assert "damaged" in refusal_on_reading(bytes(data), source())


def test_xz_archives_of_several_streams_and_one_that_takes_too_much_memory(monkeypatch):
    packed = lzma.compress(ROWS) + bytes(8) + lzma.compress(b"lost,x\n" * 100_000) + lzma.compress(b"")

    assert len(read(io.BytesIO(packed), source())[0]) == 100_001
    monkeypatch.setattr(compression, "XZ_BYTES", 2**20)
    assert "data.csv: the xz archive takes more than 1 MiB of memory to unpack" in refusal(packed, source())


def test_a_stray_nul_is_a_rows_own_damage():
    kept, rejects, _ = read(io.BytesIO(ROWS * 1 + b"a\0b,x\n" + b"help me,y\n" * 20), source())
    assert (len(kept), rejects) == (22, [])
