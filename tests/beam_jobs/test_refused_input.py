"""Rows that are rejected, and files and columns that prepare refuses: which words, and that nothing is left on the disk."""

import gzip
import json
import resource

import pytest
from builders.prepare_helpers import EXAMPLES, GOOD, examples_in, manifest_of, many, refusal, rejected_of

from beam_jobs import running, transforms
from tff_pipeline.errors import ArtifactError


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


def test_a_file_that_changes_while_it_is_read(case, monkeypatch):
    run = running.run

    def and_append(*arguments):
        result = run(*arguments)
        case.write("data.csv", GOOD + "help,help,dora\n")
        return result

    case.write("data.csv", GOOD)
    monkeypatch.setattr(running, "run", and_append)

    assert "data.csv: the file has changed while prepare was reading it" in refusal(case)


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
