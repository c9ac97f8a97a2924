"""All silos in this process, on its devices: the compiled form's own graphs in TensorFlow sessions.

broadcast = prepare(state)                                server
report_s  = sum over the silo's cohort of work(client)    silo: integers only
            + its share of the noise, where silos add it  silo (secagg)
            + masks                                       silo (secagg)
state     = update(state, sum of reports)                 server
"""

import contextlib
import os
import queue
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_pipeline.errors import TrainingError
from tff_pipeline.learning.process import Compiled
from tff_pipeline.runtime.allocator import keep_freed_memory
from tff_pipeline.runtime.base import (
    Cohorts,
    OnSum,
    RoundResult,
    Shares,
    State,
    named_metrics,
    noise_places,
    share_places,
    with_shares,
)
from tff_pipeline.runtime.clients import Clients
from tff_pipeline.runtime.determinism import require_deterministic
from tff_pipeline.runtime.graphs import SessionGraph, operation_types, rings
from tff_pipeline.runtime.threads import bounded_map
from tff_pipeline.secagg.masking import Party, add_up, introduce

# The learner's sums; everything else the client work overwrites before it reads.
_METRIC_VARIABLES = ("loss", "correct", "instances", "finite")
# What working on clients in parallel may take, and what a worker takes: weights, update and integers of a client, several
# of them at once; 80 bytes a weight were measured when updates were clipped in float64, and are more than enough now.
_SHARE_OF_MEMORY, _BYTES_A_WORKER, _BYTES_A_WEIGHT = 0.25, 100e6, 80


class LocalRuntime:
    """Runs rounds for silos that are all in this process. Making one changes how the process allocates (`allocator`).

    The clients' work runs on `devices`, what the server does on the CPU. With a GPU, both the process is built and the
    runtime is used within `determinism.deterministic_operations(choose_devices(devices))`.

    Args:
      compiled: the process.
      silos: the training clients of each silo.
      devices: "auto" (every GPU, or else the CPU), "CPU", or names such as ["GPU:0"].
      clients_in_parallel: how many clients are worked on at a time on each device; 0 chooses.
      session: identifies the run to the secure sum.

    Raises:
      TrainingError: if a device is not there, or operations on a GPU are not deterministic.
    """

    def __init__(
        self,
        compiled: Compiled,
        silos: Sequence[Clients],
        *,
        devices: str | Sequence[str] = "auto",
        clients_in_parallel: int = 0,
        session: str = "",
    ):
        keep_freed_memory()
        self._compiled = compiled
        self._silos: Mapping[str, Clients] = {silo.name: silo for silo in silos}
        # The noise that comes out of a round is "none supplied": nothing to fetch.
        self._spent = frozenset(noise_places(compiled))
        self.devices = places = choose_devices(devices)
        require_deterministic(operation_types(compiled.form.work), places)
        self._prepare = SessionGraph(compiled.form.prepare)
        self._update = SessionGraph(compiled.form.update, skipped=self._spent)
        dimension = sum(int(np.prod(shape)) for shape in compiled.shapes)
        per_device = clients_in_parallel or _clients_in_parallel(silos[0], places, dimension)
        first = silos[0]
        self._workers: queue.SimpleQueue[SessionGraph] = queue.SimpleQueue()
        self._all_workers = []
        for device in places * per_device:
            worker = SessionGraph(
                compiled.form.work,
                held=True,
                specs=first.specs(),
                batches=first.batches,
                device=device,
                inline=per_device > 1,
            )
            worker.reset_only(_METRIC_VARIABLES)
            worker.note_placement()
            self._all_workers.append(worker)
            self._workers.put(worker)
        self._threads = ThreadPoolExecutor(len(self._all_workers), thread_name_prefix="client")
        # From the form's type: the graphs do not know every shape before they run.
        self._slots = _tensor_types(compiled.form.work.type_signature.result)
        self._rings = rings(compiled.form)
        # A modular sum, which comes last, is that of an aggregator whose noise the silos add.
        self._noised = [len(self._rings) - 1] if share_places(compiled) else []
        self._parties = {name: Party(name, session, noised=self._noised) for name in self._silos}
        introduce(list(self._parties.values()))

    def __enter__(self) -> "LocalRuntime":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def initial_state(self) -> State:
        graph = SessionGraph(self._compiled.initialize)
        try:
            return graph()
        finally:
            graph.close()

    def run_round(
        self,
        state: State,
        cohorts: Cohorts,
        *,
        round_number: int,
        shares: Shares | None = None,
        on_sum: OnSum | None = None,
        on_client: Callable[[], None] = lambda: None,
    ) -> RoundResult:
        sent = self._broadcast(state)

        def reports() -> Iterator[list[np.ndarray]]:
            for name, party in self._parties.items():
                total = self._silo_sum(self._silos[name], cohorts.get(name, ()), on_client)
                if on_sum:
                    on_sum(name, total)
                noise = {place: shares(name) for place in self._noised} if shares else {}
                yield party.mask(total, round_number, noise)

        total = self.receive(reports())
        for place in share_places(self._compiled):
            # The noise is in the sums already; the server says so by a zero where it would add it.
            state = with_shares(self._compiled, state, np.zeros_like(state[place]))
        state, metrics = self._finish(state, total)
        # A masked report is as large as the sum of all.
        return RoundResult(state, metrics, bytes_down=sent, bytes_up=sum(part.nbytes for part in total))

    def receive(self, reports: Iterable[list[np.ndarray]]) -> list[np.ndarray]:
        """The server's side: adds up what the silos send. It is given nothing else, so an observer of it overrides this."""
        return add_up(reports)

    def placement(self) -> dict[str, dict[str, int]]:
        """Where the clients' work so far ran: by device, how many operations of each type one client has there.

        Of every device the first worker that has worked; the devices of workers that have not are left out.
        """
        found: dict[str, dict[str, int]] = {}
        for worker in self._all_workers:
            found |= {device: counts for device, counts in (worker.placement or {}).items() if device not in found}
        return found

    def secure_sums(self, state: State, cohorts: Cohorts) -> list[np.ndarray]:
        """The sum of every secure slot over all cohorts, each in its ring, without noise and masks; the contract tests compare it."""
        self._broadcast(state)
        return add_up(self._silo_sum(silo, cohorts.get(name, ()), lambda: None) for name, silo in self._silos.items())

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        for graph in (self._prepare, self._update, *self._all_workers):
            graph.close()

    def _broadcast(self, state: State) -> int:
        """Sends the round's weights to all workers; returns how many bytes a silo is sent."""
        broadcast = self._prepare(state)
        for worker in self._all_workers:
            worker.hold(broadcast)
        return sum(part.nbytes for part in broadcast)

    def _silo_sum(
        self, silo: Clients, rows: Sequence[int] | np.ndarray, on_client: Callable[[], None]
    ) -> list[np.ndarray]:
        """What happens inside a silo: the sum of its cohort's reports, in the ring. Integer addition: no order matters."""
        total = [np.zeros(shape, ring) for (_, shape), ring in zip(self._slots, self._rings, strict=True)]

        def work(row: int) -> list[np.ndarray]:
            worker = self._workers.get()
            try:
                return worker(fed=silo.feed(row))
            finally:
                self._workers.put(worker)

        for report in bounded_map(self._threads, work, map(int, rows), ahead=2 * len(self._all_workers)):
            for place, part in zip(total, report, strict=True):
                # Of one size, it is reinterpreted, not converted: negative numbers are the ring's upper half.
                same = part.dtype.itemsize == place.dtype.itemsize
                np.add(place, part.view(place.dtype) if same else part.astype(place.dtype), out=place)
            on_client()
        return total

    def _finish(self, state: State, sums: Sequence[np.ndarray]) -> tuple[State, dict[str, float]]:
        # An exact sum may be below zero; one modulo something never is.
        typed = [
            total.view(dtype) if total.dtype.itemsize == dtype.itemsize else total.astype(dtype)
            for total, (dtype, _) in zip(sums, self._slots, strict=True)
        ]
        results = self._update([*state, *typed])
        unset = np.array(np.nan)
        after = [
            np.broadcast_to(unset, state[place].shape) if place in self._spent else results[place]
            for place in range(len(state))
        ]
        return after, named_metrics(self._compiled, results[len(state) :])


