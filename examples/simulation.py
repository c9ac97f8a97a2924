"""The simulation that every CI run executes: the whole pipeline under TFF's own executor, and again on this project's runtime.

Both have the same seed, so both draw the same clients and the same noise, and their trained weights must agree to float
tolerance. Then the answers of the second run's exported model are printed.

    python -m examples.simulation [--config configs/ci.toml] [--set KEY=VALUE ...]
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Three rounds of training amplify the last bits of float32 sums, which depend on the order of the summands.
TOLERANCE = 1e-4


def run(config: str, runtime: str, overrides: Sequence[str]) -> dict[str, Any]:
    """One run of the pipeline in a process of its own; what `tff-pipeline run --json` printed."""
    changes = [part for override in (f"runtime.kind={runtime}", *overrides) for part in ("--set", override)]
    command = [sys.executable, "-m", "tff_pipeline", "run", "--config", config, *changes, "--json"]
    finished = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return json.loads(finished.stdout)


def trained(result: dict[str, Any]) -> list[np.ndarray]:
    """The weights at the end of a run."""
    with np.load(Path(result["paths"]["run"]) / "trained" / "arrays.npz") as stored:
        return [stored[name] for name in sorted(stored.files)]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--config", default="configs/ci.toml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args(argv)
    results = {runtime: run(arguments.config, runtime, arguments.set) for runtime in ("reference", "local")}
    pairs = zip(*(trained(result) for result in results.values()), strict=True)
    difference = max(float(np.abs(expected - actual).max()) for expected, actual in pairs)
    accuracies = {runtime: result["evaluation"]["overall"]["accuracy"] for runtime, result in results.items()}
    print(
        f"largest difference between any two weights: {difference:.2g} (at most {TOLERANCE:g}); accuracy {accuracies}"
    )
    for answer in results["local"]["answers"]:
        print(f"{answer['score']:.3f}  {answer['label']}  {answer['text']}")
    return 0 if difference <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
