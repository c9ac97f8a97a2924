"""The servers that follow a models.config: what they have loaded, and waiting until they have followed a step."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from serving.client import AVAILABLE, RestClient, ServerError
from tff_pipeline.errors import PipelineError

_POLL_S, _ASK_S = 0.2, 5.0
_FORGET_S = 10.0  # how long a server may take to read the file again; those started as the file's header says take 5


@dataclasses.dataclass(frozen=True)
class ServerState:
    """A server's answer about one model: the states of its versions, and why some could not be loaded."""

    states: Mapping[int, str]
    failures: Mapping[int, str]


class Servers:
    """The servers (REST addresses) of one model that follow `file`. Without any, nothing is awaited."""

    def __init__(self, addresses: tuple[str, ...], model: str, *, file: Path, timeout_s: float):
        self.addresses, self._model, self._file, self._timeout_s = addresses, model, file, timeout_s

    def states(self) -> list[ServerState]:
        """What each server answers; raises ServerError if one cannot be asked."""
        answers = []
        for address in self.addresses:
            with self._client(address) as client:
                answers.append(ServerState(client.states(), client.failures()))
        return answers

    def loaded(self) -> set[int]:
        """The versions that any server has available now; raises ServerError if one cannot be asked."""
        return {version for server in self.states() for version, state in server.states.items() if state == AVAILABLE}

    def failures(self, version: int) -> dict[str, str]:
        """By server: why it could not load the version; empty if it could, was not asked to, or cannot be asked."""
        return {address: self._failure(address, version) for address in self.addresses}

    def has_failed(self, version: int) -> bool:
        """Whether a server says that it could not load the version: an earlier attempt's, if no file names it now."""
        return any(self._failure(address, version) for address in self.addresses)

    def _failure(self, address: str, version: int) -> str:
        with self._client(address) as client:
            with contextlib.suppress(ServerError):  # the steps that follow report it
                return client.failures().get(version, "")
        return ""

    def await_forgotten(self, version: int) -> None:
        """A server loads a version that has failed again only after it has followed a file that did not name it."""
        deadline = time.monotonic() + min(_FORGET_S, self._timeout_s)
        while self.has_failed(version) and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def await_loaded(self, version: int, earlier_failures: Mapping[str, str]) -> None:
        """Waits until every server has the version available.

        Raises:
          PipelineError: if a server does not, in time; at once if it reports a failure that is not an earlier one, that
            is not among those that the servers reported before the step.
        """
        earlier = dict(earlier_failures)

        def ask(client: RestClient, address: str) -> str:
            failure, state = client.failures().get(version, ""), client.states().get(version, "unknown")
            if not failure:
                earlier[address] = ""
            elif not earlier[address]:
                raise PipelineError(self._not_followed(address, f"version {version} to be {AVAILABLE}", state, failure))
            return state

        self._await(f"version {version} to be {AVAILABLE}", ask, AVAILABLE, version=version)

    def await_labels(self, labels: Mapping[str, int]) -> None:
        """Waits until every server answers for each label with its version; raises PipelineError if one does not."""
        for label, version in labels.items():
            self._await(
                f"label {label} at version {version}",
                lambda client, _: client.answering_version(),
                version,
                label=label,
            )

    def _await(self, condition: str, ask: Callable[[RestClient, str], Any], expected: Any, **target: Any) -> None:
        """Asks every server until the answer is as expected."""
        deadline = time.monotonic() + self._timeout_s
        for address in self.addresses:
            while True:
                left_s = max(deadline - time.monotonic(), _POLL_S)
                with RestClient(address, self._model, timeout_s=min(_ASK_S, left_s), **target) as client:
                    try:
                        answer = ask(client, address)
                    except ServerError as error:
                        answer = f"{error.code}: {error.message}"
                if answer == expected:
                    break
                if time.monotonic() > deadline:
                    raise PipelineError(self._not_followed(address, condition, answer))
                time.sleep(_POLL_S)

    def _not_followed(self, address: str, condition: str, answer: Any, reason: str = "") -> str:
        because = f" ({reason})" if reason else ""
        return (
            f"{address}: waited for {condition} of {self._model}; it says {answer!r}{because}. {self._file} is as it was "
            "before. Look at the server's log, and run the same command again."
        )

    def _client(self, address: str) -> RestClient:
        return RestClient(address, self._model, timeout_s=min(_ASK_S, self._timeout_s))
