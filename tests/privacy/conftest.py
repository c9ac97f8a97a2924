"""What tests of ledgers share."""

from pathlib import Path

import pytest
from builders.ledgers import Folder


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)
