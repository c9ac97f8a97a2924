"""The gRPC API answers what TensorFlow Serving would: words and codes. Expected texts are the server's source's."""

from builders.local_servers import predict_request, refused
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
    regression_pb2,
)


def test_predict_over_grpc(channel):
    call = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict
    request = predict_request(label="stable")
    response = call(request, timeout=10)
    assert (response.model_spec.version.value, response.model_spec.signature_name) == (1, "serving_default")
    assert list(response.outputs["length"].int_val) == [2]
    request.output_filter.append("version")
    assert set(call(request, timeout=10).outputs) == {"version"}


def test_wrong_requests_over_grpc(channel):
    call = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict
    assert refused(call, predict_request(name="")) == ("INVALID_ARGUMENT", "ModelSpec has no name specified.")
    assert refused(call, predict_request(version=9)) == (
        "NOT_FOUND",
        "Servable not found for request: Specific(small, 9)",
    )
    assert refused(call, predict_request(signature="no")) == (
        "FAILED_PRECONDITION",
        'Serving signature key "no" not found.',
    )
    request = predict_request()
    request.inputs["more"].CopyFrom(request.inputs["text"])
    assert refused(call, request) == (
        "INVALID_ARGUMENT",
        "input size does not match signature: 2!=1 len({more,text}) != len({text}). Sent extra: {more}. Missing but required: {}.",
    )
    request = predict_request([1.5])
    assert refused(call, request) == ("INVALID_ARGUMENT", "Expects arg[0] to be string but float is provided")
    request = predict_request()
    request.output_filter.append("no")
    assert refused(call, request)[1].startswith("output tensor alias not found in signature: no Outputs expected")


def test_a_few_bytes_cannot_ask_for_all_memory(channel):
    """A TensorProto with one value and a shape of a million million."""
    request = predict_request()
    request.inputs["text"].tensor_shape.dim[0].size = 10**12
    call = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict
    assert refused(call, request) == ("INVALID_ARGUMENT", "tensor parsing error: text")


def test_classify_regress_and_both_over_grpc(channel):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    classify, regress = classification_pb2.ClassificationRequest(), regression_pb2.RegressionRequest()
    both = inference_pb2.MultiInferenceRequest()
    for request in (classify, regress, both):
        example = request.input.example_list.examples.add()
        example.features.feature["text"].bytes_list.value.append(b"abc")
    for request, name in ((classify, "classify"), (regress, "regress")):
        request.model_spec.name, request.model_spec.signature_name = "small", name
        task = both.tasks.add(method_name=f"tensorflow/serving/{name}")
        task.model_spec.CopyFrom(request.model_spec)

    classes = stub.Classify(classify, timeout=10).result.classifications[0].classes
    assert [(each.label, each.score) for each in classes] == [("long", 3.0), ("version", 1.0)]
    assert stub.Regress(regress, timeout=10).result.regressions[0].value == 3.0
    results = stub.MultiInference(both, timeout=10).results
    assert results[0].classification_result.classifications[0].classes[0].score == 3.0
    assert results[1].regression_result.regressions[0].value == 3.0
    classify.model_spec.signature_name = ""
    assert refused(stub.Classify, classify)[0] == "FAILED_PRECONDITION"
    classify.model_spec.signature_name = "no"
    assert refused(stub.Classify, classify) == ("INVALID_ARGUMENT", "No signature was found with the name: no")
    classify.input.Clear()
    classify.model_spec.signature_name = "classify"
    assert refused(stub.Classify, classify) == ("INVALID_ARGUMENT", "Input is empty.")


def test_metadata_and_status_over_grpc(channel):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    request = get_model_metadata_pb2.GetModelMetadataRequest()
    assert refused(stub.GetModelMetadata, request) == ("INVALID_ARGUMENT", "Missing ModelSpec")
    request.model_spec.name = "small"
    request.metadata_field.append("signature_def")
    response = stub.GetModelMetadata(request, timeout=10)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    assert signatures.signature_def["classify"].method_name == "tensorflow/serving/predict"

    status = get_model_status_pb2.GetModelStatusRequest()
    status.model_spec.name = "small"
    found = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(status, timeout=10)
    assert [(each.version, each.state) for each in found.model_version_status] == [(2, 30), (1, 30)]
