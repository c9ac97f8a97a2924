"""The double as one thing that is started and stopped, in a process of its own (`tff-pipeline serve`) or in a test's."""

import argparse
import contextlib
import dataclasses
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from serving.local_server import config as configuration
from serving.local_server.batching import Parameters
from serving.local_server.config import ModelConfig
from serving.local_server.manager import Loading, Manager
from serving.local_server.metrics import Metrics
from serving.local_server.rest import Rest, RestServer
from serving.local_server.status import ServingError
from tff_pipeline.errors import ConfigError, PipelineError
from tff_pipeline.progress import Progress

BANNER = """\
This is a conformance double of TensorFlow Serving 2.14, not TensorFlow Serving: for trying a model out and for tests.
It has no authentication and no encryption; serving/README.md says how a model is served in production."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How the double listens; port 0 takes any that is free."""

    host: str = "127.0.0.1"
    port: int = 8500
    rest_port: int = 8501
    rest_timeout_s: float = 30.0
    client_timeout_s: float = 30.0
    most_bytes: int = 64 << 20
    connections: int = 256
    threads: int = 16
    loading: Loading = dataclasses.field(default_factory=Loading)
    batching: Parameters | None = None  # None: requests are not batched


class Double:
    """A running double: `start`, then `port` and `rest_port` are those it listens on, then `stop`. Or a `with` block."""

    def __init__(
        self,
        models: Sequence[ModelConfig],
        options: Options | None = None,
        *,
        report: Callable[[str, str], None] = lambda event, message: None,
    ):
        self._models, self._options = tuple(models), options or Options()
        self.metrics = Metrics()
        self.manager = Manager(
            loading=self._options.loading, metrics=self.metrics, report=report, batching=self._options.batching
        )
        self.port = self.rest_port = 0
        self._rpc: Any = None
        self._rest: RestServer | None = None

    def start(self, *, timeout_s: float | None = None) -> "Double":
        """Loads every model, then opens the ports.

        Raises:
          ServingError: if a model does not become available (in `timeout_s`, where that is given).
          OSError: if a port is taken.
        """
        from serving.local_server.rpc import grpc_server

        options = self._options
        try:
            self.manager.configure(self._models)
            self.manager.start()
            self.manager.await_models([model.name for model in self._models], timeout_s=timeout_s)
            host = f"[{options.host}]" if ":" in options.host else options.host
            try:
                self._rpc, self.port = grpc_server(
                    f"{host}:{options.port}",
                    self.manager,
                    self.metrics,
                    self.reload,
                    most_bytes=options.most_bytes,
                    threads=options.threads,
                )
            except RuntimeError as error:
                raise OSError(f"{options.host}:{options.port} cannot be listened on ({error})") from None
            self._rest = RestServer(
                (options.host, options.rest_port),
                Rest(self.manager, self.metrics, timeout_s=options.rest_timeout_s),
                most_bytes=options.most_bytes,
                client_timeout_s=options.client_timeout_s,
                connections=options.connections,
            )
            self.rest_port = self._rest.server_address[1]
            self._rpc.start()
            self._rest.start()
        except BaseException:
            self.stop()
            raise
        return self

    def reload(self, models: Sequence[ModelConfig], timeout_s: float | None = None) -> None:
        """Replaces the configuration and returns when models that are new are available; raises ServingError."""
        if not models:  # the server takes an empty configuration for a slip
            return
        new = {model.name for model in models} - {model.name for model in self._models}
        self.manager.configure(models)
        self._models = tuple(models)
        self.manager.poll()
        self.manager.await_models(sorted(new), timeout_s=timeout_s)

    def stop(self) -> None:
        """Ends everything: ports first, then the models. Requests that are being answered get their answer."""
        if self._rpc is not None:
            self._rpc.stop(grace=5).wait()
        if self._rest is not None:
            self._rest.close()
        self.manager.stop()

    def __enter__(self) -> "Double":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


# -- the command -------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str]) -> int:
    """`tff-pipeline serve`: serves until it is interrupted or terminated. Flags may be written as the server's are."""
    arguments = _parser().parse_args(argv)
    models, file = _models(arguments)
    progress = Progress()
    options = Options(
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
    double = Double(models, options, report=progress.event)
    stopping = threading.Event()
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, lambda *_: stopping.set())
    try:
        progress.event("serve", BANNER)
        _start_or_stop(double, stopping)
        if not stopping.is_set():
            print(_where(double, models, arguments.host), flush=True)
        while not stopping.wait(arguments.model_config_file_poll_wait_seconds or None):
            file = follow(file, double, progress)
    finally:
        double.stop()
        for number, handler in before.items():
            signal.signal(number, handler)
    progress.event("serve", "stopped")
    return 0


