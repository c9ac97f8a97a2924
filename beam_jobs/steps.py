"""What prepare does to rows and clients, as plain functions: no Beam, so that a test of each is one line.

Rows come in as `formats.RawRow`. `check` rejects or keeps them, `tokenize` turns a batch of them into packs (one client's
examples out of one batch), `gather` brings the packs of a client together, and `bound` keeps at most so many of its
examples. `write_shard` does that for one range of client hashes and writes the records.

Who is who. A client is the HMAC-SHA256 of its raw id under the silo's client key; the raw id is written nowhere. With
`client = ""` every row (conll: every sentence) is a client of its own, known by the name of its file and its line, so it
stays itself while files are appended to and files are added; inserting lines makes new clients of the rows below them.
The split is a second keyed hash, of the client alone, so nothing moves when data grows.
"""

import hashlib
import hmac
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from beam_jobs.formats import NOT_UTF8, Fields, RawRow
from beam_jobs.spill import Segment, read_segments, writing
from tff_pipeline import records
from tff_pipeline.config import SPLITS, SiloSection
from tff_pipeline.errors import InputError
from tff_pipeline.tokenization import Tokenizer

EMPTY_TEXT = "empty text"
EMPTY_LABEL = "empty label"
EMPTY_CLIENT = "empty client"
UNKNOWN_LABEL = "unknown label"
SEVERAL_SPLITS = "client in several splits"

MAX_NAMES = 1000  # different labels, or groups, of one silo

CLIENTS_REMEMBERED = 2**16  # so that what is worked out for a client is not worked out for each of its rows
BATCH_ROWS = 2048  # the tokenizer is fastest between 256 and 4,096 texts
BATCH_CHARACTERS = 4 * 2**20  # and a batch of long documents stays small

# A client found in the files of several splits stays in the first of these: what is held out must not have been trained
# on, and the size of the source's own test set should not depend on its training files.
SPLIT_PRECEDENCE = ("test", "validation", "train")


# -- who is who --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Keys:
    """Independent keys for the three uses of the silo's client secret."""

    client: bytes
    split: bytes
    bound: bytes

    @classmethod
    def of(cls, secret: bytes) -> "Keys":
        return cls(*(hmac.digest(secret, b"tff-pipeline " + use, "sha256") for use in (b"client", b"split", b"bound")))


def client_hash(keys: Keys, raw_id: str) -> str:
    """32 hex digits that stand for a client; equal raw ids give equal digits."""
    return hmac.digest(keys.client, b"id\0" + raw_id.encode(), "sha256").hex()[:32]


def row_client_hash(keys: Keys, file_name: str, line: int) -> str:
    """The client of a row that is its own client."""
    return hmac.digest(keys.client, f"row\0{line}\0{file_name}".encode(), "sha256").hex()[:32]


def split_of(keys: Keys, client: str, shares: Mapping[str, float]) -> str:
    """The split of a client by hash: `shares` of all clients get each, independent of what other clients there are."""
    place = int.from_bytes(hmac.digest(keys.split, client.encode(), "sha256")[:8], "big") / 2**64
    given = [split for split in SPLITS if shares.get(split, 0) > 0]
    for split in given[:-1]:
        place -= shares[split]
        if place < 0:
            return split
    return given[-1]


def range_of(client: str, ranges: int) -> int:
    """Which of `ranges` equal ranges of hashes a client lies in; ascending in the hash, so ranges of ranges nest."""
    return int(client[:8], 16) * ranges >> 32


# -- rows to batches ---------------------------------------------------------------------------------------------------


class Reject(NamedTuple):
    line: int
    reason: str


class RowBatch(NamedTuple):
    """Consecutive rows of one file: those kept, column by column, and those rejected."""

    file: int
    lines: list[int]
    texts: list[str] | list[tuple[str, ...]]
    labels: list[str] | list[tuple[str, ...]]
    clients: list[str]
    groups: list[str]
    rejects: list[Reject]


