"""Says what an exported model must hold and answer: golden texts with the answers of the model in memory, and its weights.

What goes out is read by verification.py, which imports nothing of this project, and by golden.py and warmup.py, which put
a part of it into the version.
"""

import base64
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from tff_pipeline.export import integrated_gradients, verification, weight_precision
from tff_pipeline.export.signatures import Signature, signatures

if TYPE_CHECKING:
    from tff_pipeline.config import ExportSection
    from tff_pipeline.model.network import Network
    from tff_pipeline.training.store import Trained

# Synthetic texts. What a server meets: plain, empty, blank, Chinese, emoji, special tokens, long, control characters,
# bytes that are not UTF-8 (two whole and one truncated), a word that is too long for the vocabulary, another script.
GOLDEN_TEXTS: tuple[bytes, ...] = (
    b"My card was stolen yesterday, please block it.",
    b"",
    b" \t\n ",
    "我的卡丢了，请帮我。".encode(),
    "thanks \U0001f600\U0001f44d\U0001f3fd".encode(),
    b"[CLS] [MASK] [SEP] [PAD] ##ing",
    b"why was I charged a fee of $3.50? " * 300,
    b"before\x00after \x07 end",
    b"caf\xe9 \xff\xfe broken",
    b"cut \xe6\x88",
    b"x" * 10_000,
    "Größe, naïve, İstanbul, ｆｕｌｌ ｗｉｄｔｈ, ½ ﬁne".encode(),
    "карта украдена".encode(),
    b"ok",
)
# Those of them whose explanation is compared: plain, empty, Chinese, special tokens, not UTF-8, other lengths than their
# lower case. An explanation costs about a hundred predictions, so the long ones are left to the tests.
EXPLAINED_TEXTS = frozenset({0, 1, 3, 5, 8, 11})


class ExpectedWeight(TypedDict):
    """One array of the file with the weights: its name there, the variable's name, and the digest of its value."""

    key: str
    name: str
    digest: str


class VerificationRequest(TypedDict):
    """What verification.py compares a version with.

    `texts` are golden texts in base64, `tokens` their ids. `expected` has for each signature what it must answer to each
    text, or None where that is not compared.
    """

    name: str
    labels: list[str]
    pad_id: int
    signatures: dict[str, Signature]
    stored_as: str
    weights: list[ExpectedWeight]
    texts: list[str]
    tokens: list[list[int]]
    expected: dict[str, list[dict[str, Any] | None]]


def verification_request(
    trained: "Trained", weights: Sequence[np.ndarray], settings: "ExportSection", *, name: str
) -> VerificationRequest:
    """Asks the model in memory about the golden texts, and digests what is to be stored of its weights.

    Its answers take the path of preparation and training (`Tokenizer.encode`, eager network, one text at a time, CPU), not
    that of the exported graph.

    Args:
      trained: the model, with the weights that the version computes with.
      weights: its weights as they were trained, float32 in the network's order.
      settings: how it is exported.
      name: the name it is served by.
    """
    network, tokenizer = trained.network, trained.tokenizer
    stored = weight_precision.store(network, weights, settings.weights)
    of_task = signatures(network.task, explain=settings.explain_steps > 0)
    tokens, expected = _expected_answers(trained, of_task, steps=settings.explain_steps)
    return {
        "name": name,
        "labels": list(trained.labels),
        "pad_id": tokenizer.pad_id,
        "signatures": of_task,
        "stored_as": settings.weights,
        "weights": list(_expected_weights(network, stored)),
        "texts": [_base64(text) for text in GOLDEN_TEXTS],
        "tokens": tokens,
        "expected": expected,
    }


def _expected_answers(
    trained: "Trained", of_task: dict[str, Signature], *, steps: int
) -> tuple[list[list[int]], dict[str, list[dict[str, Any] | None]]]:
    """The ids of each golden text, and for each signature its answers."""
    import tensorflow as tf

    network, tokenizer = trained.network, trained.tokenizer
    tokens: list[list[int]] = []
    expected: dict[str, list[dict[str, Any] | None]] = {signature: [] for signature in of_task}
    with tf.device("CPU"):
        for index, text in enumerate(GOLDEN_TEXTS):
            words = text.split()
            by_word = network.task == "token_classification"
            ids, first = tokenizer.encode_words(words) if by_word else (tokenizer.encode([text])[0], None)
            probabilities = tf.nn.softmax(network(tf.constant(ids[np.newaxis]))).numpy()[0]
            tokens.append(ids.tolist())
            expected["tokens"].append({"probabilities": probabilities.tolist()})
            answers = probabilities if first is None else probabilities[first >= 0]
            expected["serving_default"].append(
                {"probabilities": answers.tolist(), "words": [_base64(word) for word in words]}
            )
            if "classify" in expected:
                expected["classify"].append({"probabilities": answers.tolist()})
            if "explain" in expected:
                explanation = None
                if index in EXPLAINED_TEXTS:
                    explanation = integrated_gradients.expected(
                        network, tokenizer, text, labels=trained.labels, steps=steps
                    )
                expected["explain"].append(explanation)
    return tokens, expected


def _expected_weights(network: "Network", stored: Sequence[weight_precision.Stored]) -> Iterator[ExpectedWeight]:
    """Every array that is stored: weights in the network's order, each followed by its scale where it has one."""
    scales = 0
    for index, (variable, weight) in enumerate(zip(network.variables, stored, strict=True)):
        yield {"key": f"weights/{index}", "name": variable.name, "digest": verification.array_digest(weight.value)}
        if weight.scale is not None:
            digest = verification.array_digest(weight.scale)
            yield {"key": f"scales/{scales}", "name": f"{variable.name}, scale", "digest": digest}
            scales += 1


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()
