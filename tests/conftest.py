"""What all tests share: quiet libraries, the generated example, and real data where it lies beside the checkout."""

from pathlib import Path

import pytest
from builders import ROOT, compiled

from tff_pipeline.progress import silence_libraries

silence_libraries()


@pytest.fixture(autouse=True)
def _compiled_once() -> None:
    """What is compiled is kept for the tests to come; see there what is not."""
    compiled.share_if_imported()


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def example_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's three silos, small: 60 clients. Not to be written to."""
    from examples.customer_messages import generate

    folder = tmp_path_factory.mktemp("example")
    generate(folder, seed=7, clients=60)
    return folder


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real data sets beside the checkout; a test that needs them is skipped where they are not."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the real data sets, which are not beside this checkout")
    return folder
