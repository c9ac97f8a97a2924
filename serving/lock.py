"""A lock on a folder that several machines share: one command at a time changes what lies in it.

    with hold(base_path / ".publish", command="tff-pipeline publish", wait_s=600.0, progress=progress) as lock:
        ...                                   # prepare under a name that contains lock.token
        lock.confirm()                        # raises if another process has taken over
        os.rename(prepared, final)            # commit

The lock is a folder of its own with files `lock-NUMBER`. Taking, renewing and releasing the lock all create the next number
exclusively (by a hard link, or O_EXCL), which one process can do, also on NFS; then all but the two newest are removed.
The largest number therefore only grows, and whoever created it holds the lock. A directory listing or an attribute that
a network file system has cached can delay a process, but cannot mislead it: the number that it would create exists
already, or a larger one shows when it looks again. (The file before the newest stays because a listing need not show
what is created or removed while it is read.)

A holder renews every RENEW_S. A waiter takes the lock over

- at once, if the holder ran on this machine (host name, boot id, PID namespace) and its process has ended: there is no
  such process, or another one that started at another time;
- after it has seen the same number for LEASE_S of its own monotonic clock. No two machines' clocks are compared.

A holder that is paused for longer than that and then continues has lost the lock while it was alive. It notices at
`confirm`, which is a renewal. It can even be paused between `confirm` and its commit. Therefore the commit is a rename of
something whose name contains the holder's token, and the next holder begins by taking all such names away (`revoke`):
the rename of the former holder then finds nothing.

`filelock`, which other dependencies install, was considered: its leases never take over a dead holder's lock where the
file system cannot exchange two names in one step, which NFS and SMB cannot.
"""

import contextlib
import dataclasses
import errno
import functools
import json
import os
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tff_pipeline.artifacts import now, sync_directory
from tff_pipeline.errors import ArtifactError, PipelineError
from tff_pipeline.progress import Progress

LEASE_S, RENEW_S = 60.0, 10.0
WAIT_S = 600.0
_FIRST_POLL_S, _LAST_POLL_S, _REPORT_S = 0.01, 1.0, 30.0
_PREFIX, _NEW = "lock-", "new-"
# In a base path: the folder of the lock, what is being prepared, and what is being deleted. (`.staging-` is what an
# export writes, which may have the same base path, and does not take this lock.)
FOLDER, PREPARED, REMOVING = ".publish", ".publishing-", ".removing-"


class LockedError(PipelineError):
    """Another command holds the lock, and did not release it in time."""


class LockLostError(PipelineError):
    """This command held the lock, did not renew it in time, and another command has taken it over."""


@dataclasses.dataclass(frozen=True)
class Holder:
    """Who holds a lock, as its file says. `started` is in clock ticks after the machine's boot."""

    token: str = ""
    command: str = "a command that has not written its name yet"
    host: str = "an unknown host"
    pid: int = 0
    started: int = 0
    boot: str = ""
    namespace: str = ""
    since: str = ""
    released: bool = False

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> "Holder":
        """An unknown holder where the text is none: it was not written yet, or its process was killed before it was.

        A damaged record gives an unknown holder too, whose process cannot be asked for; so only its lease decides.
        """
        if not text:
            return cls()
        try:
            holder = cls(**json.loads(text))
        except (ValueError, TypeError, RecursionError):
            return _DAMAGED
        is_whole = all(type(getattr(holder, field.name)) is type(field.default) for field in dataclasses.fields(cls))
        return holder if is_whole and 0 <= holder.pid <= _LARGEST_PID else _DAMAGED

    def __str__(self) -> str:
        return f"`{self.command}`, process {self.pid} on {self.host}, since {self.since or 'an unknown time'}"


_NOBODY = Holder(released=True)
_DAMAGED = Holder(command="a command whose record in the lock's folder is damaged")
_LARGEST_PID = 2**31 - 1  # what the operating system's pid_t can hold


def this_process(command: str) -> Holder:
    """A holder with a new token."""
    boot, namespace = _machine()
    _, started = _process(os.getpid())
    return Holder(
        token=secrets.token_hex(8),
        command=command[:300],
        host=socket.gethostname(),
        pid=os.getpid(),
        started=started,
        boot=boot,
        namespace=namespace,
        since=now(),
    )


def has_ended(holder: Holder) -> bool:
    """Whether the holder is certainly gone: it ran on this machine, and its process does not exist any more."""
    if not holder.boot or (holder.host, holder.boot, holder.namespace) != (socket.gethostname(), *_machine()):
        return False
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # another user's, and alive; /proc may be hidden
    state, started = _process(holder.pid)
    return state in ("Z", "X") or (0 not in (started, holder.started) and started != holder.started)


