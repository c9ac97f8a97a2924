"""`tff-pipeline train`: snapshots to a trained run."""

import argparse
import json
from collections.abc import Sequence

from tff_pipeline import config as configuration
from tff_pipeline.artifacts import read_json
from tff_pipeline.progress import Progress
from tff_pipeline.training.run import train


def main(argv: Sequence[str] | None = None) -> int:
    """`tff-pipeline train`."""
    parser = argparse.ArgumentParser(
        prog="tff-pipeline train",
        description="Train on prepared snapshots, or go on where an earlier call was stopped.",
    )
    configuration.add_arguments(parser)
    arguments = parser.parse_args(argv)
    config = configuration.load(arguments.config, arguments.set)
    run = train(config, progress=Progress())
    facts = read_json(run / "run.json")
    if arguments.json:
        print(
            json.dumps({"run": run.name, "path": str(run), "rounds": facts["rounds"], "guarantee": facts["guarantee"]})
        )
    else:
        print(f"run {run.name}: {facts['rounds']} rounds, in {run}")
        print(facts["guarantee"]["statement"][0])
    return 0
