"""Which version a model server serves, by labels in its models.config: canary, promotion, rollback, and a list.

The server refuses a label for a version that is not available, and takes a configuration whole or not at all; so every
change is written in its order, each step by a rename, and each waits until the servers have taken the one before:

    1. load     the versions that are to have labels, beside those that are loaded
    2. label    all labels as they shall be
    3. drop     what has no label any more

Every command states labels as they shall be, and takes the steps that are missing. So it can be run again after any
interruption, and from whatever state another command that was stopped has left; README.md draws the states. Steps that
are not the last one say in a comment what they belong to, so that `promote` and `rollback` without a version are
finished when they are run again, and not done twice.

The server does not split traffic: clients ask for a label. Other models in the file stay as they are.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from serving import lock
from serving.client import AVAILABLE, RestClient, ServerError
from tff_pipeline.artifacts import COMPLETE, MANIFEST, model_versions, read_json, read_manifest, version_numbers
from tff_pipeline.errors import ArtifactError, ConfigError, PipelineError
from tff_pipeline.progress import Progress
from tff_pipeline.rounding import rounded_up

STABLE, CANARY, PREVIOUS = "stable", "canary", "previous"
SAVED_MODEL = "saved_model.pb"
_POLL_S, _ASK_S = 0.2, 5.0
_FORGET_S = 10.0  # how long a server may take to read the file again; those started as the file's header says take 5
_HEADER = """\
# For `tensorflow_model_server --model_config_file=... --model_config_file_poll_wait_seconds=5
# --allow_version_labels_for_unavailable_models=true` (without which it does not start with labels). Written by
# tff-pipeline publish --canary, canary, promote and rollback; what else stands here is kept, comments are not.
"""
_UNFINISHED = "# unfinished: "


@dataclasses.dataclass(frozen=True)
class Unfinished:
    """A command that has not taken its last step: it is at work, or was stopped. `labels` are what it aims at."""

    model: str
    command: str
    labels: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Served:
    """What models.config says of one model. Without versions the newest is served, and labels have no meaning."""

    base_path: Path
    versions: tuple[int, ...] = ()
    labels: Mapping[str, int] = dataclasses.field(default_factory=dict)
    unfinished: Unfinished | None = None


class Rollout:
    """One model in one models.config, and the servers that follow it (REST addresses; none: nothing is awaited).

    Every command holds the lock of the base path (lock.py) while it works. All raise, beside what they name:
      ConfigError: if models.config cannot be read, or does not name the model.
      LockedError, LockLostError: if another command is at work, or has taken over.
      PipelineError: if a server does not follow a step in time; then the file is put back as it was.
    """

    def __init__(
        self,
        file: Path,
        name: str,
        *,
        servers: Sequence[str] = (),
        timeout_s: float = 300.0,
        lock_wait_s: float = lock.WAIT_S,
        command: str = "a rollout",
        progress: Progress,
    ):
        # The target of a symbolic link: a rename onto the link would replace the link, and the server may read the target.
        self._file, self._name, self._servers = Path(os.path.realpath(file)), name, tuple(servers)
        self._timeout_s, self._lock_wait_s = timeout_s, lock_wait_s
        self._command, self._progress = command, progress
        self._held: lock.Lock | None = None
        self._known: Any = None  # the model's part of the file, as this command has read or written it

    # -- what is there ---------------------------------------------------------------------------------------------------

    def served(self) -> Served:
        """Raises ConfigError if the file cannot be read, or does not name the model."""
        message, unfinished = _read(self._file)
        config = self._part(message)
        return Served(
            Path(config.base_path),
            tuple(sorted(config.model_version_policy.specific.versions)),
            dict(config.version_labels),
            unfinished.get(self._name),
        )

    def loaded(self) -> set[int]:
        """The versions that any server has available now; raises PipelineError if one cannot be asked."""
        return {version for states, _ in self._asked() for version, state in states.items() if state == AVAILABLE}

    def _asked(self) -> list[tuple[dict[int, str], dict[int, str]]]:
        """By server: the versions' states, and why some could not be loaded."""
        answers = []
        for server in self._servers:
            with RestClient(server, self._name, timeout_s=min(_ASK_S, self._timeout_s)) as client:
                answers.append((client.states(), client.failures()))
        return answers

    def _part(self, message: Any) -> Any:
        for config in message.model_config_list.config:
            if config.name == self._name:
                return config
        raise ConfigError(
            f"{self._file}: names no model {self._name!r}; expected it, with the base path of its versions."
        )

    def base_path(self) -> str:
        """As the file has it: a folder, or an address. Raises ConfigError as `served` does."""
        return self._part(_read(self._file)[0]).base_path

    def _whole(self) -> list[int]:
        """The whole versions under the base path, ascending."""
        base = self.base_path()
        return versions_there(base) if "://" in base else model_versions(Path(base))

    # -- the commands ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def changing(self) -> Iterator[lock.Lock]:
        """Holds the lock of the base path; for several commands in one, as `publish --canary` is."""
        if self._held is not None:
            yield self._held
            return
        with self._lock() as held:
            self._held, self._known = held, self._part(_read(self._file)[0])
            try:
                with self._writing():
                    pass  # clears what a command that was stopped has left beside the file
                yield held
            finally:
                self._held = None

    def pin(self) -> None:
        """Where the newest version is served, whatever it is: names it, so that one that appears is not taken for it."""
        with self.changing():
            before = self.served()
            if not before.versions and (serving := self._serving(before)) is not None:
                self._move("pin", before, {STABLE: serving})

    def canary(self, version: int) -> Served:
        """Loads a published version beside the stable one, and labels it `canary`, whatever it was before.

        Where nothing serves yet, the version becomes the stable one. A version that is the stable one already stays that.

        Raises:
          ArtifactError: if this version, or the stable one, is not there whole.
        """
        with self.changing():
            self._check_whole(version)
            before = self.served()
            stable = before.labels.get(STABLE, self._serving(before, other_than=version))
            if stable in (None, version):
                self._progress.event("rollout", f"version {version} is the stable one; it gets no label `canary`")
                return self._move("canary", before, {**self._usable(before), STABLE: version})
            if stable not in self._whole():
                raise ArtifactError(
                    f"{self._file}: the stable version {stable} is not whole under {before.base_path}; expected it beside a "
                    f"canary. `tff-pipeline promote --version {version}` makes {version} the stable one."
                )
            if STABLE not in before.labels:
                before = self._move("pin", before, {**before.labels, STABLE: stable})
            return self._move("canary", before, {**self._usable(before), CANARY: version})

    def promote(self, version: int | None = None) -> Served:
        """Makes a version the stable one, by default the canary; what was stable stays loaded, as `previous`.

        Raises:
          ArtifactError: if no version is given and there is no canary, or the version is not there whole.
        """
        with self.changing():
            before = self.served()
            if version is None and _is_unfinished(before, "promote"):
                return self._move("promote", before, before.labels)
            version = version if version is not None else before.labels.get(CANARY)
            if version is None:
                raise ArtifactError(
                    f"{self._file}: {self._name} has no canary; expected one to promote. {self._ways(before)}"
                )
            self._check_whole(version)
            labels = self._usable(before)
            was = labels.get(STABLE) if STABLE in before.labels else self._serving(before)
            labels |= {STABLE: version}
            if was is not None and was != version:
                labels[PREVIOUS] = was
            if labels.get(PREVIOUS) == version:
                del labels[PREVIOUS]
            if labels.get(CANARY) == version:
                del labels[CANARY]
            return self._move("promote", before, labels)

    def rollback(self, version: int | None = None) -> Served:
        """Drops the canary; or where there is none, goes back to the version before.

        With a version: takes that one back, if it is the canary or the stable one, and else changes nothing; so it can be
        run twice.

        Raises:
          ArtifactError: if there is nothing to go back to.
        """
        with self.changing():
            before = self.served()
            labels = dict(before.labels)
            is_stable = version is not None and labels.get(STABLE) == version
            if version is None and _is_unfinished(before, "rollback"):
                pass  # its labels are set; what it had to drop is dropped
            elif CANARY in labels and version in (None, labels[CANARY]):
                del labels[CANARY]
            elif version is None and before.unfinished is not None and before.unfinished.command == "canary":
                pass  # a canary that was loaded, and not labelled
            elif version is None or is_stable:
                labels = self._back(before)
            return self._move("rollback", before, labels)

    def _back(self, before: Served) -> dict[str, int]:
        """Labels with the previous version as the stable one."""
        labels = dict(before.labels)
        if PREVIOUS not in labels:
            raise ArtifactError(
                f"{self._file}: {self._name} has no canary and no previous version; there is nothing to go back to. "
                f"{self._ways(before)}"
            )
        if labels[PREVIOUS] not in self._whole():
            raise ArtifactError(
                f"{before.base_path / str(labels[PREVIOUS])}: the previous version is not whole; there is nothing to go back "
                f"to. {self._ways(before)}"
            )
        labels[STABLE] = labels.pop(PREVIOUS)
        return labels

    def _ways(self, before: Served) -> str:
        whole = ", ".join(map(str, self._whole())) or "none yet"
        return (
            f"It serves {_shown(before)}. `tff-pipeline canary --version N` or `promote --version N` takes any version that "
            f"is published: {whole}."
        )

    # -- how a command gets there ----------------------------------------------------------------------------------------

    def _usable(self, before: Served) -> dict[str, int]:
        """The labels, without a canary or previous version that is not there any more."""
        whole = self._whole()
        ours = (CANARY, PREVIOUS)
        return {name: number for name, number in before.labels.items() if name not in ours or number in whole}

    def _serving(self, before: Served, other_than: int | None = None) -> int | None:
        """Which version serves where no label says so: the newest that every server has available, or else the newest.

        One that a server says it could not load does not serve.
        """
        whole = [number for number in self._whole() if number != other_than]
        if before.versions:
            whole = [number for number in whole if number in before.versions]
        with contextlib.suppress(ServerError):
            asked = self._asked()
            available = [number for number in whole if all(states.get(number) == AVAILABLE for states, _ in asked)]
            if asked and available:
                return available[-1]
            whole = [number for number in whole if not any(number in failures for _, failures in asked)]
        return whole[-1] if whole else None

    def _check_whole(self, version: int) -> None:
        base, whole = self.base_path(), self._whole()
        if "://" not in base and version in version_numbers(Path(base)):
            read_manifest(Path(base) / str(version), check_files=True)
        elif version not in whole:
            known = ", ".join(map(str, whole)) or "none"
            raise ArtifactError(
                f"{base.rstrip('/')}/{version}: is not published; expected one of the versions there ({known}). Run "
                "`tff-pipeline publish` first."
            )

    def _move(self, command: str, before: Served, labels: Mapping[str, int]) -> Served:
        """Takes the steps that lead to `labels`, from wherever the file is."""
        target = set(labels.values())
        if STABLE not in labels:  # written by hand: only what has lost its label is dropped
            target |= set(before.versions) - set(before.labels.values())
        if not target:
            raise ArtifactError(f"{self._file}: {self._name} would have no version. {self._ways(before)}")
        unfinished = Unfinished(self._name, command, labels)
        both = tuple(sorted({*before.versions, *before.labels.values(), *target}))
        missing = sorted(target - set(before.versions))
        self._check_servers(before, missing)
        new = sorted(set(labels.values()) - set(before.labels.values()) | set(missing))
        failed = {version for version in new if self._has_failed(version)}
        with self._undone_on_failure():
            if failed & set(before.versions or failed):
                serving = self._serving(before)
                named = before.versions or ((serving,) if serving is not None else ())
                left = tuple(version for version in named if version not in failed)
                self._step("unload", dataclasses.replace(before, versions=left, unfinished=unfinished))
            for version in failed:
                self._await_forgotten(version)
            old = {version: {server: self._failure(server, version) for server in self._servers} for version in new}
            if missing or failed:
                self._step("load", dataclasses.replace(before, versions=both, unfinished=unfinished))
            for version in new:
                self._await_loaded(version, old[version])
            after = dataclasses.replace(before, versions=tuple(sorted(target)), labels=dict(labels), unfinished=None)
            if labels != before.labels and both != after.versions:
                self._step("label", dataclasses.replace(after, versions=both, unfinished=unfinished))
                self._await_labels(labels)
                self._step("drop", after)
            else:
                last = "label" if labels != before.labels else "drop"
                self._step(last, after)
                self._await_labels(labels)
            return after

    def _check_servers(self, before: Served, missing: Sequence[int]) -> None:
        """Without a server to ask, no label may be moved to a version that is not known to be loaded."""
        unknown = [version for version in missing if before.versions or version != self._serving(before)]
        if unknown and not self._servers:
            raise ConfigError(
                f"{self._file}: version {unknown[0]} is not loaded, and a server refuses labels for such a one; expected "
                "--server, to wait until it is."
            )

    def _has_failed(self, version: int) -> bool:
        """Whether a server says that it could not load the version: in an earlier attempt, since nobody asks for it now."""
        return any(self._failure(server, version) for server in self._servers)

    def _failure(self, server: str, version: int) -> str:
        with RestClient(server, self._name, timeout_s=min(_ASK_S, self._timeout_s)) as client:
            with contextlib.suppress(ServerError):  # the steps that follow say what is wrong with it
                return client.failures().get(version, "")
        return ""

    def _await_forgotten(self, version: int) -> None:
        """A server loads a version that has failed again only after it has followed a file that did not name it."""
        deadline = time.monotonic() + min(_FORGET_S, self._timeout_s)
        while self._has_failed(version) and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def _await_loaded(self, version: int, failures: Mapping[str, str]) -> None:
        """A failure counts only if it is not among `failures`, what the servers have said before the step."""
        old = dict(failures)

        def ask(client: RestClient, server: str) -> str:
            failure, state = client.failures().get(version, ""), client.states().get(version, "unknown")
            if not failure:
                old[server] = ""
            elif not old[server]:
                raise PipelineError(self._not_followed(server, f"version {version} to be {AVAILABLE}", state, failure))
            return state

        self._await(f"version {version} to be {AVAILABLE}", ask, lambda found: found == AVAILABLE, version=version)

    def _await_labels(self, labels: Mapping[str, int]) -> None:
        for label, version in labels.items():
            self._await(
                f"label {label} at version {version}",
                lambda client, _: client.answering_version(),
                lambda found, version=version: found == version,
                label=label,
            )

    def _await(
        self, what: str, ask: Callable[[RestClient, str], Any], done: Callable[[Any], bool], **target: Any
    ) -> None:
        """Asks every server until it is so."""
        deadline, found = time.monotonic() + self._timeout_s, None
        for server in self._servers:
            while True:
                left_s = max(deadline - time.monotonic(), _POLL_S)
                with RestClient(server, self._name, timeout_s=min(_ASK_S, left_s), **target) as client:
                    try:
                        found = ask(client, server)
                    except ServerError as error:
                        found = f"{error.code}: {error.said}"
                if done(found):
                    break
                if time.monotonic() > deadline:
                    raise PipelineError(self._not_followed(server, what, found))
                time.sleep(_POLL_S)

    def _not_followed(self, server: str, what: str, found: Any, why: str = "") -> str:
        because = f" ({why})" if why else ""
        return (
            f"{server}: waited for {what} of {self._name}; it says {found!r}{because}. {self._file} is as it was before. The "
            "same command can be run again."
        )

    # -- the file --------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _lock(self) -> Iterator[lock.Lock]:
        base, settings = self.base_path(), {"command": self._command, "wait_s": self._lock_wait_s}
        if "://" in base:  # an object store has no lock; then one command at a time changes this model in this file
            folder = self._file.with_name(f".{self._file.name}.{quote(self._name, safe='')}.publish")
            with lock.hold(folder, **settings, progress=self._progress) as held:
                yield held
            return
        if not Path(base).is_dir():
            raise ConfigError(
                f"{self._file}: has base_path {base} for {self._name}, which is no folder here; expected the versions under "
                "the same path as on the server. Mount them there."
            )
        with lock.changing(Path(base), **settings, progress=self._progress) as held:
            register(Path(base), self._file, held)
            yield held

    @contextlib.contextmanager
    def _writing(self) -> Iterator[lock.Lock]:
        """Holds the lock of the file, which other models' rollouts write too, for one step."""
        folder = self._file.with_name(f".{self._file.name}.writing")
        settings = {"command": self._command, "wait_s": self._lock_wait_s, "progress": self._progress}
        with lock.hold(folder, **settings) as writing:
            for name in writing.revoke(self._file.parent, self._prefix()):
                self._progress.event(
                    "lock", f"{self._file.with_name(name)}: removed; a command that was stopped left it"
                )
            yield writing

    def _prefix(self) -> str:
        return f".writing-{self._file.name}-"

    def _step(self, step: str, served: Served) -> None:
        """Writes the model's part of the file, unless it says so already."""

        def change(config: Any) -> None:
            config.model_version_policy.specific.versions[:] = served.versions
            config.version_labels.clear()
            config.version_labels.update(served.labels)

        if self._write(change, served.unfinished):
            self._progress.event(
                "rollout",
                f"{step}: {_shown(served)}",
                step=step,
                versions=list(served.versions),
                labels=dict(served.labels),
            )

    def _write(self, change: Callable[[Any], None], unfinished: Unfinished | None) -> bool:
        """Changes the model's part of the file; returns whether that was needed.

        Raises:
          PipelineError: if the part is not what this command has read or written before; then it is not changed.
        """
        held = self._held
        if held is None:
            raise RuntimeError("models.config is written under the lock of the base path only.")
        with self._writing() as writing:
            message, marks = _read(self._file)
            config = self._part(message)
            if config != self._known:
                raise PipelineError(
                    f"{self._file}: was changed by something else while this command was at work; expected nobody else to "
                    "write it. It was left as it is. Run the command again."
                )
            new, mark = type(config)(), marks.pop(self._name, None)
            new.CopyFrom(config)
            change(new)
            if new == config and mark == unfinished:
                return False
            config.CopyFrom(new)
            marks |= {self._name: unfinished} if unfinished is not None else {}
            held.confirm()
            writing.write(self._file, _text(message, marks), prefix=self._prefix())
            self._known = new
            return True

    @contextlib.contextmanager
    def _undone_on_failure(self) -> Iterator[None]:
        """Puts the model's part back; other models' parts stay."""
        before = type(self._known)()
        before.CopyFrom(self._known)
        mark = _read(self._file)[1].get(self._name)
        try:
            yield
        except lock.LockLostError:
            raise  # the file is another command's now
        except BaseException:
            self._write(lambda config: config.CopyFrom(before), mark)
            raise


