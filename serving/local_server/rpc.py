"""The gRPC port: PredictionService and ModelService of tensorflow-serving-api, answered by `inference` and `model_info`."""

import time
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

import grpc
from tensorflow_serving.apis import (
    model_management_pb2,
    model_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)

from serving.local_server import inference, model_info
from serving.local_server.manager import Manager
from serving.local_server.metrics import Metrics
from serving.model_server.models_config import ModelConfig, from_message
from serving.model_server.status import ServingError, from_exception

_IDENTIFICATION = (("x-local-model-server", "this is tff-pipeline serve, not TensorFlow Serving"),)
Reload = Callable[[Sequence[ModelConfig], float | None], None]


class _Service:
    """Counts and times requests, and turns errors into the call's status."""

    def __init__(self, manager: Manager, metrics: Metrics):
        self._manager, self._metrics = manager, metrics

    def _answer(self, api: str, spec: Any, context: grpc.ServicerContext, answer: Callable[[], Any]) -> Any:
        context.send_initial_metadata(_IDENTIFICATION)
        started = time.perf_counter()
        try:
            response = answer()
        except Exception as error:  # any error fails this one call, with a status
            failure = from_exception(error)
            self._metrics.count(":tensorflow:serving:request_count", spec.name, failure.code)
            context.abort(failure.grpc_status, failure.message)
        self._metrics.count(":tensorflow:serving:request_count", spec.name, "OK")
        spent = time.perf_counter() - started
        self._metrics.observe(":tensorflow:serving:request_latency", spent, spec.name, api, "GRPC")
        return response

    def _infer(self, api: str, spec: Any, context: grpc.ServicerContext, infer: Any, request: Any) -> Any:
        def answer() -> Any:
            with model_info.servable_of(self._manager, spec) as servable:
                return infer(servable, request, timeout_s=context.time_remaining())

        return self._answer(api, spec, context, answer)


class PredictionService(_Service, prediction_service_pb2_grpc.PredictionServiceServicer):
    def Predict(self, request: Any, context: grpc.ServicerContext) -> Any:
        return self._infer("Predict", request.model_spec, context, inference.predict, request)

    def Classify(self, request: Any, context: grpc.ServicerContext) -> Any:
        return self._infer("Classify", request.model_spec, context, inference.classify, request)

    def Regress(self, request: Any, context: grpc.ServicerContext) -> Any:
        return self._infer("Regress", request.model_spec, context, inference.regress, request)

    def MultiInference(self, request: Any, context: grpc.ServicerContext) -> Any:
        spec = request.tasks[0].model_spec if request.tasks else model_pb2.ModelSpec()
        return self._infer("MultiInference", spec, context, inference.multi_inference, request)

    def GetModelMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:
        return self._answer(
            "GetModelMetadata", request.model_spec, context, lambda: model_info.metadata(self._manager, request)
        )


class ModelService(_Service, model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, manager: Manager, metrics: Metrics, reload: Reload):
        super().__init__(manager, metrics)
        self._reload = reload

    def GetModelStatus(self, request: Any, context: grpc.ServicerContext) -> Any:
        return self._answer(
            "GetModelStatus", request.model_spec, context, lambda: model_info.model_status(self._manager, request)
        )

    def HandleReloadConfigRequest(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Answers when new models are available. An error is in the response; the call itself succeeds."""
        context.send_initial_metadata(_IDENTIFICATION)
        response = model_management_pb2.ReloadConfigResponse()
        response.status.SetInParent()
        try:
            self._reload(from_message(request.config), context.time_remaining())
        except ServingError as error:
            response.status.error_code = error.number
            response.status.error_message = error.message
        return response


def grpc_server(
    address: str, manager: Manager, metrics: Metrics, reload: Reload, *, max_request_bytes: int, threads: int
) -> tuple[Any, int]:
    """A server that is not started yet, and its port.

    Raises:
      RuntimeError: if the address cannot be listened on.
    """
    options = [
        ("grpc.max_receive_message_length", max_request_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),  # a port that is taken is an error, not shared
    ]
    server = grpc.server(futures.ThreadPoolExecutor(threads, thread_name_prefix="rpc"), options=options)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(PredictionService(manager, metrics), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(manager, metrics, reload), server)
    return server, server.add_insecure_port(address)
