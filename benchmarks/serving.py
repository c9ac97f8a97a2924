"""What the two ports cost: the local model server over gRPC and REST against calling the signature in process, one text and 32.

    python -m benchmarks.serving --model workdir/quickstart/models/quickstart [--json]

The contenders take turns, request by request, so that what else the machine does falls on all of them alike. The clients
(serving/client) are in a process of their own, as clients are; `explain` is measured against a prediction beside it.
Medians and quartiles in milliseconds, and the median of what each port adds.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tff_pipeline.artifacts import newest_version, read_manifest
from tff_pipeline.progress import silence_libraries

TEXTS = (
    "my card was stolen yesterday, please block it",
    "where is my parcel?",
    "I was charged twice for the same order",
)
WARM_UP = 5


def texts(size: int) -> list[str]:
    return [TEXTS[number % len(TEXTS)] for number in range(size)]


def measured(contenders: dict[str, Callable[[], Any]], *, requests: int) -> dict[str, list[float]]:
    """Milliseconds of each contender's requests, which take turns."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(WARM_UP + requests):
        for name, ask in contenders.items():
            started = time.perf_counter()
            ask()
            if number >= WARM_UP:
                times[name].append(1000 * (time.perf_counter() - started))
    return times


def summary(times: dict[str, list[float]], base: str) -> dict[str, dict[str, float]]:
    """Median and quartiles of each, what its median adds to that of `base`, and the ratio of the two."""
    medians = {name: statistics.median(of_name) for name, of_name in times.items()}
    rows = {}
    for name, of_name in times.items():
        low, _, high = statistics.quantiles(of_name, n=4)
        row = {"median_ms": medians[name], "low_ms": low, "high_ms": high}
        rows[name] = row | {"adds_ms": medians[name] - medians[base], "ratio": medians[name] / medians[base]}
    return rows


# -- the process of the model, and that of the clients -----------------------------------------------------------------


def _serve(version: Path) -> None:
    """A local model server on free ports, which also answers `{"size": n, "signature": s}` lines on standard input in process."""
    import tensorflow as tf

    from serving.local_server.metrics import Metrics
    from serving.local_server.servable import Servable
    from serving.local_server.server import LocalModelServer, Options
    from serving.model_server.models_config import ModelConfig, VersionPolicy

    policy = VersionPolicy("specific", versions=(int(version.name),))
    servable = Servable("in-process", 1, version, Metrics())
    models, options = [ModelConfig("bench", version.parent, policy)], Options(port=0, rest_port=0)
    with LocalModelServer(models, options) as server:
        print(json.dumps({"port": server.port, "rest_port": server.rest_port}), flush=True)
        for line in sys.stdin:
            asked = json.loads(line)
            signature = servable.signatures[asked["signature"]]
            inputs: dict[str, Any] = {"text": tf.constant(texts(asked["size"])).numpy()}
            if "label" in signature.inputs:
                inputs["label"] = tf.constant([""] * asked["size"]).numpy()
            started = time.perf_counter()
            servable.run(signature, inputs, sorted(signature.outputs), api="Predict", timeout_s=None)
            print(time.perf_counter() - started, flush=True)


def _measure(version: Path, *, requests: int, sizes: Sequence[int]) -> list[dict[str, Any]]:
    from serving.client import GrpcClient, RestClient

    command = [sys.executable, "-m", "benchmarks.serving", "--model", str(version), "--serve"]
    results = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        reading, writing = child.stdout, child.stdin
        try:
            ports = json.loads(reading.readline())
            rest = RestClient(f"http://127.0.0.1:{ports['rest_port']}", "bench", timeout_s=120)
            grpc = GrpcClient(f"127.0.0.1:{ports['port']}", "bench", timeout_s=120)

            def in_process(size: int, signature: str) -> float:
                writing.write(json.dumps({"size": size, "signature": signature}) + "\n")
                writing.flush()
                return float(reading.readline())

            with rest, grpc:
                for size in sizes:
                    batch, inside = texts(size), []
                    contenders: dict[str, Callable[[], Any]] = {
                        "in process": lambda size=size, inside=inside: inside.append(
                            in_process(size, "serving_default")
                        ),
                        "gRPC": lambda batch=batch: grpc.predict(batch),
                        "REST": lambda batch=batch: rest.predict(batch),
                    }
                    times = measured(contenders, requests=requests)
                    # Timed where it ran: the pipe that asked for it is no part of it.
                    times["in process"] = [1000 * seconds for seconds in inside[WARM_UP:]]
                    results += [{"batch": size, "way": way, **row} for way, row in summary(times, "in process").items()]
                if "explain" in read_manifest(version)["signatures"]:
                    signatures = ("serving_default", "explain")
                    rounds = [{name: 1000 * in_process(1, name) for name in signatures} for _ in range(8)]
                    kept = {name: [times[name] for times in rounds[2:]] for name in signatures}
                    row = summary(kept, "serving_default")["explain"]
                    results.append({"batch": 1, "way": "explain, in process", **row})
        finally:
            writing.close()
    return results


def main(argv: Sequence[str]) -> int:
    """Prints a Markdown table, or with --json a JSON object a line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--model", metavar="DIR", type=Path, required=True, help="a version, or a model's base path")
    parser.add_argument("--requests", metavar="N", type=int, default=200, help="of each kind (default: 200)")
    parser.add_argument(
        "--batch", metavar="N", type=int, nargs="*", default=[1, 32], help="batch sizes (default: 1 32)"
    )
    parser.add_argument("--json", action="store_true", help="a JSON object a line")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    silence_libraries()
    version = newest_version(arguments.model.absolute())
    if arguments.serve:
        _serve(version)
        return 0
    rows = _measure(version, requests=arguments.requests, sizes=arguments.batch)
    if arguments.json:
        for row in rows:
            print(json.dumps(row))
        return 0
    print("| texts | way | median ms (quartiles) | adds ms | ratio |\n| --- | --- | --- | --- | --- |")
    for row in rows:
        quartiles = f"{row['low_ms']:.2f} to {row['high_ms']:.2f}"
        print(
            f"| {row['batch']} | {row['way']} | {row['median_ms']:.2f} ({quartiles}) | {row['adds_ms']:.2f} | {row['ratio']:.2f} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
