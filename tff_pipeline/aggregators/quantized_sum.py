"""Quantizes a client's update in few passes over it, and sums quantized updates: a `tff.aggregators` factory.

TFF's `SecureSumFactory` does the same in some fifteen passes, in float64: it finds the least and the largest coordinate,
clamps to a range twice, shifts, scales, rounds, converts; before it the update has to be converted to float64, so that its
norm can be trusted. A client with a handful of short texts spends most of its time on that. Here the update stays float32
until it becomes integers, and one multiplication both clips it and divides it by the quantization step. What makes that safe:

1. `norm_at_least` is a norm with an error bound that holds in whatever order a processor adds.
2. Numbers are truncated toward zero, not rounded, which cannot lengthen a vector. So the step has no part in the sensitivity.
3. Sums are of integers, and exact.

How many levels a clip is divided into is the plan's choice (`privacy.mechanisms.Quantization`): where the sum over all clients
still fits 31 bits it is int32 on all its way, half of what int64 takes to compute, mask, send and add up.

With u = 2**-24, float32's unit roundoff, a client's integers times the step have an L2 norm of at most

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

from tff_pipeline.errors import PrivacyError

# Its decorators and attrs classes are more than a type checker follows.
_TFF: Any = tff
_BLOCK = 256  # B of (1)
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


def clipped_in_steps(tensors: Sequence[tf.Tensor], *, norm: tf.Tensor, clip: tf.Tensor, levels: int) -> list[tf.Tensor]:
    """float32 `tensors` clipped to an L2 norm of `clip`, in units of clip / levels; bounded as (1) says.

    Args:
      tensors: float32, finite.
      norm: as `norm_at_least` gives it.
      clip: C, float64 scalar.
      levels: that a clip is divided into, at most 2**30.
    """
    factor = tf.minimum(float(levels) * tf.minimum(1.0 / clip, 1.0 / norm), _LARGEST_FACTOR)
    factor = tf.cast(factor, tf.float32)
    return [tensor * factor for tensor in tensors]


def clamped_in_steps(tensors: Sequence[tf.Tensor], *, value_range: float, levels: int) -> list[tf.Tensor]:
    """float32 `tensors` with coordinates clamped to [-value_range, value_range], in units of value_range / levels."""
    limit = float(levels)
    return [tf.clip_by_value(tensor * (limit / value_range), -limit, limit) for tensor in tensors]


class QuantizedSumFactory(tff.aggregators.UnweightedAggregationFactory):
    """Sums float32 numbers over clients, each truncated toward zero. No state, no measurements.

    What a client sends for a coordinate is int32 where all sums then are within int32, else int64. The result is float64
    and exact; of more clients than were allowed for it is NaN.

    Args:
      largest: an integer that no number's magnitude is above, at most 2**31. It is added to what is sent, so that that
        is not negative, as TFF asks of secure sums.
      clients: how many take part at most.

    Raises:
      PrivacyError: where the sum would not be exact in float64.
    """

    def __init__(self, *, largest: int, clients: int):
        most = 2 * largest * clients
        if most >= 2**53:
            raise PrivacyError(
                f"a secure sum over {clients} clients of integers up to {largest} does not fit float64 exactly; expected fewer quantization levels."
            )
        self.largest, self._clients = largest, clients
        self.dtype = tf.int32 if most < 2**31 else tf.int64

    def create(self, value_type: Any) -> tff.templates.AggregationProcess:
        bits = (2 * self.largest).bit_length()

        @_TFF.tensorflow.computation(value_type)
        def sent(value: Any) -> Any:
            return tf.nest.map_structure(lambda part: tf.cast(part, self.dtype) + self.largest, value)

        @_TFF.tensorflow.computation(sent.type_signature.result, np.int64)
        def total_of(sums: Any, clients: Any) -> Any:
            return self.centred(sums, clients)

        @_TFF.tensorflow.computation
        def one() -> Any:
            return tf.constant(1, tf.int64)

        @_TFF.federated_computation
        def initialize() -> Any:
            return _TFF.federated_value((), _TFF.SERVER)

        @_TFF.federated_computation(initialize.type_signature.result, _TFF.FederatedType(value_type, _TFF.CLIENTS))
        def following(state: Any, value: Any) -> Any:
            sums = _TFF.federated_secure_sum_bitwidth(_TFF.federated_map(sent, value), bits)
            clients = _TFF.federated_secure_sum_bitwidth(_TFF.federated_eval(one, _TFF.CLIENTS), 1)
            return _TFF.templates.MeasuredProcessOutput(
                state, _TFF.federated_map(total_of, (sums, clients)), _TFF.federated_value((), _TFF.SERVER)
            )

        return _TFF.templates.AggregationProcess(initialize, following)

    def centred(self, sums: Any, clients: tf.Tensor) -> Any:
        """What `clients` (int64 scalar) clients summed, float64, from the sums of what they sent."""

        def summed() -> Any:
            zeros = tf.cast(clients * self.largest, self.dtype)
            return tf.nest.map_structure(lambda total: tf.cast(total - zeros, tf.float64), sums)

        def nothing() -> Any:
            return tf.nest.map_structure(lambda total: tf.fill(total.shape, tf.constant(math.nan, tf.float64)), sums)

        return tf.cond(clients <= self._clients, summed, nothing)
