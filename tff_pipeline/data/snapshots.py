"""A silo's prepared data as the later stages read it: a snapshot, its clients, and batches of its examples.

What comes in is a snapshot folder that `prepare` wrote (records.py has the format). What goes out are readers that find
one client without reading the others, and batches in which texts of similar length lie together. Labels are numbered
by each silo for itself; `label_map` turns its numbers into those of a model that several silos share.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tff_pipeline.artifacts import Workdir, read_json, read_manifest, sha256_file
from tff_pipeline.config import Config
from tff_pipeline.data.records import GROUPS, IGNORED, LABELS, LENGTHS, TOKENS, ClientReader, decode_client, index_name
from tff_pipeline.data.tokenization import Tokenizer
from tff_pipeline.errors import ArtifactError

_PREPARE = "Run `tff-pipeline prepare` with the same configuration."


@dataclasses.dataclass(frozen=True)
class Batch:
    """Examples of one split, padded to the longest among them.

    Attributes:
      tokens: int32 [b, s], padded with the tokenizer's pad id.
      labels: int64 [b], or for token classification int64 [b, s] with IGNORED where there is none; global numbers.
      groups: int64 [b], indices into the snapshot's groups.
      clients: int64 [b], the row in the index of the client each example belongs to.
      positions: int64 [b], the position of each example when all clients are read in the order of the index; what is
        computed by batch can be put back in that order with `result[batch.positions] = ...`.
    """

    tokens: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    clients: np.ndarray
    positions: np.ndarray


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """One silo's prepared data: its folder and its manifest."""

    path: Path
    manifest: dict[str, Any]

    @property
    def silo(self) -> str:
        return self.manifest["silo"]

    @property
    def id(self) -> str:
        return self.manifest["id"]

    @property
    def labels(self) -> tuple[str, ...]:
        """The silo's labels; the numbers in its records are indices into them."""
        return tuple(self.manifest["labels"])

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(self.manifest["groups"])

    @property
    def task(self) -> str:
        """What it was prepared for: "sequence_classification" or "token_classification"."""
        return self.manifest["task"]

    def clients(self, split: str) -> int:
        """Number of clients in a split; 0 where the silo has no such split."""
        return self.manifest["splits"].get(split, {}).get("clients", 0)

    def count(self, split: str) -> int:
        """Number of examples in a split; 0 where the silo has no such split."""
        return self.manifest["splits"].get(split, {}).get("examples", 0)

    def reader(self, split: str) -> ClientReader:
        """The clients of a split; one without any where the silo has no such split.

        Raises:
          ArtifactError: if the index is missing or damaged.
        """
        shards = self.manifest["splits"].get(split, {}).get("shards", [])
        if shards:
            # Records carry their own checksums; the index, which says where they are, has only the manifest's.
            _check_file(self.path, index_name(split), self.manifest["files"], content=True)
        return ClientReader(self.path, split, shards)

    def shards(self, split: str) -> list[Path]:
        """The files of a split. Their contents are checked here, since who reads them as a whole has no index to go by.

        Raises:
          ArtifactError: if one of them is missing or damaged.
        """
        names = self.manifest["splits"].get(split, {}).get("shards", [])
        for name in names:
            _check_file(self.path, name, self.manifest["files"], content=True)
        return [self.path / name for name in names]

    def checksums(self, split: str) -> dict[str, str]:
        """The SHA-256 of every file of a split, by name, compared with the files themselves; empty where there is none.

        Raises:
          ArtifactError: if one of them is missing or damaged.
        """
        names = [path.name for path in self.shards(split)]
        if names:
            _check_file(self.path, index_name(split), self.manifest["files"], content=True)
            names.append(index_name(split))
        return {name: self.manifest["files"][name]["sha256"] for name in names}

    def label_map(self, labels: Sequence[str]) -> np.ndarray:
        """The index of each of the silo's labels in `labels`: int64 [silo labels].

        Raises:
          ArtifactError: if `labels` lacks one of them.
        """
        index_of = {label: index for index, label in enumerate(labels)}
        unknown = [label for label in self.labels if label not in index_of]
        if unknown:
            raise ArtifactError(
                f"{self.path}: {len(unknown)} of the silo's {len(self.labels)} labels are not among the {len(index_of)} expected, {unknown[0]!r} first. "
                "Add them to task.labels, or train again: a model only knows the labels it was trained with."
            )
        return np.array([index_of[label] for label in self.labels], np.int64)

    def decoded_clients(self, split: str) -> Iterator[dict[str, np.ndarray]]:
        """The arrays of every client (records.decode_client), in the order of the index."""
        with self.reader(split) as reader:
            for row in range(len(reader)):
                yield decode_client(reader.read(row))

    def examples(
        self, split: str, label_map: np.ndarray, *, pad_id: int, batch_size: int = 256, window: int = 32_768
    ) -> Iterator[Batch]:
        """All examples of a split once, in batches for evaluation.

        Clients share batches, so the last bits of what a model says about one client's text depend on the others' texts.
        Nothing that enters a round of training may be computed from these batches: its sensitivity would not be bounded.

        Examples are sorted by length within windows of about `window` of them, so that there is little padding and memory
        stays bounded.

        Args:
          split: its name.
          label_map: from `label_map`.
          pad_id: what tokens are padded with.
          batch_size: examples in a batch, at most.
          window: examples in memory at a time, give or take one client.
        """
        waiting: list[_Example] = []
        position = 0
        for client, arrays in enumerate(self.decoded_clients(split)):
            waiting += _split_client(arrays, map_labels(arrays[LABELS], label_map), client, position)
            position += len(arrays[LENGTHS])
            if len(waiting) >= window:
                yield from _batches(waiting, pad_id, batch_size)
                waiting = []
        yield from _batches(waiting, pad_id, batch_size)


