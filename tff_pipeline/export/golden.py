"""What a version carries for the server that loads it: requests to warm up with, and golden pairs to check it with.

    assets.extra/tf_serving_warmup_requests   PredictionLog messages in an uncompressed TFRecord file, which the server
                                              replays before anyone may ask the version
    assets.extra/golden.json                  requests with the answers of the model in memory, for REST and for gRPC;
                                              no server reads it, `python -m serving.golden` does

The texts are nobody's: export.py invents them.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tff_pipeline.data.records import write_frame

WARMUP = "assets.extra/tf_serving_warmup_requests"
GOLDEN = "assets.extra/golden.json"
TOLERANCE, EXPLAIN_TOLERANCE = 1e-5, 1e-4
_SHORT_BYTES = 200  # golden texts of more are left to the verification: a pair is for a person to read, too


def write(directory: Path, request: Mapping[str, Any], *, batch_sizes: Sequence[int]) -> None:
    """Writes both files beside a SavedModel. `request` is what export.py gives the verification: texts and answers."""
    (directory / GOLDEN).parent.mkdir(exist_ok=True)
    with (directory / WARMUP).open("xb") as file:
        for record in _warmup(request, batch_sizes):
            write_frame(file, record)
    pairs = {"pairs": _pairs(request)}
    (directory / GOLDEN).write_text(json.dumps(pairs, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _warmup(request: Mapping[str, Any], batch_sizes: Sequence[int]) -> list[bytes]:
    """A record for each signature, batch size and length: a short text, and one that fills the model's length."""
    from tensorflow_serving.apis import prediction_log_pb2

    lengths = [len(tokens) for tokens in request["tokens"]]
    records = []
    for signature in request["signatures"]:
        # An explanation costs about a hundred predictions: one of a short text loads what must be loaded.
        is_explain = signature == "explain"
        for size in (1,) if is_explain else batch_sizes:
            for text in (0,) if is_explain else (0, int(np.argmax(lengths))):
                log, asked = prediction_log_pb2.PredictionLog(), _grpc_request(request, signature, [text] * size)
                target = log.classify_log if signature == "classify" else log.predict_log
                target.request.CopyFrom(asked)
                records.append(log.SerializeToString(deterministic=True))
    return records


