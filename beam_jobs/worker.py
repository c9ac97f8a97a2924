"""A process that runs steps of prepare for Beam's runner on this machine, where `prepare.workers` asks for several.

Beam's own module for that prints its log, and the tracebacks of steps that fail, to the terminal. This one prints nothing:
an error reaches the driver, which raises it as a sentence. The process ends when the driver closes its connection or ends.
"""

import atexit
import gc
import logging
import os
import shlex
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tff_pipeline.progress import silence_libraries

# Beam's threads for a worker, in the driver: the one that waits for its end, and those that read what it sends.
_WAITS, _READS = "run_worker", ("beam_control_read", "read_grpc_client_inputs")


def runner() -> Any:
    """Beam's runner on this machine, with such processes as workers; it fails where one ends before its work is done.

    Beam by itself notices that only once a worker has connected, and waits forever for one that cannot start.
    """
    from apache_beam.portability import python_urns
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner, worker_handlers
    from apache_beam.transforms.environments import SubprocessSDKEnvironment

    class Watched(worker_handlers.SubprocessSdkWorkerHandler):
        def start_worker(self) -> None:
            super().start_worker()
            self._stopped = threading.Event()
            threading.Thread(target=self._watch, name="watch_worker", daemon=True).start()

        def _watch(self) -> None:
            handler: Any = self
            self.worker_thread.join()
            with suppress(Exception):  # which is what broke the connection, where it broke before the process had ended
                handler.data_conn.close()  # wakes threads that wait for its data; then those that wait for its answers,
            while not self._stopped.wait(0.2):  # again and again, since the next request to it would wait as well
                handler.control_conn.abort(RuntimeError("the worker has ended"))

        def close(self) -> Any:  # none; as Beam's own, which a type checker takes for one that never returns
            try:
                super().close()  # of a broken connection it raises, and does not stop the worker
            finally:
                self._stopped.set()

        def stop_worker(self) -> None:
            self._stopped.set()
            super().stop_worker()

    worker_handlers.WorkerHandler.register_environment(python_urns.SUBPROCESS_SDK, bytes)(Watched)
    # exec: the worker replaces the shell that Beam starts, so that ending one ends both.
    command = f"exec {shlex.quote(sys.executable)} -m beam_jobs.worker"
    return FnApiRunner(SubprocessSDKEnvironment.from_command_string(command))


@contextmanager
def ended_early() -> Iterator[list[str]]:
    """Collects Beam's messages on workers that ended before they were told to; Beam would print them, with tracebacks."""
    messages: list[str] = []
    usual = threading.excepthook

    def hook(failure: Any) -> None:
        name = failure.thread.name if failure.thread is not None else ""
        if name == _WAITS:
            messages.append(str(failure.exc_value))
        elif name not in _READS:  # those report only that their connection broke
            usual(failure)

    threading.excepthook = hook
    try:
        yield messages
    finally:
        threading.excepthook = usual


def main() -> None:
    if "CONTROL_API_SERVICE_DESCRIPTOR" not in os.environ:
        print(
            "beam_jobs.worker: this Python can start workers. Only prepare does; see prepare.workers in configs/README.md."
        )
        return
    logging.disable(logging.CRITICAL)  # before Beam is imported, which begins to log at once,
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.dup2(nowhere, sys.stderr.fileno())  # and prints tracebacks
    silence_libraries()
    atexit.register(gc.freeze)  # as in tff_pipeline.cli
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main(sys.argv)


if __name__ == "__main__":
    main()
