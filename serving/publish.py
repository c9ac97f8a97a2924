"""Puts an exported version under the base path that a model server watches: whole, or not at all.

TensorFlow Serving loads a version as soon as it sees a folder with a number for a name, and does not look whether it is
whole: one without variables it serves without weights, in silence. So a version is copied to `.publishing-...` beside its
place, compared with its manifest file by file, synced to disk, and renamed. One command at a time does that (lock.py), and
what another has prepared, it does not touch while that one holds the lock. Before that a version must pass the gates of
its configuration (gates.py); a canary is then loaded beside the version that serves (rollout.py).
"""

import argparse
import contextlib
import errno
import json
import os
import random
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from serving import gates, lock, rollout
from tff_pipeline import config as configuration
from tff_pipeline.artifacts import (
    COMPLETE,
    MANIFEST,
    model_base,
    model_versions,
    newest_version,
    read_manifest,
    sync_directory,
    version_numbers,
)
from tff_pipeline.config import GatesSection
from tff_pipeline.errors import ArtifactError, ConfigError
from tff_pipeline.progress import Progress


def publish(
    version_dir: Path,
    base_path: Path,
    *,
    held: lock.Lock | None = None,
    wait_s: float = lock.WAIT_S,
    progress: Progress | None = None,
) -> Path:
    """Copies a version, under the number it has, into a base path; where the same version is already, it does nothing.

    The base path must lie on one local or network file system, where a rename is atomic; an object store has none
    (`upload`). `held` is the base path's lock where the caller holds it; otherwise it is taken, after at most `wait_s`.

    Returns:
      The published folder.

    Raises:
      ArtifactError: if the version is incomplete or altered (the file is named), its number is taken by another, or it
        cannot be written.
      LockedError: if another command holds the lock for longer than `wait_s`.
      LockLostError: if this process was paused for so long that another has taken over; then it has published nothing.
    """
    manifest = _checked(version_dir)
    if held is not None:
        return _publish_under(held, version_dir, base_path, manifest)
    _make_folder(base_path)
    command, progress = f"publish {version_dir}", progress or Progress()
    with lock.changing(base_path, command=command, wait_s=wait_s, progress=progress) as held:
        return _publish_under(held, version_dir, base_path, manifest)


def _publish_under(held: lock.Lock, version_dir: Path, base_path: Path, manifest: dict) -> Path:
    final = base_path / str(manifest["version"])
    if manifest["version"] in version_numbers(base_path):
        _check_same(final, version_dir)
        return final
    aside = base_path / f"{lock.PREPARED}{final.name}-{held.token}"
    try:
        names = (*manifest["files"], MANIFEST, COMPLETE)
        # All folders first: a copy that goes on after its folder was taken away must not create it anew.
        for folder in dict.fromkeys((aside / name).parent for name in names):
            folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            _copy(version_dir / name, aside / name)
        _checked(aside)
        for folder in (*(path for path in aside.rglob("*") if path.is_dir()), aside):
            folder.chmod(0o755)  # the server may run as another user, whatever the umask here
            sync_directory(folder)
        held.confirm()
        os.rename(aside, final)  # fails if `aside` was revoked, and on a version that appeared meanwhile
    except (OSError, ArtifactError) as error:
        held.confirm()  # where the folder was taken away, another command holds the lock; this says which
        if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise ArtifactError(
                f"{final}: appeared while it was published, written by something that does not take the lock in "
                f"{base_path / lock.FOLDER}. It was not touched."
            ) from None
        if isinstance(error, OSError):
            raise ArtifactError(
                f"{final}: could not be written ({error.strerror or error}). Nothing was published. Make room there, or give "
                f"this user permission to read {version_dir} and to write there, and run the command again."
            ) from error
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    sync_directory(base_path)
    return final


def _make_folder(base_path: Path) -> None:
    """Creates a base path that is not there, so that a server of another user can enter it, whatever the umask."""
    missing = [path for path in (base_path, *base_path.parents) if not path.exists()]
    try:
        base_path.mkdir(parents=True, exist_ok=True)
        for path in missing:
            path.chmod(0o755)
    except OSError as error:
        raise ArtifactError(
            f"{base_path}: cannot be created ({error.strerror}); expected a folder, or a place where this user may create "
            "one. Create it, and publish again."
        ) from None


