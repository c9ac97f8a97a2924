"""The requests that a version carries, for warming up and for trying it out; wrong ones are refused."""

import json

import numpy as np
import pytest
import tensorflow as tf
from builders.serving_fixtures import LABELS, SILOS
from tensorflow_serving.apis import prediction_log_pb2

from tff_pipeline.data.records import write_frame
from tff_pipeline.export import golden, verification, warmup
from tff_pipeline.export.verification_request import GOLDEN_TEXTS
from tff_pipeline.training.store import load_trained


def warmup_logs(version):
    records = tf.data.TFRecordDataset(str(version / warmup.WARMUP)).as_numpy_iterator()
    return [prediction_log_pb2.PredictionLog.FromString(record) for record in records]


def test_warmup_asks_every_signature_in_every_batch_size(version):
    """Three signatures, the sizes 1, 8 and 32, a short text and one of full length (24 ids); one that explains, once."""
    asked = []
    for log in warmup_logs(version):
        if log.WhichOneof("log_type") == "classify_log":
            request = log.classify_log.request
            asked.append((request.model_spec.signature_name, len(request.input.example_list.examples)))
        else:
            request = log.predict_log.request
            value = next(iter(request.inputs.values()))
            asked.append((request.model_spec.signature_name, value.tensor_shape.dim[0].size))
            if request.model_spec.signature_name == "tokens":
                assert value.tensor_shape.dim[1].size <= 24
    assert sorted(asked) == sorted(
        [
            ("explain", 1),
            *((signature, size) for signature in ("serving_default", "tokens", "classify") for size in (1, 8, 32) * 2),
        ]
    )


def test_warmup_does_not_repeat_anybodys_text(run, version):
    texts = {
        text for data in SILOS.values() for split in data.splits.values() for client in split for text, *_ in client
    }
    found = (version / warmup.WARMUP).read_bytes() + (version / golden.GOLDEN).read_bytes()

    assert not [text for text in texts if len(text) > 4 and text.encode() in found]


def test_golden_pairs_hold_the_answers_of_the_model_in_memory(run, version):
    """For a person: what to send with curl, and what must come back."""
    pairs = json.loads((version / golden.GOLDEN).read_text())["pairs"]
    assert [pair["signature"] for pair in pairs] == [
        name for name in ("serving_default", "tokens", "classify", "explain") for _ in range(2)
    ]
    trained = load_trained(run)
    batch = pairs[1]["rest"]
    for given, row in zip(batch["request"]["instances"], batch["response"]["predictions"], strict=True):
        logits = trained.network(trained.tokenizer.encode([given])[0][np.newaxis])
        np.testing.assert_allclose(row["probabilities"], tf.nn.softmax(logits)[0], atol=1e-6)
        assert row["label"] == LABELS[int(np.argmax(row["probabilities"]))]


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (golden.GOLDEN, b'"score": 0.', b'"score": 1.', "differs from the golden answer by more than 1e-05"),
        (golden.GOLDEN, b'"label": "', b'"label": "un', "label differs from the golden answer"),
    ],
)
def test_golden_pairs_that_do_not_fit_are_refused(altered, request_, name, old, new, message):
    changed = (altered / name).read_bytes().replace(old, new, 1)
    (altered / name).write_bytes(changed)
    ask = verification.session_loader(altered, request_["signatures"])
    with pytest.raises(verification.Refused, match=message):
        verification.check_golden(altered, ask, request_["signatures"])


def test_warmup_that_a_server_cannot_replay_is_refused(altered, request_):
    """1,001 records, a signature that is not there, one that is left out, another kind of record."""
    signatures = request_["signatures"]
    ask = verification.session_loader(altered, signatures)
    logs = warmup_logs(altered)
    unknown = prediction_log_pb2.PredictionLog()
    unknown.session_run_log.SetInParent()
    for records, message in (
        (logs[:1] * 1001, "holds 1001 records; expected 1 to 1000"),
        ([*logs, unknown], "record 19 is a session_run_log"),
        (logs[:6], r"asks \['serving_default'\]; expected every signature"),
    ):
        with (altered / warmup.WARMUP).open("wb") as file:
            for record in records:
                write_frame(file, record.SerializeToString())
        with pytest.raises(verification.Refused, match=message):
            verification.check_warmup(altered, ask, signatures)


def test_golden_texts_hold_what_servers_meet():
    assert b"" in GOLDEN_TEXTS
    assert any(len(each) >= 10_000 for each in GOLDEN_TEXTS)
    with pytest.raises(UnicodeDecodeError):
        [each.decode() for each in GOLDEN_TEXTS]
