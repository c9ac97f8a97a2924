"""Polls the base paths, loads the versions that appear, and unloads the old ones when the new ones are available.

The rules are the server's (file_system_storage_path_source.cc, availability_preserving_policy.cc): the direct children
of a folder whose whole name is a number are versions, complete or not; the policy says which are wanted; a version that
is not wanted any more is unloaded when a wanted one is available, or when none is wanted; one that could not be loaded
is tried again a few times, and then not until it has been away; a request keeps the version it began with.
"""

import dataclasses
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from serving.local_server.batching import Parameters, Scheduler
from serving.local_server.metrics import Metrics
from serving.local_server.servable import Servable
from serving.local_server.warm_up import warm_up
from serving.model_server.models_config import ModelConfig
from serving.model_server.status import ServingError, from_exception, invalid

START, LOADING, AVAILABLE, UNLOADING, END = "START", "LOADING", "AVAILABLE", "UNLOADING", "END"


@dataclasses.dataclass(frozen=True)
class VersionState:
    """A version's state in the server's words; `error` is why it could not be loaded."""

    state: str
    error: ServingError | None = None


@dataclasses.dataclass(frozen=True)
class Loading:
    """How versions are found and loaded; the defaults are the server's."""

    poll_s: float = 1.0
    retries: int = 5
    retry_interval_s: float = 60.0
    labels_for_unavailable: bool = False


