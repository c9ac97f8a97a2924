"""Where everything lies on disk, and how it is written so that it is never there in part.

A directory that a stage writes is built aside and renamed. It holds `manifest.json`, with the stage that made it, its
inputs and settings, and the SHA-256 of every file; and `COMPLETE`, written last, with the SHA-256 of the manifest. A
directory that lacks one of them, or does not match them, is not used.

    <workdir>/
      silos/<silo>/keys/            the silo's secrets (of client ids; of each run, until it is finished); never leave the silo
      silos/<silo>/ledger.jsonl     what the silo's clients have been charged, in all populations
      silos/<silo>/snapshots/<id>/  prepared data; snapshot.json beside them names the current one
      runs/<id>/                    base weights, state by round, metrics, evaluation; run.json in runs/ names the newest
      ledgers/<population>.jsonl    what every population has been charged
      models/<name>/<version>/      exported versions
"""

import fcntl
import functools
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from tff_pipeline.config import Config
from tff_pipeline.errors import ArtifactError, ConfigError

MANIFEST = "manifest.json"
COMPLETE = "COMPLETE"
_VERSIONED = (
    "tff-pipeline",
    "tensorflow",
    "tensorflow-text",
    "tensorflow-federated",
    "tensorflow-privacy",
    "tf-keras",
    "transformers",
    "apache-beam",
    "dp-accounting",
    "numpy",
)


class Workdir:
    """The layout above, as paths. Creates nothing."""

    def __init__(self, root: Path):
        self.root = root

    @classmethod
    def of_run(cls, run: Path) -> "Workdir":
        """The work directory that a run's folder lies in."""
        return cls(run.parent.parent)

    def silo(self, name: str) -> Path:
        return self.root / "silos" / name

    def silo_keys(self, name: str) -> Path:
        return self.silo(name) / "keys"

    def snapshots(self, name: str) -> Path:
        return self.silo(name) / "snapshots"

    def current_snapshot(self, name: str) -> Path:
        """The file that names the silo's current snapshot: {"id": ...}."""
        return self.silo(name) / "snapshot.json"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    def ledger(self, population: str) -> Path:
        return self.root / "ledgers" / f"{population}.jsonl"

    def model(self, name: str) -> Path:
        return self.root / "models" / name


def canonical_json(value: object) -> bytes:
    """`value` as JSON with sorted keys and no spaces: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def fingerprint(value: object) -> str:
    """16 hex digits (64 bits) that identify a JSON value."""
    return hashlib.sha256(canonical_json(value)).hexdigest()[:16]


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """The installed versions of the packages that an artifact depends on."""
    return dict(_installed_versions())


@functools.cache
def _installed_versions() -> dict[str, str]:
    """`versions`, read once a process: a manifest is written after every round, and the packages' files take longer than it."""
    installed = {}
    for package in _VERSIONED:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


