"""What a finished snapshot holds: every accepted row, whatever the format, and a manifest in which rows and lines add up."""

import gzip
import json
import os

import numpy as np
import pytest
from builders import ROOT
from builders.prepare_helpers import (
    EXAMPLES,
    GOOD,
    VOCABULARY,
    examples_in,
    manifest_of,
    many,
    refusal,
    words_by_client,
)

from beam_jobs import reading
from beam_jobs.steps import tokens
from tff_pipeline import artifacts
from tff_pipeline.data import records
from tff_pipeline.errors import PipelineError

MULTIDOGO = ROOT.parent / "shared" / "data" / "multidogo"


def test_a_snapshot_holds_every_accepted_row_and_says_so(case):
    case.write("data.csv", GOOD)

    snapshot = case.prepare_it()
    manifest = manifest_of(snapshot)

    assert examples_in(snapshot) == EXAMPLES
    assert {
        key: manifest[key]
        for key in (
            "kind",
            "format",
            "silo",
            "id",
            "task",
            "labels",
            "groups",
            "rows",
            "accepted",
            "rejects",
            "lines",
            "warnings",
            "over_bound",
        )
    } == {
        "kind": "snapshot",
        "format": 1,
        "silo": "bank",
        "id": snapshot.name,
        "task": "sequence_classification",
        "labels": ["bye", "help", "lost"],
        "groups": [""],
        "rows": 4,
        "accepted": 4,
        "rejects": {},
        "lines": {"read": 5, "rows": 4, "rejected": 0, "header": 1, "blank": 0, "comments": 0, "document_marks": 0},
        "warnings": [],
        "over_bound": {"clients": 0, "examples_dropped": 0},
    }
    assert manifest["tokenizer"]["vocabulary_size"] == len(VOCABULARY)
    assert [(one["name"], one["split"], one["bytes"]) for one in manifest["inputs"]] == [("data.csv", "", len(GOOD))]
    assert sum(split["clients"] for split in manifest["splits"].values()) == 3
    assert artifacts.read_json(case.silo_folder / "snapshot.json") == {"id": snapshot.name}
    assert (snapshot / "rejected.jsonl").read_bytes() == b""


def test_what_a_split_holds_is_counted(case):
    """Rows by hand: lengths 3, 4, 3 and 6 tokens with [CLS] and [SEP]; anna has three of the four."""
    case.silo |= {"input": {"train": "data.csv"}, "group": "where"}
    case.write(
        "data.csv",
        "text,label,client,where\nhelp,x,anna,web\nmy card,y,anna,web\nlost,x,anna,\nmy card is lost,x,ben,app\n",
    )

    train = manifest_of(case.prepare_it())["splits"]["train"]

    assert train == {
        "clients": 2,
        "examples": 4,
        "shards": ["train-00000-of-00001.tfrecord"],
        "labels": {"x": 3, "y": 1},
        "groups": {"": 1, "app": 1, "web": 2},
        "examples_per_client": {"p50": 1, "p90": 3, "p99": 3, "max": 3},
        "token_length": {"p50": 3, "p90": 6, "p99": 6, "max": 6},
    }


def test_nothing_in_the_workdir_holds_a_text_or_a_clients_id(case):
    case.silo["client"] = "client"
    case.prepare["max_reject_share"] = 0.9
    case.write("data.csv", "text,label,client\nmy card is lost,x,anna-4711\n,x,anna-4711\nhelp,x,\n")

    case.prepare_it()

    written = b"".join(path.read_bytes() for path in (case.folder / "work").rglob("*") if path.is_file())
    assert b"anna" not in written
    assert b"4711" not in written
    assert b"card" not in written


def test_a_stray_quote_takes_no_row_into_another_and_every_line_is_in_the_manifest(case):
    """67 rows, of which the 17th opens a quote and the 67th closes it: 52 rejects by line, not one example of 51 people."""
    case.prepare["max_reject_share"] = 0.9
    people = [f"my card,{'xy'[number % 2]},c{number}" for number in range(67)]
    people[15], people[66] = '"' + people[15], people[66].replace("card", 'card"')
    case.write("data.csv", "\n".join(["text,label,client", *people, ""]))

    snapshot = case.prepare_it()
    manifest = manifest_of(snapshot)

    assert (manifest["rows"], manifest["accepted"]) == (67, 15)
    assert manifest["rejects"] == {"quoted line breaks that look like rows": 52}
    assert manifest["lines"] == {
        "read": 68,
        "rows": 15,
        "rejected": 52,
        "header": 1,
        "blank": 0,
        "comments": 0,
        "document_marks": 0,
    }
    assert json.loads((snapshot / "rejected.jsonl").read_text()) == {
        "file": "data.csv",
        "line": 17,
        "last_line": 68,
        "reason": "quoted line breaks that look like rows",
    }
    case.prepare.clear()
    case.workdir = "other"
    assert "52 of 67 rows (77.6%) were rejected" in refusal(case)


