"""Local model servers of a test, requests to them over gRPC, and waiting for what they do."""

import time

import grpc
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2

from serving.local_server.manager import Loading
from serving.local_server.server import Options


def quick(**changes):
    """Free ports, and no time to lose."""
    loading = Loading(poll_s=0.05, retries=0, **changes.pop("loading", {}))
    return Options(port=0, rest_port=0, loading=loading, **{"client_timeout_s": 5.0, **changes})


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


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
