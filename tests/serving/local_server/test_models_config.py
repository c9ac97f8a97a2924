"""The server's configuration: what it refuses, and how versions and labels are changed while it runs."""

import grpc
import pytest
from builders.local_servers import predict_request, quick, refused
from tensorflow_serving.apis import model_management_pb2, model_service_pb2_grpc, prediction_service_pb2_grpc

from serving.local_server.server import LocalModelServer
from serving.model_server.models_config import parse
from serving.model_server.status import ServingError


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
