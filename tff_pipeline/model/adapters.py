"""Low-rank adapters (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", equation 3).

A projection x W + b of the attention becomes x W + b + (alpha / r) x A B, with A of r columns and B of r rows. W and b stay
as the checkpoint has them; A starts random and B at zero, so that training starts from the checkpoint's own outputs. Only
A and B are sent, a few thousandths of the encoder. `Network.merged` replaces W by W + (alpha / r) A B and drops the adapter.
"""

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

MARK = "lora"  # in the names of the adapters' variables, and of no other


@dataclasses.dataclass(frozen=True)
class Adapters:
    """Which projections get adapters: any of "query", "key", "value" and "output" (of the attention), of every layer."""

    rank: int
    alpha: float
    targets: tuple[str, ...]


class AdaptedDense(tf_keras.layers.Layer):
    """A dense layer with an adapter beside it; see the module. Inputs are float32 [..., d], outputs float32 [..., k]."""

    def __init__(self, dense: tf_keras.layers.Dense, adapters: Adapters):
        super().__init__(name=f"{dense.name}_{MARK}")
        self.dense = dense
        self._rank, self._scale = adapters.rank, adapters.alpha / adapters.rank
        inputs, outputs = dense.kernel.shape
        # Kaiming's uniform bound, as the paper's code draws A.
        limit = float(np.sqrt(1.0 / int(inputs)))
        draw = tf_keras.initializers.RandomUniform(-limit, limit)
        self.down = self.add_weight(name=f"{MARK}_down", shape=[inputs, self._rank], initializer=draw)
        self.up = self.add_weight(name=f"{MARK}_up", shape=[self._rank, outputs], initializer="zeros")

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        adapted = tf.tensordot(tf.tensordot(inputs, self.down, axes=1), self.up, axes=1)
        return self.dense(inputs) + self._scale * adapted

    def merged_kernel(self) -> tf.Tensor:
        """float32 [d, k]: the dense layer's kernel that has the same outputs without the adapter."""
        return self.dense.kernel + self._scale * tf.matmul(self.down, self.up)


def adapt(bert: Any, adapters: Adapters) -> list[AdaptedDense]:
    """Puts adapters beside the projections of a built transformers BERT; returns them, layer by layer."""
    adapted_layers = []
    for layer in bert.encoder.layer:
        for target in adapters.targets:
            holder = layer.attention.dense_output if target == "output" else layer.attention.self_attention
            name = "dense" if target == "output" else target
            with tf.name_scope(layer.name):
                adapted = AdaptedDense(getattr(holder, name), adapters)
            setattr(holder, name, adapted)
            adapted_layers.append(adapted)
    return adapted_layers
