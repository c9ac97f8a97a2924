"""The plain functions of prepare: who is who, what is rejected, which examples stay."""

import itertools

import msgspec
import numpy as np
import pytest
from prepare_helpers import VOCABULARY

from beam_jobs import steps
from beam_jobs.formats import Fields, RawRow
from beam_jobs.spill import SegmentWriter, read_segments
from tff_pipeline.tokenization import Tokenizer

KEYS = steps.Keys.of(b"k" * 32)
TOKENIZER = Tokenizer(VOCABULARY, lower_case=True, max_length=8)


def pack(
    client: str = "ab" * 16, split: str = "train", file: int = 0, first: int = 1, values=((5,), (6, 7))
) -> steps.Pack:
    """Examples on consecutive lines with the given pieces."""
    lengths = [len(value) + 2 for value in values]
    tokens = np.array([token for value in values for token in (2, *value, 3)], np.int32).tobytes()
    lines = list(range(first, first + len(values)))
    return steps.Pack(client, split, file, lines, lengths, tokens, ["x"] * len(values), [""] * len(values))


def gather(tmp_path, packs, *, limit=100, split_by_files=False):
    writer = SegmentWriter(tmp_path)
    for one in packs:
        writer.add(0, msgspec.msgpack.encode(one))
    rejected: list[tuple[int, int]] = []
    clients = steps.gather(
        writer.close(),
        limit,
        KEYS,
        split_by_files=split_by_files,
        rejected=lambda file, line: rejected.append((file, line)),
    )
    return clients, rejected


def test_client_hash_is_keyed_and_has_128_bits():
    assert len(steps.client_hash(KEYS, "anna")) == 32
    assert steps.client_hash(KEYS, "anna") == steps.client_hash(steps.Keys.of(b"k" * 32), "anna")
    assert steps.client_hash(KEYS, "anna") != steps.client_hash(steps.Keys.of(b"j" * 32), "anna")
    assert steps.client_hash(KEYS, "anna") != steps.client_hash(KEYS, "Anna")


def test_one_secret_gives_three_keys():
    """What one hash shows must say nothing of another."""
    assert len({KEYS.client, KEYS.split, KEYS.bound}) == 3


def test_a_row_client_is_never_a_named_client():
    assert steps.row_client_hash(KEYS, "a.csv", 12) != steps.row_client_hash(KEYS, "a.csv", 1)
    assert steps.row_client_hash(KEYS, "a.csv", 12) != steps.row_client_hash(KEYS, "b.csv", 12)


def test_splits_have_their_shares():
    """10,000 clients at shares 0.8, 0.15, 0.05: within four standard deviations (40, 36, 22), so it fails once in 5,000 keys."""
    splits = [
        steps.split_of(KEYS, steps.client_hash(KEYS, str(number)), {"train": 0.8, "validation": 0.15, "test": 0.05})
        for number in range(10_000)
    ]

    assert abs(splits.count("train") - 8000) < 160
    assert abs(splits.count("validation") - 1500) < 144
    assert abs(splits.count("test") - 500) < 88


def test_a_split_without_share_gets_nobody():
    clients = [steps.client_hash(KEYS, str(number)) for number in range(200)]

    assert {steps.split_of(KEYS, client, {"train": 1.0}) for client in clients} == {"train"}
    assert {steps.split_of(KEYS, client, {"train": 0.5, "validation": 0.0, "test": 0.5}) for client in clients} == {
        "train",
        "test",
    }