def _is_unfinished(served: Served, command: str) -> bool:
    """Whether this command has set its labels, and was stopped before its last step."""
    found = served.unfinished
    return found is not None and found.command == command and found.labels == served.labels


# -- the base path -----------------------------------------------------------------------------------------------------

_FOLLOWERS = "models-configs.json"  # in the base path's folder of the lock: the files that were used with it


def register(base_path: Path, file: Path, held: lock.Lock) -> None:
    """Remembers that this models.config names versions of this base path, so that `--keep` asks it."""
    path, target = base_path / lock.FOLDER / _FOLLOWERS, os.path.realpath(file)
    known = read_json(path) if path.exists() else []
    if target not in known:
        held.write(path, json.dumps([*known, target], indent=2).encode(), prefix=lock.PREPARED)


def needed(base_path: Path) -> set[int]:
    """The versions that any models.config which was used with this base path names.

    Raises:
      ConfigError: if one of these files cannot be read; then nothing may be removed.
    """
    path, found = base_path / lock.FOLDER / _FOLLOWERS, set()
    for name in read_json(path) if path.exists() else []:
        try:
            message, _ = _read(Path(name))
        except ConfigError as error:
            raise ConfigError(
                f"{path}: names {name}, which followed this base path, and says which versions are needed: {error} No version "
                "was removed. If the file is gone for good, take its line out."
            ) from None
        for config in message.model_config_list.config:
            if Path(config.base_path).resolve() == base_path.resolve():
                found |= {*config.model_version_policy.specific.versions, *config.version_labels.values()}
    return found


