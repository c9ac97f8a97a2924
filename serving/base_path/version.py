"""What a version must be to be published, and the errors about one that is not."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tff_pipeline.artifacts import COMPLETE, MANIFEST, read_manifest
from tff_pipeline.errors import ArtifactError

SAVED_MODEL = "saved_model.pb"  # a server loads nothing that lacks it


def checked_manifest(version: Path) -> dict[str, Any]:
    """The manifest of a version whose files are all present and unchanged, without any other file.

    Raises:
      ArtifactError: naming the file that is missing, was changed or does not belong to the version.
    """
    manifest = read_manifest(version, check_files=True)
    if manifest.get("kind") != "model":
        raise ArtifactError(
            f"{version}: holds {manifest.get('kind')!r}; expected a version that `tff-pipeline export` made."
        )
    present = {path.relative_to(version).as_posix() for path in version.rglob("*") if not path.is_dir()}
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