def _start_or_stop(double: Double, stopping: threading.Event) -> None:
    """Starts; a signal meanwhile ends the waiting for a model that is not there yet."""
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            if stopping.wait(0.1):
                double.manager.end_waiting()
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        double.start()
    except ServingError as error:
        if not stopping.is_set():
            raise PipelineError(f"the server does not start: {error}") from None
    except OSError as error:
        raise PipelineError(
            f"the server does not start: {error}. Choose other ports with --port and --rest-api-port."
        ) from None
    finally:
        done.set()
        watcher.join()


def _where(double: Double, models: Sequence[ModelConfig], host: str) -> str:
    shown = f"[{host}]" if ":" in host else host
    names = ", ".join(model.name for model in models)
    example = f'curl -d \'{{"instances": ["I lost my card"]}}\' http://{shown}:{double.rest_port}/v1/models/{models[0].name}:predict'
    return f"serving {names}: gRPC on {shown}:{double.port}, REST on http://{shown}:{double.rest_port}\n{example}"


def _batching(arguments: argparse.Namespace) -> Parameters | None:
    file = arguments.batching_parameters_file
    if file is not None and not arguments.enable_batching:
        raise ConfigError(
            f"--batching-parameters-file is {file}, without --enable-batching; expected both. The server does not start then."
        )
    if not arguments.enable_batching:
        return None
    return Parameters.from_file(file) if file is not None else Parameters()


def _models(arguments: argparse.Namespace) -> tuple[tuple[ModelConfig, ...], tuple[Path, bytes] | None]:
    """The models to serve; and with a models.config the file and what it held."""
    if arguments.model_base_path:
        base_path = arguments.model_base_path.absolute()
        return (ModelConfig(arguments.model_name or base_path.name, base_path),), None
    path = arguments.model_config_file
    try:
        held = path.read_bytes()
        models = configuration.parse(held.decode(errors="replace"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); expected a models.config.") from None
    except ServingError as error:
        raise ConfigError(f"{path}: {error.message}. serving/README.md shows one that is right.") from None
    if not models:
        raise ConfigError(f"{path}: names no model; expected a model_config_list with at least one config.")
    return models, (path, held)


def follow(file: tuple[Path, bytes] | None, double: Double, progress: Progress) -> tuple[Path, bytes] | None:
    """Reads the configuration again; what cannot be read or used is reported, and changes nothing."""
    if file is None:
        return None
    path, before = file
    with contextlib.suppress(OSError):
        held = path.read_bytes()
        if held == before:
            return file
        try:
            double.reload(configuration.parse(held.decode(errors="replace")))
            progress.event("config", f"{path} was read again")
        except ServingError as error:
            # It is tried again at the next poll, as the server does: a label waits for its version to be available.
            progress.event("config-refused", f"{path}: {error}")
            return file
        return path, held
    return file


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tff-pipeline serve",
        description="A conformance double of TensorFlow Serving, on this machine: REST and gRPC, the server's rules and words. Not for production.",
    )
    which = parser.add_mutually_exclusive_group(required=True)

    def flag(group: Any, name: str, **settings: Any) -> None:
        """A flag with dashes, and as the server spells it, so that its command lines work."""
        spellings = dict.fromkeys((f"--{name}", f"--{name.replace('-', '_')}"))
        group.add_argument(*spellings, dest=name.replace("-", "_"), **settings)

    flag(which, "model-base-path", metavar="DIR", type=Path, help="serve the newest version in this folder")
    flag(which, "model-config-file", metavar="FILE", type=Path, help="serve what this models.config says")
    flag(parser, "model-name", metavar="NAME", help="the model's name (default: the name of its folder)")
    flag(parser, "port", metavar="N", type=int, default=8500, help="gRPC; 0 takes any that is free (default: 8500)")
    flag(parser, "rest-api-port", metavar="N", type=int, default=8501, help="REST; 0 as above (default: 8501)")
    flag(parser, "host", metavar="ADDRESS", default="127.0.0.1", help="listen here (default: 127.0.0.1, loopback)")
    flag(parser, "rest-api-timeout-in-ms", metavar="N", type=int, default=30000, help="of one REST request")
    flag(
        parser, "file-system-poll-wait-seconds", metavar="N", type=float, default=1.0, help="between looks for versions"
    )
    flag(
        parser,
        "model-config-file-poll-wait-seconds",
        metavar="N",
        type=float,
        default=0.0,
        help="between looks at FILE; 0: once",
    )
    flag(parser, "max-num-load-retries", metavar="N", type=int, default=5, help="of a version, a minute apart")
    for name, text in (
        ("allow-version-labels-for-unavailable-models", "new labels may name versions that are not loaded yet"),
        ("enable-batching", "requests of several clients become one batch"),
    ):
        truth = lambda given: given.lower() in ("true", "1", "")  # noqa: E731
        flag(parser, name, nargs="?", const=True, default=False, type=truth, help=text)
    flag(parser, "batching-parameters-file", metavar="FILE", type=Path, help="how, with --enable-batching")
    return parser
