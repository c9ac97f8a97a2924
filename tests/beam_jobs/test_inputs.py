"""Which files a silo's input is, and what is said where one of them is odd or an endpoint does not answer."""

import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from apache_beam.io.filesystem import CompressionTypes, FileMetadata, FileSystem

from beam_jobs import endpoints, formats, inputs, reading
from tff_pipeline.config import SiloSection
from tff_pipeline.errors import InputError

ROWS = "text,label\nhelp,y\n"


def find(folder: Path, given) -> inputs.Inputs:
    """What the configuration in `folder` finds."""
    globs = (
        {split: str(folder / pattern) for split, pattern in given.items()}
        if isinstance(given, dict)
        else tuple(
            pattern if "://" in pattern else str(folder / pattern)
            for pattern in ([given] if isinstance(given, str) else given)
        )
    )
    section = SiloSection(name="bank", input=globs, format="csv")
    return inputs.find(section, folder, lambda path: reading.Source(section, path))


def names(silo_inputs: inputs.Inputs) -> list[str]:
    return [file.name for file in silo_inputs.files]


def refusal(folder: Path, given) -> str:
    with pytest.raises(InputError) as raised:
        find(folder, given)
    return str(raised.value)


def write(path: Path, content: str = ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


# -- which files -------------------------------------------------------------------------------------------------------


def test_patterns(tmp_path):
    for number, name in enumerate(["a.csv", "b.csv", "b.tsv", "x/a.csv", "x/y/a.csv", ".hidden.csv"]):
        write(tmp_path / name, ROWS + f"help,{number}\n")

    assert names(find(tmp_path, "*.csv")) == [".hidden.csv", "a.csv", "b.csv"]
    assert names(find(tmp_path, "[ab].?sv")) == ["a.csv", "b.csv", "b.tsv"]
    assert names(find(tmp_path, "*/a.csv")) == ["x/a.csv"]
    assert names(find(tmp_path, "**.csv")) == [".hidden.csv", "a.csv", "b.csv", "x/a.csv", "x/y/a.csv"]
    assert names(find(tmp_path, ["b.csv", "*.csv"])) == [".hidden.csv", "a.csv", "b.csv"]
    assert names(find(tmp_path, "x/../a.csv")) == ["a.csv"]


@pytest.mark.parametrize("folder", ["bank [1]", "[a-c]", "what?", "a*b"])
def test_brackets_in_the_name_of_a_folder_are_letters(tmp_path, folder):
    """In the folder of the configuration, or one it names; beside a folder that the pattern would mean otherwise."""
    write(tmp_path / folder / "a.csv")
    write(tmp_path / folder / "b[1].csv", ROWS * 2)
    write(tmp_path / "a" / "c.csv", ROWS * 3)

    assert names(find(tmp_path / folder, "*.csv")) == ["a.csv", "b[1].csv"]
    assert names(find(tmp_path / folder, "b[1].csv")) == ["b[1].csv"]
    assert names(find(tmp_path, f"{folder}/*.csv")) == [f"{folder}/a.csv", f"{folder}/b[1].csv"]
    assert names(find(tmp_path, "[a]/*.csv")) == ["a/c.csv"]


def test_a_link_to_nothing_is_an_error(tmp_path):
    write(tmp_path / "a.csv")
    (tmp_path / "b.csv").symlink_to("gone.csv")

    for given in ("*.csv", "b.csv"):
        assert f"{tmp_path / 'b.csv'}: the file is a link to one that does not exist. Bring that file back" in refusal(
            tmp_path, given
        )


def test_folders_that_are_links_are_read_and_loops_end(tmp_path):
    write(tmp_path / "in" / "2023" / "a.csv")
    write(tmp_path / "archive" / "2024" / "a.csv", ROWS * 2)
    (tmp_path / "in" / "2024").symlink_to(tmp_path / "archive" / "2024")
    (tmp_path / "in" / "2023" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "archive" / "2024" / "out").symlink_to(tmp_path / "archive")

    for given in ("in/*/a.csv", "in/**.csv"):
        silo_inputs = find(tmp_path, given)
        assert names(silo_inputs) == ["in/2023/a.csv", "in/2024/a.csv"]
        assert silo_inputs.warnings == []


def test_files_without_rows_may_be_the_same_in_two_splits(tmp_path):
    """One split's export of a day without rows is the other's, byte for byte."""
    header = "text,label\n"
    for name, content in {"train/a": ROWS, "train/b": header, "test/a": ROWS * 2, "test/b": header}.items():
        write(tmp_path / f"{name}.csv", content)

    silo_inputs = find(tmp_path, {"train": "train/*.csv", "test": "test/*.csv"})
    assert [(file.name, file.split) for file in silo_inputs.files] == [
        ("test/a.csv", "test"),
        ("test/b.csv", "test"),
        ("train/a.csv", "train"),
    ]
    assert silo_inputs.warnings == [("train/b.csv", "holds no rows and is the same as test/b.csv, byte for byte")]


@pytest.mark.parametrize("kind", ["copy", "link", "hard link"])
def test_the_same_file_twice_is_read_once_with_a_warning(tmp_path, kind):
    write(tmp_path / "a.csv")
    again = tmp_path / "latest.csv"
    {
        "copy": lambda: write(again),
        "link": lambda: again.symlink_to("a.csv"),
        "hard link": lambda: os.link(tmp_path / "a.csv", again),
    }[kind]()

    silo_inputs = find(tmp_path, "*.csv")
    assert names(silo_inputs) == [entry["name"] for entry in silo_inputs.entries] == ["a.csv"]
    assert silo_inputs.warnings == [
        ("latest.csv", "is the same as a.csv, byte for byte, and was read once; take one of them out of the input")
    ]
    assert "is the same as" in refusal(tmp_path, {"train": "a.csv", "test": "latest.csv"})
    assert "but one is in the train split of silo 'bank' and the other in the test split" in refusal(
        tmp_path, {"train": "a.csv", "test": "latest.csv"}
    )


def test_files_behind_one_that_is_left_out_keep_their_numbers(tmp_path):
    for name, content in (("a.csv", ROWS), ("b.csv", ROWS), ("c.csv", ROWS * 2)):
        write(tmp_path / name, content)

    assert [(file.index, file.name) for file in find(tmp_path, "*.csv").files] == [(0, "a.csv"), (1, "c.csv")]


def test_a_file_name_that_is_not_utf8(tmp_path):
    with open(os.fsencode(tmp_path) + b"/caf\xe9.csv", "w") as file:
        file.write(ROWS)

    message = refusal(tmp_path, "*.csv")
    assert rf"{tmp_path}/caf\xe9.csv: the file's name is not UTF-8" in message
    message.encode()


def test_what_is_no_file(tmp_path):
    write(tmp_path / "folder" / "a.csv")
    os.mkfifo(tmp_path / "folder" / "b.csv")

    assert f"is a folder; expected files. Write {tmp_path / 'folder' / '*'} for all files in it" in refusal(
        tmp_path, "folder"
    )
    silo_inputs = find(tmp_path, "folder/*.csv")
    assert names(silo_inputs) == ["folder/a.csv"]
    assert silo_inputs.warnings == [(str(tmp_path / "folder" / "b.csv"), "is no regular file and was left out")]


def test_what_this_account_may_not_read(tmp_path, monkeypatch):
    """Root may read everything, so the system's refusals are put in its mouth."""
    path = write(tmp_path / "a.csv")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr(os, "scandir", refuse)
    message = refusal(tmp_path, "*.csv")
    assert (
        f"{tmp_path}: the input of silo 'bank' cannot be listed (Permission denied). Check that this account may read"
        in message
    )
    monkeypatch.setattr(endpoints.FileSystems, "open", refuse)
    assert (
        f"{path}: the file cannot be read (Permission denied). Check that it exists, that it is whole, and that this account"
        in refusal(tmp_path, "a.csv")
    )


# -- endpoints ---------------------------------------------------------------------------------------------------------


class Far(FileSystem):
    """A file system of one file, far://bucket/a.csv, that answers what it is told to."""

    silent: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    never = threading.Event()

    @classmethod
    def scheme(cls) -> str:
        return "far"

    @classmethod
    def _ask(cls, request: str) -> None:
        if request in cls.silent:
            cls.never.wait()
        if request in cls.broken:
            raise RuntimeError("secret of the library")

    def _list(self, dir_or_prefix: str) -> Iterator[FileMetadata]:
        self._ask("list")
        yield FileMetadata("far://bucket/a.csv", len(ROWS), 1.0)

    def open(self, path, mime_type="", compression_type=CompressionTypes.AUTO):
        self._ask("open")
        far = self

        class Handle(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                far._ask("read")
                return super().read(size)

        return Handle(ROWS.encode())

    def metadata(self, path: str) -> FileMetadata:
        self._ask("metadata")
        return FileMetadata(path, len(ROWS), 1.0)

    def exists(self, path: str) -> bool:
        self._ask("list")
        return path == "far://bucket/a.csv"

    def has_dirs(self) -> bool:
        return False

    def join(self, basepath, *paths):
        return "/".join([basepath, *paths])

    def split(self, path):
        return path.rsplit("/", 1)

    def _not_here(self, *_, **__):
        raise NotImplementedError

    mkdirs = create = copy = rename = size = last_updated = checksum = delete = _not_here


@pytest.fixture
def far(monkeypatch):
    monkeypatch.setattr(endpoints, "ANSWER_S", 0.05)
    yield Far
    Far.silent = Far.broken = ()
    Far.never.set()
    Far.never = threading.Event()


@pytest.mark.parametrize("given", ["far://bucket/a.csv", "far://bucket/*.csv"])
def test_an_endpoint_that_answers(tmp_path, far, given):
    endpoints.ANSWER_S = 20  # monkeypatched by the fixture
    silo_inputs = find(tmp_path, given)

    assert names(silo_inputs) == ["far://bucket/a.csv"]
    assert silo_inputs.entries[0]["bytes"] == len(ROWS)
    with formats.opened(endpoints.open_raw, silo_inputs.files[0].path) as file:
        assert file.read() == ROWS.encode()
        file.seek(5)
        assert file.read(3) == b"lab"


@pytest.mark.parametrize("silent", ["list", "metadata", "open", "read"])
def test_an_endpoint_that_does_not_answer(tmp_path, far, silent):
    far.silent = (silent,)

    message = refusal(tmp_path, "far://bucket/*.csv")
    assert "far://bucket/" in message
    assert "the endpoint has not answered; expected an answer within 0.05 s. Check the address, the network" in message


@pytest.mark.parametrize("broken", ["list", "open", "read"])
def test_an_endpoint_that_answers_with_an_error(tmp_path, far, broken):
    endpoints.ANSWER_S = 20
    far.broken = (broken,)

    message = refusal(tmp_path, "far://bucket/*.csv")
    assert "Check the address and this machine's access to it" in message
    assert "secret" not in message


def test_twenty_seconds():
    assert endpoints.ANSWER_S == 20