def _pairs(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A single text and a batch of all that are short and UTF-8, for each signature."""
    texts = [base64.b64decode(text) for text in request["texts"]]
    readable = [index for index, text in enumerate(texts) if len(text) < _SHORT_BYTES and _is_utf8(text)]
    pairs = []
    for signature in request["signatures"]:
        answered = [index for index in readable if request["expected"][signature][index] is not None]
        for batch in (answered[:1], answered):
            api = "classify" if signature == "classify" else "predict"
            answer = _answer(request, signature, batch)
            asked, told = _grpc_request(request, signature, batch), _grpc_response(signature, answer)
            rest = {"request": _rest_request(request, signature, batch), "response": _rest_response(signature, answer)}
            grpc = {"request": _base64(asked), "response": _base64(told)}
            tolerance = EXPLAIN_TOLERANCE if signature == "explain" else TOLERANCE
            pairs.append({"signature": signature, "api": api, "tolerance": tolerance, "rest": rest, "grpc": grpc})
    return pairs


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _base64(message: Any) -> str:
    return base64.b64encode(message.SerializeToString(deterministic=True)).decode()


# -- requests ----------------------------------------------------------------------------------------------------------


def _ids(request: Mapping[str, Any], batch: Sequence[int]) -> np.ndarray:
    """int32 [B, S], padded."""
    rows = [request["tokens"][index] for index in batch]
    ids = np.full([len(rows), max(map(len, rows))], request["pad_id"], np.int32)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = tokens
    return ids


def _grpc_request(request: Mapping[str, Any], signature: str, batch: Sequence[int]) -> Any:
    import tensorflow as tf
    from tensorflow_serving.apis import classification_pb2, predict_pb2

    texts = [base64.b64decode(request["texts"][index]) for index in batch]
    if signature == "classify":
        asked = classification_pb2.ClassificationRequest()
        for text in texts:
            example = asked.input.example_list.examples.add()
            example.features.feature["text"].bytes_list.value.append(text)
    else:
        asked = predict_pb2.PredictRequest()
        if signature == "tokens":
            inputs = {"input_ids": _ids(request, batch)}
        else:
            inputs = {"text": np.array([*texts, None], object)[:-1]}
            if signature == "explain":  # of the label that is predicted
                inputs["label"] = np.array([b""] * len(texts), object)
        for name, value in inputs.items():
            asked.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    asked.model_spec.name, asked.model_spec.signature_name = request["name"], signature
    return asked


def _rest_request(request: Mapping[str, Any], signature: str, batch: Sequence[int]) -> dict[str, Any]:
    texts = [base64.b64decode(request["texts"][index]).decode() for index in batch]
    if signature == "classify":
        return {"signature_name": signature, "examples": [{"text": text} for text in texts]}
    instances: list[Any] = _ids(request, batch).tolist() if signature == "tokens" else texts
    if signature == "explain":
        instances = [{"text": text, "label": ""} for text in texts]
    return {"signature_name": signature, "instances": instances}


# -- answers -----------------------------------------------------------------------------------------------------------


def _answer(request: Mapping[str, Any], signature: str, batch: Sequence[int]) -> dict[str, np.ndarray]:
    """What the model in memory says, as the signature's outputs."""
    labels = np.array([label.encode() for label in request["labels"]], object)
    found = [request["expected"][signature][index] for index in batch]
    if signature == "explain":
        return _explanations(found)
    if "probabilities" in request["signatures"][signature]["outputs"] or signature == "classify":
        probabilities = np.array([each["probabilities"] for each in found], np.float32)
        if signature == "classify":
            return {"classes": np.tile(labels, (len(batch), 1)), "scores": probabilities}
        best = {"label": labels[probabilities.argmax(axis=1)], "score": probabilities.max(axis=1)}
        return {**best, "probabilities": probabilities}
    return _word_answer(found, labels, with_words=signature == "serving_default")


def _explanations(found: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    shape = (len(found), max(len(each["tokens"]) for each in found))
    answer = {
        "tokens": np.full(shape, b"", object),
        **{name: np.zeros(shape, np.int32) for name in ("starts", "ends", "mask")},
        "attributions": np.zeros(shape, np.float32),
        "label": np.array([each["label"].encode() for each in found], object),
        **{name: np.array([each[name] for each in found], np.float32) for name in ("score", "baseline_score", "gap")},
    }
    for row, each in enumerate(found):
        count = len(each["tokens"])
        answer["tokens"][row, :count] = [token.encode() for token in each["tokens"]]
        for name in ("starts", "ends", "attributions"):
            answer[name][row, :count] = each[name]
        answer["mask"][row, :count] = 1
    return answer


def _word_answer(found: Sequence[Mapping[str, Any]], labels: np.ndarray, *, with_words: bool) -> dict[str, np.ndarray]:
    width = max(len(each["words"]) if with_words else len(each["probabilities"]) for each in found)
    shape = (len(found), width)
    answer = {
        "labels": np.full(shape, b"", object),
        "scores": np.zeros(shape, np.float32),
        "mask": np.zeros(shape, np.int32),
    }
    if with_words:
        answer["tokens"] = np.full(shape, b"", object)
    for row, each in enumerate(found):
        probabilities = np.array(each["probabilities"], np.float32).reshape(-1, len(labels))
        count = len(probabilities)
        answer["labels"][row, :count] = labels[probabilities.argmax(axis=1)]
        answer["scores"][row, :count] = probabilities.max(axis=1)
        answer["mask"][row, :count] = 1
        if with_words:
            answer["tokens"][row, : len(each["words"])] = [base64.b64decode(word) for word in each["words"]]
    return answer


def _grpc_response(signature: str, answer: Mapping[str, np.ndarray]) -> Any:
    import tensorflow as tf
    from tensorflow_serving.apis import classification_pb2, predict_pb2

    if signature != "classify":
        return predict_pb2.PredictResponse(
            outputs={name: tf.make_tensor_proto(value) for name, value in answer.items()}
        )
    told = classification_pb2.ClassificationResponse()
    for classes, scores in zip(answer["classes"], answer["scores"], strict=True):
        classifications = told.result.classifications.add()
        for label, score in zip(classes, scores, strict=True):
            classifications.classes.add(label=label.decode(), score=score)
    return told


def _rest_response(signature: str, answer: Mapping[str, np.ndarray]) -> dict[str, Any]:
    if signature == "classify":
        rows = zip(answer["classes"].tolist(), answer["scores"].tolist(), strict=True)
        return {"results": [[[label.decode(), score] for label, score in zip(*row, strict=True)] for row in rows]}
    columns = {name: _plain(value.tolist()) for name, value in answer.items()}
    rows = zip(*columns.values(), strict=True)
    return {"predictions": [dict(zip(columns, row, strict=True)) for row in rows]}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value.decode() if isinstance(value, bytes) else value
