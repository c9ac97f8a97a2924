"""Rows in batches: which are rejected and why, how a batch is tokenized, and how rows are joined, selected and written down."""

import dataclasses

import numpy as np
import pytest
from builders.tokenized_rows import AB, KEYS, TOKENIZER, batched, columns, examples, rows_of

from beam_jobs.reading import Fields, Reject
from beam_jobs.rows import Rows, numbers_to_hashes
from beam_jobs.steps import batches, clients, tokens


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


def test_labels_and_groups_are_composed_and_stripped():
    rows_ = [(1, "help", " caf\u00e9 ", "anna", "g "), (2, "help", "cafe\u0301", "anna", " g")]

    (batch,) = batched([columns(*rows_)], frozenset({"caf\u00e9"}))
    assert (batch.labels, batch.groups, batch.rejects) == (["caf\u00e9"] * 2, ["g"] * 2, [])


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
