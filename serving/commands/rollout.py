"""`tff-pipeline canary`, `promote` and `rollback`: they change which version of a model serves."""

import argparse
import json
import shlex
from collections.abc import Callable, Sequence

from serving.commands.arguments import add_rollout_arguments, rollout_of
from serving.rollout import Rollout, Served
from tff_pipeline.progress import Progress

_EPILOG = """\
The command states how the labels shall be, and takes the steps that are missing: load, label, drop. So the same command
can be run again after any interruption, and it continues from the state that another command that was stopped has left. A
step that a server does not follow in --wait-s is taken back. One command at a time changes a base path.
"""


def canary_main(argv: Sequence[str]) -> int:
    """`tff-pipeline canary`."""
    return _change(
        argv,
        "canary",
        "Loads a published version beside the stable one, and labels it `canary`: one that was published without "
        "--canary, was rolled back or taken back, or whose servers did not follow in time.",
        "the version, which must be published",
        lambda rollout, version: rollout.canary(version or 0),
        required=True,
    )


def promote_main(argv: Sequence[str]) -> int:
    """`tff-pipeline promote`."""
    return _change(
        argv,
        "promote",
        "Makes a version the stable one; the former stable version stays loaded, as `previous`.",
        "the version, any that is published (default: the canary)",
        lambda rollout, version: rollout.promote(version),
    )


def rollback_main(argv: Sequence[str]) -> int:
    """`tff-pipeline rollback`."""
    return _change(
        argv,
        "rollback",
        "Drops the canary; or where there is none, returns to the previous version.",
        "take back this version: drop it if it is the canary, return to `previous` if it is the stable one, and else "
        "change nothing. With it the command can be run twice, as a scheduler may (default: the canary or stable version)",
        lambda rollout, version: rollout.rollback(version),
    )


def _change(
    argv: Sequence[str],
    name: str,
    description: str,
    version_help: str,
    change: Callable[[Rollout, int | None], Served],
    *,
    required: bool = False,
) -> int:
    parser = argparse.ArgumentParser(prog=f"tff-pipeline {name}", description=description, epilog=_EPILOG)
    parser.add_argument("--name", required=True, help="the model's name in models.config")
    parser.add_argument("--version", metavar="N", type=int, required=required, help=version_help)
    add_rollout_arguments(parser, required=True)
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    command = f"tff-pipeline {name} {shlex.join(argv)}"
    served = change(rollout_of(arguments, arguments.name, command, Progress()), arguments.version)
    print(json.dumps({"versions": served.versions, "labels": dict(served.labels)}) if arguments.json else served)
    return 0
