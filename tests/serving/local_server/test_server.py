"""The local model server answers what TensorFlow Serving would: words, codes, versions. Expected texts are the server's source's."""

import contextlib
import gzip
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection

import grpc
import numpy as np
import pytest
import tensorflow as tf
from builders import ROOT
from builders.serving_models import copied, fetch, small_model
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from serving.local_server import json_tensor, json_writer
from serving.local_server.manager import Loading, numbered
from serving.local_server.server import LocalModelServer, Options
from serving.model_server.models_config import ModelConfig, VersionPolicy, parse
from serving.model_server.status import ServingError


def quick(**changes):
    """Free ports, and no time to lose."""
    loading = Loading(poll_s=0.05, retries=0, **changes.pop("loading", {}))
    return Options(port=0, rest_port=0, loading=loading, **{"client_timeout_s": 5.0, **changes})


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base path with versions 1 and 2."""
    base = tmp_path_factory.mktemp("models") / "small"
    base.mkdir()
    copied(small_model(base, 1), base, 2)
    return base


@pytest.fixture(scope="module")
def server(models):
    config = ModelConfig("small", models, VersionPolicy("all"))
    with LocalModelServer([config], quick()) as running:
        deadline = time.monotonic() + 20
        while len(running.manager.states("small")) < 2 or "LOADING" in str(running.manager.states("small")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        running.reload([ModelConfig("small", models, VersionPolicy("all"), {"stable": 1, "canary": 2})])
        yield running


@pytest.fixture(scope="module")
def url(server):
    return f"http://127.0.0.1:{server.rest_port}/v1/models/small"


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as opened:
        yield opened


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


# -- REST: what is answered --------------------------------------------------------------------------------------------


def test_rows_and_columns(url):
    """Several outputs make objects, in rows; several inputs are named."""
    assert fetch(f"{url}/versions/1:predict", '{"instances": ["ab", "c"]}') == (
        200,
        """{
    "predictions": [
        {
            "length": 2,
            "version": 1.0
        },
        {
            "length": 1,
            "version": 1.0
        }
    ]
}""",
    )
    assert json.loads(fetch(f"{url}/versions/1:predict", '{"inputs": ["ab", "c"]}')[1]) == {
        "outputs": {"length": [2, 1], "version": [1.0, 1.0]}
    }
    row = {"signature_name": "pair", "instances": [{"a": [1, 2.5], "b": 3}, {"a": [0, 0], "b": -1}]}
    assert json.loads(fetch(f"{url}:predict", json.dumps(row))[1]) == {"predictions": [[4.0, 5.5], [-1.0, -1.0]]}
    column = {"signature_name": "pair", "inputs": {"a": [[1, 2]], "b": [3], "ignored": 1}}
    assert json.loads(fetch(f"{url}:predict", json.dumps(column))[1]) == {"outputs": [[4.0, 5.0]]}


def test_bytes_go_in_and_out_as_base64(url):
    """`b64` in an input is decoded; an output whose name ends in _bytes is encoded."""
    body = {"signature_name": "echo", "instances": [{"b64": "/w=="}, "é"]}
    assert json.loads(fetch(f"{url}:predict", json.dumps(body))[1]) == {
        "predictions": [{"b64": "/w=="}, {"b64": "w6k="}]
    }
    raw = b'{"signature_name": "echo", "instances": ["\xff"]}'
    assert json.loads(fetch(f"{url}:predict", raw)[1]) == {"predictions": [{"b64": "/w=="}]}


def test_classify_and_regress(url):
    body = json.dumps({"signature_name": "classify", "examples": [{"text": "abc"}, {"text": ["d"]}]})
    assert json.loads(fetch(f"{url}/versions/2:classify", body)[1]) == {
        "results": [[["long", 3.0], ["version", 1.0]], [["long", 1.0], ["version", 1.0]]]
    }
    body = json.dumps({"signature_name": "regress", "context": {"text": "12345"}, "examples": [{}, {"text": "1"}]})
    assert json.loads(fetch(f"{url}:regress", body)[1]) == {"results": [5.0, 1.0]}


def test_versions_and_labels(url):
    for place in ("", "/versions/1", "/versions/2", "/labels/stable", "/labels/canary"):
        assert fetch(f"{url}{place}:predict", '{"instances": ["a"]}')[0] == 200
    assert fetch(f"{url.replace('/v1/models', '/V1/Models')}:PREDICT", '{"instances": ["a"]}')[0] == 200


def test_status_and_metadata(url):
    assert json.loads(fetch(f"{url}/versions/2")[1]) == {
        "model_version_status": [
            {"version": "2", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        ]
    }
    assert [each["version"] for each in json.loads(fetch(url)[1])["model_version_status"]] == ["2", "1"]
    found = json.loads(fetch(f"{url}/labels/stable/metadata")[1])
    assert found["model_spec"] == {"name": "small", "signature_name": "", "version": "1"}
    signatures = found["metadata"]["signature_def"]["signature_def"]
    assert "__saved_model_init_op" in signatures
    described = signatures["serving_default"]["inputs"]["text"]
    assert (described["dtype"], described["tensor_shape"]["dim"]) == ("DT_STRING", [{"size": "-1", "name": ""}])


@pytest.mark.parametrize(
    ("number", "text"),
    [
        *((0.2, "0.2"), (1, "1.0"), (1 / 3, "0.333333343"), (3e-5, "3e-05"), (9e6, "9e+06"), (float("nan"), "NaN")),
        *((float("-inf"), "-Infinity"), (16777216, "16777216.0"), (123456, "123456.0")),
    ],
)
def test_decimals_have_the_fewest_digits_that_name_them(number, text):
    written = json_writer.predictions({"x": np.array([number], np.float32)}, json_writer.COLUMN)
    assert written == f'{{\n    "outputs": [\n        {text}\n    ]\n}}'


# -- REST: what is refused ---------------------------------------------------------------------------------------------

INSTANCE = "Failed to process element: {} of 'instances' list. Error: INVALID_ARGUMENT: "


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "JSON Parse error: The document is empty"),
        ("{", "JSON Parse error: Missing a name for object member. at offset: 1"),
        ('{"é": 1 2}', "JSON Parse error: Missing a comma or } after an object member. at offset: 9"),
        ('{"inputs": [1 2]}', "JSON Parse error: Missing a comma or ] after an array element. at offset: 14"),
        ('{"a" 1}', "JSON Parse error: Missing a colon after a name of object member. at offset: 5"),
        ("{} x", "JSON Parse error: The document root must not be followed by other values. at offset: 3"),
        ('{"inputs": "\\ud800"}', "JSON Parse error: The surrogate pair in string is invalid."),
        ("[" * 100_000, "JSON Parse error: Terminate parsing due to nesting that is too deep."),
        ("[1]", "JSON Value: [\n    1\n] Is not object"),
        ("{}", "Missing 'inputs' or 'instances' key"),
        ('{"instances": []}', "JSON Value: {\n    \"instances\": []\n} No values in 'instances' array"),
        ('{"instances": 1}', "JSON Value: {\n    \"instances\": 1\n} Excepting 'instances' to be an list/array"),
        ('{"signature_name": "no", "instances": [1]}', 'Serving signature name: "no" not found in signature def'),
        ('{"instances": [1]}', INSTANCE.format(0) + "JSON Value: 1 Type: Number is not of expected type: string"),
        ('{"instances": ["a", ["b"]]}', INSTANCE.format(1) + "Expecting shape [] but got: [1]"),
        ('{"instances": ["a", {"text": "b"}]}', "Expecting value/list but got object at item 1 of input list"),
        ('{"instances": [{"b64": "*"}]}', INSTANCE.format(0) + "Unable to base64 decode"),
        (
            '{"instances": [{"tex": "a"}]}',
            "Failed to process element: 0 key: tex of 'instances' list. Error: INVALID_ARGUMENT: JSON object: does not have named input: tex",
        ),
        (
            '{"signature_name": "pair", "instances": [[1, 2], [3]]}',
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per tensorinfo_map",
        ),
        (
            '{"signature_name": "pair", "inputs": {"a": [[1, 2], [3]], "b": [1, 2]}}',
            "Encountered list at unexpected size: 1 at level: 1 expected size: 2",
        ),
        ('{"signature_name": "pair", "inputs": {"a": [[1, 2]]}}', "Missing named input: b in 'inputs' object."),
        (
            '{"signature_name": "pair", "inputs": {"a": [[1, 16777217]], "b": [1]}}',
            "Cannot convert JSON value: 16777217 to float without loss of precision.",
        ),
        (
            '{"signature_name": "pair", "inputs": {"a": [[1, 2]], "b": [1.0]}}',
            "JSON Value: 1.0 Type: Number is not of expected type: int32",
        ),
        ('{"signature_name": "scalar", "instances": ["a"]}', "Tensor name: count has no shape information "),
        ('{"signature_name": "half", "instances": ["a"]}', "Failed to write JSON value for tensor type: half"),
    ],
)
def test_requests_that_are_wrong(url, body, message):
    assert fetch(f"{url}:predict", body) == (400, json_writer.error(message))


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/v1/models/none:predict", '{"instances": ["a"]}', 404, "Servable not found for request: Latest(none)"),
        (
            "/v1/models/small/versions/7:predict",
            '{"inputs": 1}',
            404,
            "Servable not found for request: Specific(small, 7)",
        ),
        ("/v1/models/small/labels/no:predict", '{"inputs": 1}', 400, "Unrecognized servable version label: no"),
        ("/v1/models/none", None, 404, "Could not find any versions of model none"),
        ("/v1/models/small/versions/7", None, 404, "Could not find version 7 of model small"),
        ("/v1/models", None, 400, "Missing model name in request."),
        ("/v1/models/small:explain", "{}", 400, "Malformed request: POST /v1/models/small:explain"),
        ("/v1/models/small:predict", None, 400, "Malformed request: GET /v1/models/small:predict"),
        (
            "/v1/models/small:classify",
            '{"examples": []}',
            400,
            "JSON Value: {\n    \"examples\": []\n} 'examples' value is an empty array",
        ),
        ("/v1/models/small:regress", '{"signature_name": "pair", "examples": [{}]}', 400, "Expected one input Tensor."),
    ],
)
def test_what_is_not_there(server, path, body, status, message):
    assert fetch(f"http://127.0.0.1:{server.rest_port}{path}", body) == (status, json_writer.error(message))


def test_an_unknown_path_is_no_json(server):
    assert fetch(f"http://127.0.0.1:{server.rest_port}/favicon.ico") == (404, "")


def test_it_says_what_it_is(server, url):
    connection = HTTPConnection("127.0.0.1", server.rest_port, timeout=5)
    connection.request("GET", "/v1/models/small")
    response = connection.getresponse()
    response.read()
    assert "not TensorFlow Serving" in response.headers["X-Local-Model-Server"]
    connection.close()


# -- REST: clients that misbehave --------------------------------------------------------------------------------------


def raw(server, sent, *, end=True):
    """What a socket is answered."""
    with socket.create_connection(("127.0.0.1", server.rest_port), timeout=10) as connection:
        connection.sendall(sent)
        if end:
            connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def test_bodies_may_be_compressed_or_in_chunks(server, url):
    body = b'{"instances": ["abc"]}'
    assert '"length": 3' in fetch(f"{url}:predict", gzip.compress(body), **{"Content-Encoding": "gzip"})[1]
    chunked = b"POST /v1/models/small:predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join(
        b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:5], body[5:], b"")
    )
    assert b'"length": 3' in raw(server, chunked)


@pytest.mark.parametrize(
    "sent",
    [
        b"POST /v1/models/small:predict HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n{}",
        b"POST /v1/models/small:predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nfffffffff\r\n{}",
    ],
)
def test_a_body_that_is_too_large_is_not_read(server, sent):
    assert raw(server, sent).startswith(b"HTTP/1.1 413")


def test_a_small_body_that_unpacks_to_a_large_one(server, url):
    bomb = gzip.compress(b" " * (65 << 20))
    assert fetch(f"{url}:predict", bomb, **{"Content-Encoding": "gzip"})[0] == 413


def test_what_is_no_http_gets_a_status_and_no_crash(server, url):
    for sent in (
        b"\x00\xff\r\n\r\n",
        b"GET\r\n\r\n",
        b"POST /v1/models/small:predict HTTP/1.1\r\nContent-Length: x\r\n\r\n",
    ):
        assert b" 400 " in raw(server, sent).partition(b"\r\n")[0]
    assert raw(server, b"POST /v1/models/small:predict HTTP/1.1\r\nContent-Length: 10\r\n\r\n{}") == b"", "it hung up"
    assert fetch(url)[0] == 200


def test_a_client_that_hangs_is_left_alone(models):
    """Its connection ends; meanwhile others are answered, and nothing waits for it at the end."""
    with LocalModelServer([ModelConfig("small", models)], quick(client_timeout_s=0.3)) as running:
        started = time.monotonic()
        stuck = [socket.create_connection(("127.0.0.1", running.rest_port)) for _ in range(20)]
        for connection in stuck[:10]:
            connection.sendall(b"POST /v1/models/small:predict HTTP/1.1\r\nContent-Length: 10\r\n\r\n{")
        assert fetch(f"http://127.0.0.1:{running.rest_port}/v1/models/small")[0] == 200
        for connection in stuck:
            connection.settimeout(5)
            assert connection.recv(100) == b""
            connection.close()
        assert time.monotonic() - started < 5


# -- gRPC --------------------------------------------------------------------------------------------------------------


def predict_request(texts=("ab",), *, signature="", **spec):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = spec.pop("name", "small")
    request.model_spec.signature_name = signature
    if "version" in spec:
        request.model_spec.version.value = spec["version"]
    if "label" in spec:
        request.model_spec.version_label = spec["label"]
    request.inputs["text"].CopyFrom(tf.make_tensor_proto(list(texts)))
    return request


def refused(call, request):
    with pytest.raises(grpc.RpcError) as error:
        call(request, timeout=10)
    return error.value.code().name, error.value.details()


def test_predict_over_grpc(channel):
    call = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict
    request = predict_request(label="stable")
    response = call(request, timeout=10)
    assert (response.model_spec.version.value, response.model_spec.signature_name) == (1, "serving_default")
    assert list(response.outputs["length"].int_val) == [2]
    request.output_filter.append("version")
    assert set(call(request, timeout=10).outputs) == {"version"}


def test_wrong_requests_over_grpc(channel):
    call = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict
    assert refused(call, predict_request(name="")) == ("INVALID_ARGUMENT", "ModelSpec has no name specified.")
    assert refused(call, predict_request(version=9)) == (
        "NOT_FOUND",
        "Servable not found for request: Specific(small, 9)",
    )
    assert refused(call, predict_request(signature="no")) == (
        "FAILED_PRECONDITION",
        'Serving signature key "no" not found.',
    )
    request = predict_request()
    request.inputs["more"].CopyFrom(request.inputs["text"])
    assert refused(call, request) == (
        "INVALID_ARGUMENT",
        "input size does not match signature: 2!=1 len({more,text}) != len({text}). Sent extra: {more}. Missing but required: {}.",
    )
    request = predict_request([1.5])
    assert refused(call, request) == ("INVALID_ARGUMENT", "Expects arg[0] to be string but float is provided")
    request = predict_request()
    request.output_filter.append("no")
    assert refused(call, request)[1].startswith("output tensor alias not found in signature: no Outputs expected")


def test_a_few_bytes_cannot_ask_for_all_memory(channel):
    """A TensorProto with one value and a shape of a million million."""
    request = predict_request()
    request.inputs["text"].tensor_shape.dim[0].size = 10**12
    call = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict
    assert refused(call, request) == ("INVALID_ARGUMENT", "tensor parsing error: text")


def test_classify_regress_and_both_over_grpc(channel):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    classify, regress = classification_pb2.ClassificationRequest(), regression_pb2.RegressionRequest()
    both = inference_pb2.MultiInferenceRequest()
    for request in (classify, regress, both):
        example = request.input.example_list.examples.add()
        example.features.feature["text"].bytes_list.value.append(b"abc")
    for request, name in ((classify, "classify"), (regress, "regress")):
        request.model_spec.name, request.model_spec.signature_name = "small", name
        task = both.tasks.add(method_name=f"tensorflow/serving/{name}")
        task.model_spec.CopyFrom(request.model_spec)

    classes = stub.Classify(classify, timeout=10).result.classifications[0].classes
    assert [(each.label, each.score) for each in classes] == [("long", 3.0), ("version", 1.0)]
    assert stub.Regress(regress, timeout=10).result.regressions[0].value == 3.0
    results = stub.MultiInference(both, timeout=10).results
    assert results[0].classification_result.classifications[0].classes[0].score == 3.0
    assert results[1].regression_result.regressions[0].value == 3.0
    classify.model_spec.signature_name = ""
    assert refused(stub.Classify, classify)[0] == "FAILED_PRECONDITION"
    classify.model_spec.signature_name = "no"
    assert refused(stub.Classify, classify) == ("INVALID_ARGUMENT", "No signature was found with the name: no")
    classify.input.Clear()
    classify.model_spec.signature_name = "classify"
    assert refused(stub.Classify, classify) == ("INVALID_ARGUMENT", "Input is empty.")


def test_metadata_and_status_over_grpc(channel):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    request = get_model_metadata_pb2.GetModelMetadataRequest()
    assert refused(stub.GetModelMetadata, request) == ("INVALID_ARGUMENT", "Missing ModelSpec")
    request.model_spec.name = "small"
    request.metadata_field.append("signature_def")
    response = stub.GetModelMetadata(request, timeout=10)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    assert signatures.signature_def["classify"].method_name == "tensorflow/serving/predict"

    status = get_model_status_pb2.GetModelStatusRequest()
    status.model_spec.name = "small"
    found = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(status, timeout=10)
    assert [(each.version, each.state) for each in found.model_version_status] == [(2, 30), (1, 30)]


# -- versions ----------------------------------------------------------------------------------------------------------


def test_which_names_are_versions(tmp_path):
    """Every child whose whole name is an int64, files too; nobody looks whether it is complete."""
    for name in ("1", "007", "9223372036854775808", "7.tmp", ".staging-9-x", "x", "-3"):
        (tmp_path / name).mkdir()
    (tmp_path / "12").touch()
    assert sorted(numbered(tmp_path)) == [-3, 1, 7, 12]


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [
        (VersionPolicy(), {30}),
        (VersionPolicy(count=2), {20, 30}),
        (VersionPolicy("all"), {3, 20, 30}),
        (VersionPolicy("specific", versions=(3, 4)), {3}),
    ],
)
def test_which_versions_are_wanted(policy, wanted):
    assert policy.wanted([30, 3, 20]) == wanted


def test_a_version_that_cannot_be_loaded_leaves_the_old_one_serving(models, tmp_path):
    base = tmp_path / "small"
    base.mkdir()
    copied(models / "1", base, 1)
    with LocalModelServer([ModelConfig("small", base)], quick()) as running:
        broken = copied(models / "1", base, 5)
        url = f"http://127.0.0.1:{running.rest_port}/v1/models/small"

        def states():
            found = json.loads(fetch(url)[1])["model_version_status"]
            return {each["version"]: (each["state"], each["status"]["error_code"]) for each in found}

        until(lambda: states().get("5", ("",))[0] == "AVAILABLE")
        assert states() == {"5": ("AVAILABLE", "OK"), "1": ("END", "OK")}
        (base / ".half").mkdir()
        (base / ".half" / "saved_model.pb").write_bytes((broken / "saved_model.pb").read_bytes()[:100])
        (base / ".half").rename(base / "6")
        until(lambda: states().get("6", ("",))[0] == "END")
        assert states()["6"][1] != "OK"
        assert states()["5"] == ("AVAILABLE", "OK")
        base.rename(tmp_path / "away")  # a base path that is missing changes nothing
        time.sleep(0.2)
        assert fetch(f"{url}:predict", '{"instances": ["a"]}')[0] == 200
        base.mkdir()  # one without versions unloads the model, as the server does
        until(lambda: fetch(f"{url}:predict", '{"instances": ["a"]}')[0] == 404)


def test_a_swap_loses_no_request_and_mixes_no_versions(tmp_path):
    """Fifty requests a second while versions 2 and 3 appear. Each answer's content is that of the version it names."""
    base = tmp_path / "small"
    base.mkdir()
    small_model(base, 1)
    with LocalModelServer([ModelConfig("small", base)], quick()) as running:
        with grpc.insecure_channel(f"127.0.0.1:{running.port}") as opened:
            call = prediction_service_pb2_grpc.PredictionServiceStub(opened).Predict
            answers, stop = [], threading.Event()

            def ask():
                while not stop.wait(0.02):
                    response = call(predict_request(["a"] * 3), timeout=10)
                    answers.append((response.model_spec.version.value, set(response.outputs["version"].float_val)))

            asking = threading.Thread(target=ask)
            asking.start()
            for version in (2, 3):
                small_model(base, version)
                until(lambda version=version: answers and answers[-1][0] == version)
            stop.set()
            asking.join(20)
    assert all(content == {float(version)} for version, content in answers)
    assert [version for version, _ in answers] == sorted(version for version, _ in answers)
    assert {version for version, _ in answers} == {1, 2, 3}


