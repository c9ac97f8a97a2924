"""Finds the finished run that a command works on, from `--config` or `--run`."""

import argparse
from pathlib import Path

from tff_pipeline import config as configuration
from tff_pipeline.artifacts import Workdir, read_json
from tff_pipeline.config import Config
from tff_pipeline.errors import ArtifactError


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --config, --run and --set, for commands that work on a finished run."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--config", metavar="FILE", help="take the newest run of this configuration's pipeline")
    which.add_argument("--run", metavar="DIR", type=Path, help="take this run's folder")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="overrides", help="override a key of --config"
    )


def chosen_run(arguments: argparse.Namespace) -> tuple[Path, Config]:
    """The run that the arguments of `add_run_arguments` name, and the configuration that goes with it.

    Raises:
      ArtifactError: if there is none.
    """
    from tff_pipeline.training.store import config_of

    if arguments.run is not None:
        return arguments.run, config_of(arguments.run)
    config = configuration.load(arguments.config, arguments.overrides)
    return newest_run(Workdir(config.workdir), config.pipeline.name), config


def newest_run(workdir: Workdir, pipeline: str) -> Path:
    """The newest run of a pipeline; several pipelines may share a work directory.

    Raises:
      ArtifactError: if there is none.
    """
    runs = workdir.runs
    last = read_json(runs / "run.json").get("id") if (runs / "run.json").exists() else None
    candidates = []
    for path in runs.glob("*/run.json"):
        facts = read_json(path)
        if facts["config"]["pipeline"]["name"] == pipeline:
            candidates.append((path.parent.name == last, facts["created"], path.parent.name))
    if not candidates:
        raise ArtifactError(
            f"{runs}: holds no run of the pipeline {pipeline!r}. Run `tff-pipeline train` with the same configuration, or name a run's folder with --run."
        )
    return runs / max(candidates)[-1]
