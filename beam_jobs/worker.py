"""A process that runs steps of prepare for Beam's runner on this machine, where `prepare.workers` asks for several.

Beam's own module for that writes what it does, and the tracebacks of steps that fail, to the terminal. Here nothing is
written: what went wrong reaches the driver, which says it in a sentence. The process ends when the driver closes its
connection, or is gone.
"""

import atexit
import gc
import logging
import os
import shlex
import sys

from tff_pipeline.progress import silence_libraries


def command() -> str:
    """The shell's command that starts such a process; it takes the place of the shell, so that what ends one ends both."""
    return f"exec {shlex.quote(sys.executable)} -m beam_jobs.worker"


def main() -> None:
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
