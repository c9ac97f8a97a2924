"""Puts an exported version under the base path that a model server watches: whole, or not at all.

TensorFlow Serving loads a version as soon as it sees a folder with a number for a name, and does not look whether it is
whole: one without variables it serves without weights, in silence. So a version is copied to `.staging-...` beside its
place, compared with its manifest file by file, synced to disk, and renamed. Before that it must pass the gates of its configuration (gates.py); a canary is then loaded
beside the version that serves (rollout.py).
"""

import argparse
import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from serving import gates, rollout
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


def publish(version_dir: Path, base_path: Path) -> Path:
    """Copies a version, under the number it has, into a base path.

    The base path should lie on one local or network file system, where a rename is atomic; an object store has none.

    Returns:
      The published folder.

    Raises:
      ArtifactError: if the version is incomplete or altered (the file is named), or its number is taken there.
    """
    manifest = _checked(version_dir)
    final = base_path / str(manifest["version"])
    if manifest["version"] in version_numbers(base_path):
        raise ArtifactError(
            f"{final}: is there already; a published version is never overwritten. Export the run again to get a new number."
        )
    base_path.mkdir(parents=True, exist_ok=True)
    for leftover in base_path.glob(f".staging-{final.name}-*"):
        shutil.rmtree(leftover)
    aside = Path(tempfile.mkdtemp(dir=base_path, prefix=f".staging-{final.name}-"))
    try:
        for name in (*manifest["files"], MANIFEST, COMPLETE):
            _copy(version_dir / name, aside / name)
        _checked(aside)
        aside.chmod(0o755)
        for folder in (*(path for path in aside.rglob("*") if path.is_dir()), aside):
            sync_directory(folder)
        os.rename(aside, final)  # fails on a folder that appeared meanwhile
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync_directory(base_path)
    return final


SAVED_MODEL = "saved_model.pb"  # without it a server loads nothing


def upload(version_dir: Path, base: str) -> str:
    """Copies a version to an address without renames (gs://, s3://, hdfs://: what TensorFlow's own file systems read).

    Each file is read back and compared, and saved_model.pb comes last: until then a server that looks finds no model, and
    says so, instead of serving half of one. An upload that was interrupted is begun again; a whole one is never touched.

    Returns:
      The published address.

    Raises:
      ArtifactError: if the version is incomplete or altered, its number is taken there, or a copy is not what was sent.
    """
    import tensorflow as tf

    files, manifest = tf.io.gfile, _checked(version_dir)
    final = f"{base.rstrip('/')}/{manifest['version']}"
    if files.exists(f"{final}/{SAVED_MODEL}"):
        raise ArtifactError(
            f"{final}: is there already; a published version is never overwritten. Export the run again to get a new number."
        )
    if files.exists(final):  # what an interrupted upload left
        files.rmtree(final)
    names = [name for name in (*manifest["files"], MANIFEST, COMPLETE) if name != SAVED_MODEL]
    for name in (*names, SAVED_MODEL):
        data, target = (version_dir / name).read_bytes(), f"{final}/{name}"
        files.makedirs(target.rpartition("/")[0])
        with files.GFile(target, "wb") as file:
            file.write(data)
        with files.GFile(target, "rb") as file:
            if file.read() != data:
                raise ArtifactError(f"{target}: is not what was sent; expected a store that keeps it. Publish again.")
    return final


