"""The files of a lock: `lock-NUMBER`, each created exclusively, the largest of which says who holds the lock."""

import contextlib
import errno
import os
from pathlib import Path

from serving.lock.holder import Holder
from tff_pipeline.errors import ArtifactError

_PREFIX, _NEW = "lock-", "new-"
_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)


def numbers(folder: Path) -> list[int]:
    """The numbers in the lock's folder, ascending."""
    names = (name.removeprefix(_PREFIX) for name in os.listdir(folder) if name.startswith(_PREFIX))
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def read(folder: Path, number: int) -> Holder | None:
    """The holder that a number names; None if the file was removed meanwhile, because there is a larger number.

    Raises:
      ArtifactError: if the file exists and cannot be read.
    """
    path = _path(folder, number)
    try:
        return Holder.from_json(path.read_bytes())
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):  # removed, or NFS's stale handle: the caller looks again
            return None
        raise ArtifactError(
            f"{path}: says who holds the lock, and cannot be read ({error.strerror}); {_owner(path)}. Expected a file that "
            f"user id {os.getuid()}, who runs this command, may read. Ask its owner for `chmod 644`, or run the command as "
            "that user; if the file system is damaged, repair it first."
        ) from None


def _owner(path: Path) -> str:
    try:
        return f"it belongs to user id {path.stat().st_uid}"
    except OSError:
        return "its owner cannot be determined"


def create(folder: Path, number: int, holder: Holder) -> bool:
    """Whether `holder` has created this number, and no larger one exists."""
    path = _path(folder, number)
    try:
        _link_or_write(path, folder / f"{_NEW}{number:012d}-{holder.token}", holder.to_json().encode())
    except FileExistsError:
        # A network file system may repeat a request whose answer was lost, and then refuse what it has done itself.
        if read(folder, number) != holder:
            return False
    if max(numbers(folder), default=0) == number:
        return True
    path.unlink(missing_ok=True)  # created below the largest number, after a listing that was out of date
    return False


def remove(folder: Path, number: int) -> None:
    """Removes a number; one that does not exist is ignored."""
    _path(folder, number).unlink(missing_ok=True)


def remove_unfinished(folder: Path, below: int) -> None:
    """Removes records that were prepared for numbers below `below`, and whose processes were killed.

    A larger number's may be the next holder's, if this process was paused for longer than its lease.
    """
    for path in folder.glob(f"{_NEW}*-*"):
        number = path.name.removeprefix(_NEW).partition("-")[0]
        if number.isascii() and number.isdigit() and int(number) < below:
            path.unlink(missing_ok=True)


def _path(folder: Path, number: int) -> Path:
    return folder / f"{_PREFIX}{number:012d}"


def _link_or_write(path: Path, aside: Path, data: bytes) -> None:
    """Creates a file exclusively: with its content in one step, or in two where the file system has no hard links."""
    try:
        _write(aside, data)
        os.link(aside, path)
        return
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
    finally:
        aside.unlink(missing_ok=True)
    _write(path, data)


def _write(path: Path, data: bytes) -> None:
    """Creates a file exclusively, which every user may read whatever the umask: other users' commands read it."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        with contextlib.suppress(PermissionError):  # a file system that keeps no modes, as SMB
            os.fchmod(handle, 0o644)
        os.write(handle, data)
    finally:
        os.close(handle)
