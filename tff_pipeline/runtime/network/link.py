"""How the coordinator asks silos, and what a silo's side of that is. The protocol above knows nothing else of a network.

The coordinator asks several silos at once, in a named stage of a numbered round, and takes their answers one after the
other, as they come: it adds a masked vector to the sum and drops it before it takes the next. Contents are bytes; a link
neither reads nor checks them. What a link promises, `tests/contracts/test_links.py` says for all of them.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, Protocol

from tff_pipeline.errors import Refused

# Of what a link sends beside the contents. Both ends name theirs, and refuse another.
LINK_VERSION = 1
PART_BYTES = 2**20  # what is larger travels in parts
LARGEST_BYTES = 2**31
FAILED = "the silo could not answer; its own log says why"
_LONGEST_REASON = 400


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a silo answered, within the time that it had."""

    content: bytes | memoryview


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A silo refused. `reason` is the part that it makes public; the rest is in its own log."""

    reason: str


@dataclasses.dataclass(frozen=True)
class Lost:
    """No answer came: the silo was not connected, its connection was closed, or it was too late."""

    how: Literal["not connected", "closed", "late"]


Outcome = Answer | Refusal | Lost


class Link(Protocol):
    """The coordinator's side. Used in a `with` block by whoever makes it; nothing it starts outlives the block."""

    def silos(self) -> set[str]:
        """The names of the silos that are connected and answer now."""
        ...

    def ask(
        self, stage: str, round_number: int, requests: Mapping[str, bytes], deadline_s: float
    ) -> Iterator[tuple[str, Outcome]]:
        """Asks the silos that `requests` names, at once, and gives the outcome of each of them exactly once, as it comes.

        Requests leave when this is called. A silo is lost as soon as its connection closes. An answer is in time if the silo has
        it ready within `deadline_s` of the call. Large answers stay with their silos until the iterator comes to them, so
        that the coordinator holds one at a time; each may then take `deadline_s` to arrive. Whoever closes the iterator
        gives up the rest.
        """
        ...


class SiloService(Protocol):
    """The silo's side, as a link calls it, for one request at a time."""

    def answer(self, stage: str, round_number: int, request: bytes | memoryview) -> bytes:
        """The answer.

        Raises:
          Refused: the coordinator is told the public reason. Of any other exception it learns only that there was one.
        """
        ...


# Called at the silo for what it does not tell: the event, and its fields.
Report = Callable[..., None]


def respond(
    service: SiloService, stage: str, round_number: int, request: bytes | memoryview, report: Report
) -> Answer | Refusal:
    """What the silo sends back: the answer or a public reason. The private one, and what failed, are only reported here."""
    try:
        return Answer(service.answer(stage, round_number, request))
    except Refused as refused:
        report("refused", stage=stage, round=round_number, reason=refused.reason, private=refused.private)
        return Refusal(public(refused.reason))
    except Exception as error:  # whatever it is: its text may be the silo's
        report("failed", stage=stage, round=round_number, kind=type(error).__name__, at=_location(error))
        return Refusal(FAILED)


def public(reason: str) -> str:
    """`reason` as one line of printable characters and of bounded length: who shows it need not trust its sender."""
    line = " ".join("".join(character if character.isprintable() else " " for character in reason).split())
    return line if len(line) <= _LONGEST_REASON else line[: _LONGEST_REASON - 1] + "…"


def _location(error: Exception) -> str:
    """The file and line that raised, which hold nothing of the silo's text."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else "unknown"
