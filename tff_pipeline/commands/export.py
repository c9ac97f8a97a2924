"""`tff-pipeline export`: makes a version of a run's model that a model server loads."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from tff_pipeline.artifacts import model_base, read_manifest
from tff_pipeline.commands.choose_run import add_run_arguments, chosen_run
from tff_pipeline.export.build import export
from tff_pipeline.progress import Progress


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the version's folder, or with --json its manifest too."""
    parser = argparse.ArgumentParser(
        prog="tff-pipeline export", description="Makes a verified version of a trained model that a model server loads."
    )
    add_run_arguments(parser)
    parser.add_argument(
        "--to",
        metavar="DIR",
        type=Path,
        help="the model's base path (default: export.base_path, or models/<name> in the work directory)",
    )
    parser.add_argument(
        "--version", metavar="N", type=int, help="the version's number (default: one more than the newest)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    run, config = chosen_run(arguments)
    destination = arguments.to or model_base(config)
    path = export(run, destination, version=arguments.version, settings=config.export, progress=Progress())
    if arguments.json:
        print(json.dumps({"path": str(path), "manifest": read_manifest(path)}, ensure_ascii=False))
    else:
        print(path)
    return 0
