"""Reads the model server's configuration files as the server will, and says what is wrong before it does.

    python -m serving.validate models.config batching_parameters.txt monitoring.config ssl.config

A file is known by its name. All are text-format messages; those that tensorflow-serving-api does not define are defined
here, from the server's session_bundle_config.proto, monitoring_config.proto and ssl_config.proto.
"""

import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from serving.local_server import config as models_config
from serving.local_server.status import ServingError
from tff_pipeline.errors import ConfigError

_INT64, _BOOL, _STRING = 3, 8, 9  # FieldDescriptorProto.Type
_MESSAGES: dict[str, list[tuple[str, Any, bool]]] = {
    # name of a message: its fields, with type (or the name of a message) and whether they are repeated
    "Int64Value": [("value", _INT64, False)],
    "BoolValue": [("value", _BOOL, False)],
    "StringValue": [("value", _STRING, False)],
    "BatchingParameters": [
        ("max_batch_size", "Int64Value", False),
        ("batch_timeout_micros", "Int64Value", False),
        ("max_enqueued_batches", "Int64Value", False),
        ("num_batch_threads", "Int64Value", False),
        ("thread_pool_name", "StringValue", False),
        ("allowed_batch_sizes", _INT64, True),
        ("pad_variable_length_inputs", _BOOL, False),
        ("enable_large_batch_splitting", "BoolValue", False),
        ("max_execution_batch_size", "Int64Value", False),
    ],
    "PrometheusConfig": [("enable", _BOOL, False), ("path", _STRING, False)],
    "MonitoringConfig": [("prometheus_config", "PrometheusConfig", False)],
    "SSLConfig": [
        ("server_key", _STRING, False),
        ("server_cert", _STRING, False),
        ("custom_ca", _STRING, False),
        ("client_verify", _BOOL, False),
    ],
}


def check(path: Path) -> str:
    """Checks one file; returns what it says, in a few words.

    Raises:
      ConfigError: with the place, what was found and what was expected.
    """
    checker = _CHECKERS.get(path.name)
    if checker is None:
        raise ConfigError(f"{path}: is none of the server's files by its name; expected {', '.join(_CHECKERS)}.")
    try:
        return checker(path, path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({type(error).__name__}); expected a text file.") from None


def _models(path: Path, text: str) -> str:
    try:
        models = models_config.parse(text)
    except ServingError as error:
        raise ConfigError(f"{path}: {error.message}.") from None
    if not models:
        raise ConfigError(f"{path}: names no model; expected a model_config_list with at least one config.")
    for model in models:
        for label, version in model.labels.items():
            if model.policy.kind == models_config.SPECIFIC and version not in model.policy.versions:
                raise ConfigError(
                    f"{path}: label {label!r} of {model.name} names version {version}, which the policy does not load; "
                    f"expected one of {', '.join(map(str, model.policy.versions))}. The server refuses the whole file."
                )
    return ", ".join(f"{model.name} from {model.base_path} ({model.policy.kind})" for model in models)


def batching_parameters(path: Path) -> Any:
    """A batching_parameters.txt as a message.

    Raises:
      ConfigError: as `check` does.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({type(error).__name__}); expected a text file.") from None
    _batching(path, text)
    return _parsed(path, text, "BatchingParameters")


def _batching(path: Path, text: str) -> str:
    message = _parsed(path, text, "BatchingParameters")
    size = message.max_batch_size.value if message.HasField("max_batch_size") else 1000  # the server's default
    numbers = ("max_batch_size", "max_enqueued_batches", "num_batch_threads")
    for name in numbers:
        if message.HasField(name) and getattr(message, name).value < 1:
            raise ConfigError(f"{path}: {name} is {getattr(message, name).value}; expected at least 1.")
    if message.batch_timeout_micros.value < 0:
        raise ConfigError(f"{path}: batch_timeout_micros is {message.batch_timeout_micros.value}; expected 0 or more.")
    allowed = list(message.allowed_batch_sizes)
    if allowed != sorted(set(allowed)) or any(each < 1 for each in allowed):
        raise ConfigError(f"{path}: allowed_batch_sizes are {allowed}; expected whole numbers that grow.")
    last = message.max_execution_batch_size.value if message.enable_large_batch_splitting.value else size
    if allowed and allowed[-1] != (last or size):
        raise ConfigError(
            f"{path}: the last of allowed_batch_sizes is {allowed[-1]}; expected {last or size}, the largest batch. The server refuses to load a model otherwise."
        )
    if message.pad_variable_length_inputs:
        raise ConfigError(
            f"{path}: pad_variable_length_inputs is true; expected false. The server pads ids with their first one, [CLS], and the answers change."
        )
    return f"batches of at most {size}"


def _monitoring(path: Path, text: str) -> str:
    prometheus = _parsed(path, text, "MonitoringConfig").prometheus_config
    if prometheus.path and not prometheus.path.startswith("/"):
        raise ConfigError(f"{path}: prometheus_config.path is {prometheus.path!r}; expected one that begins with /.")
    if not prometheus.enable:
        raise ConfigError(f"{path}: prometheus_config.enable is not true; expected it, or no such file.")
    return f"metrics at {prometheus.path or '/monitoring/prometheus/metrics'}"


def _ssl(path: Path, text: str) -> str:
    message = _parsed(path, text, "SSLConfig")
    for name in ("server_key", "server_cert", *(("custom_ca",) if message.client_verify else ())):
        if "-----BEGIN " not in getattr(message, name):
            raise ConfigError(f"{path}: {name} holds no PEM; expected its contents (-----BEGIN ...), not a path.")
    return "gRPC with TLS" + (", clients too" if message.client_verify else "")


def _parsed(path: Path, text: str, name: str) -> Any:
    from google.protobuf import text_format

    try:
        return text_format.Parse(text, _message_types()[name]())
    except text_format.ParseError as error:
        raise ConfigError(
            f"{path}: {error}. Numbers of the first group stand in braces: max_batch_size {{ value: 32 }}."
        ) from None


@cache
def _message_types() -> dict[str, Any]:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="server_files.proto", package="server_files", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field, type_, repeated) in enumerate(fields, 1):
            described = message.field.add(name=field, number=number, label=3 if repeated else 1)
            if isinstance(type_, str):
                described.type, described.type_name = 11, f".server_files.{type_}"
            else:
                described.type = type_
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"server_files.{name}")) for name in _MESSAGES
    }


_CHECKERS: dict[str, Callable[[Path, str], str]] = {
    "models.config": _models,
    "batching_parameters.txt": _batching,
    "batching_params.pbtxt": _batching,
    "monitoring.config": _monitoring,
    "ssl.config": _ssl,
}


def main(argv: Sequence[str]) -> int:
    """Prints a line a file; returns 2 where one of them is wrong."""
    code = 0
    for name in argv:
        try:
            print(f"{name}: {check(Path(name))}")
        except ConfigError as error:
            print(error, file=sys.stderr)
            code = error.exit_code
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
