"""Which version a model server serves, by labels in its models.config: canary, promotion, rollback, and a list.

The server refuses a label for a version that is not available, and takes a configuration whole or not at all; so every
change is written in its order, by a rename, and each step waits until the servers have taken the one before:

    canary     1. load both versions      2. label the new one `canary`
    promote    3. move `stable` to it; the old one stays loaded, as `previous`
    rollback   drop the canary; or where there is none, move `stable` back to `previous`

The server does not split traffic: clients ask for a label. Other models in the file stay as they are.
"""

import argparse
import contextlib
import dataclasses
import fcntl
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from serving.client import AVAILABLE, RestClient, ServerError
from tff_pipeline.artifacts import model_versions, read_manifest, version_numbers, write_atomic
from tff_pipeline.errors import ArtifactError, ConfigError, PipelineError
from tff_pipeline.progress import Progress
from tff_pipeline.rounding import rounded_up

STABLE, CANARY, PREVIOUS = "stable", "canary", "previous"
_POLL_S = 0.2
_HEADER = """\
# For `tensorflow_model_server --model_config_file=... --model_config_file_poll_wait_seconds=5
# --allow_version_labels_for_unavailable_models=true` (without which it does not start with labels). Written by
# tff-pipeline publish --canary, promote and rollback; what else stands here is kept, comments are not.
"""


@dataclasses.dataclass(frozen=True)
class Served:
    """What models.config says of one model. Without versions the newest is served, and labels have no meaning."""

    base_path: Path
    versions: tuple[int, ...] = ()
    labels: Mapping[str, int] = dataclasses.field(default_factory=dict)


