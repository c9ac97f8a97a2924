"""The local model server as a whole: it is started and stopped, in a process of its own (`tff-pipeline serve`) or a test's."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from serving.local_server.batching import Parameters
from serving.local_server.manager import Loading, Manager
from serving.local_server.metrics import Metrics
from serving.local_server.rest import Rest, RestServer
from serving.model_server import models_config
from serving.model_server.models_config import ModelConfig
from serving.model_server.status import ServingError
from tff_pipeline.progress import Progress


@dataclasses.dataclass(frozen=True)
class Options:
    """How the server listens and answers; port 0 takes any that is free."""

    host: str = "127.0.0.1"
    port: int = 8500
    rest_port: int = 8501
    rest_timeout_s: float = 30.0
    client_timeout_s: float = 30.0
    max_request_bytes: int = 64 << 20
    connections: int = 256
    threads: int = 16
    loading: Loading = dataclasses.field(default_factory=Loading)
    batching: Parameters | None = None  # None: requests are not batched


class LocalModelServer:
    """A model server on this machine. `start` loads and listens on `port` and `rest_port`, `stop` ends it; or `with`."""

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

    def start(self, *, timeout_s: float | None = None) -> "LocalModelServer":
        """Loads every model, then opens the ports.

        Raises:
          ServingError: if a model does not become available (in `timeout_s`, where that is given).
          OSError: if a port is taken.
        """
        try:
            self.manager.configure(self._models)
            self.manager.start()
            self.manager.await_models([model.name for model in self._models], timeout_s=timeout_s)
            self._listen()
        except BaseException:
            self.stop()
            raise
        return self

    def _listen(self) -> None:
        from serving.local_server.rpc import grpc_server

        options = self._options
        host = f"[{options.host}]" if ":" in options.host else options.host
        try:
            self._rpc, self.port = grpc_server(
                f"{host}:{options.port}",
                self.manager,
                self.metrics,
                self.reload,
                max_request_bytes=options.max_request_bytes,
                threads=options.threads,
            )
        except RuntimeError as error:
            raise OSError(f"{options.host}:{options.port} cannot be listened on ({error})") from None
        self._rest = RestServer(
            (options.host, options.rest_port),
            Rest(self.manager, self.metrics, timeout_s=options.rest_timeout_s),
            max_request_bytes=options.max_request_bytes,
            client_timeout_s=options.client_timeout_s,
            connections=options.connections,
        )
        self.rest_port = self._rest.server_address[1]
        self._rpc.start()
        self._rest.start()

    def reload(self, models: Sequence[ModelConfig], timeout_s: float | None = None) -> None:
        """Replaces the configuration and returns when models that are new are available; raises ServingError."""
        if not models:  # the server takes an empty configuration for a mistake, and ignores it
            return
        new = {model.name for model in models} - {model.name for model in self._models}
        self.manager.configure(models)
        self._models = tuple(models)
        self.manager.poll()
        self.manager.await_models(sorted(new), timeout_s=timeout_s)

    def stop(self) -> None:
        """Closes the ports, then the models. Requests that are being answered get their answer."""
        if self._rpc is not None:
            self._rpc.stop(grace=5).wait()
        if self._rest is not None:
            self._rest.close()
        self.manager.stop()

    def __enter__(self) -> "LocalModelServer":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


@dataclasses.dataclass(frozen=True)
class ConfigFile:
    """A models.config that a server follows, and the content that the server has taken from it."""

    path: Path
    content: bytes

    @classmethod
    def read(cls, path: Path) -> "ConfigFile":
        """Raises OSError if the file cannot be read."""
        return cls(path, path.read_bytes())

    def models(self) -> tuple[ModelConfig, ...]:
        """Raises ServingError if the server would refuse the file."""
        return models_config.parse(self.content.decode(errors="replace"))


def follow(file: ConfigFile, server: LocalModelServer, progress: Progress) -> ConfigFile:
    """Reads the file again; a change that cannot be read or used is reported, and leaves the server as it is."""
    with contextlib.suppress(OSError):
        changed = ConfigFile.read(file.path)
        if changed == file:
            return file
        try:
            server.reload(changed.models())
            progress.event("config", f"{file.path} was read again")
        except ServingError as error:
            # It is tried again at the next poll, as the server does: a label waits for its version to be available.
            progress.event("config-refused", f"{file.path}: {error}")
            return file
        return changed
    return file
