"""The whole job on small inputs: what a user sees, and what is left on the disk, when it goes well and when it does not."""

import contextlib
import dataclasses
import gc
import gzip
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from builders import ROOT
from builders.prepare_helpers import (
    VOCABULARY,
    Case,
    data_bytes,
    examples_in,
    manifest_of,
    rejected_of,
    words_by_client,
)

from beam_jobs import planning, prepare_silo, reading, running, transforms
from beam_jobs.steps import batches, tokens
from tff_pipeline import artifacts
from tff_pipeline.data import records
from tff_pipeline.errors import ArtifactError, ConfigError, InputError, PipelineError
from tff_pipeline.progress import Progress

MULTIDOGO = ROOT.parent / "shared" / "data" / "multidogo"

WORKERS = {
    mode: ["--direct_num_workers=2", f"--direct_running_mode={mode}"]
    for mode in ("multi_threading", "multi_processing")
}
GOOD = "text,label,client\nmy card is lost,lost,anna\nhelp,help,ben\nplease help,help,anna\nthanks,bye,carl\n"
EXAMPLES = [("help", "help"), ("my card is lost", "lost"), ("please help", "help"), ("thanks", "bye")]


def many(clients: int, *, rows: int = 3) -> str:
    """A csv of `clients` clients with `rows` rows each."""
    return "text,label,client\n" + "".join(
        f"{VOCABULARY[4 + (client + row) % 7]} {VOCABULARY[4 + client % 5]},l{row % 2},client {client}\n"
        for row in range(rows)
        for client in range(clients)
    )


def refusal(case: Case, kind: type[PipelineError] = InputError, *, beam_args: Sequence[str] = ()) -> str:
    """The message prepare fails with; the silo's folder then holds neither a snapshot nor unfinished files."""
    with pytest.raises(kind) as raised:
        case.prepare_it(*beam_args)
    assert nothing_left(case)
    return str(raised.value)


def nothing_left(case: Case) -> bool:
    left = (
        {path.relative_to(case.silo_folder).parts[0] for path in case.silo_folder.rglob("*")}
        if case.silo_folder.exists()
        else set()
    )
    left -= {".prepare.lock", "keys"}
    return not {name for name in left if not name.startswith("rejected-")} or not list(
        (case.silo_folder / "snapshots").iterdir()
    )


# -- what is written ---------------------------------------------------------------------------------------------------


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


def test_one_range_in_memory_or_many_the_same_bytes(case, another, monkeypatch):
    case.prepare["shards"] = 2
    case.write("data.csv", many(50))
    once = data_bytes(case.prepare_it())
    monkeypatch.setattr(planning, "RANGE_BYTES", 100)
    monkeypatch.setattr(batches, "BATCH_ROWS", 7)
    monkeypatch.setattr("beam_jobs.reading.SLICE_ROWS", 7)
    monkeypatch.setattr("beam_jobs.steps.spilling.SPILL_BYTES", 500)
    monkeypatch.setattr("beam_jobs.segments.BUFFER_BYTES", 500)
    case.workdir = "other"

    assert data_bytes(case.prepare_it()) == once


