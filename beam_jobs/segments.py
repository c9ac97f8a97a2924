"""Segment files: how rows get from the workers that read them to the worker that writes their shard.

Beam's in-process runners keep grouped data in memory, whole; a silo may be larger than that. So a worker appends what it
has tokenized to one file of its own, in segments by key (the range of client hashes), and only the segments' positions
travel through Beam. Workers must therefore share one file system, the workdir's.
"""

import errno
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from tff_pipeline.errors import ArtifactError

BUFFER_BYTES = 32 * 2**20
_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file may not grow any larger (a limit of the account or the disk)",
}


class Segment(msgspec.Struct, frozen=True, array_like=True):
    """`size` bytes at `offset` of `path`, all of one `key`; `order` sorts the segments of a key."""

    path: str
    key: int
    order: int
    offset: int
    size: int


class SegmentWriter:
    """Collects messages by key, and writes them whenever they reach `buffer_bytes` (BUFFER_BYTES)."""

    def __init__(self, folder: Path, *, buffer_bytes: int | None = None):
        self._path = folder / f"{uuid.uuid4().hex}.segments"
        self._buffer_bytes = buffer_bytes or BUFFER_BYTES
        self._buffers: dict[int, bytearray] = defaultdict(bytearray)
        self._orders: dict[int, int] = {}
        self._buffered = 0
        self._written = 0
        self._segments: list[Segment] = []

    def add(self, key: int, message: bytes, *, order: int = 0) -> None:
        self._buffers[key] += len(message).to_bytes(4, "little") + message
        self._orders.setdefault(key, order)
        self._buffered += len(message)
        if self._buffered >= self._buffer_bytes:
            self.flush()

    def close(self) -> list[Segment]:
        """Writes what is left, and returns every segment."""
        self.flush()
        return self._segments

    def flush(self) -> None:
        """Writes what has been collected."""
        if not self._buffers:
            return
        with writing(self._path), self._path.open("ab") as file:
            for key, buffer in sorted(self._buffers.items()):
                file.write(buffer)
                self._segments.append(Segment(str(self._path), key, self._orders[key], self._written, len(buffer)))
                self._written += len(buffer)
        self._buffers.clear()
        self._orders.clear()
        self._buffered = 0


def read_segments(segments: Iterable[Segment]) -> Iterator[bytes]:
    """The messages of segments, one segment in memory at a time."""
    for segment in segments:
        with Path(segment.path).open("rb") as file:
            file.seek(segment.offset)
            data = file.read(segment.size)
        at = 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 4], "little")
            yield data[at + 4 : at + 4 + size]
            at += 4 + size


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a write that the system refuses into an ArtifactError that says which path, why, and what to do."""
    try:
        yield
    except OSError as error:
        reason = _FULL.get(error.errno or 0)
        advice = "Nothing half-written is kept. Free space there, or move pipeline.workdir, and run prepare again; it needs about three times the size of the raw text."
        if not reason:
            reason = error.strerror or type(error).__name__
            advice = "Check that the folder exists and that this account may write in it."
        raise ArtifactError(f"{error.filename or path}: the file cannot be written: {reason}. {advice}") from None
