"""Models of a few operations, for what a server does with any model: made in a tenth of a second."""

import shutil
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import tensorflow as tf


def small_model(base: Path, version: int) -> Path:
    """Version `version` under `base`, which appears whole. All its signatures say which version they are.

    serving_default   text string [B] -> length int32 [B], version float32 [B]
    pair              a float32 [B, 2], b int32 [B] -> sum float32 [B, 2]
    classify          inputs string [B] -> classes string [B, 2], scores float32 [B, 2]
    regress           inputs string [B] -> outputs float32 [B]
    scalar            text -> count int32 []
    half              text -> value float16 [B]
    echo              text -> same_bytes string [B]
    """
    number = float(version)

    def lengths(text):
        return {"length": tf.strings.length(text), "version": tf.fill(tf.shape(text), number)}

    def pair(a, b):
        return {"sum": a + tf.cast(b, tf.float32)[:, tf.newaxis]}

    def classify(inputs):
        texts = tf.io.parse_example(inputs, {"text": tf.io.FixedLenFeature([], tf.string)})["text"]
        scores = tf.stack([tf.cast(tf.strings.length(texts), tf.float32), tf.fill(tf.shape(texts), number)], axis=1)
        return {"classes": tf.tile([["long", "version"]], [tf.shape(texts)[0], 1]), "scores": scores}

    def regress(inputs):
        return {"outputs": classify(inputs)["scores"][:, 0]}

    text = [tf.TensorSpec([None], tf.string, name="text")]
    examples = [tf.TensorSpec([None], tf.string, name="inputs")]
    functions = {
        "serving_default": (lengths, text),
        "pair": (pair, [tf.TensorSpec([None, 2], tf.float32, name="a"), tf.TensorSpec([None], tf.int32, name="b")]),
        "classify": (classify, examples),
        "regress": (regress, examples),
        "scalar": (lambda text: {"count": tf.size(text)}, text),
        "half": (lambda text: {"value": tf.cast(tf.strings.length(text), tf.float16)}, text),
        "echo": (lambda text: {"same_bytes": tf.identity(text)}, text),
    }
    signatures = {
        name: tf.function(function, input_signature=spec, autograph=False)
        for name, (function, spec) in functions.items()
    }
    module = tf.Module()
    module.weight = tf.Variable(number)
    aside = Path(tempfile.mkdtemp(prefix=".making-", dir=base))
    tf.saved_model.save(module, str(aside), signatures=signatures)
    return aside.rename(base / str(version))


def copied(original: Path, base: Path, version: int) -> Path:
    """A version like `original`, which appears whole."""
    aside = shutil.copytree(original, base / f".copy-{version}")
    return aside.rename(base / str(version))


def fetch(url: str, body: bytes | str | None = None, **headers: str) -> tuple[int, str]:
    """The status and text of an HTTP answer, errors too."""
    data = body.encode() if isinstance(body, str) else body
    request = urllib.request.Request(url, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, response.read().decode(errors="surrogateescape")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
