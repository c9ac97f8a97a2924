"""The coordinator's side of the rounds of a run over a link: it asks the silos stage by stage, and has the sum in the end.

    advertise     every silo that is connected notes the round, says where its ledger ends, and sends fresh keys
                  the population is charged
    share         the silos charge their ledgers, and deal shares of their keys
    mask          they are sent what the server broadcasts; each answers with its masked sum, which is added and dropped
    consistency   they sign the list of those whose sums came
    unmask        they reveal shares, of which the masks that are left follow

A silo that does not answer a stage in time is out of the attempt; the others go on, if they are as many as the threshold. An
attempt that fails before the list of survivors was told to anybody has shown nothing, and is repeated with the same draw, to
the silos that it was charged to. After that the sum of one list may have been seen: the round is then drawn and charged anew,
so that no noise is ever under two sums.

This module and `silo_rounds` do not import each other.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from tff_pipeline.artifacts import write_atomic
from tff_pipeline.config import Patience
from tff_pipeline.errors import ProtocolError, RoundLost, TrainingError
from tff_pipeline.learning.process import Compiled
from tff_pipeline.learning.state import ServerState
from tff_pipeline.privacy.party_charges import PopulationAccount
from tff_pipeline.privacy.round import Round
from tff_pipeline.runtime.base import OnClient, Report, RoundResult, ServerDraws
from tff_pipeline.runtime.graphs import rings
from tff_pipeline.runtime.network import requests
from tff_pipeline.runtime.network.link import Answer, Link, Refusal
from tff_pipeline.runtime.server import Server
from tff_pipeline.secagg.server import Server as SecureSum
from tff_pipeline.secagg.server import Slot, Sums

# Told what happens: an event, a sentence, and fields.
Tell = Callable[..., None]
# Stages from which on the silos know a list of survivors.
_MAY_HAVE_SHOWN = ("consistency", "unmask")
_POLL_S = 0.5


class SecureRounds:
    """Sums over silos, one secure sum a round.

    Args:
      link: to the silos.
      roster: the Ed25519 public key of every silo, by name.
      threshold: the number of silos without which nothing is unmasked.
      session: names the run to the secure sum.
      charges: the population's account.
      folder: of the run, for the number of the last attempt.
      patience: how long to wait.
      tell: told what goes wrong.
      rejoin: brings a silo that refused or was lost into the run again, as after its restart; says whether it is in it.
    """

    def __init__(
        self,
        link: Link,
        roster: Mapping[str, bytes],
        threshold: int,
        *,
        session: str,
        charges: PopulationAccount,
        folder: Path,
        patience: Patience,
        tell: Tell,
        rejoin: Callable[[str], bool] = lambda silo: True,
    ):
        self._link, self._roster, self._threshold, self._session = link, dict(roster), threshold, session
        self._charges, self._patience, self._tell = charges, patience, tell
        self._attempts = folder / "attempts.json"
        self._gone: dict[str, str] = {}  # why a silo is out of the attempt, by its name
        self._rejoin, self._absent = rejoin, set[str]()  # silos that have to be brought back
        self.bytes_down = self.bytes_up = 0  # of the newest round, to and from the silo with most of them

    def sum(self, at: Round, broadcast: Sequence[np.ndarray], slots: Sequence[Slot]) -> Sums:
        """The sum of what the silos answer to `broadcast`, and whose it is.

        Raises:
          RoundLost: if the silos that are left are too few. Then nothing was unmasked here.
          TrainingError: if too few silos are connected.
        """
        for _ in range(self._patience.attempts):
            asked = self._connected(at)
            attempt = self._next_attempt()
            self._gone.clear()
            try:
                return self._attempt(at, attempt, asked, broadcast, slots)
            except RoundLost as lost:
                self._tell("round", str(lost), round=at.number + 1, attempt=attempt)
                if lost.drawn_anew:
                    raise
        raise TrainingError(
            f"round {at.number + 1}: {self._patience.attempts} attempts ended with fewer than {self._threshold} silos; expected that many to stay. {self._turn()} "
            "The last good state is kept. Start the run again when that is put right: it goes on from here."
        )

    def _attempt(
        self, at: Round, number: int, asked: Sequence[str], broadcast: Sequence[np.ndarray], slots: Sequence[Slot]
    ) -> Sums:
        secure = SecureSum(
            roster=self._roster,
            threshold=self._threshold,
            session=f"{self._session}/{at.name}",
            round_number=at.number,
            attempt=number,
            slots=slots,
        )
        down: dict[str, int] = dict.fromkeys(self._roster, 0)
        up = dict(down)
        positions = self._advertise(secure, at, number, asked, down, up)
        messages = self._finish(secure, at)
        with _on_disk(f"round {at.number + 1}: the population's charge"):
            counterpart = self._charges.charge_population(
                at, {name: {"lines": positions[name].lines, "hash": positions[name].hash} for name in messages}
            )
        line = requests.Position(**counterpart)
        members = self._charges.members(at) or tuple(messages)
        stages: dict[str, Callable[[bytes], bytes]] = {
            "share": lambda message: requests.encode(
                requests.Charge(counterpart=line, members=members, message=message)
            ),
            "mask": self._work(broadcast),
            "consistency": lambda message: message,
            "unmask": lambda message: message,
        }
        for stage, request in stages.items():
            limit = self._patience.work if stage == "mask" else self._patience.stage
            sent = {name: request(message) for name, message in messages.items()}
            for name, answer in self._answers(stage, at, sent, limit, down, up):
                self._take(secure, at, name, answer)
            messages = self._finish(secure, at)
        self.bytes_down, self.bytes_up = max(down.values()), max(up.values())
        return secure.result()

    def _advertise(
        self,
        secure: SecureSum,
        at: Round,
        attempt: int,
        asked: Sequence[str],
        down: dict[str, int],
        up: dict[str, int],
    ) -> dict[str, requests.Position]:
        """The first stage: takes the silos' keys, and gives where their ledgers end."""
        begun = {}
        for name in asked:
            known = self._charges.last_known(name)
            begun[name] = requests.encode(
                requests.Begin(
                    at=requests.Attempt(draw=at.draw, starts=at.starts, attempt=attempt),
                    known=None if known is None else requests.Position(**known),
                )
            )
        positions = {}
        for name, answer in self._answers("advertise", at, begun, self._patience.stage, down, up):
            try:
                said = requests.decode(answer, requests.Begun, where=f"round {at.number + 1}: answer of silo {name}")
            except ProtocolError as error:
                self._out(name, str(error), "silo")
                continue
            if self._take(secure, at, name, said.message):
                positions[name] = said.position
        return positions

    def _work(self, broadcast: Sequence[np.ndarray]) -> Callable[[bytes], bytes]:
        arrays = requests.arrays_of(broadcast)
        return lambda message: requests.encode(requests.Work(broadcast=arrays, message=message))

    def _answers(
        self,
        stage: str,
        at: Round,
        sent: Mapping[str, bytes],
        limit: float,
        down: dict[str, int],
        up: dict[str, int],
    ) -> Iterator[tuple[str, Any]]:
        """What the silos answer, as it comes; who refused or was lost is told."""
        for name, outcome in self._link.ask(stage, at.number, sent, limit):
            down[name] += len(sent[name])
            if isinstance(outcome, Answer):
                up[name] += len(outcome.content)
                yield name, outcome.content
            elif isinstance(outcome, Refusal):
                self._absent.add(name)
                self._out(
                    name, f"silo {name} refused stage {stage} of round {at.number + 1}: {outcome.reason}", "refused"
                )
            else:
                self._absent.add(name)
                how = f"silo {name} did not answer stage {stage} of round {at.number + 1} ({outcome.how})"
                self._out(name, f"{how}; the round goes on without it", "lost")

    def _take(self, secure: SecureSum, at: Round, name: str, answer: Any) -> bool:
        try:
            secure.take(name, answer)
        except ProtocolError as error:
            self._out(name, str(error), "silo")
            return False
        return True

    def _out(self, name: str, why: str, event: str) -> None:
        """Tells that a silo is out of the attempt."""
        self._gone[name] = why
        self._tell(event, why, silo=name)

    def _turn(self) -> str:
        """Whose turn it is after an attempt that was lost."""
        gone = dict.fromkeys(self._roster.keys() - self._link.silos(), "was not connected") | self._gone
        return f"It is the turn of {', '.join(f'silo {name} ({why[:200]})' for name, why in sorted(gone.items()))}."

    def _finish(self, secure: SecureSum, at: Round) -> dict[str, bytes]:
        stage = secure.stage
        try:
            return secure.finish()
        except ProtocolError as error:
            raise RoundLost(
                f"round {at.number + 1}: the attempt ended in stage {stage}. {error} {self._turn()}",
                drawn_anew=stage in _MAY_HAVE_SHOWN,
            ) from None

    def _connected(self, at: Round) -> list[str]:
        """The silos to ask, once they are enough: those that are connected, of those that the round was charged to."""
        members = self._charges.members(at)
        end, said = time.monotonic() + self._patience.silos, False
        while True:
            connected = {name for name in self._link.silos() & self._roster.keys() if self._in(name)}
            asked = connected if members is None else connected & set(members)
            if len(asked) >= self._threshold:
                return sorted(asked)
            if members is not None and len(connected) >= self._threshold:
                raise RoundLost(
                    f"round {at.number + 1}: was charged to {', '.join(members)}, of which {len(asked)} are connected; expected {self._threshold}.",
                    drawn_anew=True,
                )
            missing = ", ".join(sorted(self._roster.keys() - connected))
            if time.monotonic() > end:
                raise TrainingError(
                    f"round {at.number + 1}: {len(asked)} silos are connected; expected at least {self._threshold}. It is the turn of {missing}. The last good state is kept: start the run again when they are there."
                )
            if not said:
                self._tell("waiting", f"round {at.number + 1} waits for silos: {missing}", missing=missing)
                said = True
            time.sleep(_POLL_S)

    def _in(self, name: str) -> bool:
        """Whether the silo is in the run, or is again."""
        if name in self._absent and self._rejoin(name):
            self._absent.discard(name)
        return name not in self._absent

    def _next_attempt(self) -> int:
        """A number that no attempt of this run had, on disk before it is used."""
        last = json.loads(self._attempts.read_text())["attempt"] if self._attempts.exists() else -1
        with _on_disk(f"{self._attempts}: the number of the attempt"):
            write_atomic(self._attempts, json.dumps({"attempt": last + 1}).encode() + b"\n")
        return last + 1