def choose_devices(asked: str | Sequence[str]) -> list[str]:
    """The devices to use, as TensorFlow names them ("GPU:0").

    Raises:
      TrainingError: if one that was asked for is not there, naming those that are.
    """
    if asked == "CPU":
        return ["CPU:0"]  # without a look at GPUs, which would take some of their memory
    for device in tf.config.list_physical_devices("GPU"):
        # Otherwise the first to use a GPU, here or in this process before, takes all of its memory.
        with contextlib.suppress(RuntimeError):  # it is in use already
            tf.config.experimental.set_memory_growth(device, True)
    present = [
        device.name.removeprefix("/device:")
        for device in tf.config.list_logical_devices()
        if device.device_type in ("CPU", "GPU")
    ]
    graphics = [name for name in present if name.startswith("GPU")]
    if asked == "auto":
        return graphics or ["CPU:0"]
    wanted = [asked] if isinstance(asked, str) else list(asked)
    missing = [name for name in wanted if name not in present]
    if missing:
        raise TrainingError(
            f"runtime.devices asks for {', '.join(missing)}, which TensorFlow does not see; expected some of {', '.join(present)}. `tff-pipeline doctor` shows what is there."
        )
    return wanted


def _tensor_types(kind: Any) -> list[tuple[Any, tuple[int, ...]]]:
    """dtype and shape of a TFF type's tensors, in TFF's order."""
    if isinstance(kind, tff.types.StructType):
        return [leaf for _, part in tff.structure.to_elements(kind) for leaf in _tensor_types(part)]
    return [(kind.dtype, tuple(kind.shape))]


def _clients_in_parallel(clients: Clients, devices: Sequence[str], dimension: int) -> int:
    """A core for each client, as far as memory goes: many small operations gain little from a second core.

    The machine's whole memory counts, not what is free: the choice must not differ when a run goes on, since the last
    bits of float sums may depend on how many cores share one. A GPU works on one client at a time.
    """
    cores = os.cpu_count() or 1
    if not all(device.startswith("CPU") for device in devices):
        return 1
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    each = _BYTES_A_WORKER + _BYTES_A_WEIGHT * dimension
    return max(1, min(cores, int(memory * _SHARE_OF_MEMORY / each)))
