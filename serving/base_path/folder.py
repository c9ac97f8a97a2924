"""A base path on a local or network file system, where a rename is atomic: versions appear and disappear as a whole.

TensorFlow Serving loads a version as soon as it sees a folder with a number for a name, and does not check whether it is
complete: a version without variables it serves without weights, silently. So a version is copied to `.publishing-...` in
the base path, compared with its manifest file by file, synced to disk, and renamed. One command at a time does that
(serving/lock); a command does not touch what another one prepares while that one holds the lock.
"""

import dataclasses
import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from serving import lock
from serving.base_path.version import checked_manifest, file_names, not_published, other_contents, reading
from tff_pipeline.artifacts import MANIFEST, model_versions, read_manifest, sync_directory, version_numbers
from tff_pipeline.errors import ArtifactError
from tff_pipeline.progress import Progress


@dataclasses.dataclass(frozen=True)
class Folder:
    """The versions in a folder. All methods raise ArtifactError if it cannot be read."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def complete_versions(self) -> list[int]:
        """Ascending."""
        with reading(self.path):
            return model_versions(self.path)

    def check_complete(self, version: int) -> None:
        """Raises ArtifactError if the version is not published, or one of its files was changed."""
        with reading(self.path):
            if version not in version_numbers(self.path):
                raise not_published(self.path, version, self.complete_versions())
            read_manifest(self.path / str(version), check_files=True)

    def manifests(self) -> Iterator[tuple[int, dict[str, Any] | None]]:
        """Every number that is taken, ascending, with its manifest; None where the version is incomplete or damaged."""
        with reading(self.path):
            manifests = [(number, manifest_or_none(self.path / str(number))) for number in version_numbers(self.path)]
        yield from manifests


def manifest_or_none(version: Path) -> dict[str, Any] | None:
    """The manifest of a version; None where it is incomplete or damaged."""
    try:
        return read_manifest(version)
    except ArtifactError:
        return None


# -- publishing --------------------------------------------------------------------------------------------------------


def publish(
    version: Path,
    base_path: Path,
    *,
    base_lock: lock.Lock | None = None,
    wait_s: float = lock.WAIT_S,
    progress: Progress | None = None,
) -> Path:
    """Copies a version, under the number it has, into a base path; where it is published already, it does nothing.

    `base_lock` is the base path's lock where the caller holds it; otherwise it is taken, after at most `wait_s`.

    Returns:
      The published folder.

    Raises:
      ArtifactError: if the version is incomplete or altered (the file is named), its number is taken by another version,
        or it cannot be written.
      LockedError: if another command holds the lock for longer than `wait_s`.
      LockLostError: if this process was paused for so long that another has taken over; then it has published nothing.
    """
    manifest = checked_manifest(version)
    if base_lock is not None:
        return _publish_under(base_lock, version, base_path, manifest)
    create(base_path)
    command, progress = f"publish {version}", progress or Progress()
    with lock.lock_base_path(base_path, command=command, wait_s=wait_s, progress=progress) as taken:
        return _publish_under(taken, version, base_path, manifest)


def _publish_under(base_lock: lock.Lock, version: Path, base_path: Path, manifest: dict[str, Any]) -> Path:
    final = base_path / str(manifest["version"])
    if manifest["version"] in version_numbers(base_path):
        _check_same(final, version)
        return final
    aside = base_path / f"{lock.PREPARED}{final.name}-{base_lock.token}"
    try:
        _copy_version(version, aside, file_names(manifest))
        base_lock.confirm()
        os.rename(aside, final)  # fails if `aside` was revoked, and on a version that appeared meanwhile
    except (OSError, ArtifactError) as error:
        base_lock.confirm()  # where the folder was taken away, another command holds the lock; this names it
        if isinstance(error, OSError):
            raise _not_published(error, version, final) from error
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    sync_directory(base_path)
    return final


def _not_published(error: OSError, version: Path, final: Path) -> ArtifactError:
    if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
        return ArtifactError(
            f"{final}: appeared while it was being published, written by something that does not take the lock in "
            f"{final.parent / lock.FOLDER}. It was not touched. Find out what wrote it, and move it away."
        )
    return ArtifactError(
        f"{final}: could not be written ({error.strerror or error}). Nothing was published. Make room there, or give "
        f"this user permission to read {version} and to write there, and run the command again."
    )


def _copy_version(version: Path, aside: Path, names: Sequence[str]) -> None:
    """Copies a version's files into a new folder, synced to disk and compared with the manifest."""
    # All folders come first: a copy that continues after its folder was taken away must not create it anew.
    for folder in dict.fromkeys((aside / name).parent for name in names):
        folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        _copy(version / name, aside / name)
    checked_manifest(aside)
    for folder in (*(path for path in aside.rglob("*") if path.is_dir()), aside):
        folder.chmod(0o755)  # the server may run as another user, whatever the umask here
        sync_directory(folder)