def test_rows_and_lines_add_up_whatever_becomes_of_them(case):
    """Rejected on reading, on checking and by tokenization, lost between splits, left out for the bound, blank, and header."""
    case.silo["input"] = {"train": "train.csv", "test": "test.csv"}
    case.prepare |= {"max_reject_share": 0.9, "max_examples_per_client": 2}
    rows = [
        "my card,x,anna",
        "",
        "one field",
        ",x,anna",
        "\u200b\0,x,anna",
        "help,x,ben",
        *["lost,y,carl"] * 5,
        '"my\ncard",y,dora',
    ]
    case.write("train.csv", "\n".join(["text,label,client", *rows]))
    case.write("test.csv", "text,label,client\nthanks,y,ben\n")

    manifest = manifest_of(case.prepare_it())
    examples = sum(split["examples"] for split in manifest["splits"].values())

    assert manifest["rejects"] == {"client in several splits": 1, "empty text": 2, "wrong number of fields": 1}
    assert manifest["over_bound"] == {"clients": 1, "examples_dropped": 3}
    assert manifest["rows"] == 12 == examples + 3 + 4
    assert manifest["accepted"] == 8
    lines = manifest["lines"]
    assert lines["read"] == 16 == sum(count for kind, count in lines.items() if kind != "read")


@pytest.mark.parametrize("lost", ["row", "line"])
def test_a_count_that_does_not_add_up_is_no_snapshot(case, monkeypatch, lost):
    """A defect, planted: batches that lose their last row on the way, and lines that nobody counts."""
    if lost == "row":
        usual = tokens.tokenize

        def forgetful(batch, tokenizer):
            done = usual(batch, tokenizer)
            return done._replace(rows=done.rows.take(np.arange(len(done.rows) - 1)))

        monkeypatch.setattr(tokens, "tokenize", forgetful)
    else:
        monkeypatch.setattr(reading.LineCounts, "plus", lambda self, other: self._replace(read=self.read + other.read))
    case.write("data.csv", GOOD)

    message = refusal(case, PipelineError)
    assert "accounted for" in message
    assert "This is a defect of prepare: please report it" in message


def test_one_person_is_one_client_in_every_format(case):
    """A number with and without zeros behind the point, and as text; blanks around a name."""
    case.silo |= {"input": {"train": "data.jsonl"}, "format": "jsonl"}
    ids = ["42", "42.0", '"42"', '" 42 "', '"42.0"', '"alice"', '"alice "']
    case.write("data.jsonl", "".join(f'{{"text": "help", "label": "x", "client": {raw_id}}}\n' for raw_id in ids))
    numbers = words_by_client(case.prepare_it())["train"]

    assert sorted(map(len, numbers.values())) == [2, 5]
    case.silo |= {"input": {"train": "data.csv"}, "format": "csv"}
    case.write("data.csv", "text,label,client\nhelp,x,42\nhelp,x,alice \n")
    assert words_by_client(case.prepare_it())["train"].keys() == numbers.keys()


def test_a_row_above_the_limit_is_rejected_in_every_format(case):
    """`prepare.max_row_bytes`, and the same sentence of every format."""
    import pyarrow
    import pyarrow.parquet

    case.prepare |= {"max_row_bytes": 1024, "max_reject_share": 0.5}
    rows = [{"text": text, "label": "x", "client": "anna"} for text in ("help", "card " * 400, "thanks")]
    case.write("data.csv", "text,label,client\n" + "".join(f"{row['text']},x,anna\n" for row in rows))
    case.write("data.tsv", "text\tlabel\tclient\n" + "".join(f"{row['text']}\tx\tanna\n" for row in rows))
    case.write("data.jsonl", "\n".join(map(json.dumps, rows)))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), case.folder / "data.parquet")
    for form in ("csv", "tsv", "jsonl", "parquet"):
        case.silo |= {"input": f"data.{form}", "format": form}
        snapshot = case.prepare_it()
        assert examples_in(snapshot) == [("help", "x"), ("thanks", "x")]
        assert manifest_of(snapshot)["rejects"] == {"too long": 1}


def test_random_access_equals_sequential_reading(case):
    import tensorflow as tf

    case.prepare["shards"] = 3
    case.write("data.csv", many(60))
    snapshot = case.prepare_it()

    for split, summary in manifest_of(snapshot)["splits"].items():
        sequential = [
            record.numpy() for record in tf.data.TFRecordDataset([str(snapshot / name) for name in summary["shards"]])
        ]
        with records.ClientReader(snapshot, split, summary["shards"]) as reader:
            assert [reader.read(row) for row in range(len(reader))] == sequential
            assert reader.examples.tolist() == [3] * summary["clients"]
        clients = [
            tf.train.Example.FromString(record).features.feature[records.CLIENT].bytes_list.value[0]
            for record in sequential
        ]
        assert clients == sorted(clients)
        parsed = records.parse_in_graph(sequential[0])
        assert {name: parsed[name].numpy().tolist() for name in parsed} == {
            name: value.tolist() for name, value in records.decode_client(sequential[0]).items()
        }


