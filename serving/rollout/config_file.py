"""models.config as a file: one model's part of it, read and written in one step, with what is unfinished in comments."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from serving import lock
from serving.rollout.labels import Served, Unfinished
from tff_pipeline.errors import ConfigError, PipelineError
from tff_pipeline.progress import Progress

_HEADER = """\
# For `tensorflow_model_server --model_config_file=... --model_config_file_poll_wait_seconds=5
# --allow_version_labels_for_unavailable_models=true` (without which it does not start with labels). Written by
# tff-pipeline publish --canary, canary, promote and rollback; what else stands here is kept, comments are not.
"""
_UNFINISHED = "# unfinished: "


class ModelsConfigFile:
    """One model's part of a models.config. All methods raise ConfigError if the file cannot be read or lacks the model."""

    def __init__(self, path: Path, model: str, *, command: str, lock_wait_s: float, progress: Progress):
        # The target of a symbolic link: a rename onto the link would replace the link, and the server may read the target.
        self.path, self._model = Path(os.path.realpath(path)), model
        self._command, self._lock_wait_s, self._progress = command, lock_wait_s, progress
        self._last_seen: Any = None  # the model's part, as this command has read or written it

    def served(self) -> Served:
        message, unfinished = read(self.path)
        config = self._part(message)
        return Served(
            Path(config.base_path),
            tuple(sorted(config.model_version_policy.specific.versions)),
            dict(config.version_labels),
            unfinished.get(self._model),
        )

    def base_path(self) -> str:
        """A folder or an address, as it stands in the file."""
        return self._part(read(self.path)[0]).base_path

    def begin(self) -> None:
        """Prepares for writing: remembers the model's part, and removes what a command that was stopped has left."""
        self._last_seen = self._part(read(self.path)[0])
        with self._writing():
            pass

    def write(self, served: Served, base_lock: lock.Lock) -> bool:
        """Replaces the model's versions and labels; returns whether that was needed. `begin` must have been called.

        Raises:
          PipelineError: if the part is not what this command has read or written before; then it is not changed.
          LockLostError: if the lock of the base path was lost; then it is not changed.
        """

        def change(config: Any) -> None:
            config.model_version_policy.specific.versions[:] = served.versions
            config.version_labels.clear()
            config.version_labels.update(served.labels)

        return self._write(change, served.unfinished, base_lock)

    @contextlib.contextmanager
    def restored_on_failure(self, base_lock: lock.Lock) -> Iterator[None]:
        """Restores the model's part if the block fails; other models' parts stay as they are then."""
        before = type(self._last_seen)()
        before.CopyFrom(self._last_seen)
        unfinished = read(self.path)[1].get(self._model)
        try:
            yield
        except lock.LockLostError:
            raise  # another command writes the file now
        except BaseException:
            self._write(lambda config: config.CopyFrom(before), unfinished, base_lock)
            raise

    def _part(self, message: Any) -> Any:
        for config in message.model_config_list.config:
            if config.name == self._model:
                return config
        raise ConfigError(
            f"{self.path}: names no model {self._model!r}; expected it, with the base path of its versions. Add it to the "
            "file, or give another --name."
        )

    def _write(self, change: Callable[[Any], None], unfinished: Unfinished | None, base_lock: lock.Lock) -> bool:
        with self._writing() as file_lock:
            message, unfinished_by_model = read(self.path)
            config = self._part(message)
            if config != self._last_seen:
                raise PipelineError(
                    f"{self.path}: was changed by something else while this command was at work; expected that only these "
                    "commands write it. It was left as it is. Run the command again."
                )
            new, unfinished_before = type(config)(), unfinished_by_model.pop(self._model, None)
            new.CopyFrom(config)
            change(new)
            if new == config and unfinished == unfinished_before:
                return False
            config.CopyFrom(new)
            if unfinished is not None:
                unfinished_by_model[self._model] = unfinished
            base_lock.confirm()
            file_lock.write(self.path, _text(message, unfinished_by_model), prefix=self._prefix())
            self._last_seen = new
            return True

    @contextlib.contextmanager
    def _writing(self) -> Iterator[lock.Lock]:
        """Holds the lock of the file, which other models' rollouts write too, for one step."""
        folder = self.path.with_name(f".{self.path.name}.writing")
        with lock.hold(folder, command=self._command, wait_s=self._lock_wait_s, progress=self._progress) as file_lock:
            for name in file_lock.revoke(self.path.parent, self._prefix()):
                left = self.path.with_name(name)
                self._progress.event("lock", f"{left}: removed; a command that was stopped had left it")
            yield file_lock

    def _prefix(self) -> str:
        return f".writing-{self.path.name}-"


def read(path: Path) -> tuple[Any, dict[str, Unfinished]]:
    """The file as a ModelServerConfig, and by model what is unfinished.

    Raises:
      ConfigError: if it cannot be read, or is no models.config.
    """
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    try:
        text = path.read_text(encoding="utf-8")
        return text_format.Parse(text, model_server_config_pb2.ModelServerConfig()), _unfinished(text)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); expected a models.config such as serving/models.config."
        ) from None
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: is no models.config ({error}); expected a ModelServerConfig message in protobuf's text format, such as "
            "serving/models.config."
        ) from None


def _unfinished(text: str) -> dict[str, Unfinished]:
    by_model = {}
    for line in text.splitlines():
        if line.startswith(_UNFINISHED):
            with contextlib.suppress(ValueError, TypeError):  # a comment that someone else has written
                unfinished = Unfinished(**json.loads(line.removeprefix(_UNFINISHED)))
                by_model[unfinished.model] = unfinished
    return by_model


def _text(message: Any, unfinished: Mapping[str, Unfinished]) -> bytes:
    from google.protobuf import text_format

    lines = [f"{_UNFINISHED}{json.dumps(dataclasses.asdict(command))}\n" for command in unfinished.values()]
    return (_HEADER + "".join(lines) + text_format.MessageToString(message)).encode()
