"""The model as TFF trains it: a `tff.learning.models.VariableModel` over token ids, or over a frozen encoder's features.

TFF's `from_keras_model` accepts only tf.keras models, and transformers uses tf-keras, so the wrapper is written here.
Two kinds:

* `TextLearner` trains the whole network, or its adapters and head, on tokens. What is not trained is no part of TFF's
  state and of no broadcast: the graph reads it from files of the run when its variables are initialized, once a session.
* `FeatureLearner` trains a linear head on float32 features; the encoder is frozen, so its output for a text never
  changes and is computed once for each run and silo. For token classification each labelled token is an instance.

Metrics are sums, so that a secure sum can add them up: loss and accuracy over instances, and `finite_clients`, the number
of clients whose update was finite (TFF zeroes the others' updates and resets their metrics). `client_accuracy` is the sum
of the clients' own accuracies in millionths, so that no client counts for more than one: it can be released with noise.
"""

import collections
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_pipeline.artifacts import read_json, staged, write_json
from tff_pipeline.data.records import IGNORED
from tff_pipeline.model.network import Network, replaced_initializers

MILLION = 1_000_000
# TFF builds its graphs with AutoGraph, which rewrites every Python function that it meets: all of Keras and transformers
# here, for half of the time that a process takes to build. A model has no branches on tensors, so nothing needs it.
_as_written = tf.autograph.experimental.do_not_convert
_FILES = "places.json"  # in a folder of frozen weights: the file of each variable, by the variable's index