@functools.cache
def _machine() -> tuple[str, str]:
    """Boot id and PID namespace; empty where there is no /proc, and then no process is taken for ended."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return boot, os.readlink("/proc/self/ns/pid")
    except OSError:
        return "", ""


def _process(pid: int) -> tuple[str, int]:
    """State and start time of a process, from /proc/PID/stat; ("", 0) where they cannot be read."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return fields[0].decode(), int(fields[19])
    except (OSError, IndexError, ValueError):
        return "", 0


# -- the files ---------------------------------------------------------------------------------------------------------


def _path(folder: Path, number: int) -> Path:
    return folder / f"{_PREFIX}{number:012d}"


def _numbers(folder: Path) -> list[int]:
    """The numbers in the lock's folder, ascending."""
    names = (name.removeprefix(_PREFIX) for name in os.listdir(folder) if name.startswith(_PREFIX))
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def _read(folder: Path, number: int) -> Holder | None:
    """The holder that a number names; None if the file was removed meanwhile, because there is a larger number.

    Raises:
      ArtifactError: if the file is there and cannot be read.
    """
    path = _path(folder, number)
    try:
        return Holder.from_json(path.read_bytes())
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):  # not there, or NFS's stale handle: look again
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
        return "its owner cannot be found out"


def _create(folder: Path, number: int, holder: Holder) -> bool:
    """Whether `holder` has created this number, and no larger one exists."""
    path = _path(folder, number)
    try:
        _link_or_write(path, folder / f"{_NEW}{number:012d}-{holder.token}", holder.to_json().encode())
    except FileExistsError:
        # A network file system may repeat a request whose answer was lost, and then refuse what it has done itself.
        if _read(folder, number) != holder:
            return False
    if max(_numbers(folder), default=0) == number:
        return True
    path.unlink(missing_ok=True)  # created below the largest number, after a listing that was out of date
    return False


def _link_or_write(path: Path, aside: Path, data: bytes) -> None:
    """Creates a file exclusively: with its content in one step, or in two where the file system has no hard links."""
    try:
        _write(aside, data)
        os.link(aside, path)
        return
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL):
            raise
    finally:
        aside.unlink(missing_ok=True)
    _write(path, data)


def _write(path: Path, data: bytes) -> None:
    """Creates a file exclusively, which every user may read whatever the umask: other users' commands ask it."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        with contextlib.suppress(PermissionError):  # a file system that keeps no modes, as SMB
            os.fchmod(handle, 0o644)
        os.write(handle, data)
    finally:
        os.close(handle)


class Lock:
    """A lock that is held. `token` belongs into the name of everything that is prepared under it."""

    def __init__(self, folder: Path, holder: Holder, number: int):
        self._folder, self._holder, self._number = folder, holder, number
        self._lost = False
        self._changing = threading.Lock()
        self._stop = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="renew-lock", daemon=True)

    @property
    def token(self) -> str:
        return self._holder.token

    def confirm(self) -> None:
        """Returns if the lock is held still, for LEASE_S from now on.

        Raises:
          LockLostError: if another command has taken it over.
          ArtifactError: if that cannot be found out.
        """
        with self._changing:
            try:
                self._advance(self._holder)
            except OSError as error:
                raise ArtifactError(
                    f"{self._folder}: the lock cannot be renewed ({error.strerror}); expected a folder that can be written "
                    "to as it could be before. Nothing more was changed. Run the command again."
                ) from None
            if self._lost:
                raise LockLostError(
                    f"{self._folder.parent}: this command was paused, and did not renew its lock for {LEASE_S:g} s; another "
                    f"command has taken it over ({self._successor()}). Nothing more was changed. Run the command again."
                )

    def write(self, path: Path, data: bytes, *, prefix: str) -> None:
        """Replaces a file in one step, through a name that begins with `prefix` and that the next holder revokes.

        Raises:
          LockLostError: as `confirm` does; then the file is what it was.
          ArtifactError: if it cannot be written; then, too.
        """
        aside = path.parent / f"{prefix}{self.token}"
        try:
            with aside.open("wb") as file:
                os.fchmod(file.fileno(), 0o644)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self.confirm()
            try:
                os.replace(aside, path)
            except FileNotFoundError:
                self.confirm()  # another command has revoked it, and this says so
                raise
        except BaseException as error:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise ArtifactError(
                    f"{path}: could not be written ({error.strerror or error}); it is as it was before. Make room in its "
                    "folder, or give this user permission to write there, and run the command again."
                ) from error
            raise
        sync_directory(path.parent)

    def revoke(self, folder: Path, prefix: str) -> list[str]:
        """Takes from former holders what they have prepared in `folder` under names that begin with `prefix`.

        Each name is taken in one step, so that its owner, should it continue, cannot commit it; then it is deleted.

        Returns:
          The names.

        Raises:
          ArtifactError: if a name cannot be taken.
        """
        taken = [
            name for name in sorted(os.listdir(folder)) if name.startswith(prefix) and not name.endswith(self.token)
        ]
        for name in taken:
            try:
                with contextlib.suppress(FileNotFoundError):
                    os.rename(folder / name, folder / f"{REMOVING}{secrets.token_hex(8)}")
            except OSError as error:
                raise ArtifactError(
                    f"{folder / name}: is left from a command that was stopped, and cannot be removed ({error.strerror}); "
                    "expected permission to rename in its folder. Remove it by hand."
                ) from None
        for path in folder.glob(f"{REMOVING}*"):
            remove(path)
        return taken

    def start(self) -> None:
        """Begins to renew."""
        self._renewing.start()

    def release(self) -> None:
        """Stops renewing, and lets the next one in."""
        self._stop.set()
        self._renewing.join()
        # If that fails, the others see that this process has ended.
        with self._changing, contextlib.suppress(OSError, ArtifactError):
            self._advance(dataclasses.replace(self._holder, released=True))

    def _advance(self, record: Holder) -> None:
        if self._lost:
            return
        try:
            self._lost = not _create(self._folder, self._number + 1, record)
        except FileNotFoundError:
            self._lost = True  # another command has cleared up here, or someone has removed the folder of the lock
        if not self._lost:
            _path(self._folder, self._number - 1).unlink(missing_ok=True)
            self._number += 1

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_S):
            with self._changing, contextlib.suppress(OSError, ArtifactError):  # tried again, until the lease ends
                self._advance(self._holder)

    def _successor(self) -> str:
        with contextlib.suppress(OSError, IndexError, ArtifactError):
            return str(_read(self._folder, _numbers(self._folder)[-1]))
        return f"{self._folder} was removed"


def remove(path: Path) -> None:
    """Deletes a file or a folder that was taken out of the way; what cannot be deleted stays there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


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
def changing(base_path: Path, *, command: str, wait_s: float = WAIT_S, progress: Progress) -> Iterator[Lock]:
    """Holds the lock of a base path, which must exist, and clears what commands that were stopped have left there.

    Raises:
      LockedError, ArtifactError: as `hold` does.
    """
    with hold(base_path / FOLDER, command=command, wait_s=wait_s, progress=progress) as lock:
        for name in (*lock.revoke(base_path, PREPARED), *lock.revoke(base_path / FOLDER, PREPARED)):
            progress.event("lock", f"{base_path / name}: removed; a command that was stopped had left it")
        yield lock


