"""Clients put together from their rows: in whatever order these come, within the bound, and in one split."""

import itertools

import pytest
from builders.tokenized_rows import AB, KEYS, examples, rows_of

from beam_jobs.rows import numbers_to_hashes
from beam_jobs.segments import SegmentWriter, read_segments
from beam_jobs.steps import clients, gathering


def spilled(tmp_path, parts):
    writer = SegmentWriter(tmp_path)
    for rows in parts:
        writer.add(0, rows.encode())
    return writer.close()


def gather(tmp_path, parts, *, limit=100, file_splits=()):
    rejected: list[tuple[int, int]] = []
    gathered = gathering.gather(
        spilled(tmp_path, parts),
        limit,
        KEYS,
        file_splits=file_splits,
        rejected=lambda file, line: rejected.append((file, line)),
    )
    return gathered, rejected


def test_the_bound_does_not_depend_on_the_order_of_rows():
    every = examples(rows_of(values=[(value,) for value in (4, 5, 6, 7, 8)]))
    chosen = {
        tuple(sorted(example.tokens for example in gathering.bound(order, 2, KEYS, AB)))
        for order in itertools.permutations([example._replace(line=line) for line, example in enumerate(every)])
    }
    moved = gathering.bound([example._replace(file=3, line=100 - example.line) for example in every], 2, KEYS, AB)

    assert len(chosen) == 1
    assert tuple(sorted(example.tokens for example in moved)) in chosen


def test_the_bound_is_keyed_and_its_result_in_reading_order():
    """With 30 examples, 5 of them kept, two keys agree once in 142,506."""
    every = examples(rows_of(values=[(value,) for value in range(4, 34)]))

    kept = gathering.bound(every, 5, KEYS, AB)
    assert kept == sorted(kept)
    assert kept != gathering.bound(every, 5, clients.Keys.of(b"j" * 32), AB)
    assert kept != gathering.bound(every, 5, KEYS, bytes(16))


def test_gather_puts_rows_of_any_order_together(tmp_path):
    parts = [
        rows_of(first=1, values=((4,), (5, 5))),
        rows_of(first=3, values=((6,), (7, 7))),
        rows_of(file=1, first=1, values=((8,), (9, 9))),
        rows_of(client=bytes(16)),
    ]

    gathered, _ = gather(tmp_path, parts)
    assert gathered.rows.first_of_clients().tolist() == [0, 2]
    assert numbers_to_hashes(gathered.rows.clients[[0, 2]]) == [bytes(16), AB]
    assert gathered.rows.lengths.tolist() == [3, 4] * 4
    assert [token for token in gathered.rows.tokens.tolist() if token > 3] == [5, 6, 7, 4, 5, 5, 6, 7, 7, 8, 9, 9]
    for order in itertools.permutations(parts):
        again, _ = gather(tmp_path, order)
        assert examples(again.rows) == examples(gathered.rows)


def test_clients_whose_hashes_agree_half_way_are_two(tmp_path):
    first, second = AB[:8] + bytes(8), AB[:8] + b"\x01" + bytes(7)

    gathered, _ = gather(tmp_path, [rows_of(client=second), rows_of(client=first), rows_of(client=second, first=9)])
    assert gathered.rows.first_of_clients().tolist() == [0, 2]
    assert numbers_to_hashes(gathered.rows.clients) == [first] * 2 + [second] * 4


@pytest.mark.parametrize("gather_bytes", [1, 2**20])
def test_a_client_of_many_rows_is_trimmed_on_the_way_to_the_same_examples(tmp_path, monkeypatch, gather_bytes):
    """200 examples, one after the other and trimmed again and again, or all at once, 7 at a time as objects; and one client
    with as many as it may keep."""
    monkeypatch.setattr(gathering, "GATHER_BYTES", gather_bytes)
    monkeypatch.setattr(gathering, "BOUND_ROWS", 7)
    parts = [rows_of(first=line, values=((line,),)) for line in range(1, 201)]
    small = rows_of(client=bytes(16), values=[(value,) for value in range(5)])

    gathered, _ = gather(tmp_path, [*parts[:100], small, *parts[100:]], limit=5)
    at_once = gathering.bound((example for part in parts for example in examples(part)), 5, KEYS, AB)

    assert (gathered.over_bound_clients, gathered.examples_dropped) == (1, 195)
    assert examples(gathered.rows) == examples(small) + at_once


def test_a_client_in_several_splits_stays_with_what_is_held_out(tmp_path):
    parts = [
        rows_of(file=2, first=5),
        rows_of(file=1, first=7),
        rows_of(file=0, first=9),
        rows_of(client=b"\xcd" * 16, file=2),
    ]

    for order in itertools.permutations(parts):
        gathered, rejected = gather(tmp_path, order, file_splits=["validation", "test", "train"])
        assert gathered.rows.files.tolist() == [1, 1, 2, 2]
        assert numbers_to_hashes(gathered.rows.clients) == [AB] * 2 + [b"\xcd" * 16] * 2
        assert rejected == [(0, 9), (0, 10), (2, 5), (2, 6)]


def test_segments_come_back_by_key_also_when_the_buffer_is_small(tmp_path):
    writer = SegmentWriter(tmp_path, buffer_bytes=10)
    for number in range(20):
        writer.add(number % 3, str(number).encode() * 3, order=number)
    segments = writer.close()

    for key in range(3):
        assert list(read_segments(segment for segment in segments if segment.key == key)) == [
            str(n).encode() * 3 for n in range(20) if n % 3 == key
        ]
