"""From the privacy plan to a `tff.aggregators` factory: clip on the client, secure sum, noise at the server, divide.

The noise is not drawn in the graph: TensorFlow's stateful generators are seeded with 32 bits. It is an input. The
aggregator's state has a place for it, which the training loop fills before every round with numbers from the operating
system's generator, and which is NaN otherwise: the sum of a round whose noise was forgotten is NaN, TFF's finalizer
leaves the weights as they were, and the training loop stops. Nothing without noise comes out.
"""

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
import tensorflow_privacy as tfp

from tff_pipeline.integer_aggregation import DistributedDiscreteGaussianFactory
from tff_pipeline.privacy.accounting import event_unknown_to_graph
from tff_pipeline.privacy.plan import PrivacyPlan

NOISE = "supplied_noise"  # the field of _State
_State: Any = collections.namedtuple("_State", "supplied_noise")


class SuppliedNoiseSumQuery(tfp.SumAggregationDPQuery):
    """Clips a record to an L2 norm and adds noise from its state to the sum.

    Everything before the noise is float64, or integers. A float32 sum of n clients would be off by up to n times
    2**-24 of the clip, differently with one client more: rounding that the noise would have to cover. So the clipped
    record leaves here as float64; the secure sum quantises it, adds integers, and gives back float64, exactly. Sum and
    noise are added in float64 and rounded to multiples of `grain`, so that the low-order bits of a float Gaussian never
    leave (Mironov 2012, "On significance of the least significant bits for differential privacy"). Only then the
    result becomes float32 again.

    Args:
      clip_norm: the L2 bound C, or None for no clipping.
      grain: a power of two, far below the noise's standard deviation; 0 for no rounding.
      shapes: of the record's tensors.
    """

    def __init__(self, *, clip_norm: float | None, grain: float, shapes: Sequence[Sequence[int]]):
        self._clip_norm, self._grain, self._shapes = clip_norm, grain, [list(shape) for shape in shapes]

    def _unset(self) -> Any:
        return _State([tf.fill(shape, tf.constant(np.nan, tf.float64)) for shape in self._shapes])

    def initial_global_state(self) -> Any:
        return self._unset()

    def derive_sample_params(self, global_state: Any) -> Any:
        return ()

    def initial_sample_state(self, template: Any = None) -> Any:
        return tf.nest.map_structure(lambda tensor: tf.zeros(tensor.shape, tf.float64), template)

    def preprocess_record(self, params: Any, record: Any) -> Any:
        tensors = [tf.cast(tensor, tf.float64) for tensor in tf.nest.flatten(record)]
        if self._clip_norm is None:
            return tf.nest.pack_sequence_as(record, tensors)
        # l2_loss is half the sum of squares, in one pass.
        norm = tf.sqrt(2.0 * tf.add_n([tf.nn.l2_loss(tensor) for tensor in tensors]))
        # A norm of 0 divides to 0 here, and 0 times the zero record is the record.
        scale = tf.minimum(
            tf.constant(1.0, tf.float64), tf.math.divide_no_nan(tf.constant(self._clip_norm, tf.float64), norm)
        )
        return tf.nest.pack_sequence_as(record, [tensor * scale for tensor in tensors])

    def get_noised_result(self, sample_state: Any, global_state: Any) -> Any:
        noise = tf.nest.pack_sequence_as(sample_state, list(getattr(global_state, NOISE)))

        def add(total: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
            noised = tf.cast(total, tf.float64) + noise
            if self._grain:
                noised = tf.round(noised / self._grain) * self._grain
            return tf.cast(noised, tf.float32)

        result = tf.nest.map_structure(add, sample_state, noise)
        return result, self._unset(), event_unknown_to_graph()


def unweighted(plan: PrivacyPlan, shapes: Sequence[Sequence[int]]) -> tff.aggregators.UnweightedAggregationFactory:
    """Sum over the cohort, with the plan's clip, value range, noise and denominator (the expected cohort)."""
    if plan.integers:
        return DistributedDiscreteGaussianFactory(plan.integers, denominator=plan.denominator, shapes=shapes)
    query = SuppliedNoiseSumQuery(clip_norm=plan.clip_norm, grain=plan.grain, shapes=shapes)
    return tff.aggregators.DifferentiallyPrivateFactory(
        tfp.NormalizedQuery(query, plan.denominator),
        record_aggregation_factory=tff.aggregators.SecureSumFactory(plan.value_range, -plan.value_range),
    )


def weighted(plan: PrivacyPlan, *, largest_weight: float) -> tff.aggregators.WeightedAggregationFactory:
    """Mean weighted by examples, without privacy. An empty cohort gives a mean of zero."""
    bound = plan.value_range * largest_weight
    return tff.aggregators.MeanFactory(
        value_sum_factory=tff.aggregators.SecureSumFactory(bound, -bound),
        weight_sum_factory=tff.aggregators.SecureSumFactory(float(largest_weight), 0.0),
        no_nan_division=True,
    )
