"""The clients of one range of hashes to records: one file of records and one index for each split."""

import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from beam_jobs.rows import Rows, numbered, numbers_to_hashes
from beam_jobs.segments import Segment, writing
from beam_jobs.steps.clients import Keys, split_of
from beam_jobs.steps.gathering import Gathered, gather
from tff_pipeline.data import records


class SplitSummary(msgspec.Struct):
    """What one part has of one split; histograms count by value. The index counts offsets from the part's beginning."""

    data: str
    index: str
    clients: int
    examples: int
    labels: list[int]
    groups: list[int]
    token_lengths: list[int]


class PartSummary(msgspec.Struct):
    """What was written of one range of hashes; a shard is one part or several, one after the other."""

    part: int
    splits: dict[str, SplitSummary]
    rejected: str
    rejects: int
    over_bound_clients: int
    examples_dropped: int


@dataclass(frozen=True)
class PartSettings:
    """What is the same for all parts.

    labels, groups      the names, by number
    limit               the most examples a client may keep
    max_length          the most tokens of an example
    file_splits         the split of each file; empty where clients are split by hash,
    split_fractions     into these fractions
    """

    folder: Path
    labels: Sequence[str]
    groups: Sequence[str]
    limit: int
    max_length: int
    keys: Keys
    file_splits: Sequence[str]
    split_fractions: Mapping[str, float]
    reject_line: Callable[[int, int], bytes]  # of rejected.jsonl, for file and line of a client found in several splits


def write_part(part: int, segments: Sequence[Segment], *, shard: int, settings: PartSettings) -> PartSummary:
    """Writes the clients of one range as records, by split."""
    summary = PartSummary(part, {}, str(settings.folder / f"{uuid.uuid4().hex}.rejected"), 0, 0, 0)
    gathered = _gathered(segments, settings, summary)
    if gathered is None:
        return summary
    rows, summary.over_bound_clients, summary.examples_dropped = gathered
    rows = rows.renamed(
        {label: index for index, label in enumerate(settings.labels)} | {"": records.IGNORED},
        {group: index for index, group in enumerate(settings.groups)},
    )
    first = rows.first_of_clients()
    clients = numbers_to_hashes(rows.clients[first])
    if settings.file_splits:
        splits = [settings.file_splits[file] for file in rows.files[first].tolist()]
    else:
        splits = [split_of(settings.keys, client, settings.split_fractions) for client in clients]
    counts = np.diff(first, append=len(rows))
    numbers, names = numbered(splits)
    split_of_row = np.repeat(numbers, counts)
    written = _write_records(rows, clients, counts, numbers, names, settings.folder, shard)
    for number, split in enumerate(names):
        paths, clients_of_split = written[number], int((numbers == number).sum())
        summary.splits[split] = _summarized(rows, split_of_row == number, clients_of_split, paths, settings)
    return summary


def _gathered(segments: Sequence[Segment], settings: PartSettings, summary: PartSummary) -> Gathered | None:
    """The range's rows; those rejected on the way are written down, and counted in the summary."""
    with writing(Path(summary.rejected)), Path(summary.rejected).open("wb") as rejected_rows:

        def rejected(file: int, line: int) -> None:
            rejected_rows.write(settings.reject_line(file, line))
            summary.rejects += 1

        return gather(segments, settings.limit, settings.keys, file_splits=settings.file_splits, rejected=rejected)


def _summarized(
    rows: Rows, in_split: np.ndarray, clients: int, paths: tuple[Path, Path], settings: PartSettings
) -> SplitSummary:
    """What the rows for which `in_split` is true (bool [n]) add to their split."""
    data, index = paths
    labels = rows.labels[np.repeat(in_split, rows.lengths) if rows.labelled_tokens else in_split]
    return SplitSummary(
        str(data),
        str(index),
        clients,
        int(in_split.sum()),
        np.bincount(labels[labels >= 0], minlength=len(settings.labels)).tolist(),
        np.bincount(rows.groups[in_split], minlength=len(settings.groups)).tolist(),
        np.bincount(rows.lengths[in_split], minlength=settings.max_length + 1).tolist(),
    )


def _write_records(
    rows: Rows,
    clients: Sequence[bytes],
    counts: np.ndarray,
    split_numbers: np.ndarray,
    splits: Sequence[str],
    folder: Path,
    shard: int,
) -> list[tuple[Path, Path]]:
    """One file of records and one of their index for each split."""
    names = [f"{uuid.uuid4().hex}.{split}" for split in splits]
    paths = [(folder / f"{name}.records", folder / f"{name}.npy") for name in names]
    index: list[list[tuple[int, int, int, int]]] = [[] for _ in splits]
    offsets = [0] * len(splits)
    encoded = records.encode_clients(
        [client.hex() for client in clients], counts, rows.tokens, rows.lengths, rows.labels, rows.groups
    )
    with ExitStack() as stack:
        stack.enter_context(writing(folder))
        files = [stack.enter_context(data.open("wb")) for data, _ in paths]
        for record, split, examples in zip(encoded, split_numbers.tolist(), counts.tolist(), strict=True):
            index[split].append((shard, offsets[split], len(record), examples))
            offsets[split] += records.write_frame(files[split], record)
    for (_, path), entries in zip(paths, index, strict=True):
        with writing(path):
            np.save(path, np.array(entries, np.int64).reshape(-1, 4))
    return paths
