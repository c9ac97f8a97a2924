"""The client work of a silo: TensorFlow sessions, each of which works on one client at a time, and the sum of what they give."""

import os
import queue
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tff_pipeline.learning.process import Compiled
from tff_pipeline.runtime.base import Broadcast, OnClient
from tff_pipeline.runtime.clients import Clients
from tff_pipeline.runtime.determinism import require_deterministic
from tff_pipeline.runtime.graphs import SessionGraph, operation_types, rings
from tff_pipeline.runtime.threads import bounded_map

# The learner's sums; everything else the client work overwrites before it reads.
_METRIC_VARIABLES = ("loss", "correct", "instances", "finite")
# The part of the memory that working on clients in parallel may take, and what a worker takes: weights, update and integers
# of a client, several of them at once; 80 bytes a weight were measured when updates were clipped in float64, and are more
# than enough now.
_PART_OF_MEMORY, _BYTES_A_WORKER, _BYTES_A_WEIGHT = 0.25, 100e6, 80


class ClientWorkers:
    """Works on clients, several at a time. Silos of one process may use one such pool together: it keeps nothing of a client.

    Args:
      compiled: the process.
      like: clients of the kind that will be worked on.
      devices: as TensorFlow names them ("GPU:0").
      in_parallel: how many clients are worked on at a time on each device; 0 chooses.

    Raises:
      TrainingError: if operations on these devices are not deterministic.
    """

    def __init__(self, compiled: Compiled, like: Clients, *, devices: Sequence[str], in_parallel: int = 0):
        require_deterministic(operation_types(compiled.form.work), devices)
        dimension = sum(int(np.prod(shape)) for shape in compiled.shapes)
        per_device = in_parallel or _clients_in_parallel(like, devices, dimension)
        self._slots, self._rings = compiled.slots, rings(compiled.form)
        self._broadcast: Broadcast | None = None
        self._idle: queue.SimpleQueue[SessionGraph] = queue.SimpleQueue()
        self._graphs = []
        for device in list(devices) * per_device:
            graph = SessionGraph(
                compiled.form.work,
                held=True,
                specs=like.specs(),
                batches=like.batches,
                device=device,
                inline=per_device > 1,
            )
            graph.reset_only(_METRIC_VARIABLES)
            graph.note_placement()
            self._graphs.append(graph)
            self._idle.put(graph)
        self._threads = ThreadPoolExecutor(len(self._graphs), thread_name_prefix="client")

    def sum(
        self,
        broadcast: Broadcast,
        clients: Clients,
        rows: Iterable[int] | np.ndarray,
        on_client: OnClient = lambda: None,
    ) -> list[np.ndarray]:
        """The sum of what these clients send, each slot in its ring. Integer addition: no order matters."""
        self._hold(broadcast)
        total = [np.zeros(slot.shape, ring) for slot, ring in zip(self._slots, self._rings, strict=True)]

        def work(row: int) -> list[np.ndarray]:
            graph = self._idle.get()
            try:
                return graph(fed=clients.feed(row))
            finally:
                self._idle.put(graph)

        for sent in bounded_map(self._threads, work, map(int, rows), ahead=2 * len(self._graphs)):
            for sum_so_far, part in zip(total, sent, strict=True):
                # Of one size, it is reinterpreted, not converted: negative numbers are the ring's upper half.
                same = part.dtype.itemsize == sum_so_far.dtype.itemsize
                added = part.view(sum_so_far.dtype) if same else part.astype(sum_so_far.dtype)
                np.add(sum_so_far, added, out=sum_so_far)
            on_client()
        return total

    def placement(self) -> dict[str, dict[str, int]]:
        """Where the clients' work so far ran: by device, how many operations of each type one client has there.

        Of every device the first worker that has worked; the devices of workers that have not are left out.
        """
        seen: dict[str, dict[str, int]] = {}
        for graph in self._graphs:
            seen |= {device: counts for device, counts in (graph.placement or {}).items() if device not in seen}
        return seen

    def close(self) -> None:
        """Ends threads and sessions."""
        self._threads.shutdown(cancel_futures=True)
        for graph in self._graphs:
            graph.close()

    def _hold(self, broadcast: Broadcast) -> None:
        """Gives every worker the round's weights, once a round."""
        if broadcast is not self._broadcast:
            for graph in self._graphs:
                graph.hold(broadcast.arrays)
            self._broadcast = broadcast


def _clients_in_parallel(clients: Clients, devices: Sequence[str], dimension: int) -> int:
    """A core for each client, as far as memory goes: many small operations gain little from a second core.

    The machine's whole memory counts, not what is free: the choice must not differ when a run goes on, since the last
    bits of float sums may depend on how many cores share one. A GPU works on one client at a time.
    """
    cores = os.cpu_count() or 1
    if not all(device.startswith("CPU") for device in devices):
        return 1
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = _BYTES_A_WORKER + _BYTES_A_WEIGHT * dimension
    return max(1, min(cores, int(memory * _PART_OF_MEMORY / needed)))