def _acquire(folder: Path, me: Holder, wait_s: float, progress: Progress) -> Lock:
    begun, reported, pause = time.monotonic(), float("-inf"), _FIRST_POLL_S
    seen, seen_at = -1, begun
    while True:
        number = max(_numbers(folder), default=0)
        holder = _read(folder, number) if number else _NOBODY
        passed_s = time.monotonic()
        if number != seen:
            seen, seen_at = number, passed_s
        if holder is not None and (why := _free(holder, passed_s - seen_at)) and _try(folder, number + 1, me):
            for older in _numbers(folder):
                if older < number:
                    _path(folder, older).unlink(missing_ok=True)
            _clear_up(folder, number + 1)
            if holder is not _NOBODY and not holder.released:
                progress.event("lock", f"{folder.parent}: took the lock over from {holder}: {why}")
            return Lock(folder, me, number + 1)
        if passed_s - begun > wait_s:
            raise LockedError(
                f"{folder.parent}: another command is changing it: {holder}; waited {wait_s:g} s for it to finish. Run this "
                f"command again afterwards, or give --lock-wait-s more. A lock whose holder was killed or hangs is free by "
                f"itself: at once on the same machine, after {LEASE_S:g} s on another."
            )
        if holder is not None and not holder.released and passed_s - reported > _REPORT_S:
            left_s = wait_s - (passed_s - begun)
            progress.event("lock", f"{folder.parent}: waiting up to {left_s:.0f} s for {holder}")
            reported = passed_s
        time.sleep(pause)
        pause = min(pause * 1.5, _LAST_POLL_S)


def _clear_up(folder: Path, own: int) -> None:
    """Removes records that were prepared for numbers below `own`, and whose processes were killed.

    A larger number's may be the next holder's, if this process was paused for longer than its lease.
    """
    for left in folder.glob(f"{_NEW}*-*"):
        number = left.name.removeprefix(_NEW).partition("-")[0]
        if number.isascii() and number.isdigit() and int(number) < own:
            left.unlink(missing_ok=True)


def _try(folder: Path, number: int, me: Holder) -> bool:
    with contextlib.suppress(FileNotFoundError):  # whoever was faster has removed what was to become our number
        return _create(folder, number, me)
    return False


def _free(holder: Holder, unchanged_s: float) -> str:
    """Why the lock may be taken; empty if it may not."""
    if holder.released:
        return "it was released"
    if has_ended(holder):
        return "its process has ended"
    if unchanged_s >= LEASE_S:
        return f"it was not renewed for {LEASE_S:g} s"
    return ""
