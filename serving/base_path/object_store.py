"""A base path in an object store, at an address that TensorFlow's file systems read: gs://, s3://, hdfs://.

An object store has no rename and no exclusive creation. So saved_model.pb is written last: until then a server that looks
finds no model, and says so, instead of serving an incomplete one. Of two uploads of one number, one waits (`_claim`).
"""

import contextlib
import dataclasses
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from serving import lock
from serving.base_path.folder import manifest_or_none
from serving.base_path.version import SAVED_MODEL, checked_manifest, file_names, not_published, other_contents
from tff_pipeline.artifacts import COMPLETE, MANIFEST
from tff_pipeline.errors import ArtifactError
from tff_pipeline.progress import Progress

_CLAIM = ".uploading-"


@dataclasses.dataclass(frozen=True)
class ObjectStore:
    """The versions at an address. All methods raise ArtifactError if it cannot be reached or read."""

    address: str

    def __str__(self) -> str:
        return self.address

    def complete_versions(self) -> list[int]:
        """The versions that have their last file, ascending."""
        import tensorflow as tf

        files = tf.io.gfile
        with _reaching(self.address, "cannot be listed"):
            names = [name.rstrip("/") for name in files.listdir(self.address)] if files.exists(self.address) else []
            numbers = sorted(int(name) for name in names if name.isascii() and name.isdigit())
            return [number for number in numbers if files.exists(f"{self.address}/{number}/{SAVED_MODEL}")]

    def check_complete(self, version: int) -> None:
        """Raises ArtifactError if the version is not published."""
        if version not in (published := self.complete_versions()):
            raise not_published(self.address, version, published)

    def manifests(self) -> Iterator[tuple[int, dict[str, Any] | None]]:
        """Every complete version, ascending, with its manifest; None where that is missing or damaged."""
        import tensorflow as tf

        for number in self.complete_versions():
            with tempfile.TemporaryDirectory() as folder, _reaching(f"{self.address}/{number}", "cannot be read"):
                for name in (MANIFEST, COMPLETE):
                    source = f"{self.address}/{number}/{name}"
                    if tf.io.gfile.exists(source):
                        (Path(folder) / name).write_bytes(_read(source))
                manifest = manifest_or_none(Path(folder))
            yield number, manifest

    @contextlib.contextmanager
    def newest_copy(self) -> Iterator[Path | None]:
        """The newest complete version as a copy on this machine, which the end of the block removes; None without one."""
        numbers = self.complete_versions()
        if not numbers:
            yield None
            return
        source = f"{self.address}/{numbers[-1]}"
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / str(numbers[-1])
            with _reaching(source, "cannot be read"):
                for path in _files_under(source):
                    target = copy / path.removeprefix(f"{source}/")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(_read(path))
            yield copy


def upload(version: Path, base: str, *, wait_s: float = lock.WAIT_S, progress: Progress | None = None) -> str:
    """Copies a version to an address, saved_model.pb last.

    Each file is read back and compared. An upload that was interrupted is begun again; a complete version is never touched,
    and uploading the same version again does nothing.

    Returns:
      The published address.

    Raises:
      ArtifactError: if the version is incomplete or altered, its number is taken there, a copy is not what was sent, or the
        address cannot be reached or written.
      LockedError: if another upload of this number does not end within `wait_s`.
      LockLostError: if this upload's claim was removed.
    """
    import tensorflow as tf

    files, manifest, base = tf.io.gfile, checked_manifest(version), base.rstrip("/")
    final = f"{base}/{manifest['version']}"
    names = [name for name in file_names(manifest) if name != SAVED_MODEL]
    failure = "could not be uploaded, and is not served before it is complete"
    with (
        _reaching(final, failure),
        _claim(base, manifest["version"], wait_s, progress or Progress()) as claim,
    ):
        if files.exists(f"{final}/{SAVED_MODEL}"):
            _check_same(final, version)
            return final
        for path in _files_under(final) if files.exists(final) else ():  # what an interrupted upload left
            if path.removeprefix(f"{final}/") not in names:
                files.remove(path)
        for name in (*names, SAVED_MODEL):
            if not files.exists(claim):
                raise lock.LockLostError(
                    f"{claim}: was removed while this upload was at work; expected the claim to stay until the upload ends. "
                    "Nothing more was written. Upload again."
                )
            _send((version / name).read_bytes(), f"{final}/{name}")
    return final


