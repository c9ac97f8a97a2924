"""Requests of several clients as one batch: the rules of batching_session.cc and shared_batch_scheduler.h.

Each signature of a version has a queue of batches, the last of them open. A request goes into the open one; where it does
not fit, that batch is closed and the next is opened, or the request is refused if there are too many. A batch is run when
the next was opened, when it is full, or when its first request has waited long enough; all queues share the threads. A
batch is padded to an allowed size with copies of the first row of its last request, and its outputs are split again.
"""

import dataclasses
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from serving.local_server.metrics import Metrics
from serving.model_server import config_files
from serving.model_server.status import ServingError, from_exception, invalid
from tff_pipeline.errors import ConfigError

Arrays = dict[str, np.ndarray]
Run = Callable[[Arrays, float | None], Arrays]  # feeds and a timeout in seconds to fetches


@dataclasses.dataclass(frozen=True)
class Parameters:
    """BatchingParameters, with the server's defaults."""

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = dataclasses.field(default_factory=lambda: os.cpu_count() or 1)
    allowed_batch_sizes: tuple[int, ...] = ()
    thread_pool_name: str = "batch_threads"

    @classmethod
    def from_file(cls, path: Path) -> "Parameters":
        """Reads a batching_parameters.txt.

        Raises:
          ConfigError: if it cannot be read, the server would refuse it, or the local model server does not support it.
        """
        message = config_files.batching_parameters(path, config_files.read_text(path))
        if message.enable_large_batch_splitting.value:
            raise ConfigError(
                f"{path}: enable_large_batch_splitting is true, which the local model server does not support; expected "
                "false, or no such line. TensorFlow Serving supports it."
            )
        names = [field.name for field in dataclasses.fields(cls) if field.name != "allowed_batch_sizes"]
        given = {name: getattr(message, name).value for name in names if message.HasField(name)}
        return cls(**given, allowed_batch_sizes=tuple(message.allowed_batch_sizes))

    def padded(self, size: int) -> int:
        """The smallest allowed size of a batch of `size` rows."""
        return next((allowed for allowed in self.allowed_batch_sizes if allowed >= size), size)


class _Task:
    def __init__(self, feeds: Arrays, size: int, timeout_s: float | None):
        self.feeds, self.size = feeds, size
        self.enqueued = time.monotonic()
        self.deadline = None if timeout_s is None else self.enqueued + timeout_s
        self.done = threading.Event()
        self.answer: Arrays = {}
        self.error: Exception | None = None


class _Batch:
    def __init__(self) -> None:
        self.tasks: list[_Task] = []
        self.size = 0
        self.started = 0.0


class Scheduler:
    """The threads that run the batches of all queues; `close` ends them."""

    def __init__(self, parameters: Parameters, metrics: Metrics):
        self.parameters, self.metrics = parameters, metrics
        self.changed = threading.Condition()  # also guards the queues
        self._queues: list[Queue] = []
        self._next = 0
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"{parameters.thread_pool_name}_{number}", daemon=True)
            for number in range(parameters.num_batch_threads)
        ]
        for thread in self._threads:
            thread.start()

    def queue(self, run: Run) -> "Queue":
        queue = Queue(self, run)
        with self.changed:
            self._queues.append(queue)
        return queue

    def drop(self, queue: "Queue") -> None:
        """Removes a queue that gets no more requests."""
        with self.changed:
            self._queues.remove(queue)

    def close(self) -> None:
        with self.changed:
            self._closed = True
            self.changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while True:
            with self.changed:
                due = self._due()
                while due is None and not self._closed:
                    self.changed.wait(self._until_due())
                    due = self._due()
                if due is None:
                    return
            queue, batch = due
            queue.process(batch)

    def _due(self) -> "tuple[Queue, _Batch] | None":
        """A batch that is to be run now, of the queue whose turn it is."""
        for offset in range(len(self._queues)):
            index = (self._next + offset) % len(self._queues)
            batch = self._queues[index].take()
            if batch is not None:
                self._next = index + 1
                return self._queues[index], batch
        return None

    def _until_due(self) -> float | None:
        moments = [moment for queue in self._queues if (moment := queue.due()) is not None]
        return max(min(moments) - time.monotonic(), 0.0) if moments else None


