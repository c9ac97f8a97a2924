"""Files and directories that are whole or not there, and what is refused by name when they are neither."""

import os
import stat
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from tff_pipeline import artifacts
from tff_pipeline.artifacts import COMPLETE, MANIFEST, read_manifest, staged
from tff_pipeline.errors import ArtifactError


def made(final: Path) -> Path:
    """A complete artifact of two files."""
    with staged(final, lambda: {"kind": "test", "number": 3}) as aside:
        (aside / "a.txt").write_text("one")
        (aside / "sub").mkdir()
        (aside / "sub" / "b.bin").write_bytes(b"\0" * 10)
    return final


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refusal(directory: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        read_manifest(directory, check_files=True)
    return str(caught.value)


# -- single files --------------------------------------------------------------------------------------------------------


def test_a_written_file_holds_all_of_its_data_and_leaves_nothing_beside_it(tmp_path):
    artifacts.write_atomic(tmp_path / "new" / "file", b"data")

    assert (tmp_path / "new" / "file").read_bytes() == b"data"
    assert names(tmp_path / "new") == ["file"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch, step):
    """As when the disk is full, or the process is told to stop."""
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="No space left"):
        artifacts.write_atomic(path, b"after")

    assert path.read_bytes() == b"before"
    assert names(tmp_path) == ["file"]


def test_json_comes_back_and_what_is_not_json_is_refused(tmp_path):
    artifacts.write_json(tmp_path / "a.json", {"b": [1, "é"]})
    (tmp_path / "cut.json").write_text('{"b": [1')

    assert artifacts.read_json(tmp_path / "a.json") == {"b": [1, "é"]}
    with pytest.raises(ArtifactError, match=r"cut\.json: not valid JSON .* Remove it and run its stage again\."):
        artifacts.read_json(tmp_path / "cut.json")
    with pytest.raises(
        ArtifactError, match=r"none\.json: no such file; the stage that writes it has not finished here\."
    ):
        artifacts.read_json(tmp_path / "none.json")


def test_equal_values_have_equal_fingerprints():
    assert artifacts.fingerprint({"a": 1, "b": [2.5]}) == artifacts.fingerprint({"b": [2.5], "a": 1})
    assert artifacts.fingerprint({"a": 1}) != artifacts.fingerprint({"a": 1.5})
    with pytest.raises(ValueError, match="JSON compliant"):
        artifacts.fingerprint(float("nan"))


# -- directories ---------------------------------------------------------------------------------------------------------


def test_an_artifact_says_what_is_in_it(tmp_path):
    manifest = read_manifest(made(tmp_path / "thing"), check_files=True)

    assert manifest["number"] == 3
    assert manifest["files"]["a.txt"]["bytes"] == 3
    assert set(manifest["files"]) == {"a.txt", "sub/b.bin"}
    assert "numpy" in manifest["versions"]
    assert names(tmp_path) == ["thing"]


def test_the_completion_mark_is_written_last(tmp_path, monkeypatch):
    written = []
    write = artifacts.write_atomic

    def note(path: Path, *given: object, **named: object) -> None:
        written.append(path.name)
        write(path, *given, **named)

    monkeypatch.setattr(artifacts, "write_atomic", note)
    made(tmp_path / "thing")

    assert written == [MANIFEST, COMPLETE]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_nothing(tmp_path, error):
    def build() -> None:
        with staged(tmp_path / "thing", dict) as aside:
            (aside / "half").write_text("half")
            raise error

    with pytest.raises(error):
        build()

    assert names(tmp_path) == []


def test_a_manifest_that_cannot_be_made_leaves_nothing(tmp_path):
    def build() -> None:
        with staged(tmp_path / "thing", lambda: {"bad": object()}):
            pass

    with pytest.raises(TypeError):
        build()

    assert names(tmp_path) == []


def test_a_complete_artifact_is_never_overwritten(tmp_path):
    made(tmp_path / "thing")

    with pytest.raises(ArtifactError, match=r"thing: is there already and complete; artifacts are never overwritten"):
        made(tmp_path / "thing")


def test_what_a_killed_attempt_left_is_removed_and_other_artifacts_are_not(tmp_path):
    (tmp_path / ".staging-thing-x1").mkdir()
    (tmp_path / ".staging-other-x1").mkdir()
    (tmp_path / "thing").mkdir()  # incomplete: no completion mark

    made(tmp_path / "thing")

    assert names(tmp_path) == [".staging-other-x1", "thing"]


