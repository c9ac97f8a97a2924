"""A local model server with two versions of a small model."""

import time

import grpc
import pytest
from builders.local_servers import quick
from builders.serving_models import copied, small_model

from serving.local_server.server import LocalModelServer
from serving.model_server.models_config import ModelConfig, VersionPolicy


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A base path with versions 1 and 2. Not to be written to."""
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
