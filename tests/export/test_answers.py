"""What an exported version answers, over every signature."""

import numpy as np
import pytest
import tensorflow as tf
from builders.serving_fixtures import LABELS, SILOS, TAGS, exported

from tff_pipeline.training.store import load_trained


@pytest.fixture(scope="module")
def signatures(version):
    return tf.saved_model.load(str(version)).signatures


def test_answers_are_those_of_the_model_in_memory(run, signatures):
    trained = load_trained(run)
    texts = [text for data in SILOS.values() for client in data.splits["test"] for text, *_ in client]
    answer = signatures["serving_default"](text=tf.constant(texts))

    logits = [trained.network(trained.tokenizer.encode([each])[0][np.newaxis]).numpy()[0] for each in texts]
    np.testing.assert_allclose(answer["probabilities"], tf.nn.softmax(logits), atol=1e-5)
    assert [label.decode() for label in answer["label"].numpy()] == [LABELS[row.argmax()] for row in logits]
    assert len({*answer["label"].numpy()}) > 1, "the fixture must tell texts apart"


@pytest.mark.parametrize(
    "given",
    [b"", b"\xff\xfe\x80", b"x" * 10_000, b"my fee " * 2_000, "\U0001f600我的卡".encode(), b"\x00", b"[MASK] ##"],
)
def test_any_bytes_get_an_answer(signatures, given):
    answer = signatures["serving_default"](text=tf.constant([given]))

    assert answer["label"].numpy()[0].decode() in LABELS
    assert answer["probabilities"].shape == (1, 3)
    assert answer["probabilities"].numpy().sum() == pytest.approx(1, abs=1e-5)
    assert answer["score"].numpy()[0] == answer["probabilities"].numpy().max()


def test_names_and_types_of_the_signatures(signatures):
    shapes = {"label": ("string", [None]), "score": ("float32", [None]), "probabilities": ("float32", [None, 3])}
    for name, key, spec in (
        ("serving_default", "text", ("string", [None])),
        ("tokens", "input_ids", ("int32", [None, None])),
    ):
        signature = signatures[name]
        inputs = signature.structured_input_signature[1]
        assert {each: (found.dtype.name, found.shape.as_list()) for each, found in inputs.items()} == {key: spec}
        assert {
            each: (found.dtype.name, found.shape.as_list()) for each, found in signature.structured_outputs.items()
        } == shapes


def test_ids_get_the_answer_of_their_text_however_they_are_padded(run, signatures):
    trained = load_trained(run)
    ids = trained.tokenizer.encode(["why was the fee charged"])[0]
    padded = np.concatenate([ids, np.full(7, trained.tokenizer.pad_id, np.int32)])

    expected = signatures["serving_default"](text=tf.constant(["why was the fee charged"]))["probabilities"]
    for given in (ids, padded):
        np.testing.assert_allclose(
            signatures["tokens"](input_ids=tf.constant(given[np.newaxis]))["probabilities"], expected, atol=1e-5
        )


def test_words_get_a_label_each():
    """Token classification: words between white space, those beyond max_length (24 ids) without an answer."""
    run, path = exported("token_classification")
    answer = tf.saved_model.load(str(path)).signatures["serving_default"](
        text=tf.constant(["my  card\tis lost", "", "fee " * 30])
    )
    found = {name: value.numpy() for name, value in answer.items()}

    assert {name: value.shape for name, value in found.items()} == dict.fromkeys(
        ("tokens", "labels", "scores", "mask"), (3, 30)
    )
    assert found["tokens"][0].tolist() == [b"my", b"card", b"is", b"lost", *[b""] * 26]
    assert found["mask"].sum(axis=1).tolist() == [4, 0, 22]
    assert found["tokens"][2].tolist() == [b"fee"] * 30
    assert set(found["labels"][found["mask"] == 1]) <= {tag.encode() for tag in TAGS}
    assert not found["labels"][found["mask"] == 0].any()
    trained = load_trained(run)
    logits = trained.network(trained.tokenizer.encode_words(["my", "card", "is", "lost"])[0][np.newaxis]).numpy()[
        0, 1:-1
    ]
    assert found["labels"][0, :4].tolist() == [TAGS[row.argmax()].encode() for row in logits]


def test_examples_get_the_scores_of_their_texts(signatures):
    """What a server's Classify is asked: a serialized Example with the feature `text`."""
    texts = ["my card is lost", "", "why the fee"]
    examples = [
        tf.train.Example(
            features=tf.train.Features(
                feature={"text": tf.train.Feature(bytes_list=tf.train.BytesList(value=[text.encode()]))}
            )
        ).SerializeToString()
        for text in texts
    ]
    answer = signatures["classify"](inputs=tf.constant(examples))

    assert answer["classes"].numpy().tolist() == [[label.encode() for label in LABELS]] * 3
    expected = signatures["serving_default"](text=tf.constant(texts))["probabilities"]
    np.testing.assert_allclose(answer["scores"], expected, atol=1e-6)