def test_one_worker_or_several_the_same_bytes(case, monkeypatch):
    """Threads and processes; three files, a bound that bites, rejects in all of them."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    case.silo["input"] = "part*.csv"
    case.prepare |= {"shards": 2, "max_examples_per_client": 2, "max_reject_share": 0.5}
    for part in range(3):
        case.write(f"part{part}.csv", many(40) + ",broken,anna\n" * (part + 1))
    alone = case.prepare_it()
    data = {}
    for mode, beam_args in WORKERS.items():
        case.workdir = mode
        data[mode] = data_bytes(case.prepare_it(*beam_args))

    assert manifest_of(alone)["rejects"] == {"empty text": 6}
    assert manifest_of(alone)["over_bound"] == {"clients": 40, "examples_dropped": 40 * 7}
    assert data["multi_threading"] == data_bytes(alone)
    assert data["multi_processing"] == data_bytes(alone)


@pytest.mark.parametrize(
    ("cores", "memory_gb", "files", "workers"),
    [
        (8, 64, {"a.csv": 127}, 1),  # one file is read by one worker
        (8, 64, {"a.csv": 63, "b.csv": 63}, 1),
        (8, 64, {"a.csv": 64, "b.csv": 64}, 2),
        (8, 64, {"a.csv": 500, "b.csv": 500, "c.csv": 1}, 3),
        (8, 64, {"a.csv.gz": 8, "b.csv.gz": 8}, 2),  # about eight times as much text
        (2, 64, dict.fromkeys("abcdefgh", 1000), 2),
        (8, 5, dict.fromkeys("abcdefgh", 1000), 2),
        (8, 1, dict.fromkeys("abcdefgh", 1000), 1),
    ],
)
def test_as_many_workers_as_pay(monkeypatch, cores, memory_gb, files, workers):
    """One for each 64 MB of text, file, core and 2 GB of memory, whichever are the fewest; never none."""
    monkeypatch.setattr(running.os, "cpu_count", lambda: cores)
    monkeypatch.setattr(running.os, "sysconf", {"SC_PHYS_PAGES": memory_gb * 2**18, "SC_PAGE_SIZE": 4096}.get)

    assert running.workers_for([{"name": name, "bytes": size * 2**20} for name, size in files.items()]) == workers


def test_workers_are_what_the_configuration_says_unless_the_runner_is_told(case, monkeypatch):
    """They are no part of the snapshot's id: its bytes are the same."""
    asked = []

    def ask(_plan, _tokenizer, options):
        given = options.get_all_options()
        asked.append((given["direct_num_workers"], given["direct_running_mode"]))
        raise InputError("stop here")

    case.write("data.csv", GOOD)
    identity = planning.plan_job(case.config(), case.config().silo("bank")).id
    monkeypatch.setattr(running, "run", ask)
    monkeypatch.setattr(running, "workers_for", lambda entries: 4 + len(entries))
    for workers, beam_args in ((0, []), (3, []), (1, []), (3, ["--direct_num_workers=2"])):
        case.prepare["workers"] = workers
        assert planning.plan_job(case.config(), case.config().silo("bank")).id == identity
        with pytest.raises(InputError, match="stop here"):
            case.prepare_it(*beam_args)

    assert asked == [(5, "multi_processing"), (3, "multi_processing"), (1, "in_memory"), (2, "in_memory")]


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


# -- clients, splits, bound --------------------------------------------------------------------------------------------


def test_growing_data_moves_no_client(case):
    case.silo["input"] = "*.csv"
    case.write("b.csv", many(80))
    before = words_by_client(case.prepare_it())
    case.write("a.csv", many(160))
    after = words_by_client(case.prepare_it())

    assert sum(map(len, before.values())) == 80
    assert sum(map(len, after.values())) == 160
    for split, clients in before.items():
        assert clients.keys() <= after[split].keys()


def test_rows_that_are_clients_stay_themselves_when_files_grow(case):
    case.silo |= {"input": "*.csv", "client": ""}
    case.write("b.csv", GOOD)
    before = words_by_client(case.prepare_it())
    case.write("a.csv", GOOD)
    case.write("b.csv", GOOD + "lost,lost,anna\n")
    after = words_by_client(case.prepare_it())

    assert sum(map(len, before.values())) == 4
    assert sum(map(len, after.values())) == 9
    for split, clients in before.items():
        assert clients.items() <= after[split].items()


def test_the_bound_keeps_the_same_examples_in_whatever_order_the_rows_come(case):
    case.prepare["max_examples_per_client"] = 3
    rows = [f"{first} {second},{second},anna" for first in VOCABULARY[4:11] for second in VOCABULARY[4:8]]
    case.write("data.csv", "\n".join(["text,label,client", *rows]))
    first = case.prepare_it()
    case.write("data.csv", "\n".join(["text,label,client", *reversed(rows)]))
    second = case.prepare_it()

    assert first != second
    assert examples_in(first) == examples_in(second)
    assert len(examples_in(first)) == 3
    assert manifest_of(first)["over_bound"] == {"clients": 1, "examples_dropped": 25}
    assert manifest_of(first)["accepted"] == 28


