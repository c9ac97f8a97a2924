"""The job of stage 1: `prepare` turns one silo's raw files into its snapshot; `main` is `tff-pipeline prepare`.

The snapshot is complete or not there. Its id follows from the inputs' checksums, the settings, the tokenizer and the
silo's client key, so a finished one is never made again. Splits, bounds and the order of everything depend on keyed
hashes and line numbers only: any number of workers on any runner writes the same bytes.

The runner is Beam's FnApiRunner unless the options name another one: in this process, or with `prepare.workers` processes
where the silo is large enough (`_workers`); a silo of 200,000 rows is done before a second process has imported TensorFlow.
"DirectRunner" means the same here: Beam's own class of that name may hand over to Prism, which downloads a program. Other
runners work if their workers see the workdir.
"""

import argparse
import fcntl
import gc
import hashlib
import io
import json
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from beam_jobs import formats, inputs, steps, transforms, worker
from beam_jobs.spill import read_segments, writing
from tff_pipeline import artifacts, config
from tff_pipeline.config import SPLITS, Config, SiloSection
from tff_pipeline.data import records
from tff_pipeline.data.tokenization import Tokenizer
from tff_pipeline.errors import ConfigError, InputError, PipelineError
from tff_pipeline.progress import Progress, silence_libraries

FORMAT = 1
RULES = 2  # by which rows are read and clients told apart; others make another snapshot of the same files
REJECTED = "rejected.jsonl"
RANGE_BYTES = 16 * 2**20  # raw text that one worker groups in memory at a time, roughly;
MAX_RANGES = 256  # more where a silo has more text than so many: every range is a segment of every segment file
WORKER_BYTES = 64 * 2**20  # text that takes a worker longer to read than another one takes to start
WORKER_MEMORY = 2**30  # of a worker, rounded up: TensorFlow takes most of it
PROGRESS_EVERY_S = 10.0
_PROCESSES = "multi_processing"
_IN_PROCESS = (None, "DirectRunner", "direct", "FnApiRunner")
_COMPRESSION = 8  # how much larger than the file its text may be


def prepare(configuration: Config, silo: str, *, beam_args: Sequence[str] = (), progress: Progress) -> Path:
    """Prepares one silo and makes the result its current snapshot.

    Args:
      configuration: the whole configuration.
      silo: the silo's name.
      beam_args: options of the Beam runner, as on a command line; without any, `prepare.workers` decides.
      progress: where events go: `prepare_warning` for what is odd about a file, `prepare_running` now and then, `prepare` once
        at the end.

    Returns:
      The complete snapshot folder. It was there before if inputs, settings and keys are those of an earlier run.

    Raises:
      ConfigError, InputError, ArtifactError: nothing half-made is left behind.
    """
    started = time.monotonic()
    section = configuration.silo(silo)
    folder = artifacts.Workdir(configuration.workdir).silo(silo)
    with _quiet_beam(), _own_collector(), writing(folder), _alone(folder):
        options = _beam_options(beam_args)
        job = _plan_job(configuration, section)
        if not beam_args:
            options = _beam_options(_worker_args(configuration.prepare.workers or _workers(job.manifest["inputs"])))
        for warned in job.manifest["warnings"]:
            message = f"{silo}: {warned['file']} {warned['warning']}"
            progress.event("prepare_warning", message, silo=silo, **warned)
        made = not artifacts.is_complete(job.final)
        if made:
            with _work_folder(folder) as work, _rows_so_far(work, silo, progress):
                plan = replace(job.plan, work=str(work))
                result = _run(plan, job.tokenizer, options)
                inputs.check_unchanged(plan.files, section)
                _publish(job, plan, result)
        manifest = artifacts.read_manifest(job.final, check_files=not made)
        job.rejected_aside.unlink(missing_ok=True)
        artifacts.write_json(artifacts.Workdir(configuration.workdir).current_snapshot(silo), {"id": job.id})
    _report(progress, silo, manifest, made=made, seconds=time.monotonic() - started)
    return job.final


def _report(progress: Progress, silo: str, manifest: Mapping[str, Any], *, made: bool, seconds: float) -> None:
    counts = _counts(manifest)
    message = (
        ""
        if made
        else f"{silo}: snapshot {manifest['id']} is there already, from the same inputs and settings; nothing to do"
    )
    progress.event(
        "prepare", message, silo=silo, snapshot=manifest["id"], reused=not made, **counts, seconds=round(seconds, 2)
    )


