"""`tff-pipeline serve` as a process."""

import contextlib
import json
import re
import signal
import subprocess
import sys

import pytest
from builders import ROOT
from builders.serving_models import fetch


@pytest.fixture
def command(models):
    """`tff-pipeline serve` in a process of its own, ended at the end of the test whatever happens."""
    program = (
        "import sys; from serving.commands.serve import main; from tff_pipeline import cli; "
        "cli.command = {'serve': main}.__getitem__; sys.exit(cli.main())"  # whatever is installed
    )
    arguments = ["serve", "--model-base-path", str(models), "--port=0", "--rest_api_port=0"]
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        child.communicate()


def test_the_command_serves_until_it_is_told_to_stop(command):
    """It says on standard output where it listens, with a curl line that works; SIGTERM ends it within seconds."""
    where, curl = command.stdout.readline(), command.stdout.readline()
    address = re.search(r"http://127\.0\.0\.1:\d+", where).group()
    assert curl.startswith("curl -d ")
    assert f"{address}/v1/models/small:predict" in curl
    done = subprocess.run(
        ["/bin/sh", "-c", curl.replace("curl", "curl -s")], capture_output=True, text=True, timeout=20, check=False
    )
    if done.returncode != 127:
        assert json.loads(done.stdout) == {"predictions": [{"length": 14, "version": 1.0}]}
    assert fetch(f"{address}/v1/models/small")[0] == 200
    command.send_signal(signal.SIGTERM)
    _, errors = command.communicate(timeout=20)
    assert command.returncode == 0
    assert "it is not TensorFlow Serving" in " ".join(errors.split())
    assert "Traceback" not in errors


def test_the_package_loads_nothing_heavy_for_its_help():
    code = "import sys, serving.commands.serve; print([name for name in ('tensorflow', 'grpc') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"
