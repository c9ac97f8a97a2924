"""The prepared data's file format: one TFRecord a client, and an index that finds it without reading the others.

A record is a serialized tf.train.Example. With n examples and t tokens in all ([CLS] and [SEP] counted):

    client   bytes [1]      keyed hash of the client's id, hex; the id itself stays in the raw input
    tokens   int64 [t]      the wordpiece ids of the examples, one after the other
    lengths  int64 [n]      tokens of each example
    labels   int64 [n]      sequence classification: an index into the manifest's labels
             int64 [t]      token classification: the same for each token, IGNORED where it carries no label
    groups   int64 [n]      an index into the manifest's groups; all 0 where there is no group column

`<split>.index.npy` is int64 [clients, 4], a row a client in ascending order of its hash: shard, byte offset of the
record's frame in the shard, bytes of its data, examples.
"""

import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import google_crc32c
import numpy as np

from tff_pipeline.errors import ArtifactError

if TYPE_CHECKING:
    import tensorflow as tf

CLIENT, TOKENS, LENGTHS, LABELS, GROUPS = "client", "tokens", "lengths", "labels", "groups"
IGNORED = -1
SHARD, OFFSET, SIZE, EXAMPLES = range(4)


def shard_name(split: str, shard: int, shards: int) -> str:
    return f"{split}-{shard:05d}-of-{shards:05d}.tfrecord"


def index_name(split: str) -> str:
    return f"{split}.index.npy"


def encode_client(
    client: str, tokens: np.ndarray, lengths: np.ndarray, labels: np.ndarray, groups: np.ndarray
) -> bytes:
    """One client's record. The same values give the same bytes, whoever wrote them."""
    import tensorflow as tf

    def ints(values: np.ndarray) -> "tf.train.Feature":
        return tf.train.Feature(int64_list=tf.train.Int64List(value=np.asarray(values, np.int64).tolist()))

    features = {
        CLIENT: tf.train.Feature(bytes_list=tf.train.BytesList(value=[client.encode()])),
        TOKENS: ints(tokens),
        LENGTHS: ints(lengths),
        LABELS: ints(labels),
        GROUPS: ints(groups),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(deterministic=True)


def encode_clients(
    clients: Sequence[str],
    counts: np.ndarray,
    tokens: np.ndarray,
    lengths: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
) -> Iterator[bytes]:
    """The records of many clients, each byte for byte what `encode_client` makes of it, and several times as fast.

    It writes protobuf's wire format itself (https://protobuf.dev/programming-guides/encoding), encodes the numbers of all
    clients together, and imports no TensorFlow.

    Args:
      clients: their ids, c of them.
      counts: int [c], examples of each.
      tokens, lengths, labels, groups: as in a record, but of all clients, one after the other.

    Raises:
      ValueError: if the arrays are not as long as `counts` and `lengths` say.
    """
    ends = np.cumsum(counts)
    token_ends = np.concatenate([[0], np.cumsum(lengths)])[np.concatenate([[0], ends])][1:]
    example_count, token_count = (int(last[-1]) if len(last) else 0 for last in (ends, token_ends))
    by_token = len(labels) != example_count
    sizes = len(clients), len(lengths), len(groups), len(tokens), len(labels)
    if sizes != (
        len(counts),
        example_count,
        example_count,
        token_count,
        token_count if by_token else example_count,
    ):
        raise ValueError(
            f"records.encode_clients: {sizes} clients, lengths, groups, tokens and labels; expected, from `counts` and `lengths`, "
            f"{(len(counts), example_count, example_count, token_count)} and as many labels as examples or tokens."
        )
    columns = zip(
        *(
            _packed(name, values, value_ends)
            for name, values, value_ends in (
                (GROUPS, groups, ends),
                (LABELS, labels, token_ends if by_token else ends),
                (LENGTHS, lengths, ends),
                (TOKENS, tokens, token_ends),
            )
        ),
        strict=True,
    )
    for client, entries in zip(clients, columns, strict=True):  # in the order of their names, "client" first
        name = client.encode()
        entry = b"\x0a\x06client" + _field(0x12, _field(0x0A, _field(0x0A, name)))
        yield _field(0x0A, b"".join((_field(0x0A, entry), *entries)))


def _packed(name: str, values: np.ndarray, ends: np.ndarray) -> Iterator[bytes]:
    """For each client the map entry of a feature: its part of `values`, which ends at its number in `ends`, as packed varints."""
    packed, offsets = _varints(np.asarray(values, np.int64))
    key = _field(0x0A, name.encode())
    start = 0
    for end in offsets[ends].tolist():
        numbers = packed[start:end]
        feature = _field(0x0A, numbers) if numbers else b""
        yield _field(0x0A, key + _field(0x12, _field(0x1A, feature)))
        start = end


def _varints(values: np.ndarray) -> tuple[bytes, np.ndarray]:
    """int64 [n] as varints, and the offsets at which they begin and the last one ends, int64 [n + 1]."""
    remaining = values.view(np.uint64)
    sizes = np.ones(len(remaining), np.int64)
    for bits in range(7, 64, 7):
        longer = remaining >= np.uint64(1 << bits)
        if not longer.any():
            break
        sizes += longer
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    packed = np.empty(offsets[-1], np.uint8)
    positions = offsets[:-1]
    while len(remaining):
        rest = remaining >> np.uint64(7)
        longer = rest > 0
        packed[positions] = (remaining & np.uint64(0x7F)).astype(np.uint8) | (longer.astype(np.uint8) << 7)
        remaining, positions = rest[longer], positions[longer] + 1
    return packed.tobytes(), offsets


def _field(tag: int, content: bytes) -> bytes:
    """A field of bytes: its tag, its length as a varint, and the bytes."""
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    head = bytearray((tag,))
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head) + content


