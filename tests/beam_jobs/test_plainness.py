"""Logic is plain and Beam wires it: what reads, checks and writes rows can be imported, and tested, without Beam."""

import subprocess
import sys

import pytest
from builders import ROOT

PLAIN = ("reading", "lines", "compression", "formats", "rows", "segments", "steps", "failures")


@pytest.mark.parametrize("heavy", ["apache_beam", "tensorflow", "pyarrow"])
def test_readers_and_steps_import_nothing_heavy(heavy):
    program = (
        "import importlib, pkgutil, sys, beam_jobs\n"
        "for module in pkgutil.walk_packages(beam_jobs.__path__, 'beam_jobs.'):\n"
        f"    if module.name.split('.')[1] in {PLAIN!r}:\n"
        "        importlib.import_module(module.name)\n"
        f"print({heavy!r} in sys.modules)\n"
    )

    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
