"""A link over NVIDIA FLARE's network: the coordinator's end. A silo's is `flare_silo.py`; the network itself is `cell.py`.

Messages are sent and forgotten; which answers which is decided here. What is larger than a part travels in parts, of which a
few are under way at a time: FLARE's own streams keep what they received for a minute, and stalled under load. A large answer
stays at the silo, which says only how long it is, until the coordinator fetches it.
"""

import dataclasses
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Self, TypeVar

from tff_pipeline.runtime.network.cell import COORDINATOR, Cell, Head, value
from tff_pipeline.runtime.network.link import (
    FAILED,
    LARGEST_BYTES,
    LINK_VERSION,
    PART_BYTES,
    Answer,
    Lost,
    Outcome,
    Refusal,
    Report,
    public,
)
from tff_pipeline.runtime.network.site import Credentials

_PARTS_UNDER_WAY = 4
_HELLO_S = 1.5
_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True)
class _Reply:
    """What a silo sent back."""

    head: Head
    content: bytes | memoryview


class FlareLink:
    """The coordinator's end. Implements `Link`.

    Args:
      port: to listen on, at every address of this machine, or at loopback only.
      credentials: the coordinator's.
      admitted: whether a silo of this name may take part now; asked for every message.
      report: told what happens: a silo connects, is lost, speaks another version, sends what is not let through.
      largest_bytes: of an answer; a silo that says it has a larger one counts as refusing.
    """

    def __init__(
        self,
        port: int,
        credentials: Credentials,
        admitted: Callable[[str], bool],
        *,
        report: Report,
        loopback_only: bool = False,
        largest_bytes: int = LARGEST_BYTES,
    ):
        self._admitted, self._report, self._largest_bytes = admitted, report, largest_bytes
        self._calls = _Calls()
        self._cell = Cell(
            COORDINATOR,
            f"{'127.0.0.1' if loopback_only else '0'}:{port}",
            credentials,
            admitted,
            report=report,
            lost=self._calls.lose,
        )
        self._cell.on("reply", self._calls.reply)
        self._cell.start()

    def silos(self) -> set[str]:
        """As `Link.silos`."""
        names = [name for name in self._cell.connected() if self._admitted(name)]
        if not names:
            return set()
        with ThreadPoolExecutor(len(names)) as threads:
            return {name for name, well in zip(names, threads.map(self._hello, names), strict=True) if well}

    def ask(
        self, stage: str, round_number: int, requests: Mapping[str, bytes], deadline_s: float
    ) -> Iterator[tuple[str, Outcome]]:
        """As `Link.ask`."""
        deadline = time.monotonic() + deadline_s
        outcomes: queue.SimpleQueue[tuple[str, Outcome | _Waiting]] = queue.SimpleQueue()
        for name, content in requests.items():
            head = {"stage": stage, "round": round_number, "version": LINK_VERSION, "ticket": secrets.token_hex(8)}

            def request(name: str = name, content: bytes = content, head: dict[str, str | int] = head) -> None:
                outcome: Outcome | _Waiting = Lost("closed")
                try:
                    outcome = self._request(name, head, content, deadline)
                finally:  # whoever takes the outcomes waits for as many as there were requests
                    outcomes.put((name, outcome))

            threading.Thread(target=request, name=f"ask {name}", daemon=True).start()
        return self._outcomes(outcomes, len(requests), deadline_s)

    def close(self) -> None:
        """Closes all connections; the port is free afterwards."""
        self._cell.close()
        self._calls.lose(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _outcomes(
        self, outcomes: "queue.SimpleQueue[tuple[str, Outcome | _Waiting]]", silos: int, deadline_s: float
    ) -> Iterator[tuple[str, Outcome]]:
        for _ in range(silos):
            name, outcome = outcomes.get()
            if isinstance(outcome, _Waiting):
                outcome = self._fetch(name, outcome, time.monotonic() + deadline_s)
            yield name, outcome

    def _hello(self, name: str) -> bool:
        reply = self._call(name, "hello", {"version": LINK_VERSION}, b"", time.monotonic() + _HELLO_S)
        if isinstance(reply, Lost):
            return False
        version = value(reply.head, "version", int)
        if version != LINK_VERSION:
            self._report("another version", silo=name, theirs=version, ours=LINK_VERSION)
        return version == LINK_VERSION

    def _request(self, name: str, head: Head, content: bytes, deadline: float) -> "Outcome | _Waiting":
        ticket, length = str(head["ticket"]), len(content)
        if length > PART_BYTES:
            view = memoryview(content)

            def send(offset: int) -> _Reply | Lost:
                part = {"ticket": ticket, "offset": offset, "length": length}
                return self._call(name, "part", part, view[offset : offset + PART_BYTES], deadline)

            for reply in _in_parts(send, length):
                if isinstance(reply, Lost):
                    return reply
            content = b""
        reply = self._call(name, "stage", {**head, "length": length}, content, deadline)
        if isinstance(reply, Lost):
            return reply
        if (reason := value(reply.head, "refusal", str)) is not None:
            return Refusal(public(reason))
        waiting = value(reply.head, "waiting", int)
        return Answer(reply.content) if waiting is None else _Waiting(ticket, waiting)

    def _fetch(self, name: str, waiting: "_Waiting", deadline: float) -> Outcome:
        if not 0 < waiting.length <= self._largest_bytes:
            return Refusal(f"its answer would be of {waiting.length} bytes; expected at most {self._largest_bytes}")
        answer = memoryview(bytearray(waiting.length))

        def fetch(offset: int) -> Lost | bool:
            reply = self._call(name, "fetch", {"ticket": waiting.ticket, "offset": offset}, b"", deadline)
            if isinstance(reply, Lost):
                return reply
            part, place = reply.content, answer[offset : offset + PART_BYTES]
            if len(part) != len(place):
                return False
            place[:] = part
            return True

        for fetched in _in_parts(fetch, waiting.length):
            if fetched is not True:
                return fetched or Refusal(FAILED)
        return Answer(answer.toreadonly())

    def _call(self, name: str, topic: str, head: Head, content: bytes | memoryview, deadline: float) -> _Reply | Lost:
        """The silo's reply to one message; lost when its connection closes, or at the deadline."""
        with _Call(self._calls, name) as call:
            if not self._admitted(name) or name not in self._cell.connected():
                return Lost("not connected")
            if not self._cell.send(name, topic, {**head, "call": call.id}, content):
                return Lost("closed")
            try:
                return call.box.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return Lost("late")


@dataclasses.dataclass(frozen=True)
class _Waiting:
    """An answer that is still at its silo."""

    ticket: str
    length: int


class _Calls:
    """The coordinator's messages that were not answered yet."""

    def __init__(self) -> None:
        self.open: dict[str, _Call] = {}

    def reply(self, sender: str, head: Head, content: bytes | memoryview) -> None:
        """Gives a reply to whoever waits for it, if it comes from whom it has to."""
        call = self.open.get(value(head, "call", str) or "")
        if call is not None and call.silo == sender:
            call.box.put(_Reply(head, content))

    def lose(self, silo: str | None) -> None:
        """Nobody waits for this silo any longer; for None, nobody for anybody."""
        for call in list(self.open.values()):
            if silo in (None, call.silo):
                call.box.put(Lost("closed"))


class _Call:
    """One of them, while somebody waits."""

    def __init__(self, calls: _Calls, silo: str):
        self._calls, self.silo, self.id = calls, silo, secrets.token_hex(8)
        self.box: queue.SimpleQueue[_Reply | Lost] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        self._calls.open[self.id] = self
        return self

    def __exit__(self, *_: object) -> None:
        del self._calls.open[self.id]


def _in_parts(transfer: Callable[[int], _Result], length: int) -> Iterator[_Result]:
    """Calls `transfer` with the offset of every part, a few at a time; whoever stops taking results ends it."""
    threads = ThreadPoolExecutor(_PARTS_UNDER_WAY)
    try:
        yield from threads.map(transfer, range(0, length, PART_BYTES))
    finally:
        threads.shutdown(cancel_futures=True)
