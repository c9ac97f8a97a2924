"""Deterministic TensorFlow operations where clients' work runs on a GPU.

A round that is repeated after a crash draws the same noise, so its sum has to be the same to the last bit. On a GPU it
would not be: some of TensorFlow's GPU kernels add numbers in the order in which threads arrive. TensorFlow can be told to
use others, or to fail where it has none. On a CPU the kernels of a client's work are deterministic as they are, and the
setting would only make another graph.
"""

import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import tensorflow as tf

# `tf.config.experimental` can switch it on, but not off again.
from tensorflow.python.framework import config as tensorflow_config

from tff_pipeline.errors import TrainingError

# Their GPU kernels fail where operations must be deterministic. TensorFlow's Python puts others into the graph instead,
# if the setting is on when the graph is made.
_WITHOUT_DETERMINISTIC_KERNEL = frozenset({"SoftmaxCrossEntropyWithLogits", "SparseSoftmaxCrossEntropyWithLogits"})

_lock = threading.Lock()
_blocks: list[object] = []  # one for each block in which the setting is on because of this module


@contextmanager
def deterministic_operations(devices: Sequence[str]) -> Iterator[None]:
    """Makes TensorFlow's operations deterministic within the block, if one of `devices` is a GPU.

    It belongs around both the building of a learning process and its rounds: the setting changes the graph and the
    kernels. It holds for the whole process: within the block, random operations without a seed raise RuntimeError. A
    setting that was on before (TF_DETERMINISTIC_OPS=1) stays on.

    Args:
      devices: as `local.choose_devices` gives them.
    """
    block = object()
    with _lock:
        if _any_gpu(devices) and (_blocks or not tensorflow_config.is_op_determinism_enabled()):
            _blocks.append(block)
            tensorflow_config.enable_op_determinism()
    try:
        yield
    finally:
        with _lock:
            if block in _blocks:
                _blocks.remove(block)
                if not _blocks:
                    tensorflow_config.disable_op_determinism()


def require_deterministic(operations: Collection[str], devices: Sequence[str]) -> None:
    """Refuses, before anything is charged, what could not be repeated on these devices or would fail there in the first round.

    Args:
      operations: the types of operations of the clients' work.
      devices: on which it is to run.

    Raises:
      TrainingError: saying what is missing.
    """
    kinds = sorted({_kind(device) for device in devices}) if len(devices) > 1 else []
    if len(kinds) > 1:
        raise TrainingError(
            f"runtime.devices are of different kinds ({', '.join(kinds)}); expected one kind, since which device works on a client is not known before, and a repeated round must have the same sum to the last bit. No round was run."
        )
    if not _any_gpu(devices):
        return
    expected = "expected both the learning process to be built and the runtime to be used within runtime.determinism.deterministic_operations(devices), since a repeated round must have the same sum to the last bit. No round was run."
    if not tensorflow_config.is_op_determinism_enabled():
        raise TrainingError(
            f"clients' work is to run on {', '.join(devices)} and TensorFlow's operations are not deterministic; {expected}"
        )
    if refused := sorted(_WITHOUT_DETERMINISTIC_KERNEL & set(operations)):
        raise TrainingError(
            f"clients' work has operations without a deterministic kernel on {', '.join(devices)} ({', '.join(refused)}); {expected}"
        )


def _kind(device: str) -> str:
    """ "CPU", or what a GPU is called."""
    if device.startswith("CPU"):
        return "CPU"
    physical = tf.config.list_physical_devices("GPU")[int(device.removeprefix("GPU:"))]
    return str(tf.config.experimental.get_device_details(physical).get("device_name", "GPU"))


def _any_gpu(devices: Sequence[str]) -> bool:
    return any(device.startswith("GPU") for device in devices)
