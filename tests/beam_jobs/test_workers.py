"""Workers of prepare, in this process and in others: how many, the same bytes from all, and how their failures are said."""

import contextlib
import dataclasses
import gc
import gzip
import os
import shutil
import signal
import subprocess
import sys
import threading
import traceback
from pathlib import Path

import pytest
from builders import ROOT
from builders.prepare_helpers import GOOD, WORKERS, data_bytes, manifest_of, many, refusal

from beam_jobs import planning, running, transforms
from beam_jobs.steps import batches, tokens
from tff_pipeline.errors import ArtifactError, InputError, PipelineError


def test_one_range_in_memory_or_many_the_same_bytes(case, another, monkeypatch):
    case.prepare["shards"] = 2
    case.write("data.csv", many(50))
    once = data_bytes(case.prepare_it())
    monkeypatch.setattr(planning, "RANGE_BYTES", 100)
    monkeypatch.setattr(batches, "BATCH_ROWS", 7)
    monkeypatch.setattr("beam_jobs.reading.SLICE_ROWS", 7)
    monkeypatch.setattr("beam_jobs.steps.spilling.SPILL_BYTES", 500)
    monkeypatch.setattr("beam_jobs.segments.BUFFER_BYTES", 500)
    case.workdir = "other"

    assert data_bytes(case.prepare_it()) == once


def test_one_worker_or_several_the_same_bytes(case, monkeypatch):
    """Threads and processes; three files, a bound that bites, rejects in all of them."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    case.silo["input"] = "part*.csv"
    case.prepare |= {"shards": 2, "max_examples_per_client": 2, "max_reject_share": 0.5}
    for part in range(3):
        case.write(f"part{part}.csv", many(40) + ",broken,anna\n" * (part + 1))
    alone = case.prepare_it()
    data = {}
    for mode, beam_args in WORKERS.items():
        case.workdir = mode
        data[mode] = data_bytes(case.prepare_it(*beam_args))

    assert manifest_of(alone)["rejects"] == {"empty text": 6}
    assert manifest_of(alone)["over_bound"] == {"clients": 40, "examples_dropped": 40 * 7}
    assert data["multi_threading"] == data_bytes(alone)
    assert data["multi_processing"] == data_bytes(alone)


@pytest.mark.parametrize(
    ("cores", "memory_gb", "files", "workers"),
    [
        (8, 64, {"a.csv": 127}, 1),  # one file is read by one worker
        (8, 64, {"a.csv": 63, "b.csv": 63}, 1),
        (8, 64, {"a.csv": 64, "b.csv": 64}, 2),
        (8, 64, {"a.csv": 500, "b.csv": 500, "c.csv": 1}, 3),
        (8, 64, {"a.csv.gz": 8, "b.csv.gz": 8}, 2),  # about eight times as much text
        (2, 64, dict.fromkeys("abcdefgh", 1000), 2),
        (8, 5, dict.fromkeys("abcdefgh", 1000), 2),
        (8, 1, dict.fromkeys("abcdefgh", 1000), 1),
    ],
)
def test_as_many_workers_as_pay(monkeypatch, cores, memory_gb, files, workers):
    """One for each 64 MB of text, file, core and 2 GB of memory, whichever are the fewest; never none."""
    monkeypatch.setattr(running.os, "cpu_count", lambda: cores)
    monkeypatch.setattr(running.os, "sysconf", {"SC_PHYS_PAGES": memory_gb * 2**18, "SC_PAGE_SIZE": 4096}.get)

    assert running.workers_for([{"name": name, "bytes": size * 2**20} for name, size in files.items()]) == workers


def test_workers_are_what_the_configuration_says_unless_the_runner_is_told(case, monkeypatch):
    """They are no part of the snapshot's id: its bytes are the same."""
    asked = []

    def ask(_plan, _tokenizer, options):
        given = options.get_all_options()
        asked.append((given["direct_num_workers"], given["direct_running_mode"]))
        raise InputError("stop here")

    case.write("data.csv", GOOD)
    identity = planning.plan_job(case.config(), case.config().silo("bank")).id
    monkeypatch.setattr(running, "run", ask)
    monkeypatch.setattr(running, "workers_for", lambda entries: 4 + len(entries))
    for workers, beam_args in ((0, []), (3, []), (1, []), (3, ["--direct_num_workers=2"])):
        case.prepare["workers"] = workers
        assert planning.plan_job(case.config(), case.config().silo("bank")).id == identity
        with pytest.raises(InputError, match="stop here"):
            case.prepare_it(*beam_args)

    assert asked == [(5, "multi_processing"), (3, "multi_processing"), (1, "in_memory"), (2, "in_memory")]


def test_the_garbage_collector_is_left_as_it_was(case, monkeypatch):
    thresholds, seen = gc.get_threshold(), []
    wired = transforms.collect_seldom
    monkeypatch.setattr(
        transforms,
        "collect_seldom",
        lambda: (wired(), seen.append((gc.get_threshold(), gc.get_freeze_count()))),
    )
    case.write("data.csv", GOOD)
    case.prepare_it()
    assert seen, "the workers were in this process"
    assert all(while_running[0] > thresholds[0] and frozen for while_running, frozen in seen)
    assert (gc.get_threshold(), gc.get_freeze_count()) == (thresholds, 0)


def test_a_bundle_that_is_tried_again_is_counted_once(case):
    """A runner gives the same files to the same step again where a worker was lost."""
    case.silo["input"] = "part*.csv"
    for part in range(2):
        case.write(f"part{part}.csv", many(10 + part))
    configuration = case.config()
    plan = planning.plan_job(configuration, configuration.silo("bank")).plan
    work = case.folder / "tried"
    work.mkdir()

    for attempt in range(2):
        read = transforms._Read(dataclasses.replace(plan, work=str(work)))
        read.setup()
        for file in plan.files[: attempt + 1]:
            assert list(read.process(file))

    assert sum(int(path.read_text()) for path in work.glob(f"*{transforms.RUNNING}")) == 30 + 33