@contextlib.contextmanager
def _on_disk(what: str) -> Iterator[None]:
    """Says whose disk it is that takes nothing more."""
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"{what} could not be written ({error.strerror}); expected room on the coordinator's disk. It is the turn of the coordinator, and of no silo. The last good state is kept: make room, and start the run again."
        ) from error


class NetworkRuntime:
    """Runs rounds whose silos are elsewhere. The server is `runtime.server.Server`; the sum is all that it is given.

    Args:
      compiled: the process.
      draws: the server's random draws.
      rounds: asks the silos.
    """

    def __init__(self, compiled: Compiled, draws: ServerDraws, rounds: SecureRounds):
        self.server, self._rounds = Server(compiled, draws), rounds
        self._slots = [Slot(slot.shape, ring) for slot, ring in zip(compiled.slots, rings(compiled.form), strict=True)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def devices(self) -> Sequence[str]:
        """Unknown here: the silos' own."""
        return ()

    def initial_state(self) -> ServerState:
        return self.server.initial_state()

    def run_round(self, state: ServerState, at: Round, *, on_client: OnClient = lambda: None) -> RoundResult:
        """One round; see `runtime.base.Runtime.run_round`.

        Raises:
          RoundLost: if too few silos stayed. If `drawn_anew` is set, the round has to start from something else.
        """
        broadcast = self.server.broadcast(state, at)
        total = self._rounds.sum(at, broadcast.arrays, self._slots)
        applied = self.server.apply(state, [Report(tuple(total.values))], at)
        return RoundResult(applied.state, applied.metrics, None, self._rounds.bytes_down, self._rounds.bytes_up)

    def placement(self) -> dict[str, dict[str, int]]:
        return {}

    def close(self) -> None:
        self.server.close()
