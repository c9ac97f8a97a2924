"""What prepare does to rows and clients, as plain functions: no Beam, so that a test of each is one line.

Rows come in as `formats.Columns`. `batches` rejects or keeps them, `tokenize` turns a batch of them into `rows.Rows`,
`by_range` parts these by ranges of client hashes, `gather` brings the rows of a range together, sorted by client, and
`bound` keeps at most so many of a client's examples. `write_part` does that for one range and writes the records.

Who is who. A client is the HMAC-SHA256 of its id, in the form that `normal_id` gives it, under the silo's client key; the id is
written nowhere. With
`client = ""` every row (conll: every sentence) is a client of its own, known by the name of its file and its line, so it
stays itself while files are appended to and files are added; inserting lines makes new clients of the rows below them.
The split is a second keyed hash, of the client alone, so nothing moves when data grows.
"""

import hashlib
import hmac
import re
import unicodedata
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from beam_jobs.formats import NOT_UTF8, Columns, Fields, LineCounts, Reject, size_of
from beam_jobs.rows import CLIENT_BYTES, Rows, hashes_to_numbers, numbered, numbers_to_hashes
from beam_jobs.spill import Segment, read_segments, writing
from tff_pipeline.config import SPLITS, SiloSection
from tff_pipeline.data import records
from tff_pipeline.data.tokenization import Tokenizer
from tff_pipeline.errors import InputError

EMPTY_TEXT = "empty text"
EMPTY_LABEL = "empty label"
EMPTY_CLIENT = "empty client"
UNKNOWN_LABEL = "unknown label"
SEVERAL_SPLITS = "client in several splits"

MANY_NAMES = 20  # more different labels (or groups) than these, and more than one for two rows: a column of free text
MAX_NAME_CHARACTERS = 200  # of a label, or a group
_WHOLE = re.compile(r"-?[0-9]+\.0+")
# A number that was a float: it has a fraction, or an exponent with a sign. "12345e17" may be an id in hexadecimal digits.
_FLOAT = re.compile(r"[+-]?[0-9]+(?:\.[0-9]*(?:[eE][+-]?[0-9]+)?|[eE][+-][0-9]+)")
_EXACT = 2**53  # from here on a float may stand for several whole numbers

CLIENTS_REMEMBERED = 2**17  # so that a client's hash is not worked out for each of its rows; they take about 30 MB
BATCH_ROWS = 2048  # the tokenizer is fastest between 256 and 4,096 texts
BATCH_CHARACTERS = 4 * 2**20  # and a batch of long documents stays small
GATHER_BYTES = 64 * 2**20  # a range with more rows than that has clients with more rows than they may keep
BOUND_ROWS = 4096  # how many of a client's rows become Python objects at a time

# A client found in the files of several splits stays in the first of these: what is held out must not have been trained
# on, and the size of the source's own test set should not depend on its training files.
SPLIT_PRECEDENCE = ("test", "validation", "train")


# -- who is who --------------------------------------------------------------------------------------------------------


class InexactIdError(ValueError):
    """An id that may stand for several people."""


@dataclass(frozen=True)
class Keys:
    """Independent keys for the three uses of the silo's client secret."""

    client: bytes
    split: bytes
    bound: bytes

    @classmethod
    def of(cls, secret: bytes) -> "Keys":
        return cls(*(hmac.digest(secret, b"tff-pipeline " + use, "sha256") for use in (b"client", b"split", b"bound")))


def client_hash(keys: Keys, raw_id: str) -> bytes:
    """16 bytes that stand for a client, written as 32 hex digits; ids with one `normal_id` have the same."""
    return hmac.digest(keys.client, b"id\0" + normal_id(raw_id).encode(), "sha256")[:CLIENT_BYTES]


def normal_id(raw_id: str) -> str:
    """The id that stands for all spellings of one: without blanks around it, composed as Unicode's NFC has it, and a whole
    number without the zeros that a table of floats puts behind it ("42.0", as tables with missing numbers are exported).

    Two people whom this takes for one would be protected together, as one client; one person taken for two would be
    protected less than the statement says.

    Raises:
      InexactIdError: if it is a float's text of 2^53 or above, which may stand for several ids.
    """
    (name,) = normal_names([raw_id])
    if ("." in name or "+" in name) and _FLOAT.fullmatch(name) and abs(float(name)) >= _EXACT:
        raise InexactIdError
    return name.partition(".")[0] if "." in name and _WHOLE.fullmatch(name) else name