def test_ranges_of_hashes_nest_and_ascend():
    clients = sorted(steps.client_hash(KEYS, str(number)) for number in range(500))

    fine = [steps.range_of(client, 3 * 7) for client in clients]
    assert fine == sorted(fine)
    assert set(fine) == set(range(21))
    assert [one // 7 for one in fine] == [steps.range_of(client, 3) for client in clients]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (Fields("help", "x", "anna", ""), ""),
        (Fields("你好", "x", "王", ""), ""),
        (Fields(" \t\n", "x", "anna", ""), "empty text"),
        (Fields("help", "", "anna", ""), "empty label"),
        (Fields("help", "y", "anna", ""), "unknown label"),
        (Fields("help", "x", " ", ""), "empty client"),
        (Fields("he\udcfflp", "x", "anna", ""), "not UTF-8"),
        (Fields("help", "x", "\udcff", ""), "not UTF-8"),
        (Fields(("help", "me"), ("x", "x"), "anna", ""), ""),
        (Fields(("help", "me"), ("x", "y"), "anna", ""), "unknown label"),
        (Fields(("help", "me"), ("x", ""), "anna", ""), "empty label"),
        (Fields(("", " "), ("x", "x"), "anna", ""), "empty text"),
    ],
)
def test_reasons(fields, reason):
    assert steps.check(fields, frozenset({"x"}), has_client=True) == reason


def test_without_a_client_column_none_is_missed():
    assert steps.check(Fields("help", "x", "", ""), None, has_client=False) == ""


def batches(rows, **keys):
    return list(steps.batches(rows, file=0, file_name="a.csv", known_labels=None, has_client=True, keys=KEYS, **keys))


def test_batches_end_by_rows_and_by_characters(monkeypatch):
    monkeypatch.setattr(steps, "BATCH_ROWS", 3)
    monkeypatch.setattr(steps, "BATCH_CHARACTERS", 10)
    rows = [
        RawRow(line, Fields("a" * length, "x", "anna", "")) for line, length in enumerate([1, 1, 1, 9, 9, 1], start=1)
    ]

    assert [batch.lines for batch in batches(rows)] == [[1, 2, 3], [4, 5], [6]]


def test_rejects_keep_their_lines():
    (batch,) = batches(
        [
            RawRow(1, None, "not JSON"),
            RawRow(2, Fields("help", " x ", "anna", " g ")),
            RawRow(3, Fields("", "x", "anna", "")),
        ]
    )

    assert batch.rejects == [(1, "not JSON"), (3, "empty text")]
    assert (batch.lines, batch.labels, batch.groups) == ([2], ["x"], ["g"])


def test_tokenize_packs_by_client_and_rejects_what_has_no_tokens():
    batch = steps.RowBatch(
        0,
        [1, 2, 3, 4],
        ["my card", "help", "\u200b\u0000", "lost"],
        ["x", "y", "x", "z"],
        ["c1", "c2", "c1", "c1"],
        ["", "g", "", "h"],
        [],
    )

    done = steps.tokenize(batch, TOKENIZER, split=lambda client: "train")

    assert done.rows == 4
    assert done.rejects == [(3, "empty text")]
    one, two = done.packs
    assert (one.client, one.lines, one.lengths, one.labels, one.groups) == ("c1", [1, 4], [4, 3], ["x", "z"], ["", "h"])
    assert np.frombuffer(one.tokens, np.int32).tolist() == [2, 4, 5, 3, 2, 7, 3]
    assert np.frombuffer(two.tokens, np.int32).tolist() == [2, 9, 3]


def test_words_carry_their_tag_on_the_first_piece():
    """ "cards" is two pieces, and max_length 8 leaves room for six: the last word and its tag are cut off."""
    batch = steps.RowBatch(
        0, [1], [("my", "cards", "lost", "a", "b", "help")], [("O", "B-x", "O", "I-x", "O", "O")], ["c"], [""], []
    )

    (one,) = steps.tokenize(batch, TOKENIZER, split=lambda client: "train").packs

    assert np.frombuffer(one.tokens, np.int32).tolist() == [2, 4, 5, 13, 7, 15, 16, 3]
    assert one.labels == ["", "O", "B-x", "", "O", "I-x", "O", ""]
    (example,) = steps.examples_of(one)
    assert example.labels == tuple(one.labels)


def test_examples_of_a_pack():
    first, second = steps.examples_of(pack(values=((5,), (6, 7)), first=10))

    assert (first.line, first.labels, np.frombuffer(first.tokens, np.int32).tolist()) == (10, ("x",), [2, 5, 3])
    assert (second.line, second.labels, np.frombuffer(second.tokens, np.int32).tolist()) == (11, ("x",), [2, 6, 7, 3])


