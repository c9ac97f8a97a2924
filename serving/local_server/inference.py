"""Answers predict, classify and regress requests, with the server's checks and error messages (predict_util.cc,
classifier.cc, regressor.cc).

The messages are those of tensorflow-serving-api; REST makes the same from JSON.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from serving.local_server.servable import Servable
from serving.model_server.session import DEFAULT_SIGNATURE
from serving.model_server.status import ServingError, invalid

MAX_INPUT_BYTES = 1 << 28  # of one input: a few bytes of a message may ask for any shape
_PREDICT, _CLASSIFY, _REGRESS = (f"tensorflow/serving/{name}" for name in ("predict", "classify", "regress"))


# -- predict -----------------------------------------------------------------------------------------------------------


def predict(servable: Servable, request: Any, *, timeout_s: float | None) -> Any:
    """PredictRequest to PredictResponse."""
    from tensorflow_serving.apis import predict_pb2

    name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    signature = servable.signatures.get(name)
    if signature is None:
        raise ServingError("FAILED_PRECONDITION", f'Serving signature key "{name}" not found.')
    inputs = {alias: _array(alias, signature, request.inputs[alias]) for alias in _checked_inputs(signature, request)}
    outputs = _outputs(signature, request.output_filter)
    answer = servable.run(signature, inputs, outputs, api="Predict", timeout_s=timeout_s)
    response = predict_pb2.PredictResponse()
    _describe(response.model_spec, servable, name)
    for alias, value in answer.items():
        response.outputs[alias].CopyFrom(tensor_message(value))
    return response


def _checked_inputs(signature: Any, request: Any) -> list[str]:
    given, expected = sorted(request.inputs), sorted(signature.inputs)
    if len(given) > len(expected) or (len(given) < len(expected) and not signature.defaults):
        extra, missing = sorted(set(given) - set(expected)), sorted(set(expected) - set(given))
        raise invalid(
            f"input size does not match signature: {len(given)}!={len(expected)} len({{{','.join(given)}}}) != "
            f"len({{{','.join(expected)}}}). Sent extra: {{{','.join(extra)}}}. Missing but required: {{{','.join(missing)}}}."
        )
    for alias in given:
        if alias not in signature.inputs:
            raise invalid(
                f"input tensor alias not found in signature: {alias}. Inputs expected to be in the set {{{','.join(expected)}}}."
            )
    return given


def _outputs(signature: Any, wanted: Sequence[str]) -> list[str]:
    for index, alias in enumerate(wanted):
        if alias not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {alias} Outputs expected to be in the set {{{','.join(sorted(signature.outputs))}}}."
            )
        if alias in wanted[:index]:
            raise invalid(f"duplicate output tensor alias: {alias}")
    return list(wanted) or sorted(signature.outputs)


def _array(alias: str, signature: Any, message: Any) -> np.ndarray:
    """A TensorProto as an array."""
    import tensorflow as tf

    try:
        dtype = tf.dtypes.as_dtype(message.dtype)
        shape = [dim.size for dim in message.tensor_shape.dim]
        if min(shape, default=0) < 0 or np.prod(shape, dtype=float) * max(dtype.size or 1, 1) > MAX_INPUT_BYTES:
            raise ValueError
        return np.asarray(tf.make_ndarray(message))
    except (TypeError, ValueError, KeyError, IndexError):
        raise invalid(f"tensor parsing error: {alias}") from None


def tensor_message(value: np.ndarray) -> Any:
    """An array as a TensorProto with its values in fields, as the server writes it."""
    import tensorflow as tf

    message = tf.make_tensor_proto(0.0)
    message.Clear()
    dtype = tf.dtypes.as_dtype(value.dtype)
    message.dtype = dtype.as_datatype_enum
    for size in value.shape:
        message.tensor_shape.dim.add().size = size
    field = _FIELDS.get(dtype.name)
    if field is None:
        message.tensor_content = value.tobytes()
    else:
        getattr(message, field).extend(value.ravel().tolist())
    return message


_FIELDS = {
    "float32": "float_val",
    "float64": "double_val",
    "string": "string_val",
    "int64": "int64_val",
    "bool": "bool_val",
    "uint32": "uint32_val",
    "uint64": "uint64_val",
    **dict.fromkeys(("int32", "int16", "int8", "uint8"), "int_val"),
}


# -- classify and regress ----------------------------------------------------------------------------------------------


def classify(servable: Servable, request: Any, *, timeout_s: float | None) -> Any:
    """ClassificationRequest to ClassificationResponse."""
    from tensorflow_serving.apis import classification_pb2

    name, signature = _signature_of_examples(servable, request.model_spec)
    wanted = _classify_outputs(signature)
    answer, count = _run_examples(servable, signature, request.input, wanted, "Classify", timeout_s)
    response = classification_pb2.ClassificationResponse()
    _describe(response.model_spec, servable, name)
    _fill_classes(response.result, answer, count)
    return response


def regress(servable: Servable, request: Any, *, timeout_s: float | None) -> Any:
    """RegressionRequest to RegressionResponse."""
    from tensorflow_serving.apis import regression_pb2

    name, signature = _signature_of_examples(servable, request.model_spec)
    wanted = _regress_outputs(signature)
    answer, count = _run_examples(servable, signature, request.input, wanted, "Regress", timeout_s)
    response = regression_pb2.RegressionResponse()
    _describe(response.model_spec, servable, name)
    _fill_values(response.result, answer, count)
    return response


def multi_inference(servable: Servable, request: Any, *, timeout_s: float | None) -> Any:
    """MultiInferenceRequest to MultiInferenceResponse."""
    from tensorflow_serving.apis import inference_pb2

    names = [task.model_spec.signature_name or DEFAULT_SIGNATURE for task in request.tasks]
    for index, (task, name) in enumerate(zip(request.tasks, names, strict=True)):
        if not task.model_spec.name:
            raise invalid("Found ModelSpec with an empty model name.")
        if task.model_spec.name != request.tasks[0].model_spec.name:
            raise invalid("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
        if name in names[:index]:
            raise invalid(f"Duplicate evaluation of signature: {name}")
        if name not in servable.signatures:
            raise invalid(f"Requested signature not found in model graph: {name}")
        if task.method_name not in (_CLASSIFY, _REGRESS):
            raise ServingError("UNIMPLEMENTED", f"Unsupported signature method_name: {task.method_name}")
    response = inference_pb2.MultiInferenceResponse()
    for task, name in zip(request.tasks, names, strict=True):
        signature, result = servable.signatures[name], response.results.add()
        is_classify = task.method_name == _CLASSIFY
        wanted = _classify_outputs(signature) if is_classify else _regress_outputs(signature)
        answer, count = _run_examples(servable, signature, request.input, wanted, "MultiInference", timeout_s)
        _describe(result.model_spec, servable, name)
        if is_classify:
            _fill_classes(result.classification_result, answer, count)
        else:
            _fill_values(result.regression_result, answer, count)
    return response


def _signature_of_examples(servable: Servable, spec: Any) -> tuple[str, Any]:
    name = spec.signature_name or DEFAULT_SIGNATURE
    if name not in servable.signatures:
        raise invalid(f"No signature was found with the name: {name}")
    return name, servable.signatures[name]


def _classify_outputs(signature: Any) -> list[str]:
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(signature.outputs) not in (1, 2):
        raise invalid(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    if "inputs" not in signature.inputs:
        raise ServingError("FAILED_PRECONDITION", f"No classification inputs found in SignatureDef: {signature}")
    wanted = [name for name in ("classes", "scores") if name in signature.outputs]
    if not wanted:
        raise ServingError(
            "FAILED_PRECONDITION",
            f'Expected classification signature outputs to contain at least one of "classes" or "scores". Signature was: {signature}',
        )
    return wanted


def _regress_outputs(signature: Any) -> list[str]:
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(signature.outputs) != 1:
        raise invalid("Expected one output Tensor.")
    if "inputs" not in signature.inputs:
        raise ServingError("FAILED_PRECONDITION", f"No regression inputs found in SignatureDef: {signature}")
    if "outputs" not in signature.outputs:
        raise ServingError("FAILED_PRECONDITION", f"No regression outputs found in SignatureDef: {signature}")
    return ["outputs"]


def _run_examples(
    servable: Servable, signature: Any, given: Any, outputs: Sequence[str], api: str, timeout_s: float | None
) -> tuple[dict[str, np.ndarray], int]:
    kind = given.WhichOneof("kind")
    examples, context = [], b""
    if kind == "example_list":
        examples = given.example_list.examples
    elif kind == "example_list_with_context":
        examples = given.example_list_with_context.examples
        context = given.example_list_with_context.context.SerializeToString()
    if not examples:
        raise invalid("Input is empty.")
    # Serialized messages merge when they are joined, and the example's own features come last, so that they win.
    serialized = np.array([context + example.SerializeToString() for example in examples], object)
    answer = servable.run(signature, {"inputs": serialized}, outputs, api=api, timeout_s=timeout_s)
    return answer, len(examples)


def _fill_classes(result: Any, answer: Mapping[str, np.ndarray], count: int) -> None:
    for name, kind in (("classes", "DT_STRING"), ("scores", "DT_FLOAT")):
        value = answer.get(name)
        if value is None:
            continue
        if value.ndim != 2:
            raise invalid(f"Expected Tensor shape: [batch_size num_classes] but got {_shape(value)}")
        if value.dtype != (object if name == "classes" else np.float32):
            raise invalid(f"Expected {name} Tensor of {kind}. Got: {value.dtype}")
        if len(value) != count:
            raise invalid(f"Expected {name} output batch size of {count}. Got: {len(value)}")
    widths = {value.shape[1] for value in answer.values()}
    if len(widths) > 1:
        raise invalid(f"Tensors class and score should match in dim_size(1). Got {' vs. '.join(map(str, widths))}")
    (width,) = widths
    for row in range(count):
        classifications = result.classifications.add()
        for column in range(width):
            entry = classifications.classes.add()
            if "classes" in answer:
                # The field is text in the message's definition; the server puts any bytes into it.
                entry.label = answer["classes"][row, column].decode(errors="replace")
            if "scores" in answer:
                entry.score = float(answer["scores"][row, column])


def _fill_values(result: Any, answer: Mapping[str, np.ndarray], count: int) -> None:
    value = answer["outputs"]
    if not (value.ndim == 1 or (value.ndim == 2 and value.shape[1] == 1)):
        raise invalid(
            f"Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got {_shape(value)}"
        )
    if len(value) != count:
        raise invalid(f"Input batch size did not match output batch size: {count} vs. {len(value)}")
    if value.dtype != np.float32:
        raise invalid(f"Expected output Tensor of DT_FLOAT.  Got: {value.dtype}")
    for number in value.ravel().tolist():
        result.regressions.add().value = number


def _shape(value: np.ndarray) -> str:
    return f"[{','.join(map(str, value.shape))}]"


def _describe(spec: Any, servable: Servable, signature: str) -> None:
    spec.name, spec.signature_name = servable.name, signature
    spec.version.value = servable.version
