"""The distributed discrete Gaussian mechanism as a `tff.aggregators` factory: clip, rotate, round, sum modulo 2**bits.

Kairouz, Liu and Steinke 2021 (arXiv:2102.06387), algorithms 1 and 2; `privacy.distributed` has the numbers and the proof.

On the client, in float64: the update is clipped to C, padded to a power of two, its signs are flipped at random, it is
multiplied by the Hadamard matrix over its root (so that no coordinate stands out), divided by the quantization step, and rounded
at random to one of the two neighbouring integers. Then the integers are looked at: if their squared norm is above the
plan's bound, the coordinates are truncated toward zero instead, which cannot lengthen a vector; and if that is still above
the bound, which only broken arithmetic could do, the client sends zeros. So the bound holds for what is sent, exactly,
whatever floating point did before.

TFF's own parts are not composed here, for three reasons: its conditional rounding compares norms in float32; its rotation
and rounding are seeded by the clock, so that a repeated round would send other integers under the same noise, and nothing
could be compared; and its clip is in float32.

The signs follow from a public seed in the state. The rounding follows from that and from a fingerprint of the client's own
numbers, so that clients round independently; how it is drawn is for accuracy, the guarantee holds whatever it is.

The noise is not added here but in the silos, to their sums, before these are masked (secagg.masking). Where the executor
has no silos (`reference`, a simulation), the noise shares are an input: the state has a field for their sum. It holds a
value that no noise has until it is filled (with zeros, where the silos have added their noise shares themselves), and while
it does, the result is NaN: TFF's finalizer leaves the weights as they were, and the training loop stops.
"""

import collections
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
from scipy.linalg import hadamard

from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy.distributed import Discretization

ROTATION, SHARES = "public_rotation", "silo_noise"  # fields of the state
# Its decorators and attrs classes are more than a type checker follows.
_TFF: Any = tff
_FORGOTTEN = np.iinfo(np.int64).min
_FACTOR = 6  # log2 of the size of the matrices that a large Hadamard matrix is applied as


class DistributedDiscreteGaussianFactory(tff.aggregators.UnweightedAggregationFactory):
    """Sums updates of `shapes` over clients as integers, divides by `denominator`.

    State: `public_rotation`, int64 [2], the seed of the signs; `silo_noise`, int64 [length], the silos' noise shares if
    they are not in the sum yet, zeros if they are.
    """

    def __init__(self, discretization: Discretization, *, denominator: float, shapes: Sequence[Sequence[int]]):
        coordinates = sum(math.prod(shape) for shape in shapes)
        if coordinates != discretization.dimension:
            raise PrivacyError(
                f"the weights have {coordinates} coordinates, the plan counts on {discretization.dimension}; expected as many. Was the plan made for another model?"
            )
        self._discretization, self._denominator = discretization, denominator
        self._shapes = [tuple(shape) for shape in shapes]

    def create(self, value_type: Any) -> tff.templates.AggregationProcess:
        discretization, shapes, denominator = self._discretization, self._shapes, self._denominator

        @_TFF.tensorflow.computation
        def unset() -> Any:
            return collections.OrderedDict(
                [
                    (ROTATION, tf.zeros([2], tf.int64)),
                    (SHARES, tf.fill([discretization.length], tf.constant(_FORGOTTEN, tf.int64))),
                ]
            )

        @_TFF.tensorflow.computation(unset.type_signature.result)
        def seed_of(state: Any) -> Any:
            return state[ROTATION]

        @_TFF.tensorflow.computation(value_type, seed_of.type_signature.result)
        def sent(value: Any, seed: Any) -> Any:
            return encode(tf.nest.flatten(value), seed, discretization)

        @_TFF.tensorflow.computation(unset.type_signature.result, sent.type_signature.result)
        def result_of(state: Any, total: Any) -> Any:
            noise = state[SHARES]
            # Not `==`, which in the graphs that TFF makes asks whether they are one object.
            forgotten = tf.reduce_any(tf.equal(noise, _FORGOTTEN))
            noised = total + tf.where(forgotten, tf.zeros_like(noise), noise)
            update = decode(noised, state[ROTATION], discretization) / denominator
            update = tf.where(forgotten, tf.constant(math.nan, tf.float64), update)
            parts = tf.split(tf.cast(update, tf.float32), [math.prod(shape) for shape in shapes])
            return [tf.reshape(part, shape) for part, shape in zip(parts, shapes, strict=True)]

        @_TFF.federated_computation
        def initialize() -> Any:
            return _TFF.federated_eval(unset, _TFF.SERVER)

        @_TFF.federated_computation(initialize.type_signature.result, _TFF.FederatedType(value_type, _TFF.CLIENTS))
        def following(state: Any, value: Any) -> Any:
            seed = _TFF.federated_broadcast(_TFF.federated_map(seed_of, state))
            total = _TFF.backends.mapreduce.federated_secure_modular_sum(
                _TFF.federated_map(sent, (value, seed)), discretization.modulus
            )
            return _TFF.templates.MeasuredProcessOutput(
                _TFF.federated_eval(unset, _TFF.SERVER),
                _TFF.federated_map(result_of, (state, total)),
                _TFF.federated_value((), _TFF.SERVER),
            )

        return _TFF.templates.AggregationProcess(initialize, following)


