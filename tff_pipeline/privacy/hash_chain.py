"""An append-only file of JSON lines, each bound to the one before by its hash; and a second file, the head, that counts them.

Every line carries its own hash and that of the line before, so that an edit anywhere is seen, in the last line too. How
many lines there are, and the hash of the last, is kept in the head, so that lines missing at the end are seen as well. The
line is written first and the head after it: a kill in between leaves the file one line ahead of its head, which is legal; a
file behind its head has lost lines, and is refused. A line that a kill truncated was never used and is removed.

Who can write both files can forge both.
"""

import abc
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tff_pipeline import __version__
from tff_pipeline.artifacts import append_synced, canonical_json, now, sync_directory, write_atomic
from tff_pipeline.errors import PrivacyError

_START = "0" * 64
_RESTORE = "nothing can be charged on top of it. Restore the ledger and its head from a backup."

# {"lines": how many, "hash": of the last of them}: one state of a file, and all before it.
Position = Mapping[str, Any]


class HashChain(abc.ABC):
    """The file and its head.

    Reading checks everything once; after that only what has changed on disk, so that a line costs the same however many
    there were before.

    Args:
      path: of the file; the head lies beside it.

    Raises (from every method that reads):
      PrivacyError: naming the line that is damaged, edited or out of order, or how many are missing.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lines: list[dict[str, Any]] = []
        self._numbers: dict[str, int] = {}  # of lines, from 1, by hash
        self._counted = 0  # lines, by the head
        self._checked: tuple[Any, ...] | None = None  # what the files looked like when they were last found sound

    @property
    @abc.abstractmethod
    def owner(self) -> str:
        """Whose file it is, as messages name it."""

    @property
    @abc.abstractmethod
    def place(self) -> str:
        """Where a run trains that has locked it, as messages say it."""

    @abc.abstractmethod
    def _well_formed(self, line: Mapping[str, Any]) -> bool:
        """Whether a line has what is read of it; raises KeyError, TypeError or AttributeError where it has not."""

    @abc.abstractmethod
    def _require_own(self, line: Mapping[str, Any], number: int) -> None:
        """Refuses a line of another owner's file."""

    @abc.abstractmethod
    def _signed(self, line: dict[str, Any]) -> dict[str, Any]:
        """The line with its owner's name, where lines have it."""

    @property
    def head_path(self) -> Path:
        return self.path.with_suffix(".head.json")

    @property
    def exists(self) -> bool:
        """Whether anything of it is on disk."""
        return self.path.exists() or self.head_path.exists()

    @property
    def head(self) -> str:
        """The hash of the last line, after checking; it stands for everything above it."""
        return self.position()["hash"]

    def position(self) -> Position:
        """How many lines there are and the hash of the last, after checking."""
        lines = self.lines()
        return {"lines": len(lines), "hash": lines[-1]["hash"] if lines else _START}

    def extends(self, position: Position) -> bool:
        """Whether the ledger was once as long as `position` says, with the same last line, and so with all above it."""
        count, lines = position["lines"], self.lines()
        return count <= len(lines) and position["hash"] == (lines[count - 1]["hash"] if count else _START)

    def number_of(self, line_hash: str) -> int | None:
        """The number, from 1, of the line with this hash."""
        self.lines()
        return self._numbers.get(line_hash)

    def lines(self) -> Sequence[dict[str, Any]]:
        """All lines, charges and decisions, after checking."""
        looks = self.looks()
        if self._checked is None or looks != self._checked:
            self._read()
            self._checked = looks
        return self._lines

    def looks(self) -> tuple[Any, ...]:
        """Differs whenever the files were written in between."""
        return _looks(self.path), _looks(self.head_path)

    def _forget(self) -> None:
        """Forgets what was read."""
        self._lines, self._numbers, self._checked = [], {}, None

    def _take(self, line: dict[str, Any]) -> None:
        self._lines.append(line)
        self._numbers[line["hash"]] = len(self._lines)

    def _append(self, line: dict[str, Any]) -> None:
        """Completes a line with its place in the chain and writes it, then the head."""
        if self._counted < len(self.lines()):
            self._write_head()  # A kill kept it from counting the last line; one more would leave it two behind.
        line = self._signed(line | {"time": now(), "version": __version__, "previous": self.head})
        line["hash"] = _hash(line)
        created = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab", buffering=0) as file:
            file.truncate(_whole_bytes(self.path))
            append_synced(file.fileno(), canonical_json(line) + b"\n")
        if created:
            sync_directory(self.path.parent)
        self._take(line)
        self._write_head()

    def _write_head(self) -> None:
        self._counted = len(self._lines)
        head = {"entries": self._counted, "hash": self._lines[-1]["hash"]}
        write_atomic(self.head_path, canonical_json(head) + b"\n")
        self._checked = self.looks()

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """Keeps other runs off this population while the block runs; the lock ends with the process.

        Raises:
          PrivacyError: if another run holds it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise PrivacyError(
                    f"{self.path}: another run is training {self.place} right now; expected one at a time. Wait for it to end."
                ) from None
            yield

    def _read(self) -> None:
        """Reads and checks everything."""
        self._forget()
        whole = self.path.read_bytes()[: _whole_bytes(self.path)] if self.path.exists() else b""
        for number, text in enumerate(whole.split(b"\n")[:-1], start=1):
            line: dict[str, Any] = {}
            try:
                line = json.loads(text)
                sound = (
                    line["previous"] == (self._lines[-1]["hash"] if self._lines else _START)
                    and line["hash"] == _hash({key: value for key, value in line.items() if key != "hash"})
                    and canonical_json(line) == text
                    and self._well_formed(line)
                )
            except (ValueError, KeyError, TypeError, AttributeError):
                sound = False
            if not sound:
                raise PrivacyError(
                    f"{self.path}: line {number} is damaged, edited or out of order (its hash, or the chain of hashes, does not fit); {_RESTORE}"
                )
            self._require_own(line, number)
            self._take(line)
        self._check_head()

    def _check_head(self) -> None:
        """The ledger may be one line ahead of its head (a kill between the two writes), and never behind it."""
        found = len(self._lines)
        try:
            head = json.loads(self.head_path.read_bytes())
            counted, last = int(head["entries"]), str(head["hash"])
        except FileNotFoundError:
            counted, last = 0, _START
        except (ValueError, KeyError, TypeError):
            raise PrivacyError(
                f"{self.head_path}: is damaged; expected the number of the ledger's lines and the hash of the last; {_RESTORE}"
            ) from None
        if found < counted:
            raise PrivacyError(
                f"{self.path}: line {found + 1} is missing: the ledger ends after {found} lines, its head ({self.head_path.name}) counted {counted}; {_RESTORE}"
            )
        if found > counted + 1:
            raise PrivacyError(
                f"{self.head_path}: counts {counted} lines, the ledger has {found}; expected as many, or one fewer; {_RESTORE}"
            )
        if last != (self._lines[counted - 1]["hash"] if counted else _START):
            raise PrivacyError(
                f"{self.path}: line {counted} is not the one that its head ({self.head_path.name}) stands for; {_RESTORE}"
            )
        self._counted = counted


def _hash(entry: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(entry)).hexdigest()


def _looks(path: Path) -> tuple[int, ...] | None:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _whole_bytes(path: Path) -> int:
    """Up to where the file consists of whole lines; it reads only the end."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 4096)
            file.seek(start)
            place = file.read(end - start).rfind(b"\n")
            if place >= 0:
                return start + place + 1
            end = start
    return 0