# -- failures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beam_args", [[], WORKERS["multi_threading"], WORKERS["multi_processing"]])
def test_what_only_a_worker_finds_is_said_in_our_words(case, capfd, monkeypatch, beam_args):
    """A gzip whose end is missing, far behind its head; and workers say nothing beside."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    whole = gzip.compress(many(4000).encode() + b"".join(b"help,%x,anna\n" % (n * n * 7919) for n in range(20_000)))
    case.write("data.csv", whole[:-100])

    message = refusal(case, beam_args=beam_args)

    assert message.startswith(
        f"{case.folder / 'data.csv'}: the compressed data is cut short or damaged (EOFError); expected a whole archive. Copy the file again"
    )
    printed = capfd.readouterr()
    assert printed.out == ""
    assert not any(word in printed.err for word in ("Traceback", "INFO", "WARNING", "ERROR"))


def test_a_worker_that_cannot_start_stops_the_job(case, monkeypatch, capfd):
    """Beam alone would wait for it for ever."""
    case.prepare["workers"] = 2
    case.write("data.csv", GOOD)
    monkeypatch.setattr(sys, "executable", shutil.which("false"))

    message = refusal(case, PipelineError)

    assert "a worker process of prepare has ended before its work was done" in message
    assert "exited with return code 1" in message
    assert "set prepare.workers to fewer" in message
    assert capfd.readouterr().err == ""


def test_a_worker_whose_connection_breaks_first_stops_the_job(case, monkeypatch, capfd):
    """Closing it raises then, in the thread that would have woken all others; a killed worker is seen so now and then."""
    from apache_beam.runners.worker import data_plane

    def broken(channel):
        sound(channel)
        raise RuntimeError("the connection broke")

    sound, unhandled = data_plane._GrpcDataChannel.close, []
    monkeypatch.setattr(threading, "excepthook", unhandled.append)
    monkeypatch.setattr(data_plane._GrpcDataChannel, "close", broken)
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    case.prepare["workers"] = 2
    case.write("data.csv", GOOD)

    assert "a worker process of prepare has ended before its work was done" in refusal(case, PipelineError)
    assert capfd.readouterr().err == ""
    assert [thread for thread in threading.enumerate() if thread.name == "watch_worker" and goes_on(thread)] == []
    assert [str(failure.exc_value) for failure in unhandled] == []


def goes_on(thread: threading.Thread) -> bool:
    """Although the job has ended."""
    thread.join(10)
    return thread.is_alive()


def test_a_worker_that_is_killed_stops_the_job(case, monkeypatch, capfd):
    """Killed while it reads; the system does that to a process for want of memory."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    case.prepare |= {"workers": 2, "max_examples_per_client": 1}
    case.silo["input"] = "part*.csv"
    for part in range(2):
        case.write(f"part{part}.csv", many(5000, rows=20) + f"help,x,{part}\n")

    def kill_one() -> None:
        while not ended.wait(0.01):
            if list(case.silo_folder.glob(f".preparing-*/*{transforms.RUNNING}")):
                os.kill(workers_of(os.getpid())[0], signal.SIGKILL)
                return

    ended = threading.Event()
    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        message = refusal(case, PipelineError)
    finally:
        ended.set()
        killer.join()

    assert "a worker process of prepare has ended before its work was done" in message
    assert "-9" in message
    assert "Traceback" not in capfd.readouterr().err
    assert not workers_of(os.getpid())


def workers_of(parent: int) -> list[int]:
    """The worker processes that a process has started."""
    workers = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            started_by = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if started_by == parent and b"beam_jobs.worker" in (folder / "cmdline").read_bytes():
                workers.append(int(folder.name))
    return workers


def test_a_worker_alone_says_what_it_is_for():
    done = subprocess.run([sys.executable, "-m", "beam_jobs.worker"], cwd=ROOT, capture_output=True, check=True)

    assert b"prepare.workers" in done.stdout


def test_a_worker_that_does_not_see_the_secret_makes_none(case, monkeypatch):
    run = running.run

    def without_secret(plan, *others):
        Path(plan.secret).unlink()
        return run(plan, *others)

    case.write("data.csv", GOOD)
    monkeypatch.setattr(running, "run", without_secret)

    assert "clients.key: a Beam worker does not see this file" in refusal(case, ArtifactError)
    assert not (case.silo_folder / "keys" / "clients.key").exists()


@pytest.mark.parametrize("beam_args", [[], WORKERS["multi_threading"]])
def test_an_error_nobody_expected_does_not_quote_the_text(case, monkeypatch, capfd, beam_args):
    """Neither what is said nor what Beam knew of it, which it prints where workers are threads or processes."""
    seen = []

    def broken(batch, *_, **__):
        raise ValueError(f"cannot handle {batch.texts[0]}")

    def look(error):
        seen.append("".join(traceback.format_exception(error)))
        return failure_in(error)

    failure_in = running.failure_in
    monkeypatch.setattr(running, "failure_in", look)
    case.write("data.csv", GOOD)
    monkeypatch.setattr(tokens, "tokenize", broken)

    message = refusal(case, PipelineError, beam_args=beam_args)

    assert "step tokenize: an unexpected ValueError in test_workers.py" in message
    assert seen
    assert "my card" not in "".join([message, *seen, capfd.readouterr().err])
