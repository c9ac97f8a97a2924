"""`tff-pipeline list`: a line for each version: number, labels, accuracy, epsilon, run, when it was made."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from serving import base_path
from serving.rollout import Rollout, listing
from tff_pipeline.progress import Progress


def main(argv: Sequence[str]) -> int:
    """`tff-pipeline list`."""
    arguments = _parsed(argv)
    if arguments.name:
        rollout = Rollout(arguments.models_config, arguments.name, progress=Progress())
        labels = _labels(rollout)
        base = base_path.parse(arguments.to) if arguments.to else rollout.base_path()
    else:
        labels, base = {}, base_path.parse(arguments.to)
    rows = listing.rows(base, labels)
    if arguments.json:
        print(json.dumps(rows))
    else:
        for row in rows:
            print(listing.line(row))
    return 0


def _labels(rollout: Rollout) -> Mapping[str, int]:
    """The labels of a model's versions; reports a command that has not taken its last step."""
    served = rollout.served()
    if served.unfinished is not None:
        Progress().event(
            "rollout",
            f"a {served.unfinished.command} is at work, or was stopped before its last step; in that case run it again",
        )
    return served.labels


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tff-pipeline list", description="The versions of a model, and which of them are served."
    )
    parser.add_argument(
        "--to",
        metavar="DIR",
        help="the base path of the versions, a folder or gs://, s3:// and the like (default: the base path in "
        "--models-config)",
    )
    parser.add_argument("--name", help="the model's name in --models-config")
    parser.add_argument("--models-config", metavar="FILE", type=Path, help="the file that the servers follow")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    if bool(arguments.name) != bool(arguments.models_config) or not (arguments.to or arguments.name):
        parser.error("give --to, or --models-config and --name")
    return arguments
