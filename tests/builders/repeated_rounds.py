"""Watches the rounds of runs that are killed and done again, and damages their files in between.

What every party drew and reported is written down, as an attacker who sees everything would.
"""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builders.tiny import PRIVATE, Row, quiet
from tff_pipeline.artifacts import COMPLETE, MANIFEST, read_json, seal
from tff_pipeline.config import Config, load
from tff_pipeline.learning.state import ServerState
from tff_pipeline.privacy import charges as account
from tff_pipeline.privacy.round import Round
from tff_pipeline.runtime.local import LocalRuntime
from tff_pipeline.secagg.masking import Party
from tff_pipeline.training import run as training
from tff_pipeline.training.store import StateStore

ROUNDS = 4
WORDS = {"card": "lost my card", "money": "send money", "parcel": "where is the parcel"}
MECHANISMS = {
    "gaussian": PRIVATE,
    "distributed": (*PRIVATE, "privacy.mechanism=distributed_discrete_gaussian", "privacy.tolerated_silos=0"),
    "tree": (*PRIVATE, "privacy.mechanism=tree"),
}
SETTINGS = (f"training.rounds={ROUNDS}", "training.clients_per_round=30", "training.keep_states=9", "pipeline.seed=")


def silo_rows(silo: str, clients: int) -> list[Row]:
    labels = sorted(WORDS)
    return [(f"{silo}-{n}", WORDS[labels[n % 3]], labels[n % 3]) for n in range(clients)]


class Killed(BaseException):
    """What a kill is here: no handler of the pipeline's expects it."""


@dataclasses.dataclass
class Attempt:
    """A round that was begun, as an attacker who sees everything would write it down."""

    draw: str
    number: int
    start: str
    cohorts: dict[str, bytes]
    server_noise: bytes
    sums: dict[str, bytes] = dataclasses.field(default_factory=dict)
    shares: dict[str, bytes] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> tuple[str, int, str]:
        return self.draw, self.number + 1, self.start


class Observer:
    """Writes down every round, and kills the run where it is told to."""

    def __init__(self, folder: Path, mechanism: str, patch: pytest.MonkeyPatch):
        self.folder, self.attempts = folder, []
        self._settings = [*SETTINGS, *MECHANISMS[mechanism]]
        self._kill: tuple[str, int] = ("", 0)
        self._wrap(patch)

    @property
    def config(self) -> Config:
        return load(self.folder / "config.toml", self._settings)

    @property
    def run(self) -> Path:
        return training.job(self.config).folder

    def train(self, kill: str = "", number: int = 0) -> bool:
        """Whether the run was finished; otherwise it was killed in round `number` (from 0), at a place."""
        self._kill = (kill, number)
        try:
            training.train(self.config, progress=quiet())
        except Killed:
            return False
        return True

    def charges(self) -> list[tuple[str, int, str]]:
        population = account.ledgers(self.config)[0][0]
        return [(entry["draw"], entry["round"], entry.get("start", "")) for entry in population.entries()]

    def _reached(self, place: str, number: int) -> None:
        if self._kill == (place, number):
            raise Killed

    def _wrap(self, patch: pytest.MonkeyPatch) -> None:
        run_round, mask, save = LocalRuntime.run_round, Party.mask, StateStore.save

        def observed_round(runtime: LocalRuntime, state: ServerState, at: Round, **options: Any) -> Any:
            self._reached("charged", at.number)
            cohorts = {silo.name: silo._draws.cohort(at, len(silo._clients)).tobytes() for silo in runtime.silos}
            server = runtime.server
            noise = server._draws.noise(at, server._compiled.shapes) if state.layout.noise else []
            name = at.draw[:16]  # as the ledger names it
            self.attempts.append(
                Attempt(name, at.number, at.start, cohorts, b"".join(part.tobytes() for part in noise))
            )
            return run_round(runtime, state, at, **options)

        def observed_mask(party: Party, values: Any, round_number: int, noise: Any) -> Any:
            self.attempts[-1].sums[party.name] = b"".join(np.asarray(value).tobytes() for value in values)
            self.attempts[-1].shares[party.name] = b"".join(share.tobytes() for share in noise.values())
            masked = mask(party, values, round_number, noise)
            self._reached("one reported" if party.name == "bank" else "all reported", round_number)
            return masked

        def observed_save(store: Any, number: int, *rest: Any) -> None:
            self._reached("before saved", number - 1)
            save(store, number, *rest)
            self._reached("saved", number - 1)

        patch.setattr(LocalRuntime, "run_round", observed_round)
        patch.setattr(Party, "mask", observed_mask)
        patch.setattr(StateStore, "save", observed_save)

    def check(self) -> None:
        """Every round with the same draw is the same, every other shares nothing with it, and each is charged once."""
        charges = self.charges()
        assert len(charges) == len(set(charges)), "a draw was charged twice"
        for attempt in self.attempts:
            assert attempt.name in charges, f"{attempt.name} was not charged"
        for index, one in enumerate(self.attempts):
            for other in self.attempts[:index]:
                if one.name == other.name:
                    assert one.cohorts == other.cohorts
                    assert one.server_noise == other.server_noise
                    for silo in one.sums.keys() & other.sums.keys():
                        assert one.sums[silo] == other.sums[silo], "another sum under the same draw"
                        assert one.shares[silo] == other.shares[silo]
                    continue
                self._share_nothing(one, other)

    @staticmethod
    def _share_nothing(one: Attempt, other: Attempt) -> None:
        if one.server_noise:
            assert one.server_noise != other.server_noise, "the server's noise on another sum"
        shares = [share for attempt in (one, other) for share in attempt.shares.values() if share]
        assert len(set(shares)) == len(shares), "a silo's share on another sum"


