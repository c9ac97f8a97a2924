"""The REST port: paths, bodies and status codes as the server has them (http_rest_api_handler.cc, http_server.cc).

There is one thread per connection, and a bound on both; the connection of a client that sends nothing, or too slowly, is
closed after a while.
"""

import contextlib
import re
import socket
import threading
import time
import zlib
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast
from urllib.parse import unquote_to_bytes

from serving.local_server import inference, json_tensor, json_writer, model_info
from serving.local_server.manager import Manager
from serving.local_server.metrics import Metrics
from serving.model_server.session import DEFAULT_SIGNATURE
from serving.model_server.status import from_exception, invalid

METRICS_PATH = "/monitoring/prometheus/metrics"
IDENTIFICATION = ("X-Local-Model-Server", "this is tff-pipeline serve, not TensorFlow Serving")
_PREDICTION = re.compile(
    r"(?i)/v1/models/([^/:]+)(?:(?:/versions/(\d+))|(?:/labels/([^/:]+)))?:(classify|regress|predict)", re.ASCII
)
_STATUS = re.compile(
    r"(?i)/v1/models(?:/([^/:]+))?(?:(?:/versions/(\d+))|(?:/labels/([^/:]+)))?(?:/(metadata))?", re.ASCII
)


class Rest:
    """Answers requests: everything of the port but its sockets."""

    def __init__(self, manager: Manager, metrics: Metrics, *, timeout_s: float):
        self._manager, self._metrics, self._timeout_s = manager, metrics, timeout_s

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, str, bytes]:
        """HTTP status, content type and body."""
        if path == METRICS_PATH:
            return 200, "text/plain", self._metrics.page().encode()
        if not path.lower().startswith("/v1/"):
            return 404, "text/html", b""
        started, model, api = time.perf_counter(), "", ""
        try:
            model, spec, api = _parsed(method, path)
            status, text = "OK", self._serve(api, spec, body)
            http_status = 200
        except Exception as error:  # any error fails this one request, with a status
            failure = from_exception(error)
            status, http_status, text = failure.code, failure.http_status, json_writer.error(failure.message)
        if model:
            self._metrics.count(":tensorflow:serving:request_count", model, status)
            if status == "OK" and api in ("predict", "classify", "regress"):
                spent = time.perf_counter() - started
                self._metrics.observe(":tensorflow:serving:request_latency", spent, model, api.capitalize(), "REST")
        # The model's answer need not be UTF-8; its bytes are sent as they are.
        return http_status, "application/json", text.encode(errors="surrogateescape")

    def _serve(self, api: str, spec: Any, body: bytes) -> str:
        if api == "status":
            return _status_json(self._manager, spec)
        if api == "metadata":
            return _metadata_json(self._manager, spec)
        serve = {"predict": self._predict, "classify": self._classify, "regress": self._regress}[api]
        return serve(spec, json_tensor.parse(body))

    def _predict(self, spec: Any, document: Mapping[str, Any]) -> str:
        import tensorflow as tf

        name = json_tensor.signature_name(document) or DEFAULT_SIGNATURE
        with model_info.servable_of(self._manager, spec) as servable:
            signature = servable.signatures.get(name)
            if signature is None:
                raise invalid(f'Serving signature name: "{name}" not found in signature def')
            types = {key: tf.dtypes.as_dtype(info.dtype).name for key, info in signature.inputs.items()}
            if not types:
                raise invalid(f"Failed to get input map for signature: {name}")
            inputs, layout = json_tensor.predict_inputs(document, types)
            outputs = servable.run(
                signature, inputs, sorted(signature.outputs), api="Predict", timeout_s=self._timeout_s
            )
        return json_writer.predictions(outputs, layout)

    def _classify(self, spec: Any, document: Mapping[str, Any]) -> str:
        from tensorflow_serving.apis import classification_pb2

        request = classification_pb2.ClassificationRequest()
        return json_writer.classifications(self._run_examples(spec, document, request, inference.classify))

    def _regress(self, spec: Any, document: Mapping[str, Any]) -> str:
        from tensorflow_serving.apis import regression_pb2

        request = regression_pb2.RegressionRequest()
        result = self._run_examples(spec, document, request, inference.regress)
        return json_writer.regressions(regression.value for regression in result.regressions)

    def _run_examples(self, spec: Any, document: Mapping[str, Any], request: Any, answer: Any) -> Any:
        request.model_spec.CopyFrom(spec)
        request.model_spec.signature_name = json_tensor.signature_name(document)
        json_tensor.fill_examples(document, request.input)
        with model_info.servable_of(self._manager, spec) as servable:
            return answer(servable, request, timeout_s=self._timeout_s).result


def _parsed(method: str, path: str) -> tuple[str, Any, str]:
    """The model's name, the ModelSpec and the API of a request: predict, classify, regress, status or metadata."""
    from tensorflow_serving.apis import model_pb2

    match = {"POST": _PREDICTION, "GET": _STATUS}.get(method, re.compile("(?!)")).fullmatch(path)
    if match is None:
        raise invalid(f"Malformed request: {method} {path}")
    name, version, label, api = match.groups()
    spec = model_pb2.ModelSpec(name=_unquoted(name or ""))
    if version:
        if int(version) >= 2**63:
            raise invalid(f"Failed to convert version: {version} to numeric.")
        spec.version.value = int(version)
    if label:
        spec.version_label = _unquoted(label)
    if not name:
        raise invalid("Missing model name in request.")
    return spec.name, spec, (api or "status").lower()