def test_a_request_keeps_the_version_it_began_with(models):
    with LocalModelServer([ModelConfig("small", models, VersionPolicy("specific", versions=(1,)))], quick()) as running:
        with running.manager.servable("small") as former:
            running.reload([ModelConfig("small", models, VersionPolicy("specific", versions=(2,)))])
            with running.manager.servable("small") as other:
                assert (former.version, other.version) == (1, 2)
            assert running.manager.states("small")[1].state == "UNLOADING"
            inputs = {"text": np.array([b"abc"], object)}
            answer = former.run(former.signatures["serving_default"], inputs, ["length"], api="Predict", timeout_s=1)
            assert answer["length"].tolist() == [3]
        until(lambda: running.manager.states("small")[1].state == "END")


# -- warm-up -----------------------------------------------------------------------------------------------------------


def with_warmup(model, records, *, compression=""):
    (model / "assets.extra").mkdir()
    path = str(model / "assets.extra" / "tf_serving_warmup_requests")
    with tf.io.TFRecordWriter(path, tf.io.TFRecordOptions(compression_type=compression)) as writer:
        for record in records:
            writer.write(record)


def warmup_record(signature=""):
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.CopyFrom(predict_request(signature=signature, name="whatever"))
    return log.SerializeToString()


@pytest.mark.parametrize(
    ("records", "error"),
    [
        ([b"\xff\xff no message"], "no PredictionLog"),
        ([warmup_record("no")], 'Serving signature key "no" not found'),
        ([b""], "Unsupported log_type for warmup"),
        ([warmup_record()] * 1001, "exceeds the maximum (1000)"),
    ],
)
def test_a_bad_warmup_request_keeps_a_version_from_being_served(models, tmp_path, records, error):
    base = tmp_path / "small"
    base.mkdir()
    with_warmup(copied(models / "1", base, 1), records)
    with pytest.raises(ServingError, match=r"1 model\(s\) did not become available") as refusal:
        LocalModelServer([ModelConfig("small", base)], quick()).start()
    assert error in str(refusal.value)