def sampled_anew(observer: Observer) -> None:
    """With Poisson sampling no cohort stands for two charges. (In a tree a client's turn is the same for all its rounds.)"""
    attempts = {attempt.name: attempt for attempt in observer.attempts}.values()
    cohorts = [cohort for attempt in attempts for cohort in attempt.cohorts.values()]
    assert len(set(cohorts)) == len(cohorts), "a cohort stands for two charges"


def edit(path: Path, random: np.random.Generator) -> None:
    """Changes what a file or folder holds, checksums and all, as whoever can write it can."""
    if path.suffix == ".key":
        lines = path.read_bytes().splitlines(keepends=True)
        if len(lines) > 1 and random.integers(2):
            path.write_bytes(b"".join(lines[:-1]))  # the newest report
        else:
            path.write_bytes(b'{"secret": "%s"}\n' % random.bytes(32).hex().encode() + b"".join(lines[1:]))
    elif (path / MANIFEST).exists():
        kept = {name: value for name, value in read_json(path / MANIFEST).items() if name != "files"}
        kept |= forged(kept, random)
        for file in path.glob("*.np[yz]") if random.integers(2) else ():
            changed_array(file)
        for name in (MANIFEST, COMPLETE):
            (path / name).unlink()
        seal(path, kept)
    elif path.is_file():
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def forged(manifest: Mapping[str, Any], random: np.random.Generator) -> dict[str, Any]:
    """Other starts of earlier rounds, more of them, or another number of rounds, in a state's manifest."""
    starts, history = manifest.get("starts"), manifest.get("history")
    if not starts or not history:
        return {}
    match int(random.integers(4)):
        case 0:
            return {"starts": [*starts, "another"]}
        case 1:
            return {"starts": ["another", *starts[1:]]}
        case 2:
            return {"starts": [*starts, "another"], "history": [*history, history[-1]], "round": len(history) + 1}
        case _:
            return {}


def changed_array(file: Path) -> None:
    if file.suffix == ".npz":
        with np.load(file) as stored:
            arrays = {name: stored[name] for name in stored.files}
        # The trained weights come last in what is kept of base, first in a state; a little of everything.
        np.savez(file, **{name: a + a.dtype.type(1) if a.dtype == np.float32 else a for name, a in arrays.items()})
    elif file.name == "features.npy":
        array = np.load(file)
        np.save(file, array * array.dtype.type(1.5))


def resealed(path: Path, **changes: Any) -> None:
    """A state whose manifest says something else, checksums and all."""
    kept = {name: value for name, value in read_json(path / MANIFEST).items() if name != "files"}
    for name in (MANIFEST, COMPLETE):
        (path / name).unlink()
    seal(path, kept | changes)


def files_of(run: Path, folder: Path) -> list[Path]:
    """Everything of a run that somebody may touch, ledgers apart."""
    own = [run, run / "keys" / "noise.key", run / "base", run / "states", run / "run.json", run / "trained"]
    own += [*sorted((run / "states").glob("round-*")), run / MANIFEST, run / COMPLETE]
    own += sorted(folder.glob(f"workdir/silos/*/keys/sampling-{run.name}.key"))
    own += sorted(folder.glob(f"workdir/silos/*/features/{run.name}"))
    return [path for path in own if path.exists()]


def removed(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def tampered(observer: Observer, copies: Sequence[Path], random: np.random.Generator) -> str:
    """Does something to some of the run's files; says what."""
    done = []
    for _ in range(random.integers(1, 4)):
        paths = files_of(observer.run, observer.folder)
        act = str(random.choice(["delete", "restore", "edit", "copy"]))
        older = copies[random.integers(len(copies))] if copies else None
        if act == "restore" and older:
            there = files_of(older / "workdir" / "runs" / observer.run.name, older)
            if there:
                source = there[random.integers(len(there))]
                target = observer.folder / source.relative_to(older)
                removed(target)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
                done.append(f"restored {target.name}")
            continue
        if not paths:
            continue
        path = paths[random.integers(len(paths))]
        if act == "delete":
            removed(path)
        elif act == "edit":
            edit(path, random)
        elif act == "copy":
            keys = [other for other in paths if other.suffix == ".key"]
            if not keys:
                continue
            path, source = (keys[random.integers(len(keys))] for _ in range(2))
            path.write_bytes(source.read_bytes())
        done.append(f"{act} {path.name}")
    return ", ".join(done)


@contextlib.contextmanager
def told(story: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{error}, after: {' | '.join(story)}") from error
