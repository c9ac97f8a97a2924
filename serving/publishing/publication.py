"""How a version gets under a base path: gates, then the copy, then the labels, then the removal of old versions."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from serving import lock
from serving.base_path import Folder, folder, object_store
from serving.base_path.object_store import ObjectStore
from serving.publishing import gates
from serving.rollout import STABLE, Rollout, followers
from tff_pipeline.artifacts import read_manifest
from tff_pipeline.config import GatesSection
from tff_pipeline.errors import ConfigError
from tff_pipeline.progress import Progress


@dataclasses.dataclass(frozen=True)
class Following:
    """The models.config that serves a version, and whether the version becomes a canary in it."""

    file: Path
    rollout: Rollout
    canary: bool

    def follows(self, base_path: Path) -> bool:
        return self.rollout.served().base_path.resolve() == base_path.resolve()


@dataclasses.dataclass(frozen=True)
class Publication:
    """A version that is to be published. `gates` is None where no configuration states any."""

    version: Path
    gates: GatesSection | None
    command: str
    lock_wait_s: float
    progress: Progress

    def to_object_store(self, address: str) -> str:
        """Gates, then the upload; returns the published address.

        Raises:
          GateError: if the version does not pass; and what `object_store.upload` raises.
        """
        if self.gates is not None:
            with ObjectStore(address.rstrip("/")).newest_copy() as serving:
                self._pass_gates(self.gates, serving)
        return object_store.upload(self.version, address, wait_s=self.lock_wait_s, progress=self.progress)

    def to_folder(self, base_path: Path, *, following: Following | None, keep: int | None) -> Path:
        """Gates, then the copy, then the labels, then the removal of all but the newest `keep` versions; returns the folder.

        All of it is under the lock of the base path.

        Raises:
          GateError: if the version does not pass; and what `folder.publish` and `Rollout` raise.
        """
        is_followed = following is not None and self._check_followed(following, base_path)
        is_new = not base_path.is_dir()
        if is_new:
            if self.gates is not None:
                self._pass_gates(self.gates, None)
            folder.create(base_path)
        if following is not None and following.canary:
            locked = following.rollout.locked()
        else:
            locked = lock.lock_base_path(
                base_path, command=self.command, wait_s=self.lock_wait_s, progress=self.progress
            )
        with locked as base_lock:
            if following is not None and is_followed:
                followers.register(base_path, following.file, base_lock)
            serving = _serving(base_path, following.rollout.served().labels if following is not None else {})
            if self.gates is not None and not (is_new and serving is None):
                self._pass_gates(self.gates, serving)
            return self._publish_locked(base_path, base_lock, following, keep)

    def _check_followed(self, following: Following, base_path: Path) -> bool:
        """Whether models.config names this base path; raises ConfigError if it does not, and has to for a canary."""
        is_followed = following.follows(base_path)
        if following.canary and not is_followed:
            named = following.rollout.served().base_path
            raise ConfigError(
                f"{following.file}: has base_path {named} for {following.rollout.name}; expected {base_path}, where it is published to. "
                "Correct the file, or --to."
            )
        return is_followed

    def _publish_locked(
        self, base_path: Path, base_lock: lock.Lock, following: Following | None, keep: int | None
    ) -> Path:
        if following is not None and following.canary:
            following.rollout.pin()
        published = folder.publish(self.version, base_path, base_lock=base_lock)
        if following is not None and following.canary:
            following.rollout.canary(int(published.name))
        if keep is not None:
            needed = followers.needed(base_path) | {int(published.name)}
            if following is not None:
                served = following.rollout.served()
                needed |= {*served.versions, *served.labels.values(), *following.rollout.loaded()}
            for number in folder.retain(base_path, keep, needed=sorted(needed), base_lock=base_lock):
                self.progress.event("publish", f"version {number} was removed: older than the newest {keep}")
        return published

    def _pass_gates(self, section: GatesSection, serving: Path | None) -> None:
        """Raises GateError if the version does not pass."""
        serving_manifest = read_manifest(serving) if serving is not None else None
        passed = gates.check(read_manifest(self.version), serving_manifest, section)
        for sentence in (*passed, *gates.check_changes(self.version, serving, section)):
            self.progress.event("gate", f"passed: {sentence}")


def _serving(base_path: Path, labels: Mapping[str, int]) -> Path | None:
    """The version that serves now: the stable one, or else the newest."""
    complete, stable = Folder(base_path).complete_versions(), labels.get(STABLE)
    number = stable if stable in complete else complete[-1] if complete else None
    return base_path / str(number) if number is not None else None