def decode_client(record: bytes) -> dict[str, np.ndarray]:
    """The arrays of a record by name, int64; `client` is left out."""
    import tensorflow as tf

    features = tf.train.Example.FromString(record).features.feature
    return {name: np.array(features[name].int64_list.value, np.int64) for name in (TOKENS, LENGTHS, LABELS, GROUPS)}


def parse_in_graph(record: "tf.Tensor") -> dict[str, "tf.Tensor"]:
    """`decode_client` as TensorFlow ops: a scalar string to int64 vectors."""
    import tensorflow as tf

    spec = {
        name: tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True)
        for name in (TOKENS, LENGTHS, LABELS, GROUPS)
    }
    return tf.io.parse_single_example(record, spec)


def masked_crc(data: bytes) -> int:
    """The checksum of TFRecord frames (tensorflow/core/lib/hash/crc32c.h)."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def write_frame(file: BinaryIO, data: bytes) -> int:
    """Appends a TFRecord frame; returns its number of bytes."""
    header = struct.pack("<Q", len(data))
    file.write(header + struct.pack("<I", masked_crc(header)) + data + struct.pack("<I", masked_crc(data)))
    return len(data) + 16


class ClientReader:
    """Random access to the clients of one split of a snapshot, by their row in the index.

    Opens shards when they are first read; call `close` or use it in a `with` block. Threads may share one: the runtimes
    work on several clients at a time.
    """

    def __init__(self, snapshot: Path, split: str, shards: Sequence[str]):
        self._paths = [snapshot / shard for shard in shards]
        self._files: dict[int, BinaryIO] = {}
        self._lock = threading.Lock()
        self.index: np.ndarray = np.load(snapshot / index_name(split)) if shards else np.zeros((0, 4), np.int64)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def examples(self) -> np.ndarray:
        """Examples of each client, int64 [clients]."""
        return self.index[:, EXAMPLES]

    def read(self, row: int) -> bytes:
        """The record of one client.

        Raises:
          ArtifactError: if the frame is cut short or its checksum is wrong.
        """
        shard, offset, size, _ = self.index[row].tolist()
        with self._lock:  # another thread's seek must not come between ours and our read
            if shard not in self._files:
                self._files[shard] = self._paths[shard].open("rb")
            file = self._files[shard]
            file.seek(offset)
            frame = file.read(size + 16)
        data = frame[12 : 12 + size]
        if len(frame) < size + 16 or struct.unpack("<I", frame[12 + size :])[0] != masked_crc(data):
            raise ArtifactError(
                f"{self._paths[shard]}: the record at byte {offset} is cut short or damaged (checksum). Remove the snapshot and prepare the silo again."
            )
        return data

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def __enter__(self) -> "ClientReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
