"""How an exported version stores its weights: float32 as they were trained, or smaller.

    float32   as trained
    float16   the encoder's matrices as float16 (11 bits of precision), turned back before they are used
    int8      the encoder's matrices as int8 times a float32 scale for each output channel (for each row of the embeddings,
              which are read by row): w = q * s with s = max |w| / 127, so that a weight is off by at most s / 2
              (dynamic range: activations stay float32)

Biases, the norms' weights and the head stay float32: they are a hundredth of the size and what is most sensitive. The
arithmetic is float32 in every case; what is saved is disk, memory and loading, not time.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf

    from tff_pipeline.model.network import Network

_MOST = 127


@dataclasses.dataclass(frozen=True)
class Stored:
    """One variable as it lies in the file; `scale` is float32 of shape [rows, 1] or [1, columns], and only with int8."""

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
    """`values` are float32 in the order of the network's variables."""
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


def _matrices(network: "Network") -> list[Any]:
    return [variable for variable in network.encoder_variables if variable.shape.rank == 2]


class StoredMatrix:
    """Stands in a layer for a float32 variable, and makes it from what is stored, in whatever graph asks for it."""

    def __init__(self, value: "tf.Variable", scale: "tf.Variable | None"):
        import tensorflow as tf

        self._value, self._scale = value, scale
        self.shape, self.dtype = value.shape, tf.float32

    def tensor(self) -> "tf.Tensor":
        return self._restored(self._value, self._scale)

    def sparse_read(self, indices: "tf.Tensor", name: str | None = None) -> "tf.Tensor":
        """What tf.gather calls: only the rows that are read are turned back."""
        import tensorflow as tf

        scale = tf.gather(self._scale, indices) if self._scale is not None else None
        return self._restored(tf.gather(self._value, indices), scale)

    @staticmethod
    def _restored(value: Any, scale: Any) -> "tf.Tensor":
        import tensorflow as tf

        value = tf.cast(value, tf.float32)
        return value if scale is None else value * scale


@contextmanager
def replaced(network: "Network", stored: Sequence[Stored]) -> Iterator[tuple[list[Any], list[Any]]]:
    """Graphs that are traced in the block compute with what is stored.

    Yields:
      The variables to save, in the order of the network's, and the scales.
    """
    import tensorflow as tf

    tf.register_tensor_conversion_function(StoredMatrix, lambda value, *_, **__: value.tensor())
    weights, scales, stand_ins = [], [], {}
    for variable, each in zip(network.variables, stored, strict=True):
        if each.value.dtype == np.float32:
            weights.append(variable)
            continue
        weights.append(tf.Variable(tf.constant(each.value), trainable=False))
        scale = tf.Variable(tf.constant(each.scale), trainable=False) if each.scale is not None else None
        scales += [scale] if scale is not None else []
        stand_ins[variable.ref()] = StoredMatrix(weights[-1], scale)
    places = [
        (layer, name, value)
        for layer in network.transformer.bert.submodules
        for name, value in vars(layer).items()
        if isinstance(value, tf.Variable) and value.ref() in stand_ins
    ]
    if len({value.ref() for *_, value in places}) != len(stand_ins):
        raise RuntimeError(f"{len(stand_ins)} variables are stored smaller, but layers hold {len(places)} of them.")
    for layer, name, value in places:
        vars(layer)[name] = stand_ins[value.ref()]  # past Keras, which would track it
    try:
        yield weights, scales
    finally:
        for layer, name, value in places:
            vars(layer)[name] = value