def test_a_client_in_the_files_of_several_splits_stays_with_what_is_held_out(case):
    case.silo["input"] = {"train": "train.csv", "test": "test.csv"}
    case.prepare["max_reject_share"] = 0.5
    case.write("train.csv", "text,label,client\nhelp,x,ben\nmy card,x,anna\nlost,x,carl\n")
    case.write("test.csv", "text,label,client\nthanks,y,anna\n")

    snapshot = case.prepare_it()
    manifest = manifest_of(snapshot)

    assert manifest["rejects"] == {"client in several splits": 1}
    assert rejected_of(snapshot / "rejected.jsonl") == [("train.csv", 3, "client in several splits")]
    assert [manifest["splits"][split]["clients"] for split in ("train", "validation", "test")] == [2, 0, 1]


def test_seeds_and_silos_make_different_clients(case):
    """A seed makes the key; without one it comes from the operating system and is kept."""
    case.write("data.csv", GOOD)
    seeded = words_by_client(case.prepare_it())
    case.workdir = "again"
    assert words_by_client(case.prepare_it()) == seeded
    case.workdir, case.seed = "random", None
    first = case.prepare_it()

    assert words_by_client(first) != seeded
    assert case.prepare_it() == first
    assert (case.silo_folder / "keys" / "clients.key").stat().st_mode & 0o777 == 0o600


# -- once, and again ---------------------------------------------------------------------------------------------------


def test_the_garbage_collector_is_left_as_it_was(case, monkeypatch):
    thresholds, seen = gc.get_threshold(), []
    wired = transforms.collect_seldom
    monkeypatch.setattr(
        transforms,
        "collect_seldom",
        lambda: (wired(), seen.append((gc.get_threshold(), gc.get_freeze_count()))),
    )
    case.write("data.csv", GOOD)
    case.prepare_it()
    assert seen, "the workers were in this process"
    assert all(while_running[0] > thresholds[0] and frozen for while_running, frozen in seen)
    assert (gc.get_threshold(), gc.get_freeze_count()) == (thresholds, 0)


def test_a_finished_snapshot_is_not_made_again(case, capsys, monkeypatch):
    case.write("data.csv", GOOD)
    first = case.prepare_it()
    made = (first / "COMPLETE").stat().st_mtime_ns
    monkeypatch.setattr(running, "run", lambda *_: pytest.fail("the pipeline ran"))
    capsys.readouterr()

    assert case.prepare_it() == first
    assert (first / "COMPLETE").stat().st_mtime_ns == made
    event = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert (event["event"], event["reused"], event["examples"]) == ("prepare", True, 4)
    assert "exists already" in event["message"]


def test_whatever_changes_the_bytes_changes_the_id(case, monkeypatch):
    def name() -> str:
        configuration = case.config()
        return planning.plan_job(configuration, configuration.silo("bank")).id

    case.write("data.csv", GOOD)
    names = {name(), name()}
    for change in ({"max_length": 16}, {"max_examples_per_client": 1}, {"shards": 2}, {"splits": {"train": 1.0}}):
        case.prepare = change
        names.add(name())
    case.prepare, case.labels = {}, ["lost", "help", "bye"]
    names.add(name())
    monkeypatch.setattr("builders.prepare_helpers.VOCABULARY", [*VOCABULARY, "more"])  # another tokenizer
    names.add(name())
    case.workdir, case.seed = "other", 8  # another key: other clients, other splits
    names.add(name())
    case.write("data.csv", GOOD + "lost,lost,anna\n")
    names.add(name())
    assert len(names) == 9

    case.prepare = {"max_reject_share": 0.01}  # decides whether there is a snapshot, not what is in it
    assert name() in names


def test_a_damaged_snapshot_is_not_taken_for_a_finished_one(case):
    case.write("data.csv", GOOD)
    snapshot = case.prepare_it()
    (snapshot / "train.index.npy").write_bytes(b"other")

    with pytest.raises(ArtifactError, match=r"train\.index\.npy: has changed since it was written"):
        case.prepare_it()


