"""A silo's training clients as the runtimes feed them: what goes into the graph for one client, and its batches there.

The same `batches` builds the dataset inside a session's graph and, eagerly, for TFF's executor, so both see the same.

With `privacy.unit = "silo"` a silo is one client that has all of its clients' examples (`TextSilo`, `FeatureSilo`). They are
read from the silo's files inside the graph, so that memory does not grow with the silo. A batch takes its examples from as
many clients as it has, in turns: in the same order in every round, and on both runtimes. (`Dataset.shuffle` gives another
order under TFF's executor, its seed notwithstanding.)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from tff_pipeline.data.records import IGNORED, LABELS, LENGTHS, TOKENS, ClientReader, parse_in_graph

# TensorFlow's stubs do not know it.
_ragged: Any = tf.RaggedTensor.from_row_lengths  # pyrefly: ignore[missing-attribute]


def _in_batches(arrays: tuple[tf.Tensor, ...], batch_size: int, epochs: int) -> tf.data.Dataset:
    """Batches of rows, for some epochs, by a pipeline that is quick to make: one is made for each client.

    No `map`: instantiating its function would take longer than training on a small client. No rewriting and no
    autotuning of the pipeline, for the same reason.
    """
    return tf.data.Dataset.from_tensor_slices(arrays).batch(batch_size).repeat(epochs).with_options(_plain())


def _plain() -> tf.data.Options:
    """Neither rewriting nor autotuning."""
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    options.experimental_optimization.inject_prefetch = False
    return options


class Clients(Protocol):
    """The training clients of one silo."""

    name: str

    def __len__(self) -> int: ...

    def specs(self) -> list[tf.TensorSpec]:
        """Of what `feed` gives."""
        ...

    def feed(self, row: int) -> Sequence[Any]:
        """What one client puts into the graph.

        Raises:
          IndexError: if no client has this index.
        """
        ...

    def batches(self, fed: Sequence[tf.Tensor]) -> tf.data.Dataset:
        """The client's batches, from the tensors that were fed: local epochs one after the other, in the record's order."""
        ...


def _refuse_unknown(clients: Clients, row: int) -> None:
    """A negative index would otherwise be another client, or an empty one."""
    if not 0 <= row < len(clients):
        raise IndexError(f"silo {clients.name!r} has no client {row}; expected 0 to {len(clients) - 1}")


class _Texts:
    """What reads texts and their labels from records, whosever they are."""

    def __init__(
        self, name: str, label_map: np.ndarray, *, pad_id: int, batch_size: int, epochs: int, token_labels: bool
    ):
        self.name, self._label_map = name, label_map
        self._pad_id, self._batch_size, self._epochs, self._token_labels = pad_id, batch_size, epochs, token_labels

    def _examples(self, record: tf.Tensor, label_map: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Tokens int32 [n, longest] and labels int32 [n] or [n, longest] of a record's examples."""
        arrays = parse_in_graph(record)
        known = tf.not_equal(arrays[LABELS], IGNORED)
        labels = tf.where(known, tf.gather(label_map, tf.maximum(arrays[LABELS], 0)), tf.cast(IGNORED, tf.int64))
        labels = tf.cast(labels, tf.int32)
        if self._token_labels:
            labels = _ragged(labels, arrays[LENGTHS]).to_tensor(IGNORED)
        return _ragged(tf.cast(arrays[TOKENS], tf.int32), arrays[LENGTHS]).to_tensor(self._pad_id), labels


