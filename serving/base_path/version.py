"""What a version must be to be published, and the errors about one that is not."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tff_pipeline.artifacts import COMPLETE, MANIFEST, read_manifest
from tff_pipeline.errors import ArtifactError

SAVED_MODEL = "saved_model.pb"  # a server loads nothing that lacks it


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns an OSError of the block, which reads under `path`, into an ArtifactError."""
    try:
        yield
    except OSError as error:
        raise ArtifactError(
            f"{error.filename or path}: cannot be read ({error.strerror or error}); expected files and folders that this user "
            "may read. Give this user permission, or run the command as another one."
        ) from error


def checked_manifest(version: Path) -> dict[str, Any]:
    """The manifest of a version whose files are all present and unchanged, without any other file.

    Raises:
      ArtifactError: naming the file that is missing, cannot be read, was changed or does not belong to the version.
    """
    with reading(version):
        manifest = read_manifest(version, check_files=True)
        present = {path.relative_to(version).as_posix() for path in version.rglob("*") if not path.is_dir()}
    if manifest.get("kind") != "model":
        raise ArtifactError(
            f"{version}: holds {manifest.get('kind')!r}; expected a version that `tff-pipeline export` made."
        )
    if surplus := sorted(present - set(file_names(manifest))):
        raise ArtifactError(
            f"{version / surplus[0]}: is not in {MANIFEST}; expected only what was exported and verified. Remove it, or "
            "export again."
        )
    return manifest


def file_names(manifest: dict[str, Any]) -> tuple[str, ...]:
    """The names of a version's files, relative to its folder."""
    return (*manifest["files"], MANIFEST, COMPLETE)


def other_contents(final: str | Path, version: Path) -> ArtifactError:
    """The error about a number that is taken by another version."""
    return ArtifactError(
        f"{final}: exists already, with other contents than {version}; a published version is never overwritten. Export "
        "the run again to get a new number."
    )


def not_published(base: str | Path, version: int, published: Sequence[int]) -> ArtifactError:
    """The error about a version that is not complete under its base path."""
    numbers = ", ".join(map(str, published)) or "none"
    return ArtifactError(
        f"{base}/{version}: is not published; expected one of the versions there ({numbers}). Run `tff-pipeline publish` "
        "first."
    )
