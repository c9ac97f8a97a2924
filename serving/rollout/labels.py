"""The states of a rollout: which versions are loaded, which labels they have, and the steps from one state to another."""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path

STABLE, CANARY, PREVIOUS = "stable", "canary", "previous"


@dataclasses.dataclass(frozen=True)
class Unfinished:
    """A command that has not taken its last step: it is at work, or was stopped. It shall lead to `labels`."""

    model: str
    command: str
    labels: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Served:
    """A model's part of models.config. Without versions the newest is served, and labels have no meaning."""

    base_path: Path
    versions: tuple[int, ...] = ()
    labels: Mapping[str, int] = dataclasses.field(default_factory=dict)
    unfinished: Unfinished | None = None

    def has_labels_of(self, command: str) -> bool:
        """Whether this command has set its labels, and was stopped before its last step."""
        return (
            self.unfinished is not None and self.unfinished.command == command and self.unfinished.labels == self.labels
        )

    def usable_labels(self, complete: Collection[int]) -> dict[str, int]:
        """The labels, without a canary or previous version that is not complete under the base path any more."""
        return {
            label: version
            for label, version in self.labels.items()
            if label not in (CANARY, PREVIOUS) or version in complete
        }

    def __str__(self) -> str:
        labels = {
            version: ", ".join(sorted(label for label, labelled in self.labels.items() if labelled == version))
            for version in self.versions
        }
        shown = "; ".join(f"{version} ({labels[version] or 'loaded'})" for version in self.versions)
        return shown or "the newest version"


def promoted(labels: Mapping[str, int], version: int, former: int | None) -> dict[str, int]:
    """Labels with `version` as the stable one, and the `former` stable version, if any, as the previous one."""
    after = {**labels, STABLE: version}
    if former is not None and former != version:
        after[PREVIOUS] = former
    return {
        label: labelled for label, labelled in after.items() if label not in (CANARY, PREVIOUS) or labelled != version
    }


def without_canary(labels: Mapping[str, int]) -> dict[str, int]:
    return {label: version for label, version in labels.items() if label != CANARY}


def returned(labels: Mapping[str, int]) -> dict[str, int]:
    """Labels with the previous version as the stable one."""
    return {**{label: version for label, version in labels.items() if label != PREVIOUS}, STABLE: labels[PREVIOUS]}


@dataclasses.dataclass(frozen=True)
class Move:
    """The way from `before` to the labels that a command wants, in the steps that the server needs."""

    before: Served
    unfinished: Unfinished

    @property
    def labels(self) -> Mapping[str, int]:
        return self.unfinished.labels

    @property
    def target(self) -> set[int]:
        """The versions that stay loaded at the end."""
        labelled = set(self.labels.values())
        if STABLE in self.labels:
            return labelled
        # Written by hand: only a version that has lost its label is dropped.
        return labelled | set(self.before.versions) - set(self.before.labels.values())

    @property
    def missing(self) -> list[int]:
        """The versions of the target that the file does not name, ascending."""
        return sorted(self.target - set(self.before.versions))

    @property
    def new(self) -> list[int]:
        """The versions that get a label or are loaded, ascending."""
        return sorted(set(self.labels.values()) - set(self.before.labels.values()) | set(self.missing))

    @property
    def is_in_steps(self) -> bool:
        """Whether labels change and versions are dropped, which takes two steps."""
        return self.labels != self.before.labels and self.load.versions != self.after.versions

    def unload(self, failed: Collection[int], serving: int | None) -> Served:
        """Before load: without the versions whose loading has failed, so that the server tries them again.

        `serving` is the version that serves where the file names none.
        """
        named = self.before.versions or ((serving,) if serving is not None else ())
        left = tuple(version for version in named if version not in failed)
        return dataclasses.replace(self.before, versions=left, unfinished=self.unfinished)

    @property
    def load(self) -> Served:
        """The old labels, and the versions of both the old and the new ones."""
        both = tuple(sorted({*self.before.versions, *self.before.labels.values(), *self.target}))
        return dataclasses.replace(self.before, versions=both, unfinished=self.unfinished)

    @property
    def label(self) -> Served:
        """The new labels, and the versions of both."""
        return dataclasses.replace(self.after, versions=self.load.versions, unfinished=self.unfinished)

    @property
    def after(self) -> Served:
        """The new labels, and their versions only."""
        return dataclasses.replace(
            self.before, versions=tuple(sorted(self.target)), labels=dict(self.labels), unfinished=None
        )
