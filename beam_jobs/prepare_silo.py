"""Stage 1: `prepare` turns one silo's raw files into its snapshot; `main` is `tff-pipeline prepare`.

Splits, bounds and the order of everything depend on keyed hashes and line numbers only, so any number of workers on any runner
writes the same bytes. A snapshot that exists already is not made again.
"""

import argparse
import fcntl
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from beam_jobs import inputs, planning, publishing, running
from beam_jobs.segments import writing
from tff_pipeline import artifacts, config
from tff_pipeline.config import Config
from tff_pipeline.errors import ConfigError, PipelineError
from tff_pipeline.progress import Progress, silence_libraries


def prepare(configuration: Config, silo: str, *, beam_args: Sequence[str] = (), progress: Progress) -> Path:
    """Prepares one silo and makes the result its current snapshot.

    Args:
      configuration: the whole configuration.
      silo: the silo's name.
      beam_args: options of the Beam runner, as on a command line; without any, `prepare.workers` decides.
      progress: where events go: `prepare_warning` for each oddity of a file, `prepare_running` now and then, `prepare` once at
        the end.

    Returns:
      The complete snapshot folder. It existed before if inputs, settings and keys are those of an earlier run.

    Raises:
      ConfigError, InputError, ArtifactError: nothing half-made is left behind.
    """
    started = time.monotonic()
    section = configuration.silo(silo)
    folder = artifacts.Workdir(configuration.workdir).silo(silo)
    with running.quiet_beam(), running.own_collector(), writing(folder), _alone(folder):
        options = running.beam_options(beam_args)
        job = planning.plan_job(configuration, section)
        if not beam_args:
            workers = configuration.prepare.workers or running.workers_for(job.manifest["inputs"])
            options = running.beam_options(running.worker_args(workers))
        for warned in job.manifest["warnings"]:
            message = f"{silo}: {warned['file']} {warned['warning']}"
            progress.event("prepare_warning", message, silo=silo, **warned)
        made = not artifacts.is_complete(job.final)
        if made:
            with _work_folder(folder) as work, running.progress_of_rows(work, silo, progress):
                plan = replace(job.plan, work=str(work))
                result = running.run(plan, job.tokenizer, options)
                inputs.require_unchanged(plan.files, section)
                publishing.publish(job, plan, result)
        manifest = artifacts.read_manifest(job.final, check_files=not made)
        job.rejected_aside.unlink(missing_ok=True)
        artifacts.write_json(artifacts.Workdir(configuration.workdir).current_snapshot(silo), {"id": job.id})
    _report(progress, silo, manifest, made=made, seconds=time.monotonic() - started)
    return job.final


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Refuses a second preparation of one silo: the two would remove each other's unfinished files."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".prepare.lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PipelineError(
                f"{folder}: another prepare of this silo is running; expected one at a time. Wait for it to end, or stop it, and start again."
            ) from None
        yield


@contextmanager
def _work_folder(folder: Path) -> Iterator[Path]:
    """A folder for unfinished files, beside the snapshots. What a killed attempt left is removed first."""
    for leftover in folder.glob(".preparing-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    work = Path(tempfile.mkdtemp(dir=folder, prefix=".preparing-"))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _report(progress: Progress, silo: str, manifest: Mapping[str, Any], *, made: bool, seconds: float) -> None:
    counts = _counts(manifest)
    message = (
        ""
        if made
        else f"{silo}: snapshot {manifest['id']} exists already, from the same inputs and settings; nothing to do"
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


# -- the command -------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """`tff-pipeline prepare`. Prints the snapshots' folders, or with --json a list of summaries; raises PipelineError."""
    own, beam_args = _divided(list(sys.argv[1:] if argv is None else argv))
    arguments = _parser().parse_args(own)

    silence_libraries()
    configuration = config.load(arguments.config, arguments.set)
    # Of the silos of a consortium only one's text is here, and at the coordinator nobody's.
    here = [silo.name for silo in configuration.silos if silo.input]
    names = [configuration.silo(name).name for name in arguments.silo] or here
    if absent := [name for name in names if name not in here] or ([] if names else [arguments.config]):
        raise ConfigError(
            f"{arguments.config}: says nothing of the text of {absent[0]}, which is elsewhere; expected a silo whose data are here. Prepare it where they are."
        )
    progress = Progress()
    summaries = []
    for name in names:
        snapshot = prepare(configuration, name, beam_args=beam_args, progress=progress)
        summaries.append(_summary(name, snapshot))
        if not arguments.json:
            print(snapshot)
    if arguments.json:
        print(json.dumps(summaries, indent=2, ensure_ascii=False))
    return 0


def _divided(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The command's own arguments, and those of the Beam runner after "--"."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:at], arguments[at + 1 :]


def _parser() -> argparse.ArgumentParser:
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
    return parser


def _summary(silo: str, snapshot: Path) -> dict[str, Any]:
    manifest = artifacts.read_manifest(snapshot)
    return {
        "silo": silo,
        "id": manifest["id"],
        "path": str(snapshot),
        **_counts(manifest),
        **{key: manifest[key] for key in ("rejects", "lines", "warnings", "over_bound")},
    }


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PipelineError as failure:
        print(f"tff-pipeline prepare: {failure}", file=sys.stderr)
        sys.exit(failure.exit_code)
