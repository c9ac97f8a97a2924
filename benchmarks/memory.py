"""How much memory rounds take: growth over many rounds, and the peak against the cohort's and the silo's size.

    python -m benchmarks.memory [--rounds 200] [--json]

Trains all weights of a two-layer BERT on invented texts with the local runtime. Each case runs in a process of its own,
since a process keeps the memory it has had; peaks are the kernel's (ru_maxrss).
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.round import Subject, records_of
from tff_pipeline.progress import silence_libraries

# Clients a round, clients of the silo.
CASES = ((5, 50), (50, 50), (5, 5000))


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure(cohort: int, silo: int, rounds: int) -> dict[str, Any]:
    """Runs a case in this process, with the snapshot on the disk, as in a run."""
    from tff_pipeline.data import records
    from tff_pipeline.runtime.clients import TextClients
    from tff_pipeline.runtime.local import LocalRuntime
    from tff_pipeline.runtime.scripted import ScriptedRuntime

    random = np.random.default_rng(0)
    subject = Subject("two_layers", "full", {"long": [np.full(8, 64)]})
    with tempfile.TemporaryDirectory() as folder:
        shard, index = Path(folder) / records.shard_name("train", 0, 1), []
        texts = records_of([random.integers(3, 20, 8) for _ in range(50)])
        with shard.open("wb") as file:
            for client in range(silo):
                data = texts.read(client % 50)
                index.append((0, file.tell(), len(data), 8))
                records.write_frame(file, data)
        np.save(Path(folder) / records.index_name("train"), np.array(index, np.int64))
        with records.ClientReader(Path(folder), "train", [shard.name]) as reader:
            clients = TextClients("silo", reader, np.arange(10), pad_id=0, batch_size=16, epochs=1, token_labels=False)
            with ScriptedRuntime(LocalRuntime, subject.compiled, [clients]) as runtime:
                state, sizes = runtime.initial_state().with_weights(subject.initial), []
                noise = [np.zeros(value.shape) for value in subject.initial]
                for number in range(rounds):
                    rows = random.choice(silo, cohort, replace=False).tolist()
                    given = state.with_noise(noise)
                    state = runtime.run_round(given, {"silo": rows}, round_number=number).state
                    sizes.append(resident_mb())
    subject.close()
    later = sizes[len(sizes) // 4 :]
    return {
        "clients_a_round": cohort,
        "clients_of_the_silo": silo,
        "rounds": rounds,
        "growth_mb_a_round": round((later[-1] - later[0]) / max(1, len(later) - 1), 4),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=200, help="of the first case; the others run a tenth")
    parser.add_argument("--json", action="store_true", help="a JSON line for each case")
    parser.add_argument("--case", type=int, nargs=2, metavar=("COHORT", "SILO"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    silence_libraries()
    if arguments.case:
        cohort, silo = arguments.case
        print(json.dumps(measure(cohort, silo, arguments.rounds)))
        return 0
    if not arguments.json:
        print("| clients a round | clients of the silo | rounds | growth, MB a round | peak, MB |\n|" + " --- |" * 5)
    for index, (cohort, silo) in enumerate(CASES):
        rounds = arguments.rounds if index == 0 else max(2, arguments.rounds // 10)
        case = [sys.executable, "-m", "benchmarks.memory", "--rounds", str(rounds), "--case", str(cohort), str(silo)]
        done = subprocess.run(case, stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines()[-1]
        print(
            done if arguments.json else f"| {' | '.join(str(value) for value in json.loads(done).values())} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
