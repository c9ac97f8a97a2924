"""Writes the warm-up requests of a version, which a model server replays before anyone may ask it.

They are PredictionLog messages in an uncompressed TFRecord file. The texts are golden texts, and synthetic.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tff_pipeline.data.records import write_frame
from tff_pipeline.export import verification
from tff_pipeline.export.messages import grpc_request
from tff_pipeline.export.verification_request import VerificationRequest

WARMUP = verification.WARMUP


def write(directory: Path, request: VerificationRequest, *, batch_sizes: Sequence[int]) -> None:
    """Writes the file beside a SavedModel."""
    (directory / WARMUP).parent.mkdir(exist_ok=True)
    with (directory / WARMUP).open("xb") as file:
        for record in _records(request, batch_sizes):
            write_frame(file, record)


def _records(request: VerificationRequest, batch_sizes: Sequence[int]) -> list[bytes]:
    """A record for each signature, batch size and length: a short text, and one that fills the model's length."""
    from tensorflow_serving.apis import prediction_log_pb2

    longest = int(np.argmax([len(tokens) for tokens in request["tokens"]]))
    records = []
    for signature in request["signatures"]:
        # An explanation costs about a hundred predictions: one of a short text loads what must be loaded.
        is_explain = signature == "explain"
        for size in (1,) if is_explain else batch_sizes:
            for text in (0,) if is_explain else (0, longest):
                log = prediction_log_pb2.PredictionLog()
                target = log.classify_log if signature == "classify" else log.predict_log
                target.request.CopyFrom(grpc_request(request, signature, [text] * size))
                records.append(log.SerializeToString(deterministic=True))
    return records
