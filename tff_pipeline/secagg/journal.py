"""What a silo has answered, so that it answers every stage of an attempt once, also when its process is started again.

Two rules are kept here, both for the server that breaks the protocol:

- **Once.** No stage of an attempt is answered twice, and no attempt before the newest is answered at all. Fresh keys would hide the
  second report as well as the first, but a process that has begun an attempt with other keys cannot finish it.
- **One sum a round.** A silo that has revealed shares for a list of survivors agrees, in any other attempt at this round, to the
  same list only. Otherwise two attempts, one with and one without a silo, would show that silo's report as their difference.
  To unmask takes t silos and t is above half, so one of them would have to reveal twice.
"""

import fcntl
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tff_pipeline.errors import ProtocolError
from tff_pipeline.secagg.terms import STAGES


class Journal(Protocol):
    """Where a client notes each answer before it gives it."""

    def note(self, stage: str, round_number: int, attempt: int, survivors: Sequence[str] = ()) -> None:
        """Notes an answer; it is kept when this returns.

        Args:
          stage: one of `terms.STAGES`.
          round_number: of the run.
          attempt: at the round.
          survivors: that the silo agrees to, or reveals shares for, in the last two stages.

        Raises:
          ProtocolError: if this must not be answered. Nothing must be sent.
        """
        ...


class MemoryJournal:
    """Keeps it as long as the process; for tests, and for runs whose silos share one process.

    Args:
      where: whose journal it is, for errors.
    """

    def __init__(self, where: str = "this silo"):
        self._where = where
        self._newest: tuple[int, int] | None = None
        self._stages: set[str] = set()  # of the newest attempt
        self._revealed: dict[int, tuple[str, ...]] = {}  # survivors, by round

    def note(self, stage: str, round_number: int, attempt: int, survivors: Sequence[str] = ()) -> None:
        self._check(stage, round_number, attempt, survivors)
        self._take(stage, round_number, attempt, survivors)

    def _check(self, stage: str, round_number: int, attempt: int, survivors: Sequence[str]) -> None:
        where = f"{self._where}: round {round_number}, attempt {attempt}"
        at = (round_number, attempt)
        if self._newest is not None and at < self._newest:
            raise ProtocolError(
                f"{where}: is before round {self._newest[0]}, attempt {self._newest[1]}, which this silo has answered; expected that or a later one. Nothing was sent. The coordinator has to go on with a later attempt or round."
            )
        if at == self._newest and stage in self._stages:
            raise ProtocolError(
                f"{where}: stage {stage!r} was answered before, by this process or one before it; expected every stage once. Nothing was sent. The coordinator has to begin another attempt."
            )
        known = self._revealed.get(round_number)
        if stage in STAGES[3:] and known is not None and known != tuple(sorted(survivors)):
            raise ProtocolError(
                f"{where}: this silo revealed shares of this round before, for the survivors {', '.join(known)}, and now there are others; expected the same, since the two sums would differ by single silos' reports. Nothing was sent. Try again with these silos, or go on with the next round."
            )

    def _take(self, stage: str, round_number: int, attempt: int, survivors: Sequence[str]) -> None:
        if self._newest != (round_number, attempt):
            self._newest, self._stages = (round_number, attempt), set()
        self._stages.add(stage)
        if stage == STAGES[4]:
            # Earlier rounds are never answered again.
            self._revealed = {round_number: tuple(sorted(survivors))}


class FileJournal(MemoryJournal):
    """Keeps it in a file of JSON lines, each on disk before the answer leaves; for one process at a time, until it is closed.

        {"session": "..."}                                                the first line
        {"attempt": 0, "round": 1, "stage": "advertise", "survivors": []}  a line for every answer

    Whoever can write the file can make the silo answer twice; an older copy does the same. So it is no defence against the silo's
    own administrator, and has to be left out of what is restored from a backup without care.

    Args:
      path: of the file; its folder has to be there.
      session: that every line belongs to.

    Raises:
      ProtocolError: if another process has it open, or it is damaged or of another session.
    """

    def __init__(self, path: Path, session: str):
        super().__init__(str(path))
        created = not path.exists()
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._file = os.fdopen(handle, "r+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise ProtocolError(
                f"{path}: another process of this silo has it open; expected one at a time. Wait for it to end."
            ) from None
        if created:
            _sync(path.parent)
        try:
            self._read(session)
        except BaseException:
            self._file.close()
            raise

    def note(self, stage: str, round_number: int, attempt: int, survivors: Sequence[str] = ()) -> None:
        self._check(stage, round_number, attempt, survivors)
        self._append({"attempt": attempt, "round": round_number, "stage": stage, "survivors": sorted(survivors)})
        self._take(stage, round_number, attempt, survivors)

    def close(self) -> None:
        """Lets another process have it."""
        self._file.close()

    def _read(self, session: str) -> None:
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._file.truncate(len(whole))  # a kill cut the last line short: that answer never left
        if not whole:
            self._append({"session": session})
            return
        try:
            first, *lines = [json.loads(line) for line in whole.splitlines()]
            known = str(first["session"])
            for line in lines:
                self._take(str(line["stage"]), int(line["round"]), int(line["attempt"]), tuple(line["survivors"]))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ProtocolError(
                f"{self._where}: is not a journal as this version writes it; expected a line with the session, and a line for every answer. Nothing is answered without it. Restore it, or begin a new session."
            ) from None
        if known != session:
            raise ProtocolError(
                f"{self._where}: belongs to another session ({known}); expected {session}. Every session has a journal of its own."
            )

    def _append(self, line: dict[str, object]) -> None:
        end = os.fstat(self._file.fileno()).st_size
        rest = memoryview(json.dumps(line, sort_keys=True).encode() + b"\n")
        try:
            while rest:  # a disk that becomes full takes a part, and says so only to the next write
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(end)  # a full disk must not leave half a line for the next one to be glued to
            raise


def _sync(folder: Path) -> None:
    """Makes a new name in the folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
