"""Raw files on any file system that Beam knows. An endpoint may never answer, so each request to one has a time limit."""

import io
import os
import queue
import threading
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from tff_pipeline.errors import InputError, PipelineError

ANSWER_S = 20.0  # for an endpoint to answer a request
LISTING_S = 600.0  # for all pages of a listing, when the first has come
_READ_BYTES = 2**20  # asked of an endpoint at a time

T = TypeVar("T")


def is_address(path: str) -> bool:
    """Whether a path is an address on another file system than this machine's."""
    return "://" in path


def open_raw(path: str) -> BinaryIO:
    """A file, as the bytes it has (`compression` decompresses them)."""

    def open_file() -> BinaryIO:
        return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)

    if not is_address(path):
        return open_file()
    return io.BufferedReader(_Remote(path, answered(path, open_file)), _READ_BYTES)


def listed(pattern: str, silo: str) -> list[str]:
    """The addresses that match a pattern.

    Raises:
      InputError: if nothing here can read such an address, or the endpoint does not answer.
    """
    try:
        FileSystems.get_filesystem(pattern)
    except ValueError as error:
        raise InputError(
            f"{pattern}: the input of silo {silo!r} cannot be listed ({type(error).__name__}). {_CHECK_ADDRESS}"
        ) from None
    answered(pattern, lambda: FileSystems.match([pattern], [1]))  # one file: a listing of all of them takes longer
    (listing,) = answered(pattern, lambda: FileSystems.match([pattern]), within_s=LISTING_S)
    return [metadata.path for metadata in listing.metadata_list]


def version_of(path: str) -> str:
    """Size and time of the last change of a file; "" where the file system does not tell."""

    def ask() -> str:
        try:
            metadata = FileSystems.get_filesystem(path).metadata(path)
        except Exception:  # each file system raises its own; reading the file is what decides
            return ""
        return f"{metadata.size_in_bytes} {metadata.last_updated_in_seconds}"

    return answered(path, ask) if is_address(path) else ask()


_CHECK_ADDRESS = (
    "Check the address and this machine's access to it; gs:// needs apache-beam[gcp], s3:// apache-beam[aws]."
)


def answered(address: str, call: Callable[[], T], *, within_s: float | None = None) -> T:
    """What a call to an endpoint returns.

    Raises:
      InputError: if it fails, or takes more than `within_s` (ANSWER_S) seconds. Its thread ends with the process.
    """
    answers: queue.SimpleQueue[tuple[T | None, Exception | None]] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put((call(), None))
        except Exception as error:  # each file system raises its own
            answers.put((None, error))

    within_s = ANSWER_S if within_s is None else within_s
    threading.Thread(target=ask, name="ask_endpoint", daemon=True).start()
    try:
        answer, error = answers.get(timeout=within_s)
    except queue.Empty:
        raise InputError(
            f"{address}: the endpoint has not answered; expected an answer within {within_s:g} s. "
            "Check the address, the network between it and this machine, and that the service is up; then run prepare again."
        ) from None
    if isinstance(error, PipelineError):
        raise error
    if error is not None:
        raise InputError(f"{address}: the file cannot be read ({type(error).__name__}). {_CHECK_ADDRESS}") from None
    return answer  # type: ignore[return-value]


class _Remote(io.RawIOBase):
    """A file behind an endpoint; each request has ANSWER_S seconds."""

    def __init__(self, address: str, file: Any):
        super().__init__()
        self._address, self._file = address, file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = answered(self._address, lambda: self._file.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        answered(self._address, lambda: self._file.seek(offset, whence))
        return self.tell()

    def tell(self) -> int:
        return int(self._file.tell())
