"""The project's client, and that every way of asking a served model gives what the model in memory says."""

import json
import re
import shutil
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
import numpy as np
import pytest
import tensorflow as tf
from builders.serving_fixtures import LABELS, exported
from builders.serving_models import fetch
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from serving import golden
from serving.client import GrpcClient, RestClient, ServerError, ServerTimeout, ServerUnavailable
from serving.local_server.server import LocalModelServer, Options
from serving.model_server.models_config import ModelConfig
from tff_pipeline.artifacts import read_manifest, seal
from tff_pipeline.training.store import load_trained

WORDS = "my card is lost why the fee charged close account help please doctor visit claim paid 我 的 卡 \U0001f600 ½".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def server():
    version = exported()[1]
    with LocalModelServer([ModelConfig("desk", version.parent)], Options(port=0, rest_port=0)) as running:
        yield running


@pytest.fixture(scope="module", params=["rest", "grpc"])
def client(request, server):
    """Both clients: the same calls, the same answers."""
    opened = (
        RestClient(f"http://127.0.0.1:{server.rest_port}", "desk")
        if request.param == "rest"
        else GrpcClient(f"127.0.0.1:{server.port}", "desk")
    )
    with opened:
        yield opened


@pytest.fixture(scope="module")
def texts():
    """A thousand: short and long, other scripts, empty, bytes that are no UTF-8."""
    random = np.random.default_rng(1)
    made = [" ".join(random.choice(WORDS, random.integers(0, 40))).encode() for _ in range(990)]
    return [
        *made,
        b"",
        b" ",
        b"\xff\xfe",
        b"cut \xe6\x88",
        b"x" * 5000,
        b"nul \x00 in it",
        b'"\\',
        b"\n\t",
        b"[SEP]",
        b"{}",
    ]


@pytest.fixture(scope="module")
def expected(texts):
    """What the model in memory says: `Tokenizer.encode` as in training, and the eager network."""
    trained = load_trained(exported()[0])
    found = []
    for batch in batches(texts):
        ids, lengths = trained.tokenizer.encode(batch)
        padded = tf.RaggedTensor.from_row_lengths(ids, lengths).to_tensor(trained.tokenizer.pad_id)
        found.append(tf.nn.softmax(trained.network(padded)).numpy())
    return np.concatenate(found)


def batches(texts):
    return [texts[start : start + 50] for start in range(0, len(texts), 50)]


def test_our_clients_get_what_the_model_in_memory_says(client, texts, expected):
    found = np.concatenate([client.predict(batch).outputs["probabilities"] for batch in batches(texts)])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_stock_client_gets_what_the_model_in_memory_says(server, texts, expected):
    found = []
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        for batch in batches(texts):
            request = predict_pb2.PredictRequest()
            request.model_spec.name = "desk"
            request.inputs["text"].CopyFrom(tf.make_tensor_proto(batch))
            found.append(tf.make_ndarray(stub.Predict(request, 10).outputs["probabilities"]))
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-5)


def test_plain_http_gets_what_the_model_in_memory_says(server, texts, expected):
    """As curl asks, also with the bytes that are no UTF-8 as they are."""
    found = []
    for batch in batches(texts):
        body = json.dumps({"instances": [text.decode(errors="surrogateescape") for text in batch]}, ensure_ascii=False)
        status, answer = fetch(
            f"http://127.0.0.1:{server.rest_port}/v1/models/desk:predict", body.encode(errors="surrogateescape")
        )
        assert status == 200
        found += [row["probabilities"] for row in json.loads(answer)["predictions"]]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_answer_has_the_outputs_of_the_signature(client):
    answer = client.predict(["my card", b"\xff"])
    assert {name: value.shape for name, value in answer.outputs.items()} == {
        "label": (2,),
        "score": (2,),
        "probabilities": (2, 3),
    }
    assert {label.decode() for label in answer.outputs["label"]} <= set(LABELS)
    assert answer.outputs["score"].dtype == np.float32
    ids = client.predict_inputs({"input_ids": [[2, 7, 3]]}, signature="tokens")
    assert ids.outputs["probabilities"].shape == (1, 3)


def test_classify_gives_the_score_of_every_label(client):
    """By the server's Classify, with the signature that takes examples."""
    (scores,) = client.classify(["my card"])
    expected = client.predict(["my card"]).outputs["probabilities"][0]
    assert list(scores) == list(LABELS)
    np.testing.assert_allclose(list(scores.values()), expected, atol=1e-6)


def test_states(client):
    assert client.states() == {1: "AVAILABLE"}


def test_a_refusal_says_what_the_server_said(client):
    with pytest.raises(ServerError, match=r"127\.0\.0\.1.*the server answered .*\"no\" not found"):
        client.predict(["a"], signature="no")
    with pytest.raises(ServerError) as refused:
        client.predict_inputs({"input_ids": ["a"]}, signature="tokens")
    assert refused.value.code in ("HTTP 400", "INVALID_ARGUMENT")


