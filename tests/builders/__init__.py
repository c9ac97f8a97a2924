"""What tests are made of: small models, plans, silos and runs; and where the tests are, for those that start processes."""

import os
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
ROOT = TESTS.parent


def environment(**more: str) -> dict[str, str]:
    """The environment of a process that imports this checkout and these builders."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(TESTS)]), **more}