def row_client_hash(keys: Keys, file_name: str, line: int) -> bytes:
    """The client of a row that is its own client."""
    return hmac.digest(keys.client, f"row\0{line}\0{file_name}".encode(), "sha256")[:CLIENT_BYTES]


def split_of(keys: Keys, client: bytes, shares: Mapping[str, float]) -> str:
    """The split of a client by hash: `shares` of all clients get each, independent of what other clients there are."""
    place = int.from_bytes(hmac.digest(keys.split, client.hex().encode(), "sha256")[:8], "big") / 2**64
    given = [split for split in SPLITS if shares.get(split, 0) > 0]
    for split in given[:-1]:
        place -= shares[split]
        if place < 0:
            return split
    return given[-1]


def ranges_of(clients: np.ndarray, ranges: int) -> np.ndarray:
    """Which of `ranges` equal ranges of hashes each client (`Rows.clients`) lies in, int64 [n]; ascending in the hash, so
    ranges of ranges nest."""
    return ((clients[:, 0] >> np.uint64(32)).astype(np.int64) * ranges) >> 32


# -- rows to batches ---------------------------------------------------------------------------------------------------


class RowBatch(NamedTuple):
    """Consecutive rows of one file: those kept, column by column, and those rejected."""

    file: int
    lines: list[int]
    texts: list[str] | list[tuple[str, ...]]
    labels: list[str] | list[tuple[str, ...]]
    clients: bytes  # their hashes, one after the other
    groups: list[str]
    rejects: list[Reject]
    counts: LineCounts = LineCounts()

    @property
    def read(self) -> int:
        """How many rows these are: rejects can stand for several."""
        return len(self.lines) + sum(reject.rows for reject in self.rejects)


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
    slices: Iterable[Columns],
    *,
    file: int,
    file_name: str,
    known_labels: frozenset[str] | None,
    has_client: bool,
    keys: Keys,
    client_column: str = "client",
) -> Iterator[RowBatch]:
    """Checks rows and bundles them; what is kept has its label in normal form and its client hashed. The last batch may hold
    no rows, only counts of lines.

    Raises:
      InputError: if a client is a float's text that may stand for several people.
    """
    hashes: dict[str, bytes] = {}

    def batch() -> RowBatch:
        if has_client:
            try:
                _remember(hashes, kept.clients, keys)
            except InexactIdError:
                raise InputError(
                    f"{file_name}: the client column {client_column!r} holds a number of 2^53 or above as a float, with a fraction or an exponent, which may stand for several people; "
                    "expected text or whole numbers. Write the ids as text where the file is made: a table of floats has lost their last digits."
                ) from None
            clients = b"".join(map(hashes.__getitem__, kept.clients))
        else:
            clients = b"".join(row_client_hash(keys, file_name, line) for line in kept.lines)
        return RowBatch(file, kept.lines, kept.texts, kept.labels, clients, kept.groups, kept.rejects, counts)  # type: ignore[arg-type]

    kept, counts, characters = Columns([], [], [], [], [], []), LineCounts(), 0
    for rows in slices:
        rows = _checked(rows, known_labels, has_client=has_client)
        for column, values in zip(kept[:6], rows[:6], strict=True):
            column.extend(values)  # type: ignore[arg-type]
        counts = counts.plus(rows.counts)
        characters += sum(map(size_of, rows.texts))
        if len(kept.lines) + len(kept.rejects) >= BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield batch()
            kept, counts, characters = Columns([], [], [], [], [], []), LineCounts(), 0
    if kept.lines or kept.rejects or any(counts):
        yield batch()


