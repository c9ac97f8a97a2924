"""Which models and versions are served: the servable that a request names, the state of versions, their signatures."""

from contextlib import AbstractContextManager
from typing import Any

from serving.local_server.manager import Manager
from serving.local_server.servable import Servable
from serving.model_server.status import invalid


def servable_of(manager: Manager, spec: Any) -> AbstractContextManager[Servable]:
    """The servable that a ModelSpec names, in use as long as the block lasts; raises as `Manager.servable` does."""
    choice = spec.WhichOneof("version_choice")
    return manager.servable(
        spec.name,
        version=spec.version.value if choice == "version" else None,
        label=spec.version_label if choice == "version_label" else None,
    )


def metadata(manager: Manager, request: Any) -> Any:
    """GetModelMetadataRequest to GetModelMetadataResponse."""
    from tensorflow_serving.apis import get_model_metadata_pb2

    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    if not request.metadata_field:
        raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
    for field in request.metadata_field:
        if field != "signature_def":
            raise invalid(f"Metadata field {field} is not supported")
    response, signatures = get_model_metadata_pb2.GetModelMetadataResponse(), get_model_metadata_pb2.SignatureDefMap()
    with servable_of(manager, request.model_spec) as servable:
        for name, signature in servable.signatures.items():
            signatures.signature_def[name].CopyFrom(signature)
        response.model_spec.name = servable.name
        response.model_spec.version.value = servable.version
    response.metadata["signature_def"].Pack(signatures)
    return response


def model_status(manager: Manager, request: Any) -> Any:
    """GetModelStatusRequest to GetModelStatusResponse. A label is ignored: the server lists all versions then."""
    from tensorflow_serving.apis import get_model_status_pb2

    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    spec, response = request.model_spec, get_model_status_pb2.GetModelStatusResponse()
    version = spec.version.value if spec.WhichOneof("version_choice") == "version" else None
    for number, state in manager.states(spec.name, version).items():
        entry = response.model_version_status.add()
        entry.version = number
        entry.state = get_model_status_pb2.ModelVersionStatus.State.Value(state.state)
        entry.status.SetInParent()
        if state.error:
            entry.status.error_code = state.error.number
            entry.status.error_message = state.error.message
    return response
