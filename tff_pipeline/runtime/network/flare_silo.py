"""A silo's end of a link over FLARE's network: answers what the coordinator's end (`flare.py`) asks."""

import dataclasses
import threading
from collections.abc import Callable
from typing import Self

from tff_pipeline.runtime.network.cell import COORDINATOR, Cell, Handler, Head, value
from tff_pipeline.runtime.network.link import (
    FAILED,
    LARGEST_BYTES,
    LINK_VERSION,
    PART_BYTES,
    Refusal,
    Report,
    SiloService,
    respond,
)
from tff_pipeline.runtime.network.site import Credentials


class FlareSilo:
    """A silo's end: keeps a connection to the coordinator, again and again if need be, and answers.

    Args:
      name: the silo's, as in its certificate.
      coordinator: host and port to dial.
      coordinator_name: the common name of the coordinator's certificate.
      credentials: the silo's.
      service: answers. Requests reach it one at a time; of those that come meanwhile, only the newest.
      report: what the silo logs.
    """

    def __init__(
        self,
        name: str,
        coordinator: str,
        coordinator_name: str,
        credentials: Credentials,
        service: SiloService,
        *,
        report: Report,
    ):
        self._service, self._report = service, report
        self._busy, self._newest = threading.Lock(), ""
        self._request, self._answer = _Parts(""), _Parts("")
        self._parts = threading.Lock()
        self._cell = Cell(
            name,
            coordinator,
            credentials,
            lambda sender: sender == COORDINATOR,
            report=report,
            coordinator=coordinator_name,
        )
        for topic, answer in (
            ("hello", self._hello),
            ("part", self._part),
            ("stage", self._stage),
            ("fetch", self._fetch),
        ):
            self._cell.on(topic, self._replying(answer))
        self._cell.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._cell.close()

    def _replying(self, answer: "Callable[[Head, bytes | memoryview], _Reply]") -> Handler:
        def replying(sender: str, head: Head, content: bytes | memoryview) -> None:
            try:
                said, answered = answer(head, content)
            except Exception as error:  # its text may be the silo's
                self._report("failed", kind=type(error).__name__)
                said, answered = {"refusal": FAILED}, b""
            self._cell.send(COORDINATOR, "reply", {**said, "call": value(head, "call", str) or ""}, answered)

        return replying

    def _hello(self, head: Head, _: bytes | memoryview) -> "_Reply":
        version = value(head, "version", int)
        if version != LINK_VERSION:
            self._report("another version", theirs=version, ours=LINK_VERSION)
        return {"version": LINK_VERSION}, b""

    def _part(self, head: Head, part: bytes | memoryview) -> "_Reply":
        ticket, length, offset = (
            value(head, "ticket", str),
            *(value(head, key, int) for key in ("length", "offset")),
        )
        if ticket is None or length is None or offset is None or not 0 <= offset <= length - len(part) <= LARGEST_BYTES:
            return {"refusal": "a part of a request has no place in it"}, b""
        with self._parts:
            if self._request.ticket != ticket:
                self._request = _Parts(ticket, memoryview(bytearray(length)))
            if len(self._request.content) == length:
                self._request.content[offset : offset + len(part)] = part
                self._request.passed += len(part)
        return {}, b""

    def _stage(self, head: Head, content: bytes | memoryview) -> "_Reply":
        stage, round_number = value(head, "stage", str), value(head, "round", int)
        version, ticket = value(head, "version", int), value(head, "ticket", str)
        if version != LINK_VERSION:
            reason = f"the coordinator speaks version {version} of the link, this silo version {LINK_VERSION}; expected the same. Upgrade the older one."
            return {"refusal": reason}, b""
        if stage is None or round_number is None or ticket is None:
            return {"refusal": "the request names no stage and round"}, b""
        request = self._whole(ticket, value(head, "length", int), content)
        if request is None:
            return {"refusal": "parts of the request are missing"}, b""
        self._newest = ticket
        with self._busy:
            if ticket != self._newest:  # it was given up meanwhile
                return {"refusal": "a newer request has come"}, b""
            self._answer = _Parts("")
            outcome = respond(self._service, stage, round_number, request, self._report)
            if isinstance(outcome, Refusal):
                return {"refusal": outcome.reason}, b""
            if len(outcome.content) <= PART_BYTES:
                return {}, outcome.content
            self._answer = _Parts(ticket, memoryview(outcome.content))
            return {"waiting": len(outcome.content)}, b""

    def _whole(self, ticket: str, length: int | None, content: bytes | memoryview) -> bytes | memoryview | None:
        """The request's content, which came with it or before it, in parts; None if some are missing."""
        if length == len(content):
            return content
        with self._parts:
            request, self._request = self._request, _Parts("")
        whole = request.ticket == ticket and request.passed == len(request.content) == length
        return request.content.toreadonly() if whole else None

    def _fetch(self, head: Head, _: bytes | memoryview) -> "_Reply":
        offset = value(head, "offset", int) or 0
        with self._parts:
            answer = self._answer
            if answer.ticket != value(head, "ticket", str) or not 0 <= offset < len(answer.content):
                return {}, b""
            part = answer.content[offset : offset + PART_BYTES]
            answer.passed += len(part)
            if answer.passed >= len(answer.content):
                self._answer = _Parts("")
        return {}, part


_Reply = tuple[Head, bytes | memoryview]


@dataclasses.dataclass
class _Parts:
    """A large message at the silo, and how many of its bytes have come, or gone."""

    ticket: str
    content: memoryview = dataclasses.field(default_factory=lambda: memoryview(bytearray()))
    passed: int = 0
