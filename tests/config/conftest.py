"""The configuration file of a test."""

from pathlib import Path

import pytest
from builders.configurations import MINIMAL


@pytest.fixture
def write(tmp_path: Path):
    """Writes a configuration: MINIMAL with `old` replaced by `new`."""

    def written(old: str = "", new: str = "") -> Path:
        assert old in MINIMAL
        path = tmp_path / "pipeline.toml"
        path.write_text(MINIMAL.replace(old, new) if old else MINIMAL)
        return path

    return written