def retain(base_path: Path, keep: int, *, needed: Sequence[int], held: lock.Lock | None = None) -> list[int]:
    """Removes what is older than the newest `keep` whole versions; those in `needed` stay whatever their age.

    Returns:
      The numbers that were removed.
    """
    if held is None:
        with lock.changing(base_path, command="retain", progress=Progress()) as held:
            return retain(base_path, keep, needed=needed, held=held)
    kept = model_versions(base_path)[-keep:]
    removed = (
        [number for number in version_numbers(base_path) if number < kept[0] and number not in needed]
        if len(kept) == keep
        else []
    )
    for number in removed:
        _remove_version(base_path / str(number), held)
    return removed


def _remove_version(version: Path, held: lock.Lock) -> None:
    aside = version.with_name(f"{lock.REMOVING}{version.name}-{held.token}")
    held.confirm()
    os.rename(version, aside)  # first out of the server's sight, then file by file
    try:
        held.confirm()
    except lock.LockLostError:
        os.rename(aside, version)  # who holds the lock now may need it
        raise
    lock.remove(aside)


def files_there(address: str) -> list[str]:
    """Every file under an address of TensorFlow's file systems."""
    import tensorflow as tf

    return [f"{directory.rstrip('/')}/{name}" for directory, _, names in tf.io.gfile.walk(address) for name in names]


