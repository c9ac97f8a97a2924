"""Puts an exported version under the base path that a model server watches: whole, or not at all.

TensorFlow Serving loads a version as soon as it sees a folder with a number for a name, and does not look whether it is
whole: one without variables it serves without weights, in silence. So a version is copied to `.staging-...` beside its
place, compared with its manifest file by file, synced to disk, and renamed.
"""

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tff_pipeline import config as configuration
from tff_pipeline.artifacts import (
    COMPLETE,
    MANIFEST,
    model_base,
    newest_version,
    read_manifest,
    sync_directory,
    version_numbers,
)
from tff_pipeline.errors import ArtifactError
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
        "--to", metavar="DIR", type=Path, required=True, help="the base path that the model server watches"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    place = arguments.model or model_base(configuration.load(arguments.config, arguments.overrides))
    path = publish(newest_version(place), arguments.to)
    Progress().event("publish", f"version {path.name} is in {path}", version=int(path.name), path=str(path))
    print(json.dumps({"path": str(path), "version": int(path.name)}) if arguments.json else path)
    return 0
