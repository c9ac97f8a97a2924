"""What a silo has answered survives its process, and rules out a second answer."""

import json
import os

import pytest

from tff_pipeline.errors import ProtocolError
from tff_pipeline.secagg import journal as journal_module
from tff_pipeline.secagg.journal import FileJournal, Journal, MemoryJournal
from tff_pipeline.secagg.terms import STAGES


@pytest.fixture(params=["memory", "file", "file, opened anew"])
def reopened(request, tmp_path):
    """Gives the journal as the next call of the silo has it: the same object, or the file in another process."""
    path, made = tmp_path / "journal.jsonl", []

    def journal() -> Journal:
        if not made or request.param == "file, opened anew":
            for earlier in made:
                earlier.close()
            made.append(MemoryJournal(str(path)) if request.param == "memory" else FileJournal(path, "run"))
        return made[-1]

    return journal


def test_every_stage_of_an_attempt_is_noted_once(reopened):
    for stage in STAGES:
        reopened().note(stage, 3, 0, ("bank", "shop"))

    for stage in STAGES:
        with pytest.raises(
            ProtocolError,
            match=rf"journal.jsonl: round 3, attempt 0: stage '{stage}' was answered before, by this process",
        ):
            reopened().note(stage, 3, 0, ("bank", "shop"))


def test_only_later_attempts_and_rounds_follow(reopened):
    for round_number, attempt in ((3, 0), (3, 2), (4, 0), (9, 1)):
        reopened().note("advertise", round_number, attempt)

    for round_number, attempt in ((9, 0), (8, 5), (3, 0)):
        with pytest.raises(
            ProtocolError, match=rf"round {round_number}, attempt {attempt}: is before round 9, attempt 1"
        ):
            reopened().note("advertise", round_number, attempt)


@pytest.mark.parametrize("stage", ["consistency", "unmask"])
def test_what_was_revealed_for_one_list_is_not_revealed_for_another(reopened, stage):
    reopened().note("unmask", 3, 0, ("shop", "bank", "clinic"))

    with pytest.raises(
        ProtocolError, match=r"attempt 1: .* for the survivors bank, clinic, shop, and now there are others"
    ):
        reopened().note(stage, 3, 1, ("bank", "shop"))
    reopened().note(stage, 3, 1, ("clinic", "bank", "shop"))
    reopened().note(stage, 4, 0, ("bank", "shop"))  # another round has other noise


def test_a_list_that_was_only_agreed_to_may_change(reopened):
    """Nothing was revealed for it."""
    reopened().note("consistency", 3, 0, ("bank", "clinic"))
    reopened().note("consistency", 3, 1, ("bank", "shop"))


def test_a_note_is_on_disk_when_it_returns(tmp_path, monkeypatch):
    """A kill of the process after `note` cannot lose it, nor a power cut."""
    path, synced = tmp_path / "journal.jsonl", []
    journal = FileJournal(path, "run")
    monkeypatch.setattr(journal_module.os, "fsync", lambda handle: synced.append(path.read_bytes()))

    journal.note("mask", 1, 0)

    assert json.loads(synced[-1].splitlines()[-1]) == {"attempt": 0, "round": 1, "stage": "mask", "survivors": []}
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_line_that_a_kill_cut_short_was_never_answered(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = FileJournal(path, "run")
    journal.note("advertise", 1, 0)
    whole = path.read_bytes()
    journal.note("share", 1, 0)
    journal.close()
    line = path.read_bytes()[len(whole) :]

    for length in range(len(line)):
        path.write_bytes(whole + line[:length])
        again = FileJournal(path, "run")
        again.note("share", 1, 0)
        again.close()
        assert path.read_bytes() == whole + line


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    """The answer is not given; the next one is noted on a line of its own."""
    path = tmp_path / "journal.jsonl"
    journal = FileJournal(path, "run")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(journal_module.os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            journal.note("advertise", 1, 0)
    journal.note("advertise", 1, 1)
    journal.close()

    assert [json.loads(line).get("attempt") for line in path.read_bytes().splitlines()] == [None, 1]
    FileJournal(path, "run").close()


def test_one_process_at_a_time(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = FileJournal(path, "run")

    with pytest.raises(ProtocolError, match=r"journal.jsonl: another process of this silo has it open"):
        FileJournal(path, "run")
    journal.close()
    FileJournal(path, "run").close()


def test_a_journal_of_another_session_is_not_used(tmp_path):
    path = tmp_path / "journal.jsonl"
    FileJournal(path, "run").close()

    with pytest.raises(ProtocolError, match=r"belongs to another session \(run\); expected other"):
        FileJournal(path, "other")
    FileJournal(path, "run").close()


@pytest.mark.parametrize(
    "content", [b"[]\n", b"{}\n", b'{"session": "run"}\n{}\n', b'{"session": "run"}\nx\n', b'{"session": "run"}\n"a"\n']
)
def test_a_damaged_journal_answers_nothing(tmp_path, content):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(content)

    with pytest.raises(ProtocolError, match=r"journal.jsonl: is not a journal as this version writes it; .*Nothing is"):
        FileJournal(path, "run")
    assert path.read_bytes() == content
    os.remove(path)