def test_two_attempts_at_once_leave_each_other_alone(tmp_path):
    """As when two exports run: the first to finish makes the artifact, and the other is told so."""

    def slow_attempt() -> None:
        with staged(tmp_path / "thing", lambda: {"kind": "slow"}) as aside:
            (aside / "half").write_text("half")
            made(tmp_path / "thing")
            assert (aside / "half").read_text() == "half"

    with pytest.raises(ArtifactError, match=r"thing: another process has finished it meanwhile; .* is removed\."):
        slow_attempt()

    assert read_manifest(tmp_path / "thing", check_files=True)["kind"] == "test"
    assert names(tmp_path) == ["thing"]


def test_what_a_process_left_that_was_killed_is_removed(tmp_path):
    """The lock on its directory ends with it."""
    program = (
        "import os, pathlib, sys; from tff_pipeline.artifacts import staged\n"
        "with staged(pathlib.Path(sys.argv[1]), dict): os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path / "thing")], check=False)
    assert killed.returncode == -9
    assert [name[:15] for name in names(tmp_path)] == [".staging-thing-"]

    made(tmp_path / "thing")

    assert names(tmp_path) == ["thing"]


def test_installed_versions_are_read_once_and_nobody_changes_anothers():
    versions = artifacts.versions()
    reads = artifacts._installed_versions.cache_info().misses
    versions["tensorflow"] = "changed by whoever asked"

    assert artifacts.versions()["tensorflow"] == metadata.version("tensorflow")
    assert artifacts._installed_versions.cache_info().misses == reads


class TestWhatIsRefused:
    @pytest.fixture
    def thing(self, tmp_path):
        return made(tmp_path / "thing")

    def test_no_completion_mark(self, thing):
        (thing / COMPLETE).unlink()

        assert "thing: not complete (no COMPLETE beside manifest.json)" in refusal(thing)

    def test_nothing_there(self, tmp_path):
        assert "nothing: not complete" in refusal(tmp_path / "nothing")

    def test_an_edited_manifest(self, thing):
        (thing / MANIFEST).write_text((thing / MANIFEST).read_text().replace('"number": 3', '"number": 4'))

        assert "manifest.json: has changed since it was written (its SHA-256 differs from COMPLETE)" in refusal(thing)

    def test_a_file_cut_short(self, thing):
        (thing / "sub" / "b.bin").write_bytes(b"\0" * 9)

        assert "sub/b.bin: has changed since it was written (size or SHA-256 differs from manifest.json)" in refusal(
            thing
        )

    def test_a_file_of_the_same_size_with_other_bytes(self, thing):
        (thing / "a.txt").write_text("two")

        assert "a.txt: has changed since it was written" in refusal(thing)

    def test_a_missing_file(self, thing):
        (thing / "a.txt").unlink()

        assert "a.txt: missing; manifest.json lists it. Remove the directory and run its stage again." in refusal(thing)

    def test_a_mark_that_cannot_be_read(self, thing):
        (thing / COMPLETE).unlink()
        (thing / COMPLETE).mkdir()

        assert "thing/COMPLETE: cannot be read (Is a directory). Check that this account may read it" in refusal(thing)

    def test_json_that_cannot_be_read(self, tmp_path):
        with pytest.raises(ArtifactError, match=r"cannot be read \(Is a directory\)\. Check that this account"):
            artifacts.read_json(tmp_path)

    def test_a_truncated_mark(self, thing):
        (thing / COMPLETE).write_text("")

        assert "has changed since it was written" in refusal(thing)


# -- secrets -------------------------------------------------------------------------------------------------------------


def test_a_secret_is_made_once_and_only_its_owner_may_read_it(tmp_path):
    path = tmp_path / "keys" / "clients.key"

    first = artifacts.secret(path)

    assert len(first) == 32
    assert artifacts.secret(path) == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert artifacts.secret(tmp_path / "other.key") != first


def test_a_derived_secret_is_the_same_everywhere(tmp_path):
    assert artifacts.secret(tmp_path / "a", lambda: b"s" * 32) == artifacts.secret(tmp_path / "b", lambda: b"s" * 32)


def test_a_damaged_secret_is_refused_and_kept(tmp_path):
    (tmp_path / "key").write_bytes(b"short")

    with pytest.raises(
        ArtifactError, match=r"key: holds 5 bytes; expected a secret of 32 bytes\. Restore it from a backup"
    ):
        artifacts.secret(tmp_path / "key")

    assert (tmp_path / "key").read_bytes() == b"short"
