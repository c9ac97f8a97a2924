"""Computes which pieces of a text made the model give its label: integrated gradients on the word embeddings.

Sundararajan, Taly and Yan 2017, "Axiomatic Attribution for Deep Networks", equation 1: the attribution of a coordinate is
its distance from a baseline times the mean gradient of F along the straight line from there,

    (x_i - x'_i) * integral over a from 0 to 1 of dF(x' + a (x - x')) / dx_i

F is the probability of the label, as it is served; a token's attribution is the sum over its embedding. Attributions add up
to F(x) - F(x') (completeness, proposition 1), up to the error of the sum that approximates the integral, which is returned.

The baseline is the same text with every piece replaced by [MASK] (by [UNK] where the vocabulary has none): "some text of
this length", which is what BERT was pretrained to read there. Zeros are no word at all, and [PAD] is never attended to in
training, so that its embedding means nothing. [CLS] and [SEP] are the same in both and have no attribution.

The integral is a Gauss-Legendre sum. Steps run one after the other, so that memory does not grow with them.

Token classification has no such signature: every word's label would have attributions of its own, a matrix for each text.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf

    from tff_pipeline.data.tokenization import Tokenizer
    from tff_pipeline.model.network import Network

INPUTS = {"text": "string", "label": "string"}
OUTPUTS = {
    "tokens": "string",
    "starts": "int32",
    "ends": "int32",
    "mask": "int32",
    "attributions": "float32",
    "label": "string",
    "score": "float32",
    "baseline_score": "float32",
    "gap": "float32",
}


def nodes(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The nodes of the sum, on [0, 1], and their weights, which add up to 1: float32 [steps] each."""
    points, weights = np.polynomial.legendre.leggauss(steps)
    return ((points + 1) / 2).astype(np.float32), (weights / 2).astype(np.float32)


def explain_function(
    network: "Network", tokenizer: "Tokenizer", labels: tuple[str, ...], *, steps: int
) -> "tf.types.experimental.GenericFunction":
    """The signature `explain` of a sequence classifier, with `steps` nodes of the integral.

    text string [B]; label string [B], "" for the predicted one, to
      tokens string [B, S], starts and ends int32 [B, S] (bytes of the text), mask int32 [B, S] (0 is padding),
      attributions float32 [B, S], label string [B], score and baseline_score float32 [B] (the label's probability for the
      text and for the baseline), gap float32 [B] (the attributions' sum less the difference of the scores).
    A label that is not one of the model's makes its own row empty, with label "" and mask 0, and no other's: an error
    would fail the texts of all clients that a server has put into one batch.
    """
    import tensorflow as tf

    baseline_id = tokenizer.vocabulary.index(tokenizer.unknown_word)
    vocabulary, names = list(tokenizer.vocabulary), tf.constant(list(labels))

    def explain(text: tf.Tensor, label: tf.Tensor) -> dict[str, tf.Tensor]:
        pieces, starts, ends = tokenizer.ragged_with_offsets(text)
        tokens = tokenizer.framed(pieces).to_tensor(default_value=tokenizer.pad_id)
        lengths = tf.cast(pieces.row_lengths(), tf.int32)
        own = tf.pad(tf.sequence_mask(lengths, maxlen=tf.shape(tokens)[1] - 2), [[0, 0], [1, 1]])
        baseline = tf.where(own, baseline_id, tokens)
        of_both = tf.nn.softmax(network(tf.concat([tokens, baseline], axis=0)))  # one network in the graph, not two
        probabilities, of_baseline = tf.split(of_both, 2)
        asked = tf.equal(label[:, tf.newaxis], names[tf.newaxis])
        best = tf.one_hot(tf.argmax(probabilities, axis=-1), len(labels), on_value=True, off_value=False)
        target = tf.where(tf.equal(label, "")[:, tf.newaxis], best, asked)
        known = tf.reduce_any(target, axis=1)
        attributions = integrated_gradients(network, tokens, baseline, tf.cast(target, tf.float32), steps=steps)[
            :, 1:-1
        ]
        score, baseline_score = (
            tf.reduce_sum(tf.where(target, of_text, 0.0), axis=1) for of_text in (probabilities, of_baseline)
        )
        shown = tf.logical_and(own[:, 1:-1], known[:, tf.newaxis])
        chosen = tf.gather(names, tf.argmax(tf.cast(target, tf.int32), axis=1))
        return {
            "tokens": tf.where(shown, tf.gather(tf.constant(vocabulary), tokens[:, 1:-1]), ""),
            "starts": tf.where(shown, starts.to_tensor(), 0),
            "ends": tf.where(shown, ends.to_tensor(), 0),
            "mask": tf.cast(shown, tf.int32),
            "attributions": tf.where(shown, attributions, 0.0),
            "label": tf.where(known, chosen, ""),
            "score": score,
            "baseline_score": baseline_score,
            "gap": tf.reduce_sum(attributions, axis=1) - (score - baseline_score),
        }

    spec = [tf.TensorSpec([None], tf.string, name=name) for name in INPUTS]
    return tf.function(explain, input_signature=spec, autograph=False)