def test_a_version_that_is_not_there(server):
    with RestClient(f"http://127.0.0.1:{server.rest_port}", "desk", version=9) as client:
        with pytest.raises(ServerError, match=r"HTTP 404: Servable not found for request: Specific\(desk, 9\)"):
            client.predict(["a"])
    with GrpcClient(f"127.0.0.1:{server.port}", "desk", label="gone") as client:
        with pytest.raises(ServerError, match="INVALID_ARGUMENT: Unrecognized servable version label: gone"):
            client.predict(["a"])
    with pytest.raises(ValueError, match="give one of them"):
        RestClient("http://localhost:8501", "desk", version=1, label="stable")


def test_threads_may_share_a_client(client):
    """Each text gets its own answer."""
    alone = {text: client.predict([text]).outputs["score"][0] for text in WORDS[:8]}
    wrong = []

    def ask(text):
        for _ in range(20):
            if abs(client.predict([text]).outputs["score"][0] - alone[text]) > 1e-5:
                wrong.append(text)

    threads = [threading.Thread(target=ask, args=(text,)) for text in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert wrong == []


# -- servers that are not well -----------------------------------------------------------------------------------------


class Faulty(HTTPServer):
    """Answers by a list of statuses, the last of them for good; counts what it was asked."""

    def __init__(self, *statuses):
        self.statuses, self.asked = list(statuses), 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                server.asked += 1
                self.rfile.read(int(self.headers["Content-Length"]))
                status = server.statuses.pop(0) if len(server.statuses) > 1 else server.statuses[0]
                if status is None:
                    time.sleep(0.6)
                    return
                body = b'{"outputs": ["x"]}' if status == 200 else b'{"error": "queue is full"}'
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def client(self, timeout_s=5.0):
        return RestClient(f"http://127.0.0.1:{self.server_port}", "desk", timeout_s=timeout_s)


def test_unavailable_is_asked_again():
    with Faulty(503, 503, 200) as server, server.client() as client:
        assert client.predict(["a"]).outputs["outputs"].tolist() == [b"x"]
        assert server.asked == 3


@pytest.mark.parametrize("status", [400, 404, 500, 504])
def test_other_failures_are_not_asked_again(status):
    with Faulty(status) as server, server.client() as client:
        with pytest.raises(ServerError, match=f"HTTP {status}: queue is full"):
            client.predict(["a"])
        assert server.asked == 1


def test_a_timeout_is_not_asked_again():
    with Faulty(None) as server, server.client(timeout_s=0.2) as client:
        with pytest.raises(ServerTimeout, match=r"no answer in 0\.2 s"):
            client.predict(["a"])
        assert server.asked == 1


def test_nobody_there():
    """Asked until the time is over, and not longer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for client in (
        RestClient(f"http://127.0.0.1:{port}", "desk", timeout_s=0.3),
        GrpcClient(f"127.0.0.1:{port}", "desk", timeout_s=0.3),
    ):
        started = time.monotonic()
        with client, pytest.raises((ServerUnavailable, ServerTimeout), match=re.escape(f"127.0.0.1:{port}")):
            client.predict(["a"])
        assert time.monotonic() - started < 2


def test_an_address_without_a_scheme():
    with pytest.raises(ValueError, match="expected an address such as http://localhost:8501"):
        RestClient("localhost:8501", "desk")


# -- golden pairs, against any server ----------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["sequence_classification", "token_classification"])
def test_a_server_gives_the_golden_answers(task, capsys):
    version = exported(task)[1]
    with LocalModelServer([ModelConfig("desk", version.parent)], Options(port=0, rest_port=0)) as running:
        addresses = ["--rest", f"http://127.0.0.1:{running.rest_port}", "--grpc", f"127.0.0.1:{running.port}"]
        assert golden.main([str(version), *addresses]) == 0
    assert capsys.readouterr().out == "every golden pair got its answer\n"


def test_a_server_with_another_model_does_not(server, tmp_path):
    """Version 1 serves; the pairs are of a version 1 that has learnt something else, and of a version 2 that is not there."""
    other = shutil.copytree(exported()[1], tmp_path / "other")
    manifest = read_manifest(other)
    (other / "manifest.json").unlink()
    (other / "COMPLETE").unlink()
    pairs = json.loads((other / golden.GOLDEN).read_text())
    pairs["pairs"][0]["rest"]["response"]["predictions"][0]["score"] += 1e-3
    (other / golden.GOLDEN).write_text(json.dumps(pairs))
    seal(other, manifest)
    rest = f"http://127.0.0.1:{server.rest_port}"
    (difference,) = golden.check(other, rest=rest)
    assert re.match(
        r"pair 0 \(serving_default\) over REST, answer\.predictions\[0\]\.score is 0\.\d+; expected", difference
    )
    seal(other, {**manifest, "version": 2})
    assert all("Servable not found for request: Specific(desk, 2)" in each for each in golden.check(other, rest=rest))
