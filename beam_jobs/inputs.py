"""A silo's input: from the patterns of the configuration to files that are there, each once, looked into and checksummed.

Files lie on this machine or on any file system that Beam knows. One that is far away may never answer: what is asked of it has
ANSWER_S seconds, each time, and then prepare says so.
"""

import hashlib
import io
import os
import queue
import re
import stat
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from apache_beam.io.filesystem import CompressionTypes, FileSystem
from apache_beam.io.filesystems import FileSystems

from beam_jobs import formats
from tff_pipeline.config import SiloSection
from tff_pipeline.errors import InputError, PipelineError

ANSWER_S = 20.0  # for an endpoint to answer a request
LISTING_S = 600.0  # for all pages of a listing, when the first has come
_READ_BYTES = 2**20  # asked of an endpoint at a time

T = TypeVar("T")


@dataclass(frozen=True)
class InputFile:
    """One raw file: where it is, the name it is known by, and its split ("" where clients are split by hash)."""

    index: int
    path: str
    name: str
    split: str
    version: str = ""  # size and time of change: whether it is still the same file


class Warned(NamedTuple):
    """Something about a file that a person should know; it stops nothing."""

    file: str
    warning: str


class Inputs(NamedTuple):
    """A silo's files, what the manifest says of each, and what a person should know."""

    files: tuple[InputFile, ...]
    entries: list[dict[str, Any]]
    warnings: list[Warned]


def find(section: SiloSection, base: Path, source: Callable[[str], formats.Source]) -> Inputs:
    """The silo's files in the order of their names. A file that is there twice is read once, and a warning says so.

    Args:
      section: the silo.
      base: the configuration's folder, from which names are seen.
      source: how a path is to be read.

    Raises:
      InputError: if a pattern matches nothing, a file is named for two splits or cannot be used, an endpoint does not answer.
    """
    splits: dict[str, str] = {}
    warnings: list[Warned] = []
    for split, patterns in section.inputs_by_split.items():
        for pattern in patterns:
            for path in _match(pattern, section, warnings):
                if splits.setdefault(path, split) != split:
                    raise InputError(
                        f"{path}: is named by the {splits[path]} files and by the {split} files of silo {section.name!r}; expected each file in one split."
                    )
    named = sorted((_name(path, base), path, split) for path, split in splits.items())
    files: list[InputFile] = []
    entries: dict[str, dict[str, Any]] = {}  # by checksum
    for name, path, split in named:
        file = InputFile(len(files), path, name, split, _version(path))
        with formats.opened(open_raw, path) as handle:
            formats.check_columns(handle, source(path))
        sha256, size = _checksum(path)
        entry = {"path": path, "name": name, "split": split, "sha256": sha256, "bytes": size}
        if (first := entries.setdefault(sha256, entry)) is entry:
            files.append(file)
        elif first["split"] == split:
            warnings.append(
                Warned(
                    name,
                    f"is the same as {first['name']}, byte for byte, and was read once; take one of them out of the input",
                )
            )
        elif not _has_rows(file, source(path)):
            warnings.append(Warned(name, f"holds no rows and is the same as {first['name']}, byte for byte"))
        else:
            raise InputError(
                f"{path}: is the same as {first['path']}, byte for byte, but the one is in the {first['split']} split of silo {section.name!r} and the other in the {split} split; "
                "expected each row in one split. Take one of them out of the input."
            )
    return Inputs(tuple(files), list(entries.values()), warnings)


def _has_rows(file: InputFile, source: formats.Source) -> bool:
    """Whether a file holds anything but a header, blank lines and comments."""
    with formats.opened(open_raw, file.path) as handle:
        return any(columns.lines or columns.rejects for columns in formats.read_columns(handle, source))


def check_unchanged(files: Sequence[InputFile], section: SiloSection) -> None:
    """What was read must be what was checksummed."""
    for file in files:
        if _version(file.path) != file.version:
            raise InputError(
                f"{file.path}: has changed while prepare was reading it. Let whatever writes the files of silo {section.name!r} finish first, and start again."
            )


def open_raw(path: str) -> BinaryIO:
    """A file on any file system Beam knows, as the bytes that lie there (`formats` decompresses)."""

    def open_file() -> BinaryIO:
        return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)

    if not is_address(path):
        return open_file()
    return io.BufferedReader(_Remote(path, answered(path, open_file)), _READ_BYTES)


def is_address(path: str) -> bool:
    """Whether a path is the address of a file elsewhere."""
    return "://" in path


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
            f"{address}: the endpoint has not answered within {within_s:g} s. Check the address, the network between it and this machine, and that the service is up; then run prepare again."
        ) from None
    if isinstance(error, PipelineError):
        raise error
    if error is not None:
        raise InputError(
            f"{address}: cannot be read ({type(error).__name__}). Check the address and this machine's access to it; gs:// needs apache-beam[gcp], s3:// apache-beam[aws]."
        ) from None
    return answer  # type: ignore[return-value]