class _Learner(tff.learning.models.VariableModel):
    """What both kinds share; `input_spec` is (inputs, labels) as tf.TensorSpecs."""

    def __init__(
        self,
        logits: Callable[[tf.Tensor], tf.Tensor],
        trainable: list[tf.Variable],
        inputs: tf.TensorSpec,
        labels: tf.TensorSpec,
    ):
        self._logits, self._trainable, self._spec = logits, trainable, (inputs, labels)
        with tf.init_scope():
            self._loss = tf.Variable(tf.constant(0.0), trainable=False, name="loss")
            self._correct = tf.Variable(tf.constant(0, tf.int64), trainable=False, name="correct")
            self._instances = tf.Variable(tf.constant(0, tf.int64), trainable=False, name="instances")
            self._finite = tf.Variable(tf.constant(0, tf.int64), trainable=False, name="finite")

    trainable_variables = property(lambda self: self._trainable)
    non_trainable_variables = property(lambda self: [])
    local_variables = property(lambda self: [self._loss, self._correct, self._instances, self._finite])
    input_spec = property(lambda self: self._spec)

    @_as_written
    def predict_on_batch(self, batch_input: Any, training: bool = True) -> Any:
        return self._logits(batch_input)

    @_as_written
    def forward_pass(self, batch_input: Any, training: bool = True) -> tff.learning.models.BatchOutput:
        inputs, labels = batch_input
        logits = self._logits(inputs)
        counted = tf.not_equal(labels, IGNORED)
        safe_labels = tf.where(counted, labels, tf.zeros_like(labels))
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=safe_labels, logits=logits)
        losses = tf.where(counted, losses, tf.zeros_like(losses))
        instances = tf.reduce_sum(tf.cast(counted, tf.int64))
        hits = tf.logical_and(counted, tf.equal(tf.argmax(logits, axis=-1, output_type=labels.dtype), safe_labels))
        self._loss.assign_add(tf.reduce_sum(losses))
        self._correct.assign_add(tf.reduce_sum(tf.cast(hits, tf.int64)))
        self._instances.assign_add(instances)
        self._finite.assign(1)
        mean = tf.reduce_sum(losses) / tf.maximum(tf.cast(instances, tf.float32), 1.0)
        return tff.learning.models.BatchOutput(loss=mean, predictions=logits, num_examples=instances)

    @_as_written
    def report_local_unfinalized_metrics(self) -> Any:
        return collections.OrderedDict(
            loss=[self._loss, self._instances],
            accuracy=[self._correct, self._instances],
            instances=[self._instances],
            finite_clients=[self._finite],
            client_accuracy=[self._correct * MILLION // tf.maximum(self._instances, 1)],
        )

    def metric_finalizers(self) -> Any:
        @tf.function(autograph=False)
        def mean(total_and_count: Any) -> tf.Tensor:
            return tf.math.divide_no_nan(
                tf.cast(total_and_count[0], tf.float32), tf.cast(total_and_count[1], tf.float32)
            )

        @tf.function(autograph=False)
        def total(value: Any) -> tf.Tensor:
            return value[0]

        return collections.OrderedDict(
            loss=mean, accuracy=mean, instances=total, finite_clients=total, client_accuracy=total
        )

    @_as_written
    def reset_metrics(self) -> None:
        for variable in self.local_variables:
            variable.assign(tf.zeros_like(variable))


class TextLearner(_Learner):
    """Trains a `Network`. Batches are tokens int32 [batch, length] and labels int32 [batch] or [batch, length].

    Args:
      build: makes the network.
      trainable: which part is trained, as in `model.trainable`.
      frozen: where `freeze` wrote what is not; None if everything is trained.
    """

    def __init__(self, build: Callable[[], Network], *, trainable: str = "full", frozen: Path | None = None):
        files = read_json(frozen / _FILES) if frozen else {}

        def value(index: int) -> tf.Tensor | None:
            file = files.get(str(index))
            return tf.io.parse_tensor(tf.io.read_file(str(frozen / file)), tf.float32) if frozen and file else None

        with replaced_initializers(value):
            network = build()
        self._pad_id, self._token_labels = network.pad_id, network.task == "token_classification"
        labels = tf.TensorSpec([None, None] if self._token_labels else [None], tf.int32)

        def logits(tokens: tf.Tensor) -> tf.Tensor:
            # The table is read as a whole, which copies nothing. A variable whose rows are looked up (ResourceGather, as
            # in transformers) is copied at every later read and assignment: five times a client for a table of words.
            return network(tokens, tf.gather(tf.convert_to_tensor(network.embedding_table), tokens))

        super().__init__(logits, network.trained_variables(trainable), tf.TensorSpec([None, None], tf.int32), labels)

    @_as_written
    def forward_pass(self, batch_input: Any, training: bool = True) -> tff.learning.models.BatchOutput:
        tokens, labels = batch_input
        # Truncated to the longest text of the batch: attention over columns of padding only would be wasted.
        used = tf.reduce_any(tf.not_equal(tokens, self._pad_id), axis=0)
        longest = tf.maximum(1, tf.reduce_max(tf.where(used, tf.range(1, tf.size(used) + 1), 0)))
        labels = labels[:, :longest] if self._token_labels else labels
        return super().forward_pass((tokens[:, :longest], labels), training)


def freeze(build: Callable[[], Network], base: Sequence[np.ndarray], *, trainable: str, directory: Path) -> None:
    """Writes the weights that are not trained, for graphs to read: one file each, and the index of the variable that reads it.

    Variables have no names that two graphs share; the order in which a network makes them is the same each time.

    Args:
      build: makes the network.
      base: all of its weights, in the order of `Network.variables`.
      trainable: which part is trained, as in `model.trainable`.
      directory: where to write.
    """
    with replaced_initializers() as made:
        network = build()
    index_of = {variable.ref(): index for index, variable in enumerate(made)}
    frozen = network.variables[: len(network.variables) - len(network.trained_variables(trainable))]
    with staged(directory, lambda: {"kind": "frozen weights", "format": 1, "trainable": trainable}) as aside:
        files = {}
        for variable, value in zip(frozen, base, strict=False):
            index = index_of[variable.ref()]
            files[str(index)] = f"{index:05d}.tensor"
            (aside / files[str(index)]).write_bytes(tf.io.serialize_tensor(value).numpy())
        write_json(aside / _FILES, files)


class FeatureLearner(_Learner):
    """Trains a linear head. Batches are features float32 [batch, hidden] and labels int32 [batch]."""

    def __init__(self, *, hidden_size: int, labels: int):
        kernel = tf.Variable(tf.zeros([hidden_size, labels]), name="kernel")
        bias = tf.Variable(tf.zeros([labels]), name="bias")
        spec = tf.TensorSpec([None, hidden_size], tf.float32), tf.TensorSpec([None], tf.int32)
        super().__init__(lambda features: tf.matmul(features, kernel) + bias, [kernel, bias], *spec)


class CanaryLearner(_Learner):
    """For audits: weights of `shapes` whose gradient is the mean of the batch's features, float32 [batch, number of weights]."""

    def __init__(self, shapes: Sequence[Sequence[int]]):
        self._sizes = [math.prod(shape) for shape in shapes]
        weights = [tf.Variable(tf.zeros(shape), name=f"weight_{number}") for number, shape in enumerate(shapes)]
        spec = tf.TensorSpec([None, sum(self._sizes)], tf.float32), tf.TensorSpec([None], tf.int32)
        super().__init__(lambda features: features[:, :1], weights, *spec)

    @_as_written
    def forward_pass(self, batch_input: Any, training: bool = True) -> tff.learning.models.BatchOutput:
        features, _ = batch_input
        parts = tf.split(tf.reduce_mean(features, axis=0), self._sizes)
        loss = tf.add_n(
            [
                tf.reduce_sum(part * tf.reshape(weight, [-1]))
                for part, weight in zip(parts, self._trainable, strict=True)
            ]
        )
        instances = tf.shape(features, tf.int64)[0]
        self._instances.assign_add(instances)
        self._finite.assign(1)
        return tff.learning.models.BatchOutput(loss=loss, predictions=features[:, :1], num_examples=instances)
