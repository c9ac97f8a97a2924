"""A version's warm-up requests: answered before it serves, so that the first client does not wait."""

import time
from pathlib import Path
from typing import Any

from serving.local_server import inference
from serving.local_server.metrics import Metrics
from serving.local_server.servable import Servable
from serving.model_server.status import ServingError, invalid

WARMUP = Path("assets.extra") / "tf_serving_warmup_requests"
_MAX_RECORDS = 1000
_ANSWERS = {
    "predict_log": inference.predict,
    "classify_log": inference.classify,
    "regress_log": inference.regress,
    "multi_inference_log": inference.multi_inference,
}


def warm_up(servable: Servable, metrics: Metrics) -> int:
    """Answers the version's warm-up requests, as the server does; returns how many.

    Raises:
      ServingError: if one of them cannot be answered; a server does not serve the version then.
    """
    file = servable.path / WARMUP
    if not file.exists():
        return 0
    started, status, count = time.perf_counter(), "OK", 0
    try:
        for record in _records(file):
            _answer(servable, record)
            count += 1
    except Exception:
        status = "ERROR"
        raise
    finally:
        spent_s = time.perf_counter() - started
        metrics.observe(":tensorflow:serving:model_warmup_latency", spent_s, str(servable.path), status)
    return count


def _answer(servable: Servable, record: bytes) -> Any:
    from google.protobuf.message import DecodeError
    from tensorflow_serving.apis import prediction_log_pb2

    try:
        log = prediction_log_pb2.PredictionLog.FromString(record)
    except DecodeError:
        raise invalid("Failed to parse warmup record: it is no PredictionLog") from None
    kind = log.WhichOneof("log_type")
    if kind not in _ANSWERS:
        raise ServingError("UNIMPLEMENTED", f"Unsupported log_type for warmup: {kind}")
    return _ANSWERS[kind](servable, getattr(log, kind).request, timeout_s=None)


def _records(file: Path) -> list[bytes]:
    import tensorflow as tf

    with tf.device("CPU"):
        records = list(tf.data.TFRecordDataset(str(file)).take(_MAX_RECORDS + 1).as_numpy_iterator())
    if len(records) > _MAX_RECORDS:
        raise invalid(
            f"Number of warmup records exceeds the maximum ({_MAX_RECORDS}). Please reduce their number and try again."
        )
    return records
