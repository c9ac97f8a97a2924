"""One loaded version: a session of its own, fed and fetched by tensor name, warmed up before anyone may ask it."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from serving.double.json_writer import cpp_name
from serving.double.metrics import Metrics
from serving.double.status import ServingError, invalid

DEFAULT_SIGNATURE = "serving_default"
WARMUP = Path("assets.extra") / "tf_serving_warmup_requests"
_MOST_WARMUP_RECORDS = 1000


class Servable:
    """A version that can be asked. `hold` and `release` count the requests that are in it."""

    def __init__(self, name: str, version: int, path: Path, metrics: Metrics):
        """Loads the version; raises what TensorFlow raises where it cannot."""
        import tensorflow as tf
        import tensorflow_text  # noqa: F401  registers its ops, which the stock server links

        self.name, self.version, self.path = name, version, path
        self._metrics = metrics
        self._lock = threading.Lock()
        self._holders = 0
        options = tf.compat.v1.ConfigProto(gpu_options=tf.compat.v1.GPUOptions(allow_growth=True))
        self._session = tf.compat.v1.Session(graph=tf.Graph(), config=options)
        try:
            with _without_deprecations():
                meta_graph = tf.compat.v1.saved_model.loader.load(self._session, ["serve"], str(path))
        except BaseException:
            self._session.close()
            raise
        self.signatures: Mapping[str, Any] = meta_graph.signature_def

    # -- who is using it ---------------------------------------------------------------------------------------------

    def hold(self) -> None:
        with self._lock:
            self._holders += 1

    def release(self) -> None:
        with self._lock:
            self._holders -= 1

    @property
    def held(self) -> bool:
        with self._lock:
            return self._holders > 0

    def close(self) -> None:
        self._session.close()

    # -- asking ------------------------------------------------------------------------------------------------------

    def run(
        self,
        signature: Any,
        inputs: Mapping[str, np.ndarray],
        outputs: Sequence[str],
        *,
        api: str,
        timeout_s: float | None,
    ) -> dict[str, np.ndarray]:
        """The named outputs of a signature. `inputs` are by the signature's names, and have its types.

        Raises:
          ServingError: for an input of another type; and what TensorFlow raises.
        """
        import tensorflow as tf

        feeds = {}
        for index, name in enumerate(sorted(inputs)):
            info, value = signature.inputs[name], inputs[name]
            expected, found = tf.dtypes.as_dtype(info.dtype), tf.dtypes.as_dtype(value.dtype)
            if expected != found:
                raise invalid(
                    f"Expects arg[{index}] to be {cpp_name(expected.name)} but {cpp_name(found.name)} is provided"
                )
            feeds[info.name] = value
        options = tf.compat.v1.RunOptions(timeout_in_ms=round(timeout_s * 1000)) if timeout_s is not None else None
        started = time.perf_counter()
        answer = self._session.run({name: signature.outputs[name].name for name in outputs}, feeds, options)
        spent = time.perf_counter() - started
        self._metrics.observe(":tensorflow:serving:runtime_latency", spent, self.name, api, "TF1")
        return {name: np.asarray(value) for name, value in answer.items()}

    # -- warming up --------------------------------------------------------------------------------------------------

    def warm_up(self) -> int:
        """Replays the version's warm-up requests, as the server does; returns how many.

        Raises:
          ServingError: where one of them cannot be answered; a server does not serve the version then.
        """
        file = self.path / WARMUP
        if not file.exists():
            return 0
        started, status, records = time.perf_counter(), "OK", 0
        try:
            for record in _warmup_records(file):
                self._replay(record)
                records += 1
        except Exception:
            status = "ERROR"
            raise
        finally:
            spent = time.perf_counter() - started
            self._metrics.observe(":tensorflow:serving:model_warmup_latency", spent, str(self.path), status)
        return records

    def _replay(self, record: bytes) -> None:
        from google.protobuf.message import DecodeError
        from tensorflow_serving.apis import prediction_log_pb2

        from serving.double import inference

        try:
            log = prediction_log_pb2.PredictionLog.FromString(record)
        except DecodeError:
            raise invalid("Failed to parse warmup record: it is no PredictionLog") from None
        kind = log.WhichOneof("log_type")
        replay = {
            "predict_log": inference.predict,
            "classify_log": inference.classify,
            "regress_log": inference.regress,
            "multi_inference_log": inference.multi_inference,
        }.get(kind)
        if replay is None:
            raise ServingError("UNIMPLEMENTED", f"Unsupported log_type for warmup: {kind}")
        replay(self, getattr(log, kind).request, timeout_s=None)


@contextmanager
def _without_deprecations() -> Iterator[None]:
    """TensorFlow calls its loader for sessions deprecated, at every load; it is what the server does."""
    import tensorflow as tf

    logger = tf.get_logger()
    before = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(before)


def _warmup_records(file: Path) -> list[bytes]:
    import tensorflow as tf

    with tf.device("CPU"):
        records = list(tf.data.TFRecordDataset(str(file)).take(_MOST_WARMUP_RECORDS + 1).as_numpy_iterator())
    if len(records) > _MOST_WARMUP_RECORDS:
        raise invalid(
            f"Number of warmup records exceeds the maximum ({_MOST_WARMUP_RECORDS}). Please reduce their number and try again."
        )
    return records
