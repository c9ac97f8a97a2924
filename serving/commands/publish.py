"""`tff-pipeline publish`: puts an exported version under the base path of a model server, completely or not at all."""

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from serving import base_path
from serving.base_path.version import checked_manifest
from serving.commands.arguments import add_rollout_arguments, rollout_of
from serving.publishing.publication import Following, Publication
from tff_pipeline import config as configuration
from tff_pipeline.artifacts import model_base, newest_version
from tff_pipeline.progress import Progress

_EPILOG = """\
A version is published completely or not at all, also if this command is killed; the same command again continues from the
state that it finds. A version that is published already, the same in every file, is not copied again; another one under its
number is refused. One command at a time changes a base path: a second one waits for --lock-wait-s, and then names the first.
"""


def main(argv: Sequence[str]) -> int:
    """`tff-pipeline publish`: prints the published folder."""
    arguments = _parsed(argv)
    progress, command = Progress(), f"tff-pipeline publish {shlex.join(argv)}"
    config = configuration.load(arguments.config, arguments.overrides) if arguments.config else None
    version = newest_version(model_base(config) if config is not None else arguments.model)
    publication = Publication(
        version,
        gates=config.gates if config is not None else None,
        command=command,
        lock_wait_s=arguments.lock_wait_s,
        progress=progress,
    )
    if base_path.is_address(arguments.to):
        path = publication.to_object_store(arguments.to)
    else:
        name, following = checked_manifest(version).get("name", ""), None
        if arguments.models_config:
            rollout = rollout_of(arguments, name, command, progress)
            following = Following(arguments.models_config, rollout, arguments.canary)
        path = str(publication.to_folder(Path(arguments.to), following=following, keep=arguments.keep))
    number = int(path.rpartition("/")[2])
    progress.event("publish", f"version {number} is in {path}", version=number, path=path)
    print(json.dumps({"path": path, "version": number}) if arguments.json else path)
    return 0


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tff-pipeline publish",
        description="Copies an exported version under the base path of a model server, completely or not at all.",
        epilog=_EPILOG,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", metavar="FILE", help="publish the newest version of this configuration's model")
    source.add_argument("--model", metavar="DIR", type=Path, help="publish this version, or the newest in this folder")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="overrides", help="override a key of --config"
    )
    parser.add_argument(
        "--to",
        metavar="DIR",
        required=True,
        help="the base path that the model server watches; gs://, s3:// and the like get saved_model.pb last",
    )
    parser.add_argument(
        "--canary",
        action="store_true",
        help="load it beside the stable version and label it `canary`, in --models-config",
    )
    add_rollout_arguments(parser, required=False)
    parser.add_argument(
        "--keep",
        metavar="N",
        type=int,
        help="afterwards remove all but the newest N complete versions from the base path; those stay that any "
        "models.config which was used with this base path names, and those that a --server has loaded",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    _check(parser, arguments)
    return arguments


def _check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Ends the command where its arguments contradict each other."""
    if arguments.canary and not (arguments.models_config and arguments.server):
        parser.error("--canary needs --models-config, and --server to wait for")
    if arguments.keep is not None and arguments.keep < 1:
        parser.error(f"--keep is {arguments.keep}; expected at least 1")
    if base_path.is_address(arguments.to) and (arguments.models_config or arguments.keep is not None):
        parser.error("--canary, --models-config and --keep need a folder, and --to is an address")