def encode(update: Sequence[tf.Tensor], seed: tf.Tensor, discretization: Discretization) -> tf.Tensor:
    """A client's integers modulo 2**bits, int64 [length], for its update (float tensors)."""
    flat = tf.concat([tf.reshape(tf.cast(part, tf.float64), [-1]) for part in update], axis=0)
    in_steps = flat / discretization.step
    norm = tf.linalg.norm(in_steps)
    # A norm of 0 divides to 0 here, and 0 times the zero vector is the vector.
    clipped = in_steps * tf.minimum(
        tf.constant(1.0, tf.float64), tf.math.divide_no_nan(tf.constant(discretization.clip_in_steps, tf.float64), norm)
    )
    padded = tf.concat([clipped, tf.zeros([discretization.length - discretization.dimension], tf.float64)], axis=0)
    rotated = _hadamard(_signs(seed, discretization.length) * padded, discretization.length)
    chosen = _fit(_rounded_at_random(rotated, seed), _truncated(rotated), discretization)
    return tf.math.floormod(chosen, discretization.modulus)


def decode(total: tf.Tensor, seed: tf.Tensor, discretization: Discretization) -> tf.Tensor:
    """The sum in units of the update, float64 [dimension], for the integers of a sum modulo 2**bits."""
    half = discretization.modulus // 2
    centred = tf.cast(tf.math.floormod(total + half, discretization.modulus) - half, tf.float64)
    return discretization.step * rotated_back(centred, seed, discretization)


def rotated_back(values: tf.Tensor, seed: tf.Tensor, discretization: Discretization) -> tf.Tensor:
    """The coordinates of the update, float64 [dimension], for rotated ones, float64 [length], in the same unit."""
    return (_signs(seed, discretization.length) * _hadamard(values, discretization.length))[: discretization.dimension]


def _fit(rounded: tf.Tensor, shorter: tf.Tensor, discretization: Discretization) -> tf.Tensor:
    """The first of the two float vectors of integers whose squared norm is within the bound, or zeros; int64."""

    def within(vector: tf.Tensor) -> tf.Tensor:
        # Float64 first, so that the exact sum of squares cannot overflow. NaN fails it.
        small = tf.reduce_sum(tf.square(vector)) <= 2.0 * discretization.sensitivity_squared
        exact = tf.cast(tf.where(small, vector, tf.zeros_like(vector)), tf.int64)
        return tf.logical_and(small, tf.reduce_sum(tf.square(exact)) <= discretization.sensitivity_squared)

    best = tf.where(within(rounded), rounded, tf.where(within(shorter), shorter, tf.zeros_like(shorter)))
    return tf.cast(best, tf.int64)


def _rounded_at_random(values: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Each up or down, by its own probability, so that the mean is the value."""
    own = tf.bitcast(tf.fingerprint(values[tf.newaxis])[0], tf.int64)
    uniform = tf.random.stateless_uniform(
        values.shape, seed=tf.stack([tf.bitwise.bitwise_xor(own, seed[0]), ~seed[1]]), dtype=tf.float64, alg="philox"
    )
    floor = tf.floor(values)
    return floor + tf.cast(uniform < values - floor, tf.float64)


def _truncated(values: tf.Tensor) -> tf.Tensor:
    return tf.sign(values) * tf.floor(tf.abs(values))


def _signs(seed: tf.Tensor, length: int) -> tf.Tensor:
    bits = tf.random.stateless_uniform([length], seed=seed, minval=None, maxval=None, dtype=tf.int32, alg="philox")
    return tf.cast(1 - 2 * tf.bitwise.bitwise_and(bits, 1), tf.float64)


def _hadamard(values: tf.Tensor, length: int) -> tf.Tensor:
    """Sylvester's Hadamard matrix times `values`, over the root of the length: a rotation that is its own inverse.

    The matrix is a Kronecker product of small ones. Each is applied along the last axis, which then becomes the first, so
    that after all of them the axes are in their order again.
    """
    left = length.bit_length() - 1  # the log2
    while left:
        # Of about equal sizes: 25 is 5 + 5 + 5 + 5 + 5, not 6 + 6 + 6 + 6 + 1.
        step = left // math.ceil(left / _FACTOR)
        size, left = 2**step, left - step
        matrix = tf.constant(hadamard(size) / math.sqrt(size), tf.float64)
        values = tf.transpose(tf.linalg.matmul(tf.reshape(values, [length // size, size]), matrix))
    return tf.reshape(values, [length])