def _check_same(final: Path, version_dir: Path) -> None:
    """Raises ArtifactError if what is published under a number is not the version that is to be published."""
    try:
        read_manifest(final, check_files=True)
    except ArtifactError as error:
        raise ArtifactError(
            f"{final}: is there already, and is not whole: {error} A published version is never overwritten. No command "
            "of this project leaves such a folder. Move it away, and publish again."
        ) from None
    if (final / MANIFEST).read_bytes() != (version_dir / MANIFEST).read_bytes():
        raise ArtifactError(
            f"{final}: is there already, with other contents than {version_dir}; a published version is never "
            "overwritten. Export the run again to get a new number."
        )


SAVED_MODEL = rollout.SAVED_MODEL  # without it a server loads nothing
_CLAIM = ".uploading-"


def upload(version_dir: Path, base: str, *, wait_s: float = lock.WAIT_S, progress: Progress | None = None) -> str:
    """Copies a version to an address without renames (gs://, s3://, hdfs://: what TensorFlow's own file systems read).

    Each file is read back and compared, and saved_model.pb comes last: until then a server that looks finds no model, and
    says so, instead of serving half of one. An upload that was interrupted is begun again; a whole one is never touched,
    and uploading the same version again does nothing. Of two uploads of one number at once, one waits (`_claimed`).

    Returns:
      The published address.

    Raises:
      ArtifactError: if the version is incomplete or altered, its number is taken there, or a copy is not what was sent.
      LockedError: if another upload of this number does not end within `wait_s`.
      LockLostError: if this upload's claim was removed.
    """
    import tensorflow as tf

    files, manifest, base = tf.io.gfile, _checked(version_dir), base.rstrip("/")
    final = f"{base}/{manifest['version']}"
    names = [name for name in (*manifest["files"], MANIFEST, COMPLETE) if name != SAVED_MODEL]
    with _claimed(base, manifest["version"], wait_s, progress or Progress()) as claim:
        if files.exists(f"{final}/{SAVED_MODEL}"):
            _check_same_there(final, version_dir)
            return final
        for path in rollout.files_there(final) if files.exists(final) else ():  # what an interrupted upload left
            if path.removeprefix(f"{final}/") not in names:
                files.remove(path)
        for name in (*names, SAVED_MODEL):
            if not files.exists(claim):
                raise lock.LockLostError(f"{claim}: was removed while this upload was at work. Upload again.")
            _send((version_dir / name).read_bytes(), f"{final}/{name}")
    return final


def _send(data: bytes, target: str) -> None:
    import tensorflow as tf

    files = tf.io.gfile
    files.makedirs(target.rpartition("/")[0])
    if files.exists(target):  # of an upload that was interrupted; not every store replaces what is there
        files.remove(target)
    with files.GFile(target, "wb") as file:
        file.write(data)
    with files.GFile(target, "rb") as file:
        if file.read() != data:
            raise ArtifactError(f"{target}: is not what was sent; expected a store that keeps it. Publish again.")


def _check_same_there(final: str, version_dir: Path) -> None:
    import tensorflow as tf

    path = f"{final}/{MANIFEST}"
    if tf.io.gfile.exists(path):
        with tf.io.gfile.GFile(path, "rb") as file:
            if file.read() == (version_dir / MANIFEST).read_bytes():
                return
    raise ArtifactError(
        f"{final}: is there already, with other contents than {version_dir}; a published version is never overwritten. "
        "Export the run again to get a new number."
    )


