"""A silo's training clients as the runtimes feed them: what goes into the graph for one client, and its batches there.

The same `batches` builds the dataset inside a session's graph and, eagerly, for TFF's executor, so both see the same.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from tff_pipeline.records import IGNORED, LABELS, LENGTHS, TOKENS, ClientReader, parse_in_graph

# TensorFlow's stubs do not know it.
_ragged: Any = tf.RaggedTensor.from_row_lengths  # pyrefly: ignore[missing-attribute]


def _in_batches(arrays: tuple[tf.Tensor, ...], batch_size: int, epochs: int) -> tf.data.Dataset:
    """Batches of rows, for some epochs, by a pipeline that is quick to make: one is made for each client.

    No `map`: instantiating its function would take longer than training on a small client. No rewriting and no
    autotuning of the pipeline, for the same reason.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    options.experimental_optimization.inject_prefetch = False
    return tf.data.Dataset.from_tensor_slices(arrays).batch(batch_size).repeat(epochs).with_options(options)


class Clients(Protocol):
    """The training clients of one silo."""

    name: str

    def __len__(self) -> int: ...

    def specs(self) -> list[tf.TensorSpec]:
        """Of what `feed` gives."""
        ...

    def feed(self, row: int) -> Sequence[Any]:
        """What one client puts into the graph."""
        ...

    def batches(self, fed: Sequence[tf.Tensor]) -> tf.data.Dataset:
        """The client's batches, from the tensors that were fed: local epochs one after the other, in the record's order."""
        ...


class TextClients:
    """Clients whose serialized records are fed; parsing, padding and batching are in the graph.

    Texts are padded to the client's longest here; the learner cuts a batch to its own longest.

    Args:
      label_map: int64 [labels of the silo], the global index of each.
      token_labels: whether labels belong to tokens (token classification) or to texts.
    """

    def __init__(
        self,
        name: str,
        reader: ClientReader,
        label_map: np.ndarray,
        *,
        pad_id: int,
        batch_size: int,
        epochs: int,
        token_labels: bool,
    ):
        self.name, self._reader, self._label_map = name, reader, label_map
        self._pad_id, self._batch_size, self._epochs, self._token_labels = pad_id, batch_size, epochs, token_labels

    def __len__(self) -> int:
        return len(self._reader)

    def specs(self) -> list[tf.TensorSpec]:
        return [tf.TensorSpec([], tf.string), tf.TensorSpec([None], tf.int64)]

    def feed(self, row: int) -> Sequence[Any]:
        return self._reader.read(row), self._label_map

    def batches(self, fed: Sequence[tf.Tensor]) -> tf.data.Dataset:
        record, label_map = fed
        arrays = parse_in_graph(record)
        known = tf.not_equal(arrays[LABELS], IGNORED)
        labels = tf.where(known, tf.gather(label_map, tf.maximum(arrays[LABELS], 0)), tf.cast(IGNORED, tf.int64))
        labels = tf.cast(labels, tf.int32)
        if self._token_labels:
            labels = _ragged(labels, arrays[LENGTHS]).to_tensor(IGNORED)
        tokens = _ragged(tf.cast(arrays[TOKENS], tf.int32), arrays[LENGTHS]).to_tensor(self._pad_id)
        return _in_batches((tokens, labels), self._batch_size, self._epochs)


class FeatureClients:
    """Clients of a frozen encoder: its features, computed once a run, are fed.

    Args:
      features: float32 [instances, hidden] of all clients one after the other; may be a memory map.
      labels: int32 [instances], global indices.
      starts: int64 [clients + 1], where each client's instances begin.
    """

    def __init__(
        self, name: str, features: np.ndarray, labels: np.ndarray, starts: np.ndarray, *, batch_size: int, epochs: int
    ):
        self.name, self._features, self._labels, self._starts = name, features, labels, starts
        self._batch_size, self._epochs = batch_size, epochs

    def __len__(self) -> int:
        return len(self._starts) - 1

    def specs(self) -> list[tf.TensorSpec]:
        return [tf.TensorSpec([None, self._features.shape[1]], tf.float32), tf.TensorSpec([None], tf.int32)]

    def feed(self, row: int) -> Sequence[Any]:
        own = slice(self._starts[row], self._starts[row + 1])
        return np.asarray(self._features[own]), self._labels[own]

    def batches(self, fed: Sequence[tf.Tensor]) -> tf.data.Dataset:
        return _in_batches(tuple(fed), self._batch_size, self._epochs)
