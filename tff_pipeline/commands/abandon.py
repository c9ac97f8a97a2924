"""`tff-pipeline abandon`: lists unfinished runs, or removes the keys of some."""

import argparse
import json
from collections.abc import Sequence

from tff_pipeline import config as configuration
from tff_pipeline.artifacts import Workdir
from tff_pipeline.training.secrets import abandon, unfinished


def main(argv: Sequence[str] | None = None) -> int:
    """`tff-pipeline abandon`."""
    parser = argparse.ArgumentParser(
        prog="tff-pipeline abandon",
        description="Remove the keys of runs that will not be finished, or that have to draw anew. Without --run or --all it lists the runs "
        "and removes nothing. The rounds that a run was charged stay charged; training it again goes on from its newest state under "
        "new keys, and charges the rounds that follow as new ones.",
    )
    configuration.add_arguments(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--run", action="append", default=[], metavar="ID", help="an unfinished run; may be given again")
    which.add_argument("--all", action="store_true", help="every unfinished run of the workdir")
    arguments = parser.parse_args(argv)
    config = configuration.load(arguments.config, arguments.set)
    known = unfinished(Workdir(config.workdir))
    chosen = known if arguments.all else arguments.run
    removed = abandon(config, chosen)
    if arguments.json:
        print(json.dumps({"unfinished": known, "removed": removed}))
    elif not chosen:
        print("\n".join(known) or f"no unfinished run in {config.workdir} has keys")
    for run, paths in removed.items() if not arguments.json else ():
        print(f"run {run}: removed {len(paths)} file(s) and folder(s); what it was charged stays charged")
    return 0
