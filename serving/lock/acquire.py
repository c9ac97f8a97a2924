"""Takes a lock: waits for the command that holds it, and takes over from one that was killed or does not renew."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from serving.lock import lease, records
from serving.lock.holder import NOBODY, Holder, has_ended, this_process
from serving.lock.lease import Lock, LockedError
from tff_pipeline.errors import ArtifactError
from tff_pipeline.progress import Progress

WAIT_S = 600.0
_FIRST_POLL_S, _LAST_POLL_S, _REPORT_S = 0.01, 1.0, 30.0
# In a base path: the folder of the lock, and the prefix of what is being prepared. (`.staging-` is what an export writes,
# which may have the same base path, and does not take this lock.)
FOLDER, PREPARED = ".publish", ".publishing-"


@contextlib.contextmanager
def hold(folder: Path, *, command: str, wait_s: float, progress: Progress) -> Iterator[Lock]:
    """Holds the lock whose files are in `folder` until the block ends. The parent of `folder` must exist.

    Raises:
      LockedError: if another command holds it for longer than `wait_s`; the message names it.
      ArtifactError: if the lock's folder cannot be written to, or the record of its holder cannot be read.
    """
    try:
        folder.mkdir(exist_ok=True)
        lock = _acquire(folder, this_process(command), wait_s, progress)
    except OSError as error:
        raise ArtifactError(
            f"{folder}: the lock cannot be taken ({error.strerror}); expected a folder that this user may write to."
        ) from None
    lock.start()
    try:
        yield lock
    finally:
        lock.release()


@contextlib.contextmanager
def lock_base_path(base_path: Path, *, command: str, wait_s: float = WAIT_S, progress: Progress) -> Iterator[Lock]:
    """Holds the lock of a base path, which must exist, and removes what commands that were stopped have left in it.

    Raises:
      LockedError, ArtifactError: as `hold` does.
    """
    with hold(base_path / FOLDER, command=command, wait_s=wait_s, progress=progress) as lock:
        for name in (*lock.revoke(base_path, PREPARED), *lock.revoke(base_path / FOLDER, PREPARED)):
            progress.event("lock", f"{base_path / name}: removed; a command that was stopped had left it")
        yield lock


def _acquire(folder: Path, me: Holder, wait_s: float, progress: Progress) -> Lock:
    begun, reported, pause_s = time.monotonic(), float("-inf"), _FIRST_POLL_S
    seen, seen_at = -1, begun
    while True:
        number = max(records.numbers(folder), default=0)
        holder = records.read(folder, number) if number else NOBODY
        looked_at = time.monotonic()
        if number != seen:
            seen, seen_at = number, looked_at
        reason = _why_free(holder, looked_at - seen_at) if holder is not None else ""
        if holder is not None and reason and _create(folder, number + 1, me):
            _clear_up(folder, number)
            if holder is not NOBODY and not holder.released:
                progress.event("lock", f"{folder.parent}: took the lock over from {holder}: {reason}")
            return Lock(folder, me, number + 1)
        if looked_at - begun > wait_s:
            raise LockedError(
                f"{folder.parent}: another command is changing it: {holder}; waited {wait_s:g} s for it to finish. Run this "
                "command again afterwards, or give --lock-wait-s more. A lock whose holder was killed or does not respond "
                f"becomes free without your help: at once on the same machine, after {lease.LEASE_S:g} s on another."
            )
        if holder is not None and not holder.released and looked_at - reported > _REPORT_S:
            left_s = wait_s - (looked_at - begun)
            progress.event("lock", f"{folder.parent}: waiting up to {left_s:.0f} s for {holder}")
            reported = looked_at
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, _LAST_POLL_S)


def _why_free(holder: Holder, unchanged_s: float) -> str:
    """Why the lock may be taken; empty if it may not."""
    if holder.released:
        return "it was released"
    if has_ended(holder):
        return "its process has ended"
    if unchanged_s >= lease.LEASE_S:
        return f"it was not renewed for {lease.LEASE_S:g} s"
    return ""


def _create(folder: Path, number: int, me: Holder) -> bool:
    with contextlib.suppress(FileNotFoundError):  # a faster process has removed what was to become our number
        return records.create(folder, number, me)
    return False


def _clear_up(folder: Path, taken: int) -> None:
    """Removes what is older than the record of the former holder, whose number is `taken`."""
    for older in records.numbers(folder):
        if older < taken:
            records.remove(folder, older)
    records.remove_unfinished(folder, below=taken + 1)
