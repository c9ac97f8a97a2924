"""`tff-pipeline evaluate`: says how good a run's model is on clients that it was not trained on."""

import argparse
import json
from collections.abc import Sequence

from tff_pipeline.commands.choose_run import add_run_arguments, chosen_run
from tff_pipeline.config import SPLITS
from tff_pipeline.evaluation.evaluate import evaluate
from tff_pipeline.evaluation.tables import print_tables
from tff_pipeline.progress import Progress


def main(argv: Sequence[str] | None = None) -> int:
    """Prints tables, or with --json what `evaluate` returns."""
    parser = argparse.ArgumentParser(
        prog="tff-pipeline evaluate",
        description="Accuracy, F1 and confusion of a trained model on clients it has not seen.",
    )
    add_run_arguments(parser)
    parser.add_argument(
        "--split",
        choices=SPLITS,
        default="test",
        help="which clients to ask about (default: test); scores of train are not covered by the guarantee, and are printed but not kept",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    run, _ = chosen_run(arguments)
    result = evaluate(run, split=arguments.split, progress=Progress())
    if arguments.json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        print_tables(result)
    return 0
