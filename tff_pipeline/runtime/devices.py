"""The devices that clients' work runs on."""

import contextlib
from collections.abc import Sequence

import tensorflow as tf

from tff_pipeline.errors import TrainingError


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