class Queue:
    """The batches of one signature of one version."""

    def __init__(self, scheduler: Scheduler, run: Run):
        self._scheduler, self._run, self._parameters = scheduler, run, scheduler.parameters
        self._batches = deque([_Batch()])

    def ask(self, feeds: Arrays, timeout_s: float | None) -> Arrays:
        """Waits for the batch in which these feeds are run; returns their part of the answer.

        Raises:
          ServingError: if they do not fit into a batch, or the queue is full; and what the run raises.
        """
        task = _Task(feeds, _rows(feeds), timeout_s)
        with self._scheduler.changed:
            self._enqueue(task)
            self._scheduler.changed.notify()
        task.done.wait()
        if task.error is not None:
            raise task.error
        return task.answer

    def _enqueue(self, task: _Task) -> None:
        limit = self._parameters.max_batch_size
        if task.size > limit:
            raise invalid(f"Task size {task.size} is larger than maximum input batch size {limit}")
        if self._batches[-1].size + task.size > limit:
            if len(self._batches) >= self._parameters.max_enqueued_batches:
                raise ServingError("UNAVAILABLE", "The batch scheduling queue to which this task was submitted is full")
            self._batches.append(_Batch())
        batch = self._batches[-1]
        if not batch.tasks:
            batch.started = time.monotonic()
        batch.tasks.append(task)
        batch.size += task.size

    def due(self) -> float | None:
        """When the open batch must be run at the latest; None where it is empty. (A closed one is taken at once.)"""
        batch = self._batches[0]
        return batch.started + self._parameters.batch_timeout_micros / 1e6 if batch.tasks else None

    def take(self) -> _Batch | None:
        """The batch that must be run now, if any. The caller holds the scheduler's lock."""
        first = self._batches[0]
        if len(self._batches) == 1:
            due = self.due()
            full = first.size >= self._parameters.max_batch_size
            if due is None or (time.monotonic() < due and not full):
                return None
            self._batches.append(_Batch())
        return self._batches.popleft()

    def process(self, batch: _Batch) -> None:
        """Runs a batch; each of its requests gets its rows, or all of them get the error."""
        try:
            self._process(batch)
        except Exception as error:  # any error is the answer to each of these requests
            failure = from_exception(error)
            for task in batch.tasks:
                task.error = failure
        for task in batch.tasks:
            task.done.set()

    def _process(self, batch: _Batch) -> None:
        now = time.monotonic()
        name = ":tensorflow:serving:batching_session:queuing_latency"
        for task in batch.tasks:
            self._scheduler.metrics.observe(name, now - task.enqueued, self._parameters.thread_pool_name)
        deadlines = [task.deadline for task in batch.tasks]
        known = [deadline for deadline in deadlines if deadline is not None]
        if len(known) == len(deadlines) and max(known) <= now:
            raise ServingError("RESOURCE_EXHAUSTED", "Run() timeout exceeded while waiting in batching queue")
        left_s = max(known) - now if len(known) == len(deadlines) else None
        size = self._parameters.padded(batch.size)
        answer = self._run(_merged([task.feeds for task in batch.tasks], size - batch.size), left_s)
        for value in answer.values():
            if not value.ndim:
                raise ServingError("FAILED_PRECONDITION", "Batched output tensor has 0 dimensions")
            if len(value) != size:
                raise ServingError(
                    "FAILED_PRECONDITION",
                    "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the input tensors",
                )
        start = 0
        for task in batch.tasks:
            task.answer = {name: value[start : start + task.size] for name, value in answer.items()}
            start += task.size


def _rows(feeds: Mapping[str, np.ndarray]) -> int:
    if any(not value.ndim for value in feeds.values()):
        raise invalid("Batching input tensors must have at least one dimension")
    sizes = {len(value) for value in feeds.values()}
    if len(sizes) > 1:
        raise invalid("Batching input tensors supplied in a given Run() call must have equal 0th-dimension size")
    return sizes.pop()


def _merged(parts: Sequence[Mapping[str, np.ndarray]], padding: int) -> Arrays:
    merged = {}
    for name, first in parts[0].items():
        values = [part[name] for part in parts]
        if any(value.shape[1:] != first.shape[1:] for value in values):
            raise ServingError(
                "FAILED_PRECONDITION",
                f"Tensors with name '{name}' from different tasks have different shapes and padding is turned off."
                "Set pad_variable_length_inputs to true, or ensure that all tensors with the same name"
                "have equal dimensions starting with the first dim.",
            )
        merged[name] = np.concatenate([*values, *[values[-1][:1]] * padding])
    return merged