class Rollout:
    """One model in one models.config, and the servers that follow it (REST addresses; none: nothing is awaited)."""

    def __init__(
        self, file: Path, name: str, *, servers: Sequence[str] = (), timeout_s: float = 300.0, progress: Progress
    ):
        self._file, self._name, self._servers = file, name, tuple(servers)
        self._timeout_s, self._progress = timeout_s, progress

    def served(self) -> Served:
        """Raises ConfigError if the file cannot be read, or does not name the model."""
        message = _read(self._file)
        for config in message.model_config_list.config:
            if config.name == self._name:
                versions = tuple(sorted(config.model_version_policy.specific.versions))
                return Served(Path(config.base_path), versions, dict(config.version_labels))
        raise ConfigError(
            f"{self._file}: names no model {self._name!r}; expected it, with the base path of its versions."
        )

    def pin(self) -> None:
        """Where the newest version is served, whatever it is: names it, so that one that appears is not taken for it.

        Raises:
          PipelineError: as `canary` does.
        """
        with self._locked():
            before = self.served()
            complete = model_versions(before.base_path)
            if before.versions or not complete:
                return
            with self._undone_on_failure():
                self._label(dataclasses.replace(before, versions=(complete[-1],), labels={STABLE: complete[-1]}))

    def canary(self, version: int) -> Served:
        """Loads `version` beside the stable one, and labels it. The first version of all becomes the stable one.

        Raises:
          PipelineError: if a server does not take it in time; the file is put back as it was.
        """
        with self._locked():
            before = self.served()
            older = [number for number in model_versions(before.base_path) if number != version]
            stable = before.labels.get(STABLE, older[-1] if older else None)
            if version == stable:
                raise ArtifactError(f"{self._file}: version {version} is the stable one already.")
            labels = {name: number for name, number in before.labels.items() if name != CANARY}
            loaded = {version, *labels.values()} | ({stable} if stable is not None else set())
            with self._undone_on_failure():
                self._step("load", dataclasses.replace(before, versions=tuple(sorted(loaded)), labels=labels))
                self._await_loaded(version)
                if stable is None:
                    labels = {STABLE: version}
                else:
                    self._await_loaded(stable)
                    labels |= {STABLE: stable, CANARY: version}
                return self._label(dataclasses.replace(before, versions=tuple(sorted(loaded)), labels=labels))

    def promote(self) -> Served:
        """Makes the canary the stable version; the stable one stays loaded, as `previous`."""
        with self._locked():
            before = self.served()
            if CANARY not in before.labels:
                raise ArtifactError(
                    f"{self._file}: {self._name} has no canary; expected one to promote. Run `tff-pipeline publish --canary` first."
                )
            labels = {STABLE: before.labels[CANARY]}
            if STABLE in before.labels:
                labels[PREVIOUS] = before.labels[STABLE]
            with self._undone_on_failure():
                return self._relabel(before, labels)

    def rollback(self) -> Served:
        """Drops the canary; or where there is none, goes back to the version before."""
        with self._locked():
            before = self.served()
            labels = {name: number for name, number in before.labels.items() if name != CANARY}
            if CANARY not in before.labels:
                if PREVIOUS not in labels:
                    raise ArtifactError(
                        f"{self._file}: {self._name} has no canary and no previous version; there is nothing to go back to."
                    )
                labels = {STABLE: labels[PREVIOUS]}
            with self._undone_on_failure():
                return self._relabel(before, labels)

    def _relabel(self, before: Served, labels: Mapping[str, int]) -> Served:
        """Moves labels among what is loaded, and only then drops what has none."""
        self._label(dataclasses.replace(before, labels=labels))
        after = dataclasses.replace(before, labels=labels, versions=tuple(sorted(set(labels.values()))))
        self._step("drop", after)
        return after

    def _label(self, served: Served) -> Served:
        self._step("label", served)
        for label, version in served.labels.items():
            self._await(
                f"label {label} at version {version}",
                lambda client: client.answering_version(),
                lambda found, version=version: found == version,
                label=label,
            )
        return served

    def _await_loaded(self, version: int) -> None:
        self._await(
            f"version {version} to be {AVAILABLE}",
            lambda client: client.states().get(version),
            lambda found: found == AVAILABLE,
            version=version,
        )

    def _await(self, what: str, ask: Callable[[RestClient], Any], done: Callable[[Any], bool], **target: Any) -> None:
        """Asks every server until it is so."""
        deadline, found = time.monotonic() + self._timeout_s, None
        for server in self._servers:
            with RestClient(server, self._name, timeout_s=5.0, **target) as client:
                while True:
                    try:
                        found = ask(client)
                        if done(found):
                            break
                    except ServerError as error:
                        found = f"{error.code}: {error.said}"
                    if found == "END" or time.monotonic() > deadline:
                        raise PipelineError(
                            f"{server}: waited for {what} of {self._name}; it says {found!r}. {self._file} is as it was before."
                        )
                    time.sleep(_POLL_S)

    def _step(self, step: str, served: Served) -> None:
        message = _read(self._file)
        for config in message.model_config_list.config:
            if config.name == self._name:
                config.model_version_policy.specific.versions[:] = served.versions
                config.version_labels.clear()
                config.version_labels.update(served.labels)
        _write(self._file, message)
        self._progress.event(
            "rollout",
            f"{step}: {_shown(served)}",
            step=step,
            versions=list(served.versions),
            labels=dict(served.labels),
        )

    @contextlib.contextmanager
    def _undone_on_failure(self) -> Iterator[None]:
        held = self._file.read_bytes()
        try:
            yield
        except BaseException:
            write_atomic(self._file, held)
            raise

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One change at a time, by whoever runs on this file system."""
        lock = self._file.with_name(f".{self._file.name}.lock")
        try:
            opened = lock.open("w")
        except OSError as error:
            raise ConfigError(f"{self._file}: its folder cannot be written to ({error.strerror}).") from None
        with opened as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise PipelineError(f"{self._file}: another rollout is at work on it; wait for its end.") from None
            yield


def retain(base_path: Path, keep: int, *, needed: Sequence[int]) -> list[int]:
    """Removes all but the newest `keep` versions; those in `needed` stay whatever their age.

    Returns:
      The numbers that were removed.
    """
    numbers = version_numbers(base_path)
    removed = [number for number in numbers[: max(len(numbers) - keep, 0)] if number not in needed]
    for number in removed:
        aside = base_path / f".removing-{number}"
        (base_path / str(number)).rename(aside)  # first out of the server's sight, then file by file
        shutil.rmtree(aside)
    return removed


def _read(file: Path) -> Any:
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    try:
        return text_format.Parse(file.read_text(encoding="utf-8"), model_server_config_pb2.ModelServerConfig())
    except OSError as error:
        raise ConfigError(
            f"{file}: cannot be read ({error.strerror}); serving/models.config is one to start from."
        ) from None
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: is no models.config ({error}).") from None


def _write(file: Path, message: Any) -> None:
    from google.protobuf import text_format

    write_atomic(file, (_HEADER + text_format.MessageToString(message)).encode())


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
    parser.add_argument("--wait-s", metavar="N", type=float, default=300.0, help="how long (default: 300)")


def _change(argv: Sequence[str], name: str, description: str, change: Callable[[Rollout], Served]) -> int:
    parser = argparse.ArgumentParser(prog=f"tff-pipeline {name}", description=description)
    parser.add_argument("--name", required=True, help="the model's name in models.config")
    add_arguments(parser, required=True)
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    rollout = Rollout(
        arguments.models_config,
        arguments.name,
        servers=arguments.server,
        timeout_s=arguments.wait_s,
        progress=Progress(),
    )
    served = change(rollout)
    print(
        json.dumps({"versions": served.versions, "labels": dict(served.labels)}) if arguments.json else _shown(served)
    )
    return 0


def promote_main(argv: Sequence[str]) -> int:
    """`tff-pipeline promote`."""
    return _change(argv, "promote", "Makes the canary the stable version.", Rollout.promote)


def rollback_main(argv: Sequence[str]) -> int:
    """`tff-pipeline rollback`."""
    return _change(
        argv, "rollback", "Drops the canary; or where there is none, goes back to the version before.", Rollout.rollback
    )


def list_main(argv: Sequence[str]) -> int:
    """`tff-pipeline list`: a line a version: number, labels, accuracy, epsilon, run, when."""
    parser = argparse.ArgumentParser(
        prog="tff-pipeline list", description="The versions of a model, and which are served."
    )
    parser.add_argument(
        "--to", metavar="DIR", type=Path, help="the base path of the versions (default: what --models-config says)"
    )
    parser.add_argument("--name", help="the model's name in --models-config")
    parser.add_argument("--models-config", metavar="FILE", type=Path, help="the file that the servers follow")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    if bool(arguments.name) != bool(arguments.models_config) or not (arguments.to or arguments.name):
        parser.error("give --to, or --models-config and --name")
    served = Rollout(arguments.models_config, arguments.name, progress=Progress()).served() if arguments.name else None
    base_path = arguments.to or (served.base_path if served else Path())
    rows = [_row(base_path, number, served) for number in version_numbers(base_path)]
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


def _row(base_path: Path, number: int, served: Served | None) -> dict[str, Any]:
    labels = sorted(name for name, at in served.labels.items() if at == number) if served else []
    try:
        manifest = read_manifest(base_path / str(number))
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
