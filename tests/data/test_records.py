"""The record format: what is written comes back, by every way of reading it, and damage is refused."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tff_pipeline.data import records
from tff_pipeline.errors import ArtifactError

CLIENTS = [
    # client, tokens, lengths, labels, groups
    ("00aa", [2, 7, 3, 2, 8, 9, 3], [3, 4], [1, 0], [0, 1]),
    ("11bb", [2, 3], [2], [2], [0]),
    ("22cc", [], [], [], []),
    ("33dd", [2, 5, 6, 3], [4], [records.IGNORED, 1, 0, records.IGNORED], [1]),  # token classification
]


def encoded(client: tuple) -> bytes:
    name, *arrays = client
    return records.encode_client(name, *(np.array(array, np.int64) for array in arrays))


@pytest.fixture
def snapshot(tmp_path) -> tuple[Path, list[str]]:
    """CLIENTS in two shards, out of order within them, and their index."""
    shards = [records.shard_name("train", shard, 2) for shard in range(2)]
    index = np.zeros((len(CLIENTS), 4), np.int64)
    for shard, rows in enumerate([(2, 0), (3, 1)]):
        with (tmp_path / shards[shard]).open("wb") as file:
            for row in rows:
                data = encoded(CLIENTS[row])
                index[row] = shard, file.tell(), len(data), len(CLIENTS[row][2])
                assert records.write_frame(file, data) == len(data) + 16
    np.save(tmp_path / records.index_name("train"), index)
    return tmp_path, shards


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client[0])
def test_a_client_comes_back(client):
    found = records.decode_client(encoded(client))

    assert {name: array.tolist() for name, array in found.items()} == dict(
        zip((records.TOKENS, records.LENGTHS, records.LABELS, records.GROUPS), client[1:], strict=True)
    )
    assert {array.dtype for array in found.values()} == {np.dtype(np.int64)}


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client[0])
def test_a_graph_reads_the_same(client):
    in_graph = tf.function(records.parse_in_graph)(tf.constant(encoded(client)))

    for name, array in records.decode_client(encoded(client)).items():
        assert in_graph[name].numpy().tolist() == array.tolist()
        assert in_graph[name].dtype == tf.int64


def test_equal_clients_have_equal_bytes_whatever_type_they_came_in():
    name, *arrays = CLIENTS[0]

    assert records.encode_client(name, *(np.array(array, np.int32) for array in arrays)) == encoded(CLIENTS[0])


def test_many_clients_at_once_have_the_bytes_protobuf_gives_them():
    """Varints of one to ten bytes, fields of one to three bytes' length, a client without examples in between."""
    random = np.random.default_rng(0)
    edges = [0, 1, 127, 128, 2**14 - 1, 2**14, 2**21, 2**31 - 1, 2**32, 2**35, 2**62, 2**63 - 1, -1, -(2**63)]
    clients = [
        (f"{number:032x}", *(random.integers(0, 30_000, size) for size in (3 * n, n, n, n)))
        for number, n in enumerate([1, 0, 5, 40, 700, 8000])
    ]
    clients = [
        (name, tokens, np.full(len(lengths), 3), labels, groups) for name, tokens, lengths, labels, groups in clients
    ]
    clients.append(("ü" * 100, np.array(edges), np.array([len(edges)]), np.array([-1]), np.array([2**40])))
    per_token = [
        (name, tokens, lengths, np.arange(len(tokens)) % 3 - 1, groups) for name, tokens, lengths, _, groups in clients
    ]

    for given in (clients, per_token, clients[:1], clients[1:2], []):
        names, *columns = zip(*given, strict=True) if given else ([], *[[np.zeros(0, np.int64)]] * 4)
        joined = (np.concatenate(column) for column in columns)
        counts = np.array([len(client[2]) for client in given], np.int64)
        found = list(records.encode_clients(names, counts, *joined))
        assert found == [records.encode_client(*client) for client in given]


def test_arrays_that_do_not_fit_together_are_refused():
    one, two = np.ones(1, np.int64), np.ones(2, np.int64)

    with pytest.raises(
        ValueError, match=r"records\.encode_clients: \(1, 1, 1, 2, 1\) clients, lengths, groups, tokens and labels"
    ):
        list(records.encode_clients(["c"], one, two, one, one, one))


def test_any_client_is_read_without_the_others(snapshot):
    folder, shards = snapshot

    with records.ClientReader(folder, "train", shards) as reader:
        assert len(reader) == 4
        assert reader.examples.tolist() == [2, 1, 0, 1]
        for row in (3, 0, 2, 1, 0):
            assert reader.read(row) == encoded(CLIENTS[row])


def test_tensorflow_reads_our_frames(snapshot):
    """Its checksums are not ours, so this compares both implementations."""
    folder, shards = snapshot

    found = [record.numpy() for record in tf.data.TFRecordDataset([str(folder / shard) for shard in shards])]

    assert found == [encoded(CLIENTS[row]) for row in (2, 0, 3, 1)]


def test_we_read_tensorflows_frames(tmp_path):
    path = tmp_path / "other.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(b"data")
    np.save(tmp_path / records.index_name("train"), np.array([[0, 0, 4, 1]], np.int64))

    with records.ClientReader(tmp_path, "train", [path.name]) as reader:
        assert reader.read(0) == b"data"


def test_the_checksum_is_that_of_the_format():
    """CRC-32C of "123456789" is 0xE3069283 (RFC 3720 lists it as check value); masked as the format says, by hand."""
    crc = 0xE3069283
    rotated = (crc >> 15) | ((crc << 17) & 0xFFFFFFFF)

    assert records.masked_crc(b"123456789") == (rotated + 0xA282EAD8) % 2**32


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_record_is_refused_by_its_place_and_the_others_are_read(snapshot, damage):
    folder, shards = snapshot
    path = folder / shards[1]
    content = path.read_bytes()
    path.write_bytes(content[:-3] if damage == "cut" else content[:-10] + bytes([content[-10] ^ 1]) + content[-9:])
    offset = len(encoded(CLIENTS[3])) + 16

    with records.ClientReader(folder, "train", shards) as reader:
        assert reader.read(3) == encoded(CLIENTS[3])
        with pytest.raises(ArtifactError, match=rf"{path.name}: the record at byte {offset} is cut short or damaged"):
            reader.read(1)


def test_a_split_without_shards_has_no_clients(tmp_path):
    with records.ClientReader(tmp_path, "validation", []) as reader:
        assert len(reader) == 0
        assert reader.examples.tolist() == []


def test_files_are_named_by_split_and_shard():
    assert records.shard_name("train", 3, 12) == "train-00003-of-00012.tfrecord"
    assert records.index_name("test") == "test.index.npy"


def test_threads_may_share_a_reader(tmp_path):
    """Eight threads read 400 clients of one shard each, in orders of their own; every record is the one asked for."""
    data = [records.encode_client(f"c{row}", np.full(500 + row, row), [500 + row], [0], [0]) for row in range(400)]
    index, place = [], 0
    with (tmp_path / "shard").open("wb") as file:
        for record in data:
            index.append([0, place, len(record), 1])
            place += records.write_frame(file, record)
    np.save(tmp_path / records.index_name("train"), np.array(index))

    def read_all(seed: int) -> bool:
        rows = np.random.default_rng(seed).permutation(len(data))
        return all(reader.read(int(row)) == data[row] for row in rows)

    with records.ClientReader(tmp_path, "train", ["shard"]) as reader, ThreadPoolExecutor(8) as threads:
        assert all(threads.map(read_all, range(8)))
