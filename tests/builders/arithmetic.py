"""A consortium whose clients' work is arithmetic: real draws, ledgers, journals and protocol, without TensorFlow.

What attacks on rounds need hundreds of times in seconds. The parties' files are all that outlives `Run.restart`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tff_pipeline.config import Patience
from tff_pipeline.privacy.draws import Draws
from tff_pipeline.privacy.keys import PartyKey
from tff_pipeline.privacy.ledger import Ledger, charge_of
from tff_pipeline.privacy.party_charges import PopulationAccount, SiloAccount
from tff_pipeline.privacy.plan import PrivacyPlan
from tff_pipeline.privacy.round import Round, round_name
from tff_pipeline.privacy.server_draws import ServerDraws
from tff_pipeline.privacy.silo_draws import SiloDraws
from tff_pipeline.runtime.base import Broadcast, RoundResult
from tff_pipeline.runtime.network.loopback import LoopbackLink
from tff_pipeline.runtime.network.server_rounds import SecureRounds
from tff_pipeline.runtime.network.silo_rounds import Membership, SiloRounds
from tff_pipeline.runtime.network.training_work import TrainingWork
from tff_pipeline.runtime.silo import Silo
from tff_pipeline.secagg.server import Slot, Sums
from tff_pipeline.training.loop import Loop, Position
from tff_pipeline.training.store import StateStore

NAMES = ("bank", "insurer", "shop")
RUN, CLIENTS = "r" * 16, 6


@dataclasses.dataclass(frozen=True)
class Left:
    """An answer that left a silo: in which round's draw (`Round.name`), and, where it reveals shares, for which survivors."""

    silo: str
    stage: str
    name: str
    survivors: tuple[str, ...] = ()


class Workers:
    """Adds up numbers that follow from the client and from the broadcast: another broadcast or cohort gives another sum."""

    def sum(self, broadcast: Broadcast, clients: Any, rows: Sequence[int], on_client: Any) -> list[np.ndarray]:
        weights = broadcast.arrays[0]
        total = np.zeros(weights.shape, np.uint32)
        for row in rows:
            seen = int(weights.astype(np.uint64).sum()) % 1000
            total += np.arange(1, weights.size + 1, dtype=np.uint32) * np.uint32(clients.offset + int(row) + seen)
        return [total, np.array(len(rows), np.uint64)]


class Data:
    """A silo's clients."""

    def __init__(self, name: str):
        self.name, self.offset = name, 100 * NAMES.index(name)

    def __len__(self) -> int:
        return CLIENTS


class State:
    """Weights, as the loop and the store ask for them."""

    layout = SimpleNamespace(kept_names=("weights",))
    clip = None

    def __init__(self, weights: np.ndarray):
        self.weights = self.kept = [weights]

    def with_kept(self, arrays: Sequence[np.ndarray]) -> "State":
        return State(arrays[0])


def applied(state: State, total: np.ndarray) -> State:
    return State((state.weights[0] + total).astype(np.uint32))


