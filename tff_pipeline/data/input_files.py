"""Finds the files on this machine that a pattern of a silo's input names.

`prepare` reads these files and `doctor` checks that they exist, so that both must find the same.
"""

import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

from tff_pipeline.errors import InputError


class LocalFiles(NamedTuple):
    """Absolute paths that a pattern matches: regular files, and what is left out because it is no regular file."""

    files: list[str]
    left_out: list[str]


def local_files(pattern: str, *, silo: str) -> LocalFiles:
    """The files on this machine that a pattern matches, in no particular order; empty where nothing matches.

    The part of the path that exists as it is written is taken so, also where it has brackets; the rest is a pattern as Beam
    has them: * and ? in one folder, ** in any, [abc].

    Raises:
      InputError: if the pattern is a folder, a folder cannot be listed, a file's name is not UTF-8, or a link is broken.
    """
    folder, rest = _existing(pattern)
    if not rest and os.path.isdir(folder):
        raise InputError(
            f"{pattern}: the input of silo {silo!r} is a folder; expected files. Write {Path(pattern) / '*'} for all files in it."
        )
    candidates = [folder]
    if rest:
        matches, begin = re.compile(regular_expression(rest)).match, len(folder.rstrip("/")) + 1
        below = _files_below(folder, silo, everywhere="/" in rest or "**" in rest)
        candidates = [path for path in below if matches(path[begin:])]
    matched = LocalFiles([], [])
    for path in candidates:
        if os.path.lexists(path):
            _require_usable(path, silo)
            (matched.files if stat.S_ISREG(os.stat(path).st_mode) else matched.left_out).append(path)
    return matched


def regular_expression(pattern: str) -> str:
    """A pattern as a regular expression, the same as Beam's FileSystem.translate_pattern gives.

    >>> bool(re.match(regular_expression("*/[!a]?.csv"), "2024/b1.csv"))
    True
    >>> bool(re.match(regular_expression("*.csv"), "2024/b1.csv"))
    False
    """
    # Possessive (?+), so that a "[" without its "]" is a character like others.
    parts = re.findall(r"\*\*|\[!?+\]?+[^\]]*\]|.", pattern, re.DOTALL)
    return "(?ms)" + "".join(map(_part_expression, parts)) + r"\Z"


def _part_expression(part: str) -> str:
    if part == "**":
        return ".*"
    if part == "*":
        return r"[^/\\]*"
    if part == "?":
        return "."
    if len(part) == 1:
        return re.escape(part)
    characters = part[1:-1].replace("\\", "\\\\")
    if characters.startswith("!"):
        characters = "^" + characters[1:]
    elif characters.startswith("^"):
        characters = "\\" + characters
    return f"[{characters}]"


def _require_usable(path: str, silo: str) -> None:
    """Raises InputError for a name that is not UTF-8, and for a broken link."""
    shown = os.fsencode(path).decode("utf-8", "backslashreplace")
    if shown != path:
        raise InputError(
            f"{shown}: the file's name is not UTF-8; expected UTF-8, since names are part of what prepare writes. Rename it, or take it out of the input of silo {silo!r}."
        )
    if not os.path.exists(path):
        raise InputError(
            f"{path}: the file is a link to one that does not exist. Bring that file back, or remove the link, or take it out of the input of silo {silo!r}."
        )


def _existing(pattern: str) -> tuple[str, str]:
    """The part of a path that exists as it is written, and the rest."""
    path, parts = "/", [part for part in os.path.abspath(pattern).split("/") if part]
    for index, part in enumerate(parts):
        further = os.path.join(path, part)
        if not os.path.lexists(further) or (index < len(parts) - 1 and not os.path.isdir(further)):
            return path, "/".join(parts[index:])
        path = further
    return path, ""


def _files_below(folder: str, silo: str, *, everywhere: bool) -> list[str]:
    """The files in a folder, or `everywhere` below it, also behind links to folders. A link that leads back to a folder above
    it is not followed, since the files of that folder are listed there."""

    def failed(error: OSError) -> None:
        raise InputError(
            f"{error.filename or folder}: the input of silo {silo!r} cannot be listed ({error.strerror or type(error).__name__}). Check that this account may read the folder."
        ) from None

    paths = []
    # Of each folder that is still to be listed, the real paths of it and of those above it.
    above = {folder: {os.path.realpath(folder)}}
    for directory, folders, names in os.walk(folder, onerror=failed, followlinks=True):
        paths += [os.path.join(directory, name) for name in names]
        real_above = above.pop(directory)
        real = {name: os.path.realpath(os.path.join(directory, name)) for name in folders} if everywhere else {}
        folders[:] = [name for name in real if real[name] not in real_above]
        above |= {os.path.join(directory, name): real_above | {real[name]} for name in folders}
    return paths
