"""Asks a running model server a version's golden pairs: does it say there what the model said when it was exported?

    python -m serving.golden /models/quickstart/3 --rest http://localhost:8501 --grpc localhost:8500

For TensorFlow Serving wherever there is one, and for the double. Numbers may differ by the pair's tolerance.
"""

import argparse
import base64
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tff_pipeline.artifacts import read_json, read_manifest
from tff_pipeline.errors import PipelineError

GOLDEN = "assets.extra/golden.json"


def check(version: Path, *, rest: str = "", grpc: str = "", label: str = "", timeout_s: float = 30.0) -> list[str]:
    """Asks every pair over the APIs that are given: of the version's own number, or what `label` names.

    Returns:
      What differs, a sentence each; nothing where all is well.

    Raises:
      PipelineError: if the version is damaged.
    """
    manifest = read_manifest(version, check_files=True)
    golden, wrong = read_json(version / GOLDEN), []
    for index, pair in enumerate(golden["pairs"]):
        for api, address in (("REST", rest), ("gRPC", grpc)):
            if not address:
                continue
            where = f"pair {index} ({pair['signature']}) over {api}"
            ask = _over_rest if api == "REST" else _over_grpc
            try:
                found, wanted = ask(address, manifest, pair, label, timeout_s)
            except PipelineError as error:
                wrong.append(f"{where}: {error}")
                continue
            wrong += (f"{where}, {difference}" for difference in _differences(found, wanted, pair["tolerance"]))
    return wrong


def _over_rest(
    address: str, manifest: dict[str, Any], pair: dict[str, Any], label: str, timeout_s: float
) -> tuple[Any, Any]:
    from serving.client import RestClient

    target: dict[str, Any] = {"label": label} if label else {"version": manifest["version"]}
    with RestClient(address, manifest["name"], timeout_s=timeout_s, **target) as client:
        return client.post(pair["api"], pair["rest"]["request"]), pair["rest"]["response"]


def _over_grpc(
    address: str, manifest: dict[str, Any], pair: dict[str, Any], label: str, timeout_s: float
) -> tuple[Any, Any]:
    from tensorflow_serving.apis import classification_pb2, predict_pb2

    from serving.client import GrpcClient

    module, kind = (predict_pb2, "Predict") if pair["api"] == "predict" else (classification_pb2, "Classification")
    request = getattr(module, f"{kind}Request").FromString(base64.b64decode(pair["grpc"]["request"]))
    wanted = getattr(module, f"{kind}Response").FromString(base64.b64decode(pair["grpc"]["response"]))
    target: dict[str, Any] = {"label": label} if label else {"version": manifest["version"]}
    with GrpcClient(address, manifest["name"], timeout_s=timeout_s, **target) as client:
        return _plain(client.send(request)), _plain(wanted)


def _plain(response: Any) -> Any:
    """A response as lists, numbers and bytes."""
    import tensorflow as tf

    if hasattr(response, "outputs"):
        return {name: tf.make_ndarray(value).tolist() for name, value in response.outputs.items()}
    return [[[each.label, each.score] for each in found.classes] for found in response.result.classifications]


def _differences(found: Any, wanted: Any, tolerance: float, place: str = "answer") -> Iterator[str]:
    if isinstance(wanted, dict) and isinstance(found, dict) and found.keys() == wanted.keys():
        for key, value in wanted.items():
            yield from _differences(found[key], value, tolerance, f"{place}.{key}")
    elif isinstance(wanted, list) and isinstance(found, list) and len(found) == len(wanted):
        for index, value in enumerate(wanted):
            yield from _differences(found[index], value, tolerance, f"{place}[{index}]")
    elif isinstance(wanted, float) and isinstance(found, float | int):
        if not math.isclose(found, wanted, rel_tol=0, abs_tol=tolerance):
            yield f"{place} is {found!r}; expected {wanted!r} within {tolerance:g}"
    elif found != wanted:
        yield f"{place} is {str(found)[:80]!r}; expected {str(wanted)[:80]!r}"


def main(argv: Sequence[str]) -> int:
    """Prints what differs; returns 1 if anything does."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.golden", description="Asks a server a version's golden pairs."
    )
    parser.add_argument(
        "version", metavar="DIR", type=Path, help="the version's folder, as it was exported or published"
    )
    parser.add_argument("--rest", metavar="URL", default="", help="such as http://localhost:8501")
    parser.add_argument("--grpc", metavar="HOST:PORT", default="", help="such as localhost:8500")
    parser.add_argument("--label", default="", help="ask what this label names (default: the version's own number)")
    arguments = parser.parse_args(argv)
    if not arguments.rest and not arguments.grpc:
        parser.error("give --rest, --grpc or both")
    try:
        wrong = check(arguments.version, rest=arguments.rest, grpc=arguments.grpc, label=arguments.label)
    except PipelineError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for sentence in wrong:
        print(sentence)
    print(json.dumps({"differences": len(wrong)}) if wrong else "every golden pair got its answer")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
