"""The plain functions of prepare: who is who, what is rejected, which examples stay."""

import dataclasses
import hmac
import itertools

import numpy as np
import pytest
from builders.prepare_helpers import VOCABULARY

from beam_jobs.reading import Columns, Fields, Reject
from beam_jobs.rows import Rows, hashes_to_numbers, numbers_to_hashes
from beam_jobs.segments import SegmentWriter, read_segments
from beam_jobs.steps import batches, clients, gathering, summaries, tokens
from tff_pipeline.config import SiloSection
from tff_pipeline.data.tokenization import Tokenizer
from tff_pipeline.errors import InputError

KEYS = clients.Keys.of(b"k" * 32)
TOKENIZER = Tokenizer(VOCABULARY, lower_case=True, max_length=8)


AB = bytes.fromhex("ab" * 16)


def rows_of(client: bytes = AB, file: int = 0, first: int = 1, values=((5,), (6, 7)), label: str = "x") -> Rows:
    """Rows on consecutive lines with the given pieces."""
    count = len(values)
    return Rows(
        hashes_to_numbers(client * count),
        np.full(count, file, np.int32),
        np.arange(first, first + count),
        np.array([len(value) + 2 for value in values]),
        np.array([token for value in values for token in (2, *value, 3)], np.int32),
        np.zeros(count, np.int32),
        np.zeros(count, np.int32),
        [label],
        [""],
    )


def examples(rows: Rows) -> list[gathering.Example]:
    return list(gathering.examples_of(rows, 0, len(rows)))


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


def test_labels_and_groups_are_composed_and_stripped():
    rows_ = [(1, "help", " caf\u00e9 ", "anna", "g "), (2, "help", "cafe\u0301", "anna", " g")]

    (batch,) = batched([columns(*rows_)], frozenset({"caf\u00e9"}))
    assert (batch.labels, batch.groups, batch.rejects) == (["caf\u00e9"] * 2, ["g"] * 2, [])


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
        (Fields(("help", "me"), ("x", "x"), "", ""), "empty client"),
        (Fields(("help", "me"), ("x", "y"), "anna", ""), "unknown label"),
        (Fields(("help", "me"), ("x", ""), "anna", ""), "empty label"),
        (Fields(("", " "), ("x", "x"), "anna", ""), "empty text"),
    ],
)
def test_reasons(fields, reason):
    assert batches.reject_reason(fields, frozenset({"x"}), has_client=True) == reason


def test_without_a_client_column_none_is_missed():
    assert batches.reject_reason(Fields("help", "x", "", ""), None, has_client=False) == ""


def columns(*rows: tuple[int, str, str, str, str], rejects=()) -> Columns:
    return Columns(*(list(column) for column in zip(*rows, strict=True)), list(rejects))


def batched(slices, labels=None, *, client_column="client"):
    return list(
        batches.batches(slices, file=0, file_name="a.csv", known_labels=labels, client_column=client_column, keys=KEYS)
    )


def test_batches_end_by_rows_and_by_characters(monkeypatch):
    monkeypatch.setattr(batches, "BATCH_ROWS", 3)
    monkeypatch.setattr(batches, "BATCH_CHARACTERS", 10)
    slices = [columns((line, "a" * length, "x", "anna", "")) for line, length in enumerate([1, 1, 1, 9, 9, 1], start=1)]

    assert [batch.lines for batch in batched(slices)] == [[1, 2, 3], [4, 5], [6]]


def test_rejects_keep_their_lines():
    (batch,) = batched(
        [columns((2, "help", " x ", "anna", " g "), (3, "", "x", "anna", ""), rejects=[Reject(1, "not JSON")])]
    )

    assert batch.rejects == [Reject(1, "not JSON"), Reject(3, "empty text")]
    assert (batch.lines, batch.labels, batch.groups) == ([2], ["x"], ["g"])
    assert batch.clients == clients.client_hash(KEYS, "anna")


FINE = (2, "help", " x ", "anna", " g ")


@pytest.mark.parametrize("has_client", [True, False])
@pytest.mark.parametrize("labels", [None, frozenset({"x"})])
@pytest.mark.parametrize(
    "row",
    [
        FINE,
        (9, "你好", "x", "王", ""),
        (9, "\u2003\n", "x", "anna", ""),
        (9, "help", " ", "anna", ""),
        (9, "help", "y", "anna", ""),
        (9, "help", "x", " ", ""),
        (9, "help", "x", "anna", "\udcff"),
        (9, "\ud83d", "x", "anna", ""),
        (9, "help", "x\udcff", "anna", ""),
    ],
)
def test_many_rows_at_once_are_judged_as_each_by_itself(row, labels, has_client):
    """`reject_reason` decides; where no row has one, as in most slices, columns are judged as a whole."""
    line, text, label, client, group = row
    reason = batches.reject_reason(Fields(text, label.strip(), client, group), labels, has_client=has_client)

    (batch,) = batched([columns(FINE, row, FINE)], labels, client_column="client" if has_client else "")
    assert batch.rejects == ([Reject(line, reason)] if reason else [])
    assert batch.texts == (["help", "help"] if reason else ["help", text, "help"])
    assert set(batch.labels) <= {"x", label.strip()}