def _send(data: bytes, target: str) -> None:
    import tensorflow as tf

    files = tf.io.gfile
    files.makedirs(target.rpartition("/")[0])
    if files.exists(target):  # of an upload that was interrupted; not every store replaces an object
        files.remove(target)
    with files.GFile(target, "wb") as file:
        file.write(data)
    if _read(target) != data:
        raise ArtifactError(f"{target}: is not what was sent; expected a store that keeps it. Publish again.")


def _check_same(final: str, version: Path) -> None:
    import tensorflow as tf

    path = f"{final}/{MANIFEST}"
    if not tf.io.gfile.exists(path) or _read(path) != (version / MANIFEST).read_bytes():
        raise other_contents(final, version)


def _read(path: str) -> bytes:
    import tensorflow as tf

    with tf.io.gfile.GFile(path, "rb") as file:
        return file.read()


@contextlib.contextmanager
def _reaching(address: str, failure: str) -> Iterator[None]:
    """Turns an error of TensorFlow's file systems in the block into an ArtifactError."""
    import tensorflow as tf

    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        reason = error.message if isinstance(error, tf.errors.OpError) else error
        raise ArtifactError(
            f"{address}: {failure} ({reason}); expected an address that TensorFlow's file systems reach from here, with this "
            "user's credentials. Correct the address or the credentials, and run the command again."
        ) from error


def _files_under(address: str) -> list[str]:
    import tensorflow as tf

    return [f"{directory.rstrip('/')}/{name}" for directory, _, names in tf.io.gfile.walk(address) for name in names]


# -- claims ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _claim(base: str, number: int, wait_s: float, progress: Progress) -> Iterator[str]:
    """Claims a number at an address, by an object that each uploader writes before it looks for those of others.

    An uploader that sees another's claim withdraws its own and tries again after a random pause; so of two that write at
    the same time at most one continues, given that a listing shows what was written before it. A claim never expires:
    it is removed if its process, on this machine, has ended, or by hand.
    """
    import tensorflow as tf

    files, me = tf.io.gfile, lock.this_process(f"tff-pipeline publish --to {base}")
    prefix, deadline = f"{_CLAIM}{number}-", time.monotonic() + wait_s
    own, reported = f"{base}/{prefix}{me.token}", False
    files.makedirs(base)
    while True:
        with files.GFile(own, "w") as file:
            file.write(me.to_json())
        others = [f"{base}/{name}" for name in files.listdir(base) if name.startswith(prefix) and me.token not in name]
        if not (standing := [claim for claim in others if not _has_ended(claim)]):
            break
        files.remove(own)
        if time.monotonic() > deadline:
            raise lock.LockedError(
                f"{base}/{number}: another upload of it has not finished within {wait_s:g} s; its claim is {standing[0]}, "
                "which names its process. If that process was stopped, remove the claim, and publish again."
            )
        if not reported:
            progress.event(
                "lock", f"{base}/{number}: waiting up to {wait_s:g} s for the upload that wrote {standing[0]}"
            )
            reported = True
        time.sleep(random.uniform(0.1, 1.0))
    try:
        yield own
    finally:
        with contextlib.suppress(tf.errors.NotFoundError):
            files.remove(own)


def _has_ended(claim: str) -> bool:
    """Whether an upload has withdrawn its claim, or its process has ended, in which case the claim is removed."""
    import tensorflow as tf

    with contextlib.suppress(tf.errors.NotFoundError):
        with tf.io.gfile.GFile(claim, "r") as file:
            holder = lock.Holder.from_json(file.read())
        if not lock.has_ended(holder):
            return False
        tf.io.gfile.remove(claim)
    return True