class Parties:
    """Parties in folders of their own.

    Args:
      folder: of the parties' folders.
      plan: whose draws and charges these are; the silos' noise shares are added where they are the ones to add it.
      threshold: of the secure sum.
    """

    def __init__(self, folder: Path, plan: PrivacyPlan, threshold: int = 2):
        self.folder, self.plan, self.threshold = folder, plan, threshold
        self.identities = {name: Ed25519PrivateKey.generate() for name in NAMES}
        self.roster = {name: key.public_key().public_bytes_raw() for name, key in self.identities.items()}
        for name in (*NAMES, "server"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self.draw = self.draws.digest
        self.left: list[Left] = []  # all that ever left a silo, also what never arrived
        self.sums: list[tuple[str, Sums]] = []  # what the coordinator unmasked, by the round's name
        self.told: list[str] = []
        self._processes: dict[str, SiloRounds] = {}

    @property
    def noised(self) -> tuple[int, ...]:
        return (0,) if self.plan.mechanism.silos_add_noise else ()

    @property
    def length(self) -> int:
        return self.plan.mechanism.discretization(self.plan).length if self.noised else 8  # type: ignore[attr-defined]

    @property
    def draws(self) -> Draws:
        """Of all parties, from their files."""
        silos = {name: SiloDraws(name, self.plan, self.key(name)) for name in NAMES}
        return Draws(ServerDraws(self.plan, self.key("server")), silos, "origin")

    def key(self, party: str) -> PartyKey:
        return PartyKey(self.folder / party / "run.key")

    def ledger(self, silo: str = "") -> Ledger:
        return Ledger(self.folder / (silo or "server") / "ledger.jsonl", "population", silo=silo)

    def service(self, name: str) -> "Recorded":
        """The silo as a new process has it."""
        draws = SiloDraws(name, self.plan, self.key(name))
        account = SiloAccount(self.ledger(name), None, self.plan, run=RUN, draw=self.draw[:16])
        silo = Silo(Data(name), Workers(), draws, noised=self.noised, charges=account)  # type: ignore[arg-type]
        work = TrainingWork(silo, draws, account, draw=self.draw, noised=self.noised)
        member = Membership(name, self.identities[name], self.roster, self.threshold)
        made = SiloRounds(member, RUN, work, self.folder / name / "rounds")
        if name in self._processes:
            self._processes[name].close()  # as the system closes the files of a process that was killed
        self._processes[name] = made
        return Recorded(name, made, self.left)

    def link(self, kind: Callable[..., Any] = LoopbackLink, **options: Any) -> Any:
        made = {name: lambda name=name: self.service(name) for name in NAMES}
        return kind(made, report=lambda event, **fields: self.told.append(f"{event} {fields}"), **options)

    def rounds(self, link: Any, **patience: Any) -> SecureRounds:
        """The coordinator's side, as a new process has it."""
        return SecureRounds(
            link,
            self.roster,
            self.threshold,
            session=RUN,
            charges=PopulationAccount(self.ledger(), None, self.plan, run=RUN, draw=self.draw[:16]),
            folder=self.folder / "server",
            patience=Patience(**{"silos": 0.0, **patience}),
            tell=lambda event, text="", **fields: self.told.append(text),
        )

    def train(self, link: Any, **patience: Any) -> np.ndarray:
        """Runs the loop of rounds from where the coordinator's files are; gives the weights."""
        runtime = Runtime(self, self.rounds(link, **patience))
        loop = Loop(
            draws=SimpleNamespace(
                plan=self.plan, round=lambda starts: Round(self.draw, tuple(starts)), begin=lambda at: None
            ),
            charges=SimpleNamespace(charge=lambda number, start="": None),
            runtime=runtime,  # type: ignore[arg-type]
            store=StateStore(self.folder / "server", keep=1),
            releases=Exit(),  # type: ignore[arg-type]
            fed="",
            silos_with_text=frozenset(),
            run=self.folder,
        )
        position = Position.newest(loop.store, State(np.zeros(self.length, np.uint32)))  # type: ignore[arg-type]
        return loop.rounds(position).weights[0]

    def contribution(self, name: str, state: State, at: Round) -> np.ndarray:
        """What a silo adds to a round's sum, from its draws alone: no protocol, no masks, no files but its key."""
        draws = SiloDraws(name, self.plan, self.key(name))
        rows = draws.cohort(at, CLIENTS)
        own = Workers().sum(Broadcast((state.weights[0],)), Data(name), rows, None)[0]
        share = draws.noise_share(at) if self.noised else np.zeros(own.shape, np.int64)
        return own + share.astype(np.uint32)

    def replayed(self) -> np.ndarray:
        """The weights that the rounds' starts and survivors give, each silo's contribution worked out anew."""
        _, history, starts = StateStore(self.folder / "server", keep=1).latest(("weights",)) or ([], [], [])
        state = State(np.zeros(self.length, np.uint32))
        for number, entry in enumerate(history):
            at = Round(self.draw, tuple(starts[: number + 1]))
            total = np.zeros(self.length, np.uint32)
            for name in entry["survivors"]:
                total += self.contribution(name, state, at)
            state = applied(state, total)
        return state.weights[0]

    def require_sound(self, *, forged: bool = False) -> None:
        """Raises AssertionError unless every file and all that left the silos keep what the rounds promise.

        Where requests were `forged`, which a link with certificates rules out, what a silo's line says about the population's is
        not looked at: it is the coordinator's word.
        """
        ledgers = {name: self.ledger(name) for name in ("", *NAMES)}
        charged: dict[str, list[str]] = {}
        for owner, ledger in ledgers.items():
            charges = [charge_of(entry) for entry in ledger.entries()]
            assert len(set(charges)) == len(charges), f"{owner or 'the population'} was charged twice"
            charged[owner] = [round_name(self.draw, entry["round"] - 1, entry["start"]) for entry in ledger.entries()]
        for left in self.left:
            if left.stage in ("mask", "consistency", "unmask"):
                assert left.name in charged[left.silo], f"{left.silo} sent a sum that it was not charged"
                assert left.name in charged[""], "the population was not charged"
        lines = ledgers[""].lines()
        for name in NAMES:
            for entry in () if forged else ledgers[name].entries():
                line = lines[entry["counterpart"]["lines"] - 1]
                assert line["hash"] == entry["counterpart"]["hash"]
                assert charge_of(line) == charge_of(entry)
                assert sorted(line["silos"]) == entry["members"]
        self._require_one_sum_a_draw()

    def _require_one_sum_a_draw(self) -> None:
        revealed: dict[tuple[str, tuple[str, ...]], set[str]] = {}
        for left in self.left:
            if left.stage == "unmask":
                revealed.setdefault((left.name, left.survivors), set()).add(left.silo)
        unmasked = [name for (name, _), silos in revealed.items() if len(silos) >= self.threshold]
        assert len(unmasked) == len(set(unmasked)), "two sums of one draw could be unmasked"
        by_silo = [(silo, name) for (name, _), silos in revealed.items() for silo in silos]
        assert len(by_silo) == len(set(by_silo)), "a silo revealed shares for two lists of one draw"
        for name, total in self.sums:
            others = [other for known, other in self.sums if known == name]
            assert all(other.survivors == total.survivors for other in others)
            assert all(np.array_equal(other.values[0], total.values[0]) for other in others)


class Recorded:
    """A silo's service, and a record of what left it."""

    def __init__(self, name: str, service: SiloRounds, left: list[Left]):
        self._name, self._service, self._left = name, service, left

    def answer(self, stage: str, round_number: int, request: bytes | memoryview) -> bytes:
        answer = self._service.answer(stage, round_number, request)
        content = msgspec.msgpack.decode(answer)
        message = msgspec.msgpack.decode(content["message"]) if stage == "advertise" else content
        survivors = tuple(share["silo"] for share in message["seeds"]) if stage == "unmask" else ()
        self._left.append(Left(self._name, stage, message["session"].partition("/")[2], survivors))
        return answer


class Runtime:
    """Rounds over the link, and a server that adds."""

    devices = ()

    def __init__(self, parties: Parties, rounds: SecureRounds):
        self._parties, self._rounds = parties, rounds

    def run_round(self, state: State, at: Round, *, on_client: Any = None) -> RoundResult:
        slots = [Slot((self._parties.length,), np.dtype(np.uint32)), Slot((), np.dtype(np.uint64))]
        total = self._rounds.sum(at, [state.weights[0]], slots)
        self._parties.sums.append((at.name, Sums([part.copy() for part in total.values], total.survivors)))
        after = applied(state, total.values[0])
        return RoundResult(after, {"survivors": total.survivors}, None)  # type: ignore[arg-type]


class Exit:
    """Releases nothing; the history keeps whose sums a round is of."""

    def placement(self, runtime: Any) -> None: ...

    def round(self, history: Any) -> None: ...

    def entry(self, at: Round, result: RoundResult, **_: Any) -> dict[str, Any]:
        return {"survivors": list(result.metrics["survivors"])}  # type: ignore[call-overload]
