"""BERT and its head: built from the configuration, loaded from a checkpoint, split into what is trained and what is not.

The network is transformers' own `TFBertForSequenceClassification` or `TFBertForTokenClassification` on tf-keras.
Sequence classification pools in one of two ways:

* "pooler": the checkpoint's own pooler over [CLS], as transformers does;
* "mean": the mean of the token vectors, normalized per text to mean 0 and variance 1 (statistics of the data would be
  a release of their own). Sentence encoders such as all-MiniLM were trained with it.

Dropout is off: its random draws would make a resumed run differ from an uninterrupted one, and the clip and the noise
already regularize. The head starts at zero.
"""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf
import tf_keras
from transformers import BertConfig, TFBertForSequenceClassification, TFBertForTokenClassification

from tff_pipeline.config import ModelSection
from tff_pipeline.data.tokenization import Tokenizer, checkpoint_folder
from tff_pipeline.errors import ArtifactError, ConfigError
from tff_pipeline.model.adapters import Adapters, adapt

Task = Literal["sequence_classification", "token_classification"]
_NORM_EPSILON = 1e-6
_NOT_ATTENDED = -10_000.0  # added to a score by transformers too: its softmax is 0 in float32


def bert_config(model: ModelSection, tokenizer: Tokenizer) -> Any:
    """The encoder's sizes as a transformers BertConfig: the checkpoint's, or the configuration's for checkpoint = "random".

    Raises:
      ConfigError: if the checkpoint is not a BERT, or its sizes do not fit the tokenizer.
    """
    config: Any
    if model.checkpoint == "random":
        config = BertConfig(
            vocab_size=len(tokenizer.vocabulary),
            hidden_size=model.hidden_size,
            num_hidden_layers=model.num_hidden_layers,
            num_attention_heads=model.num_attention_heads,
            intermediate_size=model.intermediate_size,
            max_position_embeddings=max(64, tokenizer.max_length),
        )
    else:
        folder = checkpoint_folder(model.checkpoint)
        try:
            config = BertConfig.from_pretrained(str(folder))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"model.checkpoint {model.checkpoint!r}: {folder / 'config.json'} cannot be read ({type(error).__name__}); expected a BERT's configuration. Download the checkpoint again, or name another."
            ) from None
        if config.model_type != "bert":
            raise ConfigError(
                f"model.checkpoint {model.checkpoint!r} is a {config.model_type!r} model; expected a BERT. Name another checkpoint."
            )
    if len(tokenizer.vocabulary) > config.vocab_size:
        raise ConfigError(
            f"the vocabulary has {len(tokenizer.vocabulary)} entries, the checkpoint embeds {config.vocab_size}; expected the checkpoint's own vocabulary. Leave model.vocabulary out, or name the vocabulary that belongs to the checkpoint."
        )
    if tokenizer.max_length > config.max_position_embeddings:
        raise ConfigError(
            f"prepare.max_length is {tokenizer.max_length}, the checkpoint has {config.max_position_embeddings} positions; expected at most that. Lower prepare.max_length and prepare the silos again."
        )
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = config.classifier_dropout = 0.0
    config.pad_token_id = tokenizer.pad_id
    return config