@contextlib.contextmanager
def _claimed(base: str, number: int, wait_s: float, progress: Progress) -> Iterator[str]:
    """Claims a number at an address, by an object that each uploader writes before it looks for those of others.

    Whoever sees another's claim withdraws its own and tries again after a random pause; so of two that write at the same
    time at most one goes on, given that a listing shows what was written before it. A claim is never taken for dead by
    its age: it is removed if its process, on this machine, has ended, or by hand.
    """
    import tensorflow as tf

    files, me = tf.io.gfile, lock.this_process(f"tff-pipeline publish --to {base}")
    prefix, deadline = f"{_CLAIM}{number}-", time.monotonic() + wait_s
    own, told = f"{base}/{prefix}{me.token}", False
    files.makedirs(base)
    while True:
        with files.GFile(own, "w") as file:
            file.write(me.to_json())
        others = [f"{base}/{name}" for name in files.listdir(base) if name.startswith(prefix) and me.token not in name]
        if not (standing := [other for other in others if not _ended_claim(other)]):
            break
        files.remove(own)
        if time.monotonic() > deadline:
            raise lock.LockedError(
                f"{base}/{number}: another upload of it has not finished within {wait_s:g} s; its claim is {standing[0]}, "
                f"which says who. If that one was stopped, remove the claim, and publish again."
            )
        if not told:
            progress.event(
                "lock", f"{base}/{number}: waiting up to {wait_s:g} s for the upload that wrote {standing[0]}"
            )
            told = True
        time.sleep(random.uniform(0.1, 1.0))
    try:
        yield own
    finally:
        with contextlib.suppress(tf.errors.NotFoundError):
            files.remove(own)


def _ended_claim(claim: str) -> bool:
    """Whether an upload has withdrawn its claim, or its process has ended, in which case the claim is removed."""
    import tensorflow as tf

    with contextlib.suppress(tf.errors.NotFoundError):
        with tf.io.gfile.GFile(claim, "r") as file:
            holder = lock.Holder.from_json(file.read())
        if not lock.has_ended(holder):
            return False
        tf.io.gfile.remove(claim)
    return True


@contextlib.contextmanager
def _newest_there(base: str) -> Iterator[Path | None]:
    """The newest version at an address, whole, as a copy on this machine for as long as the block lasts."""
    import tensorflow as tf

    whole = rollout.versions_there(base)
    if not whole:
        yield None
        return
    source = f"{base.rstrip('/')}/{whole[-1]}"
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / str(whole[-1])
        for path in rollout.files_there(source):
            target = copy / path.removeprefix(f"{source}/")
            target.parent.mkdir(parents=True, exist_ok=True)
            with tf.io.gfile.GFile(path, "rb") as file:
                target.write_bytes(file.read())
        yield copy


def _checked(version_dir: Path) -> dict:
    """The manifest of a version whose files are all there, unchanged, and the only ones."""
    manifest = read_manifest(version_dir, check_files=True)
    if manifest.get("kind") != "model":
        raise ArtifactError(
            f"{version_dir}: holds {manifest.get('kind')!r}; expected a version that `tff-pipeline export` made."
        )
    known = {*manifest["files"], MANIFEST, COMPLETE}
    found = {path.relative_to(version_dir).as_posix() for path in version_dir.rglob("*") if not path.is_dir()}
    if surplus := sorted(found - known):
        raise ArtifactError(
            f"{version_dir / surplus[0]}: is not in {MANIFEST}; expected only what was exported and verified. Remove it, or export again."
        )
    return manifest


def _copy(source: Path, target: Path) -> None:
    """Copies one file to disk, past the cache; every user may read it, as the server must."""
    with source.open("rb") as reading, target.open("xb") as writing:
        os.fchmod(writing.fileno(), 0o644)
        shutil.copyfileobj(reading, writing, 1 << 20)
        writing.flush()
        os.fsync(writing.fileno())


def main(argv: Sequence[str]) -> int:
    """`tff-pipeline publish`: prints the published folder."""
    arguments = _parsed(argv)
    progress, command = Progress(), f"tff-pipeline publish {shlex.join(argv)}"
    there = _publish_there(arguments, progress) if "://" in arguments.to else _publish(arguments, command, progress)
    path = str(there)
    number = int(path.rpartition("/")[2])
    progress.event("publish", f"version {number} is in {path}", version=number, path=path)
    print(json.dumps({"path": path, "version": number}) if arguments.json else path)
    return 0


