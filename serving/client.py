"""Asks a model server, TensorFlow's or the double, over REST or gRPC: the same calls and the same answers for both.

    with RestClient("http://localhost:8501", "support") as client:
        answer = client.predict(["I lost my card"])
        answer.outputs["label"]          # array([b"card"], dtype=object)

A prediction changes nothing on the server, so it is asked again where the server was not reached, or said that it is
not available; not after a timeout, which would ask a busy server twice. All attempts together end at `timeout_s`.
"""

import base64
import dataclasses
import http.client
import json
import random
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import numpy as np

from tff_pipeline.errors import PipelineError

AVAILABLE = "AVAILABLE"
_FIRST_PAUSE_S = 0.05
_Result = TypeVar("_Result")


class ServerError(PipelineError):
    """The server refused a request. `code` is its status ("NOT_FOUND", or "HTTP 404" over REST), `said` its words."""

    def __init__(self, where: str, code: str, said: str):
        super().__init__(f"{where}: the server answered {code}: {said or '(nothing)'}")
        self.code, self.said = code, said


class ServerUnavailable(ServerError):
    """The server was not reached, or said that it is not available, as often as there was time to ask."""


class ServerTimeout(ServerError):
    """There was no answer in time."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Outputs by name: strings as bytes, numbers as float32 or int32; the first dimension is the batch.

    `version` is the one that answered; REST does not say it.
    """

    outputs: Mapping[str, np.ndarray]
    version: int | None


