"""The REST API answers what TensorFlow Serving would: words and codes. Expected texts are the server's source's."""

import json
import re
from http.client import HTTPConnection

import numpy as np
import pytest
from builders.serving_models import fetch

from serving.local_server import json_tensor, json_writer


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


def test_surrogates_and_repeated_members():
    assert json_tensor.parse(b'{"a": 1, "a": 2, "s": "\\ud83d\\ude00"}') == {"a": 1, "s": "\U0001f600"}


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


# -- what is refused ---------------------------------------------------------------------------------------------------


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