_EPILOG = """\
A version is there whole or not at all, also if this command is killed; the same command again goes on from what it
finds. A version that is there already, the same in every file, is not copied again; another one under its number is
refused. One command at a time changes a base path: a second one waits for --lock-wait-s, and then names the first.
"""


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tff-pipeline publish",
        description="Copies an exported version under the base path of a model server, whole or not at all.",
        epilog=_EPILOG,
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--config", metavar="FILE", help="publish the newest version of this configuration's model")
    which.add_argument("--model", metavar="DIR", type=Path, help="publish this version, or the newest in this folder")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="overrides", help="override a key of --config"
    )
    parser.add_argument(
        "--to",
        metavar="DIR",
        required=True,
        help="the base path that the model server watches; gs://, s3:// and the like get saved_model.pb last",
    )
    parser.add_argument(
        "--canary",
        action="store_true",
        help="load it beside the stable version and label it `canary`, in --models-config",
    )
    rollout.add_arguments(parser, required=False)
    parser.add_argument(
        "--keep",
        metavar="N",
        type=int,
        help="afterwards remove all but the newest N whole versions there; those that any models.config which was used "
        "with this base path names stay, and those that a --server has loaded",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    if arguments.canary and not (arguments.models_config and arguments.server):
        parser.error("--canary needs --models-config, and --server to wait for")
    if arguments.keep is not None and arguments.keep < 1:
        parser.error(f"--keep is {arguments.keep}; expected at least 1")
    if "://" in arguments.to and (arguments.models_config or arguments.keep is not None):
        parser.error("--canary, --models-config and --keep need a folder, and --to is an address")
    return arguments


def _publish_there(arguments: argparse.Namespace, progress: Progress) -> str:
    """Gates, then the upload."""
    config = configuration.load(arguments.config, arguments.overrides) if arguments.config else None
    version = newest_version(model_base(config) if config is not None else arguments.model)
    if config is not None:
        with _newest_there(arguments.to) as serving:
            _pass_gates(version, serving, config.gates, progress)
    return upload(version, arguments.to, wait_s=arguments.lock_wait_s, progress=progress)


def _pass_gates(version: Path, serving: Path | None, asked: GatesSection, progress: Progress) -> None:
    """Raises GateError where the version does not."""
    passed = gates.check(read_manifest(version), read_manifest(serving) if serving is not None else None, asked)
    for sentence in (*passed, *gates.check_changes(version, serving, asked)):
        progress.event("gate", f"passed: {sentence}")


def _publish(arguments: argparse.Namespace, command: str, progress: Progress) -> Path:
    """Gates, then the copy, then the labels, then what is too old; all under the lock of the base path."""
    config = configuration.load(arguments.config, arguments.overrides) if arguments.config else None
    version, to = newest_version(model_base(config) if config is not None else arguments.model), Path(arguments.to)
    name, following, is_followed = _checked(version).get("name", ""), None, False
    if arguments.models_config:
        following = rollout.from_arguments(arguments, name, command, progress)
        base_path = following.served().base_path
        is_followed = base_path.resolve() == to.resolve()
        if arguments.canary and not is_followed:
            raise ConfigError(
                f"{arguments.models_config}: has base_path {base_path} for {name}; expected {to}, where it is published to."
            )
    is_new = not to.is_dir()
    if is_new:
        if config is not None:
            _pass_gates(version, None, config.gates, progress)
        _make_folder(to)
    if following is not None and arguments.canary:
        holding = following.changing()
    else:
        holding = lock.changing(to, command=command, wait_s=arguments.lock_wait_s, progress=progress)
    with holding as held:
        if is_followed:
            rollout.register(to, arguments.models_config, held)
        serving = _serving(to, following.served() if following is not None else None)
        if config is not None and not (is_new and serving is None):
            _pass_gates(version, serving, config.gates, progress)
        return _change(arguments, version, to, held, following, progress)


def _change(
    arguments: argparse.Namespace,
    version: Path,
    to: Path,
    held: lock.Lock,
    following: rollout.Rollout | None,
    progress: Progress,
) -> Path:
    if following is not None and arguments.canary:
        following.pin()
    path = publish(version, to, held=held)
    if following is not None and arguments.canary:
        following.canary(int(path.name))
    if arguments.keep is not None:
        needed = rollout.needed(to) | {int(path.name)}
        if following is not None:
            needed |= {*following.served().versions, *following.served().labels.values(), *following.loaded()}
        for number in rollout.retain(to, arguments.keep, needed=sorted(needed), held=held):
            progress.event("publish", f"version {number} was removed: older than the newest {arguments.keep}")
    return path


def _serving(base_path: Path, served: rollout.Served | None) -> Path | None:
    """The version that serves now: the stable one, or else the newest."""
    complete = model_versions(base_path)
    stable = served.labels.get(rollout.STABLE) if served else None
    number = stable if stable in complete else complete[-1] if complete else None
    return base_path / str(number) if number is not None else None
