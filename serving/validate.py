"""Reads the model server's configuration files as the server will, and says what is wrong before it does.

    python -m serving.validate models.config batching_parameters.txt monitoring.config ssl.config

A file is known by its name.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from serving.model_server import config_files, models_config
from serving.model_server.status import ServingError
from tff_pipeline.errors import ConfigError


def check(path: Path) -> str:
    """Checks one file; returns what it configures, in a few words.

    Raises:
      ConfigError: with the location, what was found and what was expected.
    """
    described = _CHECKS.get(path.name)
    if described is None:
        raise ConfigError(f"{path}: is none of the server's files by its name; expected {', '.join(_CHECKS)}.")
    return described(path, config_files.read_text(path))


def _models(path: Path, text: str) -> str:
    try:
        models = models_config.parse(text)
    except ServingError as error:
        raise ConfigError(
            f"{path}: the server refuses it ({error.message}); expected a model_config_list such as serving/models.config."
        ) from None
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


def _batching(path: Path, text: str) -> str:
    return f"batches of at most {config_files.max_batch_size(config_files.batching_parameters(path, text))}"


def _monitoring(path: Path, text: str) -> str:
    prometheus = config_files.monitoring(path, text).prometheus_config
    return f"metrics at {prometheus.path or '/monitoring/prometheus/metrics'}"


def _ssl(path: Path, text: str) -> str:
    return "gRPC with TLS" + (", clients too" if config_files.ssl(path, text).client_verify else "")


_CHECKS: dict[str, Callable[[Path, str], str]] = {
    "models.config": _models,
    "batching_parameters.txt": _batching,
    "batching_params.pbtxt": _batching,
    "monitoring.config": _monitoring,
    "ssl.config": _ssl,
}


def main(argv: Sequence[str]) -> int:
    """Prints a line for each file; returns 2 if one of them is wrong."""
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
