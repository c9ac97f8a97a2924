"""Whatever is done to some ledgers, a run is refused or charges are complete."""

import json
import random
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from builders.ledgers import PLAN, Folder, delete, identity, killed, rechained

from tff_pipeline.config import Config
from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy import charges as account


class Walk:
    """Honest runs, kills and joining silos on one workdir; attacks on a part of its ledgers; and what was truly charged."""

    SILOS, POPULATIONS = ("bank", "shop", "care"), ("people", "friends")

    def __init__(self, folder: Folder, seed: int, monkeypatch: pytest.MonkeyPatch):
        self.folder, self.random, self.monkeypatch = folder, random.Random(seed), monkeypatch
        self.true: list[tuple[str, tuple[str, ...], str, int, str]] = []  # population, members, run, round, draw
        self.older: list[dict[str, bytes]] = []
        self.outcomes: Counter[str] = Counter()
        self.configs: dict[tuple[str, ...], Config] = {}

    def parties(self) -> dict[str, list[Path]]:
        """Every ledger with its head, by a name of its own."""
        return {name: self.folder.of_silo(name) for name in self.SILOS} | {
            f"/{name}": self.folder.of_population(name) for name in self.POPULATIONS
        }

    def config(self, population: str, silos: tuple[str, ...]) -> Config:
        key = (population, *silos)
        if key not in self.configs:
            self.configs[key] = self.folder.config(*silos, population=population)
        return self.configs[key]

    def some_config(self) -> tuple[str, tuple[str, ...], Config]:
        population = self.random.choice(self.POPULATIONS)
        silos = tuple(sorted(self.random.sample(self.SILOS, self.random.randint(1, 3))))
        return population, silos, self.config(population, silos)

    def contents(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for paths in self.parties().values() for path in paths if path.exists()}

    def restore(self, contents: dict[str, bytes]) -> None:
        for leftover in self.folder.workdir.glob("silos/acme"):
            shutil.rmtree(leftover)
        for paths in self.parties().values():
            for path in paths:
                path.unlink(missing_ok=True)
                if str(path) in contents:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(contents[str(path)])

    def opened(self, config: Config, run: str, draw: str) -> account.Account:
        """Honest: refused only where a new silo comes while another is away, until it is admitted."""
        for _ in range(3):
            try:
                return account.opened(config, PLAN, run=run, draw=draw)
            except PrivacyError as error:
                silo = re.search(r"does not know silo '(\w+)'", str(error))
                if not silo:
                    raise
                account.admit(config, silo[1])
        return account.opened(config, PLAN, run=run, draw=draw)

    def honest(self) -> None:
        population, silos, config = self.some_config()
        run, draw = f"r{self.random.randint(1, 3)}-{'-'.join(silos)}", self.random.choice("de")
        first = self.random.randint(1, 3)
        for number in range(first, first + self.random.randint(1, 3)):
            charges = self.opened(config, run, draw)
            if self.random.random() < 0.3:
                write = self.random.randint(0, 2 * len(silos) + 1)
                if killed(self.monkeypatch, config, write=write, run=run, draw=draw, number=number):
                    self.outcomes["killed"] += 1
                    return
            else:
                charges.charge(number)
            if (charge := (population, silos, run, number, draw)) not in self.true:
                self.true.append(charge)

    def tamper(self, name: str, paths: list[Path]) -> None:
        path, head = paths
        match self.random.choice(("delete", "ledger", "head", "older", "mixed", "swap", "cut", "drop")):
            case "delete":
                delete(paths)
            case "ledger":
                delete([path])
            case "head":
                delete([head])
            case "older" if self.older:
                contents = self.random.choice(self.older)
                for file in paths:
                    file.write_bytes(contents[str(file)]) if str(file) in contents else delete([file])
            case "mixed" if self.older:
                file, contents = self.random.choice(paths), self.random.choice(self.older)
                file.write_bytes(contents[str(file)]) if str(file) in contents else delete([file])
            case "swap":
                for source, file in zip(self.parties()[self.random.choice([*self.parties()])], paths, strict=True):
                    if source.exists() and source != file:
                        shutil.copy(source, file)
            case "cut" | "drop" as how if path.exists():
                lines = [json.loads(text) for text in path.read_text().splitlines() if text.endswith("}")]
                count = self.random.choice((self.random.randint(0, len(lines)), max(0, len(lines) - 1)))
                kept = lines[:count] if how == "cut" else lines[:count] + lines[count + 1 :]
                path.write_bytes(rechained(path, kept))

    def attack(self) -> None:
        """Changes some ledgers, never all; then opens a run, which is refused or has every charge that a ledger left alone knew."""
        before = self.contents()
        parties = {name: paths for name, paths in self.parties().items() if str(paths[0]) in before}
        if not parties:
            return
        most = self.random.choice((1, 1, 2, max(1, len(parties) - 1)))
        touched = self.random.sample([*parties], self.random.randint(1, min(most, len(parties))))
        for name in touched:
            self.tamper(name, parties[name])
        population, silos, _ = self.some_config()
        renamed = None
        if self.random.random() < 0.25 and (hit := [name for name in silos if name in touched]):
            renamed = hit[0]
            if self.random.random() < 0.5 and self.folder.silo(renamed).exists():
                self.folder.silo(renamed).rename(self.folder.silo("acme"))
        names = tuple("acme" if name == renamed else name for name in silos)
        config = self.config(population, names)
        try:
            account.opened(config, PLAN, run="after", draw="d")
        except PrivacyError:
            self.outcomes["refused"] += 1
        else:
            self.outcomes["went on"] += 1
            witnessed = [charge for charge in self.true if {f"/{charge[0]}", *charge[1]} - set(touched)]
            self.require(config, population, dict(zip(silos, names, strict=True)), witnessed)
        self.restore(before)

    def require(
        self,
        config: Config,
        population: str,
        silos: dict[str, str],
        charges: list[tuple[str, tuple[str, ...], str, int, str]],
    ) -> None:
        """The ledgers of a configuration have all these charges, each silo's those that it took part in."""
        (own, _), *others = account.ledgers(config)
        held = {
            ledger.silo or "/": Counter(map(identity, ledger.entries())) for ledger, _ in (*((own, None),), *others)
        }
        for charge in charges:
            if charge[0] == population:
                assert held["/"][charge[0], *charge[2:]] == 1, (charge, "population")
            for name, called in silos.items():
                # Under a new name in another population it looks like any new silo there, as long as the old ledger lies here.
                if name in charge[1] and (name == called or population == charge[0]):
                    assert held[called][charge[0], *charge[2:]] == 1, (charge, called)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_done_to_some_ledgers_a_run_is_refused_or_charges_are_complete(folder, monkeypatch, seed):
    """Seeds 0 to 5, 25 honest steps and as many attacks each; some 300 other seeds were tried once."""
    walk = Walk(folder, seed, monkeypatch)
    for _ in range(25):
        walk.honest()
        if walk.random.random() < 0.3:
            walk.older.append(walk.contents())
        walk.attack()
        # Put back as it was, everything is well: no honest state is refused, and no charge was lost in it.
        population, silos, config = walk.some_config()
        walk.opened(config, "check", "d")
        walk.require(config, population, {name: name for name in silos}, walk.true)
    assert walk.outcomes["refused"] > 5
    assert walk.outcomes["went on"] > 0
