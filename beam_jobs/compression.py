"""A raw file's content, decompressed in bounded memory; files that are no text in UTF-8 are refused by what they are.

Compression (gzip, bz2, xz) is recognized by the content's first bytes and not by the file's name.
"""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from beam_jobs.reading import Source
from tff_pipeline.errors import InputError

XZ_BYTES = 128 * 2**20  # of memory that an xz archive may take to unpack; those of xz -9 take 65 MiB
_COMPRESSED_BYTES = 256 * 2**10  # read at a time from an xz archive
_BUFFER_BYTES = 2**20  # of decompressed text
_HEAD_BYTES = 4096  # examined at the beginning of a file to recognize its encoding
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)
_GZIP, _XZ, _BZIP2 = b"\x1f\x8b", b"\xfd7zXZ\x00", b"BZh"
_BZIP2_BLOCKS = (b"1AY&SY", b"\x17rE8P\x90")  # the first block, or the end of an empty archive
_REFUSED = {
    b"PK\x03\x04": ("a zip archive (or a spreadsheet)", "Unpack it, or export it as csv"),
    b"PK\x05\x06": ("a zip archive (or a spreadsheet)", "Unpack it, or export it as csv"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "Unpack it, or compress it with gzip, bz2 or xz"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "Unpack it"),
    b"Rar!\x1a\x07": ("a rar archive", "Unpack it"),
    b"\x04\x22\x4d\x18": ("compressed with lz4", "Unpack it, or compress it with gzip, bz2 or xz"),
}
_BYTE_ORDER_MARKS = (  # in this order: the mark of UTF-32 begins with that of UTF-16
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turns what libraries raise on a damaged or unreadable file into an InputError that names the file."""
    try:
        yield
    except _DAMAGED as error:
        raise InputError(
            f"{name}: the compressed data is cut short or damaged ({type(error).__name__}); expected a whole archive. "
            "Copy the file again, and check it, for instance with `gzip -t`."
        ) from None
    except OSError as error:
        if error.errno is None and "data stream" in str(error):  # so Python's bz2 reports damaged data
            raise _damaged_bzip2(name) from None
        raise InputError(
            f"{name}: the file cannot be read ({error.strerror or type(error).__name__}). "
            "Check that it exists, that it is whole, and that this account may read it."
        ) from None


def decompressed(file: BinaryIO, source: Source) -> io.BufferedReader:
    """The file's content.

    Beam would decompress too, but it takes a gzip that is cut short for one that has ended.

    Raises:
      InputError: if the file is empty, or cannot be used as it is: an archive of files, another encoding than UTF-8.
    """
    buffered: Any = file if isinstance(file, io.BufferedReader) else io.BufferedReader(cast(io.RawIOBase, file))
    head = buffered.peek(16)
    if not head:
        raise _empty(source, "0 bytes")
    content = _decompressing(buffered, head, source.name)
    start = content.peek(_HEAD_BYTES)[:_HEAD_BYTES]
    if not start:
        raise _empty(source, "nothing is compressed in it")
    if content is not buffered and _is_compressed(start):
        raise InputError(
            f"{source.name}: the file is compressed twice, one archive in the other; expected once. Unpack it, and compress it once."
        )
    _refuse_archives(start, source.name)
    if source.silo.format != "parquet":
        _require_utf8(start, source)
    return content


def _empty(source: Source, why: str) -> InputError:
    return InputError(
        f"{source.name}: the file is empty ({why}); expected {source.silo.format} rows. Export it again, or take it out of the silo's input."
    )


def _damaged_bzip2(name: str) -> InputError:
    return InputError(
        f"{name}: the compressed data is damaged (bz2); expected a whole archive. Copy the file again, and check it with `bzip2 -t`."
    )


def _is_compressed(start: bytes) -> bool:
    return start.startswith((_GZIP, _XZ)) or _is_bzip2(start)


def _is_bzip2(start: bytes) -> bool:
    return start[:3] == _BZIP2 and start[3:4].isdigit() and start[4:10] in _BZIP2_BLOCKS


def _decompressing(buffered: io.BufferedReader, head: bytes, name: str) -> io.BufferedReader:
    content: Any
    if head.startswith(_GZIP):
        content = gzip.GzipFile(fileobj=buffered)
    elif head.startswith(_XZ):
        content = _Xz(buffered, name)
    elif _is_bzip2(head):
        content = bz2.BZ2File(buffered)
    elif head[:3] == _BZIP2 and head[3:4].isdigit() and not head.isascii():
        raise _damaged_bzip2(name)
    else:
        return buffered
    return cast(io.BufferedReader, io.BufferedReader(content, _BUFFER_BYTES))


class _Xz(io.RawIOBase):
    """The content of an xz archive. Python's own reader has no limit on memory, and the archive decides how much it takes."""

    def __init__(self, file: io.BufferedReader, name: str):
        super().__init__()
        self._file, self._name = file, name
        self._stream = self._next_stream(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data and self._stream is not None:
            if self._stream.eof:  # another stream may follow
                self._stream = self._next_stream(self._stream.unused_data)
                continue
            compressed = self._file.read(_COMPRESSED_BYTES) if self._stream.needs_input else b""
            if self._stream.needs_input and not compressed:
                raise EOFError
            data = self._unpack(self._stream, compressed, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _next_stream(self, compressed: bytes) -> lzma.LZMADecompressor | None:
        """The next stream of the archive, after the zeros that may lie between two; None at the archive's end."""
        compressed = compressed.lstrip(b"\0")
        while not compressed and (block := self._file.read(_COMPRESSED_BYTES)):
            compressed = block.lstrip(b"\0")
        if not compressed:
            return None
        stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_BYTES)
        self._unpack(stream, compressed, 0)
        return stream

    def _unpack(self, stream: lzma.LZMADecompressor, compressed: bytes, size: int) -> bytes:
        try:
            return stream.decompress(compressed, size)
        except lzma.LZMAError as error:
            if "memory usage limit" not in str(error).lower():
                raise
            raise InputError(
                f"{self._name}: the xz archive takes more than {XZ_BYTES >> 20} MiB of memory to unpack; expected at most that, which every preset of xz stays below. "
                "Compress it again, for instance with `xz -9`."
            ) from None


def _refuse_archives(start: bytes, name: str) -> None:
    for magic, (kind, advice) in _REFUSED.items():
        if start.startswith(magic):
            raise InputError(
                f"{name}: the file is {kind}; expected text or parquet, as it is or compressed with gzip, bz2 or xz. {advice}."
            )


def _require_utf8(start: bytes, source: Source) -> None:
    """InputError for UTF-16 and UTF-32, with a byte order mark or without: then every ASCII character comes with NUL bytes."""
    marked = next((name for mark, name in _BYTE_ORDER_MARKS if start.startswith(mark)), "")
    if encoding := marked or _encoding_by_nuls(start):
        raise InputError(
            f"{source.name}: the file is {encoding}; expected UTF-8. Convert it, for instance with `iconv -f {encoding} -t UTF-8`."
        )
    if start.startswith(b"PAR1"):
        raise InputError(
            f'{source.name}: the file is a parquet file; expected {source.silo.format}. Set format = "parquet" for silo {source.silo.name!r}.'
        )


def _encoding_by_nuls(start: bytes) -> str:
    """The encoding that puts NUL bytes where these are, as "UTF-16LE"; "" where they are few, which is damage of a row."""
    if start.count(0) < max(2, len(start) // 20):
        return ""
    fractions = [start[offset::4].count(0) / max(1, len(start[offset::4])) for offset in range(4)]
    zeros = [fraction > 0.9 for fraction in fractions]
    if zeros == [False, True, True, True] or (zeros[2:] == [True, True] and not zeros[0]):
        return "UTF-32LE"
    if zeros == [True, True, True, False] or (zeros[:2] == [True, True] and not zeros[3]):
        return "UTF-32BE"
    if fractions[0] + fractions[2] < 0.1 * (fractions[1] + fractions[3]):
        return "UTF-16LE"
    if fractions[1] + fractions[3] < 0.1 * (fractions[0] + fractions[2]):
        return "UTF-16BE"
    return ""