def _checked(rows: Columns, known_labels: frozenset[str] | None, *, has_client: bool) -> Columns:
    """The rows with labels and groups in their normal form, and those that `check` does not pass among the rejects."""
    if not rows.lines:
        return rows
    if isinstance(rows.texts[0], str):
        rows = rows._replace(labels=normal_names(rows.labels), groups=normal_names(rows.groups))  # type: ignore[arg-type]
        if _all_good(rows, known_labels, has_client=has_client):
            return rows
    else:
        labels = [tuple(normal_names(labels)) for labels in rows.labels]
        rows = rows._replace(labels=labels, groups=normal_names(rows.groups))  # type: ignore[arg-type]
    kept, rejects = Columns([], [], [], [], [], []), list(rows.rejects)
    for line, *values in zip(*rows[:5], strict=True):
        if reason := check(Fields(*values), known_labels, has_client=has_client):  # type: ignore[arg-type]
            rejects.append(Reject(line, reason))
        else:
            for column, value in zip(kept[:5], (line, *values), strict=True):
                column.append(value)  # type: ignore[arg-type]
    return kept._replace(rejects=sorted(rejects), counts=rows.counts)


def normal_names(names: Sequence[str]) -> list[str]:
    """Names without blanks around them, and composed as Unicode's NFC has them: what looks the same is the same."""
    normal = {name: name.strip() for name in set(names)}
    for name, stripped in normal.items():
        if not stripped.isascii():
            normal[name] = unicodedata.normalize("NFC", stripped)
    return list(map(normal.__getitem__, names))


def _all_good(rows: Columns, known_labels: frozenset[str] | None, *, has_client: bool) -> bool:
    """Whether `check` would surely pass all of these rows; a column at a time, that is ten times as fast."""
    _, texts, labels, clients, groups, *_ = rows
    if not all(_is_utf8("".join(column)) for column in (texts, labels, clients, groups)):  # type: ignore[arg-type]
        return False
    return (
        all(map(str.strip, texts))  # type: ignore[arg-type]
        and all(labels)
        and (not has_client or all(map(str.strip, clients)))
        and (known_labels is None or known_labels.issuperset(labels))  # type: ignore[arg-type]
    )


def _remember(hashes: dict[str, bytes], raw_ids: Iterable[str], keys: Keys) -> None:
    """Sees to it that these clients' hashes are among `hashes`, which grows to about CLIENTS_REMEMBERED."""
    if len(hashes) >= CLIENTS_REMEMBERED:
        hashes.clear()
    for raw_id in set(raw_ids).difference(hashes):
        hashes[raw_id] = client_hash(keys, raw_id)


# -- batches to rows ---------------------------------------------------------------------------------------------------


class Tokenized(NamedTuple):
    """A batch when it is done: tokenized rows, rejects with those that tokenization added, how many rows were read, and what
    became of their lines."""

    file: int
    read: int
    rows: Rows
    rejects: list[Reject]
    counts: LineCounts = LineCounts()


def tokenize(batch: RowBatch, tokenizer: Tokenizer) -> Tokenized:
    """Tokenizes a batch. A text that leaves no token (only control characters, say) is rejected as empty."""
    words = bool(batch.texts) and not isinstance(batch.texts[0], str)
    ids, lengths, labels = _words(batch, tokenizer) if words else _texts(batch, tokenizer)
    numbers, label_names = numbered(labels)
    groups, group_names = numbered(batch.groups)
    rows = Rows(
        hashes_to_numbers(batch.clients),
        np.full(len(lengths), batch.file, np.int32),
        np.array(batch.lines, np.int64),
        lengths,
        ids,
        numbers,
        groups,
        label_names,
        group_names,
    )
    rejects, empty = batch.rejects, lengths <= 2
    if empty.any():
        rejects = sorted([*rejects, *(Reject(line, EMPTY_TEXT) for line in rows.lines[empty].tolist())])
        rows = rows.take(np.flatnonzero(~empty)).with_names_used()
    return Tokenized(batch.file, batch.read, rows, rejects, batch.counts)


def _texts(batch: RowBatch, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray, list[str]]:
    ids, lengths = tokenizer.encode(batch.texts)  # type: ignore[arg-type]
    return ids, lengths, batch.labels  # type: ignore[return-value]


