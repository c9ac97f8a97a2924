"""Golden texts as requests to a model server, and the answers of the model in memory as its responses: REST and gRPC.

A batch is a list of indices into the golden texts of a VerificationRequest.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tff_pipeline.export.verification_request import VerificationRequest

if TYPE_CHECKING:
    from tensorflow_serving.apis.classification_pb2 import ClassificationRequest, ClassificationResponse
    from tensorflow_serving.apis.predict_pb2 import PredictRequest, PredictResponse

Outputs = Mapping[str, np.ndarray]  # of a signature, by name; a row for each text of the batch


# -- requests ----------------------------------------------------------------------------------------------------------


def grpc_request(
    request: VerificationRequest, signature: str, batch: Sequence[int]
) -> "PredictRequest | ClassificationRequest":
    """The message that asks `signature` about a batch."""
    import tensorflow as tf
    from tensorflow_serving.apis import classification_pb2, predict_pb2

    texts = [base64.b64decode(request["texts"][index]) for index in batch]
    if signature == "classify":
        message = classification_pb2.ClassificationRequest()
        for text in texts:
            example = message.input.example_list.examples.add()
            example.features.feature["text"].bytes_list.value.append(text)
    else:
        message = predict_pb2.PredictRequest()
        if signature == "tokens":
            inputs = {"input_ids": _ids(request, batch)}
        else:
            inputs = {"text": np.array(texts, object)}
            if signature == "explain":  # of the label that is predicted
                inputs["label"] = np.array([b""] * len(texts), object)
        for name, value in inputs.items():
            message.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    message.model_spec.name, message.model_spec.signature_name = request["name"], signature
    return message


def rest_request(request: VerificationRequest, signature: str, batch: Sequence[int]) -> dict[str, Any]:
    """The JSON body that asks `signature` about a batch of texts that are UTF-8."""
    texts = [base64.b64decode(request["texts"][index]).decode() for index in batch]
    if signature == "classify":
        return {"signature_name": signature, "examples": [{"text": text} for text in texts]}
    instances: list[Any] = _ids(request, batch).tolist() if signature == "tokens" else texts
    if signature == "explain":
        instances = [{"text": text, "label": ""} for text in texts]
    return {"signature_name": signature, "instances": instances}


def _ids(request: VerificationRequest, batch: Sequence[int]) -> np.ndarray:
    """int32 [B, S], padded."""
    rows = [request["tokens"][index] for index in batch]
    ids = np.full([len(rows), max(map(len, rows))], request["pad_id"], np.int32)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = tokens
    return ids


# -- answers -----------------------------------------------------------------------------------------------------------


def answer(request: VerificationRequest, signature: str, batch: Sequence[int]) -> Outputs:
    """What the model in memory says, as the signature's outputs.

    Raises:
      ValueError: if the request has no answer to one of the texts.
    """
    labels = np.array([label.encode() for label in request["labels"]], object)
    answers = [expected for index in batch if (expected := request["expected"][signature][index]) is not None]
    if len(answers) != len(batch):
        raise ValueError(f"messages.answer: {signature} is expected to answer {len(answers)} of {len(batch)} texts.")
    if signature == "explain":
        return _explain_outputs(answers)
    if "probabilities" in request["signatures"][signature]["outputs"] or signature == "classify":
        probabilities = np.array([expected["probabilities"] for expected in answers], np.float32)
        if signature == "classify":
            return {"classes": np.tile(labels, (len(batch), 1)), "scores": probabilities}
        best = {"label": labels[probabilities.argmax(axis=1)], "score": probabilities.max(axis=1)}
        return {**best, "probabilities": probabilities}
    return _word_outputs(answers, labels, with_words=signature == "serving_default")


def _explain_outputs(answers: Sequence[Mapping[str, Any]]) -> Outputs:
    shape = (len(answers), max(len(expected["tokens"]) for expected in answers))
    scores = ("score", "baseline_score", "gap")
    outputs = {
        "tokens": np.full(shape, b"", object),
        **{name: np.zeros(shape, np.int32) for name in ("starts", "ends", "mask")},
        "attributions": np.zeros(shape, np.float32),
        "label": np.array([expected["label"].encode() for expected in answers], object),
        **{name: np.array([expected[name] for expected in answers], np.float32) for name in scores},
    }
    for row, expected in enumerate(answers):
        count = len(expected["tokens"])
        outputs["tokens"][row, :count] = [token.encode() for token in expected["tokens"]]
        for name in ("starts", "ends", "attributions"):
            outputs[name][row, :count] = expected[name]
        outputs["mask"][row, :count] = 1
    return outputs


def _word_outputs(answers: Sequence[Mapping[str, Any]], labels: np.ndarray, *, with_words: bool) -> Outputs:
    width = max(len(expected["words" if with_words else "probabilities"]) for expected in answers)
    shape = (len(answers), width)
    outputs = {
        "labels": np.full(shape, b"", object),
        "scores": np.zeros(shape, np.float32),
        "mask": np.zeros(shape, np.int32),
    }
    if with_words:
        outputs["tokens"] = np.full(shape, b"", object)
    for row, expected in enumerate(answers):
        probabilities = np.array(expected["probabilities"], np.float32).reshape(-1, len(labels))
        count = len(probabilities)
        outputs["labels"][row, :count] = labels[probabilities.argmax(axis=1)]
        outputs["scores"][row, :count] = probabilities.max(axis=1)
        outputs["mask"][row, :count] = 1
        if with_words:
            outputs["tokens"][row, : len(expected["words"])] = [base64.b64decode(word) for word in expected["words"]]
    return outputs


def grpc_response(signature: str, outputs: Outputs) -> "PredictResponse | ClassificationResponse":
    """The message that a server must answer with."""
    import tensorflow as tf
    from tensorflow_serving.apis import classification_pb2, predict_pb2

    if signature != "classify":
        return predict_pb2.PredictResponse(
            outputs={name: tf.make_tensor_proto(value) for name, value in outputs.items()}
        )
    response = classification_pb2.ClassificationResponse()
    for classes, scores in zip(outputs["classes"], outputs["scores"], strict=True):
        classifications = response.result.classifications.add()
        for label, score in zip(classes, scores, strict=True):
            classifications.classes.add(label=label.decode(), score=score)
    return response


def rest_response(signature: str, outputs: Outputs) -> dict[str, Any]:
    """The JSON body that a server must answer with."""
    if signature == "classify":
        rows = zip(outputs["classes"].tolist(), outputs["scores"].tolist(), strict=True)
        return {"results": [[[label.decode(), score] for label, score in zip(*row, strict=True)] for row in rows]}
    columns = {name: _plain(value.tolist()) for name, value in outputs.items()}
    return {"predictions": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]}


def _plain(value: Any) -> Any:
    """A value of lists with its bytes as text."""
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return value.decode() if isinstance(value, bytes) else value