@contextlib.contextmanager
def _newest_there(base: str) -> Iterator[Path | None]:
    """The newest version at an address, whole, as a copy on this machine for as long as the block lasts."""
    import tensorflow as tf

    files = tf.io.gfile
    names = [name.rstrip("/") for name in files.listdir(base)] if files.exists(base) else []
    numbers = [int(name) for name in names if name.isascii() and name.isdigit()]
    whole = [number for number in numbers if files.exists(f"{base.rstrip('/')}/{number}/{SAVED_MODEL}")]
    if not whole:
        yield None
        return
    source = f"{base.rstrip('/')}/{max(whole)}"
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / str(max(whole))
        for directory, _, found in files.walk(source):
            for name in found:
                path = f"{directory.rstrip('/')}/{name}"
                target = place / path.removeprefix(source).lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                with files.GFile(path, "rb") as file:
                    target.write_bytes(file.read())
        yield place


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
    """Copies one file to disk, past the cache."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as reading, target.open("xb") as writing:
        shutil.copyfileobj(reading, writing, 1 << 20)
        writing.flush()
        os.fsync(writing.fileno())


def main(argv: Sequence[str]) -> int:
    """`tff-pipeline publish`: prints the published folder."""
    parser = argparse.ArgumentParser(
        prog="tff-pipeline publish",
        description="Copies an exported version under the base path of a model server, whole or not at all.",
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
        help="afterwards remove all but the newest N versions there; labelled ones stay",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    if arguments.canary and not (arguments.models_config and arguments.server):
        parser.error("--canary needs --models-config, and --server to wait for")
    if arguments.keep is not None and arguments.keep < 1:
        parser.error(f"--keep is {arguments.keep}; expected at least 1")
    if "://" in arguments.to and (arguments.models_config or arguments.keep is not None):
        parser.error("--canary, --models-config and --keep need a folder, and --to is an address")
    progress = Progress()
    path = str(_publish_there(arguments, progress) if "://" in arguments.to else _publish(arguments, progress))
    number = int(path.rpartition("/")[2])
    progress.event("publish", f"version {number} is in {path}", version=number, path=path)
    print(json.dumps({"path": path, "version": number}) if arguments.json else path)
    return 0


def _publish_there(arguments: argparse.Namespace, progress: Progress) -> str:
    """Gates, then the upload."""
    config = configuration.load(arguments.config, arguments.overrides) if arguments.config else None
    version = newest_version(model_base(config) if config is not None else arguments.model)
    if config is not None:
        with _newest_there(arguments.to) as serving:
            _pass_gates(version, serving, config.gates, progress)
    return upload(version, arguments.to)


def _pass_gates(version: Path, serving: Path | None, asked: GatesSection, progress: Progress) -> None:
    """Raises GateError where the version does not."""
    passed = gates.check(read_manifest(version), read_manifest(serving) if serving is not None else None, asked)
    for sentence in (*passed, *gates.check_changes(version, serving, asked)):
        progress.event("gate", f"passed: {sentence}")


def _publish(arguments: argparse.Namespace, progress: Progress) -> Path:
    """Gates, then the copy, then the labels, then what is too old."""
    config = configuration.load(arguments.config, arguments.overrides) if arguments.config else None
    version, to = newest_version(model_base(config) if config is not None else arguments.model), Path(arguments.to)
    manifest = read_manifest(version)
    served = None
    following = None
    if arguments.models_config:
        following = rollout.Rollout(
            arguments.models_config,
            manifest.get("name", ""),
            servers=arguments.server,
            timeout_s=arguments.wait_s,
            progress=progress,
        )
        served = following.served()
    if config is not None:
        _pass_gates(version, _serving(to, served), config.gates, progress)
    if following is None or not arguments.canary:
        path = publish(version, to)
    else:
        if following.served().base_path.resolve() != to.resolve():
            raise ConfigError(
                f"{arguments.models_config}: has base_path {following.served().base_path} for {manifest['name']}; expected {to}, where it is published to."
            )
        following.pin()
        path = publish(version, to)
        served = following.canary(manifest["version"])
    if arguments.keep is not None:
        needed = [*served.versions, *served.labels.values()] if served else []
        for number in rollout.retain(to, arguments.keep, needed=needed):
            progress.event("publish", f"version {number} was removed: older than the newest {arguments.keep}")
    return path


def _serving(base_path: Path, served: rollout.Served | None) -> Path | None:
    """The version that serves now: the stable one, or else the newest."""
    complete = model_versions(base_path)
    stable = served.labels.get(rollout.STABLE) if served else None
    number = stable if stable in complete else complete[-1] if complete else None
    return base_path / str(number) if number is not None else None
