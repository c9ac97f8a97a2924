"""TFF's own executor: the same learning process, uncompiled, for simulation in CI and as the oracle of the contract tests.

Its secure sum is TFF's plaintext stand-in (`tff.backends.test` says so itself): a simulation, not a protection.
"""

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
import portpicker
import tensorflow as tf
import tensorflow_federated as tff
from tensorflow_federated.python.core.backends.native import compiler as native_compiler
from tensorflow_federated.python.core.backends.test import compiler as test_compiler
from tensorflow_federated.python.core.environments.tensorflow_frontend import tensorflow_computation
from tensorflow_federated.python.core.impl.execution_contexts import sync_execution_context
from tensorflow_federated.python.core.impl.executor_stacks import python_executor_stacks
from tensorflow_federated.python.core.impl.executors import remote_executor, remote_executor_grpc_stub
from tensorflow_federated.python.core.impl.types import type_conversions

from tff_pipeline.errors import TrainingError
from tff_pipeline.learning.process import Compiled
from tff_pipeline.learning.state import ServerState
from tff_pipeline.privacy.round import Round
from tff_pipeline.runtime.base import Charges, Draws, OnClient, RoundResult, named_metrics
from tff_pipeline.runtime.clients import Clients
from tff_pipeline.runtime.graphs import rings

_START_TIMEOUT_S = 60
_PR_SET_PDEATHSIG = 1


class ReferenceRuntime:
    """Runs rounds under TFF's executor, in a worker process that ends with this object or with this process.

    Must be made in the main thread: the kernel ties the worker's life to the thread that started it.

    Args:
      compiled: the process.
      clients: the training clients of each silo.
      draws: of the server and of every silo.
      charges: the silos' ledgers.
    """

    devices: Sequence[str] = ()

    def __init__(self, compiled: Compiled, clients: Sequence[Clients], *, draws: Draws, charges: Charges):
        self._compiled, self._draws, self._charges = compiled, draws, charges
        self._clients: Mapping[str, Clients] = {own.name: own for own in clients}
        self._process, stub = _start_worker()
        self._context = _context(stub)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def initial_state(self) -> ServerState:
        with self._installed():
            return self._state(self._compiled.process.initialize())

    def run_round(self, state: ServerState, at: Round, *, on_client: OnClient = lambda: None) -> RoundResult:
        cohorts: dict[str, np.ndarray] = {}
        for name, own in self._clients.items():
            self._charges.require_charged(name, at)
            cohorts[name] = self._draws.silos[name].cohort(at, len(own))
        data = [self._dataset(name, int(row)) for name, rows in cohorts.items() for row in rows]
        signature: Any = self._compiled.process.next.type_signature
        kind = signature.parameter[0].member
        with self._installed():
            output = self._compiled.process.next(_pack(kind, self._supplied(state, at).arrays), data)
        for _ in data:
            on_client()
        metrics = named_metrics(self._compiled.metric_names, _flatten(output.metrics))
        return RoundResult(self._state(output.state), metrics, cohorts)

    def secure_sums(
        self, state: ServerState, at: Round, cohorts: Mapping[str, Sequence[int] | np.ndarray]
    ) -> list[np.ndarray]:
        """The sum of every secure slot, each in its ring, with every client's `work` run by the executor."""
        form: Any = self._compiled.form
        if self._compiled.layout.rotation is not None:
            state = state.with_rotation(self._draws.server.rotation(at))
        with self._installed():
            broadcast = form.prepare(_pack(form.prepare.type_signature.parameter, state.arrays))
            reports = [
                _flatten(form.work(self._dataset(name, int(row)), broadcast))
                for name in self._clients
                for row in cohorts.get(name, ())
            ]
        return [
            np.add.reduce([np.asarray(part).astype(ring) for part in parts], dtype=ring)
            for ring, parts in zip(rings(form), zip(*reports, strict=True), strict=True)
        ]

    def placement(self) -> dict[str, dict[str, int]]:
        return {}

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def _supplied(self, state: ServerState, at: Round) -> ServerState:
        """The state with what the round is given from outside."""
        layout = self._compiled.layout
        if layout.noise:
            state = state.with_noise(self._draws.server.noise(at, self._compiled.shapes))
        if layout.rotation is not None:
            state = state.with_rotation(self._draws.server.rotation(at))
        if layout.noise_shares is not None:
            # No silo adds its share to a sum here; the simulated server is given their total. Forgotten, the state
            # says "not supplied", and nothing comes out.
            shares = [self._draws.silos[name].noise_share(at) for name in self._clients]
            supplied = [share for share in shares if share is not None]
            if len(supplied) == len(shares):
                state = state.with_noise_shares(np.sum(supplied, axis=0))
        return state

    def _state(self, value: Any) -> ServerState:
        return ServerState(self._compiled.layout, tuple(_flatten(value)))

    def _dataset(self, silo: str, row: int) -> tf.data.Dataset:
        clients = self._clients[silo]
        fed = [tf.constant(value, spec.dtype) for value, spec in zip(clients.feed(row), clients.specs(), strict=True)]
        return clients.batches(fed)

    def _installed(self) -> Any:
        return tff.framework.get_context_stack().install(self._context)


