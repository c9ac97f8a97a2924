"""Tokenized rows as columns, between reading a silo's text and writing its clients. numpy, no Beam.

A silo has millions of rows, and an object for each would cost more than tokenizing it. So rows stay together, some thousands
at a time, an array for each of their properties, and are selected, sorted and written by the array.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import msgspec
import numpy as np

CLIENT_BYTES = 16
_ARRAYS = ("clients", "files", "lines", "lengths", "tokens", "labels", "groups")


class _Message(msgspec.Struct, array_like=True, gc=False):
    """Rows as bytes; each array is that of `Rows`."""

    clients: bytes
    files: bytes
    lines: bytes
    lengths: bytes
    tokens: bytes
    labels: bytes
    groups: bytes
    label_names: list[str]
    group_names: list[str]


@dataclass(frozen=True)
class Rows:
    """n rows with t tokens in all.

    clients      uint64 [n, 2], each client's hash as `hashes_to_numbers` makes it: sorts as the bytes do
    files        int32 [n], the number of the file a row was read from
    lines        int64 [n], its line there
    lengths      int64 [n], its tokens, [CLS] and [SEP] counted: at least three
    tokens       int32 [t], those of all rows one after the other
    labels       int32 [n] (sequence classification) or [t] (token classification), an index into `label_names`
    groups       int32 [n], an index into `group_names`

    The names are those of these rows only, in no particular order: rows from elsewhere have others.
    """

    clients: np.ndarray
    files: np.ndarray
    lines: np.ndarray
    lengths: np.ndarray
    tokens: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    label_names: Sequence[str]
    group_names: Sequence[str]

    def __len__(self) -> int:
        return len(self.lines)

    @cached_property
    def ends(self) -> np.ndarray:
        """The index in `tokens` at which each row's tokens end, int64 [n]."""
        return np.cumsum(self.lengths)

    @property
    def labelled_tokens(self) -> bool:
        """Whether each token has a label. Each row has several tokens, so the number of labels tells."""
        return len(self.labels) != len(self.lines)

    @property
    def labelled(self) -> int:
        """How many rows (or words) have a label."""
        nameless = [number for number, name in enumerate(self.label_names) if not name]
        return len(self.labels) - int(np.isin(self.labels, nameless).sum())

    @property
    def size(self) -> int:
        """About how many bytes the arrays take."""
        return 40 * len(self.lines) + self.tokens.nbytes + self.labels.nbytes

    def first_of_clients(self) -> np.ndarray:
        """The index at which each client begins in sorted rows, int64 [clients]."""
        other = (self.clients[1:] != self.clients[:-1]).any(axis=1)
        return np.concatenate([np.zeros(min(1, len(self)), np.int64), np.flatnonzero(other) + 1])

    def take(self, rows: np.ndarray) -> "Rows":
        """The rows at these indices (int64), in this order."""
        lengths = self.lengths[rows]
        ends = np.cumsum(lengths)
        tokens = np.arange(ends[-1] if len(ends) else 0) + np.repeat(self.ends[rows] - ends, lengths)
        return Rows(
            self.clients[rows],
            self.files[rows],
            self.lines[rows],
            lengths,
            self.tokens[tokens],
            self.labels[tokens if self.labelled_tokens else rows],
            self.groups[rows],
            self.label_names,
            self.group_names,
        )

    def sorted(self) -> "Rows":
        """The rows by client, and those of a client in the order they were read."""
        high, low = self.clients.T
        return self.take(np.lexsort((self.lines, self.files, low, high)))

    def with_names_used(self) -> "Rows":
        """The same rows, without names that none of them has."""
        labels, label_names = _used(self.labels, self.label_names)
        groups, group_names = _used(self.groups, self.group_names)
        return replace(self, labels=labels, groups=groups, label_names=label_names, group_names=group_names)

    def renamed(self, labels: Mapping[str, int], groups: Mapping[str, int]) -> "Rows":
        """The same rows, with the numbers that these tables give to the names of labels and groups."""
        label_ids = np.array([labels[name] for name in self.label_names], np.int32)
        group_ids = np.array([groups[name] for name in self.group_names], np.int32)
        return replace(
            self, labels=label_ids[self.labels], groups=group_ids[self.groups], label_names=(), group_names=()
        )

    def encode(self) -> bytes:
        """The rows as a message, without names that none of them has."""
        rows = self.with_names_used()
        arrays = (getattr(rows, name).tobytes() for name in _ARRAYS)
        names = {"label_names": list(rows.label_names), "group_names": list(rows.group_names)}
        return msgspec.msgpack.encode(_Message(**dict(zip(_ARRAYS, arrays, strict=True)), **names))

    @classmethod
    def decode(cls, message: bytes) -> "Rows":
        """The rows of a message that `encode` made. The arrays are read-only."""
        columns = msgspec.msgpack.decode(message, type=_Message)
        return cls(
            np.frombuffer(columns.clients, np.uint64).reshape(-1, 2),
            np.frombuffer(columns.files, np.int32),
            np.frombuffer(columns.lines, np.int64),
            np.frombuffer(columns.lengths, np.int64),
            np.frombuffer(columns.tokens, np.int32),
            np.frombuffer(columns.labels, np.int32),
            np.frombuffer(columns.groups, np.int32),
            columns.label_names,
            columns.group_names,
        )

    @classmethod
    def joined(cls, parts: Sequence["Rows"]) -> "Rows":
        """Rows of several origins, one after the other."""
        if len(parts) == 1:
            return parts[0]
        labels, label_names = _renamed([(part.labels, part.label_names) for part in parts])
        groups, group_names = _renamed([(part.groups, part.group_names) for part in parts])
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS[:5]}
        return cls(**columns, labels=labels, groups=groups, label_names=label_names, group_names=group_names)


def hashes_to_numbers(hashes: bytes) -> np.ndarray:
    """Hashes of 16 bytes, one after the other, as uint64 [n, 2]: each eight bytes read as a big-endian number."""
    return np.frombuffer(hashes, ">u8").reshape(-1, CLIENT_BYTES // 8).astype(np.uint64)


def numbers_to_hashes(clients: np.ndarray) -> list[bytes]:
    """The inverse of `hashes_to_numbers`, as n pieces."""
    return np.ascontiguousarray(clients.astype(">u8")).view(f"V{CLIENT_BYTES}").reshape(-1).tolist()


def numbered(names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Each name's number, int32, and the names by number."""
    table = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.fromiter(map(table.__getitem__, names), np.int32, len(names)), list(table)


def _renamed(parts: Sequence[tuple[np.ndarray, Sequence[str]]]) -> tuple[np.ndarray, list[str]]:
    """Joins numbers that index into names of their own, as numbers that index into the names of all parts."""
    table: dict[str, int] = {}
    numbers = []
    for numbers_of_part, names in parts:
        number_of_name = np.array([table.setdefault(name, len(table)) for name in names], np.int32)
        numbers.append(number_of_name[numbers_of_part])
    return np.concatenate(numbers), list(table)


def _used(numbers: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Numbers and names without the names that no number stands for."""
    used = np.bincount(numbers, minlength=len(names)) > 0
    new_numbers = np.cumsum(used, dtype=np.int32) - 1
    return new_numbers[numbers].astype(np.int32, copy=False), [names[number] for number in np.flatnonzero(used)]