def test_good_warmup_requests_run_before_anyone_asks(models, tmp_path):
    base = tmp_path / "small"
    base.mkdir()
    with_warmup(copied(models / "1", base, 1), [warmup_record(), warmup_record("echo")])
    said = []
    with LocalModelServer([ModelConfig("small", base)], quick(), report=lambda event, message: said.append(message)):
        assert said == ["small 1 is available (2 warm-up requests)"]


# -- configuration -----------------------------------------------------------------------------------------------------


def config_text(base, versions, labels=()):
    lines = "".join(f'version_labels {{ key: "{label}" value: {version} }} ' for label, version in labels)
    numbers = " ".join(f"versions: {version}" for version in versions)
    return f'model_config_list {{ config {{ name: "small" base_path: "{base}" model_platform: "tensorflow" model_version_policy {{ specific {{ {numbers} }} }} {lines} }} }}'


def test_a_canary_in_the_servers_three_steps(models):
    """Load both; then label; then move. A label for what is not available is refused, and nothing changes."""
    with LocalModelServer(parse(config_text(models, [1])), quick()) as running:
        with grpc.insecure_channel(f"127.0.0.1:{running.port}") as opened:
            reload = model_service_pb2_grpc.ModelServiceStub(opened).HandleReloadConfigRequest

            def configure(*arguments):
                request = model_management_pb2.ReloadConfigRequest()
                from google.protobuf import text_format

                text_format.Parse(config_text(models, *arguments), request.config)
                status = reload(request, timeout=20).status
                return status.error_code, status.error_message

            early = configure([1, 2], [("stable", 1), ("canary", 2)])
            assert early == (
                9,
                "Request to assign label to version 2 of model small, which is not currently available for inference",
            )
            assert configure([1, 2]) == (0, "")
            assert configure([1, 2], [("stable", 1), ("canary", 2)]) == (0, "")
            assert configure([1, 2], [("stable", 2)]) == (0, "")
            assert configure([2], [("stable", 2)]) == (0, "")
            call = prediction_service_pb2_grpc.PredictionServiceStub(opened).Predict
            assert call(predict_request(label="stable"), timeout=10).model_spec.version.value == 2
            assert refused(call, predict_request(label="canary"))[0] == "INVALID_ARGUMENT"


