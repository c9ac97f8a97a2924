"""TF-Privacy queries: clip on the client, quantize, and add the server's noise to the secure sum.

The clip is a constant of the run, or follows a quantile of the clients' norms (`AdaptiveClipSumQuery`).

The noise is not drawn in the graph: TensorFlow's stateful generators are seeded with 32 bits. It is an input. The
aggregator's state has a field for it, which the training loop fills before every round with numbers from the operating
system's generator, and which is NaN otherwise: the sum of a round whose noise was forgotten is NaN, TFF's finalizer
leaves the weights as they were, and the training loop stops. Nothing without noise comes out.
"""

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_privacy as tfp

from tff_pipeline.aggregators.quantized_sum import clamped_in_steps, clipped_in_steps, norm_at_least
from tff_pipeline.privacy.accounting import event_unknown_to_graph
from tff_pipeline.privacy.mechanisms import Quantization

NOISE = "supplied_noise"  # the field of _State
CLIP = "clip"  # the field of _AdaptiveState that the round's clip is in
_State: Any = collections.namedtuple("_State", "supplied_noise")
_AdaptiveState: Any = collections.namedtuple("_AdaptiveState", "supplied_noise clip")
CLIP_LEARNING_RATE = 0.2  # eta_C of Andrew et al. 2021, section 3.1


class SuppliedNoiseSumQuery(tfp.SumAggregationDPQuery):
    """Clips a record to an L2 norm, divides it by the quantization step, and adds noise from its state to the sum of integers.

    The record stays float32 (`quantized_sum` has the bound for what leaves a client); the sum of integers is exact. A
    float32 sum of n clients would be off by up to n times 2**-24 of the clip, differently with one client more: rounding
    that the noise would have to cover. Sum and noise are added in float64 and rounded to multiples of `rounding_step`, so that the
    low-order bits of a float Gaussian never leave (Mironov 2012, "On significance of the least significant bits for
    differential privacy"). Only then the result becomes float32 again.

    Args:
      clip_norm: the L2 bound C, or None for no clipping: then coordinates are clamped to the quantization's range.
      quantization: into how many levels the range is divided; the range is C where there is a clip, 1 where it is adaptive.
      rounding_step: a power of two, far below the noise's standard deviation; 0 for no rounding.
      shapes: of the record's tensors.
    """

    def __init__(
        self,
        *,
        clip_norm: float | None,
        quantization: Quantization,
        rounding_step: float,
        shapes: Sequence[Sequence[int]],
    ):
        self._clip_norm, self._quantization, self._rounding_step = clip_norm, quantization, rounding_step
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
            in_steps = clamped_in_steps(
                tensors, value_range=self._quantization.value_range, levels=self._quantization.levels
            )
        else:
            clip = tf.constant(self._clip_norm, tf.float64)
            in_steps = clipped_in_steps(
                tensors, norm=norm_at_least(tensors), clip=clip, levels=self._quantization.levels
            )
        return tf.nest.pack_sequence_as(record, in_steps)

    def get_noised_result(self, sample_state: Any, global_state: Any) -> Any:
        noise = tf.nest.pack_sequence_as(sample_state, list(getattr(global_state, NOISE)))
        result = tf.nest.map_structure(self._noised, sample_state, noise)
        return result, self._unset(), event_unknown_to_graph()

    def _noised(self, total: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
        return _rounded(total * self._quantization.step + noise, self._rounding_step, tf.float32)


class AdaptiveClipSumQuery(SuppliedNoiseSumQuery):
    """As its base, with a clip that follows a quantile of the clients' norms (Andrew et al. 2021, arXiv:1905.03871).

    A client sends its clipped update in units of the round's clip C, so that what is summed, quantized and noised has the
    same bounds whatever C is; and whether its norm was within C, as +-1/2. From the noised sum b of these follows the next
    round's clip, C exp(-eta (b / n + 1/2 - gamma)), their equation 3 in its geometric form.

    Args:
      clip_norm: the first round's C.
      quantization: of updates in units of the clip; an even number of levels.
      quantile: gamma.
      cohort: n, the expected cohort.
      rounding_step: of the updates' noised sum, in units of the clip.
      count_rounding_step: of the noised count.
      shapes: of the record's tensors.
    """

    def __init__(
        self,
        *,
        clip_norm: float,
        quantization: Quantization,
        quantile: float,
        cohort: float,
        rounding_step: float,
        count_rounding_step: float,
        shapes: Sequence[Sequence[int]],
    ):
        super().__init__(clip_norm=clip_norm, quantization=quantization, rounding_step=rounding_step, shapes=shapes)
        self._quantile, self._cohort, self._count_rounding_step = quantile, cohort, count_rounding_step

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
        within = tf.where(norm <= params, 0.5 * self._quantization.levels, -0.5 * self._quantization.levels)
        updates = clipped_in_steps(tensors, norm=norm, clip=params, levels=self._quantization.levels)
        return tf.nest.pack_sequence_as(record, updates), within

    def get_noised_result(self, sample_state: Any, global_state: Any) -> Any:
        (updates, within), clip = sample_state, global_state.clip
        *noise, count_noise = getattr(global_state, NOISE)
        count = _rounded(within / self._quantization.levels + count_noise, self._count_rounding_step, tf.float64)
        fraction = count / self._cohort + 0.5
        following = clip * tf.exp(-CLIP_LEARNING_RATE * (fraction - self._quantile))
        # Where the noise was forgotten nothing comes out, and the clip stays what it was.
        following = tf.where(tf.math.is_finite(following), following, clip)
        result = tf.nest.map_structure(
            lambda total, added: self._noised(total, added) * tf.cast(clip, tf.float32),
            updates,
            tf.nest.pack_sequence_as(updates, noise),
        )
        return result, self._unset_at(following), event_unknown_to_graph()


def _rounded(noised: tf.Tensor, step: float, dtype: tf.DType) -> tf.Tensor:
    """float64 as the nearest multiples of `step` (none if it is 0), in `dtype`, in which they are then rounded again."""
    return tf.cast(tf.round(noised / step), dtype) * step if step else tf.cast(noised, dtype)
