"""Optimizers that TFF lacks, or has with a mistake: FedProx's pull on a client, and gradient descent on a few rows of a table."""

import collections
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff


class Proximal(tff.learning.optimizers.Optimizer):
    """A client's optimizer with FedProx's pull towards where the client started (Li et al. 2020, equation 2).

    Adds strength * (w - w_start) to the gradient. `tff.learning.algorithms.build_*_fed_prox` is not used: in TFF 0.87 it
    adds strength * (w_start - w), which pushes the weights away (tests/training/test_job.py measures both).
    """

    def __init__(self, inner: Any, strength: float):
        self._inner, self._strength = inner, strength

    def initialize(self, specs: Any) -> Any:
        start = tf.nest.map_structure(lambda spec: tf.zeros(spec.shape, spec.dtype), specs)
        return collections.OrderedDict(inner=self._inner.initialize(specs), start=start, started=tf.constant(False))

    def next(self, state: Any, weights: Any, gradients: Any) -> Any:
        # The weights of the first step are where the client started; before that they are not known here.
        start = tf.nest.map_structure(lambda kept, now: tf.where(state["started"], kept, now), state["start"], weights)
        pulled = tf.nest.map_structure(lambda g, w, s: g + self._strength * (w - s), gradients, weights, start)
        inner, updated = self._inner.next(state["inner"], weights, pulled)
        return collections.OrderedDict(inner=inner, start=start, started=tf.constant(True)), updated

    def get_hparams(self, state: Any) -> Any:
        return self._inner.get_hparams(state["inner"])

    def set_hparams(self, state: Any, hparams: Any) -> Any:
        return collections.OrderedDict(state, inner=self._inner.set_hparams(state["inner"], hparams))


class SparseSgd(tff.learning.optimizers.Optimizer):
    """TFF's gradient descent without momentum, but for weights of which only some rows have a gradient: an embedding's.

    TFF's makes such a gradient as large as the table, for a few words of a client. Here the other rows are left alone.
    """

    def __init__(self, learning_rate: float):
        self._dense = tff.learning.optimizers.build_sgdm(learning_rate)

    def initialize(self, specs: Any) -> Any:
        return self._dense.initialize(specs)

    def next(self, state: Any, weights: Any, gradients: Any) -> Any:
        rate = state[tff.learning.optimizers.LEARNING_RATE_KEY]

        def descended(weight: tf.Tensor, gradient: Any) -> tf.Tensor:
            if isinstance(gradient, tf.IndexedSlices):
                rows = gradient.indices[:, tf.newaxis]
                return tf.tensor_scatter_nd_sub(weight, rows, rate * gradient.values)
            return self._dense.next(state, weight, gradient)[1]

        return state, tf.nest.map_structure(descended, weights, gradients)

    def get_hparams(self, state: Any) -> Any:
        return self._dense.get_hparams(state)

    def set_hparams(self, state: Any, hparams: Any) -> Any:
        return self._dense.set_hparams(state, hparams)