def _copy(source: Path, target: Path) -> None:
    """Copies one file and syncs it to disk; every user may read it, as the server must."""
    with source.open("rb") as reading, target.open("xb") as writing:
        os.fchmod(writing.fileno(), 0o644)
        shutil.copyfileobj(reading, writing, 1 << 20)
        writing.flush()
        os.fsync(writing.fileno())


def _check_same(final: Path, version: Path) -> None:
    """Raises ArtifactError if the version that is published under a number is not the one that is to be published."""
    with reading(final):
        try:
            read_manifest(final, check_files=True)
        except ArtifactError as error:
            raise ArtifactError(
                f"{final}: exists already and is not complete: {error} A published version is never overwritten, and no "
                "command of this project leaves such a folder. Move it away, and publish again."
            ) from None
        is_same = (final / MANIFEST).read_bytes() == (version / MANIFEST).read_bytes()
    if not is_same:
        raise other_contents(final, version)


def create(base_path: Path) -> None:
    """Creates a base path that does not exist so that a server of another user can enter it, whatever the umask."""
    missing = [path for path in (base_path, *base_path.parents) if not path.exists()]
    try:
        base_path.mkdir(parents=True, exist_ok=True)
        for path in missing:
            path.chmod(0o755)
    except OSError as error:
        raise ArtifactError(
            f"{base_path}: cannot be created ({error.strerror}); expected a folder, or a path under which this user may "
            "create one. Create it, and publish again."
        ) from None


# -- removing ----------------------------------------------------------------------------------------------------------


def retain(base_path: Path, keep: int, *, needed: Sequence[int], base_lock: lock.Lock | None = None) -> list[int]:
    """Removes what is older than the newest `keep` complete versions; those in `needed` stay whatever their age.

    Returns:
      The numbers that were removed.

    Raises:
      ArtifactError: if the base path cannot be read, or a version cannot be removed.
      LockLostError: if another command has taken over; then the version that it may need is left.
    """
    if base_lock is None:
        with lock.lock_base_path(base_path, command="retain", progress=Progress()) as taken:
            return retain(base_path, keep, needed=needed, base_lock=taken)
    with reading(base_path):
        kept, numbers = model_versions(base_path)[-keep:], version_numbers(base_path)
    if len(kept) < keep:
        return []
    removed = [number for number in numbers if number < kept[0] and number not in needed]
    for number in removed:
        _remove(base_path / str(number), base_lock)
    return removed


def _remove(version: Path, base_lock: lock.Lock) -> None:
    aside = version.with_name(f"{lock.REMOVING}{version.name}-{base_lock.token}")
    base_lock.confirm()
    try:
        os.rename(version, aside)  # first out of the server's sight, then file by file
    except OSError as error:
        raise ArtifactError(
            f"{version}: cannot be removed ({error.strerror}); expected permission to rename in its folder. What was published "
            "stays published. Give this user permission, or remove old versions by hand."
        ) from error
    try:
        base_lock.confirm()
    except lock.LockLostError:
        os.rename(aside, version)  # the command that holds the lock now may need it
        raise
    lock.remove(aside)
