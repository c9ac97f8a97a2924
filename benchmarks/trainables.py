"""A head, low-rank adapters and all weights, trained on real text at one epsilon and compared.

    python -m benchmarks.trainables [--config configs/multidogo.toml] [--set KEY=VALUE ...] [--only head lora full]

Trains the configuration once for each, in fewer and smaller rounds than its own (SETTING, which --set overrides), and
evaluates on the silos' test texts. The learning rates are those in KINDS; choosing them on the test texts would flatter, so
they were chosen on other runs' validation files or not at all. Prints a Markdown table: weights trained,
accuracy, macro-F1, bytes that the server sends to a silo and a silo to the server in a round, seconds a round (median).
"""

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.multidogo import command
from tff_pipeline.rounding import rounded_up

SETTING = ("training.rounds=20", "training.clients_per_round=300")
KINDS = {
    "head": ("model.trainable=head",),
    "lora": ("model.trainable=lora", "model.lora_rank=4", "model.lora_alpha=8"),
    "full": ("model.trainable=full", "training.client_learning_rate=0.1"),
}


def row(name: str, run: Path) -> str:
    facts, scores = (json.loads((run / file).read_text()) for file in ("run.json", "evaluation.json"))
    with (run / "rounds.csv").open(newline="") as file:
        rounds = list(csv.DictReader(file))
    down, up, seconds = (
        # Where the silos add the noise, no round says how long it took.
        float(np.median([float(entry[key] or "nan") for entry in rounds]))
        for key in ("bytes_down", "bytes_up", "seconds")
    )
    overall, epsilon = scores["overall"], facts["guarantee"]["epsilon"]
    cells = [
        name,
        f"{facts['plan']['dimension']:,}",
        rounded_up(epsilon) if epsilon else "infinite",
        f"{overall['accuracy']:.3f} / {overall['macro_f1']:.3f}",
        f"{down:,.0f}",
        f"{up:,.0f}",
        f"{seconds:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--config", default="configs/multidogo.toml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--only", nargs="*", choices=KINDS, default=list(KINDS))
    arguments = parser.parse_args(argv)
    changes = [part for override in (*SETTING, *arguments.set) for part in ("--set", override)]
    subprocess.run(
        [sys.executable, "-m", "tff_pipeline", "prepare", "--config", arguments.config, *changes, "--json"],
        stdout=subprocess.DEVNULL,
        check=True,
    )
    print("| trained | weights | epsilon | accuracy / macro-F1 | bytes down | bytes up | seconds a round |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for name in arguments.only:
        run = Path(command("train", arguments.config, [*SETTING, *KINDS[name], *arguments.set])["path"])
        subprocess.run(
            [sys.executable, "-m", "tff_pipeline", "evaluate", "--run", str(run), "--json"],
            stdout=subprocess.DEVNULL,
            check=True,
        )
        print(row(name, run), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
