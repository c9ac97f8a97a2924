"""Which versions are loaded, warmed up and served, and that no request notices a swap."""

import json
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from builders.local_servers import predict_request, quick, until
from builders.serving_models import copied, fetch, small_model
from tensorflow_serving.apis import prediction_log_pb2, prediction_service_pb2_grpc

from serving.local_server.manager import numbered
from serving.local_server.server import LocalModelServer
from serving.model_server.models_config import ModelConfig, VersionPolicy
from serving.model_server.status import ServingError


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