def _counts(manifest: Mapping[str, Any]) -> dict[str, int]:
    splits = manifest["splits"].values()
    return {
        "rows": manifest["rows"],
        "accepted": manifest["accepted"],
        "rejected": sum(manifest["rejects"].values()),
        "clients": sum(split["clients"] for split in splits),
        "examples": sum(split["examples"] for split in splits),
    }


# -- before the pipeline -----------------------------------------------------------------------------------------------


class _Job(NamedTuple):
    """What is known of a snapshot before it is made."""

    id: str
    final: Path
    rejected_aside: Path
    manifest: dict[str, Any]
    tokenizer: Tokenizer
    plan: transforms.Plan


def _plan_job(configuration: Config, section: SiloSection) -> _Job:
    """Looks at inputs, labels, tokenizer and keys, and says which snapshot they make."""
    workdir, prepare_section = artifacts.Workdir(configuration.workdir), configuration.prepare
    tokenizer = Tokenizer.from_config(configuration.model, prepare_section.max_length)
    labels = config.known_labels(configuration)
    given = frozenset(labels) if labels is not None else None
    silo_inputs = inputs.find(
        section,
        Path(configuration.path).parent,
        lambda path: formats.Source(section, path, prepare_section.max_row_bytes, given),
    )
    secret = _client_secret(configuration, section.name, workdir)
    settings = _settings(configuration, section, labels)
    identity = {
        "format": FORMAT,
        "rules": RULES,
        "inputs": [[one["name"], one["split"], one["sha256"]] for one in silo_inputs.entries],
        "settings": settings,
        "tokenizer": tokenizer.fingerprint,
        "client_key": hashlib.sha256(b"fingerprint" + secret).hexdigest(),
    }
    name = artifacts.fingerprint(identity)
    return _Job(
        id=name,
        final=workdir.snapshots(section.name) / name,
        rejected_aside=workdir.silo(section.name) / f"rejected-{name}.jsonl",
        manifest={
            "kind": "snapshot",
            "format": FORMAT,
            "silo": section.name,
            "id": name,
            "task": configuration.task.kind,
            "inputs": silo_inputs.entries,
            "warnings": [warned._asdict() for warned in silo_inputs.warnings],
            "settings": settings,
            "tokenizer": {
                "fingerprint": tokenizer.fingerprint,
                "max_length": tokenizer.max_length,
                "lower_case": tokenizer.lower_case,
                "vocabulary_size": len(tokenizer.vocabulary),
            },
        },
        tokenizer=tokenizer,
        plan=transforms.Plan(
            silo=section,
            prepare=prepare_section,
            known_labels=labels,
            files=silo_inputs.files,
            split_by_files=bool(silo_inputs.files[0].split),
            secret=str(_secret_path(workdir, section.name)),
            ranges_per_shard=_ranges_per_shard(silo_inputs.entries, prepare_section.shards),
        ),
    )


def _settings(configuration: Config, section: SiloSection, labels: tuple[str, ...] | None) -> dict[str, Any]:
    """Everything in the configuration that determines the snapshot's bytes."""
    columns = {
        key: getattr(section, key) for key in ("format", "text", "label", "client", "group", "columns", "quoting")
    }
    preparation = msgspec.to_builtins(configuration.prepare)
    del preparation["max_reject_share"]  # decides whether there is a snapshot, not what is in it,
    del preparation["max_labels"]  # and so does this;
    del preparation["workers"]  # this, how long it takes
    if isinstance(section.input, dict):
        del preparation["splits"]  # the files say
    return {
        "task": configuration.task.kind,
        "labels": labels if labels is not None else "auto",
        **msgspec.to_builtins(columns),
        **preparation,
    }


def _secret_path(workdir: artifacts.Workdir, silo: str) -> Path:
    return workdir.silo_keys(silo) / "clients.key"


def _client_secret(configuration: Config, silo: str, workdir: artifacts.Workdir) -> bytes:
    seed = configuration.pipeline.seed
    derived = None if seed is None else lambda: hashlib.sha256(f"{seed}/{silo}/clients".encode()).digest()
    return artifacts.secret(_secret_path(workdir, silo), derived=derived)