def now() -> str:
    """UTC, ISO 8601, whole seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def sync_directory(path: Path) -> None:
    """Makes renames and new names in `path` survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def append_synced(handle: int, content: bytes) -> None:
    """Appends to an open file, on disk when it returns; where that fails, as on a full disk, nothing of `content` is left.

    A disk that becomes full takes a part of what is written, and says so only to the next write.
    """
    end = os.fstat(handle).st_size
    rest = memoryview(content)
    try:
        while rest:
            rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
    except BaseException:
        os.ftruncate(handle, end)
        raise


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Writes a file so that `path` holds either what it held before or all of `data`, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_json(path: Path, value: object) -> None:
    write_atomic(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n")


def read_json(path: Path) -> Any:
    """Raises ArtifactError where the file is missing, cannot be read or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file; the stage that writes it has not finished here.") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    except ValueError as error:
        raise ArtifactError(
            f"{path}: not valid JSON ({error}); expected what this project wrote there. Remove it and run its stage again."
        ) from None


@contextmanager
def staged(final: Path, manifest: Callable[[], Mapping[str, Any]]) -> Iterator[Path]:
    """Builds the directory `final` aside, and renames it when the block ends well.

    `manifest()` is called at the end of the block; the checksums of all files are added to what it returns. An
    existing complete `final` is an error; an incomplete one (there is none after a rename) is replaced. What killed
    attempts left is removed. Several processes may build the same artifact at once: the first to finish makes it, the
    others raise.

    Yields:
      The directory to write into.

    Raises:
      ArtifactError: if `final` is complete, before the block or after it.
    """
    if (final / COMPLETE).exists():
        raise ArtifactError(
            f"{final}: is there already and complete; artifacts are never overwritten. Remove it first if it must be made again."
        )
    final.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".staging-{final.name}-"
    for leftover in final.parent.glob(f"{prefix}*"):
        _remove_unless_in_use(leftover)
    aside, lock = _locked_directory(final.parent, prefix)
    try:
        yield aside
        seal(aside, manifest())
        if final.exists() and not is_complete(final):
            shutil.rmtree(final)
        _rename(aside, final)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    finally:
        os.close(lock)
    sync_directory(final.parent)


def _locked_directory(parent: Path, prefix: str) -> tuple[Path, int]:
    """A new directory, and the open handle that locks it until it is closed or its process ends, however that ends."""
    while True:
        directory = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
        try:
            lock = os.open(directory, os.O_RDONLY)
        except FileNotFoundError:  # another process took it for a leftover before it was locked
            continue
        fcntl.flock(lock, fcntl.LOCK_EX)
        if directory.exists():
            return directory, lock
        os.close(lock)


def _remove_unless_in_use(directory: Path) -> None:
    """Removes a staging directory that no process of this machine has locked."""
    try:
        lock = os.open(directory, os.O_RDONLY)
    except FileNotFoundError:  # finished or removed meanwhile
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(directory)
    except BlockingIOError:
        pass
    finally:
        os.close(lock)


def _rename(aside: Path, final: Path) -> None:
    try:
        os.rename(aside, final)
    except OSError:
        if is_complete(final):
            raise ArtifactError(
                f"{final}: another process has finished it meanwhile; artifacts are never overwritten. Use it as it is: what this process made is removed."
            ) from None
        raise


def seal(directory: Path, manifest: Mapping[str, Any], *, without: Collection[str] = ()) -> None:
    """Writes manifest (with the checksum and size of every file) and completion mark, and syncs everything to disk.

    `without` names what lies in the directory and is no part of it.
    """
    directory.chmod(0o755)
    files = {}
    for path in sorted(directory.rglob("*")):
        if path.relative_to(directory).parts[0] in without:
            continue
        if path.is_dir():
            sync_directory(path)
        elif path.name not in (MANIFEST, COMPLETE) or path.parent != directory:
            with path.open("rb") as file:
                os.fsync(file.fileno())
            files[path.relative_to(directory).as_posix()] = {"sha256": sha256_file(path), "bytes": path.stat().st_size}
    write_json(directory / MANIFEST, {**manifest, "created": now(), "versions": versions(), "files": files})
    write_atomic(directory / COMPLETE, sha256_file(directory / MANIFEST).encode() + b"\n")


def is_complete(directory: Path) -> bool:
    return (directory / COMPLETE).exists() and (directory / MANIFEST).exists()


def read_manifest(directory: Path, *, check_files: bool = False) -> dict[str, Any]:
    """The manifest of a complete artifact; with `check_files` every file is read and compared too.

    Raises:
      ArtifactError: naming what is missing or does not match.
    """
    if not is_complete(directory):
        raise ArtifactError(
            f"{directory}: not complete (no {COMPLETE} beside {MANIFEST}); expected the finished output of a stage. Run that stage again."
        )
    try:
        if sha256_file(directory / MANIFEST) != (directory / COMPLETE).read_text().strip():
            raise ArtifactError(
                f"{directory / MANIFEST}: has changed since it was written (its SHA-256 differs from {COMPLETE}). Remove the directory and run its stage again."
            )
        manifest = read_json(directory / MANIFEST)
        if check_files:
            _compare_files(directory, manifest["files"])
    except OSError as error:
        raise _unreadable(directory, error) from None
    return manifest


def _compare_files(directory: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    for name, expected in files.items():
        path = directory / name
        if not path.is_file():
            raise ArtifactError(f"{path}: missing; {MANIFEST} lists it. Remove the directory and run its stage again.")
        if path.stat().st_size != expected["bytes"] or sha256_file(path) != expected["sha256"]:
            raise ArtifactError(
                f"{path}: has changed since it was written (size or SHA-256 differs from {MANIFEST}). Remove the directory and run its stage again."
            )


def _unreadable(path: Path, error: OSError) -> ArtifactError:
    return ArtifactError(
        f"{error.filename or path}: cannot be read ({error.strerror or type(error).__name__}). Check that this account may read it, and the disk."
    )


def model_versions(base: Path) -> list[int]:
    """The complete versions under a model's base path, ascending. What an interrupted export left has no such name."""
    return [version for version in version_numbers(base) if is_complete(base / str(version))]


def newest_version(path: Path) -> Path:
    """The newest complete version under a model's base path; or `path` itself where that is a version.

    Raises:
      ArtifactError: if there is none.
    """
    if (path / MANIFEST).exists():
        return path
    versions = model_versions(path)
    if not versions:
        problem = "holds no complete version of a model" if path.is_dir() else "is not there"
        raise ArtifactError(
            f"{path}: {problem}; expected a folder with numbered versions. Run `tff-pipeline export` first."
        )
    return path / str(versions[-1])


def model_base(config: Config) -> Path:
    """The base path of a configuration's model: where it is exported to, asked and published from.

    Raises:
      ConfigError: if it is not a folder of this machine.
    """
    if "://" in config.export.base_path:
        raise ConfigError(
            f"{config.path}: export.base_path is {config.export.base_path!r}; expected a folder, since a version is put there by a rename. "
            "Export to a folder, and copy the version with saved_model.pb last."
        )
    return (
        Path(config.export.base_path) if config.export.base_path else Workdir(config.workdir).model(config.model_name)
    )


def version_numbers(base: Path) -> list[int]:
    """Every number that is taken under a model's base path, complete or not, ascending."""
    names = [path.name for path in base.iterdir()] if base.is_dir() else []
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def secret(path: Path, derived: Callable[[], bytes] | None = None) -> bytes:
    """The 32-byte secret in `path`, made on first use: from the operating system, or `derived` in a seeded run."""
    try:
        value = path.read_bytes()
    except FileNotFoundError:
        value = derived() if derived else os.urandom(32)
        write_atomic(path, value, mode=0o600)
    if len(value) != 32:
        raise ArtifactError(
            f"{path}: holds {len(value)} bytes; expected a secret of 32 bytes. Restore it from a backup: without it clients cannot be recognized."
        )
    return value
