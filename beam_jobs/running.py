"""Runs the pipeline of prepare on a Beam runner.

The runner is Beam's FnApiRunner unless the options name another one: in this process, or with `prepare.workers` processes
where the silo is large enough (`workers_for`); a silo of 200,000 rows is done before a second process has imported TensorFlow.
"DirectRunner" means the same here: Beam's own class of that name may hand over to Prism, which downloads a program. Other
runners work if their workers see the workdir.
"""

import argparse
import gc
import io
import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from typing import Any

import msgspec

from beam_jobs import transforms, worker
from beam_jobs.failures import failure_in
from beam_jobs.planning import Plan, text_bytes
from tff_pipeline.data.tokenization import Tokenizer
from tff_pipeline.errors import ConfigError, PipelineError
from tff_pipeline.progress import Progress

WORKER_BYTES = 64 * 2**20  # text that takes a worker longer to read than another one takes to start
WORKER_MEMORY = 2**30  # of a worker, rounded up: TensorFlow takes most of it
PROGRESS_EVERY_S = 10.0
_PROCESSES = "multi_processing"
_IN_PROCESS = (None, "DirectRunner", "direct", "FnApiRunner")


def run(plan: Plan, tokenizer: Tokenizer, options: Any) -> transforms.Result:
    """Runs the pipeline, and returns what it wrote.

    Raises:
      PipelineError: our own error, if a worker raised one; else a sentence on the runner that failed.
    """
    import apache_beam as beam
    from apache_beam.options.pipeline_options import StandardOptions

    named = options.view_as(StandardOptions).runner
    ended: list[str] = []
    try:
        runner = _own_runner(options) if named in _IN_PROCESS else named
        with worker.ended_early() as ended, beam.Pipeline(runner=runner, options=options) as pipeline:
            read = pipeline | "ReadAndTokenize" >> transforms.ReadAndTokenize(plan, tokenizer)
            written = pipeline | "WriteParts" >> transforms.WriteParts(plan, read)
            _ = pipeline | "WriteResult" >> transforms.WriteResult(plan, read, written)
        return msgspec.json.decode((Path(plan.work) / transforms.RESULT).read_bytes(), type=transforms.Result)
    except Exception as error:
        failure = failure_in(error)
        if failure is not None:
            raise failure from None
        if ended:
            raise PipelineError(
                f"silo {plan.silo.name!r}: a worker process of prepare has ended before its work was done ({ended[0]}). A return code of -9 is mostly the system's, "
                "for want of memory: set prepare.workers to fewer, or 1, and run prepare again. With another code the worker could "
                f"not start: `{sys.executable} -m beam_jobs.worker` says why."
            ) from None
        raise PipelineError(
            f"silo {plan.silo.name!r}: the Beam runner {named or 'FnApiRunner'} failed ({type(error).__name__}: {_first_line(error)}). "
            f"Check the options after `--`; the workers of any runner must see {plan.work}."
        ) from error


def _own_runner(options: Any) -> Any:
    """Beam's runner on this machine; where the options ask for processes, with ours as workers."""
    from apache_beam.options.pipeline_options import DirectOptions
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    direct = options.view_as(DirectOptions)
    if direct.direct_running_mode != _PROCESSES:
        return FnApiRunner()
    direct.direct_running_mode = "in_memory"  # the runner's word for: in the environment it is given
    return worker.runner()


def _first_line(error: Exception) -> str:
    """The beginning of a runner's message; errors inside our steps, which know the silo's text, do not come here."""
    return (str(error).splitlines() or [""])[0][:200]


# -- options -----------------------------------------------------------------------------------------------------------


def beam_options(beam_args: Sequence[str]) -> Any:
    """The options, checked at once: Beam by itself reads them late, exits where it cannot, and drops unknown ones."""
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

    def parse_all(parser: argparse.ArgumentParser) -> None:
        if strict:
            parser.parse_args(list(beam_args))

    complaints = io.StringIO()
    try:
        with redirect_stderr(complaints):
            options = PipelineOptions(list(beam_args))
            strict = options.view_as(StandardOptions).runner in _IN_PROCESS  # others may know options this SDK does not
            options.get_all_options(add_extra_args_fn=parse_all)
    except SystemExit:
        complaint = (complaints.getvalue().splitlines() or [""])[-1].partition("error: ")[2]
        raise ConfigError(
            f"the Beam options {' '.join(beam_args)!r} cannot be read: {complaint}. "
            "Expected Beam pipeline options after `--`, such as --direct_num_workers=2."
        ) from None
    return options


def worker_args(workers: int) -> list[str]:
    """The runner's options for so many processes; with one, this process does the work."""
    return [f"--direct_num_workers={workers}", f"--direct_running_mode={_PROCESSES}"] if workers > 1 else []


def workers_for(entries: Sequence[Mapping[str, Any]]) -> int:
    """How many processes are worth starting for these inputs: none reads less than WORKER_BYTES of text, nor less than a file.

    They take at most half of the machine's memory; what counts is its size, not what is free, so that a schedule's runs are
    alike.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = os.cpu_count() or 1, len(entries), text_bytes(entries) // WORKER_BYTES, memory // (2 * WORKER_MEMORY)
    return max(1, min(limits))


# -- around a run ------------------------------------------------------------------------------------------------------


@contextmanager
def own_collector() -> Iterator[None]:
    """Resets the garbage collector at the end: workers in this process change it (`transforms.collect_seldom`)."""
    thresholds = gc.get_threshold()
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


@contextmanager
def quiet_beam() -> Iterator[None]:
    """Keeps Beam's tracebacks off the terminal: `prepare` raises one sentence in their place."""
    beam_log = logging.getLogger("apache_beam")
    level = beam_log.level
    beam_log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        beam_log.setLevel(level)


@contextmanager
def progress_of_rows(work: Path, silo: str, progress: Progress) -> Iterator[None]:
    """Reports every few seconds how many rows the workers have read."""
    ended = threading.Event()

    def report() -> None:
        while not ended.wait(PROGRESS_EVERY_S):
            with suppress(OSError, ValueError):  # a worker may be writing one of them at this moment
                rows = sum(int(file.read_text()) for file in work.glob(f"*{transforms.RUNNING}"))
                progress.event("prepare_running", silo=silo, rows=rows)

    thread = threading.Thread(target=report, name="prepare-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