def test_more_clients_than_are_remembered_have_the_hashes_they_had(monkeypatch):
    monkeypatch.setattr(batches, "CLIENTS_REMEMBERED", 3)
    monkeypatch.setattr(batches, "BATCH_ROWS", 2)
    names = ["a", "b", "c", "d", "a", "e", "b", "a"]

    batched_rows = batched([columns((line, "help", "x", name, "")) for line, name in enumerate(names)])
    assert b"".join(batch.clients for batch in batched_rows) == b"".join(
        clients.client_hash(KEYS, name) for name in names
    )


def test_tokenize_keeps_the_order_and_rejects_what_has_no_tokens():
    batch = batches.RowBatch(
        3,
        [1, 2, 3, 4],
        ["my card", "help", "\u200b\u0000", "lost"],
        ["x", "y", "only there", "z"],
        AB + bytes(16) + AB + AB,
        ["", "g", "", "h"],
        [],
    )

    done = tokens.tokenize(batch, TOKENIZER)

    assert (done.file, done.read) == (3, 4)
    assert done.rejects == [Reject(3, "empty text")]
    assert numbers_to_hashes(done.rows.clients) == [AB, bytes(16), AB]
    assert (done.rows.files.tolist(), done.rows.lines.tolist()) == ([3] * 3, [1, 2, 4])
    assert [example.labels for example in examples(done.rows)] == [("x",), ("y",), ("z",)]
    assert [example.group for example in examples(done.rows)] == ["", "g", "h"]
    assert done.rows.tokens.tolist() == [2, 4, 5, 3, 2, 9, 3, 2, 7, 3]
    assert "only there" not in done.rows.label_names, "a rejected row's label is no label"


def test_words_carry_their_tag_on_the_first_piece():
    """ "cards" is two pieces, and max_length 8 leaves room for six: the last word and its tag are cut off."""
    batch = batches.RowBatch(
        0, [1], [("my", "cards", "lost", "a", "b", "help")], [("O", "B-x", "O", "I-x", "O", "O")], AB, [""], []
    )

    rows = tokens.tokenize(batch, TOKENIZER).rows

    assert rows.tokens.tolist() == [2, 4, 5, 13, 7, 15, 16, 3]
    assert rows.labelled_tokens
    (example,) = examples(rows)
    assert example.labels == ("", "O", "B-x", "", "O", "I-x", "O", "")


def test_rows_one_by_one():
    first, second = examples(rows_of(values=((5,), (6, 7)), first=10))

    assert (first.line, first.labels, np.frombuffer(first.tokens, np.int32).tolist()) == (10, ("x",), [2, 5, 3])
    assert (second.line, second.labels, np.frombuffer(second.tokens, np.int32).tolist()) == (11, ("x",), [2, 6, 7, 3])


def test_joined_selected_and_written_down_rows_say_the_same():
    """Names are numbered by each part for itself; sentences, whose tokens have labels, follow their rows too."""
    parts = [rows_of(label="x"), rows_of(label="y", first=7), rows_of(label="x", first=9)]
    words = [
        dataclasses.replace(part, labels=np.arange(len(part.tokens), dtype=np.int32), label_names=[*names])
        for part, names in zip(parts[:2], ("abcdefg", "gfedcba"), strict=True)
    ]
    for given in (parts, words):
        every = [example for part in given for example in examples(part)]
        joined = Rows.joined(given)
        assert examples(joined) == every
        assert examples(Rows.decode(joined.encode())) == every
        order = np.array([3, 0, 2])
        chosen = Rows.decode(joined.take(order).encode())
        assert examples(chosen) == [every[row] for row in order]
        assert set(chosen.label_names) == {label for row in order for label in every[row].labels}
        assert examples(joined.take(np.zeros(0, np.int64))) == []


def test_rows_are_parted_by_range():
    hashes = [clients.client_hash(KEYS, str(number)) for number in range(40)]
    rows = Rows.joined([rows_of(client=client, first=number, values=((5,),)) for number, client in enumerate(hashes)])

    parts = dict(tokens.by_range(rows, 7))
    assert list(parts) == sorted(parts)
    assert sorted(line for part in parts.values() for line in part.lines.tolist()) == list(range(40))
    for number, part in parts.items():
        assert set(clients.ranges_of(part.clients, 7).tolist()) == {number}
        assert [hashes[line] for line in part.lines] == numbers_to_hashes(part.clients)


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