def check(fields: Fields, known_labels: frozenset[str] | None, *, has_client: bool) -> str:
    """Why a row is rejected, or "" if it is kept."""
    text, label, client, group = fields
    words = (text,) if isinstance(text, str) else text
    labels = (label,) if isinstance(label, str) else label
    if not all(value.isascii() or _is_utf8(value) for value in (*words, *labels, client, group)):
        return NOT_UTF8
    if not any(word and not word.isspace() for word in words):
        return EMPTY_TEXT
    if has_client and not client.strip():
        return EMPTY_CLIENT
    if not all(labels):
        return EMPTY_LABEL
    if known_labels is not None and not known_labels.issuperset(labels):
        return UNKNOWN_LABEL
    return ""


def _is_utf8(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # a surrogate stands for a byte that is not UTF-8
        return False
    return True


def batches(
    rows: Iterable[RawRow],
    *,
    file: int,
    file_name: str,
    known_labels: frozenset[str] | None,
    has_client: bool,
    keys: Keys,
) -> Iterator[RowBatch]:
    """Checks rows and bundles them; what is kept has its label stripped and its client hashed."""
    hashed = lru_cache(maxsize=CLIENTS_REMEMBERED)(lambda raw_id: client_hash(keys, raw_id))
    batch, characters = RowBatch(file, [], [], [], [], [], []), 0
    for line, fields, reason in rows:
        if fields is not None:
            if isinstance(fields.label, str):
                fields = fields._replace(label=fields.label.strip())
            reason = check(fields, known_labels, has_client=has_client)
        if fields is None or reason:
            batch.rejects.append(Reject(line, reason))
        else:
            batch.lines.append(line)
            batch.texts.append(fields.text)  # type: ignore[arg-type]
            batch.labels.append(fields.label)  # type: ignore[arg-type]
            batch.clients.append(hashed(fields.client) if has_client else row_client_hash(keys, file_name, line))
            batch.groups.append(fields.group.strip())
            characters += len(fields.text) if isinstance(fields.text, str) else sum(map(len, fields.text))
        if len(batch.lines) + len(batch.rejects) >= BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = RowBatch(file, [], [], [], [], [], []), 0
    if batch.lines or batch.rejects:
        yield batch


# -- batches to packs --------------------------------------------------------------------------------------------------


class PackHead(msgspec.Struct, array_like=True):
    """The first fields of a pack; decoding only them is quick."""

    client: str
    split: str


class Pack(msgspec.Struct, array_like=True, gc=False):
    """Examples of one client out of one batch, in the order of their lines. `labels` as in `records`, but as words ("" is IGNORED)."""

    client: str
    split: str
    file: int
    lines: list[int]
    lengths: list[int]
    tokens: bytes  # int32 [sum of lengths]
    labels: list[str]
    groups: list[str]


class Tokenized(NamedTuple):
    """A batch when it is done: packs to be grouped, rejects with those that tokenization added, rows read."""

    file: int
    rows: int
    packs: list[Pack]
    rejects: list[Reject]


def tokenize(batch: RowBatch, tokenizer: Tokenizer, *, split: Callable[[str], str]) -> Tokenized:
    """Tokenizes a batch. A text that leaves no token (only control characters, say) is rejected as empty."""
    words = bool(batch.texts) and not isinstance(batch.texts[0], str)
    ids, lengths, labels = _words(batch, tokenizer) if words else _texts(batch, tokenizer)
    ends = np.cumsum(lengths)
    starts, sizes = (ends - lengths).tolist(), lengths.tolist()
    rejects = list(batch.rejects)
    by_client: dict[str, list[int]] = {}
    for index, client in enumerate(batch.clients):
        if sizes[index] <= 2:
            rejects.append(Reject(batch.lines[index], EMPTY_TEXT))
        else:
            by_client.setdefault(client, []).append(index)
    packs = []
    for client, members in by_client.items():
        if members[-1] - members[0] + 1 == len(members):  # neighbours, as they mostly are
            tokens = ids[starts[members[0]] : starts[members[-1]] + sizes[members[-1]]]
        else:
            tokens = np.concatenate([ids[starts[index] : starts[index] + sizes[index]] for index in members])
        packs.append(
            Pack(
                client,
                split(client),
                batch.file,
                [batch.lines[index] for index in members],
                [sizes[index] for index in members],
                tokens.astype(np.int32, copy=False).tobytes(),
                [label for index in members for label in labels[index]],
                [batch.groups[index] for index in members],
            )
        )
    return Tokenized(batch.file, len(batch.lines) + len(batch.rejects), packs, sorted(rejects))


def _texts(batch: RowBatch, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray, list[tuple[str, ...]]]:
    ids, lengths = tokenizer.encode(batch.texts)  # type: ignore[arg-type]
    return ids, lengths, [(label,) for label in batch.labels]  # type: ignore[misc]


def _words(batch: RowBatch, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray, list[tuple[str, ...]]]:
    """Sentences of words: the first piece of each word carries its tag, the other tokens ""."""
    ids, lengths, labels = [], [], []
    for words, tags in zip(batch.texts, batch.labels, strict=True):
        tokens, first = tokenizer.encode_words(words)
        ids.append(tokens)
        lengths.append(len(tokens))
        labels.append(tuple(tags[word] if word >= 0 else "" for word in first.tolist()))
    return np.concatenate(ids), np.array(lengths, np.int64), labels


# -- packs to clients --------------------------------------------------------------------------------------------------


class Example(NamedTuple):
    """One example; sorts by where it was read."""

    file: int
    line: int
    group: str
    labels: tuple[str, ...]
    tokens: bytes


class Client(NamedTuple):
    """A whole client, as it will be written."""

    client: str
    split: str
    tokens: np.ndarray
    lengths: list[int]
    labels: list[str]
    groups: list[str]
    dropped: int


class _Growing:
    """A client while its packs come in; never holds many more examples than it may keep."""

    __slots__ = ("count", "dropped", "packs")

    def __init__(self) -> None:
        self.packs: list[Pack] = []
        self.count = 0
        self.dropped = 0


def examples_of(pack: Pack) -> Iterator[Example]:
    """Takes a pack apart."""
    at, label_at = 0, 0
    per_token = len(pack.labels) != len(pack.lines)  # an example has more than one token, always
    for line, length, group in zip(pack.lines, pack.lengths, pack.groups, strict=True):
        labels = length if per_token else 1
        yield Example(
            pack.file, line, group, tuple(pack.labels[label_at : label_at + labels]), pack.tokens[at : at + 4 * length]
        )
        at, label_at = at + 4 * length, label_at + labels


def bound(examples: Iterable[Example], limit: int, keys: Keys, client: str) -> list[Example]:
    """At most `limit` of a client's examples, in the order they were read.

    Those with the smallest keyed hash of the client and their content stay, so the choice does not depend on the order
    of the rows, nor on anything one could read off the text. Equal examples tie, and are interchangeable.
    """

    def rank(example: Example) -> tuple[bytes, Example]:
        content = msgspec.msgpack.encode((client, example.tokens, example.labels, example.group))
        return hashlib.blake2b(content, key=keys.bound, digest_size=16).digest(), example

    return sorted(sorted(examples, key=rank)[:limit])


def gather(
    segments: Sequence[Segment], limit: int, keys: Keys, *, split_by_files: bool, rejected: Callable[[int, int], None]
) -> list[Client]:
    """The clients of one range of hashes, in ascending order, each bounded to `limit` examples.

    `rejected(file, line)` is told every row of a client that came in files of several splits and lost there.
    """
    splits = _winning_splits(segments) if split_by_files else {}
    decode = msgspec.msgpack.Decoder(Pack).decode
    growing: dict[tuple[str, str], _Growing] = {}
    lost: list[tuple[str, int, int]] = []
    for message in read_segments(segments):
        pack = decode(message)
        if splits.get(pack.client, pack.split) != pack.split:
            lost += [(pack.client, pack.file, line) for line in pack.lines]
            continue
        key = pack.client, pack.split
        client = growing.get(key)
        if client is None:
            client = growing[key] = _Growing()
        client.packs.append(pack)
        client.count += len(pack.lines)
        if client.count > 4 * limit:
            _trim(client, limit, keys)
    for _, file, line in sorted(lost):
        rejected(file, line)
    return [_finish(growing[key], limit, keys) for key in sorted(growing)]


def _winning_splits(segments: Sequence[Segment]) -> dict[str, str]:
    """The split of each client that occurs in several."""
    decode = msgspec.msgpack.Decoder(PackHead).decode
    first: dict[str, str] = {}
    several: dict[str, str] = {}
    for message in read_segments(segments):
        head = decode(message)
        split = first.setdefault(head.client, head.split)
        if split != head.split:
            several[head.client] = min(several.get(head.client, split), head.split, key=SPLIT_PRECEDENCE.index)
    return several


def _trim(client: _Growing, limit: int, keys: Keys) -> None:
    head = client.packs[0]
    kept = bound((example for pack in client.packs for example in examples_of(pack)), limit, keys, head.client)
    client.dropped += client.count - len(kept)
    client.count = len(kept)
    client.packs = [
        Pack(
            head.client,
            head.split,
            one.file,
            [one.line],
            [len(one.tokens) // 4],
            one.tokens,
            list(one.labels),
            [one.group],
        )
        for one in kept
    ]


def _finish(client: _Growing, limit: int, keys: Keys) -> Client:
    if client.count > limit:
        _trim(client, limit, keys)
    if len(client.packs) == 1:  # as most are
        (pack,) = client.packs
        return Client(
            pack.client,
            pack.split,
            np.frombuffer(pack.tokens, np.int32),
            pack.lengths,
            pack.labels,
            pack.groups,
            client.dropped,
        )
    packs = sorted(client.packs, key=lambda pack: (pack.file, pack.lines[0]))
    return Client(
        packs[0].client,
        packs[0].split,
        np.frombuffer(b"".join(pack.tokens for pack in packs), np.int32),
        [length for pack in packs for length in pack.lengths],
        [label for pack in packs for label in pack.labels],
        [group for pack in packs for group in pack.groups],
        client.dropped,
    )


# -- clients to records ------------------------------------------------------------------------------------------------


class SplitSummary(msgspec.Struct):
    """What one shard holds of one split; histograms count by value."""

    data: str
    index: str
    clients: int
    examples: int
    labels: list[int]
    groups: list[int]
    token_lengths: list[int]


class ShardSummary(msgspec.Struct):
    shard: int
    splits: dict[str, SplitSummary]
    rejected: str
    rejects: int
    over_bound_clients: int
    examples_dropped: int


class _SplitWriter:
    """One split's part of a shard: the records, and what the index and the manifest say of them."""

    def __init__(self, folder: Path, split: str, *, shard: int, labels: int, groups: int, max_length: int):
        name = f"{uuid.uuid4().hex}.{split}"
        self.data, self.index = folder / f"{name}.records", folder / f"{name}.npy"
        self._shard = shard
        self._rows: list[tuple[int, int, int, int]] = []
        self._offset = 0
        self._labels = np.zeros(labels, np.int64)
        self._groups = np.zeros(groups, np.int64)
        self._lengths = np.zeros(max_length + 1, np.int64)
        with writing(self.data):
            self._file = self.data.open("wb")

    def write(self, client: Client, label_ids: Mapping[str, int], group_ids: Mapping[str, int]) -> None:
        labels = np.array([label_ids[label] for label in client.labels], np.int64)
        groups = np.array([group_ids[group] for group in client.groups], np.int64)
        lengths = np.array(client.lengths, np.int64)
        record = records.encode_client(client.client, client.tokens, lengths, labels, groups)
        with writing(self.data):
            frame = records.write_frame(self._file, record)
        self._rows.append((self._shard, self._offset, len(record), len(lengths)))
        self._offset += frame
        self._labels += np.bincount(labels[labels >= 0], minlength=len(self._labels))
        self._groups += np.bincount(groups, minlength=len(self._groups))
        self._lengths += np.bincount(lengths, minlength=len(self._lengths))

    def close(self) -> SplitSummary:
        with writing(self.data):
            self._file.close()
        with writing(self.index):
            np.save(self.index, np.array(self._rows, np.int64).reshape(-1, 4))
        return SplitSummary(
            str(self.data),
            str(self.index),
            len(self._rows),
            int(self._groups.sum()),
            self._labels.tolist(),
            self._groups.tolist(),
            self._lengths.tolist(),
        )


def write_shard(
    shard: int,
    segments: Mapping[int, Sequence[Segment]],
    *,
    ranges: Sequence[int],
    folder: Path,
    labels: Sequence[str],
    groups: Sequence[str],
    limit: int,
    max_length: int,
    keys: Keys,
    split_by_files: bool,
    reject_line: Callable[[int, int], bytes],
) -> ShardSummary:
    """Writes the clients of `ranges`, one range in memory at a time, as records by split."""
    label_ids = {label: index for index, label in enumerate(labels)} | {"": records.IGNORED}
    group_ids = {group: index for index, group in enumerate(groups)}
    writers: dict[str, _SplitWriter] = {}
    summary = ShardSummary(shard, {}, str(folder / f"{uuid.uuid4().hex}.rejected"), 0, 0, 0)
    with writing(Path(summary.rejected)), Path(summary.rejected).open("wb") as rejected_rows:

        def rejected(file: int, line: int) -> None:
            rejected_rows.write(reject_line(file, line))
            summary.rejects += 1

        for key in ranges:
            for client in gather(segments.get(key, ()), limit, keys, split_by_files=split_by_files, rejected=rejected):
                if client.split not in writers:
                    writers[client.split] = _SplitWriter(
                        folder, client.split, shard=shard, labels=len(labels), groups=len(groups), max_length=max_length
                    )
                writers[client.split].write(client, label_ids, group_ids)
                summary.over_bound_clients += client.dropped > 0
                summary.examples_dropped += client.dropped
    summary.splits = {split: writer.close() for split, writer in writers.items()}
    return summary


def reject_line(file_name: str, where: str, line: int, reason: str) -> bytes:
    """A line of rejected.jsonl; `where` is "line", or "row" for parquet. It never holds the text."""
    return msgspec.json.encode({"file": file_name, where: line, "reason": reason}) + b"\n"


# -- what the manifest says --------------------------------------------------------------------------------------------


class ReadSummary(msgspec.Struct):
    """What reading and tokenizing found, of one bundle or (merged) of all."""

    packs: list[Segment] = []
    rejected: list[Segment] = []
    rows: dict[int, int] = {}
    reasons: dict[str, int] = {}
    labels: list[str] = []
    groups: list[str] = []


def merged(summaries: Iterable[ReadSummary]) -> ReadSummary:
    """All bundles' summaries as one, the same whatever their order."""
    total, rows, reasons = ReadSummary(), Counter[int](), Counter[str]()
    labels, groups = set[str](), set[str]()
    for one in summaries:
        total.packs += one.packs
        total.rejected += one.rejected
        rows.update(one.rows)
        reasons.update(one.reasons)
        labels.update(one.labels)
        groups.update(one.groups)
    total.rejected.sort(key=lambda segment: (segment.key, segment.order, segment.offset))
    total.rows, total.reasons = dict(sorted(rows.items())), dict(sorted(reasons.items()))
    total.labels, total.groups = sorted(labels), sorted(groups)
    return total


def check_names(read: ReadSummary, silo: SiloSection, *, labels_listed: bool) -> None:
    """InputError where label or group cannot be what the configuration says: their values are written down by name.

    A column of free text in their place would put the silo's text into the manifest, and from there into reports.
    """
    for key, column, names in (
        ("label", silo.label, () if labels_listed else read.labels),
        ("group", silo.group, read.groups),
    ):
        if len(names) > MAX_NAMES:
            raise InputError(
                f"silo {silo.name!r}: the {key} column {column!r} has {len(names):,} different values; expected at most {MAX_NAMES:,}, "
                f"since each is written into the manifest by name. Correct `{key}` of the silo"
                + (", or list the labels in task.labels." if key == "label" else ".")
            )


def percentiles(histogram: Sequence[int] | np.ndarray) -> dict[str, int]:
    """p50, p90, p99 and max of values counted by `histogram`: the smallest value that so many percent do not exceed."""
    counts = np.asarray(histogram, np.int64)
    total = int(counts.sum())
    if not total:
        return {"p50": 0, "p90": 0, "p99": 0, "max": 0}
    below = np.cumsum(counts)
    found = {f"p{percent}": int(np.searchsorted(below, -(-total * percent // 100))) for percent in (50, 90, 99)}
    return {**found, "max": int(np.flatnonzero(counts)[-1])}
