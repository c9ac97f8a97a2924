"""The bound on what leaves a client, tried on updates that are made to break it, and against numpy's exact arithmetic."""

import math

import numpy as np
import pytest
import tensorflow as tf

from tff_pipeline.aggregators import quantized_sum
from tff_pipeline.aggregators.quantized_sum import (
    QuantizedSumFactory,
    clamped_in_steps,
    clipped_in_steps,
    norm_at_least,
)
from tff_pipeline.learning import process as learning
from tff_pipeline.privacy.mechanisms.quantization import CLIP_EXCESS

RANDOM = np.random.default_rng(5)
UPDATES = {
    "normal": [RANDOM.normal(size=(700, 384)), RANDOM.normal(size=384)],
    "a prime number of coordinates": [RANDOM.normal(size=1009), RANDOM.normal(size=(3, 7))],
    # Every addition of a small square to a large partial sum is rounded down.
    "one large among many small": [np.array([1.0] + [2.0**-12.6] * 100_351)],
    "of very different sizes": [10.0 ** RANDOM.uniform(-12, 2, size=(512, 512))],
    "all alike": [np.full((64, 256), 0.1)],
    "squares that float32 cannot hold": [RANDOM.normal(size=(64, 64)) * 1e-21],
    "squares on the edge of what float32 holds": [np.full(4096, 2.0**-63.01)],
    "zero": [np.zeros((3, 5))],
}


@pytest.fixture(scope="module", autouse=True)
def _tff_ends_in_order() -> None:
    learning._let_tff_end_in_order()


def tensors(name: str) -> list[tf.Tensor]:
    return [tf.constant(part, tf.float32) for part in UPDATES[name]]


def norm_of(parts: list[np.ndarray]) -> float:
    """Correctly rounded: the square of a float32 is exact in float64, and so is fsum."""
    return math.sqrt(math.fsum(np.square(np.concatenate([part.astype(np.float64).ravel() for part in parts]))))


def test_the_proof_adds_up_to_less_than_the_plan_counts():
    """Equation (1)."""
    assert (1 - 2.0**-24) ** -(quantized_sum._BLOCK / 2 + 4) < 1 + CLIP_EXCESS


@pytest.mark.parametrize("name", UPDATES)
def test_the_norm_is_not_too_small(name):
    update = tensors(name)
    exact = norm_of([part.numpy() for part in update])
    found = float(norm_at_least(update))
    assert found >= exact * (1 - 2.0**-24) ** (quantized_sum._BLOCK / 2 + 1)
    # Nor too large: by what may have been flushed to zero.
    assert found <= exact * (1 + CLIP_EXCESS) + 2.0**-63 * math.sqrt(sum(part.numpy().size for part in update))


@pytest.mark.parametrize("levels", [2**30, 1_084_642])
@pytest.mark.parametrize("clip", [1e-25, 1e-3, 0.1, 7.0])
@pytest.mark.parametrize("name", UPDATES)
def test_no_client_sends_more_than_the_clip(name, clip, levels):
    update = tensors(name)
    sent = clipped_in_steps(update, norm=norm_at_least(update), clip=tf.constant(clip, tf.float64), levels=levels)
    whole = [tf.cast(part, tf.int64).numpy() for part in sent]  # of at most 24 binary digits that are not zero
    norm = norm_of(whole) / levels
    exact = norm_of([part.numpy() for part in update]) / clip
    assert norm <= min(1.0, exact) * (1 + CLIP_EXCESS)
    # It is not that little is sent: what is lost is less than a step a coordinate.
    if clip >= 1e-3:
        assert norm >= min(1.0, exact) * (1 - CLIP_EXCESS) - math.sqrt(sum(map(np.size, whole))) / levels


def test_an_update_too_large_for_its_norm_sends_nothing():
    update = [tf.fill([4, 4], 1e30)]
    sent = clipped_in_steps(update, norm=norm_at_least(update), clip=tf.constant(1.0, tf.float64), levels=2**30)
    np.testing.assert_array_equal(sent[0], np.zeros((4, 4)))


def test_without_a_clip_coordinates_are_clamped_to_the_range():
    (clamped,) = clamped_in_steps([tf.constant([-9.0, -8.0, 0.0, 2.0, 1e38])], value_range=8.0, levels=2**30)
    np.testing.assert_array_equal(clamped / 2**30, [-1, -1, 0, 0.25, 1])


@pytest.mark.parametrize(
    ("largest", "clients", "dtype"),
    [(2**30, 2**21, tf.int64), (100, 2**31 // 200 - 1, tf.int32), (2**29, 1, tf.int32), (2**30, 1, tf.int64)],
)
def test_the_largest_cohort_s_largest_sum_is_exact(largest, clients, dtype):
    """To the step, both ways, where the sum is as large as it can be: float32 would be off by thousands."""
    factory = QuantizedSumFactory(largest=largest, clients=clients)
    assert factory.dtype == dtype
    for counted in (1, -1, clients * largest, 1 - clients * largest, -clients * largest):
        total = tf.constant(clients * largest + counted, dtype)
        found = factory.centred(total, tf.constant(clients, tf.int64))
        assert found.dtype == tf.float64
        assert int(found) == counted


def test_a_sum_of_more_clients_than_there_is_room_for_is_no_number():
    factory = QuantizedSumFactory(largest=1000, clients=5)
    total = tf.constant([6000, 6001], tf.int32)
    np.testing.assert_array_equal(factory.centred(total, tf.constant(5, tf.int64)), [1000, 1001])
    assert np.isnan(factory.centred(total, tf.constant(6, tf.int64))).all()
