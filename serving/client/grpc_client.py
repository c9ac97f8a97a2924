"""The client of a model server's gRPC port."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from serving.client.answers import Explanation, Prediction, Target, explain_inputs, explanations
from serving.client.errors import ServerError, ServerTimeout, ServerUnavailable, call_until_available

_Result = TypeVar("_Result")


class GrpcClient:
    """Asks over gRPC. Threads may share a client."""

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
        """As `RestClient.predict_inputs`. Integers in lists are sent as int32, other numbers as float32."""
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
        return [{entry.label: entry.score for entry in row.classes} for row in result.classifications]

    def explain(
        self, texts: Sequence[str | bytes], *, label: str = "", signature: str = "explain"
    ) -> list[Explanation]:
        """As `RestClient.explain`."""
        return explanations(self.predict_inputs(explain_inputs(texts, label), signature=signature).outputs, label)

    def send(self, request: Any) -> Any:
        """Sends a PredictRequest or ClassificationRequest to this client's model; returns the answer unchanged."""
        request.model_spec.CopyFrom(self._spec(request.model_spec.signature_name))
        is_predict = type(request).__name__ == "PredictRequest"
        return self._call(self._predictions.Predict if is_predict else self._predictions.Classify, request)

    def states(self) -> dict[int, str]:
        """As `RestClient.states`."""
        from tensorflow_serving.apis import get_model_status_pb2

        request = get_model_status_pb2.GetModelStatusRequest(model_spec=self._spec(""))
        statuses = self._call(self._models.GetModelStatus, request).model_version_status
        name = get_model_status_pb2.ModelVersionStatus.State.Name
        return {status.version: name(status.state) for status in statuses}

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

        def call(left_s: float) -> _Result:
            try:
                return method(request, timeout=left_s)
            except grpc.RpcError as error:
                code, message = error.code(), error.details() or ""  # type: ignore[attr-defined]
                kinds = {
                    grpc.StatusCode.UNAVAILABLE: ServerUnavailable,
                    grpc.StatusCode.DEADLINE_EXCEEDED: ServerTimeout,
                }
                raise kinds.get(code, ServerError)(self._address, code.name, message) from None

        return call_until_available(call, self._timeout_s)


def _to_array(value: Any) -> Any:
    """A value as `make_tensor_proto` takes it: a list of texts as bytes, since numpy would decode them as ASCII."""
    if isinstance(value, list | tuple):
        return [_to_array(element) for element in value]
    return value.encode() if isinstance(value, str) else value