def test_new_labels_may_wait_for_their_version_where_that_is_allowed(models):
    """What a server needs to start at all with labels in its configuration."""
    labelled = parse(config_text(models, [1], [("stable", 1)]))
    with pytest.raises(ServingError, match="which is not currently available for inference"):
        LocalModelServer(labelled, quick()).start()
    with LocalModelServer(labelled, quick(loading={"labels_for_unavailable": True})) as running:
        with running.manager.servable("small", label="stable") as found:
            assert found.version == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model_config_list {", "Invalid protobuf file"),
        ('model_config_list { config { name: "a" base_path: "b" model_platform: "tensorflow" } }', "absolute path"),
        ('model_config_list { config { name: "a" base_path: "/b" } }', "unsupported platform"),
        (
            'model_config_list { config { name: "a" base_path: "/b" model_platform: "tensorflow" } config { name: "a" base_path: "/c" model_platform: "tensorflow" } }',
            "Illegal to list model a multiple times",
        ),
    ],
)
def test_configurations_that_the_server_refuses(text, message):
    with pytest.raises(ServingError, match=message):
        parse(text)


# -- the whole, and the command ----------------------------------------------------------------------------------------


def test_thousands_of_requests_leave_nothing_behind(server, url):
    """Eight threads, two thousand requests, half of them wrong; afterwards there are as many threads and files."""
    bodies = [(b'{"instances": ["abc"]}', 200), (b'{"instances": [1]}', 400)]
    fetch(url)
    files, wrong = len(os.listdir("/proc/self/fd")), []

    def ask():
        connection = HTTPConnection("127.0.0.1", server.rest_port, timeout=20)
        for index in range(250):
            body, status = bodies[index % 2]
            connection.request("POST", "/v1/models/small:predict", body)
            response = connection.getresponse()
            response.read()
            if response.status != status:
                wrong.append(response.status)
        connection.close()

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    until(lambda: len(os.listdir("/proc/self/fd")) <= files + 2)