def test_killed_in_the_middle_and_started_again(case):
    """The child stops before its last step, with the shards written, and is killed there; the next run makes what a first one would."""
    case.write("data.csv", many(20))
    case.config()
    script = (
        "import os, signal, sys\n"
        "from beam_jobs import prepare_silo, publishing\n"
        "publishing._write_split = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "prepare_silo.main(['--config', sys.argv[1]])\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script, str(case.folder / "config.toml")],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert list(case.silo_folder.glob(".preparing-*"))
    assert list((case.silo_folder / "snapshots").glob(".staging-*"))
    assert not (case.silo_folder / "snapshot.json").exists()

    snapshot = case.prepare_it()
    case.workdir = "other"

    assert data_bytes(snapshot) == data_bytes(case.prepare_it())
    case.workdir = "work"
    assert not list(case.silo_folder.glob(".preparing-*"))
    assert [path.name for path in (case.silo_folder / "snapshots").iterdir()] == [snapshot.name]


def test_a_second_prepare_of_the_same_silo_is_refused_while_one_runs(case, monkeypatch):
    case.write("data.csv", GOOD)
    refused = []

    def run_meanwhile(*_):
        with pytest.raises(PipelineError) as raised:
            case.prepare_it()
        refused.append(str(raised.value))
        raise InputError("stop here")

    monkeypatch.setattr(running, "run", run_meanwhile)
    assert refusal(case) == "stop here"
    assert "another prepare of this silo is running" in refused[0]


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_rejected_rows_are_listed_with_file_line_and_reason(case):
    case.prepare["max_reject_share"] = 0.8
    case.labels = ["x"]
    rows = [
        b"text,label,client",
        b"help,x,anna",
        b",x,anna",
        b"help,,anna",
        b"help,z,anna",
        b"help,x,",
        b"help,x",
        b"h\xffelp,x,anna",
        b"lost,x,ben",
    ]
    case.write("data.csv", b"\n".join(rows))

    snapshot = case.prepare_it()
    manifest = manifest_of(snapshot)

    assert rejected_of(snapshot / "rejected.jsonl") == [
        ("data.csv", 3, "empty text"),
        ("data.csv", 4, "empty label"),
        ("data.csv", 5, "unknown label"),
        ("data.csv", 6, "empty client"),
        ("data.csv", 7, "wrong number of fields"),
        ("data.csv", 8, "not UTF-8"),
    ]
    assert manifest["rejects"] == {
        "empty client": 1,
        "empty label": 1,
        "empty text": 1,
        "not UTF-8": 1,
        "unknown label": 1,
        "wrong number of fields": 1,
    }
    assert (manifest["rows"], manifest["accepted"]) == (8, 2)
    assert examples_in(snapshot) == [("help", "x"), ("lost", "x")]


def test_too_many_rejects_stop_the_job_and_leave_the_list(case):
    case.write("data.csv", GOOD + ",x,dora\n" * 2 + "help,x,\n")

    message = refusal(case)

    (rejected,) = case.silo_folder.glob("rejected-*.jsonl")
    assert "silo 'bank': 3 of 7 rows (42.9%) were rejected; prepare.max_reject_share allows 5.0%" in message
    assert "Reasons: 2 empty text, 1 empty client." in message
    assert f"{rejected} lists them" in message
    assert rejected_of(rejected) == [
        ("data.csv", 6, "empty text"),
        ("data.csv", 7, "empty text"),
        ("data.csv", 8, "empty client"),
    ]

    case.prepare["max_reject_share"] = 0.5
    case.prepare_it()
    assert not list(case.silo_folder.glob("rejected-*.jsonl"))


def test_rows_that_are_all_rejected_are_no_snapshot_whatever_the_limit(case):
    case.prepare["max_reject_share"] = 1.0
    case.write("data.csv", "text,label,client\n,x,anna\n")

    assert "1 of 1 rows (100.0%) were rejected; nothing is left to train on" in refusal(case)