def versions_there(base: str) -> list[int]:
    """The versions at an address that have their last file, ascending."""
    import tensorflow as tf

    files = tf.io.gfile
    names = [name.rstrip("/") for name in files.listdir(base)] if files.exists(base) else []
    numbers = sorted(int(name) for name in names if name.isascii() and name.isdigit())
    return [number for number in numbers if files.exists(f"{base.rstrip('/')}/{number}/{SAVED_MODEL}")]


# -- the text of models.config -----------------------------------------------------------------------------------------


def _read(file: Path) -> tuple[Any, dict[str, Unfinished]]:
    """The message, and by model what is unfinished."""
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    try:
        text = file.read_text(encoding="utf-8")
        return text_format.Parse(text, model_server_config_pb2.ModelServerConfig()), _marks(text)
    except OSError as error:
        raise ConfigError(
            f"{file}: cannot be read ({error.strerror}); serving/models.config is one to start from."
        ) from None
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: is no models.config ({error}).") from None


def _marks(text: str) -> dict[str, Unfinished]:
    marks = {}
    for line in text.splitlines():
        if line.startswith(_UNFINISHED):
            with contextlib.suppress(ValueError, TypeError):  # a comment that someone else has written
                mark = Unfinished(**json.loads(line.removeprefix(_UNFINISHED)))
                marks[mark.model] = mark
    return marks


