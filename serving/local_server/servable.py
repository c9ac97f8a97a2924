"""A loaded version: its session, batched where that is asked for, and the number of requests that are in it."""

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serving.local_server.batching import Queue, Run, Scheduler
from serving.local_server.json_writer import cpp_name
from serving.local_server.metrics import Metrics
from serving.model_server.session import ModelSession
from serving.model_server.status import invalid


class Servable:
    """A version that answers requests. `begin_request` and `end_request` count those that are in it."""

    def __init__(self, name: str, version: int, path: Path, metrics: Metrics, scheduler: Scheduler | None = None):
        """Loads the version; raises what TensorFlow raises where it cannot. With a scheduler requests are batched."""
        self.name, self.version, self.path = name, version, path
        self._metrics = metrics
        self._lock = threading.Lock()
        self._requests = 0
        self._session = ModelSession(path)
        self.signatures: Mapping[str, Any] = self._session.signatures
        self._scheduler = scheduler
        self._queues = {key: scheduler.queue(self._runner(key[1])) for key in self._batchable()} if scheduler else {}

    # -- requests that are in it -------------------------------------------------------------------------------------

    def begin_request(self) -> None:
        with self._lock:
            self._requests += 1

    def end_request(self) -> None:
        with self._lock:
            self._requests -= 1

    @property
    def in_use(self) -> bool:
        """Whether a request is in it, so that it must not be closed."""
        with self._lock:
            return self._requests > 0

    def close(self) -> None:
        if self._scheduler is not None:
            for queue in self._queues.values():
                self._scheduler.drop(queue)
        self._session.close()

    # -- batching ----------------------------------------------------------------------------------------------------

    def _batchable(self) -> set[tuple[frozenset[str], frozenset[str]]]:
        """The signatures by their tensors: a request is batched only if it asks for all outputs of a signature."""
        return {
            (_tensors(signature.inputs), _tensors(signature.outputs))
            for signature in self.signatures.values()
            if signature.inputs
        }

    def _runner(self, outputs: frozenset[str]) -> Run:
        return lambda feeds, timeout_s: self._session.run({name: name for name in outputs}, feeds, timeout_s)

    # -- running -----------------------------------------------------------------------------------------------------

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
        feeds = _feeds(signature, inputs)
        fetches = {name: signature.outputs[name].name for name in outputs}
        queue: Queue | None = self._queues.get((frozenset(feeds), frozenset(fetches.values())))
        started = time.perf_counter()
        if queue is None:
            answer = self._session.run(fetches, feeds, timeout_s)
        else:
            by_tensor = queue.ask(feeds, timeout_s)
            answer = {name: by_tensor[tensor] for name, tensor in fetches.items()}
        spent_s = time.perf_counter() - started
        self._metrics.observe(":tensorflow:serving:runtime_latency", spent_s, self.name, api, "TF1")
        return answer


def _feeds(signature: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inputs by their tensors' names; raises ServingError for one of another type."""
    import tensorflow as tf

    feeds = {}
    for index, name in enumerate(sorted(inputs)):
        info, value = signature.inputs[name], inputs[name]
        expected, given = tf.dtypes.as_dtype(info.dtype), tf.dtypes.as_dtype(value.dtype)
        if expected != given:
            raise invalid(
                f"Expects arg[{index}] to be {cpp_name(expected.name)} but {cpp_name(given.name)} is provided"
            )
        feeds[info.name] = value
    return feeds


def _tensors(infos: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(info.name for info in infos.values())
