"""`python -m tff_pipeline` in processes that are forked from one which has imported everything, and computed nothing.

Half of the time that a command takes goes to imports. A forked process is one of its own, with its own id, output and exit code:
it can be killed, and leaves what a killed one leaves.

    python -m builders.warm_pipeline SOCKET    serves `WarmPipeline`
"""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from builders import environment

# What `run` imports, in its order.
_MODULES = (
    "beam_jobs.prepare_silo",
    "tff_pipeline.commands.run",
    "tff_pipeline.evaluation.evaluate",
    "tff_pipeline.export.build",
    "tff_pipeline.export.exported_model",
    "tff_pipeline.training.loop",
    "tff_pipeline.training.releases",
    "tff_pipeline.training.wiring",
    "tff_pipeline.runtime.local",
)


class Command:
    """A command that runs: the part of `subprocess.Popen` that tests use."""

    def __init__(self, server: socket.socket, arguments: list[str]):
        out, err = os.pipe(), os.pipe()
        self.stdout, self.stderr = os.fdopen(out[0]), os.fdopen(err[0])
        self._server = server
        socket.send_fds(server, [json.dumps(arguments).encode()], [out[1], err[1]])
        os.close(out[1])
        os.close(err[1])
        self.pid = int(server.recv(64))
        self.returncode: int | None = None

    def kill(self) -> None:
        # The server waits for the process only when it is asked to, so its id is not given to another before.
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """The exit code, below 0 where a signal ended it."""
        if self.returncode is None:
            self._server.send(json.dumps(self.pid).encode())
            self.returncode = int(self._server.recv(64))
        return self.returncode


class WarmPipeline:
    """Starts commands, one at a time."""

    def __init__(self, log: Path):
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, log.open("wb") as errors:
            script = [sys.executable, "-m", "builders.warm_pipeline", str(theirs.fileno())]
            self._process = subprocess.Popen(
                script, env=environment(), pass_fds=[theirs.fileno()], stdout=errors, stderr=errors
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._process.wait()

    def start(self, *arguments: str) -> Command:
        return Command(self._socket, list(arguments))


def _serve(requests: socket.socket) -> None:
    """Answers the arguments of a command with the id of its process, and an id with the exit code, until the other end closes."""
    from tff_pipeline.progress import silence_libraries

    silence_libraries()
    for module in _MODULES:
        importlib.import_module(module)
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 65536, 2)
        if not message:
            return
        request: Any = json.loads(message)
        if isinstance(request, int):
            requests.send(str(os.waitstatus_to_exitcode(os.waitpid(request, 0)[1])).encode())
            continue
        child = os.fork()
        if child == 0:
            for target, descriptor in zip((1, 2), descriptors, strict=True):
                os.dup2(descriptor, target)
                os.close(descriptor)
            requests.close()
            _run(request)
        for descriptor in descriptors:
            os.close(descriptor)
        requests.send(str(child).encode())


def _run(arguments: list[str]) -> None:
    """What `python -m tff_pipeline` does, to the end of the process."""
    from tff_pipeline.cli import main

    sys.argv = ["tff-pipeline", *arguments]
    sys.exit(main())


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
