"""Hashes of clients: one person is one client, keyed, and evenly over splits and ranges."""

import hmac

import numpy as np
import pytest
from builders.tokenized_rows import KEYS, batched, columns

from beam_jobs.rows import hashes_to_numbers, numbers_to_hashes
from beam_jobs.steps import batches, clients
from tff_pipeline.errors import InputError


def test_client_hash_is_keyed_and_has_128_bits():
    assert len(clients.client_hash(KEYS, "anna")) == 16
    assert clients.client_hash(KEYS, "anna") == clients.client_hash(clients.Keys.of(b"k" * 32), "anna")
    assert clients.client_hash(KEYS, "anna") != clients.client_hash(clients.Keys.of(b"j" * 32), "anna")
    assert clients.client_hash(KEYS, "anna") != clients.client_hash(KEYS, "Anna")


def test_one_person_is_one_client_however_the_id_is_written():
    decomposed, composed = "Jose\u0301", "Jos\u00e9"

    for same in (
        ["alice", "alice ", " alice", "alice\n"],
        [decomposed, composed],
        ["42", "42.0", " 42.00 "],
        ["-7", "-7.0"],
    ):
        assert len({clients.client_hash(KEYS, name) for name in same}) == 1, same
    for different in (
        ["alice", "Alice"],
        ["42", "042"],
        ["42.5", "42"],
        ["4.2.0", "4.2"],
        ["42.0a", "42a"],
        [".0", "0"],
    ):
        assert len({clients.client_hash(KEYS, name) for name in different}) == 2, different


@pytest.mark.parametrize(
    "name", ["1.2345678901234568e+17", "1.23E17", " 1e+17", "-9007199254740992.0", "9007199254740993.5", "1.0e+999"]
)
def test_text_of_a_float_that_may_stand_for_several_people_is_refused(name):
    """As pandas writes a column of large numbers in which one is missing."""
    with pytest.raises(InputError) as raised:
        batched([columns((1, "help", "x", "ben", ""), (2, "help", "x", name, ""))], client_column="who")
    assert "a.csv: the client column 'who' holds a number of 2^53 or above as a float" in str(raised.value)
    assert "Write the ids as text" in str(raised.value)
    assert name.strip() not in str(raised.value)


@pytest.mark.parametrize(
    "name",
    ["9007199254740993", "12345678e17", "9007199254740991.0", "1.5e+3", "1.2.3e+17", "1e+17a", "12345678901234567-1"],
)
def test_text_that_is_no_large_float_is_a_client(name):
    assert len(batched([columns((1, "help", "x", name, ""))])[0].clients) == 16


def test_ordinary_ids_have_the_hash_they_always_had():
    """HMAC-SHA256 of "id", a zero byte and the id under the key for clients, which is HMAC-SHA256 of its name."""
    key = hmac.digest(b"k" * 32, b"tff-pipeline client", "sha256")

    for name in ("anna", "4711", "c-1.5", "王"):
        assert clients.client_hash(KEYS, name) == hmac.digest(key, b"id\0" + name.encode(), "sha256")[:16]


def test_one_secret_gives_three_keys():
    """What one hash shows must say nothing of another."""
    assert len({KEYS.client, KEYS.split, KEYS.bound}) == 3


def test_a_row_client_is_never_a_named_client():
    assert clients.row_client_hash(KEYS, "a.csv", 12) != clients.row_client_hash(KEYS, "a.csv", 1)
    assert clients.row_client_hash(KEYS, "a.csv", 12) != clients.row_client_hash(KEYS, "b.csv", 12)


def test_splits_have_their_shares():
    """10,000 clients at shares 0.8, 0.15, 0.05: within four standard deviations (40, 36, 22), so it fails once in 5,000 keys."""
    splits = [
        clients.split_of(KEYS, clients.client_hash(KEYS, str(number)), {"train": 0.8, "validation": 0.15, "test": 0.05})
        for number in range(10_000)
    ]

    assert abs(splits.count("train") - 8000) < 160
    assert abs(splits.count("validation") - 1500) < 144
    assert abs(splits.count("test") - 500) < 88


def test_a_split_without_share_gets_nobody():
    hashes = [clients.client_hash(KEYS, str(number)) for number in range(200)]

    assert {clients.split_of(KEYS, client, {"train": 1.0}) for client in hashes} == {"train"}
    assert {clients.split_of(KEYS, client, {"train": 0.5, "validation": 0.0, "test": 0.5}) for client in hashes} == {
        "train",
        "test",
    }


def test_ranges_of_hashes_nest_and_ascend():
    numbers = hashes_to_numbers(b"".join(sorted(clients.client_hash(KEYS, str(number)) for number in range(500))))

    fine = clients.ranges_of(numbers, 3 * 7)
    assert fine.tolist() == sorted(fine)
    assert set(fine.tolist()) == set(range(21))
    assert (fine // 7).tolist() == clients.ranges_of(numbers, 3).tolist()
    ends = hashes_to_numbers(bytes(16) + b"\xff" * 16)
    assert clients.ranges_of(ends, 256).tolist() == [0, 255]


def test_hashes_come_back_and_sort_as_numbers():
    hashes = [bytes([1, *[0] * 15]), bytes([0] * 8 + [255] * 8), bytes([0] * 15 + [1]), b"\x80" + bytes(15)]

    numbers = hashes_to_numbers(b"".join(hashes))
    assert numbers_to_hashes(numbers) == hashes
    assert [hashes[row] for row in np.lexsort(numbers.T[::-1])] == sorted(hashes)
    assert numbers_to_hashes(np.concatenate([numbers[:1], numbers[1:]])) == hashes


def test_more_clients_than_are_remembered_have_the_hashes_they_had(monkeypatch):
    monkeypatch.setattr(batches, "CLIENTS_REMEMBERED", 3)
    monkeypatch.setattr(batches, "BATCH_ROWS", 2)
    names = ["a", "b", "c", "d", "a", "e", "b", "a"]

    batched_rows = batched([columns((line, "help", "x", name, "")) for line, name in enumerate(names)])
    assert b"".join(batch.clients for batch in batched_rows) == b"".join(
        clients.client_hash(KEYS, name) for name in names
    )
