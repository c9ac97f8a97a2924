"""A lock that this process holds: it is renewed, confirmed before every commit, and released."""

import contextlib
import dataclasses
import os
import secrets
import shutil
import threading
from pathlib import Path

from serving.lock import records
from serving.lock.holder import Holder
from tff_pipeline.artifacts import sync_directory
from tff_pipeline.errors import ArtifactError, PipelineError

LEASE_S, RENEW_S = 60.0, 10.0
REMOVING = ".removing-"  # the prefix of what is being deleted


class LockedError(PipelineError):
    """Another command holds the lock, and did not release it in time."""


class LockLostError(PipelineError):
    """This command held the lock, did not renew it in time, and another command has taken it over."""


class Lock:
    """A lock that this process holds. The name of everything that is prepared under it must contain `token`."""

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
        """Returns if this process still holds the lock; then it does so for LEASE_S from now on.

        Raises:
          LockLostError: if another command has taken it over.
          ArtifactError: if the lock cannot be renewed.
        """
        with self._changing:
            try:
                self._advance(self._holder)
            except OSError as error:
                raise ArtifactError(
                    f"{self._folder}: the lock cannot be renewed ({error.strerror}); expected a folder that can be written "
                    "to, as it was before. Nothing more was changed. Run the command again."
                ) from None
            if self._lost:
                raise LockLostError(
                    f"{self._folder.parent}: this command was paused, and did not renew its lock for {LEASE_S:g} s; another "
                    f"command has taken it over ({self._successor()}). Nothing more was changed. Run the command again."
                )

    def write(self, path: Path, data: bytes, *, prefix: str) -> None:
        """Replaces a file in one step, through a name that begins with `prefix` and that the next holder revokes.

        Raises, and leaves the file as it was:
          LockLostError: as `confirm` does.
          ArtifactError: if it cannot be written.
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
          ArtifactError: if the folder cannot be listed, or a name cannot be taken.
        """
        try:
            present = sorted(os.listdir(folder))
        except OSError as error:
            raise ArtifactError(
                f"{folder}: cannot be listed ({error.strerror}), so that what a stopped command has left in it cannot be "
                "removed; expected a folder that this user may read. Give this user permission."
            ) from None
        names = [name for name in present if name.startswith(prefix) and not name.endswith(self.token)]
        for name in names:
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
        return names

    def start(self) -> None:
        """Begins to renew the lock."""
        self._renewing.start()

    def release(self) -> None:
        """Stops renewing the lock, and lets the next process take it."""
        self._stop.set()
        self._renewing.join()
        # If that fails, the others will see that this process has ended.
        with self._changing, contextlib.suppress(OSError, ArtifactError):
            self._advance(dataclasses.replace(self._holder, released=True))

    def _advance(self, record: Holder) -> None:
        """Creates the next number, unless another process has; the caller holds `_changing`."""
        if self._lost:
            return
        try:
            self._lost = not records.create(self._folder, self._number + 1, record)
        except FileNotFoundError:
            self._lost = True  # another command has cleared up here, or someone has removed the folder of the lock
        if not self._lost:
            records.remove(self._folder, self._number - 1)
            self._number += 1

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_S):
            with self._changing, contextlib.suppress(OSError, ArtifactError):  # tried again, until the lease ends
                self._advance(self._holder)

    def _successor(self) -> str:
        with contextlib.suppress(OSError, IndexError, ArtifactError):
            return str(records.read(self._folder, records.numbers(self._folder)[-1]))
        return f"{self._folder} was removed"


def remove(path: Path) -> None:
    """Deletes a file or a folder that has been renamed aside; what cannot be deleted stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