def _ranges_per_shard(inputs: Sequence[Mapping[str, Any]], shards: int) -> int:
    """Into how many ranges of clients a shard is cut, so that each fits in memory. Does not change the output."""
    ranges = min(-(-_text_bytes(inputs) // RANGE_BYTES), MAX_RANGES)
    return max(1, -(-ranges // shards))


def _text_bytes(inputs: Sequence[Mapping[str, Any]]) -> int:
    """About how much text there is, decompressed."""
    return sum(
        one["bytes"] * (1 if one["name"].endswith((".csv", ".tsv", ".jsonl")) else _COMPRESSION) for one in inputs
    )


def _workers(inputs: Sequence[Mapping[str, Any]]) -> int:
    """How many processes pay: none reads less than WORKER_BYTES of text, nor less than a file.

    Half of the machine's memory at most; the whole of it counts and not what is free, so that a schedule's runs are alike.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    most = os.cpu_count() or 1, len(inputs), _text_bytes(inputs) // WORKER_BYTES, memory // (2 * WORKER_MEMORY)
    return max(1, min(most))


def _worker_args(workers: int) -> list[str]:
    """Options of the runner for so many processes; one is this one."""
    return [f"--direct_num_workers={workers}", f"--direct_running_mode={_PROCESSES}"] if workers > 1 else []


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two preparations of one silo would remove each other's unfinished files; the second one is refused."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".prepare.lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PipelineError(
                f"{folder}: another prepare of this silo is running. Wait for it to end, or stop it, and start again."
            ) from None
        yield


@contextmanager
def _work_folder(folder: Path) -> Iterator[Path]:
    """A folder for unfinished files, beside the snapshots; what a killed attempt left is removed first."""
    for leftover in folder.glob(".preparing-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    work = Path(tempfile.mkdtemp(dir=folder, prefix=".preparing-"))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


# -- the pipeline ------------------------------------------------------------------------------------------------------


def _beam_options(beam_args: Sequence[str]) -> Any:
    """The options, checked here and now: Beam by itself reads late, exits where it cannot, and drops what it does not know."""
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


def _run(plan: transforms.Plan, tokenizer: Tokenizer, options: Any) -> transforms.Result:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import StandardOptions

    named = options.view_as(StandardOptions).runner
    ended: list[str] = []
    try:
        runner = _own_runner(options) if named in _IN_PROCESS else named
        with worker.ended_early() as ended, beam.Pipeline(runner=runner, options=options) as pipeline:
            read = pipeline | "ReadAndTokenize" >> transforms.ReadAndTokenize(plan, tokenizer)
            parts = pipeline | "WriteParts" >> transforms.WriteParts(plan, read)
            _ = pipeline | "WriteResult" >> transforms.WriteResult(plan, read, parts)
        return msgspec.json.decode((Path(plan.work) / transforms.RESULT).read_bytes(), type=transforms.Result)
    except Exception as error:
        failure = transforms.failure_in(error)
        if failure is not None:
            raise failure from None
        if ended:
            raise PipelineError(
                f"a worker process of prepare has ended before its work was done ({ended[0]}). A return code of -9 is mostly the system's, "
                "for want of memory: set prepare.workers to fewer, or 1, and run prepare again. With another code the worker could "
                f"not start: `{sys.executable} -m beam_jobs.worker` says why."
            ) from None
        raise PipelineError(
            f"the Beam runner {named or 'FnApiRunner'} failed ({type(error).__name__}: {_first_line(error)}). "
            f"Check the options after `--`; the workers of any runner must see {plan.work}."
        ) from error


def _own_runner(options: Any) -> Any:
    """Beam's runner on this machine; if there are to be processes, with ours for workers."""
    from apache_beam.options.pipeline_options import DirectOptions
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    direct = options.view_as(DirectOptions)
    if direct.direct_running_mode != _PROCESSES:
        return FnApiRunner()
    direct.direct_running_mode = "in_memory"  # the runner's word for: in the environment it is given
    return worker.runner()


def _first_line(error: Exception) -> str:
    """The beginning of what a runner says; errors from inside our steps, which know the silo's text, do not come here."""
    return (str(error).splitlines() or [""])[0][:200]


@contextmanager
def _own_collector() -> Iterator[None]:
    """Sets the garbage collector back to what it was: workers in this process change it (`transforms.collect_seldom`)."""
    thresholds = gc.get_threshold()
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


@contextmanager
def _quiet_beam() -> Iterator[None]:
    """Keeps Beam's tracebacks off the terminal: `prepare` says in a sentence what they say."""
    beam_log = logging.getLogger("apache_beam")
    level = beam_log.level
    beam_log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        beam_log.setLevel(level)


@contextmanager
def _rows_so_far(work: Path, silo: str, progress: Progress) -> Iterator[None]:
    """Reports every few seconds how many rows the workers have read."""
    ended = threading.Event()

    def report() -> None:
        while not ended.wait(PROGRESS_EVERY_S):
            with suppress(OSError, ValueError):  # a worker may be writing one of them this moment
                rows = sum(int(file.read_text()) for file in work.glob(f"*{transforms.RUNNING}"))
                progress.event("prepare_running", silo=silo, rows=rows)

    thread = threading.Thread(target=report, name="prepare-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


# -- after the pipeline ------------------------------------------------------------------------------------------------


def _publish(job: _Job, plan: transforms.Plan, result: transforms.Result) -> None:
    """Checks what was rejected, then puts the snapshot together and renames it into place."""
    rows = sum(result.read.rows.values())
    rejects = Counter(result.read.reasons)
    if several := sum(part.rejects for part in result.parts):
        rejects[steps.SEVERAL_SPLITS] = several
    if not rows:
        raise InputError(
            f"{plan.files[0].path}: holds no rows, only a header or blank lines ({len(plan.files)} files in all); "
            f"expected rows of silo {plan.silo.name!r}. Export it again."
        )
    if not plan.acceptable(rejects.total(), rows):
        with job.rejected_aside.open("wb") as file:
            _write_rejected(file, result)
        raise _too_many_rejects(plan, rejects, rows, job.rejected_aside)
    labels, groups = list(plan.known_labels or result.read.labels), result.read.groups
    manifest = {
        **job.manifest,
        "labels": labels,
        "groups": groups,
        "rows": rows,
        "accepted": rows - rejects.total(),
        "rejects": dict(sorted(rejects.items())),
        "lines": result.read.lines,
        "over_bound": {
            "clients": sum(part.over_bound_clients for part in result.parts),
            "examples_dropped": sum(part.examples_dropped for part in result.parts),
        },
    }
    with artifacts.staged(job.final, lambda: manifest) as aside:
        with (aside / REJECTED).open("wb") as file:
            _write_rejected(file, result)
        manifest["splits"] = {split: _collect(split, result.parts, aside, plan, labels, groups) for split in SPLITS}
        _require_sums(manifest, plan)


def _require_sums(manifest: Mapping[str, Any], plan: transforms.Plan) -> None:
    """PipelineError where lines or rows are lost: each is counted when it is read, and again for what became of it."""
    lines = formats.LineCounts(**manifest["lines"])
    kept = sum(split["examples"] for split in manifest["splits"].values())
    accounted = kept + manifest["over_bound"]["examples_dropped"] + sum(manifest["rejects"].values())
    if lines.missing or accounted != manifest["rows"]:
        raise PipelineError(
            f"silo {plan.silo.name!r}: {manifest['rows']:,} rows were read and {accounted:,} are accounted for, and of {lines.read:,} lines {lines.read - lines.missing:,}; "
            "expected all. No snapshot is made of them. This is a defect of prepare: please report it with this line."
        )


def _collect(
    split: str,
    parts: Sequence[steps.PartSummary],
    aside: Path,
    plan: transforms.Plan,
    labels: Sequence[str],
    groups: Sequence[str],
) -> dict[str, Any]:
    """Puts one split's parts together as shards in the snapshot, writes its index, and says what it holds."""
    written = {part.part: part.splits[split] for part in parts if split in part.splits}
    count = plan.prepare.shards
    names = [records.shard_name(split, shard, count) for shard in range(count)] if written else []
    entries = [np.zeros((0, 4), np.int64)]
    for shard, name in enumerate(names):
        of_shard = range(shard * plan.ranges_per_shard, (shard + 1) * plan.ranges_per_shard)
        with writing(aside / name):
            offsets = _append([Path(written[part].data) for part in of_shard if part in written], aside / name)
        for part, offset in zip((part for part in of_shard if part in written), offsets, strict=True):
            entries.append(np.load(written[part].index) + np.array([0, offset, 0, 0]))
    index = np.concatenate(entries)
    np.save(aside / records.index_name(split), index)

    def total(field: str, size: int) -> list[int]:
        return np.sum(
            [np.zeros(size, np.int64), *(np.array(getattr(part, field), np.int64) for part in written.values())], axis=0
        ).tolist()

    lengths = max((len(part.token_lengths) for part in written.values()), default=1)
    return {
        "clients": len(index),
        "examples": int(index[:, records.EXAMPLES].sum()),
        "shards": names,
        "labels": dict(zip(labels, total("labels", len(labels)), strict=True)),
        "groups": dict(zip(groups, total("groups", len(groups)), strict=True)),
        "examples_per_client": steps.percentiles(np.bincount(index[:, records.EXAMPLES])),
        "token_length": steps.percentiles(total("token_lengths", lengths)),
    }


def _append(files: Sequence[Path], shard: Path) -> list[int]:
    """Makes a shard of files, which are gone afterwards; returns where in it each begins. It may be empty: no client's hash
    fell into it."""
    offsets, size = [], 0
    for file in files:
        offsets.append(size)
        size += file.stat().st_size
        if not shard.exists():
            os.rename(file, shard)
            continue
        with shard.open("ab") as whole, file.open("rb") as part:
            shutil.copyfileobj(part, whole, 1 << 20)
        file.unlink()
    shard.touch()
    return offsets


def _write_rejected(file: Any, result: transforms.Result) -> None:
    """The rejected rows: those found on reading by file and line, then those of clients found in several splits."""
    for line in read_segments(result.read.rejected):
        file.write(line)
    for part in result.parts:
        with open(part.rejected, "rb") as lines:
            shutil.copyfileobj(lines, file)


def _too_many_rejects(plan: transforms.Plan, rejects: Counter[str], rows: int, rejected: Path) -> InputError:
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in rejects.most_common())
    share, limit = rejects.total() / rows, plan.prepare.max_reject_share
    allowed = (
        f"prepare.max_reject_share allows {limit:.1%}" if rejects.total() < rows else "nothing is left to train on"
    )
    return InputError(
        f"silo {plan.silo.name!r}: {rejects.total():,} of {rows:,} rows ({share:.1%}) were rejected; {allowed}. Reasons: {reasons}. "
        f"{rejected} lists them by file and line. Correct the rows or the silo's configuration; raise the limit only if their loss is meant."
    )


# -- the command -------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """`tff-pipeline prepare`. Prints the snapshots' folders, or with --json a list of summaries; raises PipelineError."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    own, beam_args = (
        (arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :])
        if "--" in arguments
        else (arguments, [])
    )
    parser = argparse.ArgumentParser(
        prog="tff-pipeline prepare",
        description="Turn silos' raw text into snapshots.",
        epilog="Options of the Beam runner follow after --.",
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="the TOML configuration")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one key of the configuration (repeatable)",
    )
    parser.add_argument(
        "--silo", action="append", default=[], metavar="NAME", help="prepare this silo only (repeatable); default: all"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list of summaries on standard output")
    given = parser.parse_args(own)

    silence_libraries()
    configuration = config.load(given.config, given.set)
    names = [configuration.silo(name).name for name in given.silo] or [silo.name for silo in configuration.silos]
    progress = Progress()
    summaries = []
    for name in names:
        snapshot = prepare(configuration, name, beam_args=beam_args, progress=progress)
        manifest = artifacts.read_manifest(snapshot)
        summaries.append(
            {
                "silo": name,
                "id": manifest["id"],
                "path": str(snapshot),
                **_counts(manifest),
                "rejects": manifest["rejects"],
                "lines": manifest["lines"],
                "warnings": manifest["warnings"],
                "over_bound": manifest["over_bound"],
            }
        )
        if not given.json:
            print(snapshot)
    if given.json:
        print(json.dumps(summaries, indent=2, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PipelineError as failure:
        print(f"tff-pipeline prepare: {failure}", file=sys.stderr)
        sys.exit(failure.exit_code)