class RemoteSnapshot(Snapshot):
    """What a silo elsewhere says of its snapshot: its manifest in part, and no data."""

    @classmethod
    def told(
        cls,
        *,
        silo: str,
        id: str,
        task: str,
        tokenizer: str,
        labels: Sequence[str],
        train: Mapping[str, Any] | None,
        checksums: Mapping[str, str],
    ) -> "RemoteSnapshot":
        """A snapshot of which only this is known; see `federation.messages.Facts`."""
        manifest = {
            "silo": silo,
            "id": id,
            "task": task,
            "tokenizer": {"fingerprint": tokenizer},
            "labels": list(labels),
            "groups": [],
            "splits": {} if train is None else {"train": dict(train)},
            "files": {name: {"sha256": digest} for name, digest in checksums.items()},
        }
        return cls(Path(f"at silo {silo}"), manifest)

    def reader(self, split: str) -> ClientReader:
        raise self._elsewhere()

    def shards(self, split: str) -> list[Path]:
        raise self._elsewhere()

    def checksums(self, split: str) -> dict[str, str]:
        """What the silo said."""
        return {name: file["sha256"] for name, file in self.manifest["files"].items()}

    def _elsewhere(self) -> ArtifactError:
        return ArtifactError(
            f"silo {self.silo}: its data are elsewhere, and were to be read here; expected a silo of this process."
        )


def load_snapshot(workdir: Workdir, silo: str) -> Snapshot:
    """The silo's current snapshot.

    Files are checked for presence and size here; their contents when they are read.

    Raises:
      ArtifactError: if the silo has not been prepared, or the snapshot is incomplete or damaged.
    """
    current = workdir.current_snapshot(silo)
    if not current.exists():
        raise ArtifactError(f"silo {silo}: has no prepared data ({current} is not there). {_PREPARE}")
    return open_snapshot(workdir.snapshots(silo) / str(read_json(current).get("id")))


def open_snapshot(path: Path) -> Snapshot:
    """The snapshot in a folder, current or not.

    Raises:
      ArtifactError: if there is none, or it is incomplete or damaged.
    """
    manifest = read_manifest(path)
    if manifest.get("kind") != "snapshot":
        raise ArtifactError(f"{path}: holds {manifest.get('kind')!r}; expected a silo's snapshot. {_PREPARE}")
    missing = {"silo", "id", "labels", "groups", "task", "tokenizer", "splits"} - manifest.keys()
    if missing:
        raise ArtifactError(
            f"{path}: the manifest lacks {', '.join(sorted(missing))}; expected a snapshot of this version. Remove it. {_PREPARE}"
        )
    for name in manifest["files"]:
        _check_file(path, name, manifest["files"], content=False)
    return Snapshot(path, manifest)