def _words(batch: RowBatch, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Sentences of words: the first piece of each word carries its tag, the other tokens ""."""
    ids, lengths, labels = [], [], list[str]()
    for words, tags in zip(batch.texts, batch.labels, strict=True):
        tokens, first = tokenizer.encode_words(words)
        ids.append(tokens)
        lengths.append(len(tokens))
        labels += (tags[word] if word >= 0 else "" for word in first.tolist())
    return np.concatenate(ids), np.array(lengths, np.int64), labels


def by_range(rows: Rows, ranges: int) -> Iterator[tuple[int, Rows]]:
    """Rows parted by `ranges_of`: the number of each range that has some, and its rows."""
    found = ranges_of(rows.clients, ranges)
    order = np.argsort(found, kind="stable")
    numbers, first = np.unique(found[order], return_index=True)
    for number, members in zip(numbers.tolist(), np.split(order, first[1:]), strict=True):
        yield number, rows.take(members)


# -- rows to clients ---------------------------------------------------------------------------------------------------


class Example(NamedTuple):
    """One example; sorts by where it was read."""

    file: int
    line: int
    group: str
    labels: tuple[str, ...]
    tokens: bytes


def examples_of(rows: Rows, first: int, last: int) -> Iterator[Example]:
    """Rows `first` to `last` one by one."""
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

    Those with the smallest keyed hash of the client and their content stay, so the choice does not depend on the order
    of the rows, nor on anything one could read off the text. Equal examples tie, and are interchangeable.
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
    there are none.

    `file_splits` names the split of each file, and is empty where clients are split by hash. `rejected(file, line)` is told
    every row of a client that came in files of several splits and lost there.
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
    """The split of each client that occurs in several."""
    ranks = np.array([SPLIT_PRECEDENCE.index(split) for split in file_splits], np.uint8)
    found = np.zeros((0, 2), np.uint64)
    bits = np.zeros(0, np.uint8)  # one for each split a client occurs in
    for message in read_segments(segments):
        rows = Rows.decode(message)
        found, place = np.unique(np.concatenate([found, rows.clients]), axis=0, return_inverse=True)
        every = np.concatenate([bits, np.left_shift(1, ranks[rows.files], dtype=np.uint8)])
        bits = np.zeros(len(found), np.uint8)
        np.bitwise_or.at(bits, place.reshape(-1), every)
    several = np.flatnonzero(bits & (bits - 1))
    first = [SPLIT_PRECEDENCE[(bit & -bit).bit_length() - 1] for bit in bits[several].tolist()]
    return dict(zip(numbers_to_hashes(found[several]), first, strict=True))


def _winners(
    rows: Rows, several: Mapping[bytes, str], file_splits: Sequence[str], lost: list[tuple[bytes, int, int]]
) -> Rows:
    """Without the rows of clients that stay in another split; those go to `lost`."""
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
        places = {(example.file, example.line) for example in kept}
        keep[start:end] = [
            place in places
            for place in zip(rows.files[start:end].tolist(), rows.lines[start:end].tolist(), strict=True)
        ]
        dropped[client] += end - start - len(kept)
    return rows.take(np.flatnonzero(keep))


# -- clients to records ------------------------------------------------------------------------------------------------


class SplitSummary(msgspec.Struct):
    """What one part holds of one split; histograms count by value. The index counts offsets from the part's beginning."""

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


def write_part(
    part: int,
    segments: Sequence[Segment],
    *,
    shard: int,
    folder: Path,
    labels: Sequence[str],
    groups: Sequence[str],
    limit: int,
    max_length: int,
    keys: Keys,
    file_splits: Sequence[str],
    shares: Mapping[str, float],
    reject_line: Callable[[int, int], bytes],
) -> PartSummary:
    """Writes the clients of one range as records by split. Clients are split by `file_splits`, or if that is empty by hash
    and `shares`."""
    summary = PartSummary(part, {}, str(folder / f"{uuid.uuid4().hex}.rejected"), 0, 0, 0)
    with writing(Path(summary.rejected)), Path(summary.rejected).open("wb") as rejected_rows:

        def rejected(file: int, line: int) -> None:
            rejected_rows.write(reject_line(file, line))
            summary.rejects += 1

        gathered = gather(segments, limit, keys, file_splits=file_splits, rejected=rejected)
    if gathered is None:
        return summary
    rows, summary.over_bound_clients, summary.examples_dropped = gathered
    rows = rows.renamed(
        {label: index for index, label in enumerate(labels)} | {"": records.IGNORED},
        {group: index for index, group in enumerate(groups)},
    )
    first = rows.first_of_clients()
    clients = numbers_to_hashes(rows.clients[first])
    if file_splits:
        splits = [file_splits[file] for file in rows.files[first].tolist()]
    else:
        splits = [split_of(keys, client, shares) for client in clients]
    counts = np.diff(first, append=len(rows))
    numbers, names = numbered(splits)
    split_of_row = np.repeat(numbers, counts)
    written = _write_records(rows, clients, counts, numbers, names, folder, shard)
    for number, split in enumerate(names):
        own = split_of_row == number
        own_labels = rows.labels[np.repeat(own, rows.lengths) if rows.labelled_tokens else own]
        data, index = written[number]
        summary.splits[split] = SplitSummary(
            str(data),
            str(index),
            int((numbers == number).sum()),
            int(own.sum()),
            np.bincount(own_labels[own_labels >= 0], minlength=len(labels)).tolist(),
            np.bincount(rows.groups[own], minlength=len(groups)).tolist(),
            np.bincount(rows.lengths[own], minlength=max_length + 1).tolist(),
        )
    return summary


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


def reject_line(file_name: str, where: str, reject: Reject) -> bytes:
    """A line of rejected.jsonl; `where` is "line", or "row" for parquet. It never holds the text."""
    last = {f"last_{where}": reject.line + reject.rows - 1} if reject.rows > 1 else {}
    return msgspec.json.encode({"file": file_name, where: reject.line, **last, "reason": reject.reason}) + b"\n"


# -- what the manifest says --------------------------------------------------------------------------------------------


class ReadSummary(msgspec.Struct):
    """What reading and tokenizing found, of one bundle or (merged) of all. `reasons` counts rows, of which a reject can stand
    for several, `labelled` the labels of rows or words; `lines` has the fields of LineCounts."""

    segments: list[Segment] = []
    rejected: list[Segment] = []
    rows: dict[int, int] = {}
    reasons: dict[str, int] = {}
    labels: list[str] = []
    groups: list[str] = []
    labelled: int = 0
    lines: dict[str, int] = {}


def merged(summaries: Iterable[ReadSummary]) -> ReadSummary:
    """All bundles' summaries as one, the same whatever their order."""
    total, rows, reasons, lines = ReadSummary(), Counter[int](), Counter[str](), Counter[str]()
    labels, groups = set[str](), set[str]()
    for one in summaries:
        total.segments += one.segments
        total.rejected += one.rejected
        rows.update(one.rows)
        reasons.update(one.reasons)
        lines.update(one.lines)
        labels.update(one.labels)
        groups.update(one.groups)
        total.labelled += one.labelled
    total.rejected.sort(key=lambda segment: (segment.key, segment.order, segment.offset))
    total.rows, total.reasons = dict(sorted(rows.items())), dict(sorted(reasons.items()))
    total.labels, total.groups, total.lines = sorted(labels), sorted(groups), dict(lines)
    return total


def check_names(
    read: ReadSummary, silo: SiloSection, *, labels_listed: bool, limit: int, complete: bool = True
) -> None:
    """InputError where label or group cannot be what the configuration says: their values are written down by name.

    A column of free text in their place would put the silo's text into the manifest, and from there into reports. As long as
    `read` is not `complete`, more rows may show that there are several for each name. Messages hold counts only.
    """
    rows = sum(read.rows.values())
    for key, column, names, uses in (
        ("label", silo.label, () if labels_listed else read.labels, read.labelled),
        ("group", silo.group, read.groups, rows),
    ):
        longest = max(map(len, names), default=0)
        if len(names) > limit:
            wrong = f"has more than {limit:,} different values (prepare.max_labels)"
        elif longest > MAX_NAME_CHARACTERS:
            wrong = f"has a value of {longest:,} characters; expected at most {MAX_NAME_CHARACTERS}"
        elif complete and len(names) > max(MANY_NAMES, uses / 2):
            unit = "words" if key == "label" and silo.format == "conll" else "rows"
            wrong = f"has {len(names):,} different values in {uses:,} {unit}; expected at least two {unit} for each"
        else:
            continue
        raise InputError(
            f"silo {silo.name!r}: the {key} column {column!r} {wrong}. It looks like free text or like names of people, and each value would be "
            f"written into the manifest. Correct `{key}` of the silo"
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
