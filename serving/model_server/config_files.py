"""The server's configuration files beside models.config: batching parameters, monitoring, TLS.

All are text-format messages that tensorflow-serving-api does not define. They are defined here, from the server's
session_bundle_config.proto, monitoring_config.proto and ssl_config.proto.
"""

from functools import cache
from pathlib import Path
from typing import Any

from tff_pipeline.errors import ConfigError

_INT64, _BOOL, _STRING, _MESSAGE = 3, 8, 9, 11  # FieldDescriptorProto.Type
_OPTIONAL, _REPEATED = 1, 3  # FieldDescriptorProto.Label
_DEFAULT_MAX_BATCH_SIZE = 1000  # the server's
_MESSAGES: dict[str, list[tuple[str, int | str, bool]]] = {
    # name of a message: its fields, with their type (or the name of a message) and whether they are repeated
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


def read_text(path: Path) -> str:
    """The text of a configuration file.

    Raises:
      ConfigError: if it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); expected a text file that this user may read."
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: cannot be read (it is not UTF-8); expected a text file in UTF-8.") from None


def batching_parameters(path: Path, text: str) -> Any:
    """A batching_parameters.txt as a BatchingParameters message.

    Raises:
      ConfigError: if the server would refuse the file, or it would change the answers of a model.
    """
    message = _parsed(path, text, "BatchingParameters")
    for name in ("max_batch_size", "max_enqueued_batches", "num_batch_threads"):
        if message.HasField(name) and getattr(message, name).value < 1:
            raise ConfigError(f"{path}: {name} is {getattr(message, name).value}; expected at least 1.")
    if message.batch_timeout_micros.value < 0:
        raise ConfigError(f"{path}: batch_timeout_micros is {message.batch_timeout_micros.value}; expected 0 or more.")
    _check_allowed_batch_sizes(path, message)
    if message.pad_variable_length_inputs:
        raise ConfigError(
            f"{path}: pad_variable_length_inputs is true; expected false, or no such line. The server pads ids with the "
            "first one of their row, [CLS], and the answers change."
        )
    return message


def max_batch_size(parameters: Any) -> int:
    """The size that a BatchingParameters message gives, or the server's default."""
    return parameters.max_batch_size.value if parameters.HasField("max_batch_size") else _DEFAULT_MAX_BATCH_SIZE


def _check_allowed_batch_sizes(path: Path, message: Any) -> None:
    sizes = list(message.allowed_batch_sizes)
    if sizes != sorted(set(sizes)) or any(size < 1 for size in sizes):
        raise ConfigError(f"{path}: allowed_batch_sizes are {sizes}; expected positive integers in ascending order.")
    is_split = message.enable_large_batch_splitting.value
    largest = (message.max_execution_batch_size.value if is_split else 0) or max_batch_size(message)
    if sizes and sizes[-1] != largest:
        raise ConfigError(
            f"{path}: the last of allowed_batch_sizes is {sizes[-1]}; expected {largest}, the size of the largest batch. "
            "The server refuses to load a model otherwise."
        )


def monitoring(path: Path, text: str) -> Any:
    """A monitoring.config as a MonitoringConfig message.

    Raises:
      ConfigError: if the server would refuse the file, or give out no metrics.
    """
    message = _parsed(path, text, "MonitoringConfig")
    prometheus = message.prometheus_config
    if prometheus.path and not prometheus.path.startswith("/"):
        raise ConfigError(
            f"{path}: prometheus_config.path is {prometheus.path!r}; expected a path that begins with a slash, such as "
            "/monitoring/prometheus/metrics."
        )
    if not prometheus.enable:
        raise ConfigError(
            f"{path}: prometheus_config.enable is not true; expected true. A server without metrics needs no such file."
        )
    return message


def ssl(path: Path, text: str) -> Any:
    """An ssl.config as an SSLConfig message.

    Raises:
      ConfigError: if the file is no SSLConfig, or holds something else than the contents of PEM files.
    """
    message = _parsed(path, text, "SSLConfig")
    for name in ("server_key", "server_cert", *(("custom_ca",) if message.client_verify else ())):
        if "-----BEGIN " not in getattr(message, name):
            raise ConfigError(
                f"{path}: {name} holds no PEM; expected the contents of the PEM file (-----BEGIN ...), not its path."
            )
    return message


def _parsed(path: Path, text: str, name: str) -> Any:
    from google.protobuf import text_format

    try:
        return text_format.Parse(text, _message_types()[name]())
    except text_format.ParseError as error:
        raise ConfigError(
            f"{path}: cannot be parsed ({error}); expected a {name} message in protobuf's text format, in which the "
            "numbers of batching parameters stand in braces: max_batch_size { value: 32 }."
        ) from None


@cache
def _message_types() -> dict[str, Any]:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="server_files.proto", package="server_files", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field_name, field_type, is_repeated) in enumerate(fields, 1):
            field = message.field.add(name=field_name, number=number, label=_REPEATED if is_repeated else _OPTIONAL)
            if isinstance(field_type, str):
                field.type, field.type_name = _MESSAGE, f".server_files.{field_type}"
            else:
                field.type = field_type
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"server_files.{name}")) for name in _MESSAGES
    }
