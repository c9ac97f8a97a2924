"""Writes the SavedModel of a trained model: the network and its tokenizer in one graph, a function for each signature.

signatures.py describes what the functions take and return.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tff_pipeline.export import integrated_gradients, weight_precision

if TYPE_CHECKING:
    import tensorflow as tf

    from tff_pipeline.config import ExportSection
    from tff_pipeline.data.tokenization import Tokenizer
    from tff_pipeline.model.network import Network
    from tff_pipeline.training.store import Trained

    Function = tf.types.experimental.GenericFunction


def save(trained: "Trained", directory: Path, settings: "ExportSection") -> None:
    """Writes the SavedModel: the network's weights, the vocabulary, the labels, and nothing else."""
    import tensorflow as tf

    network, tokenizer = trained.network, trained.tokenizer
    module: Any = tf.Module()
    stored = weight_precision.store(network, [variable.numpy() for variable in network.variables], settings.weights)
    with without_unused_pooler(network), weight_precision.replaced(network, stored) as (module.weights, module.scales):
        functions = {
            "serving_default": _text_function(network, tokenizer, trained.labels),
            "tokens": _tokens_function(network, trained.labels),
        }
        if network.task == "sequence_classification":
            functions["classify"] = _examples_function(network, tokenizer, trained.labels)
            if settings.explain_steps:
                functions["explain"] = integrated_gradients.explain_function(
                    network, tokenizer, trained.labels, steps=settings.explain_steps
                )
        signatures = {name: function.get_concrete_function() for name, function in functions.items()}
    tf.saved_model.save(module, str(directory), signatures=signatures)


@contextmanager
def without_unused_pooler(network: "Network") -> Iterator[None]:
    """Graphs that are traced in the block do not carry the pooler's weights where nothing reads its output."""
    encoder = network.transformer.bert
    if network.task == "token_classification" or network.pooling == "pooler":
        yield
        return
    pooler, encoder.pooler = encoder.pooler, None
    try:
        yield
    finally:
        encoder.pooler = pooler


def _text_function(network: "Network", tokenizer: "Tokenizer", labels: Sequence[str]) -> "Function":
    import tensorflow as tf

    def classify_text(text: tf.Tensor) -> dict[str, tf.Tensor]:
        tokens = tokenizer.ragged(text).to_tensor(default_value=tokenizer.pad_id)
        return _text_answer(network(tokens), labels)

    def classify_words(text: tf.Tensor) -> dict[str, tf.Tensor]:
        words = tf.strings.split(text)
        tokens, first_pieces = _word_tokens(words, tokenizer)
        # Truncated words have no answer, but keep their position: all outputs are as wide as the most words.
        width = words.bounding_shape(axis=1)
        mask = tf.sequence_mask(first_pieces.row_lengths(), maxlen=width, dtype=tf.int32)
        positions = first_pieces.to_tensor(default_value=0, shape=tf.stack([words.nrows(), width]))
        answers = tf.gather(tf.nn.softmax(network(tokens)), positions, batch_dims=1)
        return {"tokens": words.to_tensor(default_value=""), **_word_answer(answers, mask, labels)}

    function = classify_text if network.task == "sequence_classification" else classify_words
    return tf.function(function, input_signature=[tf.TensorSpec([None], tf.string, name="text")], autograph=False)


def _tokens_function(network: "Network", labels: Sequence[str]) -> "Function":
    import tensorflow as tf

    def classify_tokens(input_ids: tf.Tensor) -> dict[str, tf.Tensor]:
        logits = network(input_ids)
        if network.task == "sequence_classification":
            return _text_answer(logits, labels)
        return _word_answer(tf.nn.softmax(logits), tf.cast(tf.not_equal(input_ids, network.pad_id), tf.int32), labels)

    return tf.function(
        classify_tokens, input_signature=[tf.TensorSpec([None, None], tf.int32, name="input_ids")], autograph=False
    )


def _examples_function(network: "Network", tokenizer: "Tokenizer", labels: Sequence[str]) -> "Function":
    import tensorflow as tf

    def classify_examples(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        texts = tf.io.parse_example(inputs, {"text": tf.io.FixedLenFeature([], tf.string)})["text"]
        tokens = tokenizer.ragged(texts).to_tensor(default_value=tokenizer.pad_id)
        classes = tf.repeat(tf.constant([list(labels)]), tf.shape(texts)[0], axis=0)
        return {"classes": classes, "scores": tf.nn.softmax(network(tokens))}

    # A server's Classify knows no other name for its input.
    spec = [tf.TensorSpec([None], tf.string, name="inputs")]
    return tf.function(classify_examples, input_signature=spec, autograph=False)


def _text_answer(logits: "tf.Tensor", labels: Sequence[str]) -> dict[str, "tf.Tensor"]:
    import tensorflow as tf

    probabilities = tf.nn.softmax(logits)
    return {
        "label": tf.gather(tf.constant(list(labels)), tf.argmax(probabilities, axis=-1)),
        "score": tf.reduce_max(probabilities, axis=-1),
        "probabilities": probabilities,
    }


def _word_answer(probabilities: "tf.Tensor", mask: "tf.Tensor", labels: Sequence[str]) -> dict[str, "tf.Tensor"]:
    """float32 [B, S, C] and int32 [B, S] to labels, scores and mask; blank where the mask is 0."""
    import tensorflow as tf

    best = tf.gather(tf.constant(list(labels)), tf.argmax(probabilities, axis=-1))
    return {
        "labels": tf.where(mask > 0, best, tf.constant("")),
        "scores": tf.reduce_max(probabilities, axis=-1) * tf.cast(mask, tf.float32),
        "mask": mask,
    }


def _word_tokens(words: "tf.RaggedTensor", tokenizer: "Tokenizer") -> tuple["tf.Tensor", "tf.RaggedTensor"]:
    """`Tokenizer.encode_words` in a graph, for many sentences at once.

    Returns:
      ids int32 [B, S], padded; and the position of each word's first piece among them, int64 [B, (words that fit)].
    """
    import tensorflow as tf

    pieces = tokenizer.ragged_words(words.flat_values)
    counts = words.with_flat_values(pieces.row_lengths())
    starts = tf.cumsum(pieces.row_lengths(), exclusive=True)
    first_of_row = tf.gather(tf.concat([starts, [tf.size(pieces.flat_values, tf.int64)]], axis=0), words.row_starts())
    first_pieces = words.with_flat_values(starts - tf.gather(first_of_row, words.value_rowids()))
    room = tokenizer.max_length - 2
    first_pieces = tf.ragged.boolean_mask(first_pieces, first_pieces < room) + 1
    ragged: Any = tf.RaggedTensor
    ids = ragged.from_row_lengths(pieces.flat_values, tf.reduce_sum(counts, axis=1))[:, :room]
    rows = words.nrows(tf.int32)
    framed: Any = tf.concat([tf.fill([rows, 1], tokenizer.cls_id), ids, tf.fill([rows, 1], tokenizer.sep_id)], axis=1)
    return framed.to_tensor(default_value=tokenizer.pad_id), first_pieces
