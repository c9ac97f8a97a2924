"""A silo's side of the rounds of a run, behind a link: it answers one stage after the other, and believes the server little.

A round is `runtime.silo.Silo`'s: charged, drawn, worked on, recorded, noised and masked in that order, with secrets that only
the silo holds. What is added here is the protocol around it (`secagg.client`), and what a process of its own has to remember:
an attempt at a time, and in files what it has charged and answered. A silo that was restarted has forgotten the attempt,
refuses the rest of it, and takes part in the next one with new keys.

This module and `server_rounds` do not import each other.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tff_pipeline.errors import Refused
from tff_pipeline.privacy.round import Round
from tff_pipeline.runtime.network import requests
from tff_pipeline.secagg.client import Client
from tff_pipeline.secagg.journal import FileJournal

if TYPE_CHECKING:
    from tff_pipeline.runtime.silo import Contribution


@dataclasses.dataclass(frozen=True)
class Membership:
    """A silo's part in a consortium, from its own configuration.

    Attributes:
      name: the silo's.
      identity_key: its Ed25519 key, which never leaves it.
      roster: the Ed25519 public key of every silo, by name.
      threshold: the number of silos without which nothing is unmasked.
      colluding: how many of the other silos may side with a server that breaks the protocol.
    """

    name: str
    identity_key: Ed25519PrivateKey
    roster: Mapping[str, bytes]
    threshold: int
    colluding: int = 0


class SiloWork(Protocol):
    """What a silo does in a round: charge, and work; see `training_work`."""

    @property
    def noised(self) -> Sequence[int]:
        """Indices of the slots that must not leave without noise."""
        ...

    def begin(self, at: Round, known: requests.Position | None) -> requests.Position:
        """Notes that the round is about to be charged, and gives the position of the silo's ledger."""
        ...

    def charge(self, at: Round, counterpart: requests.Position, members: Sequence[str]) -> None:
        """Charges the round to the silo, on disk before it returns."""
        ...

    def contribution(self, broadcast: Sequence[np.ndarray], at: Round) -> "Contribution":
        """Works on the broadcast."""
        ...


class SiloRounds:
    """Answers the stages of rounds.

    Args:
      membership: the silo's part in the consortium.
      session: names the run to the secure sum.
      work: what is done in a round.
      folder: for the journals of rounds, one a draw; it is made if it is not there.
    """

    def __init__(self, membership: Membership, session: str, work: SiloWork, folder: Path):
        self._membership, self._session, self._work, self._folder = membership, session, work, folder
        self._attempt: _Attempt | None = None
        self._seen: set[bytes] = set()  # public keys of earlier attempts
        self._answers: dict[str, Callable[[int, bytes | memoryview], bytes]] = {
            "advertise": self._advertise,
            "share": self._share,
            "mask": self._mask,
            "consistency": lambda number, request: self._current(number, "consistency").client.consistency(
                bytes(request)
            ),
            "unmask": self._unmask,
        }

    def answer(self, stage: str, round_number: int, request: bytes | memoryview) -> bytes:
        """The silo's answer in a stage.

        Raises:
          Refused: if the request is of another attempt, or of a stage that there is not.
          ProtocolError, PrivacyError: if it must not be answered. Nothing leaves then.
        """
        if stage not in self._answers:
            raise Refused(f"there is no stage {stage[:40]!r} in a round; expected one of {', '.join(self._answers)}.")
        return self._answers[stage](round_number, request)

    def close(self) -> None:
        """Gives up the attempt that is under way."""
        if self._attempt is not None:
            self._attempt.close()
            self._attempt = None

    def _advertise(self, number: int, request: bytes | memoryview) -> bytes:
        begin = requests.decode(request, requests.Begin, where=self._where(number))
        at = begin.at.round
        if at.number != number:
            raise Refused(
                f"the request is of round {at.number + 1} and came as round {number + 1}; expected one number."
            )
        current = self._attempt
        if current is not None and current.at == at:
            if begin.at.attempt <= current.number:
                raise Refused(
                    f"attempt {begin.at.attempt} at round {number + 1} was asked for, and this silo is in attempt {current.number}; expected a later one. The request came twice or late; attempt {current.number} goes on."
                )
            self.close()  # both have one journal
        position = self._work.begin(at, begin.known)
        attempt = self._began(at, begin.at.attempt)
        try:
            message = attempt.client.advertise()
        except BaseException:
            attempt.close()
            raise
        self.close()
        self._attempt = attempt
        return requests.encode(requests.Begun(position=position, message=message))

    def _began(self, at: Round, attempt: int) -> "_Attempt":
        own = self._membership
        # A session a draw: a round that starts from something else is another release, with other noise.
        session = f"{self._session}/{at.name}"
        self._folder.mkdir(parents=True, exist_ok=True)
        journal = FileJournal(self._folder / f"{at.name}.jsonl", session)
        try:
            client = Client(
                name=own.name,
                identity_key=own.identity_key,
                roster=own.roster,
                threshold=own.threshold,
                session=session,
                round_number=at.number,
                attempt=attempt,
                noised=self._work.noised,
                journal=journal,
                seen=self._seen,
                colluding=own.colluding,
            )
        except BaseException:
            journal.close()
            raise
        return _Attempt(at, attempt, client, journal)

    def _share(self, number: int, request: bytes | memoryview) -> bytes:
        current = self._current(number, "share")
        charge = requests.decode(request, requests.Charge, where=self._where(number))
        self._require_members(charge.members)
        # First whether the request is of this attempt: a late one of another draw names another line of the population.
        answer = current.client.share_keys(charge.message)
        try:
            self._work.charge(current.at, charge.counterpart, charge.members)
        except BaseException:
            self.close()
            raise
        return answer

    def _mask(self, number: int, request: bytes | memoryview) -> bytes:
        current = self._current(number, "mask")
        work = requests.decode(request, requests.Work, where=self._where(number))
        broadcast = requests.to_arrays(work.broadcast, where=self._where(number))
        own = self._work.contribution(broadcast, current.at)
        return current.client.mask(work.message, own.sums, own.noise)

    def _unmask(self, number: int, request: bytes | memoryview) -> bytes:
        answer = self._current(number, "unmask").client.unmask(bytes(request))
        self.close()
        return answer

    def _current(self, number: int, stage: str) -> "_Attempt":
        if self._attempt is None or self._attempt.at.number != number:
            raise Refused(
                f"stage {stage!r} of round {number + 1} was asked for, and this silo is in no attempt at it; expected stage 'advertise' first. It may have been restarted: it takes part in the next attempt."
            )
        return self._attempt

    def _require_members(self, members: Sequence[str]) -> None:
        unknown = set(members) - set(self._membership.roster)
        if unknown or self._membership.name not in members:
            raise Refused(
                f"the round is charged to {len(members)} silos, of which {len(unknown)} are not in this silo's roster, or this silo is not among them; expected silos of the roster, this one among them."
            )

    def _where(self, number: int) -> str:
        return f"silo {self._membership.name}: round {number + 1}: request of the coordinator"


@dataclasses.dataclass(frozen=True)
class _Attempt:
    """The attempt that is under way, and the journal that its client writes."""

    at: Round
    number: int
    client: Client
    journal: FileJournal

    def close(self) -> None:
        self.journal.close()
