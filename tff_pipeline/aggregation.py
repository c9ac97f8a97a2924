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

from tff_pipeline.integer_aggregation import DistributedDiscreteGaussianFactory
from tff_pipeline.privacy.accounting import event_unknown_to_graph
from tff_pipeline.privacy.plan import PrivacyPlan

NOISE = "supplied_noise"  # the field of _State
CLIP = "clip"  # the field of _AdaptiveState that the round's clip is in
_State: Any = collections.namedtuple("_State", "supplied_noise")
_AdaptiveState: Any = collections.namedtuple("_AdaptiveState", "supplied_noise clip")
_CLIP_LEARNING_RATE = 0.2  # eta_C of Andrew et al. 2021, section 3.1


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
        scale = _clip_scale(_norm(tensors), tf.constant(self._clip_norm, tf.float64))
        return tf.nest.pack_sequence_as(record, [tensor * scale for tensor in tensors])

    def get_noised_result(self, sample_state: Any, global_state: Any) -> Any:
        noise = tf.nest.pack_sequence_as(sample_state, list(getattr(global_state, NOISE)))
        result = tf.nest.map_structure(
            lambda total, added: tf.cast(_noised(total, added, self._grain), tf.float32), sample_state, noise
        )
        return result, self._unset(), event_unknown_to_graph()


class AdaptiveClipSumQuery(SuppliedNoiseSumQuery):
    """As its base, with a clip that follows a quantile of the clients' norms (Andrew et al. 2021, arXiv:1905.03871).

    A client sends its clipped update in units of the round's clip C, so that what is summed, quantised and noised has the
    same bounds whatever C is; and whether its norm was within C, as +-1/2. From the noised sum b of these follows the next
    round's clip, C exp(-eta (b / n + 1/2 - gamma)), their equation 3 in its geometric form.

    Args:
      clip_norm: the first round's C.
      quantile: gamma.
      cohort: n, the expected cohort.
      grain, count_grain: of the updates, in units of the clip, and of the count.
      shapes: of the record's tensors.
    """

    def __init__(
        self,
        *,
        clip_norm: float,
        quantile: float,
        cohort: float,
        grain: float,
        count_grain: float,
        shapes: Sequence[Sequence[int]],
    ):
        super().__init__(clip_norm=None, grain=grain, shapes=shapes)
        self._first_clip, self._quantile, self._cohort, self._count_grain = clip_norm, quantile, cohort, count_grain

    def _unset_at(self, clip: tf.Tensor) -> Any:
        nothing = [*getattr(self._unset(), NOISE), tf.constant(np.nan, tf.float64)]
        return _AdaptiveState(nothing, clip)

    def initial_global_state(self) -> Any:
        return self._unset_at(tf.constant(self._first_clip, tf.float64))

    def derive_sample_params(self, global_state: Any) -> Any:
        return global_state.clip

    def initial_sample_state(self, template: Any = None) -> Any:
        return super().initial_sample_state(template), tf.constant(0.0, tf.float64)

    def preprocess_record(self, params: Any, record: Any) -> Any:
        clip = params
        tensors = [tf.cast(tensor, tf.float64) for tensor in tf.nest.flatten(record)]
        norm = _norm(tensors)
        scale = _clip_scale(norm, clip) / clip
        within = tf.cast(norm <= clip, tf.float64) - 0.5
        return tf.nest.pack_sequence_as(record, [tensor * scale for tensor in tensors]), within

    def get_noised_result(self, sample_state: Any, global_state: Any) -> Any:
        (updates, within), clip = sample_state, global_state.clip
        *noise, count_noise = getattr(global_state, NOISE)
        share = _noised(within, count_noise, self._count_grain) / self._cohort + 0.5
        following = clip * tf.exp(-_CLIP_LEARNING_RATE * (share - self._quantile))
        # Where the noise was forgotten nothing comes out, and the clip stays what it was.
        following = tf.where(tf.math.is_finite(following), following, clip)
        result = tf.nest.map_structure(
            lambda total, added: tf.cast(_noised(total, added, self._grain) * clip, tf.float32),
            updates,
            tf.nest.pack_sequence_as(updates, noise),
        )
        return result, self._unset_at(following), event_unknown_to_graph()


def _norm(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    # l2_loss is half the sum of squares, in one pass.
    return tf.sqrt(2.0 * tf.add_n([tf.nn.l2_loss(tensor) for tensor in tensors]))


def _clip_scale(norm: tf.Tensor, clip: tf.Tensor) -> tf.Tensor:
    # A norm of 0 divides to 0 here, and 0 times the zero record is the record.
    return tf.minimum(tf.constant(1.0, tf.float64), tf.math.divide_no_nan(clip, norm))


def _noised(total: tf.Tensor, noise: tf.Tensor, grain: float) -> tf.Tensor:
    noised = tf.cast(total, tf.float64) + noise
    return tf.round(noised / grain) * grain if grain else noised


def unweighted(plan: PrivacyPlan, shapes: Sequence[Sequence[int]]) -> tff.aggregators.UnweightedAggregationFactory:
    """Sum over the cohort, with the plan's clip, value range, noise and denominator (the expected cohort)."""
    if plan.integers:
        return DistributedDiscreteGaussianFactory(plan.integers, denominator=plan.denominator, shapes=shapes)
    if plan.adaptive:
        assert plan.clip_norm is not None
        query: Any = AdaptiveClipSumQuery(
            clip_norm=plan.clip_norm,
            quantile=plan.clip_quantile,
            cohort=plan.denominator,
            grain=plan.grain,
            count_grain=plan.count_grain,
            shapes=shapes,
        )
    else:
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
