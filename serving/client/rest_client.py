"""The client of a model server's REST port."""

import base64
import contextlib
import http.client
import json
import ssl
import threading
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np

from serving.client.answers import Explanation, Prediction, Target, explain_inputs, explanations
from serving.client.errors import ServerError, ServerTimeout, ServerUnavailable, call_until_available


def checked_address(address: str) -> str:
    """The address of a REST port; raises ValueError if it is none."""
    with contextlib.suppress(ValueError):  # a port that is no number
        parts = urlsplit(address)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return address
    raise ValueError(f"{address!r}: is no address of a REST port; expected an address such as http://localhost:8501.")


class RestClient:
    """Asks over REST. Threads may share a client; each thread has a connection of its own, which is kept open."""

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
        parts = urlsplit(checked_address(address))
        self._target = Target(model, version, label)
        self._address, self._prefix = address.rstrip("/"), parts.path.rstrip("/")
        self._host, self._port, self._secure = parts.hostname or "", parts.port, parts.scheme == "https"
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
        return explanations(self.predict_inputs(explain_inputs(texts, label), signature=signature).outputs, label)

    def post(self, api: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Sends a request as REST has it to an API (predict, classify, regress); returns the answer unchanged."""
        return self._call("POST", f":{api}", json.dumps(request).encode())

    def states(self) -> dict[int, str]:
        """The state of each version that the server knows, such as AVAILABLE; or of the one that this client addresses."""
        return {int(status["version"]): status["state"] for status in self._statuses()}

    def failures(self) -> dict[int, str]:
        """Why versions could not be loaded, in the server's words; versions without a failure are left out."""
        return {
            int(status["version"]): status["status"].get("error_message") or status["status"]["error_code"]
            for status in self._statuses()
            if status["state"] == "END" and status.get("status", {}).get("error_code", "OK") != "OK"
        }

    def _statuses(self) -> list[dict[str, Any]]:
        return self._call("GET", "", b"")["model_version_status"]

    def answering_version(self) -> int:
        """The version that answers what this client addresses, such as a label; raises ServerError where none does."""
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

    def _call(self, method: str, suffix: str, body: bytes) -> dict[str, Any]:
        target = self._target
        path = f"{self._prefix}/v1/models/{quote(target.model, safe='')}"
        if target.version is not None:
            path += f"/versions/{target.version}"
        elif target.label is not None:
            path += f"/labels/{quote(target.label, safe='')}"
        return call_until_available(
            lambda left_s: self._call_once(method, path + suffix, body, left_s), self._timeout_s
        )

    def _call_once(self, method: str, path: str, body: bytes, left_s: float) -> dict[str, Any]:
        url = self._address + path
        connection = self._connection(left_s)
        try:
            headers = {"Content-Type": "application/json", **self._headers}
            connection.request(method, path, body or None, headers)
            response = connection.getresponse()
            answer = response.read()
        except TimeoutError:
            self.close()
            raise ServerTimeout(url, "nothing", f"no answer in {self._timeout_s:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            # The server refused the connection, or has closed one that was kept open.
            self.close()
            raise ServerUnavailable(url, "nothing", f"{type(error).__name__}: {error}") from None
        if response.status != 200:
            message = _message(answer)
            kind = {503: ServerUnavailable, 504: ServerTimeout}.get(response.status, ServerError)
            raise kind(url, f"HTTP {response.status}", message)
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


def _message(answer: bytes) -> str:
    """The server's message; where something else than a model server answered, the beginning of its answer."""
    text = answer.decode(errors="replace")
    try:
        return str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return text[:200]


def _to_json(value: Any) -> Any:
    """A value in REST's JSON: bytes that are no UTF-8 as base64."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"b64": base64.b64encode(value).decode()}
    return [_to_json(element) for element in value] if isinstance(value, list | tuple) else value


def _from_json(value: Any) -> np.ndarray:
    """An output as an array of float32, int32 or bytes, types that JSON does not tell apart."""
    array = np.array(value)
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    if array.dtype.kind == "i":
        return array.astype(np.int32)
    if array.dtype.kind == "U":
        array = np.array(value, object)  # numpy's own strings end at the last character that is not NUL
        array.ravel()[:] = [text.encode(errors="surrogateescape") for text in array.ravel()]
    return array