def _text(message: Any, marks: Mapping[str, Unfinished]) -> bytes:
    from google.protobuf import text_format

    lines = [f"{_UNFINISHED}{json.dumps(dataclasses.asdict(mark))}\n" for mark in marks.values()]
    return (_HEADER + "".join(lines) + text_format.MessageToString(message)).encode()


def _shown(served: Served) -> str:
    names = {
        number: ", ".join(sorted(each for each, at in served.labels.items() if at == number))
        for number in served.versions
    }
    return "; ".join(f"{number} ({names[number] or 'loaded'})" for number in served.versions) or "the newest version"


# -- the commands ------------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """--models-config, --server and --wait-s, which every command of a rollout takes."""
    parser.add_argument(
        "--models-config", metavar="FILE", type=Path, required=required, help="the file that the servers follow"
    )
    parser.add_argument(
        "--server",
        metavar="URL",
        action="append",
        default=[],
        help="REST address of a server that follows it; each step waits for it. May be given several times",
    )
    parser.add_argument(
        "--wait-s", metavar="N", type=float, default=300.0, help="how long each step waits for servers (default: 300)"
    )
    parser.add_argument(
        "--lock-wait-s",
        metavar="N",
        type=float,
        default=lock.WAIT_S,
        help="how long to wait for another command that changes this base path; one that was killed is not waited for, "
        f"or at most {lock.LEASE_S:g} s if it ran on another machine (default: {lock.WAIT_S:g})",
    )


