"""Stores an exported version's weights: as they were trained in float32, or smaller.

    float32   as trained
    float16   the encoder's matrices as float16 (11 bits of precision), converted to float32 before they are used
    int8      the encoder's matrices as int8 times a float32 scale for each output channel (for each row of the embeddings,
              which are read by row): w = q * s with s = max |w| / 127, so that a weight is off by at most s / 2
              (dynamic range: activations stay float32)

Biases, the norms' weights and the head stay float32: they are a hundredth of the size, and the most sensitive to rounding.
The arithmetic is float32 in every case; smaller weights save disk, memory and loading time, and no time of a request.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf

    from tff_pipeline.model.network import Network

_MOST = 127


@dataclasses.dataclass(frozen=True)
class Stored:
    """One variable as the file stores it; `scale` is float32 of shape [rows, 1] or [1, columns], and only with int8."""

    value: np.ndarray
    scale: np.ndarray | None = None

    @property
    def restored(self) -> np.ndarray:
        """float32: what the graph computes with."""
        value = self.value.astype(np.float32)
        return value if self.scale is None else value * self.scale

    @property
    def size(self) -> int:
        """Bytes."""
        return self.value.nbytes + (self.scale.nbytes if self.scale is not None else 0)


def store(network: "Network", values: Sequence[np.ndarray], kind: str) -> list[Stored]:
    """How each variable is stored; `values` are float32 in the order of the network's variables."""
    matrices = {variable.ref() for variable in _matrices(network)} if kind != "float32" else set()
    return [
        _smaller(value, kind, by_row="/embeddings/" in variable.name) if variable.ref() in matrices else Stored(value)
        for variable, value in zip(network.variables, values, strict=True)
    ]


def _smaller(value: np.ndarray, kind: str, *, by_row: bool) -> Stored:
    if kind == "float16":
        return Stored(value.astype(np.float16))
    largest = np.abs(value).max(axis=1 if by_row else 0, keepdims=True)
    scale = (np.where(largest > 0, largest, 1) / _MOST).astype(np.float32)
    return Stored(np.clip(np.rint(value / scale), -_MOST, _MOST).astype(np.int8), scale)


def _matrices(network: "Network") -> list["tf.Variable"]:
    return [variable for variable in network.encoder_variables if variable.shape.rank == 2]


class StoredMatrix:
    """Takes a float32 variable's place in a layer, and restores its value in each graph that uses it."""

    def __init__(self, value: "tf.Variable", scale: "tf.Variable | None"):
        import tensorflow as tf

        self._value, self._scale = value, scale
        self.shape, self.dtype = value.shape, tf.float32

    def tensor(self) -> "tf.Tensor":
        return self._restored(self._value, self._scale)

    def sparse_read(self, indices: "tf.Tensor", name: str | None = None) -> "tf.Tensor":
        """What tf.gather calls: restores only the rows that are read."""
        import tensorflow as tf

        scale = tf.gather(self._scale, indices) if self._scale is not None else None
        return self._restored(tf.gather(self._value, indices), scale)

    @staticmethod
    def _restored(value: "tf.Tensor | tf.Variable", scale: "tf.Tensor | tf.Variable | None") -> "tf.Tensor":
        import tensorflow as tf

        value = tf.cast(value, tf.float32)
        return value if scale is None else value * scale


@contextmanager
def replaced(network: "Network", stored: Sequence[Stored]) -> Iterator[tuple[list["tf.Variable"], list["tf.Variable"]]]:
    """Graphs that are traced in the block compute with the stored values.

    Yields:
      The variables to save, in the order of the network's, and the scales.
    """
    import tensorflow as tf

    tf.register_tensor_conversion_function(StoredMatrix, lambda value, *_, **__: value.tensor())
    weights, scales, stand_ins = [], [], {}
    for variable, weight in zip(network.variables, stored, strict=True):
        if weight.value.dtype == np.float32:
            weights.append(variable)
            continue
        weights.append(tf.Variable(tf.constant(weight.value), trainable=False))
        scale = tf.Variable(tf.constant(weight.scale), trainable=False) if weight.scale is not None else None
        scales += [scale] if scale is not None else []
        stand_ins[variable.ref()] = StoredMatrix(weights[-1], scale)
    attributes = [
        (layer, name, value)
        for layer in network.transformer.bert.submodules
        for name, value in vars(layer).items()
        if isinstance(value, tf.Variable) and value.ref() in stand_ins
    ]
    if len({value.ref() for *_, value in attributes}) != len(stand_ins):
        raise RuntimeError(f"{len(stand_ins)} variables are stored smaller, but layers have {len(attributes)} of them.")
    for layer, name, value in attributes:
        vars(layer)[name] = stand_ins[value.ref()]  # past Keras, which would track it
    try:
        yield weights, scales
    finally:
        for layer, name, value in attributes:
            vars(layer)[name] = value