class _Remote(io.RawIOBase):
    """A file behind an endpoint; whatever is asked of it has ANSWER_S seconds."""

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


# -- which files -------------------------------------------------------------------------------------------------------


def _match(pattern: str, section: SiloSection, warnings: list[Warned]) -> list[str]:
    paths = _match_address(pattern, section) if is_address(pattern) else _match_local(pattern, section, warnings)
    if not paths:
        raise InputError(
            f"{pattern}: no file matches the input of silo {section.name!r}. Check the path; a relative one starts at the configuration file's folder."
        )
    return paths


def _match_address(pattern: str, section: SiloSection) -> list[str]:
    try:
        FileSystems.get_filesystem(pattern)
    except ValueError as error:
        raise InputError(
            f"{pattern}: the input of silo {section.name!r} cannot be listed ({type(error).__name__}). Check the address and this machine's access to it; gs:// needs apache-beam[gcp], s3:// apache-beam[aws]."
        ) from None
    answered(pattern, lambda: FileSystems.match([pattern], [1]))  # one file: a listing of all of them takes longer
    (listing,) = answered(pattern, lambda: FileSystems.match([pattern]), within_s=LISTING_S)
    return [metadata.path for metadata in listing.metadata_list]


def _match_local(pattern: str, section: SiloSection, warnings: list[Warned]) -> list[str]:
    """Files on this machine. A part of the path that is there as it is written is taken so, also where it has brackets; what
    follows is a pattern as Beam has them: * and ? in one folder, ** in any, [abc]."""
    folder, rest = _as_written(pattern)
    if not rest and os.path.isdir(folder):
        raise InputError(
            f"{pattern}: the input of silo {section.name!r} is a folder; expected files. Write {Path(pattern) / '*'} for all that are in it."
        )
    candidates = [folder]
    if rest:
        matches, begin = re.compile(FileSystem.translate_pattern(rest)).match, len(folder.rstrip("/")) + 1
        listed = _listed(folder, section, everywhere="/" in rest or "**" in rest)
        candidates = [path for path in listed if matches(path[begin:])]
    paths = []
    for path in candidates:
        if not os.path.lexists(path):
            continue
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        if shown != path:
            raise InputError(
                f"{shown}: the file's name is not UTF-8, and names are part of what prepare writes. Rename it, or take it out of the input of silo {section.name!r}."
            )
        if not os.path.exists(path):
            raise InputError(
                f"{path}: is a link to a file that is not there. Bring the file back, or remove the link, or take it out of the input of silo {section.name!r}."
            )
        if stat.S_ISREG(os.stat(path).st_mode):
            paths.append(path)
        else:
            warnings.append(Warned(path, "is no regular file and was left out"))
    return paths


def _as_written(pattern: str) -> tuple[str, str]:
    """The part of a path that exists as it is written, and the rest."""
    path, parts = "/", [part for part in os.path.abspath(pattern).split("/") if part]
    for at, part in enumerate(parts):
        further = os.path.join(path, part)
        if not os.path.lexists(further) or (at < len(parts) - 1 and not os.path.isdir(further)):
            return path, "/".join(parts[at:])
        path = further
    return path, ""


def _listed(folder: str, section: SiloSection, *, everywhere: bool) -> list[str]:
    """The files in a folder, or `everywhere` beneath it, also behind links to folders; one that leads back to a folder which it
    lies in is not followed, since its files are listed there."""

    def failed(error: OSError) -> None:
        raise InputError(
            f"{error.filename or folder}: the input of silo {section.name!r} cannot be listed ({error.strerror or type(error).__name__}). Check that this account may read the folder."
        ) from None

    paths = []
    inside = {
        folder: {os.path.realpath(folder)}
    }  # the real path of a folder still to be listed, and of those it lies in
    for directory, folders, names in os.walk(folder, onerror=failed, followlinks=True):
        paths += [os.path.join(directory, name) for name in names]
        above = inside.pop(directory)
        real = {name: os.path.realpath(os.path.join(directory, name)) for name in folders} if everywhere else {}
        folders[:] = [name for name in real if real[name] not in above]
        inside |= {os.path.join(directory, name): above | {real[name]} for name in folders}
    return paths


def _name(path: str, base: Path) -> str:
    """What a file is called in hashes and lists: its path seen from the configuration, which survives moving both."""
    return path if is_address(path) else Path(os.path.relpath(path, base)).as_posix()


def _version(path: str) -> str:
    """Size and time of change of a file; "" where the file system does not tell."""

    def ask() -> str:
        try:
            metadata = FileSystems.get_filesystem(path).metadata(path)
        except Exception:  # each file system raises its own; reading the file is what decides
            return ""
        return f"{metadata.size_in_bytes} {metadata.last_updated_in_seconds}"

    return answered(path, ask) if is_address(path) else ask()


def _checksum(path: str) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    with formats.opened(open_raw, path) as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
            size += len(block)
    return digest.hexdigest(), size
