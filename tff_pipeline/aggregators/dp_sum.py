"""From the privacy plan to a `tff.aggregators` factory: clip on the client, secure sum, noise at the server, divide.

The clip is a constant of the run, or follows a quantile of the clients' norms (`AdaptiveClipSumQuery`).

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

from tff_pipeline.aggregators.distributed_discrete_gaussian import DistributedDiscreteGaussianFactory
from tff_pipeline.aggregators.quantized_sum import WholeNumberSumFactory, cut, in_quanta, norm_at_least
from tff_pipeline.privacy.accounting import event_unknown_to_graph
from tff_pipeline.privacy.plan import PrivacyPlan

NOISE = "supplied_noise"  # the field of _State
CLIP = "clip"  # the field of _AdaptiveState that the round's clip is in
_State: Any = collections.namedtuple("_State", "supplied_noise")
_AdaptiveState: Any = collections.namedtuple("_AdaptiveState", "supplied_noise clip")
CLIP_LEARNING_RATE = 0.2  # eta_C of Andrew et al. 2021, section 3.1


class SuppliedNoiseSumQuery(tfp.SumAggregationDPQuery):
    """Clips a record to an L2 norm, expresses it in quanta, and adds noise from its state to the sum of whole quanta.

    The record stays float32 (`whole_numbers` has the bound for what leaves a client); the sum of integers is exact. A
    float32 sum of n clients would be off by up to n times 2**-24 of the clip, differently with one client more: rounding
    that the noise would have to cover. Sum and noise are added in float64 and rounded to multiples of `grain`, so that the
    low-order bits of a float Gaussian never leave (Mironov 2012, "On significance of the least significant bits for
    differential privacy"). Only then the result becomes float32 again.

    Args:
      clip_norm: the L2 bound C, or None for no clipping: then coordinates are cut to `value_range`.
      value_range: what `quanta` make: C where there is a clip, 1 where it is adaptive.
      quanta: how many.
      grain: a power of two, far below the noise's standard deviation; 0 for no rounding.
      shapes: of the record's tensors.
    """

    def __init__(
        self,
        *,
        clip_norm: float | None,
        value_range: float,
        quanta: int,
        grain: float,
        shapes: Sequence[Sequence[int]],
    ):
        self._clip_norm, self._range, self._quanta, self._grain = clip_norm, value_range, quanta, grain
        self._shapes = [list(shape) for shape in shapes]

    def _unset(self) -> Any:
        return _State([tf.fill(shape, tf.constant(np.nan, tf.float64)) for shape in self._shapes])

    def initial_global_state(self) -> Any:
        return self._unset()

    def derive_sample_params(self, global_state: Any) -> Any:
        return ()

    def initial_sample_state(self, template: Any = None) -> Any:
        return tf.nest.map_structure(lambda tensor: tf.zeros(tensor.shape, tf.float64), template)

    def preprocess_record(self, params: Any, record: Any) -> Any:
        tensors = tf.nest.flatten(record)
        if self._clip_norm is None:
            quanta = cut(tensors, value_range=self._range, quanta=self._quanta)
        else:
            clip = tf.constant(self._clip_norm, tf.float64)
            quanta = in_quanta(tensors, norm=norm_at_least(tensors), clip=clip, quanta=self._quanta)
        return tf.nest.pack_sequence_as(record, quanta)

    def get_noised_result(self, sample_state: Any, global_state: Any) -> Any:
        noise = tf.nest.pack_sequence_as(sample_state, list(getattr(global_state, NOISE)))
        result = tf.nest.map_structure(self._noised, sample_state, noise)
        return result, self._unset(), event_unknown_to_graph()

    def _noised(self, total: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
        return _rounded(total * (self._range / self._quanta) + noise, self._grain, tf.float32)


class AdaptiveClipSumQuery(SuppliedNoiseSumQuery):
    """As its base, with a clip that follows a quantile of the clients' norms (Andrew et al. 2021, arXiv:1905.03871).

    A client sends its clipped update in units of the round's clip C, so that what is summed, quantised and noised has the
    same bounds whatever C is; and whether its norm was within C, as +-1/2. From the noised sum b of these follows the next
    round's clip, C exp(-eta (b / n + 1/2 - gamma)), their equation 3 in its geometric form.

    Args:
      clip_norm: the first round's C.
      quanta: of which it is made, an even number.
      quantile: gamma.
      cohort: n, the expected cohort.
      grain, count_grain: of the updates, in units of the clip, and of the count.
      shapes: of the record's tensors.
    """

    def __init__(
        self,
        *,
        clip_norm: float,
        quanta: int,
        quantile: float,
        cohort: float,
        grain: float,
        count_grain: float,
        shapes: Sequence[Sequence[int]],
    ):
        super().__init__(clip_norm=clip_norm, value_range=1.0, quanta=quanta, grain=grain, shapes=shapes)
        self._quantile, self._cohort, self._count_grain = quantile, cohort, count_grain

    def _unset_at(self, clip: tf.Tensor) -> Any:
        nothing = [*getattr(self._unset(), NOISE), tf.constant(np.nan, tf.float64)]
        return _AdaptiveState(nothing, clip)

    def initial_global_state(self) -> Any:
        return self._unset_at(tf.constant(self._clip_norm, tf.float64))

    def derive_sample_params(self, global_state: Any) -> Any:
        return global_state.clip

    def initial_sample_state(self, template: Any = None) -> Any:
        return super().initial_sample_state(template), tf.constant(0.0, tf.float64)

    def preprocess_record(self, params: Any, record: Any) -> Any:
        tensors = tf.nest.flatten(record)
        norm = norm_at_least(tensors)
        within = tf.where(norm <= params, 0.5 * self._quanta, -0.5 * self._quanta)
        updates = in_quanta(tensors, norm=norm, clip=params, quanta=self._quanta)
        return tf.nest.pack_sequence_as(record, updates), within

    def get_noised_result(self, sample_state: Any, global_state: Any) -> Any:
        (updates, within), clip = sample_state, global_state.clip
        *noise, count_noise = getattr(global_state, NOISE)
        count = _rounded(within / self._quanta + count_noise, self._count_grain, tf.float64)
        share = count / self._cohort + 0.5
        following = clip * tf.exp(-CLIP_LEARNING_RATE * (share - self._quantile))
        # Where the noise was forgotten nothing comes out, and the clip stays what it was.
        following = tf.where(tf.math.is_finite(following), following, clip)
        result = tf.nest.map_structure(
            lambda total, added: self._noised(total, added) * tf.cast(clip, tf.float32),
            updates,
            tf.nest.pack_sequence_as(updates, noise),
        )
        return result, self._unset_at(following), event_unknown_to_graph()


def _rounded(noised: tf.Tensor, grain: float, dtype: tf.DType) -> tf.Tensor:
    """float64 as the nearest multiples of `grain` (none if it is 0), in `dtype`, in which they are then rounded again."""
    return tf.cast(tf.round(noised / grain), dtype) * grain if grain else tf.cast(noised, dtype)


def unweighted(plan: PrivacyPlan, shapes: Sequence[Sequence[int]]) -> tff.aggregators.UnweightedAggregationFactory:
    """Sum over the cohort, with the plan's clip, value range, noise and denominator (the expected cohort)."""
    if plan.integers:
        return DistributedDiscreteGaussianFactory(plan.integers, denominator=plan.denominator, shapes=shapes)
    if plan.adaptive:
        assert plan.clip_norm is not None
        query: Any = AdaptiveClipSumQuery(
            clip_norm=plan.clip_norm,
            quanta=plan.quanta,
            quantile=plan.clip_quantile,
            cohort=plan.denominator,
            grain=plan.grain,
            count_grain=plan.count_grain,
            shapes=shapes,
        )
    else:
        query = SuppliedNoiseSumQuery(
            clip_norm=plan.clip_norm,
            value_range=plan.value_range,
            quanta=plan.quanta,
            grain=plan.grain,
            shapes=shapes,
        )
    summing = WholeNumberSumFactory(largest=plan.largest_whole_number, clients=plan.largest_cohort)
    return tff.aggregators.DifferentiallyPrivateFactory(
        tfp.NormalizedQuery(query, plan.denominator), record_aggregation_factory=summing
    )


def weighted(plan: PrivacyPlan, *, largest_weight: float) -> tff.aggregators.WeightedAggregationFactory:
    """Mean weighted by examples, without privacy. An empty cohort gives a mean of zero."""
    bound = plan.value_range * largest_weight
    return tff.aggregators.MeanFactory(
        value_sum_factory=tff.aggregators.SecureSumFactory(bound, -bound),
        weight_sum_factory=tff.aggregators.SecureSumFactory(float(largest_weight), 0.0),
        no_nan_division=True,
    )