def from_arguments(arguments: argparse.Namespace, name: str, command: str, progress: Progress) -> Rollout:
    """The rollout that `add_arguments` describes."""
    return Rollout(
        arguments.models_config,
        name,
        servers=arguments.server,
        timeout_s=arguments.wait_s,
        lock_wait_s=arguments.lock_wait_s,
        command=command,
        progress=progress,
    )


_AGAIN = """\
The command states how the labels shall be, and takes the steps that are missing: load, label, drop. So the same command
can be run again after any interruption, and it goes on from what another one that was stopped has left. A step that a
server does not follow in --wait-s is taken back. One command at a time changes a base path.
"""


def _change(
    argv: Sequence[str],
    name: str,
    description: str,
    version_help: str,
    change: Callable[[Rollout, int | None], Served],
    *,
    required: bool = False,
) -> int:
    parser = argparse.ArgumentParser(prog=f"tff-pipeline {name}", description=description, epilog=_AGAIN)
    parser.add_argument("--name", required=True, help="the model's name in models.config")
    parser.add_argument("--version", metavar="N", type=int, required=required, help=version_help)
    add_arguments(parser, required=True)
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    command = f"tff-pipeline {name} {shlex.join(argv)}"
    served = change(from_arguments(arguments, arguments.name, command, Progress()), arguments.version)
    print(
        json.dumps({"versions": served.versions, "labels": dict(served.labels)}) if arguments.json else _shown(served)
    )
    return 0


def canary_main(argv: Sequence[str]) -> int:
    """`tff-pipeline canary`."""
    return _change(
        argv,
        "canary",
        "Loads a published version beside the stable one, and labels it `canary`: one that was published without "
        "--canary, was rolled back or taken back, or whose servers did not follow in time.",
        "the version, which must be published",
        lambda rollout, version: rollout.canary(version or 0),
        required=True,
    )