def test_the_bound_does_not_depend_on_the_order_of_rows():
    examples = list(steps.examples_of(pack(values=[(value,) for value in (4, 5, 6, 7, 8)])))
    chosen = {
        tuple(sorted(one.tokens for one in steps.bound(order, 2, KEYS, "c")))
        for order in itertools.permutations([one._replace(line=line) for line, one in enumerate(examples)])
    }
    moved = steps.bound([one._replace(file=3, line=100 - one.line) for one in examples], 2, KEYS, "c")

    assert len(chosen) == 1
    assert tuple(sorted(one.tokens for one in moved)) in chosen


def test_the_bound_is_keyed_and_its_result_in_reading_order():
    """With 30 examples, 5 of them kept, two keys agree once in 142,506."""
    examples = list(steps.examples_of(pack(values=[(value,) for value in range(4, 34)])))

    kept = steps.bound(examples, 5, KEYS, "c")
    assert kept == sorted(kept)
    assert kept != steps.bound(examples, 5, steps.Keys.of(b"j" * 32), "c")
    assert kept != steps.bound(examples, 5, KEYS, "d")


def test_gather_puts_packs_of_any_order_together(tmp_path):
    packs = [
        pack(first=1, values=((4,), (5, 5))),
        pack(first=3, values=((6,), (7, 7))),
        pack(file=1, first=1, values=((8,), (9, 9))),
        pack(client="00" * 16),
    ]

    clients, _ = gather(tmp_path, packs)
    assert clients[0].client == "00" * 16
    assert clients[1].lengths == [3, 4] * 3
    assert [token for token in clients[1].tokens.tolist() if token > 3] == [4, 5, 5, 6, 7, 7, 8, 9, 9]
    for order in itertools.permutations(packs):
        again, _ = gather(tmp_path, order)
        assert [one.tokens.tolist() for one in again] == [one.tokens.tolist() for one in clients]


def test_a_client_of_many_rows_is_trimmed_on_the_way_to_the_same_examples(tmp_path):
    """200 examples in packs of one pass the limit of 5 many times; all at once pass it once."""
    packs = [pack(first=line, values=((line,),)) for line in range(1, 201)]

    (client,), _ = gather(tmp_path, packs, limit=5)
    at_once = steps.bound((example for one in packs for example in steps.examples_of(one)), 5, KEYS, client.client)

    assert client.dropped == 195
    assert client.tokens.tobytes() == b"".join(one.tokens for one in at_once)


def test_a_client_in_several_splits_stays_with_what_is_held_out(tmp_path):
    packs = [
        pack(split="train", file=2, first=5),
        pack(split="test", file=1, first=7),
        pack(split="validation", file=0, first=9),
        pack(client="cd" * 16),
    ]

    for order in itertools.permutations(packs):
        (client, untouched), rejected = gather(tmp_path, order, split_by_files=True)
        assert (client.split, untouched.split) == ("test", "train")
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


def test_percentiles_are_values_that_occur():
    """Values 1 (50 times), 2 (40 times), 3 (9 times), 9 (once)."""
    histogram = [0, 50, 40, 9, 0, 0, 0, 0, 0, 1]

    assert steps.percentiles(histogram) == {"p50": 1, "p90": 2, "p99": 3, "max": 9}
    assert steps.percentiles([0, 0, 1]) == {"p50": 2, "p90": 2, "p99": 2, "max": 2}
    assert steps.percentiles([]) == {"p50": 0, "p90": 0, "p99": 0, "max": 0}


def test_merging_summaries_does_not_depend_on_their_order():
    one = steps.ReadSummary(rows={0: 3}, reasons={"empty text": 1}, labels=["b"], groups=["g"])
    two = steps.ReadSummary(rows={0: 2, 1: 4}, reasons={"empty text": 2, "not JSON": 1}, labels=["a", "b"], groups=[""])

    assert steps.merged([one, two]) == steps.merged([two, one])
    assert steps.merged([one, two]).rows == {0: 5, 1: 4}
    assert steps.merged([one, two]).reasons == {"empty text": 3, "not JSON": 1}
    assert steps.merged([one, two]).labels == ["a", "b"]