def integrated_gradients(
    network: "Network", tokens: "tf.Tensor", baseline: "tf.Tensor", target: "tf.Tensor", *, steps: int
) -> "tf.Tensor":
    """Ids and the baseline's ids, int32 [B, S], and the label, one-hot float32 [B, C], to attributions, float32 [B, S]."""
    import tensorflow as tf

    positions, weights = map(tf.constant, nodes(steps))
    start = network.embed(baseline)
    difference = network.embed(tokens) - start

    def step(index: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        point = start + positions[index] * difference
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(point)
            # Texts do not depend on each other, so the gradient of their sum has each text's own.
            score = tf.reduce_sum(tf.nn.softmax(network(tokens, embeddings=point)) * target)
        return index + 1, total + weights[index] * tape.gradient(score, point)

    _, total = tf.while_loop(
        lambda index, _: index < steps, step, [tf.constant(0), tf.zeros_like(start)], parallel_iterations=1
    )
    return tf.reduce_sum(total * difference, axis=-1)


def expected(
    network: "Network", tokenizer: "Tokenizer", text: bytes, *, labels: tuple[str, ...], steps: int
) -> dict[str, Any]:
    """What the signature must say of one text and its predicted label, computed independently: eager, no loop, no padding.

    All nodes are one batch; ids come from `Tokenizer.encode`.
    """
    import tensorflow as tf

    ids = tokenizer.encode([text])[0]
    baseline = ids.copy()
    baseline[1:-1] = tokenizer.vocabulary.index(tokenizer.unknown_word)
    pieces, starts, ends = tokenizer.ragged_with_offsets(tf.constant([text]))
    scores = tf.nn.softmax(network(tf.constant([ids, baseline]))).numpy()
    best = int(scores[0].argmax())
    positions, weights = nodes(steps)
    start, end = network.embed(tf.constant(baseline)), network.embed(tf.constant(ids))
    points = start + positions[:, np.newaxis, np.newaxis] * (end - start)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(points)
        path_scores = tf.nn.softmax(network(tf.repeat(ids[np.newaxis], steps, axis=0), embeddings=points))[:, best]
    mean_gradient = np.tensordot(weights, tape.gradient(path_scores, points).numpy(), axes=1)
    attributions = (mean_gradient * (end - start).numpy()).sum(axis=-1)[1:-1]
    score, baseline_score = float(scores[0, best]), float(scores[1, best])
    return {
        "tokens": [tokenizer.vocabulary[piece] for piece in pieces[0].numpy()],
        "starts": starts[0].numpy().tolist(),
        "ends": ends[0].numpy().tolist(),
        "attributions": attributions.tolist(),
        "label": labels[best],
        "score": score,
        "baseline_score": baseline_score,
        "gap": float(attributions.sum()) - (score - baseline_score),
    }