def test_more_shards_than_clients(case):
    """Shards nobody's hash falls into are there and empty; a split without clients has none."""
    case.prepare |= {"shards": 8, "splits": {"train": 1.0}}
    case.write("data.csv", GOOD)

    snapshot = case.prepare_it()
    splits = manifest_of(snapshot)["splits"]

    assert splits["train"]["shards"] == [f"train-0000{shard}-of-00008.tfrecord" for shard in range(8)]
    assert splits["test"]["shards"] == []
    assert examples_in(snapshot) == EXAMPLES
    assert (snapshot / "test.index.npy").exists()


def test_a_list_of_labels_keeps_its_order(case):
    case.labels = ["lost", "bye", "help", "never"]
    case.write("data.csv", GOOD)

    snapshot = case.prepare_it()

    assert manifest_of(snapshot)["labels"] == ["lost", "bye", "help", "never"]
    assert examples_in(snapshot) == EXAMPLES


def test_quoted_line_breaks_gzip_and_chinese(case):
    """The same rows plain and compressed; "你好" is two tokens of the vocabulary."""
    case.silo["input"] = "data*"
    case.write("data.csv.gz", gzip.compress('text,label,client\n"my\ncard, ""lost""",x,anna\n你好,问候,王\n'.encode()))

    snapshot = case.prepare_it()

    assert examples_in(snapshot) == [("my card , [UNK] lost [UNK]", "x"), ("你 好", "问候")]
    assert manifest_of(snapshot)["labels"] == ["x", "问候"]


def test_parquet_and_jsonl_hold_the_same_examples_as_csv(case):
    import pyarrow
    import pyarrow.parquet

    rows = [dict(zip(("text", "label", "client"), line.split(","), strict=True)) for line in GOOD.splitlines()[1:]]
    case.write("data.csv", GOOD)
    case.write("data.jsonl", "\n".join(map(json.dumps, rows)))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), case.folder / "data.parquet")
    examples = []
    for form in ("csv", "jsonl", "parquet"):
        case.silo |= {"input": f"data.{form}", "format": form}
        examples.append(words_by_client(case.prepare_it()))

    assert examples[0] == examples[1] == examples[2]
    assert examples_in(case.prepare_it()) == EXAMPLES


def test_conll_labels_go_to_first_pieces(case):
    case.kind = "token_classification"
    case.silo = {"input": {"train": "train.conll"}, "format": "conll"}
    case.write("train.conll", "my\tO\ncards\tB-x\n\n你好\tB-y\nlost\tO\n")

    snapshot = case.prepare_it()
    manifest = manifest_of(snapshot)
    with records.ClientReader(snapshot, "train", manifest["splits"]["train"]["shards"]) as reader:
        arrays = sorted(
            [value.tolist() for value in records.decode_client(reader.read(row)).values()] for row in range(2)
        )

    assert manifest["labels"] == ["B-x", "B-y", "O"]
    assert manifest["splits"]["train"]["labels"] == {"B-x": 1, "B-y": 1, "O": 2}
    assert arrays == [
        [[2, 4, 5, 13, 3], [5], [-1, 2, 0, -1, -1], [0]],
        [[2, 11, 12, 7, 3], [5], [-1, 1, -1, 2, -1], [0]],
    ]


# -- real data ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    not MULTIDOGO.is_dir(), reason="the real data is not beside this repository (../shared/data/multidogo)"
)
def test_multidogo_airline(case):
    """The README of the data counts 13,519 + 1,966 + 3,931 rows in 11 intents; rows with two intents are joined by <div>."""
    folder = MULTIDOGO / "airline"
    files = {
        split: os.path.relpath(folder / f"{name}.tsv", case.folder)
        for split, name in (("train", "train"), ("validation", "dev"), ("test", "test"))
    }
    case.silo = {"input": files, "format": "tsv", "text": "utterance", "label": "intent", "client": "conversationId"}
    auto = manifest_of(case.prepare_it())

    intents = [label for label in auto["labels"] if "<div>" not in label]
    several = sum(
        count for split in auto["splits"].values() for label, count in split["labels"].items() if "<div>" in label
    )
    assert auto["rows"] == 13_519 + 1_966 + 3_931
    assert len(intents) == 11
    assert sum(split["clients"] for split in auto["splits"].values()) == 2404

    case.labels = intents
    listed = manifest_of(case.prepare_it())
    assert listed["rejects"].get("unknown label", 0) == several > 0
    assert listed["accepted"] == auto["accepted"] - several