class TextClients(_Texts):
    """Clients whose serialized records are fed; parsing, padding and batching are in the graph.

    Texts are padded to the client's longest here; the learner cuts a batch to its own longest. Neither depends on another
    client, as nothing here may: what a client returns has to be the same, to the last bit, whoever else takes part.

    Args:
      label_map: int64 [labels of the silo], the global index of each.
      options: of all that reads texts: pad_id, batch_size, epochs, and token_labels, whether labels belong to tokens (token
        classification) or to texts.
    """

    def __init__(self, name: str, reader: ClientReader, label_map: np.ndarray, **options: Any):
        super().__init__(name, label_map, **options)
        self._reader = reader

    def __len__(self) -> int:
        return len(self._reader)

    def specs(self) -> list[tf.TensorSpec]:
        return [tf.TensorSpec([], tf.string), tf.TensorSpec([None], tf.int64)]

    def feed(self, row: int) -> Sequence[Any]:
        _refuse_unknown(self, row)
        return self._reader.read(row), self._label_map

    def batches(self, fed: Sequence[tf.Tensor]) -> tf.data.Dataset:
        record, label_map = fed
        return _in_batches(self._examples(record, label_map), self._batch_size, self._epochs)


class TextSilo(_Texts):
    """A whole silo as one client: the names of its files are fed.

    Args:
      shards: the files of its training clients.
      label_map, options: as of `TextClients`.
    """

    def __init__(self, name: str, shards: Sequence[Path], label_map: np.ndarray, **options: Any):
        super().__init__(name, label_map, **options)
        self._shards = np.array([str(path) for path in shards], object)

    def __len__(self) -> int:
        return 1

    def specs(self) -> list[tf.TensorSpec]:
        return [tf.TensorSpec([None], tf.string), tf.TensorSpec([None], tf.int64)]

    def feed(self, row: int) -> Sequence[Any]:
        _refuse_unknown(self, row)
        return self._shards, self._label_map

    def batches(self, fed: Sequence[tf.Tensor]) -> tf.data.Dataset:
        shards, label_map = fed
        examples = tf.data.TFRecordDataset(shards).interleave(
            lambda record: tf.data.Dataset.from_tensor_slices(self._examples(record, label_map)),
            cycle_length=self._batch_size,
        )
        lengths = [None], [None] if self._token_labels else []
        padding = tf.constant(self._pad_id, tf.int32), tf.constant(IGNORED, tf.int32)
        in_batches = examples.padded_batch(self._batch_size, lengths, padding)
        return in_batches.repeat(self._epochs).with_options(_plain())


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
        _refuse_unknown(self, row)
        own = slice(self._starts[row], self._starts[row + 1])
        return np.asarray(self._features[own]), self._labels[own]

    def batches(self, fed: Sequence[tf.Tensor]) -> tf.data.Dataset:
        return _in_batches(tuple(fed), self._batch_size, self._epochs)


class FeatureSilo(FeatureClients):
    """A whole silo of a frozen encoder as one client: where its features lie is fed, its labels, and where clients begin.

    Its features are a memory map.
    """

    def __len__(self) -> int:
        return 1

    def specs(self) -> list[tf.TensorSpec]:
        return [
            tf.TensorSpec([], tf.string),
            tf.TensorSpec([], tf.int64),
            tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([None], tf.int64),
        ]

    def feed(self, row: int) -> Sequence[Any]:
        _refuse_unknown(self, row)
        features: Any = self._features
        return str(features.filename), np.int64(features.offset), self._labels, self._starts

    def batches(self, fed: Sequence[tf.Tensor]) -> tf.data.Dataset:
        path, offset, labels, starts = fed
        width = self._features.shape[1]
        size = 4 * width

        def examples_of(start: tf.Tensor, end: tf.Tensor) -> tf.data.Dataset:
            after = size * (tf.size(labels, tf.int64) - end)
            rows = tf.data.FixedLengthRecordDataset(path, size, header_bytes=offset + size * start, footer_bytes=after)
            decoded = rows.map(lambda row: tf.ensure_shape(tf.io.decode_raw(row, tf.float32), [width]))
            return tf.data.Dataset.zip((decoded, tf.data.Dataset.from_tensor_slices(labels[start:end])))

        clients = tf.data.Dataset.from_tensor_slices((starts[:-1], starts[1:]))
        examples = clients.interleave(examples_of, cycle_length=self._batch_size)
        return examples.batch(self._batch_size).repeat(self._epochs).with_options(_plain())
