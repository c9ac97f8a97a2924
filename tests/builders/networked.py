"""A consortium in one process: real draws, ledgers, identities and the full protocol, over a loopback link."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tff_pipeline.privacy.draws import Draws
from tff_pipeline.privacy.keys import PartyKey
from tff_pipeline.privacy.ledger import Ledger
from tff_pipeline.privacy.party_charges import PopulationAccount, SiloAccount
from tff_pipeline.privacy.plan import PrivacyPlan
from tff_pipeline.privacy.server_draws import ServerDraws
from tff_pipeline.privacy.silo_draws import SiloDraws

RUN = "r" * 16


class Consortium:
    """Parties around compiled clients, each with its files in a folder of its own.

    Args:
      folder: of the parties' folders.
      compiled, clients: the process, and every silo's clients.
      plan: whose draws and charges these are.
      threshold: of the secure sum; all but one silo where it is None.
    """

    def __init__(
        self, folder: Path, compiled: Any, clients: Sequence[Any], plan: PrivacyPlan, threshold: int | None = None
    ):
        from tff_pipeline.runtime.workers import ClientWorkers

        self.folder, self.compiled, self.plan = folder, compiled, plan
        self.clients = {own.name: own for own in clients}
        self.threshold = threshold or max(2, len(clients) // 2 + 1)
        self.identities = {name: Ed25519PrivateKey.generate() for name in self.clients}
        self.roster = {name: key.public_key().public_bytes_raw() for name, key in self.identities.items()}
        self.workers = ClientWorkers(compiled, clients[0], devices=("CPU:0",))
        self.told: list[tuple[str, str]] = []
        for name in (*self.clients, "server"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    @property
    def draws(self) -> Draws:
        """Of all parties, from their files: what no process of a real consortium has."""
        silos = {name: self.silo_draws(name) for name in self.clients}
        return Draws(ServerDraws(self.plan, self._key("server")), silos, "origin")

    def silo_draws(self, name: str) -> SiloDraws:
        return SiloDraws(name, self.plan, self._key(name))

    def silo_ledger(self, name: str) -> Ledger:
        return Ledger(self.folder / name / "ledger.jsonl", "population", silo=name)

    @property
    def population(self) -> Ledger:
        return Ledger(self.folder / "server" / "ledger.jsonl", "population")

    def service(self, name: str) -> Any:
        """The silo as a new process would have it."""
        from tff_pipeline.runtime.network.silo_rounds import Membership, SiloRounds
        from tff_pipeline.runtime.network.training_work import TrainingWork
        from tff_pipeline.runtime.silo import Silo

        draws = self.silo_draws(name)
        account = SiloAccount(self.silo_ledger(name), None, self.plan, run=RUN, draw=self.draws.name)
        noised = self.compiled.noised_slots
        silo = Silo(self.clients[name], self.workers, draws, noised=noised, charges=account)
        work = TrainingWork(silo, draws, account, draw=self.draws.digest, noised=noised)
        member = Membership(name, self.identities[name], self.roster, self.threshold)
        return SiloRounds(member, RUN, work, self.folder / name / "rounds")

    @contextlib.contextmanager
    def runtime(self, link: Any = None, **patience: Any) -> Iterator[Any]:
        """The coordinator's runtime, over a loopback link if there is no other."""
        from tff_pipeline.config import Patience
        from tff_pipeline.runtime.network.loopback import LoopbackLink
        from tff_pipeline.runtime.network.server_rounds import NetworkRuntime, SecureRounds

        made = link or LoopbackLink(
            {name: lambda name=name: self.service(name) for name in self.clients},
            report=lambda event, **fields: self.told.append((event, str(fields))),
        )
        draws = self.draws
        rounds = SecureRounds(
            made,
            self.roster,
            self.threshold,
            session=RUN,
            charges=PopulationAccount(self.population, None, self.plan, run=RUN, draw=draws.name),
            folder=self.folder / "server",
            patience=Patience(**{"silos": 0.0, **patience}),
            tell=lambda event, text="", **fields: self.told.append((event, text)),
        )
        with NetworkRuntime(self.compiled, draws.server, rounds) as runtime:
            yield runtime

    def at(self, number: int, *others: str) -> Any:
        """Round `number`; other words, another start."""
        return self.draws.round([f"{index:064x}" for index in range(number)] + [(others or (f"{number:064x}",))[0]])

    def close(self) -> None:
        self.workers.close()

    def _key(self, party: str) -> PartyKey:
        return PartyKey(self.folder / party / "run.key")


def same(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> bool:
    return all(np.array_equal(left, right) for left, right in zip(one, other, strict=True))
