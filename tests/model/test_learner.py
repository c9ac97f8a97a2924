"""Learners in the graphs that TFF builds."""

from typing import Any

import pytest
import tensorflow as tf
from builders.cases import HIDDEN, LABELS, small_bert

from tff_pipeline.model.learner import FeatureLearner, TextLearner

BATCHES = {
    "features": (tf.zeros([2, HIDDEN]), tf.zeros([2], tf.int32)),
    "texts": (tf.fill([2, 4], 7), tf.zeros([2], tf.int32)),
}


@pytest.mark.parametrize("kind", sorted(BATCHES))
def test_autograph_leaves_the_model_as_it_is_written(kind):
    """Rewriting all of Keras and transformers is half of the time that a process takes to build."""
    learner: Any = (
        FeatureLearner(hidden_size=HIDDEN, labels=LABELS) if kind == "features" else TextLearner(small_bert()[0])
    )
    logits, statuses = learner._logits, []

    def observed(inputs: tf.Tensor) -> tf.Tensor:
        statuses.append(tf.__internal__.autograph.control_status_ctx().status.name)
        return logits(inputs)

    learner._logits = observed

    @tf.function
    def as_tff_does(batch: Any) -> tf.Tensor:
        statuses.append(tf.__internal__.autograph.control_status_ctx().status.name)
        return learner.forward_pass(batch).loss

    assert as_tff_does(BATCHES[kind]) > 0
    assert statuses == ["ENABLED", "DISABLED"]