def _unquoted(part: str) -> str:
    return unquote_to_bytes(part).decode(errors="replace")


def _status_json(manager: Manager, spec: Any) -> str:
    from google.protobuf import json_format
    from tensorflow_serving.apis import get_model_status_pb2

    response = model_info.model_status(manager, get_model_status_pb2.GetModelStatusRequest(model_spec=spec))
    return json_format.MessageToJson(response, including_default_value_fields=True, indent=1) + "\n"


def _metadata_json(manager: Manager, spec: Any) -> str:
    from google.protobuf import json_format
    from tensorflow_serving.apis import get_model_metadata_pb2

    request = get_model_metadata_pb2.GetModelMetadataRequest(model_spec=spec, metadata_field=["signature_def"])
    response, signatures = model_info.metadata(manager, request), get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)

    def text(message: Any) -> str:
        return json_format.MessageToJson(
            message, including_default_value_fields=True, preserving_proto_field_name=True, indent=1
        )

    return (
        f'{{\n"model_spec":{text(response.model_spec)}\n,\n"metadata": {{"signature_def": {text(signatures)}\n}}\n}}\n'
    )


# -- sockets -----------------------------------------------------------------------------------------------------------


class RestServer(ThreadingHTTPServer):
    """The port's sockets, from `start` to `close`; connections beyond the bound are not accepted until another ends."""

    daemon_threads = True
    block_on_close = False  # threads are joined below, with a limit
    request_queue_size = 128

    def __init__(
        self, address: tuple[str, int], rest: Rest, *, max_request_bytes: int, client_timeout_s: float, connections: int
    ):
        self.rest, self.max_request_bytes, self.client_timeout_s = rest, max_request_bytes, client_timeout_s
        self._slots = threading.BoundedSemaphore(connections)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._thread: threading.Thread | None = None
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def start(self) -> None:
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), name="rest", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Accepts no more connections, lets answers in progress go out, and closes the rest."""
        self.shutdown()
        if self._thread is not None:
            self._thread.join()
        self.server_close()
        with self._lock:
            for connection in self._open:
                # A thread that waits for the next request reads the end; one that answers can still write.
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RD)
        deadline = time.monotonic() + 5
        while self._open and time.monotonic() < deadline:
            time.sleep(0.01)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._slots.acquire(timeout=1.0):
            self.shutdown_request(request)
            return
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        with self._lock:
            was_open = request in self._open
            self._open.discard(request)
        if was_open:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Reports nothing: a client that closed its connection in the middle of a request is no error of the server."""


class _TooLarge(Exception):
    pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "tff-pipeline-serve", ""
    disable_nagle_algorithm = True
    wbufsize = 1 << 16  # head and body in one packet

    @property
    def _server(self) -> RestServer:
        return cast("RestServer", self.server)

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(self._server.client_timeout_s)

    def _answer(self) -> None:
        try:
            body = self._body()
        except _TooLarge:
            self.close_connection = True
            self._send(413, "text/html", b"")
            return
        except (ValueError, zlib.error):
            self.close_connection = True
            self._send(400, "text/html", b"")
            return
        self._send(*self._server.rest.answer(self.command, self.path.partition("?")[0], body))

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = do_OPTIONS = _answer

    def _send(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header(*IDENTIFICATION)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = self._chunks()
        else:
            length = int(self.headers.get("Content-Length") or 0)
            if length < 0:
                raise ValueError
            if length > self._server.max_request_bytes:
                raise _TooLarge
            body = self._read(length)
        if self.headers.get("Content-Encoding", "").lower() == "gzip":
            inflate = zlib.decompressobj(wbits=31)
            body = inflate.decompress(body, self._server.max_request_bytes)
            if inflate.unconsumed_tail:
                raise _TooLarge
        return body

    def _chunks(self) -> bytes:
        parts, total = [], 0
        while size := int(self.rfile.readline(64).partition(b";")[0], 16):
            total += size
            if size < 0 or total > self._server.max_request_bytes:
                raise _TooLarge
            parts.append(self._read(size))
            self._read(2)
        while self.rfile.readline(1 << 16).strip():  # trailers
            pass
        return b"".join(parts)

    def _read(self, length: int) -> bytes:
        """Reads `length` bytes; raises ConnectionError where the client stops before that."""
        body = self.rfile.read(length)
        if len(body) < length:
            raise ConnectionError
        return body

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (OSError, ConnectionError):
            self.close_connection = True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """A request that is no HTTP gets a status and no body."""
        self.close_connection = True
        self.command = getattr(self, "command", None) or "GET"
        self.request_version = "HTTP/1.1"  # else http.server, which could not read it, answers without a status line
        self._send(code, "text/html", b"")

    def log_message(self, format: str, *args: Any) -> None:
        """Logs nothing: a request may carry people's text, also in its path."""
