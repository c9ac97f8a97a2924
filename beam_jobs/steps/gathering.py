"""The segments of one range of hashes to its clients: rows sorted by client, each client in one split and bounded."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from beam_jobs.rows import Rows, numbers_to_hashes
from beam_jobs.segments import Segment, read_segments
from beam_jobs.steps.clients import Keys

SEVERAL_SPLITS = "client in several splits"

GATHER_BYTES = 64 * 2**20  # a range with more rows than that has clients with more rows than they may keep
BOUND_ROWS = 4096  # how many of a client's rows become Python objects at a time

# A client found in the files of several splits stays in the first of these: what is held out must not have been trained
# on, and the size of the source's own test set should not depend on its training files.
SPLIT_PRECEDENCE = ("test", "validation", "train")


class Example(NamedTuple):
    """One example; sorts by where it was read."""

    file: int
    line: int
    group: str
    labels: tuple[str, ...]
    tokens: bytes


def examples_of(rows: Rows, first: int, last: int) -> Iterator[Example]:
    """Rows `first` to `last` (exclusive) one by one."""
    starts, ends = (rows.ends - rows.lengths)[first:last].tolist(), rows.ends[first:last].tolist()
    for row, start, end in zip(range(first, last), starts, ends, strict=True):
        labels = rows.labels[start:end] if rows.labelled_tokens else rows.labels[row : row + 1]
        yield Example(
            int(rows.files[row]),
            int(rows.lines[row]),
            rows.group_names[rows.groups[row]],
            tuple(rows.label_names[label] for label in labels),
            rows.tokens[start:end].tobytes(),
        )


def bound(examples: Iterable[Example], limit: int, keys: Keys, client: bytes) -> list[Example]:
    """At most `limit` of a client's examples, in the order they were read.

    Those with the smallest keyed hash of the client and their content stay, so the choice depends neither on the order of
    the rows nor on anything that could be read off the text. Equal examples tie, and are interchangeable.
    """

    def rank(example: Example) -> tuple[bytes, Example]:
        content = msgspec.msgpack.encode((client.hex(), example.tokens, example.labels, example.group))
        return hashlib.blake2b(content, key=keys.bound, digest_size=16).digest(), example

    return sorted(sorted(examples, key=rank)[:limit])


class Gathered(NamedTuple):
    """The rows of whole clients, sorted and bounded, and what was left out for the bound."""

    rows: Rows
    over_bound_clients: int
    examples_dropped: int


def gather(
    segments: Sequence[Segment],
    limit: int,
    keys: Keys,
    *,
    file_splits: Sequence[str],
    rejected: Callable[[int, int], None],
) -> Gathered | None:
    """The rows of one range of hashes, by client and in the order they were read, each client bounded to `limit`; None if
    the range has none.

    Args:
      segments: where the range's rows are.
      limit: the most examples a client may keep.
      keys: those of the silo.
      file_splits: the split of each file; empty where clients are split by hash.
      rejected: called with file and line of every row that is lost because its client stays in another split.
    """
    several = _in_several_splits(segments, file_splits) if file_splits else {}
    lost: list[tuple[bytes, int, int]] = []
    waiting: list[Rows] = []
    size, bounded_size = 0, 0
    dropped = Counter[bytes]()
    for message in read_segments(segments):
        rows = Rows.decode(message)
        if several:
            rows = _winners(rows, several, file_splits, lost)
        waiting.append(rows)
        size += rows.size
        if size > max(GATHER_BYTES, 2 * bounded_size):  # few clients with many rows: keep what they may keep
            waiting = [_bounded(Rows.joined(waiting).sorted(), limit, keys, dropped)]
            size = bounded_size = waiting[0].size
    for _, file, line in sorted(lost):
        rejected(file, line)
    if not waiting:
        return None
    rows = _bounded(Rows.joined(waiting).sorted(), limit, keys, dropped)
    return Gathered(rows, len(dropped), dropped.total())


def _in_several_splits(segments: Sequence[Segment], file_splits: Sequence[str]) -> dict[bytes, str]:
    """The clients that occur in several splits, and the one in which each stays."""
    ranks = np.array([SPLIT_PRECEDENCE.index(split) for split in file_splits], np.uint8)
    clients = np.zeros((0, 2), np.uint64)
    splits = np.zeros(0, np.uint8)  # one bit for each split a client occurs in
    for message in read_segments(segments):
        rows = Rows.decode(message)
        clients, positions = np.unique(np.concatenate([clients, rows.clients]), axis=0, return_inverse=True)
        bits = np.concatenate([splits, np.left_shift(1, ranks[rows.files], dtype=np.uint8)])
        splits = np.zeros(len(clients), np.uint8)
        np.bitwise_or.at(splits, positions.reshape(-1), bits)
    several = np.flatnonzero(splits & (splits - 1))
    first = [SPLIT_PRECEDENCE[(bits & -bits).bit_length() - 1] for bits in splits[several].tolist()]
    return dict(zip(numbers_to_hashes(clients[several]), first, strict=True))


def _winners(
    rows: Rows, several: Mapping[bytes, str], file_splits: Sequence[str], lost: list[tuple[bytes, int, int]]
) -> Rows:
    """The rows without those of clients that stay in another split; those go to `lost`."""
    keep = np.ones(len(rows), bool)
    for row, (client, file) in enumerate(zip(numbers_to_hashes(rows.clients), rows.files.tolist(), strict=True)):
        if several.get(client, file_splits[file]) != file_splits[file]:
            keep[row] = False
            lost.append((client, file, int(rows.lines[row])))
    return rows if keep.all() else rows.take(np.flatnonzero(keep))


def _bounded(rows: Rows, limit: int, keys: Keys, dropped: Counter[bytes]) -> Rows:
    """Sorted rows with at most `limit` of each client; `dropped` counts the others by client."""
    first = rows.first_of_clients()
    last = np.append(first[1:], len(rows))
    over = np.flatnonzero(last - first > limit)
    if not len(over):
        return rows
    keep = np.ones(len(rows), bool)
    for start, end in zip(first[over].tolist(), last[over].tolist(), strict=True):
        (client,) = numbers_to_hashes(rows.clients[start : start + 1])
        kept: list[Example] = []
        for at in range(start, end, BOUND_ROWS):  # some at a time: a client may have millions
            kept = bound([*kept, *examples_of(rows, at, min(at + BOUND_ROWS, end))], limit, keys, client)
        kept_lines = {(example.file, example.line) for example in kept}
        keep[start:end] = [
            position in kept_lines
            for position in zip(rows.files[start:end].tolist(), rows.lines[start:end].tolist(), strict=True)
        ]
        dropped[client] += end - start - len(kept)
    return rows.take(np.flatnonzero(keep))
