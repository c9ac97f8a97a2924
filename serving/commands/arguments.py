"""The arguments that all commands of a rollout share."""

import argparse
from pathlib import Path

from serving import lock
from serving.client import checked_address
from serving.rollout import Rollout
from tff_pipeline.progress import Progress


def add_rollout_arguments(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """--models-config, --server, --wait-s and --lock-wait-s."""
    parser.add_argument(
        "--models-config", metavar="FILE", type=Path, required=required, help="the file that the servers follow"
    )
    parser.add_argument(
        "--server",
        metavar="URL",
        action="append",
        default=[],
        type=_address,
        help="REST address of a server that follows it; each step waits for it. May be given several times",
    )
    parser.add_argument(
        "--wait-s", metavar="N", type=float, default=300.0, help="how long each step waits for servers (default: 300)"
    )
    parser.add_argument(
        "--lock-wait-s",
        metavar="N",
        type=float,
        default=lock.WAIT_S,
        help="how long to wait for another command that changes this base path; one that was killed is not waited for, "
        f"or at most {lock.LEASE_S:g} s if it ran on another machine (default: {lock.WAIT_S:g})",
    )


def _address(text: str) -> str:
    try:
        return checked_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def rollout_of(arguments: argparse.Namespace, name: str, command: str, progress: Progress) -> Rollout:
    """The rollout that these arguments describe."""
    return Rollout(
        arguments.models_config,
        name,
        servers=arguments.server,
        timeout_s=arguments.wait_s,
        lock_wait_s=arguments.lock_wait_s,
        command=command,
        progress=progress,
    )
