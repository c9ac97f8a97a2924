"""Writes the golden pairs of a version: requests, each with the answer of the model in memory, for REST and for gRPC.

No server reads them. `python -m serving.golden` asks a server with them, and a person can read them. The texts are
golden texts, and synthetic.
"""

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tff_pipeline.export import verification
from tff_pipeline.export.messages import answer, grpc_request, grpc_response, rest_request, rest_response
from tff_pipeline.export.verification_request import VerificationRequest

if TYPE_CHECKING:
    from google.protobuf.message import Message

GOLDEN = verification.GOLDEN
_SHORT_BYTES = 200  # longer golden texts are left to the verification: a pair is for a person to read, too


def write(directory: Path, request: VerificationRequest) -> None:
    """Writes the file beside a SavedModel."""
    (directory / GOLDEN).parent.mkdir(exist_ok=True)
    pairs = {"pairs": _pairs(request)}
    (directory / GOLDEN).write_text(json.dumps(pairs, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _pairs(request: VerificationRequest) -> list[dict[str, Any]]:
    """A single text and a batch of all that are short and UTF-8, for each signature."""
    texts = [base64.b64decode(text) for text in request["texts"]]
    readable = [index for index, text in enumerate(texts) if len(text) < _SHORT_BYTES and _is_utf8(text)]
    pairs = []
    for signature in request["signatures"]:
        answered = [index for index in readable if request["expected"][signature][index] is not None]
        pairs += [_pair(request, signature, batch) for batch in (answered[:1], answered)]
    return pairs


def _pair(request: VerificationRequest, signature: str, batch: list[int]) -> dict[str, Any]:
    outputs = answer(request, signature, batch)
    return {
        "signature": signature,
        "api": "classify" if signature == "classify" else "predict",
        "tolerance": verification.EXPLAIN_TOLERANCE if signature == "explain" else verification.TOLERANCE,
        "rest": {
            "request": rest_request(request, signature, batch),
            "response": rest_response(signature, outputs),
        },
        "grpc": {
            "request": _base64(grpc_request(request, signature, batch)),
            "response": _base64(grpc_response(signature, outputs)),
        },
    }


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _base64(message: "Message") -> str:
    return base64.b64encode(message.SerializeToString(deterministic=True)).decode()