def summary_of(labels: int, rows: int, **keys) -> summaries.ReadSummary:
    return summaries.ReadSummary(
        rows={0: rows}, labels=[f"label {number}" for number in range(labels)], labelled=rows, groups=[""], **keys
    )


SILO = SiloSection(name="bank", input="unused", format="csv", label="intent", group="region")


def check_names(read: summaries.ReadSummary, *, limit=1000, silo=SILO, **keys) -> None:
    summaries.check_names(read, silo, labels_listed=keys.pop("labels_listed", False), limit=limit, **keys)


@pytest.mark.parametrize(
    ("read", "limit", "words"),
    [
        (summary_of(11, 1000), 10, "has more than 10 different values; expected at most as many as prepare.max_labels"),
        (summary_of(60, 100), 1000, "has 60 different values in 100 rows; expected at least two rows for each"),
        (summary_of(21, 21), 1000, "has 21 different values in 21 rows"),
        (
            summaries.ReadSummary(rows={0: 9}, labels=["a" * 201], labelled=9),
            1000,
            "has a value of 201 characters; expected at most 200",
        ),
    ],
)
def test_labels_that_look_like_free_text_are_counted_and_not_shown(read, limit, words):
    with pytest.raises(InputError) as raised:
        check_names(read, limit=limit)
    assert f"silo 'bank': the label column 'intent' {words}" in str(raised.value)
    assert "Correct `label` of the silo, or list the labels in task.labels." in str(raised.value)
    assert not any(name in str(raised.value) for name in read.labels)
    check_names(read, limit=limit, labels_listed=True)


def test_labels_that_are_labels():
    check_names(summary_of(20, 20))
    check_names(summary_of(50, 100))
    check_names(summary_of(60, 100), complete=False)
    check_names(summaries.ReadSummary(rows={0: 30}, labels=[f"B-{n}" for n in range(25)], labelled=450), silo=CONLL)


CONLL = SiloSection(name="bank", input="unused", format="conll")


def test_tags_are_compared_with_words_and_groups_with_rows():
    with pytest.raises(InputError, match="label column 'label' has 300 different values in 450 words"):
        check_names(
            summaries.ReadSummary(rows={0: 30}, labels=[f"B-{n}" for n in range(300)], labelled=450), silo=CONLL
        )
    with pytest.raises(InputError, match=r"group column 'region' has 60 different values in 100 rows.*Correct `group`"):
        check_names(summaries.ReadSummary(rows={0: 100}, labelled=100, groups=[f"g {n}" for n in range(60)]))


def test_a_reject_that_stands_for_several_rows_names_the_last():
    assert summaries.reject_line("a.csv", "line", Reject(7, "broken quoting", 3)) == (
        b'{"file":"a.csv","line":7,"last_line":9,"reason":"broken quoting"}\n'
    )
    assert b"last" not in summaries.reject_line("a.csv", "line", Reject(7, "empty text"))
    (batch,) = batched([columns((1, "help", "x", "anna", ""), rejects=[Reject(2, "broken quoting", 3)])])
    assert tokens.tokenize(batch, TOKENIZER).read == batch.read == 4


def test_percentiles_are_values_that_occur():
    """Values 1 (50 times), 2 (40 times), 3 (9 times), 9 (once)."""
    histogram = [0, 50, 40, 9, 0, 0, 0, 0, 0, 1]

    assert summaries.percentiles(histogram) == {"p50": 1, "p90": 2, "p99": 3, "max": 9}
    assert summaries.percentiles([0, 0, 1]) == {"p50": 2, "p90": 2, "p99": 2, "max": 2}
    assert summaries.percentiles([]) == {"p50": 0, "p90": 0, "p99": 0, "max": 0}


def test_merging_summaries_does_not_depend_on_their_order():
    first = summaries.ReadSummary(rows={0: 3}, reasons={"empty text": 1}, labels=["b"], groups=["g"])
    second = summaries.ReadSummary(
        rows={0: 2, 1: 4}, reasons={"empty text": 2, "not JSON": 1}, labels=["a", "b"], groups=[""]
    )

    assert summaries.merged([first, second]) == summaries.merged([second, first])
    assert summaries.merged([first, second]).rows == {0: 5, 1: 4}
    assert summaries.merged([first, second]).reasons == {"empty text": 3, "not JSON": 1}
    assert summaries.merged([first, second]).labels == ["a", "b"]
