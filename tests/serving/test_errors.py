"""What the operating system, an object store or a wrong address refuses is an error in a sentence, not a traceback."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from serving import golden, lock
from serving.base_path import Folder
from serving.base_path.folder import publish, retain
from serving.base_path.object_store import upload
from serving.commands import list as list_command
from serving.commands.publish import main as publish_main
from serving.commands.rollout import promote_main
from serving.publishing import gates
from serving.rollout import followers
from tff_pipeline.artifacts import staged, version_numbers
from tff_pipeline.config import GatesSection
from tff_pipeline.errors import ArtifactError
from tff_pipeline.progress import Progress

QUIET = Progress(interactive=False)


def version(folder: Path, number: int) -> Path:
    with staged(folder / str(number), lambda: {"kind": "model", "name": "desk", "version": number}) as aside:
        (aside / "saved_model.pb").write_bytes(b"weights")
    return folder / str(number)


@pytest.fixture
def base(tmp_path):
    """A base path with versions 1 and 2."""
    for number in (1, 2):
        publish(version(tmp_path / "made", number), tmp_path / "served" / "desk", progress=QUIET)
    return tmp_path / "served" / "desk"


def refused(*arguments, **settings):
    raise PermissionError(errno.EACCES, "Permission denied")


def test_a_version_that_cannot_be_removed_stays(base, monkeypatch):
    rename = os.rename
    monkeypatch.setattr(os, "rename", lambda old, new: refused() if lock.REMOVING in str(new) else rename(old, new))
    with pytest.raises(ArtifactError, match=r"desk/1: cannot be removed \(Permission denied\); expected permission"):
        retain(base, 1, needed=[])
    assert version_numbers(base) == [1, 2]


def test_a_base_path_that_cannot_be_listed(base, monkeypatch, capsys):
    monkeypatch.setattr(Path, "iterdir", refused)
    for read in (
        Folder(base).complete_versions,
        lambda: list_command.main(["--to", str(base)]),
        lambda: retain(base, 1, needed=[]),
    ):
        with pytest.raises(
            ArtifactError, match=r"desk: cannot be read \(Permission denied\); expected files and folders"
        ):
            read()


def test_a_base_path_whose_leftovers_cannot_be_listed(base, monkeypatch):
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: refused() if Path(path) == base else listdir(path))
    with pytest.raises(
        ArtifactError, match=r"desk: cannot be listed \(Permission denied\), so that what a stopped command"
    ):
        publish(base.parent.parent / "made" / "1", base, progress=QUIET)


def test_a_version_that_cannot_be_read(base, tmp_path, monkeypatch):
    """Neither the one that is to be published, nor the one that is there."""
    opened = Path.open

    for folder in (tmp_path / "made", base):
        damaged = folder / "1" / "saved_model.pb"

        def opening(path, *arguments, damaged=damaged, **settings):
            if path == damaged:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return opened(path, *arguments, **settings)

        monkeypatch.setattr(Path, "open", opening)
        with pytest.raises(ArtifactError, match=rf"{damaged}: cannot be read \(Permission denied\)"):
            publish(tmp_path / "made" / "1", base, progress=QUIET)


@pytest.mark.parametrize("content", ["{}", "[1]"])
def test_a_list_of_followers_that_is_none_keeps_every_version(base, content):
    (base / lock.FOLDER / "models-configs.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"models-configs\.json: holds something else than a list of files"):
        followers.needed(base)


def test_a_list_of_followers_that_cannot_be_read_keeps_every_version(base, monkeypatch):
    (base / lock.FOLDER / "models-configs.json").write_text("[]")
    monkeypatch.setattr(Path, "read_text", refused)
    with pytest.raises(ArtifactError, match=r"models-configs\.json: cannot be read \(Permission denied\)"):
        followers.needed(base)


def test_a_store_that_cannot_be_reached(tmp_path):
    made = version(tmp_path / "made", 1)
    with pytest.raises(ArtifactError, match=r"nosuch://bucket/desk/1: could not be uploaded, .*nosuch.*credentials"):
        upload(made, "nosuch://bucket/desk")


def test_a_serving_version_that_cannot_be_loaded_is_named_by_the_gate(base, tmp_path):
    (tmp_path / "texts").write_text("my card\n")
    asked = GatesSection(max_changed=0.1, texts=str(tmp_path / "texts"))
    with pytest.raises(ArtifactError, match=r"desk/1: cannot be loaded to compare labels \("):
        gates.check_changes(base / "2", base / "1", asked)
    shutil.rmtree(base / "1")
    with pytest.raises(ArtifactError, match=r"desk/1: cannot be loaded to compare labels \("):
        gates.check_changes(base / "2", base / "1", asked)


@pytest.mark.parametrize("address", ["localhost:8501", "http://", "http://localhost:many"])
def test_an_address_that_is_none_is_an_error_of_usage(base, address, capsys):
    models_config = ["--models-config", "models.config", "--server", address]
    for main, arguments in (
        (promote_main, ["--name", "desk", *models_config]),
        (publish_main, ["--model", str(base), "--to", str(base), "--canary", *models_config]),
        (golden.main, [str(base / "1"), "--rest", address]),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        assert "expected an address such as http://localhost:8501" in capsys.readouterr().err
