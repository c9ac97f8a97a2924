"""A silo's input: from the patterns of the configuration to existing files, each once, with its head checked and its checksum."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from beam_jobs import endpoints, formats
from beam_jobs.reading import Source
from tff_pipeline.config import SiloSection
from tff_pipeline.data.input_files import local_files
from tff_pipeline.errors import InputError


@dataclass(frozen=True)
class InputFile:
    """One raw file: its path, the name it is known by, and its split ("" where clients are split by hash)."""

    index: int
    path: str
    name: str
    split: str
    version: str = ""  # size and time of the last change: whether it is still the same file


class Warned(NamedTuple):
    """An oddity of a file that a person should know about; it stops nothing."""

    file: str
    warning: str


class Inputs(NamedTuple):
    """A silo's files, what the manifest says of each, and what a person should know about."""

    files: tuple[InputFile, ...]
    entries: list[dict[str, Any]]
    warnings: list[Warned]


def find(section: SiloSection, base: Path, source: Callable[[str], Source]) -> Inputs:
    """The silo's files in the order of their names. A file that occurs twice is read once, and a warning says so.

    Args:
      section: the silo.
      base: the configuration's folder, which file names are relative to.
      source: how a path is to be read.

    Raises:
      InputError: if a pattern matches nothing, a file is named for two splits or cannot be used, an endpoint does not answer.
    """
    warnings: list[Warned] = []
    splits = _splits(section, warnings)
    named = sorted((_name(path, base), path, split) for path, split in splits.items())
    files: list[InputFile] = []
    entries: dict[str, dict[str, Any]] = {}  # by checksum
    for name, path, split in named:
        file = InputFile(len(files), path, name, split, endpoints.version_of(path))
        with formats.opened(endpoints.open_raw, path) as content:
            formats.check_columns(content, source(path))
        sha256, size = _checksum(path)
        entry = {"path": path, "name": name, "split": split, "sha256": sha256, "bytes": size}
        first = entries.setdefault(sha256, entry)
        if first is entry:
            files.append(file)
        else:
            warnings.append(_repeated(file, first, section, source))
    return Inputs(tuple(files), list(entries.values()), warnings)


def require_unchanged(files: Sequence[InputFile], section: SiloSection) -> None:
    """Raises InputError if a file is not the one that was checksummed."""
    for file in files:
        if endpoints.version_of(file.path) != file.version:
            raise InputError(
                f"{file.path}: the file has changed while prepare was reading it; expected the one it had checksummed. "
                f"Let whatever writes the files of silo {section.name!r} finish first, and start again."
            )


def _splits(section: SiloSection, warnings: list[Warned]) -> dict[str, str]:
    """Every path that the configuration names, and its split."""
    splits: dict[str, str] = {}
    for split, patterns in section.inputs_by_split.items():
        for pattern in patterns:
            for path in _match(pattern, section, warnings):
                if splits.setdefault(path, split) != split:
                    raise InputError(
                        f"{path}: the file is named by the {splits[path]} files and by the {split} files of silo {section.name!r}; expected each file in one split. "
                        "Correct the patterns of one of them."
                    )
    return splits


def _repeated(file: InputFile, first: dict[str, Any], section: SiloSection, source: Callable[[str], Source]) -> Warned:
    """The warning on a file with the content of an earlier one; InputError if its rows would be in two splits."""
    if first["split"] == file.split:
        return Warned(
            file.name,
            f"is the same as {first['name']}, byte for byte, and was read once; take one of them out of the input",
        )
    if not _has_rows(file, source(file.path)):
        return Warned(file.name, f"holds no rows and is the same as {first['name']}, byte for byte")
    raise InputError(
        f"{file.path}: the file is the same as {first['path']}, byte for byte, but one is in the {first['split']} split of silo {section.name!r} and the other in the {file.split} split; "
        "expected each row in one split. Take one of them out of the input."
    )


def _has_rows(file: InputFile, source: Source) -> bool:
    """Whether a file has anything but a header, blank lines and comments."""
    with formats.opened(endpoints.open_raw, file.path) as content:
        return any(columns.lines or columns.rejects for columns in formats.read_columns(content, source))


def _name(path: str, base: Path) -> str:
    """What a file is called in hashes and lists: its path relative to the configuration, which survives moving both."""
    return path if endpoints.is_address(path) else Path(os.path.relpath(path, base)).as_posix()


def _checksum(path: str) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    with formats.opened(endpoints.open_raw, path) as content:
        while block := content.read(1 << 20):
            digest.update(block)
            size += len(block)
    return digest.hexdigest(), size


def _match(pattern: str, section: SiloSection, warnings: list[Warned]) -> list[str]:
    if endpoints.is_address(pattern):
        paths = endpoints.listed(pattern, section.name)
    else:
        paths, left_out = local_files(pattern, silo=section.name)
        warnings += [Warned(path, "is no regular file and was left out") for path in left_out]
    if not paths:
        raise InputError(
            f"{pattern}: no file matches the input of silo {section.name!r}; expected at least one. Check the path; a relative one starts at the configuration file's folder."
        )
    return paths