def test_metrics_have_the_servers_names(server, url):
    fetch(f"{url}:predict", '{"instances": ["a"]}')
    page = fetch(f"http://127.0.0.1:{server.rest_port}/monitoring/prometheus/metrics")[1]
    assert re.search(r'^:tensorflow:serving:request_count\{model_name="small",status="OK"\} \d+$', page, re.M)
    assert re.search(
        r'^:tensorflow:serving:request_latency_bucket\{model_name="small",API="Predict",entrypoint="REST",le="\+Inf"\} \d+$',
        page,
        re.M,
    )
    assert ":tensorflow:cc:saved_model:load_attempt_count{" in page


def test_a_port_that_is_taken(models, server):
    with pytest.raises(OSError, match="cannot be listened on"):
        LocalModelServer([ModelConfig("small", models)], Options(port=server.port, rest_port=0)).start()


@pytest.fixture
def command(models):
    """`tff-pipeline serve` in a process of its own, ended at the end of the test whatever happens."""
    program = (
        "import sys; from serving.commands.serve import main; from tff_pipeline import cli; "
        "cli.command = {'serve': main}.__getitem__; sys.exit(cli.main())"  # whatever is installed
    )
    arguments = ["serve", "--model-base-path", str(models), "--port=0", "--rest_api_port=0"]
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        child.communicate()