def test_a_list_of_labels_keeps_its_order(case):
    case.labels = ["lost", "bye", "help", "never"]
    case.write("data.csv", GOOD)

    snapshot = case.prepare_it()

    assert manifest_of(snapshot)["labels"] == ["lost", "bye", "help", "never"]
    assert examples_in(snapshot) == EXAMPLES


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "data.csv: the file is empty (0 bytes)"),
        ("text,label,client\n", "data.csv: the input has no rows, only a header or blank lines"),
        (
            "texts,label,client\nhelp,x,anna\n",
            "the column 'text' is missing from the first line; found 3 columns, among them 'label', 'client'. The column at position 1 is",
        ),
        (gzip.compress(GOOD.encode(), mtime=0)[:-9], "data.csv: the compressed data is cut short or damaged"),
        (GOOD + '"help,x,anna\n', "a quote opened in the row that begins on line 6 is still open"),
        (GOOD.encode("utf-16"), "UTF-16"),
    ],
)
def test_a_file_that_cannot_be_used(case, content, words):
    case.write("data.csv", content)

    assert words in refusal(case)


@pytest.mark.parametrize("beam_args", [[], WORKERS["multi_threading"], WORKERS["multi_processing"]])
def test_what_only_a_worker_finds_is_said_in_our_words(case, capfd, monkeypatch, beam_args):
    """A gzip whose end is missing, far behind its head; and workers say nothing beside."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    whole = gzip.compress(many(4000).encode() + b"".join(b"help,%x,anna\n" % (n * n * 7919) for n in range(20_000)))
    case.write("data.csv", whole[:-100])

    message = refusal(case, beam_args=beam_args)

    assert message.startswith(
        f"{case.folder / 'data.csv'}: the compressed data is cut short or damaged (EOFError); expected a whole archive. Copy the file again"
    )
    printed = capfd.readouterr()
    assert printed.out == ""
    assert not any(word in printed.err for word in ("Traceback", "INFO", "WARNING", "ERROR"))


def test_a_worker_that_cannot_start_stops_the_job(case, monkeypatch, capfd):
    """Beam alone would wait for it for ever."""
    case.prepare["workers"] = 2
    case.write("data.csv", GOOD)
    monkeypatch.setattr(sys, "executable", shutil.which("false"))

    message = refusal(case, PipelineError)

    assert "a worker process of prepare has ended before its work was done" in message
    assert "exited with return code 1" in message
    assert "set prepare.workers to fewer" in message
    assert capfd.readouterr().err == ""


def test_a_worker_that_is_killed_stops_the_job(case, monkeypatch, capfd):
    """Killed while it reads; the system does that to a process for want of memory."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    case.prepare |= {"workers": 2, "max_examples_per_client": 1}
    case.silo["input"] = "part*.csv"
    for part in range(2):
        case.write(f"part{part}.csv", many(5000, rows=20) + f"help,x,{part}\n")

    def kill_one() -> None:
        while not ended.wait(0.01):
            if list(case.silo_folder.glob(f".preparing-*/*{transforms.RUNNING}")):
                os.kill(workers_of(os.getpid())[0], signal.SIGKILL)
                return

    ended = threading.Event()
    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        message = refusal(case, PipelineError)
    finally:
        ended.set()
        killer.join()

    assert "a worker process of prepare has ended before its work was done" in message
    assert "-9" in message
    assert "Traceback" not in capfd.readouterr().err
    assert not workers_of(os.getpid())


def workers_of(parent: int) -> list[int]:
    """The worker processes that a process has started."""
    workers = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            started_by = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if started_by == parent and b"beam_jobs.worker" in (folder / "cmdline").read_bytes():
                workers.append(int(folder.name))
    return workers


def test_a_worker_alone_says_what_it_is_for():
    done = subprocess.run([sys.executable, "-m", "beam_jobs.worker"], cwd=ROOT, capture_output=True, check=True)

    assert b"prepare.workers" in done.stdout


def test_a_file_that_changes_while_it_is_read(case, monkeypatch):
    run = running.run

    def and_append(*arguments):
        result = run(*arguments)
        case.write("data.csv", GOOD + "help,help,dora\n")
        return result

    case.write("data.csv", GOOD)
    monkeypatch.setattr(running, "run", and_append)

    assert "data.csv: the file has changed while prepare was reading it" in refusal(case)


