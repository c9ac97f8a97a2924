from collections.abc import Callable
from pathlib import Path

import pytest
from builders.prepare_helpers import Case


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


@pytest.fixture
def another(tmp_path: Path) -> Callable[[str], Case]:
    return lambda name: Case(tmp_path / name)
