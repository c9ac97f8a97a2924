"""A raw file's bytes, decompressed, and its lines, in memory that does not grow with what the file holds.

Compression is recognised by content. Text is read in blocks of whole lines; a line longer than the limit comes in pieces,
which a reader drops, so that neither a line of gigabytes nor a small archive of one is ever held.
"""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np

from beam_jobs.reading import Source
from tff_pipeline.errors import InputError

BLOCK_BYTES = 256 * 2**10
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
XZ_BYTES = 128 * 2**20  # that an archive may take to unpack; xz -9 takes 65 MiB
_BUFFER_BYTES = 2**20  # of decompressed text
_LOOK_BYTES = 4096  # how much of a file is looked at to tell its encoding
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)
_GZIP, _XZ, _BZIP2 = b"\x1f\x8b", b"\xfd7zXZ\x00", b"BZh"
_BZIP2_BLOCKS = (b"1AY&SY", b"\x17rE8P\x90")  # the first block, or the end of an archive of nothing
_REFUSED = {
    b"PK\x03\x04": ("a zip archive (or a spreadsheet)", "Unpack it, or export it as csv"),
    b"PK\x05\x06": ("a zip archive (or a spreadsheet)", "Unpack it, or export it as csv"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "Unpack it, or compress it with gzip, bz2 or xz"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "Unpack it"),
    b"Rar!\x1a\x07": ("a rar archive", "Unpack it"),
    b"\x04\x22\x4d\x18": ("compressed with lz4", "Unpack it, or compress it with gzip, bz2 or xz"),
}
_MARKS = (  # in this order: the mark of UTF-32 begins with that of UTF-16
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turns what libraries raise on a damaged file, or one that cannot be read, into an InputError that names it."""
    try:
        yield
    except _DAMAGED as error:
        raise InputError(
            f"{name}: the compressed data is cut short or damaged ({type(error).__name__}). Copy the file again, and check it with `gzip -t` or its like."
        ) from None
    except OSError as error:
        if error.errno is None and "data stream" in str(error):  # how Python's bz2 says that the data is damaged
            raise InputError(
                f"{name}: the compressed data is damaged (bz2). Copy the file again, and check it with `bzip2 -t`."
            ) from None
        raise InputError(
            f"{name}: cannot be read ({error.strerror or type(error).__name__}). Check that the file is there, whole, and that this account may read it."
        ) from None


def decompressed(file: BinaryIO, source: Source) -> io.BufferedReader:
    """The file's content; compression is recognised by its first bytes, so that a wrong file name does no harm.

    Beam would decompress too, but takes a gzip that is cut short for one that has ended.

    Raises:
      InputError: if there is nothing, or what is there is not what can be read: an archive, another encoding than UTF-8.
    """
    buffered: Any = file if isinstance(file, io.BufferedReader) else io.BufferedReader(cast(io.RawIOBase, file))
    head = buffered.peek(16)
    if not head:
        raise InputError(
            f"{source.name}: the file is empty (0 bytes); expected {source.silo.format} rows. Export it again, or take it out of the silo's input."
        )
    content = _unpacked(buffered, head, source.name)
    packed = content is not buffered
    start = content.peek(_LOOK_BYTES)[:_LOOK_BYTES]
    if not start:
        raise InputError(
            f"{source.name}: the file is empty (nothing is compressed in it); expected {source.silo.format} rows. Export it again, or take it out of the silo's input."
        )
    if packed and _is_packed(start):
        raise InputError(
            f"{source.name}: is compressed twice, one archive in the other; expected once. Unpack it, and compress it once."
        )
    _refuse_archives(start, source.name)
    if source.silo.format != "parquet":
        _require_utf8(start, source)
    return content


def _is_packed(start: bytes) -> bool:
    return start.startswith((_GZIP, _XZ)) or _is_bzip2(start)


def _is_bzip2(start: bytes) -> bool:
    return start[:3] == _BZIP2 and start[3:4].isdigit() and start[4:10] in _BZIP2_BLOCKS


def _unpacked(buffered: io.BufferedReader, head: bytes, name: str) -> io.BufferedReader:
    content: Any
    if head.startswith(_GZIP):
        content = gzip.GzipFile(fileobj=buffered)
    elif head.startswith(_XZ):
        content = _Xz(buffered, name)
    elif _is_bzip2(head):
        content = bz2.BZ2File(buffered)
    elif head[:3] == _BZIP2 and head[3:4].isdigit() and not head.isascii():
        raise InputError(
            f"{name}: the compressed data is damaged (bz2). Copy the file again, and check it with `bzip2 -t`."
        )
    else:
        return buffered
    return cast(io.BufferedReader, io.BufferedReader(content, _BUFFER_BYTES))


class _Xz(io.RawIOBase):
    """What an xz archive holds. Python's own reader knows no limit on memory, and the archive says how much it takes."""

    def __init__(self, file: io.BufferedReader, name: str):
        super().__init__()
        self._file, self._name = file, name
        self._stream = self._next_stream(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data and self._stream is not None:
            if self._stream.eof:  # another one may follow
                self._stream = self._next_stream(self._stream.unused_data)
                continue
            packed = self._file.read(BLOCK_BYTES) if self._stream.needs_input else b""
            if self._stream.needs_input and not packed:
                raise EOFError
            data = self._unpack(self._stream, packed, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _next_stream(self, packed: bytes) -> lzma.LZMADecompressor | None:
        """The next stream of the archive, after the zeros that may lie between; None if there is no more."""
        packed = packed.lstrip(b"\0")
        while not packed and (block := self._file.read(BLOCK_BYTES)):
            packed = block.lstrip(b"\0")
        if not packed:
            return None
        stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_BYTES)
        self._unpack(stream, packed, 0)
        return stream

    def _unpack(self, stream: lzma.LZMADecompressor, packed: bytes, size: int) -> bytes:
        try:
            return stream.decompress(packed, size)
        except lzma.LZMAError as error:
            if "memory usage limit" not in str(error).lower():
                raise
            raise InputError(
                f"{self._name}: takes more than {XZ_BYTES >> 20} MiB of memory to unpack, which is more than any preset of xz makes of it. Compress it again, for instance with `xz -9`."
            ) from None


def _refuse_archives(start: bytes, name: str) -> None:
    for magic, (kind, advice) in _REFUSED.items():
        if start.startswith(magic):
            raise InputError(
                f"{name}: is {kind}; expected the file itself, as it is or compressed with gzip, bz2 or xz. {advice}."
            )


def _require_utf8(start: bytes, source: Source) -> None:
    """InputError for UTF-16 and UTF-32, with their marks or without: then every ASCII character comes with NUL bytes."""
    encoding = next((name for mark, name in _MARKS if start.startswith(mark)), "") or _encoding_by_nuls(start)
    if encoding:
        raise InputError(
            f"{source.name}: the file is {encoding}; expected UTF-8. Convert it, for instance with `iconv -f {encoding} -t UTF-8`."
        )
    if source.silo.format != "parquet" and start.startswith(b"PAR1"):
        raise InputError(
            f'{source.name}: is a parquet file; expected {source.silo.format}. Set format = "parquet" for silo {source.silo.name!r}.'
        )


def _encoding_by_nuls(start: bytes) -> str:
    """ "UTF-16LE" and its like where the NUL bytes lie as theirs do; "" where there are few, which are a row's own damage."""
    if start.count(0) < max(2, len(start) // 20):
        return ""
    shares = [start[offset::4].count(0) / max(1, len(start[offset::4])) for offset in range(4)]
    zeros = [share > 0.9 for share in shares]
    if zeros == [False, True, True, True] or (zeros[2:] == [True, True] and not zeros[0]):
        return "UTF-32LE"
    if zeros == [True, True, True, False] or (zeros[:2] == [True, True] and not zeros[3]):
        return "UTF-32BE"
    if shares[0] + shares[2] < 0.1 * (shares[1] + shares[3]):
        return "UTF-16LE"
    if shares[1] + shares[3] < 0.1 * (shares[0] + shares[2]):
        return "UTF-16BE"
    return ""


# -- lines -------------------------------------------------------------------------------------------------------------


class LongLine(NamedTuple):
    """One line above the limit, piece by piece; the pieces have to be taken before the next block is asked for."""

    pieces: Iterator[bytes]


class Lines:
    """The lines of an open file, in blocks of whole lines; `read` counts them.

    Lines end with "\\n", and with `carriage_returns` also with "\\r" and "\\r\\n". At most about `limit` and two blocks of
    BLOCK_BYTES are in memory, whatever the file holds.
    """

    def __init__(self, content: io.BufferedReader, *, limit: int, carriage_returns: bool = False):
        self._content, self._limit, self._carriage_returns = content, limit, carriage_returns
        # Not above the limit: then no line that lies within one such piece of the file is above it either.
        self._size = min(BLOCK_BYTES, limit)
        self._ahead = b""  # read behind a long line
        self.read = 0
        if content.peek(3)[:3] == BYTE_ORDER_MARK:
            content.read(3)

    def __iter__(self) -> Iterator[bytes | LongLine]:
        rest = bytearray()
        while piece := self._next_piece():
            length, end = self._first_line(piece)
            if not end and len(rest) + len(piece) <= self._limit:
                rest += piece
                continue
            if not end or len(rest) + length > self._limit:
                self._ahead = piece
                yield LongLine(self._long_line(bytes(rest)))
                rest = bytearray()
                continue
            last = self._last_end(piece)
            block = bytes(rest) + piece[:last]
            rest = bytearray(piece[last:])
            self.read += self._count(block)
            yield block
        if rest:
            self.read += 1
            yield bytes(rest)

    def _next_piece(self) -> bytes:
        if self._ahead:
            piece, self._ahead = self._ahead, b""
            return piece
        piece = self._content.read(self._size)
        if self._carriage_returns and piece.endswith(b"\r") and self._content.peek(1)[:1] == b"\n":
            piece += self._content.read(1)
        return piece

    def _long_line(self, begun: bytes) -> Iterator[bytes]:
        self.read += 1
        yield begun
        while piece := self._next_piece():
            _, end = self._first_line(piece)
            if end:
                self._ahead = piece[end:]
                yield piece[:end]
                return
            yield piece

    def _first_line(self, piece: bytes) -> tuple[int, int]:
        """The length of the first line, and where the next one begins: 0 if it does not end in this piece."""
        newline = piece.find(b"\n")
        if self._carriage_returns:
            carriage_return = piece.find(b"\r", 0, newline if newline >= 0 else None)
            if carriage_return >= 0:
                return carriage_return, carriage_return + (2 if newline == carriage_return + 1 else 1)
        return newline, newline + 1

    def _last_end(self, piece: bytes) -> int:
        return max(piece.rfind(b"\n"), piece.rfind(b"\r") if self._carriage_returns else -1) + 1

    def _count(self, block: bytes) -> int:
        data = np.frombuffer(block, np.uint8)
        newlines = data == 0x0A
        if not self._carriage_returns or b"\r" not in block:
            return int(np.count_nonzero(newlines))
        carriage_returns = data == 0x0D
        both = np.count_nonzero(carriage_returns[:-1] & newlines[1:])
        return int(np.count_nonzero(newlines) + np.count_nonzero(carriage_returns) - both)


def text_lines(block: bytes, *, carriage_returns: bool = False) -> list[str]:
    """The lines of a block with their ends; a byte that is not UTF-8 becomes a surrogate."""
    return list(io.StringIO(block.decode("utf-8", "surrogateescape"), newline="" if carriage_returns else "\n"))
