"""`tff-pipeline serve`: a local model server on this machine, until it is interrupted or terminated."""

import argparse
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving.local_server.batching import Parameters
from serving.local_server.manager import Loading
from serving.local_server.server import ConfigFile, LocalModelServer, Options, follow
from serving.model_server.models_config import ModelConfig
from serving.model_server.status import ServingError
from tff_pipeline.errors import ConfigError, PipelineError
from tff_pipeline.progress import Progress

BANNER = """\
This is a local model server that follows the rules of TensorFlow Serving 2.14; it is not TensorFlow Serving. Use it to try a
model out and for tests. It has no authentication and no encryption; serving/README.md says how a model is served in production."""


def main(argv: Sequence[str]) -> int:
    """`tff-pipeline serve`. Flags may be written as the server's are."""
    arguments = _parser().parse_args(argv)
    models, file = _models(arguments)
    progress = Progress()
    server = LocalModelServer(models, _options(arguments), report=progress.event)
    stopping = threading.Event()
    handlers = {number: signal.signal(number, lambda *_: stopping.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        progress.event("serve", BANNER)
        _start(server, stopping)
        if not stopping.is_set():
            print(_addresses(server, models, arguments.host), flush=True)
        while not stopping.wait(arguments.model_config_file_poll_wait_seconds or None):
            file = follow(file, server, progress) if file is not None else None
    finally:
        server.stop()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    progress.event("serve", "stopped")
    return 0


def _start(server: LocalModelServer, stopping: threading.Event) -> None:
    """Starts the server; a signal ends the wait for a model that is not available yet.

    Raises:
      PipelineError: if a model cannot be loaded, or a port is taken.
    """
    started = threading.Event()

    def watch() -> None:
        while not started.is_set():
            if stopping.wait(0.1):
                server.manager.end_waiting()
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        server.start()
    except ServingError as error:
        if not stopping.is_set():
            raise PipelineError(f"The server does not start: {error}") from None
    except OSError as error:
        raise PipelineError(
            f"The server does not start: {error}. Choose other ports with --port and --rest-api-port."
        ) from None
    finally:
        started.set()
        watcher.join()


def _addresses(server: LocalModelServer, models: Sequence[ModelConfig], host: str) -> str:
    """Where the server listens, and a curl line that asks it."""
    shown = f"[{host}]" if ":" in host else host
    names = ", ".join(model.name for model in models)
    example = f'curl -d \'{{"instances": ["I lost my card"]}}\' http://{shown}:{server.rest_port}/v1/models/{models[0].name}:predict'
    return f"serving {names}: gRPC on {shown}:{server.port}, REST on http://{shown}:{server.rest_port}\n{example}"


def _options(arguments: argparse.Namespace) -> Options:
    return Options(
        host=arguments.host,
        port=arguments.port,
        rest_port=arguments.rest_api_port,
        rest_timeout_s=arguments.rest_api_timeout_in_ms / 1000,
        loading=Loading(
            poll_s=arguments.file_system_poll_wait_seconds,
            retries=arguments.max_num_load_retries,
            labels_for_unavailable=arguments.allow_version_labels_for_unavailable_models,
        ),
        batching=_batching(arguments),
    )


def _batching(arguments: argparse.Namespace) -> Parameters | None:
    file = arguments.batching_parameters_file
    if file is not None and not arguments.enable_batching:
        raise ConfigError(
            f"--batching-parameters-file is {file}, without --enable-batching; expected both or neither. TensorFlow Serving "
            "does not start with the file alone."
        )
    if not arguments.enable_batching:
        return None
    return Parameters.from_file(file) if file is not None else Parameters()


def _models(arguments: argparse.Namespace) -> tuple[tuple[ModelConfig, ...], ConfigFile | None]:
    """The models to serve, and the models.config that names them where one was given."""
    if arguments.model_base_path:
        base_path = arguments.model_base_path.absolute()
        return (ModelConfig(arguments.model_name or base_path.name, base_path),), None
    path = arguments.model_config_file
    try:
        file = ConfigFile.read(path)
        models = file.models()
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); expected a models.config such as serving/models.config."
        ) from None
    except ServingError as error:
        raise ConfigError(
            f"{path}: the server refuses it ({error.message}); expected a model_config_list such as serving/models.config."
        ) from None
    if not models:
        raise ConfigError(f"{path}: names no model; expected a model_config_list with at least one config.")
    return models, file


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tff-pipeline serve",
        description="A local model server that follows TensorFlow Serving's rules and messages, over REST and gRPC. Not for "
        "production.",
    )
    models = parser.add_mutually_exclusive_group(required=True)
    seconds, integer = {"metavar": "N", "type": float}, {"metavar": "N", "type": int}
    _flag(models, "model-base-path", metavar="DIR", type=Path, help="serve the newest version in this folder")
    _flag(models, "model-config-file", metavar="FILE", type=Path, help="serve the models that this models.config names")
    _flag(parser, "model-name", metavar="NAME", help="the model's name (default: the name of its folder)")
    _flag(parser, "port", **integer, default=8500, help="gRPC; 0 takes any that is free (default: 8500)")
    _flag(parser, "rest-api-port", **integer, default=8501, help="REST; 0 takes any that is free (default: 8501)")
    _flag(parser, "host", metavar="ADDRESS", default="127.0.0.1", help="listen here (default: 127.0.0.1, loopback)")
    _flag(parser, "rest-api-timeout-in-ms", **integer, default=30000, help="of one REST request (default: 30000)")
    _flag(
        parser,
        "file-system-poll-wait-seconds",
        **seconds,
        default=1.0,
        help="how long between two looks for new versions (default: 1)",
    )
    _flag(
        parser,
        "model-config-file-poll-wait-seconds",
        **seconds,
        default=0.0,
        help="how long between two looks at FILE; 0 reads it once (default: 0)",
    )
    _flag(
        parser,
        "max-num-load-retries",
        **integer,
        default=5,
        help="how often to try again to load a version, a minute apart (default: 5)",
    )
    for name, meaning in (
        ("allow-version-labels-for-unavailable-models", "new labels may name versions that are not loaded yet"),
        ("enable-batching", "requests of several clients become one batch"),
    ):
        _flag(parser, name, nargs="?", const=True, default=False, type=_is_true, help=meaning)
    _flag(
        parser, "batching-parameters-file", metavar="FILE", type=Path, help="the batches' sizes, with --enable-batching"
    )
    return parser


def _flag(group: Any, name: str, **settings: Any) -> None:
    """Adds a flag with dashes, and with underscores as the server spells it, so that the server's command lines work."""
    spellings = dict.fromkeys((f"--{name}", f"--{name.replace('-', '_')}"))
    group.add_argument(*spellings, dest=name.replace("-", "_"), **settings)


def _is_true(given: str) -> bool:
    return given.lower() in ("true", "1", "")