def test_a_worker_that_does_not_see_the_secret_makes_none(case, monkeypatch):
    run = running.run

    def without_secret(plan, *others):
        Path(plan.secret).unlink()
        return run(plan, *others)

    case.write("data.csv", GOOD)
    monkeypatch.setattr(running, "run", without_secret)

    assert "clients.key: a Beam worker does not see this file" in refusal(case, ArtifactError)
    assert not (case.silo_folder / "keys" / "clients.key").exists()


def test_a_text_column_taken_for_labels_does_not_reach_the_manifest(case):
    case.silo["label"] = "client"
    case.write("data.csv", many(1001, rows=1))

    message = refusal(case)

    assert (
        "silo 'bank': the label column 'client' has more than 1,000 different values; expected at most as many as prepare.max_labels"
        in message
    )
    assert "Correct `label` of the silo, or list the labels in task.labels." in message


def test_labels_of_free_text_stop_the_job_before_they_are_written(case, monkeypatch):
    """Texts in the place of labels: more than the limit stop the worker that reads them, nearly one a row stop the merge."""
    case.silo["label"] = "text"
    case.write("data.csv", "text,label,client\n" + "".join(f"my secret {n},x,c{n}\n" for n in range(40)))

    message = refusal(case)
    assert "the label column 'text' has 40 different values in 40 rows; expected at least two rows for each" in message
    case.prepare["max_labels"] = 30
    monkeypatch.setattr(transforms, "_merge", lambda *_: pytest.fail("a worker would have stopped the job"))
    message += refusal(case)
    assert (
        "the label column 'text' has more than 30 different values; expected at most as many as prepare.max_labels"
        in message
    )
    assert "secret" not in message


def test_what_is_odd_about_files_is_said_and_written_down(case, capsys):
    case.silo["input"] = "*.csv"
    case.write("a.csv", GOOD)
    case.write("b.csv", GOOD)

    for _ in range(2):  # also where the snapshot is there already
        snapshot = case.prepare_it()
        warning = "is the same as a.csv, byte for byte, and was read once; take one of them out of the input"
        assert manifest_of(snapshot)["warnings"] == [{"file": "b.csv", "warning": warning}]
        events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
        (event,) = [event for event in events if event["event"] == "prepare_warning"]
        assert (event["silo"], event["file"], event["warning"]) == ("bank", "b.csv", warning)
        assert event["message"] == f"bank: b.csv {warning}"
    assert examples_in(snapshot) == EXAMPLES


def test_a_folder_with_brackets_in_its_name(another):
    case = another("bank [2026]")
    case.silo["input"] = "*.csv"
    case.write("data.csv", GOOD)

    assert examples_in(case.prepare_it()) == EXAMPLES


def test_a_glob_that_matches_nothing(case):
    case.silo["input"] = "none*.csv"

    assert f"{case.folder / 'none*.csv'}: no file matches the input of silo 'bank'" in refusal(case)


def test_an_address_this_machine_cannot_read(case):
    case.silo["input"] = "nowhere://bucket/*.csv"

    assert "nowhere://bucket/*.csv: the input of silo 'bank' cannot be listed" in refusal(case)


def test_a_file_named_for_two_splits(case):
    case.silo["input"] = {"train": "*.csv", "test": "data.csv"}
    case.write("data.csv", GOOD)

    assert "the file is named by the train files and by the test files" in refusal(case)


def test_a_disk_that_fills_up(case):
    """A limit on file sizes makes the system refuse the write for real, as a full disk does."""
    case.write("data.csv", many(400))
    case.config()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        message = refusal(case, ArtifactError)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert str(case.silo_folder) in message
    assert "the file cannot be written: the file may not grow any larger" in message
    assert "Free space there, or move pipeline.workdir" in message
    assert case.prepare_it()


