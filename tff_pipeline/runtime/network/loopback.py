"""A link within one process, for tests: it can lose, delay, repeat, reorder, truncate and forge messages, and kill silos.

Nothing waits: a message that is lost or delayed is late at once. All that goes wrong follows from a seed.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import numpy as np

from tff_pipeline.runtime.network.link import Answer, Lost, Outcome, Report, SiloService, respond


@dataclasses.dataclass(frozen=True)
class Faults:
    """What goes wrong, each with its probability for every message, in either direction.

    Attributes:
      lose: the message never arrives.
      delay: a request arrives only before the next one to the same silo, whenever that is; nobody takes its answer.
      repeat: a request arrives twice; one of the two answers is taken.
      truncate: the end of the message is missing.
      forge: a bit of the message is changed, or it is an earlier one to (or from) whichever silo.
      reorder: silos are asked, and answer, in any order; otherwise in that of the requests.
    """

    lose: float = 0.0
    delay: float = 0.0
    repeat: float = 0.0
    truncate: float = 0.0
    forge: float = 0.0
    reorder: bool = False


@dataclasses.dataclass(frozen=True)
class Kill:
    """A silo dies in a stage of a round: "before" it has the request, or "after" it has made its answer, which is lost."""

    silo: str
    stage: str
    round_number: int
    when: Literal["before", "after"] = "before"


class LoopbackLink:
    """Asks services in this process.

    Args:
      makers: by silo's name, what makes its service; it is called again when the silo is restarted.
      faults: what goes wrong.
      kills: who dies, and when.
      seed: what all faults follow from.
      report: what a silo would log.
    """

    def __init__(
        self,
        makers: Mapping[str, Callable[[], SiloService]],
        *,
        faults: Faults | None = None,
        kills: tuple[Kill, ...] = (),
        seed: int = 0,
        report: Report = lambda event, **fields: None,
    ):
        self._makers = dict(makers)
        self._services = {name: make() for name, make in makers.items()}
        self._faults = faults or Faults()
        self._kills = set(kills)
        self._random = np.random.default_rng(seed)
        self._report = report
        self._delayed: dict[str, list[tuple[str, int, bytes]]] = {}
        self._late: set[str] = set()
        self._seen: list[bytes] = []

    def silos(self) -> set[str]:
        """The silos that live and are not slow."""
        return set(self._services) - self._late

    def ask(
        self, stage: str, round_number: int, requests: Mapping[str, bytes], deadline_s: float
    ) -> Iterator[tuple[str, Outcome]]:
        """As `Link.ask`. A silo works when its outcome is taken, unless requests are delayed."""
        names = list(requests)
        if self._faults.reorder:
            self._random.shuffle(names)
        return self._outcomes(stage, round_number, {name: requests[name] for name in names})

    def kill(self, name: str) -> None:
        """The silo is gone, with all that it held in memory."""
        self._services.pop(name, None)

    def restart(self, name: str) -> None:
        """The silo is there again, as a new process would be."""
        self._services[name] = self._makers[name]()

    def slow(self, name: str, slow: bool = True) -> None:
        """The silo gets requests and answers too late, until it is told otherwise."""
        (self._late.add if slow else self._late.discard)(name)

    def close(self) -> None:
        """Forgets the silos."""
        self._services.clear()

    def __enter__(self) -> "LoopbackLink":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _outcomes(self, stage: str, round_number: int, requests: Mapping[str, bytes]) -> Iterator[tuple[str, Outcome]]:
        for name, request in requests.items():
            yield name, self._outcome(name, stage, round_number, request)

    def _outcome(self, name: str, stage: str, round_number: int, request: bytes) -> Outcome:
        if name not in self._services:
            return Lost("not connected")
        if self._dies(name, stage, round_number, "before"):
            return Lost("closed")
        for earlier in self._delayed.pop(name, []):
            self._respond(name, *earlier)
        if self._happens(self._faults.lose):
            return Lost("late")
        if self._happens(self._faults.delay):
            self._delayed.setdefault(name, []).append((stage, round_number, request))
            return Lost("late")
        outcome = self._respond(name, stage, round_number, self._damaged(request))
        if self._happens(self._faults.repeat):
            second = self._respond(name, stage, round_number, request)
            outcome = second if self._happens(0.5) else outcome
        if self._dies(name, stage, round_number, "after"):
            return Lost("closed")
        if name in self._late or self._happens(self._faults.lose):
            return Lost("late")
        return Answer(self._damaged(bytes(outcome.content))) if isinstance(outcome, Answer) else outcome

    def _respond(self, name: str, stage: str, round_number: int, request: bytes) -> Outcome:
        return respond(self._services[name], stage, round_number, request, self._report)

    def _dies(self, name: str, stage: str, round_number: int, when: Literal["before", "after"]) -> bool:
        kill = Kill(name, stage, round_number, when)
        if kill not in self._kills:
            return False
        self._kills.discard(kill)
        self.kill(name)
        return True

    def _happens(self, probability: float) -> bool:
        return bool(self._random.random() < probability)

    def _damaged(self, message: bytes) -> bytes:
        """`message`, or what becomes of it on its way."""
        genuine = message
        if self._happens(self._faults.truncate) and message:
            message = message[: int(self._random.integers(len(message)))]
        elif self._happens(self._faults.forge):
            if self._seen and self._happens(0.5):
                message = self._seen[int(self._random.integers(len(self._seen)))]
            elif message:
                position = int(self._random.integers(len(message)))
                changed = bytearray(message)
                changed[position] ^= 1 << int(self._random.integers(8))
                message = bytes(changed)
        if self._faults.forge:
            self._seen.append(genuine)
        return message