def promote_main(argv: Sequence[str]) -> int:
    """`tff-pipeline promote`."""
    return _change(
        argv,
        "promote",
        "Makes a version the stable one; the one that was stable stays loaded, as `previous`.",
        "the version, any that is published (default: the canary)",
        lambda rollout, version: rollout.promote(version),
    )


def rollback_main(argv: Sequence[str]) -> int:
    """`tff-pipeline rollback`."""
    return _change(
        argv,
        "rollback",
        "Drops the canary; or where there is none, goes back to the version before.",
        "take back this version: drop it if it is the canary, go back to `previous` if it is the stable one, and else "
        "change nothing. With it the command can be run twice, as a scheduler may (default: whatever was last)",
        lambda rollout, version: rollout.rollback(version),
    )


def list_main(argv: Sequence[str]) -> int:
    """`tff-pipeline list`: a line a version: number, labels, accuracy, epsilon, run, when."""
    parser = argparse.ArgumentParser(
        prog="tff-pipeline list", description="The versions of a model, and which are served."
    )
    parser.add_argument(
        "--to",
        metavar="DIR",
        help="the base path of the versions, a folder or gs://, s3:// and the like (default: what "
        "--models-config says)",
    )
    parser.add_argument("--name", help="the model's name in --models-config")
    parser.add_argument("--models-config", metavar="FILE", type=Path, help="the file that the servers follow")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    if bool(arguments.name) != bool(arguments.models_config) or not (arguments.to or arguments.name):
        parser.error("give --to, or --models-config and --name")
    following = Rollout(arguments.models_config, arguments.name, progress=Progress()) if arguments.name else None
    served = following.served() if following is not None else None
    if served is not None and served.unfinished is not None:
        command = served.unfinished.command
        Progress().event("rollout", f"a {command} is at work, or was stopped before its last step; then run it again")
    base = arguments.to or (following.base_path() if following is not None else "")
    rows = _rows_there(base, served) if "://" in base else _rows(Path(base), served)
    if arguments.json:
        print(json.dumps(rows))
        return 0
    for row in rows:
        accuracy = "-" if row["accuracy"] is None else f"{row['accuracy']:.3f}"
        epsilon = "-" if row["epsilon"] is None else rounded_up(row["epsilon"])
        print(
            f"{row['version']}\t{','.join(row['labels']) or '-'}\taccuracy {accuracy}\tepsilon {epsilon}\t{row['run']}\t{row['created']}"
        )
    return 0


def _rows(base_path: Path, served: Served | None) -> list[dict[str, Any]]:
    return [_row(base_path / str(number), number, served) for number in version_numbers(base_path)]


def _rows_there(base: str, served: Served | None) -> list[dict[str, Any]]:
    """The rows of what lies at an address of TensorFlow's file systems.

    Raises:
      ArtifactError: if it cannot be listed or read.
    """
    import tensorflow as tf

    files, rows = tf.io.gfile, []
    try:
        with tempfile.TemporaryDirectory() as folder:
            for number in versions_there(base):
                version = Path(folder) / str(number)
                version.mkdir()
                for name in (MANIFEST, COMPLETE):
                    source = f"{base.rstrip('/')}/{number}/{name}"
                    if files.exists(source):
                        with files.GFile(source, "rb") as file:
                            (version / name).write_bytes(file.read())
                rows.append(_row(version, number, served))
    except tf.errors.OpError as error:
        raise ArtifactError(
            f"{base}: cannot be listed ({error.message}); expected an address that TensorFlow's file systems reach from "
            "here, with this user's credentials."
        ) from None
    return rows


def _row(version: Path, number: int, served: Served | None) -> dict[str, Any]:
    labels = sorted(name for name, at in served.labels.items() if at == number) if served else []
    try:
        manifest = read_manifest(version)
    except ArtifactError:
        return {
            "version": number,
            "labels": labels,
            "accuracy": None,
            "epsilon": None,
            "run": "incomplete",
            "created": "",
        }
    evaluation = manifest.get("evaluation") or {}
    return {
        "version": number,
        "labels": labels,
        "accuracy": evaluation.get("accuracy"),
        "epsilon": manifest["epsilon"],
        "run": manifest["run"],
        "created": manifest["created"],
    }