class Manager:
    """The loaded versions of every model. One thread polls and loads (`poll`, or `start`); any may call `servable`."""

    def __init__(
        self,
        *,
        loading: Loading,
        metrics: Metrics,
        report: Callable[[str, str], None],
        batching: Parameters | None = None,
    ):
        self._scheduler = Scheduler(batching, metrics) if batching is not None else None
        self._loading, self._metrics, self._report = loading, metrics, report
        self._lock = threading.Lock()  # guards what requests read: everything up to `_labels`
        self._loaded: dict[tuple[str, int], Servable] = {}
        self._states: dict[str, dict[int, VersionState]] = {}
        self._labels: dict[str, dict[str, int]] = {}
        self._configs: tuple[ModelConfig, ...] = ()
        self._polling = threading.Lock()  # one poll at a time: the thread's, or a reload's
        self._retired: list[Servable] = []  # unloaded, but perhaps still in use
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    # -- for requests ------------------------------------------------------------------------------------------------

    @contextmanager
    def servable(self, name: str, *, version: int | None = None, label: str | None = None) -> Iterator[Servable]:
        """The version that a request names, in use until the block ends; the newest one where it names none.

        Raises:
          ServingError: if it is not loaded.
        """
        if not name:
            raise invalid("ModelSpec has no name specified.")
        with self._lock:
            if label is not None:
                version = self._labels.get(name, {}).get(label)
                if version is None:
                    raise invalid(f"Unrecognized servable version label: {label}")
            request = f"Latest({name})" if version is None else f"Specific({name}, {version})"
            if version is None:
                version = max((number for model, number in self._loaded if model == name), default=None)
            servable = self._loaded.get((name, version)) if version is not None else None
            if servable is None:
                raise ServingError("NOT_FOUND", f"Servable not found for request: {request}")
            servable.begin_request()
        try:
            yield servable
        finally:
            servable.end_request()

    def states(self, name: str, version: int | None = None) -> dict[int, VersionState]:
        """The states of a model's versions, newest first, or of one version. Versions that have ended stay listed."""
        with self._lock:
            known = dict(self._states.get(name, {}))
        if version is not None:
            if version not in known:
                raise ServingError("NOT_FOUND", f"Could not find version {version} of model {name}")
            return {version: known[version]}
        if not known:
            raise ServingError("NOT_FOUND", f"Could not find any versions of model {name}")
        return dict(sorted(known.items(), reverse=True))

    # -- configuration -----------------------------------------------------------------------------------------------

    def configure(self, configs: Sequence[ModelConfig]) -> None:
        """Replaces the whole configuration; what it does not name is unloaded at the next poll.

        Raises:
          ServingError: if a label names a version that is not available; then nothing changes.
        """
        with self._lock:
            labels = {config.name: dict(config.labels) for config in configs if config.labels}
            for name, by_label in labels.items():
                for label, version in by_label.items():
                    self._check_label(name, label, version)
            self._labels, self._configs = labels, tuple(configs)

    def _check_label(self, name: str, label: str, version: int) -> None:
        is_new = self._labels.get(name, {}).get(label, version) == version
        if (name, version) not in self._loaded and not (self._loading.labels_for_unavailable and is_new):
            raise ServingError(
                "FAILED_PRECONDITION",
                f"Request to assign label to version {version} of model {name}, which is not currently available for inference",
            )

    # -- polling -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Polls in a thread of its own until `stop`."""
        self._thread = threading.Thread(target=self._poll_forever, name="poller", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the polling and closes every session; requests have a few seconds to finish."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            self._retired += self._loaded.values()
            self._loaded.clear()
        deadline = time.monotonic() + 5
        while any(servable.in_use for servable in self._retired) and time.monotonic() < deadline:
            time.sleep(0.01)
        self._close_retired()
        if self._scheduler is not None:
            self._scheduler.close()

    def end_waiting(self) -> None:
        """Makes `await_models` return now; no version is loaded after that."""
        self._stop.set()

    def await_models(self, names: Sequence[str], *, timeout_s: float | None = None) -> None:
        """Returns when each model has a version that is available, as the server does before it opens a port.

        Raises:
          ServingError: if one of them cannot be loaded, or `timeout_s` is over.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._stop.is_set():
            with self._lock:
                available = {name for name, _ in self._loaded}
                failed = {
                    name: state.error
                    for name in set(names) - available
                    for state in self._states.get(name, {}).values()
                    if state.state == END and state.error
                }
            if available >= set(names):
                return
            if failed:
                reasons = ", ".join(f"{{{name}: {error}}}" for name, error in failed.items())
                raise ServingError("UNKNOWN", f"{len(failed)} model(s) did not become available: {reasons}")
            if deadline is not None and time.monotonic() > deadline:
                raise ServingError(
                    "DEADLINE_EXCEEDED", f"no version of {', '.join(names)} became available within {timeout_s} s"
                )
            self._stop.wait(0.02)

    def _poll_forever(self) -> None:
        while not self._stop.is_set():
            self.poll()
            self._stop.wait(self._loading.poll_s)

    def poll(self) -> None:
        """Lists the base paths once, and loads and unloads versions accordingly."""
        with self._polling:
            self._close_retired()
            with self._lock:
                configs = self._configs
                removed = {name for name, _ in self._loaded} - {config.name for config in configs}
            for name in sorted(removed):
                self._unload(name, wanted=set())
            for config in configs:
                try:
                    present = numbered(config.base_path)
                except OSError as error:
                    # The server reports it at every poll, and changes nothing.
                    self._report(
                        "base-path", f"Could not find base path {config.base_path} for servable {config.name} ({error})"
                    )
                    continue
                self._follow(config, present)

    def _follow(self, config: ModelConfig, present: dict[int, Path]) -> None:
        wanted = config.policy.wanted(list(present))
        with self._lock:
            states = self._states.setdefault(config.name, {})
            for version in [number for number in states if number not in wanted and states[number].error]:
                states[version] = VersionState(END)  # may be tried again when it comes back
            missing = sorted(number for number in wanted if number not in states or states[number] == VersionState(END))
        for version in reversed(missing):  # the newest first
            self._load(config.name, version, present[version])
        with self._lock:
            available = {number for name, number in self._loaded if name == config.name}
        if not wanted or wanted & available:
            self._unload(config.name, wanted)

    def _load(self, name: str, version: int, path: Path) -> None:
        self._set(name, version, VersionState(LOADING))
        failure = self._attempt(name, version, path)
        for _ in range(self._loading.retries):
            if failure is None or self._stop.wait(self._loading.retry_interval_s):
                break
            failure = self._attempt(name, version, path)
        if failure is not None:
            self._set(name, version, VersionState(END, failure))

    def _attempt(self, name: str, version: int, path: Path) -> ServingError | None:
        """Loads a version and warms it up; returns why that was not possible."""
        servable = None
        try:
            servable = Servable(name, version, path, self._metrics, self._scheduler)
            self._metrics.count(":tensorflow:cc:saved_model:load_attempt_count", str(path), "success")
            warmed = warm_up(servable, self._metrics)
        except Exception as error:
            # Any error concerns this version alone: the others continue to be served.
            if servable is None:
                self._metrics.count(":tensorflow:cc:saved_model:load_attempt_count", str(path), "fail")
            else:
                servable.close()
            failure = from_exception(error)
            self._report("load-failed", f"{name} {version}: {failure.code}: {failure.message[:500]}")
            return failure
        with self._lock:
            self._loaded[name, version] = servable
            self._states[name][version] = VersionState(AVAILABLE)
        self._report("available", f"{name} {version} is available ({warmed} warm-up requests)")
        return None

    def _unload(self, name: str, wanted: set[int]) -> None:
        with self._lock:
            unwanted = [number for model, number in self._loaded if model == name and number not in wanted]
            for version in unwanted:
                self._retired.append(self._loaded.pop((name, version)))
                self._states[name][version] = VersionState(UNLOADING)
        for version in unwanted:
            self._report("unloading", f"{name} {version} is not wanted any more")
        self._close_retired()

    def _close_retired(self) -> None:
        """Closes the retired versions that are not in use; the others wait for the next poll."""
        for servable in [servable for servable in self._retired if not servable.in_use]:
            self._retired.remove(servable)
            servable.close()
            with self._lock:
                if (servable.name, servable.version) not in self._loaded:
                    self._states[servable.name][servable.version] = VersionState(END)

    def _set(self, name: str, version: int, state: VersionState) -> None:
        with self._lock:
            self._states.setdefault(name, {})[version] = state


def numbered(base_path: Path) -> dict[int, Path]:
    """The versions under a base path: every child whose whole name is an int64, a folder or not, complete or not.

    Raises:
      OSError: if the base path cannot be listed.
    """
    versions = {}
    for path in sorted(base_path.iterdir()):
        if re.fullmatch(r"[+-]?\d+", path.name, re.ASCII) and -(2**63) <= int(path.name) < 2**63:
            versions[int(path.name)] = path
    return versions
