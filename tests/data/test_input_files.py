"""Which files a pattern of an input names. tests/beam_jobs/test_inputs.py has the rest, on what `prepare` reads."""

import os

import numpy as np
import pytest

from tff_pipeline.data.input_files import local_files, regular_expression
from tff_pipeline.errors import InputError


@pytest.fixture
def folder(tmp_path):
    for name in ("2024/a.csv", "2024/b.csv", "2025/a.csv", "notes [old]/c.csv", "top.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("top.csv", ["top.csv"]),
        ("*.csv", ["top.csv"]),
        ("202?/a.csv", ["2024/a.csv", "2025/a.csv"]),
        ("202[!4]/*", ["2025/a.csv"]),
        ("**/a.csv", ["2024/a.csv", "2025/a.csv"]),
        ("notes [old]/*.csv", ["notes [old]/c.csv"]),
        ("2024/*.jsonl", []),
        ("none/a.csv", []),
    ],
)
def test_patterns(folder, pattern, expected):
    found = local_files(f"{folder}/{pattern}", silo="bank")

    assert sorted(os.path.relpath(path, folder) for path in found.files) == expected
    assert found.left_out == []


def test_patterns_are_those_of_beam():
    """Seed 5: 20,000 patterns of up to eight characters that have a meaning, and some that have none."""
    from apache_beam.io.filesystem import FileSystem

    random = np.random.default_rng(5)
    for length in random.integers(0, 9, 20_000):
        pattern = "".join(random.choice(list("*?[]!^-/\\.ab\n"), length))
        assert regular_expression(pattern) == FileSystem.translate_pattern(pattern), repr(pattern)


def test_what_is_no_regular_file_is_told_apart(folder):
    os.mkfifo(folder / "2024" / "pipe.csv")

    assert local_files(f"{folder}/2024/p*", silo="bank") == ([], [f"{folder}/2024/pipe.csv"])


def test_what_cannot_be_read_is_named(folder):
    with pytest.raises(
        InputError, match=r"2024: the input of silo 'bank' is a folder; expected files\. Write .*2024/\* for"
    ):
        local_files(f"{folder}/2024", silo="bank")
    (folder / "2024" / "gone.csv").symlink_to(folder / "nothing")
    with pytest.raises(InputError, match=r"gone\.csv: the file is a link to one that does not exist\. .* silo 'bank'"):
        local_files(f"{folder}/2024/*.csv", silo="bank")
