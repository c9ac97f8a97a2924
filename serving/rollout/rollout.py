"""The commands of a rollout: each holds the lock of the base path, and takes the steps to the labels that it wants."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from serving import base_path as base_paths
from serving import lock
from serving.base_path import BasePath, ObjectStore
from serving.client import AVAILABLE, ServerError
from serving.rollout import followers, labels
from serving.rollout.config_file import ModelsConfigFile
from serving.rollout.labels import CANARY, PREVIOUS, STABLE, Move, Served, Unfinished
from serving.rollout.servers import Servers
from tff_pipeline.errors import ArtifactError, ConfigError
from tff_pipeline.progress import Progress


class Rollout:
    """One model in one models.config, and the servers that follow it (REST addresses; without any, nothing is awaited).

    Every command holds the lock of the base path while it works. All raise, beside what they name:
      ConfigError: if models.config cannot be read, or does not name the model.
      LockedError, LockLostError: if another command is at work, or has taken over.
      PipelineError: if a server does not follow a step in time; then the file is restored.
    """

    def __init__(
        self,
        file: Path,
        name: str,
        *,
        servers: Sequence[str] = (),
        timeout_s: float = 300.0,
        lock_wait_s: float = lock.WAIT_S,
        command: str = "a rollout",
        progress: Progress,
    ):
        self._file = ModelsConfigFile(file, name, command=command, lock_wait_s=lock_wait_s, progress=progress)
        self._servers = Servers(tuple(servers), name, file=self._file.path, timeout_s=timeout_s)
        self.name = name
        self._lock_wait_s, self._command, self._progress = lock_wait_s, command, progress
        self._base_lock: lock.Lock | None = None

    # -- state -------------------------------------------------------------------------------------------------------

    def served(self) -> Served:
        """Raises ConfigError if the file cannot be read, or does not name the model."""
        return self._file.served()

    def loaded(self) -> set[int]:
        """The versions that any server has available now; raises PipelineError if one cannot be asked."""
        return self._servers.loaded()

    def base_path(self) -> BasePath:
        """Raises ConfigError as `served` does."""
        return base_paths.parse(self._file.base_path())

    def _complete(self) -> list[int]:
        """The complete versions under the base path, ascending."""
        return self.base_path().complete_versions()

    # -- the commands ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def locked(self) -> Iterator[lock.Lock]:
        """Holds the lock of the base path until the block ends, for several commands in one, as `publish --canary` is."""
        if self._base_lock is not None:
            yield self._base_lock
            return
        with self._lock() as base_lock:
            self._base_lock = base_lock
            try:
                self._file.begin()
                yield base_lock
            finally:
                self._base_lock = None

    def pin(self) -> None:
        """Where the newest version is served, names it in the file, so that a newer one does not replace it."""
        with self.locked():
            before = self.served()
            if not before.versions and (serving := self._serving(before)) is not None:
                self._move("pin", before, {STABLE: serving})

    def canary(self, version: int) -> Served:
        """Loads a published version beside the stable one, and labels it `canary`, whatever it was before.

        Where nothing serves yet, the version becomes the stable one. A version that is the stable one already stays that.

        Raises:
          ArtifactError: if this version, or the stable one, is not complete under the base path.
        """
        with self.locked():
            self.base_path().check_complete(version)
            before = self.served()
            complete = self._complete()
            stable = before.labels.get(STABLE, self._serving(before, other_than=version))
            if stable in (None, version):
                self._progress.event("rollout", f"version {version} is the stable one; it gets no label `canary`")
                return self._move("canary", before, {**before.usable_labels(complete), STABLE: version})
            if stable not in complete:
                raise ArtifactError(
                    f"{self._file.path}: the stable version {stable} is not complete under {self.base_path()}; expected it "
                    f"beside a canary. `tff-pipeline promote --version {version}` makes {version} the stable one."
                )
            if STABLE not in before.labels:
                before = self._move("pin", before, {**before.labels, STABLE: stable})
            return self._move("canary", before, {**before.usable_labels(complete), CANARY: version})

    def promote(self, version: int | None = None) -> Served:
        """Makes a version the stable one, by default the canary; the former stable one stays loaded, as `previous`.

        Raises:
          ArtifactError: if no version is given and there is no canary, or the version is not complete under the base path.
        """
        with self.locked():
            before = self.served()
            if version is None and before.has_labels_of("promote"):
                return self._move("promote", before, before.labels)
            version = version if version is not None else before.labels.get(CANARY)
            if version is None:
                raise ArtifactError(
                    f"{self._file.path}: {self.name} has no canary; expected one to promote. {self._ways(before)}"
                )
            self.base_path().check_complete(version)
            former = before.labels.get(STABLE) if STABLE in before.labels else self._serving(before)
            usable = before.usable_labels(self._complete())
            return self._move("promote", before, labels.promoted(usable, version, former))

    def rollback(self, version: int | None = None) -> Served:
        """Drops the canary; or where there is none, returns to the previous version.

        With a version: takes that one back if it is the canary or the stable one, and else changes nothing; so it can be
        run twice.

        Raises:
          ArtifactError: if there is no version to return to.
        """
        with self.locked():
            before = self.served()
            is_stopped_canary = before.unfinished is not None and before.unfinished.command == "canary"
            if version is None and before.has_labels_of("rollback"):
                after = before.labels  # they are set; only the versions without a label are to be dropped
            elif CANARY in before.labels and version in (None, before.labels[CANARY]):
                after = labels.without_canary(before.labels)
            elif version is None and is_stopped_canary:
                after = before.labels  # that canary was loaded, and not labelled
            elif version is None or before.labels.get(STABLE) == version:
                self._check_previous(before)
                after = labels.returned(before.labels)
            else:
                after = before.labels
            return self._move("rollback", before, after)

    def _check_previous(self, before: Served) -> None:
        """Raises ArtifactError if there is no previous version to return to."""
        if PREVIOUS not in before.labels:
            raise ArtifactError(
                f"{self._file.path}: {self.name} has no canary and no previous version; there is nothing to go back to. "
                f"{self._ways(before)}"
            )
        if before.labels[PREVIOUS] not in self._complete():
            raise ArtifactError(
                f"{self.base_path()}/{before.labels[PREVIOUS]}: the previous version is not complete; there is nothing "
                f"to go back to. {self._ways(before)}"
            )

    def _ways(self, before: Served) -> str:
        complete = ", ".join(map(str, self._complete())) or "none yet"
        return (
            f"It serves {before}. `tff-pipeline canary --version N` or `promote --version N` takes any version that is "
            f"published: {complete}."
        )

    # -- how a command gets there ------------------------------------------------------------------------------------

    def _serving(self, before: Served, other_than: int | None = None) -> int | None:
        """Which version serves where no label says so: the newest that every server has available, or else the newest.

        A version that a server could not load does not serve.
        """
        complete = [version for version in self._complete() if version != other_than]
        if before.versions:
            complete = [version for version in complete if version in before.versions]
        with contextlib.suppress(ServerError):
            servers = self._servers.states()
            available = [
                version for version in complete if all(server.states.get(version) == AVAILABLE for server in servers)
            ]
            if servers and available:
                return available[-1]
            complete = [version for version in complete if not any(version in server.failures for server in servers)]
        return complete[-1] if complete else None

    def _move(self, command: str, before: Served, after: Mapping[str, int]) -> Served:
        """Takes the steps that lead to the labels `after`, from any state of the file."""
        move = Move(before, Unfinished(self.name, command, after))
        if not move.target:
            raise ArtifactError(f"{self._file.path}: {self.name} would have no version. {self._ways(before)}")
        self._check_servers(move)
        failed = {version for version in move.new if self._servers.has_failed(version)}
        with self._undone_on_failure():
            if failed & set(before.versions or failed):
                self._step("unload", move.unload(failed, self._serving(before)))
            for version in failed:
                self._servers.await_forgotten(version)
            earlier_failures = {version: self._servers.failures(version) for version in move.new}
            if move.missing or failed:
                self._step("load", move.load)
            for version in move.new:
                self._servers.await_loaded(version, earlier_failures[version])
            if move.is_in_steps:
                self._step("label", move.label)
                self._servers.await_labels(move.labels)
                self._step("drop", move.after)
            else:
                self._step("label" if move.labels != before.labels else "drop", move.after)
                self._servers.await_labels(move.labels)
            return move.after

    def _check_servers(self, move: Move) -> None:
        """Without a server to ask, no label may be moved to a version that is not known to be loaded."""
        unknown = [version for version in move.missing if move.before.versions or version != self._serving(move.before)]
        if unknown and not self._servers.addresses:
            raise ConfigError(
                f"{self._file.path}: version {unknown[0]} is not loaded, and a server refuses a label for a version that is "
                "not; expected --server, to wait until it is."
            )

    def _step(self, step: str, served: Served) -> None:
        """Writes the model's part of the file, unless it says so already."""
        if self._base_lock is None:
            raise RuntimeError("models.config is written only under the lock of the base path.")
        if self._file.write(served, self._base_lock):
            self._progress.event(
                "rollout",
                f"{step}: {served}",
                step=step,
                versions=list(served.versions),
                labels=dict(served.labels),
            )

    def _undone_on_failure(self) -> contextlib.AbstractContextManager[None]:
        if self._base_lock is None:
            raise RuntimeError("models.config is written only under the lock of the base path.")
        return self._file.restored_on_failure(self._base_lock)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[lock.Lock]:
        base = self.base_path()
        command, wait_s, progress = self._command, self._lock_wait_s, self._progress
        if isinstance(base, ObjectStore):  # it has no lock; then one command at a time changes this model in this file
            file = self._file.path
            folder = file.with_name(f".{file.name}.{quote(self.name, safe='')}.publish")
            with lock.hold(folder, command=command, wait_s=wait_s, progress=progress) as base_lock:
                yield base_lock
            return
        if not base.path.is_dir():
            raise ConfigError(
                f"{self._file.path}: has base_path {base} for {self.name}, which is no folder here; expected the versions "
                "under the same path as on the server. Mount them there."
            )
        with lock.lock_base_path(base.path, command=command, wait_s=wait_s, progress=progress) as base_lock:
            followers.register(base.path, self._file.path, base_lock)
            yield base_lock
