"""A file's content as lines, in blocks of whole lines: memory does not grow with what the file holds.

A line longer than the limit comes in pieces, which a reader drops; so neither a line of gigabytes nor a small archive of one
is ever in memory.
"""

import io
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np

BLOCK_BYTES = 256 * 2**10
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

T = TypeVar("T")


class LongLine(NamedTuple):
    """One line above the limit, piece by piece. The pieces must be taken before the next block is asked for."""

    pieces: Iterator[bytes]


class Lines:
    """The lines of an open file, in blocks of whole lines; `read` counts them.

    Lines end with "\\n", and with `carriage_returns` also with "\\r" and "\\r\\n". At most about `limit` and two blocks of
    BLOCK_BYTES are in memory, whatever the file holds.
    """

    def __init__(self, content: io.BufferedReader, *, limit: int, carriage_returns: bool = False):
        self._content, self._limit, self._carriage_returns = content, limit, carriage_returns
        # Not above the limit: so no line that lies within one piece of the file is above it either.
        self._size = min(BLOCK_BYTES, limit)
        self._ahead = b""  # what was read beyond a long line
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
        """The length of the first line, and where the next line begins: 0 if the first does not end in this piece."""
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


def numbered_lines(lines: Lines, split: Callable[[bytes], Iterable[T]]) -> Iterator[tuple[int, T | None]]:
    """Each line of a file with its number, counted from 1, as `split` makes them of a block; None for a line above the limit."""
    number = 0
    for block in lines:
        if isinstance(block, LongLine):
            for _ in block.pieces:
                pass
            number += 1
            yield number, None
            continue
        for number, line in enumerate(split(block), start=number + 1):  # noqa: B020, the count goes on
            yield number, line