def test_the_command_serves_until_it_is_told_to_stop(command):
    """It says on standard output where it listens, with a curl line that works; SIGTERM ends it within seconds."""
    where, curl = command.stdout.readline(), command.stdout.readline()
    address = re.search(r"http://127\.0\.0\.1:\d+", where).group()
    assert curl.startswith("curl -d ")
    assert f"{address}/v1/models/small:predict" in curl
    done = subprocess.run(
        ["/bin/sh", "-c", curl.replace("curl", "curl -s")], capture_output=True, text=True, timeout=20, check=False
    )
    if done.returncode != 127:
        assert json.loads(done.stdout) == {"predictions": [{"length": 14, "version": 1.0}]}
    assert fetch(f"{address}/v1/models/small")[0] == 200
    command.send_signal(signal.SIGTERM)
    _, errors = command.communicate(timeout=20)
    assert command.returncode == 0
    assert "it is not TensorFlow Serving" in " ".join(errors.split())
    assert "Traceback" not in errors


def test_surrogates_and_repeated_members():
    assert json_tensor.parse(b'{"a": 1, "a": 2, "s": "\\ud83d\\ude00"}') == {"a": 1, "s": "\U0001f600"}


def test_the_package_loads_nothing_heavy_for_its_help():
    code = "import sys, serving.commands.serve; print([name for name in ('tensorflow', 'grpc') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"
