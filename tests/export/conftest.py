"""An exported version that tests read, and copies of it that they may break."""

import shutil

import pytest
from builders.serving_fixtures import exported, request_of


@pytest.fixture(scope="session")
def run():
    return exported()[0]


@pytest.fixture(scope="session")
def version():
    return exported()[1]


@pytest.fixture(scope="session")
def request_(run):
    return request_of(run)


@pytest.fixture
def altered(version, tmp_path):
    """A copy of the version that a test may break."""
    return shutil.copytree(version, tmp_path / "altered")
