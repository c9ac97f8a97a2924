"""One loaded version: a session of its own, fed and fetched by tensor name, warmed up before anyone may ask it."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from serving.local_server.batching import Queue, Scheduler
from serving.local_server.json_writer import cpp_name
from serving.local_server.metrics import Metrics
from serving.local_server.status import ServingError, invalid

DEFAULT_SIGNATURE = "serving_default"
WARMUP = Path("assets.extra") / "tf_serving_warmup_requests"
_MOST_WARMUP_RECORDS = 1000


class Servable:
    """A version that can be asked. `hold` and `release` count the requests that are in it."""

    def __init__(self, name: str, version: int, path: Path, metrics: Metrics, scheduler: Scheduler | None = None):
        """Loads the version; raises what TensorFlow raises where it cannot. With a scheduler requests are batched."""
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
        self._scheduler = scheduler
        self._queues = {key: scheduler.queue(self._runner(key[1])) for key in self._batchable()} if scheduler else {}

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
        for queue in self._queues.values():
            assert self._scheduler is not None
            self._scheduler.drop(queue)
        self._session.close()

    # -- batching ----------------------------------------------------------------------------------------------------

    def _batchable(self) -> set[tuple[frozenset[str], frozenset[str]]]:
        """The signatures by their tensors: only a request for all of one's outputs is batched."""
        return {
            (_tensors(signature.inputs), _tensors(signature.outputs))
            for signature in self.signatures.values()
            if signature.inputs
        }

    def _runner(self, outputs: frozenset[str]) -> Any:
        return lambda feeds, timeout_s: self._run_session({name: name for name in outputs}, feeds, timeout_s)

    def _run_session(
        self, fetches: Mapping[str, str], feeds: Mapping[str, np.ndarray], timeout_s: float | None
    ) -> dict[str, np.ndarray]:
        import tensorflow as tf

        # A deadline that has passed must not become 0, which is none.
        limit = max(round(timeout_s * 1000), 1) if timeout_s is not None else None
        options = tf.compat.v1.RunOptions(timeout_in_ms=limit) if limit is not None else None
        return {name: np.asarray(value) for name, value in self._session.run(dict(fetches), feeds, options).items()}

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
        fetches = {name: signature.outputs[name].name for name in outputs}
        queue: Queue | None = self._queues.get((frozenset(feeds), frozenset(fetches.values())))
        started = time.perf_counter()
        if queue is None:
            answer = self._run_session(fetches, feeds, timeout_s)
        else:
            found = queue.ask(feeds, timeout_s)
            answer = {name: found[tensor] for name, tensor in fetches.items()}
        spent = time.perf_counter() - started
        self._metrics.observe(":tensorflow:serving:runtime_latency", spent, self.name, api, "TF1")
        return answer

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

        from serving.local_server import inference

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


def _tensors(infos: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(info.name for info in infos.values())


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
