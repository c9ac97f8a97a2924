"""Asks a running model server a version's golden pairs: does it answer as the model did when it was exported?

    python -m serving.golden /models/quickstart/3 --rest http://localhost:8501 --grpc localhost:8500

For TensorFlow Serving and for the local model server. Numbers may differ by the pair's tolerance.
"""

import argparse
import base64
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tff_pipeline.artifacts import read_json, read_manifest
from tff_pipeline.errors import PipelineError

GOLDEN = "assets.extra/golden.json"


def check(version: Path, *, rest: str = "", grpc: str = "", label: str = "", timeout_s: float = 30.0) -> list[str]:
    """Asks every pair over the APIs whose addresses are given: of the version's own number, or of what `label` names.

    Returns:
      A sentence for each difference; nothing where every answer is as expected.

    Raises:
      PipelineError: if the version is damaged.
    """
    manifest = read_manifest(version, check_files=True)
    target: dict[str, Any] = {"label": label} if label else {"version": manifest["version"]}
    differences: list[str] = []
    for index, pair in enumerate(read_json(version / GOLDEN)["pairs"]):
        for api, address, ask in (("REST", rest, _ask_rest), ("gRPC", grpc, _ask_grpc)):
            if not address:
                continue
            question = f"pair {index} ({pair['signature']}) over {api}"
            try:
                answer, expected = ask(address, manifest["name"], target, pair, timeout_s)
            except PipelineError as error:
                differences.append(f"{question}: {error}")
                continue
            differences += (
                f"{question}, {difference}" for difference in _differences(answer, expected, pair["tolerance"])
            )
    return differences


def _ask_rest(
    address: str, model: str, target: Mapping[str, Any], pair: Mapping[str, Any], timeout_s: float
) -> tuple[Any, Any]:
    """The answer over REST, and the expected one."""
    from serving.client import RestClient

    with RestClient(address, model, timeout_s=timeout_s, **target) as client:
        return client.post(pair["api"], pair["rest"]["request"]), pair["rest"]["response"]


def _ask_grpc(
    address: str, model: str, target: Mapping[str, Any], pair: Mapping[str, Any], timeout_s: float
) -> tuple[Any, Any]:
    """The answer over gRPC, and the expected one, as lists, numbers and bytes."""
    from tensorflow_serving.apis import classification_pb2, predict_pb2

    from serving.client import GrpcClient

    module, kind = (predict_pb2, "Predict") if pair["api"] == "predict" else (classification_pb2, "Classification")
    request = getattr(module, f"{kind}Request").FromString(base64.b64decode(pair["grpc"]["request"]))
    expected = getattr(module, f"{kind}Response").FromString(base64.b64decode(pair["grpc"]["response"]))
    with GrpcClient(address, model, timeout_s=timeout_s, **target) as client:
        return _plain(client.send(request)), _plain(expected)


def _plain(response: Any) -> Any:
    """A response as lists, numbers and bytes."""
    import tensorflow as tf

    if hasattr(response, "outputs"):
        return {name: tf.make_ndarray(value).tolist() for name, value in response.outputs.items()}
    return [[[entry.label, entry.score] for entry in row.classes] for row in response.result.classifications]


def _differences(answer: Any, expected: Any, tolerance: float, path: str = "answer") -> Iterator[str]:
    if isinstance(expected, dict) and isinstance(answer, dict) and answer.keys() == expected.keys():
        for key, value in expected.items():
            yield from _differences(answer[key], value, tolerance, f"{path}.{key}")
    elif isinstance(expected, list) and isinstance(answer, list) and len(answer) == len(expected):
        for index, value in enumerate(expected):
            yield from _differences(answer[index], value, tolerance, f"{path}[{index}]")
    elif isinstance(expected, float) and isinstance(answer, float | int):
        if not math.isclose(answer, expected, rel_tol=0, abs_tol=tolerance):
            yield f"{path} is {answer!r}; expected {expected!r} within {tolerance:g}"
    elif answer != expected:
        yield f"{path} is {str(answer)[:80]!r}; expected {str(expected)[:80]!r}"


def main(argv: Sequence[str]) -> int:
    """Prints the differences; returns 1 if there are any."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.golden", description="Asks a server a version's golden pairs."
    )
    parser.add_argument(
        "version", metavar="DIR", type=Path, help="the version's folder, as it was exported or published"
    )
    parser.add_argument("--rest", metavar="URL", default="", help="such as http://localhost:8501")
    parser.add_argument("--grpc", metavar="HOST:PORT", default="", help="such as localhost:8500")
    parser.add_argument(
        "--label", default="", help="ask the version with this label (default: the version's own number)"
    )
    arguments = parser.parse_args(argv)
    if not arguments.rest and not arguments.grpc:
        parser.error("give --rest, --grpc or both")
    if arguments.rest:
        _check_address(parser, arguments.rest)
    try:
        differences = check(arguments.version, rest=arguments.rest, grpc=arguments.grpc, label=arguments.label)
    except PipelineError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for sentence in differences:
        print(sentence)
    print(json.dumps({"differences": len(differences)}) if differences else "every golden pair got its answer")
    return 1 if differences else 0


def _check_address(parser: argparse.ArgumentParser, address: str) -> None:
    from serving.client import checked_address

    try:
        checked_address(address)
    except ValueError as error:
        parser.error(f"--rest: {error}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
