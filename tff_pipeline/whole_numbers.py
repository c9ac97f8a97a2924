"""A client's update as whole numbers, in few passes over it, and their sum as a `tff.aggregators` factory.

TFF's `SecureSumFactory` does the same in some fifteen passes, in float64: it finds the least and the largest coordinate,
cuts to a range twice, shifts, scales, rounds, converts; before it the update has to be converted to float64, so that its
norm can be trusted. A client with a handful of short texts spends most of its time on that. Here the update stays float32
until it is whole, and one multiplication both clips it and expresses it in quanta. What makes that safe:

1. `norm_at_least` is a norm with an error bound that holds in whatever order a processor adds.
2. Numbers are cut towards zero, not rounded, which cannot lengthen a vector. So the quantum has no part in the sensitivity.
3. Sums are of integers, and exact.

With u = 2**-24, float32's unit roundoff, a client's whole numbers times the quantum have an L2 norm of at most

    C (1 - u)**-(B/2 + 4) < C (1 + 2**-16)        for blocks of B = 256 coordinates:                                  (1)

B/2 + 1 from the norm of a block (a product and B - 1 additions on the way of each term, of which the root takes half, and
the root itself), one from the factor's conversion to float32, one from the product with it; all that float64 rounds, on
the way to the noised sum too, is less than one more.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

# Its decorators and attrs classes are more than a type checker follows.
_TFF: Any = tff
QUANTA = 2.0**30  # of which a clip, or a range, is made
_BLOCK = 256  # B of (1)
# Of what a client sends for a coordinate: numbers are sent with half of 2**32 added, so that none is negative.
_BITS = 32
_ZERO = 2 ** (_BITS - 1)
# float32 products below this may have become 0 (processors that flush): coordinates below its root.
_LEAST_SQUARE = 2.0**-126
_LARGEST_FACTOR = 2.0**100  # far within float32; a smaller factor than asked for is a shorter update


def norm_at_least(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """The L2 norm over all float32 `tensors`, float64 scalar, at least (1 - 2**-24)**(B/2 + 1) of the true one.

    One pass. Sums of squares are float32 within blocks of at most B coordinates, whose error is bounded whatever the order
    of the additions (Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 4.2), and float64 beyond. It
    is infinite where a square is too large for float32: then nothing of the update is sent.
    """
    sizes = [tensor.shape.num_elements() for tensor in tensors]
    blocks = []
    for tensor, size in zip(tensors, sizes, strict=True):
        block = next(length for length in range(_BLOCK, 0, -1) if size % length == 0)
        blocks.append(tf.math.reduce_euclidean_norm(tf.reshape(tensor, [-1, block]), axis=1))
    flushed = math.sqrt(_LEAST_SQUARE * sum(sizes))
    return tf.sqrt(2.0 * tf.nn.l2_loss(tf.cast(tf.concat(blocks, axis=0), tf.float64))) + flushed


def in_quanta(tensors: Sequence[tf.Tensor], *, norm: tf.Tensor, clip: tf.Tensor) -> list[tf.Tensor]:
    """float32 `tensors` clipped to an L2 norm of `clip`, in units of clip / QUANTA; bounded as (1) says.

    Args:
      tensors: float32, finite.
      norm: as `norm_at_least` gives it.
      clip: C, float64 scalar.
    """
    factor = tf.minimum(QUANTA * tf.minimum(1.0 / clip, 1.0 / norm), _LARGEST_FACTOR)
    factor = tf.cast(factor, tf.float32)
    return [tensor * factor for tensor in tensors]


def cut(tensors: Sequence[tf.Tensor], *, value_range: float) -> list[tf.Tensor]:
    """float32 `tensors` with coordinates cut to [-value_range, value_range], in units of value_range / QUANTA."""
    return [tf.clip_by_value(tensor * (QUANTA / value_range), -QUANTA, QUANTA) for tensor in tensors]


class WholeNumberSumFactory(tff.aggregators.UnweightedAggregationFactory):
    """Sums float32 numbers over clients, the digits behind the point cut off. No state, no measurements.

    Their magnitude must be below 2**31. The sum is float64, and exact below 2**21 clients, where no sum of what is sent
    reaches 2**53.
    """

    def create(self, value_type: Any) -> tff.templates.AggregationProcess:
        @_TFF.tensorflow.computation(value_type)
        def sent(value: Any) -> Any:
            return tf.nest.map_structure(lambda part: tf.cast(part, tf.int64) + _ZERO, value)

        @_TFF.tensorflow.computation(sent.type_signature.result, np.int64)
        def total_of(sums: Any, clients: Any) -> Any:
            return tf.nest.map_structure(lambda total: centred(total, clients), sums)

        @_TFF.tensorflow.computation
        def one() -> Any:
            return tf.constant(1, tf.int64)

        @_TFF.federated_computation
        def initialize() -> Any:
            return _TFF.federated_value((), _TFF.SERVER)

        @_TFF.federated_computation(initialize.type_signature.result, _TFF.FederatedType(value_type, _TFF.CLIENTS))
        def following(state: Any, value: Any) -> Any:
            sums = _TFF.federated_secure_sum_bitwidth(_TFF.federated_map(sent, value), _BITS)
            clients = _TFF.federated_secure_sum_bitwidth(_TFF.federated_eval(one, _TFF.CLIENTS), 1)
            return _TFF.templates.MeasuredProcessOutput(
                state, _TFF.federated_map(total_of, (sums, clients)), _TFF.federated_value((), _TFF.SERVER)
            )

        return _TFF.templates.AggregationProcess(initialize, following)


def centred(total: tf.Tensor, clients: tf.Tensor) -> tf.Tensor:
    """The sum of what some clients (int64 scalar) counted, float64, for that of what they sent (int64)."""
    return tf.cast(total, tf.float64) - tf.cast(clients, tf.float64) * _ZERO
