"""The bound on what leaves a client, tried on updates that are made to break it, and against numpy's exact arithmetic."""

import math

import numpy as np
import pytest
import tensorflow as tf

from tff_pipeline import whole_numbers
from tff_pipeline.privacy.plan import CLIP_EXCESS
from tff_pipeline.whole_numbers import QUANTA, cut, in_quanta, norm_at_least

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


def tensors(name: str) -> list[tf.Tensor]:
    return [tf.constant(part, tf.float32) for part in UPDATES[name]]


def norm_of(parts: list[np.ndarray]) -> float:
    """Correctly rounded: the square of a float32 is exact in float64, and so is fsum."""
    return math.sqrt(math.fsum(np.square(np.concatenate([part.astype(np.float64).ravel() for part in parts]))))


def test_the_proof_adds_up_to_less_than_the_plan_counts():
    """Equation (1)."""
    assert (1 - 2.0**-24) ** -(whole_numbers._BLOCK / 2 + 4) < 1 + CLIP_EXCESS


@pytest.mark.parametrize("name", UPDATES)
def test_the_norm_is_not_too_small(name):
    update = tensors(name)
    exact = norm_of([part.numpy() for part in update])
    found = float(norm_at_least(update))
    assert found >= exact * (1 - 2.0**-24) ** (whole_numbers._BLOCK / 2 + 1)
    # Nor too large: by what may have been flushed to zero.
    assert found <= exact * (1 + CLIP_EXCESS) + 2.0**-63 * math.sqrt(sum(part.numpy().size for part in update))


@pytest.mark.parametrize("clip", [1e-25, 1e-3, 0.1, 7.0])
@pytest.mark.parametrize("name", UPDATES)
def test_no_client_sends_more_than_the_clip(name, clip):
    update = tensors(name)
    sent = in_quanta(update, norm=norm_at_least(update), clip=tf.constant(clip, tf.float64))
    whole = [tf.cast(part, tf.int64).numpy() for part in sent]  # of at most 24 binary digits that are not zero
    norm = norm_of(whole) / QUANTA
    exact = norm_of([part.numpy() for part in update]) / clip
    assert norm <= min(1.0, exact) * (1 + CLIP_EXCESS)
    # It is not that little is sent: what is lost is less than a quantum a coordinate.
    if clip >= 1e-3:
        assert norm >= min(1.0, exact) * (1 - CLIP_EXCESS) - math.sqrt(sum(map(np.size, whole))) / QUANTA


def test_an_update_too_large_for_its_norm_sends_nothing():
    update = [tf.fill([4, 4], 1e30)]
    sent = in_quanta(update, norm=norm_at_least(update), clip=tf.constant(1.0, tf.float64))
    np.testing.assert_array_equal(sent[0], np.zeros((4, 4)))


def test_without_a_clip_coordinates_are_cut_to_the_range():
    (found,) = cut([tf.constant([-9.0, -8.0, 0.0, 2.0, 1e38])], value_range=8.0)
    np.testing.assert_array_equal(found / QUANTA, [-1, -1, 0, 0.25, 1])