class Network:
    """An encoder and a head over token ids.

    Args:
      config: the encoder's sizes.
      labels: number of labels C.
      task: what is classified, texts or tokens.
      pooling: "mean" or "pooler"; token classification has no pooling.
      adapters: low-rank adapters beside the attention's projections, or None.
    """

    def __init__(self, config: BertConfig, *, labels: int, task: Task, pooling: str, adapters: Adapters | None = None):
        self.task, self.pooling, self.labels = task, pooling, labels
        self._config = config
        config.num_labels = labels
        kind = TFBertForSequenceClassification if task == "sequence_classification" else TFBertForTokenClassification
        self.transformer = kind(config)
        self.transformer.build_in_name_scope()
        # Collected before the adapters are added.
        self._encoder = [
            variable
            for variable in self.transformer.bert.trainable_variables
            if pooling == "pooler" or "/pooler/" not in variable.name
        ]
        self._adapted = adapt(self.transformer.bert, adapters) if adapters else []
        self.pad_id = config.pad_token_id
        self.hidden_size = config.hidden_size

    @property
    def head_variables(self) -> list[tf.Variable]:
        """Kernel float32 [hidden, C] and bias float32 [C]."""
        return list(self.transformer.classifier.trainable_variables)

    @property
    def encoder_variables(self) -> list[tf.Variable]:
        """The checkpoint's own, as far as the head's input depends on them; an unused pooler is left out."""
        return self._encoder

    @property
    def adapter_variables(self) -> list[tf.Variable]:
        """A (float32 [d, r]) and B (float32 [r, k]) of every adapted projection; none without adapters."""
        return [variable for adapted in self._adapted for variable in (adapted.down, adapted.up)]

    @property
    def variables(self) -> list[tf.Variable]:
        """Encoder, adapters, head: the order in which weights are stored and aggregated."""
        return self.encoder_variables + self.adapter_variables + self.head_variables

    def trained_variables(self, trainable: str) -> list[tf.Variable]:
        """The variables that `model.trainable` trains: always the last of `variables`."""
        if trainable == "full":
            return self.variables
        return (self.adapter_variables if trainable == "lora" else []) + self.head_variables

    def merged(self) -> "Network":
        """The same function as a network without adapters."""
        if not self._adapted:
            return self
        plain = Network(self._config, labels=self.labels, task=self.task, pooling=self.pooling)
        kernels = {adapted.dense.kernel.ref(): adapted.merged_kernel() for adapted in self._adapted}
        encoder = [kernels.get(variable.ref(), variable).numpy() for variable in self.encoder_variables]
        plain.set_weights([*encoder, *(variable.numpy() for variable in self.head_variables)])
        return plain

    @property
    def embedding_table(self) -> tf.Variable:
        """float32 [vocabulary, hidden], of words."""
        return self.transformer.bert.embeddings.weight

    def embed(self, tokens: tf.Tensor) -> tf.Tensor:
        """The word embeddings, before positions are added: int32 [batch, length] to float32 [batch, length, hidden]."""
        return tf.gather(self.embedding_table, tokens)

    def features(self, tokens: tf.Tensor, embeddings: tf.Tensor | None = None) -> tf.Tensor:
        """The head's inputs: int32 [batch, length] to float32 [batch, hidden], or [batch, length, hidden] for tokens.

        With `embeddings`, they are used in place of what `embed` gives, and `tokens` only say what is padding.
        """
        mask = tf.cast(tf.not_equal(tokens, self.pad_id), tf.int32)
        inputs = {"input_ids": tokens} if embeddings is None else {"input_ids": None, "inputs_embeds": embeddings}
        outputs = self.transformer.bert(**inputs, attention_mask=mask, training=False)
        if self.task == "token_classification":
            return outputs[0]
        if self.pooling == "pooler":
            return outputs[1]
        weights = tf.cast(mask, tf.float32)[:, :, tf.newaxis]
        mean = tf.reduce_sum(outputs[0] * weights, axis=1) / tf.maximum(tf.reduce_sum(weights, axis=1), 1.0)
        return _normalized(mean)

    def packed_features(self, tokens: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        """`features` of texts that lie one after the other, without padding.

        They go through the encoder as one sequence, in which a token attends to its own text only and positions count from
        the text's beginning. Attention takes time and memory with the square of `t`.

        Args:
          tokens: int32 [t], of all texts.
          lengths: int32 [n], of each text; at least 1.

        Returns:
          float32 [n, hidden], or [t, hidden] for token classification; equal to `features` but for rounding.
        """
        text = tf.repeat(tf.range(tf.size(lengths)), lengths)
        starts = tf.cumsum(lengths, exclusive=True)
        mask = tf.not_equal(tokens, self.pad_id)
        attended = tf.logical_and(tf.equal(text[:, tf.newaxis], text), mask)
        bert: Any = self.transformer.bert
        # Attention within each text needs a mask of two dimensions, which the layer as a whole does not take.
        embedded = bert.embeddings(
            input_ids=tokens[tf.newaxis], position_ids=(tf.range(tf.size(tokens)) - tf.gather(starts, text))[tf.newaxis]
        )
        encoded = bert.encoder(
            hidden_states=embedded,
            attention_mask=tf.where(attended, 0.0, _NOT_ATTENDED)[tf.newaxis, tf.newaxis],
            head_mask=[None] * len(bert.encoder.layer),
            encoder_hidden_states=None,
            encoder_attention_mask=None,
            past_key_values=None,
            use_cache=False,
            output_attentions=False,
            output_hidden_states=False,
            return_dict=False,
            training=False,
        )[0][0]
        if self.task == "token_classification":
            return encoded
        if self.pooling == "pooler":
            return bert.pooler(hidden_states=tf.gather(encoded, starts)[:, tf.newaxis])
        weights = tf.cast(mask, tf.float32)[:, tf.newaxis]
        total, count = tf.math.segment_sum(encoded * weights, text), tf.math.segment_sum(weights, text)
        return _normalized(total / tf.maximum(count, 1.0))

    @functools.cached_property
    def encode_packed(self) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
        """`packed_features` as one traced function, with the weights of whenever it is called: tracing takes seconds."""
        signature = [tf.TensorSpec([None], tf.int32)] * 2
        return tf.function(self.packed_features, input_signature=signature, autograph=False).get_concrete_function()

    def head(self, features: tf.Tensor) -> tf.Tensor:
        """float32 [..., hidden] to logits, float32 [..., C]."""
        kernel, bias = self.head_variables
        return tf.tensordot(features, kernel, axes=1) + bias

    def __call__(self, tokens: tf.Tensor, embeddings: tf.Tensor | None = None) -> tf.Tensor:
        """int32 [batch, length] to logits, float32 [batch, C] or [batch, length, C]; `embeddings` as in `features`."""
        return self.head(self.features(tokens, embeddings))

    def set_weights(self, values: Sequence[np.ndarray]) -> None:
        """Assigns `variables`. Raises ArtifactError where number or shapes differ."""
        shapes = [tuple(variable.shape) for variable in self.variables]
        if [value.shape for value in values] != shapes:
            raise ArtifactError(
                f"the stored weights are {len(values)} arrays that do not fit the {len(shapes)} variables of this model; expected the weights of such a model. Use the configuration that the run was made with."
            )
        for variable, value in zip(self.variables, values, strict=True):
            variable.assign(value)


def _normalized(vectors: tf.Tensor) -> tf.Tensor:
    """Each of float32 [n, hidden] with mean 0 and variance 1."""
    mean, variance = tf.nn.moments(vectors, axes=[-1], keepdims=True)
    return (vectors - mean) * tf.math.rsqrt(variance + _NORM_EPSILON)


@contextmanager
def replaced_initializers(values: Callable[[int], tf.Tensor | None] | None = None) -> Iterator[list[tf.Variable]]:
    """Makes variables start at zero, or at what `values` gives for the index of a variable in the order they are made (None: zero).

    Inside a TFF graph every client would draw millions of random numbers only to overwrite them.

    Yields:
      The weights made in the block, in order, which is the same in eager code and in graphs.
    """
    made: list[tf.Variable] = []

    def creator(next_creator: Callable[..., tf.Variable], **kwargs: Any) -> tf.Variable:
        initial, shape, dtype, index = kwargs["initial_value"], kwargs.get("shape"), kwargs.get("dtype"), len(made)
        if not (callable(initial) and shape is not None and dtype is not None and tf.as_dtype(dtype).is_floating):
            # Not a weight: where it runs eagerly, Keras keeps the seeds of dropout in variables too.
            return next_creator(**kwargs)

        def value() -> tf.Tensor:
            stored = values(index) if values else None
            return tf.zeros(shape, dtype) if stored is None else tf.ensure_shape(stored, shape)

        made.append(next_creator(**{**kwargs, "initial_value": value}))
        return made[-1]

    with tf.variable_creator_scope(creator):
        yield made


def network_of(model: ModelSection, tokenizer: Tokenizer, *, labels: int, task: Task) -> Network:
    """The network of a configuration. Its weights are not set."""
    adapters = Adapters(model.lora_rank, model.lora_alpha, model.lora_targets) if model.trainable == "lora" else None
    return Network(bert_config(model, tokenizer), labels=labels, task=task, pooling=model.pooling, adapters=adapters)


def base_network(model: ModelSection, tokenizer: Tokenizer, *, labels: int, task: Task, seed: int | None) -> Network:
    """The network before training: the checkpoint's encoder (or a random one), and a head of zeros.

    A random encoder and adapters are drawn from `seed`, or from the operating system where there is none.
    """
    if model.checkpoint == "random" or model.trainable == "lora":
        tf_keras.utils.set_random_seed(seed if seed is not None else int.from_bytes(os.urandom(4), "big"))
    network = network_of(model, tokenizer, labels=labels, task=task)
    if model.checkpoint != "random":
        _load_encoder(network, checkpoint_folder(model.checkpoint), model.checkpoint)
    for variable in network.head_variables:
        variable.assign(tf.zeros_like(variable))
    return network


def _load_encoder(network: Network, folder: Path, name: str) -> None:
    kind = type(network.transformer)
    try:
        loaded, report = kind.from_pretrained(
            str(folder), num_labels=network.labels, ignore_mismatched_sizes=True, output_loading_info=True
        )
    except OSError as error:
        raise ConfigError(
            f"model.checkpoint {name!r}: no weights that TensorFlow can load ({type(error).__name__}); expected model.safetensors or tf_model.h5 in {folder}. Put one of them there, or name another checkpoint."
        ) from error
    missing = [
        key
        for key in report["missing_keys"]
        if "classifier" not in key and (network.pooling == "pooler" or "pooler" not in key)
    ]
    if missing:
        raise ConfigError(
            f"model.checkpoint {name!r} lacks {len(missing)} of the encoder's weights, {missing[0]!r} first; expected a whole BERT. Name another checkpoint."
        )
    used = [
        variable for variable in loaded.bert.weights if network.pooling == "pooler" or "/pooler/" not in variable.name
    ]
    for ours, theirs in zip(network.encoder_variables, used, strict=True):
        ours.assign(theirs)
