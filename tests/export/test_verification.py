"""What the verification of a version refuses, and by which name."""

import copy
import json
import subprocess
import sys
import time

import pytest
import tensorflow as tf
import tensorflow_text as text

from tff_pipeline.errors import ExportError
from tff_pipeline.export import golden, verification, warmup
from tff_pipeline.export.fresh_process import verify


@pytest.mark.parametrize("name", verification.FILES)
@pytest.mark.parametrize("damage", ["deleted", "emptied", "cut"])
def test_damaged_files_are_refused_by_name(altered, request_, name, damage):
    whole = (altered / name).read_bytes()
    if damage == "deleted":
        (altered / name).unlink()
    else:
        (altered / name).write_bytes(b"" if damage == "emptied" else whole[: len(whole) * 2 // 3])
    with pytest.raises(verification.Refused) as refused:
        verification.verify(altered, request_)
    assert refused.value.args[1].startswith(name)
    assert ("cut short" if damage == "cut" else "is missing or empty") in refused.value.args[1]


def test_other_weights_are_refused(version, request_):
    changed = copy.deepcopy(request_)
    changed["weights"][3]["digest"] = "0" * 64
    with pytest.raises(verification.Refused, match=r"weights/3/.*differs from the trained weights"):
        verification.verify(version, changed)
    with pytest.raises(verification.Refused, match=r"1 variables are no weights of the model, weights/38/"):
        verification.verify(version, {**request_, "weights": request_["weights"][:-1]})


def test_other_answers_are_refused(version, request_):
    answers = {"serving_default": "probabilities", "tokens": "probabilities", "classify": "scores"}
    for signature, output in answers.items():
        changed = copy.deepcopy(request_)
        changed["expected"][signature][3]["probabilities"][0] += 3e-5
        with pytest.raises(
            verification.Refused, match=rf"{signature}, golden text 3 in a batch of 1: {output} differs by 3e-05"
        ):
            verification.verify(version, changed)


def test_other_signatures_are_refused(version, request_):
    changed = copy.deepcopy(request_)
    changed["signatures"]["serving_default"]["outputs"]["score"] = "float64"
    with pytest.raises(verification.Refused, match="serving_default has outputs"):
        verification.verify(version, changed)


def test_operations_that_a_server_lacks_are_refused_by_name(tmp_path, request_):
    """Both load in Python. TFText>RoundRobinTrim is in no stock server before 2.20; PyFunc is in none."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def planted(given):
        words = tf.strings.split(given)
        trimmed = text.RoundRobinTrimmer(4).trim([words, words])
        return {"label": trimmed[0].to_tensor()[:, 0] + tf.numpy_function(lambda: b"", [], tf.string)}

    module = tf.Module()
    module.weights = [tf.Variable(1.0)]
    tf.saved_model.save(module, str(tmp_path), signatures={"serving_default": planted})
    (tmp_path / "assets.extra").mkdir()
    for name in (warmup.WARMUP, golden.GOLDEN):
        (tmp_path / name).write_bytes(b"not looked at before the operations")
    with pytest.raises(
        ExportError, match=r"operations: operation PyFunc, TFText>RoundRobinTrim is not in a stock model server"
    ):
        verify(tmp_path, request_)


def test_the_verifier_gives_up_in_time(version, request_):
    with pytest.raises(ExportError, match=r"took longer than 0\.2 s"):
        verify(version, request_, timeout_s=0.2)


def test_the_verifier_does_not_outlive_its_parent(version, request_, tmp_path):
    """Its standard input ends when the parent dies, however it dies."""
    file = tmp_path / "request.json"
    file.write_text(json.dumps(request_))
    child = subprocess.Popen(
        [sys.executable, "-I", verification.__file__, str(version), str(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(0.5)
    assert child.poll() is None
    child.stdin.close()
    assert child.wait(10) == 3