def _start_worker() -> tuple["subprocess.Popen[bytes]", Any]:
    """TFF's worker binary on a free loopback port, and the stub that speaks to it."""
    binary = Path(tff.__file__).parent / "data" / "worker_binary"
    if not os.access(binary, os.X_OK):
        raise TrainingError(
            f"{binary}: TFF's executor is missing or not executable; expected it in the tensorflow-federated wheel. Install the environment again."
        )
    libc = ctypes.CDLL(None)
    port = portpicker.pick_unused_port()
    process = subprocess.Popen(
        [str(binary), f"--port={port}", "--max_concurrent_computation_calls=1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # TFF leaves its worker running when the process that started it dies; the kernel ends ours.
        preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),  # noqa: PLW1509
    )
    unlimited = [
        ("grpc.max_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
    ]
    stub = remote_executor_grpc_stub.RemoteExecutorGrpcStub(grpc.insecure_channel(f"localhost:{port}", unlimited))
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not stub.is_ready:
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            process.wait()
            raise TrainingError(
                f"TFF's executor did not answer on port {port} within {_START_TIMEOUT_S} s (exit code {process.returncode}); expected it to start. Run {binary} by hand to see why."
            )
        time.sleep(0.1)
    return process, stub


def _context(stub: Any) -> Any:
    """What `tff.backends.test.create_sync_test_cpp_execution_context` makes, around our own worker."""

    def executor(cardinalities: Any) -> Any:
        cardinalities.setdefault(tff.CLIENTS, 0)
        remote = remote_executor.RemoteExecutor(stub, stream_structs=False)
        remote.set_cardinalities(cardinalities)
        return remote

    def compile_for_worker(computation: Any) -> Any:
        computation = test_compiler.replace_secure_intrinsics_with_bodies(computation)
        return native_compiler.desugar_and_transform_to_native(computation)

    return sync_execution_context.SyncExecutionContext(
        executor_fn=python_executor_stacks.ResourceManagingExecutorFactory(executor_stack_fn=executor),
        compiler_fn=compile_for_worker,
        transform_args=tensorflow_computation.transform_args,
        transform_result=tensorflow_computation.transform_result,
    )


def _flatten(value: Any) -> list[np.ndarray]:
    """A TFF result's tensors, in TFF's order."""
    if not isinstance(value, tff.structure.Struct):
        value = tff.structure.from_container(value, recursive=True)
    return [np.asarray(leaf) for leaf in tff.structure.flatten(value)]


def _pack(kind: tff.types.Type, values: Sequence[np.ndarray]) -> Any:
    """The reverse of `_flatten` for a type."""
    remaining = iter(values)

    def build(part: tff.types.Type) -> Any:
        if isinstance(part, tff.types.StructType):
            return tff.structure.Struct([(name, build(inner)) for name, inner in tff.structure.to_elements(part)])
        value = np.asarray(next(remaining))
        return value.item() if value.dtype.kind == "S" else value

    return type_conversions.type_to_py_container(build(kind), kind)
