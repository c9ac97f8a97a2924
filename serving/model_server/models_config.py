"""models.config: the models that a server serves, which of their versions, and the labels of versions."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from serving.model_server.status import ServingError, invalid

LATEST, ALL, SPECIFIC = "latest", "all", "specific"


@dataclasses.dataclass(frozen=True)
class VersionPolicy:
    """Selects the versions under a base path that are to be loaded."""

    kind: str = LATEST
    count: int = 1
    versions: tuple[int, ...] = ()

    def wanted(self, present: Sequence[int]) -> set[int]:
        """The versions to load, of those that are present under the base path."""
        if self.kind == ALL:
            return set(present)
        if self.kind == SPECIFIC:
            return set(present) & set(self.versions)
        return set(sorted(present)[-self.count :])


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A model, where its versions lie, which of them are loaded, and their labels."""

    name: str
    base_path: Path
    policy: VersionPolicy = VersionPolicy()
    labels: Mapping[str, int] = dataclasses.field(default_factory=dict)


def parse(text: str) -> tuple[ModelConfig, ...]:
    """The models of a models.config.

    Raises:
      ServingError: if the text is no models.config, or the server would refuse it.
    """
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    try:
        message = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    except text_format.ParseError as error:
        raise invalid(f"Invalid protobuf file: {error}") from None
    return from_message(message)


def from_message(message: Any) -> tuple[ModelConfig, ...]:
    """The models of a ModelServerConfig; raises as `parse` does."""
    kind = message.WhichOneof("config")
    if kind is None:
        return ()
    if kind != "model_config_list":
        raise ServingError("FAILED_PRECONDITION", "Only model_config_list is supported here; got custom_model_config.")
    models = tuple(map(_model, message.model_config_list.config))
    names = [model.name for model in models]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise invalid(f"Illegal to list model {repeated[0]} multiple times in config list")
    return models


def _model(message: Any) -> ModelConfig:
    if not message.base_path.startswith("/"):
        raise invalid(
            f"Expected model {message.name} to have an absolute path or URI; got base_path()={message.base_path}"
        )
    if message.model_platform != "tensorflow":
        raise invalid(f"Model {message.name} requests unsupported platform {message.model_platform}")
    policy, choice = VersionPolicy(), message.model_version_policy.WhichOneof("policy_choice")
    if choice == ALL:
        policy = VersionPolicy(ALL)
    elif choice == SPECIFIC:
        policy = VersionPolicy(SPECIFIC, versions=tuple(message.model_version_policy.specific.versions))
    elif choice == LATEST:
        policy = VersionPolicy(LATEST, count=message.model_version_policy.latest.num_versions or 1)
    return ModelConfig(message.name, Path(message.base_path), policy, dict(message.version_labels))