@pytest.mark.parametrize("beam_args", [[], WORKERS["multi_threading"]])
def test_an_error_nobody_expected_does_not_quote_the_text(case, monkeypatch, capfd, beam_args):
    """Neither what is said nor what Beam knew of it, which it prints where workers are threads or processes."""
    seen = []

    def broken(batch, *_, **__):
        raise ValueError(f"cannot handle {batch.texts[0]}")

    def look(error):
        seen.append("".join(traceback.format_exception(error)))
        return failure_in(error)

    failure_in = running.failure_in
    monkeypatch.setattr(running, "failure_in", look)
    case.write("data.csv", GOOD)
    monkeypatch.setattr(tokens, "tokenize", broken)

    message = refusal(case, PipelineError, beam_args=beam_args)

    assert "step tokenize: an unexpected ValueError in test_prepare.py" in message
    assert seen
    assert "my card" not in "".join([message, *seen, capfd.readouterr().err])


def test_beam_options_that_mean_nothing(case):
    case.write("data.csv", GOOD)

    with pytest.raises(
        ConfigError,
        match="'--direct_num_workers=some' cannot be read: argument --direct_num_workers: invalid int value",
    ):
        case.prepare_it("--direct_num_workers=some")
    with pytest.raises(ConfigError, match="unrecognized arguments: --direct_number_workers=2"):
        case.prepare_it("--direct_number_workers=2")
    with pytest.raises(PipelineError, match="the Beam runner Walker failed"):
        case.prepare_it("--runner=Walker")


def test_prism_is_never_started(case, monkeypatch):
    from apache_beam.runners.portability import prism_runner

    monkeypatch.setattr(prism_runner, "PrismRunner", lambda *_: pytest.fail("Prism was started"))
    case.write("data.csv", GOOD)

    assert case.prepare_it("--runner=DirectRunner")


# -- the command -------------------------------------------------------------------------------------------------------


def test_main_prints_summaries(case, capsys):
    case.write("data.csv", GOOD + ",x,dora\n")
    case.config()

    assert (
        prepare_silo.main(
            [
                "--config",
                str(case.folder / "config.toml"),
                "--set",
                "prepare.max_reject_share=0.5",
                "--silo",
                "bank",
                "--json",
                "--",
                "--direct_num_workers=1",
            ]
        )
        == 0
    )

    (summary,) = json.loads(capsys.readouterr().out)
    assert (summary["silo"], summary["rows"], summary["accepted"], summary["rejects"]) == (
        "bank",
        5,
        4,
        {"empty text": 1},
    )
    assert Path(summary["path"]).is_dir()


def test_as_a_program_it_fails_in_one_sentence(case):
    case.config()

    run = subprocess.run(
        [sys.executable, "-m", "beam_jobs.prepare_silo", "--config", str(case.folder / "config.toml")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.returncode == 3
    assert run.stderr.splitlines() == [
        f"tff-pipeline prepare: {case.folder / 'data.csv'}: no file matches the input of silo 'bank'; expected at least one. Check the path; a relative one starts at the configuration file's folder."
    ]


def test_rows_so_far_are_reported_while_workers_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(running, "PROGRESS_EVERY_S", 0.001)
    seen = threading.Event()

    class Watched(Progress):
        def event(self, event, message="", /, **fields):
            super().event(event, message, **fields)
            seen.set()

    (tmp_path / f"a{transforms.RUNNING}").write_text("2048")
    (tmp_path / f"b{transforms.RUNNING}").write_text("100")
    with running.progress_of_rows(tmp_path, "bank", Watched(interactive=False)):
        assert seen.wait(timeout=30)

    event = json.loads(capsys.readouterr().err.splitlines()[0])
    assert (event["event"], event["silo"], event["rows"]) == ("prepare_running", "bank", 2148)


def test_a_bundle_that_is_tried_again_is_counted_once(case):
    """A runner gives the same files to the same step again where a worker was lost."""
    case.silo["input"] = "part*.csv"
    for part in range(2):
        case.write(f"part{part}.csv", many(10 + part))
    configuration = case.config()
    plan = planning.plan_job(configuration, configuration.silo("bank")).plan
    work = case.folder / "tried"
    work.mkdir()

    for attempt in range(2):
        read = transforms._Read(dataclasses.replace(plan, work=str(work)))
        read.setup()
        for file in plan.files[: attempt + 1]:
            assert list(read.process(file))

    assert sum(int(path.read_text()) for path in work.glob(f"*{transforms.RUNNING}")) == 30 + 33


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
