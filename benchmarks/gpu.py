"""A round on a GPU: whether it runs there, whether it repeats to the last bit, and how long it takes.

    python -m benchmarks.gpu [--json] [--rounds N] [--only MODEL/TRAINABLE ...] [--device GPU:0]

For each model the same cohort of invented clients (as `long` of benchmarks.round) is summed three times in each of two
processes, in each of these ways, and the integers of every secure slot are compared:

    CPU             one process that sees no GPU
    deterministic   TensorFlow's deterministic operations, as training sets them on a GPU
    without tf32    the same, and matrix products in whole float32, not in the tensor cores' 19 bits
    usual           TensorFlow's own defaults

Each process also times rounds of the local runtime and of a plain TensorFlow loop on the same device, in turn. Printed are
the first round's seconds, in which a GPU may compile kernels; the medians of both; whether the sums were the
same within a process and in both; the largest difference to the CPU's sums, as a fraction of the clip; and how many
operations of the model did not run on the device.

`--device CPU:0` goes through the same steps where there is no GPU, which shows that the script works and nothing else.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.round import COHORTS, MAX_LENGTH, MODELS, Subject, in_turns
from tff_pipeline.progress import silence_libraries

# How operations are set, and in how many processes that is repeated.
WAYS = {"CPU": 1, "deterministic": 2, "without tf32": 2, "usual": 2}
_TIMES = 3  # that a process sums the same cohort
_HEADER = (
    "| model | trained | operations | first round, s | plain loop, s | local, s | local / plain "
    "| same in a process | same in two | off the CPU's by | elsewhere |"
)


def summed(model: str, trainable: str, way: str, device: str, rounds: int, sums_file: Path) -> dict[str, Any]:
    """One process's part: sums the cohort, writes the integers to a file, times rounds."""
    import tensorflow as tf

    from tff_pipeline.runtime import base, local, workers
    from tff_pipeline.runtime.scripted import ScriptedRuntime

    if way == "without tf32":
        tf.config.experimental.enable_tensor_float_32_execution(False)
    lengths = {"long": [np.full(32, MAX_LENGTH)] * COHORTS[model]["long"]}
    with contextlib.ExitStack() as stack:
        subject = Subject(model, trainable, lengths, deterministic=way != "usual")
        stack.callback(subject.close)
        if way == "usual":  # which the runtime refuses on a GPU
            stack.enter_context(mock.patch.object(workers, "require_deterministic"))
        clients = subject.clients["long"]
        runtime = stack.enter_context(
            ScriptedRuntime(local.LocalRuntime, subject.compiled, [clients], devices=[device])
        )
        state = runtime.initial_state().with_weights(subject.initial)
        cohort = {"long": range(len(clients))}
        started = time.perf_counter()
        sums = [runtime.secure_sums(state, cohort)]
        first = time.perf_counter() - started
        sums += [runtime.secure_sums(state, cohort) for _ in range(_TIMES - 1)]
        np.savez(sums_file, *sums[0])
        federated = subject.federated(runtime, "long")
        seconds = in_turns({"plain loop": lambda: subject.plain(clients), "local": federated}, rounds)
        return {
            "first": first,
            "seconds": {name: float(np.median(values)) for name, values in seconds.items()},
            "same": all(equal(sums[0], other) for other in sums),
            "elsewhere": base.off_device(runtime.placement(), runtime.devices),
            "quanta": subject.quanta,
        }


def equal(left: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> bool:
    """Whether the integers of every slot are the same."""
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def gap(left: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> int:
    """The largest difference of a coordinate of the updates, in quantization levels; slots of one number are metrics."""
    pairs = [(a, b) for a, b in zip(left, right, strict=True) if a.size > 1]
    differences = [(a - b).view(f"i{a.itemsize}") for a, b in pairs]  # signed, modulo the ring
    return max(int(np.abs(difference.astype(np.int64)).max()) for difference in differences)


def measure(model: str, trainable: str, device: str, rounds: int) -> Iterator[dict[str, Any]]:
    """A result for every way, each in processes of its own, the CPU first."""
    with tempfile.TemporaryDirectory() as folder:
        on_cpu: list[np.ndarray] = []
        for way, count in WAYS.items():
            files = [Path(folder) / f"{way}-{number}.npz" for number in range(count)]
            parts = [_in_a_process(model, trainable, way, device, rounds, file) for file in files]
            sums = [list(np.load(file).values()) for file in files]
            on_cpu = on_cpu or sums[0]
            plain, local = (
                float(np.median([part["seconds"][name] for part in parts])) for name in ("plain loop", "local")
            )
            yield {
                "model": model,
                "trainable": trainable,
                "operations": way,
                "first_round_s": max(part["first"] for part in parts),
                "plain_loop_s": plain,
                "local_s": local,
                "ratio_to_plain_loop": local / plain,
                "same_in_a_process": all(part["same"] for part in parts),
                "same_in_two_processes": all(equal(sums[0], other) for other in sums) if count > 1 else None,
                "off_the_cpus_by": gap(on_cpu, sums[0]) / parts[0]["quanta"],
                "elsewhere": sum(parts[0]["elsewhere"].values()),
            }


def _in_a_process(model: str, trainable: str, way: str, device: str, rounds: int, sums_file: Path) -> dict[str, Any]:
    place = "CPU:0" if way == "CPU" else device
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--sum", model, trainable, way, place, str(rounds), str(sums_file)],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        env={**os.environ, **({"CUDA_VISIBLE_DEVICES": "-1"} if place.startswith("CPU") else {})},
    )
    return json.loads(done.stdout.splitlines()[-1])


def _row(result: dict[str, Any]) -> str:
    words = {True: "yes", False: "no", None: "-"}
    columns = [
        result["model"],
        result["trainable"],
        result["operations"],
        *(f"{result[name]:.3g}" for name in ("first_round_s", "plain_loop_s", "local_s")),
        f"{result['ratio_to_plain_loop']:.2f}",
        *(words[result[name]] for name in ("same_in_a_process", "same_in_two_processes")),
        f"{result['off_the_cpus_by']:.1g}",
        str(result["elsewhere"]),
    ]
    return f"| {' | '.join(columns)} |"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[], metavar="MODEL/TRAINABLE", help="such as two_layers/full")
    parser.add_argument("--device", default="GPU:0", help="what to measure beside the CPU, as TensorFlow names it")
    parser.add_argument("--json", action="store_true", help="a JSON line for each")
    parser.add_argument("--sum", nargs=6, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    silence_libraries()
    if arguments.sum:
        model, trainable, way, device, rounds, sums_file = arguments.sum
        print(json.dumps(summed(model, trainable, way, device, int(rounds), Path(sums_file))))
        return 0
    if not arguments.json:
        print(f"{_HEADER}\n|{' --- |' * _HEADER.count(' | ')} --- |", flush=True)
    for model in MODELS:
        for trainable in ("full", "lora", "head"):
            if not arguments.only or f"{model}/{trainable}" in arguments.only:
                for result in measure(model, trainable, arguments.device, arguments.rounds):
                    print(json.dumps(result) if arguments.json else _row(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