def union_labels(snapshots: Sequence[Snapshot]) -> tuple[str, ...]:
    """Every label that any silo has, sorted: the order does not depend on the order of the silos."""
    return tuple(sorted({label for snapshot in snapshots for label in snapshot.labels}))


def map_labels(labels: np.ndarray, label_map: np.ndarray) -> np.ndarray:
    """The silo's label numbers as global ones; IGNORED stays IGNORED."""
    if not len(label_map):
        return np.full_like(labels, IGNORED)
    return np.where(labels == IGNORED, IGNORED, label_map[np.maximum(labels, 0)])


def check_compatible(snapshots: Sequence[Snapshot], tokenizer: Tokenizer, config: Config) -> None:
    """Refuses snapshots that a model of this tokenizer and configuration cannot be trained on or asked about.

    Raises:
      ArtifactError: naming the silo, what it was prepared with and what is expected.
    """
    for snapshot in snapshots:
        prepared_with = snapshot.manifest["tokenizer"]["fingerprint"]
        if prepared_with != tokenizer.fingerprint:
            raise ArtifactError(
                f"{snapshot.path}: silo {snapshot.silo} was prepared with tokenizer {prepared_with}; the model's is {tokenizer.fingerprint} "
                f"(vocabulary, lower-casing or prepare.max_length differ). {_PREPARE}"
            )
        if snapshot.task != config.task.kind:
            raise ArtifactError(
                f"{snapshot.path}: silo {snapshot.silo} was prepared for {snapshot.task}; the configuration's task.kind is {config.task.kind}. {_PREPARE}"
            )


@dataclasses.dataclass(frozen=True)
class _Example:
    tokens: np.ndarray
    labels: np.ndarray
    group: int
    client: int
    position: int


def _split_client(arrays: dict[str, np.ndarray], labels: np.ndarray, client: int, position: int) -> Iterator[_Example]:
    """A client's record as single examples; `labels` are its labels in global numbers."""
    lengths, groups = arrays[LENGTHS], arrays[GROUPS]
    ends = np.cumsum(lengths)
    # One label an example, or one a token. Every example has [CLS] and [SEP], so the two numbers differ.
    by_token = len(labels) == len(arrays[TOKENS])
    for index, (start, end) in enumerate(zip(ends - lengths, ends, strict=True)):
        own = labels[start:end] if by_token else labels[index]
        yield _Example(arrays[TOKENS][start:end], own, int(groups[index]), client, position + index)


def _batches(examples: list[_Example], pad_id: int, batch_size: int) -> Iterator[Batch]:
    # Longest first: the batch that needs the most memory is met at once, not at the end.
    order = sorted(range(len(examples)), key=lambda index: -len(examples[index].tokens))
    for start in range(0, len(order), batch_size):
        chosen = [examples[index] for index in order[start : start + batch_size]]
        width = len(chosen[0].tokens)
        tokens = np.full([len(chosen), width], pad_id, np.int32)
        by_token = chosen[0].labels.ndim == 1
        labels = np.full([len(chosen), width] if by_token else [len(chosen)], IGNORED, np.int64)
        for row, example in enumerate(chosen):
            tokens[row, : len(example.tokens)] = example.tokens
            if by_token:
                labels[row, : len(example.labels)] = example.labels
            else:
                labels[row] = example.labels
        numbers = np.array([(example.group, example.client, example.position) for example in chosen], np.int64)
        yield Batch(tokens, labels, *numbers.T)


def _check_file(folder: Path, name: str, files: dict[str, Any], *, content: bool) -> None:
    path, expected = folder / name, files.get(name)
    if expected is None or not path.is_file():
        raise ArtifactError(f"{path}: missing; the snapshot's manifest needs it. Remove {folder}. {_PREPARE}")
    if path.stat().st_size != expected["bytes"] or (content and sha256_file(path) != expected["sha256"]):
        raise ArtifactError(
            f"{path}: has changed since it was written (size or SHA-256 differs from the manifest). Remove {folder}. {_PREPARE}"
        )