@dataclasses.dataclass(frozen=True)
class Piece:
    """A piece of a text: bytes `start` to `end` of it, and how much of the label's score it made (it may be less than 0)."""

    token: str
    start: int
    end: int
    attribution: float


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Why a text has a label: the pieces' attributions add up to `score - baseline_score + gap`.

    `score` is the label's probability, `baseline_score` that of the same text with every piece unknown; `gap` is the error
    of the sum that stands for an integral, and near 0 where the version was exported with enough steps.
    """

    label: str
    score: float
    baseline_score: float
    gap: float
    pieces: tuple[Piece, ...]


@dataclasses.dataclass(frozen=True)
class Target:
    """A model, and which version of it: a number, a label, or neither for the newest."""

    model: str
    version: int | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        if self.version is not None and self.label is not None:
            raise ValueError(f"version {self.version} and label {self.label!r}: give one of them, or neither.")


class RestClient:
    """Over REST. Threads may share one; each has a connection of its own, which is kept open."""

    def __init__(
        self,
        address: str,
        model: str,
        *,
        version: int | None = None,
        label: str | None = None,
        timeout_s: float = 10.0,
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
    ):
        """`address` is http://HOST:PORT, or https:// with a proxy before the server, which itself has no TLS."""
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{address!r}: expected an address such as http://localhost:8501.")
        self._target = Target(model, version, label)
        self._address, self._prefix = address.rstrip("/"), parts.path.rstrip("/")
        self._host, self._port, self._secure = parts.hostname, parts.port, parts.scheme == "https"
        self._timeout_s, self._headers, self._tls = timeout_s, dict(headers or {}), tls
        self._local = threading.local()

    def predict(self, texts: Sequence[str | bytes], *, signature: str = "") -> Prediction:
        """Asks a signature that takes texts.

        Raises:
          ServerError: with what the server said.
        """
        return self.predict_inputs({"text": texts}, signature=signature)

    def predict_inputs(self, inputs: Mapping[str, Any], *, signature: str = "") -> Prediction:
        """Asks any signature. Inputs are lists or arrays by name, the batch first; raises as `predict` does."""
        request: dict[str, Any] = {"inputs": {name: _to_json(value) for name, value in inputs.items()}}
        if signature:
            request["signature_name"] = signature
        outputs = self.post("predict", request)["outputs"]
        if not isinstance(outputs, dict):  # a signature with one output does not name it
            outputs = {"outputs": outputs}
        return Prediction({name: _from_json(value) for name, value in outputs.items()}, self._target.version)

    def classify(self, texts: Sequence[str | bytes], *, signature: str = "classify") -> list[dict[str, float]]:
        """The score of every label, for each text; the signature takes examples with a feature `text`."""
        request = {"signature_name": signature, "examples": [{"text": _to_json(text)} for text in texts]}
        results = self.post("classify", request)["results"]
        return [dict(map(tuple, result)) for result in results]

    def explain(
        self, texts: Sequence[str | bytes], *, label: str = "", signature: str = "explain"
    ) -> list[Explanation]:
        """Which pieces of each text made its predicted label, or `label`; takes about a hundred predictions.

        Raises:
          ServerError: with what the server said, also where the model has no such signature.
          ValueError: if the model has no such label.
        """
        return _explanations(self.predict_inputs(_to_explain(texts, label), signature=signature).outputs, label)

    def post(self, api: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """A request as REST has it, `api` being predict, classify or regress; returns the answer as it came."""
        return self._call("POST", f":{api}", json.dumps(request).encode())

    def states(self) -> dict[int, str]:
        """The state of each version that the server knows, such as AVAILABLE; or of the one this client asks."""
        found = self._call("GET", "", b"")["model_version_status"]
        return {int(each["version"]): each["state"] for each in found}

    def failures(self) -> dict[int, str]:
        """Why versions could not be loaded, in the server's words; versions without a failure are not in it."""
        found = self._call("GET", "", b"")["model_version_status"]
        return {
            int(each["version"]): each["status"].get("error_message") or each["status"]["error_code"]
            for each in found
            if each["state"] == "END" and each.get("status", {}).get("error_code", "OK") != "OK"
        }

    def answering_version(self) -> int:
        """The version that answers what this client asks for, such as its label; a ServerError where none does."""
        return int(self._call("GET", "/metadata", b"")["model_spec"]["version"])

    def close(self) -> None:
        """Closes this thread's connection."""
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            self._local.connection = None

    def __enter__(self) -> "RestClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, method: str, what: str, body: bytes) -> dict[str, Any]:
        target = self._target
        path = f"{self._prefix}/v1/models/{quote(target.model, safe='')}"
        if target.version is not None:
            path += f"/versions/{target.version}"
        elif target.label is not None:
            path += f"/labels/{quote(target.label, safe='')}"
        return _insisting(lambda left_s: self._once(method, path + what, body, left_s), self._timeout_s)

    def _once(self, method: str, path: str, body: bytes, left_s: float) -> dict[str, Any]:
        where = self._address + path
        connection = self._connection(left_s)
        try:
            headers = {"Content-Type": "application/json", **self._headers}
            connection.request(method, path, body or None, headers)
            response = connection.getresponse()
            answer = response.read()
        except TimeoutError:
            self.close()
            raise ServerTimeout(where, "nothing", f"no answer in {self._timeout_s:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            # Refused, or a kept connection that the server has closed meanwhile.
            self.close()
            raise ServerUnavailable(where, "nothing", f"{type(error).__name__}: {error}") from None
        if response.status != 200:
            said = _said(answer)
            kind = {503: ServerUnavailable, 504: ServerTimeout}.get(response.status, ServerError)
            raise kind(where, f"HTTP {response.status}", said)
        return json.loads(answer.decode(errors="surrogateescape"))

    def _connection(self, left_s: float) -> http.client.HTTPConnection:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = (
                http.client.HTTPSConnection(self._host, self._port, context=self._tls)
                if self._secure
                else http.client.HTTPConnection(self._host, self._port)
            )
            self._local.connection = connection
        connection.timeout = left_s
        if connection.sock is not None:
            connection.sock.settimeout(left_s)
        return connection


class GrpcClient:
    """Over gRPC. Threads may share one."""

    def __init__(
        self,
        address: str,
        model: str,
        *,
        version: int | None = None,
        label: str | None = None,
        timeout_s: float = 10.0,
        credentials: Any = None,
    ):
        """`address` is HOST:PORT. `credentials` are a grpc.ChannelCredentials; without them nothing is encrypted."""
        import grpc
        from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

        self._target, self._address, self._timeout_s = Target(model, version, label), address, timeout_s
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._channel = (
            grpc.secure_channel(address, credentials, options)
            if credentials is not None
            else grpc.insecure_channel(address, options)
        )
        self._predictions = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def predict(self, texts: Sequence[str | bytes], *, signature: str = "") -> Prediction:
        """As `RestClient.predict`."""
        return self.predict_inputs({"text": texts}, signature=signature)

    def predict_inputs(self, inputs: Mapping[str, Any], *, signature: str = "") -> Prediction:
        """As `RestClient.predict_inputs`. Whole numbers in lists are sent as int32, decimals as float32."""
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest(model_spec=self._spec(signature))
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(_to_array(value)))
        response = self._call(self._predictions.Predict, request)
        return Prediction(
            {name: np.asarray(tf.make_ndarray(value)) for name, value in response.outputs.items()},
            response.model_spec.version.value,
        )

    def classify(self, texts: Sequence[str | bytes], *, signature: str = "classify") -> list[dict[str, float]]:
        """As `RestClient.classify`."""
        from tensorflow_serving.apis import classification_pb2

        request = classification_pb2.ClassificationRequest(model_spec=self._spec(signature))
        for text in texts:
            feature = request.input.example_list.examples.add().features.feature["text"]
            feature.bytes_list.value.append(text.encode() if isinstance(text, str) else text)
        result = self._call(self._predictions.Classify, request).result
        return [{each.label: each.score for each in found.classes} for found in result.classifications]

    def explain(
        self, texts: Sequence[str | bytes], *, label: str = "", signature: str = "explain"
    ) -> list[Explanation]:
        """As `RestClient.explain`."""
        return _explanations(self.predict_inputs(_to_explain(texts, label), signature=signature).outputs, label)

    def send(self, request: Any) -> Any:
        """A PredictRequest or ClassificationRequest of another's making, to this client's model; the answer as it came."""
        request.model_spec.CopyFrom(self._spec(request.model_spec.signature_name))
        is_predict = type(request).__name__ == "PredictRequest"
        return self._call(self._predictions.Predict if is_predict else self._predictions.Classify, request)

    def states(self) -> dict[int, str]:
        """As `RestClient.states`."""
        from tensorflow_serving.apis import get_model_status_pb2

        request = get_model_status_pb2.GetModelStatusRequest(model_spec=self._spec(""))
        found = self._call(self._models.GetModelStatus, request).model_version_status
        name = get_model_status_pb2.ModelVersionStatus.State.Name
        return {each.version: name(each.state) for each in found}

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> "GrpcClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _spec(self, signature: str) -> Any:
        from tensorflow_serving.apis import model_pb2

        spec = model_pb2.ModelSpec(name=self._target.model, signature_name=signature)
        if self._target.version is not None:
            spec.version.value = self._target.version
        elif self._target.label is not None:
            spec.version_label = self._target.label
        return spec

    def _call(self, method: Callable[..., _Result], request: Any) -> _Result:
        import grpc

        def once(left_s: float) -> _Result:
            try:
                return method(request, timeout=left_s)
            except grpc.RpcError as error:
                code, said = error.code(), error.details() or ""  # type: ignore[attr-defined]
                kinds = {
                    grpc.StatusCode.UNAVAILABLE: ServerUnavailable,
                    grpc.StatusCode.DEADLINE_EXCEEDED: ServerTimeout,
                }
                raise kinds.get(code, ServerError)(self._address, code.name, said) from None

        return _insisting(once, self._timeout_s)


Client = RestClient | GrpcClient


def _insisting(once: Callable[[float], _Result], timeout_s: float) -> _Result:
    """Calls until the server is available or the time is over, with growing pauses of random length."""
    deadline, pause = time.monotonic() + timeout_s, _FIRST_PAUSE_S
    while True:
        try:
            return once(max(deadline - time.monotonic(), 0.001))
        except ServerUnavailable:
            wait = pause * random.uniform(0.5, 1.5)
            if time.monotonic() + wait >= deadline:
                raise
            time.sleep(wait)
            pause = min(2 * pause, 2.0)


def _to_explain(texts: Sequence[str | bytes], label: str) -> dict[str, Any]:
    return {"text": texts, "label": [label] * len(texts)}


def _explanations(outputs: Mapping[str, np.ndarray], label: str) -> list[Explanation]:
    found = []
    for row, given in enumerate(outputs["label"]):
        if not given:
            raise ValueError(f"label {label!r}: the model has none of that name; its answers name those it has.")
        columns = zip(
            *(outputs[name][row] for name in ("tokens", "starts", "ends", "attributions", "mask")), strict=True
        )
        pieces = tuple(
            Piece(token.decode(), int(start), int(end), float(attribution))
            for token, start, end, attribution, is_piece in columns
            if is_piece
        )
        score, baseline_score, gap = (float(outputs[name][row]) for name in ("score", "baseline_score", "gap"))
        found.append(Explanation(given.decode(), score, baseline_score, gap, pieces))
    return found


def _said(answer: bytes) -> str:
    """The server's message; or, where something else answered, its beginning."""
    text = answer.decode(errors="replace")
    try:
        return str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return text[:200]


def _to_json(value: Any) -> Any:
    """A value as REST wants it: bytes that are no UTF-8 as base64."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"b64": base64.b64encode(value).decode()}
    return [_to_json(each) for each in value] if isinstance(value, list | tuple) else value


def _to_array(value: Any) -> Any:
    """A value as `make_tensor_proto` takes it: a list of texts as bytes, since numpy would decode them as ASCII."""
    if isinstance(value, list | tuple):
        return [_to_array(each) for each in value]
    return value.encode() if isinstance(value, str) else value


def _from_json(value: Any) -> np.ndarray:
    """An output as an array: what JSON has no types for is float32, int32 or bytes."""
    found = np.array(value)
    if found.dtype.kind == "f":
        return found.astype(np.float32)
    if found.dtype.kind == "i":
        return found.astype(np.int32)
    if found.dtype.kind == "U":
        found = np.array(value, object)  # numpy's own strings end at the last character that is not NUL
        found.ravel()[:] = [each.encode(errors="surrogateescape") for each in found.ravel()]
    return found
