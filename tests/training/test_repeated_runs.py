"""Runs that are done again after somebody deleted, restored, copied or edited some of their files.

Whatever was done, a round is either the very same release as before, charged once, or a fresh one with a cohort and noise
of its own, charged as one more. The rounds are real ones of the local runtime; what every party drew and reported is
written down beside them.
"""

import contextlib
import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders.plans import plan as a_plan
from builders.tiny import Row, prepared, quiet

from tff_pipeline.artifacts import COMPLETE, MANIFEST, Workdir, is_complete, read_json, seal
from tff_pipeline.config import Config, load
from tff_pipeline.errors import ArtifactError, PipelineError, PrivacyError
from tff_pipeline.learning.state import ServerState
from tff_pipeline.privacy import charges as account
from tff_pipeline.privacy.round import Round
from tff_pipeline.runtime.local import LocalRuntime
from tff_pipeline.secagg.masking import Party
from tff_pipeline.training import run as training
from tff_pipeline.training import secrets
from tff_pipeline.training.store import StateStore

ROUNDS = 4
WORDS = {"card": "lost my card", "money": "send money", "parcel": "where is the parcel"}
GAUSSIAN = (
    "privacy.mechanism=gaussian",
    "privacy.clip_norm=1.0",
    "privacy.noise_multiplier=1.0",
    "privacy.delta=1e-3",
)
MECHANISMS = {
    "gaussian": GAUSSIAN,
    "distributed": (*GAUSSIAN, "privacy.mechanism=distributed_discrete_gaussian", "privacy.tolerated_silos=0"),
    "tree": (*GAUSSIAN, "privacy.mechanism=tree"),
}
SETTINGS = (f"training.rounds={ROUNDS}", "training.clients_per_round=30", "training.keep_states=9", "pipeline.seed=")


def silo_rows(silo: str, clients: int) -> list[Row]:
    labels = sorted(WORDS)
    return [(f"{silo}-{n}", WORDS[labels[n % 3]], labels[n % 3]) for n in range(clients)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two silos of 40 clients; two cohorts of a silo are equal by chance less often than once in 10^10."""
    folder = tmp_path_factory.mktemp("tiny")
    prepared(folder, {silo: silo_rows(silo, 40) for silo in ("bank", "shop")}, changes=[*SETTINGS, *GAUSSIAN])
    return folder


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


@pytest.fixture
def begun(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Observer]:
    def make(mechanism: str) -> Observer:
        folder = tmp_path / mechanism
        shutil.copytree(tiny, folder)
        return Observer(folder, mechanism, monkeypatch)

    return make


# -- what was found


@pytest.mark.parametrize("mechanism", ["gaussian", "distributed"])
def test_a_run_whose_folder_was_deleted_is_a_new_run(begun, mechanism):
    """The silos' keys survive the folder. The old cohorts, and the old shares, on the sums of new weights gave the sums away."""
    observer = begun(mechanism)
    assert not observer.train("saved", 2)
    shutil.rmtree(observer.run)
    assert observer.train()
    observer.check()
    sampled_anew(observer)
    assert len(observer.charges()) == 3 + ROUNDS


@pytest.mark.parametrize("mechanism", ["gaussian", "distributed"])
def test_rounds_from_other_weights_have_other_noise_and_are_charged(begun, mechanism):
    """The keys stay, everything the run had computed goes; its base weights are random, and so others."""
    observer = begun(mechanism)
    assert not observer.train("saved", 2)
    for name in ("base", "states"):
        shutil.rmtree(observer.run / name)
    shutil.rmtree(secrets.features_folder(Workdir(observer.config.workdir), "bank", observer.run.name))
    assert observer.train()
    observer.check()
    sampled_anew(observer)
    assert len(observer.charges()) == 3 + ROUNDS


def test_one_silos_lost_key_changes_every_silos_draws(begun):
    """Otherwise the others' shares would be the same in both sums, and cancel in the difference."""
    observer = begun("distributed")
    assert not observer.train("all reported", 2)
    next(observer.folder.glob("workdir/silos/shop/keys/sampling-*")).unlink()
    assert observer.train()
    observer.check()
    sampled_anew(observer)
    assert len(observer.charges()) == 3 + 2


def test_keys_of_another_run_are_another_draw(begun):
    """All keys of a run that was stopped, copied to a run of other settings."""
    observer = begun("gaussian")
    assert not observer.train("saved", 1)
    first = observer.run
    observer._settings.append("training.client_learning_rate=0.4")
    second = observer.run
    assert second != first
    shutil.copytree(first / "keys", second / "keys")
    for key in observer.folder.glob(f"workdir/silos/*/keys/sampling-{first.name}.key"):
        shutil.copy(key, key.with_name(f"sampling-{second.name}.key"))
    assert observer.train()
    observer.check()
    sampled_anew(observer)


@pytest.mark.parametrize("place", ["charged", "one reported", "before saved", "saved"])
def test_an_older_copy_of_a_silos_key_is_noticed_and_drawn_anew(begun, place):
    """What it would refuse to repeat it has forgotten, be it only the round that is repeated now."""
    observer = begun("distributed")
    assert not observer.train("saved", 0)
    key = next(observer.folder.glob("workdir/silos/shop/keys/sampling-*"))
    older = key.read_bytes()
    assert not observer.train(place, 1)
    key.write_bytes(older)
    assert observer.train()
    observer.check()
    assert len({draw for draw, _, _ in observer.charges()}) == 2
    assert len(observer.charges()) == 2 + (2 if place == "saved" else 3)


@pytest.mark.parametrize("mechanism", ["gaussian", "tree"])
def test_what_earlier_rounds_started_from_is_part_of_what_a_round_starts_from(begun, mechanism):
    """Of a tree's node an earlier start names the noise that is taken away again: with another list it is another release."""
    observer = begun(mechanism)
    assert not observer.train("saved", 3)
    shutil.rmtree(observer.run / "states" / "round-00004")
    state = observer.run / "states" / "round-00003"
    resealed(state, starts=["another", *read_json(state / MANIFEST)["starts"][1:]])
    assert observer.train()
    observer.check()
    assert [number for _, number, _ in observer.charges()] == [1, 2, 3, 4, 4]


@pytest.mark.parametrize("change", ["starts", "name", "round"])
def test_a_state_that_is_not_of_the_round_it_says_is_refused(begun, change):
    """The number of the round that is drawn follows from one, the number that is charged from another."""
    observer = begun("gaussian")
    assert not observer.train("saved", 1)
    state = observer.run / "states" / "round-00002"
    if change == "name":
        state.rename(state.with_name("round-00019"))
    elif change == "starts":
        resealed(state, starts=[*read_json(state / MANIFEST)["starts"], "another"])
    else:
        resealed(state, round=1)
    with pytest.raises(ArtifactError, match=r"disagree; expected \d+ each. Was it renamed or edited\?"):
        observer.train()
    observer.check()
    # A copy beside it is no state.
    for folder in (observer.run / "states").iterdir():
        shutil.rmtree(folder)
    assert not observer.train("saved", 1)
    shutil.copytree(observer.run / "states" / "round-00002", observer.run / "states" / "round-00002.bak")
    assert observer.train()
    observer.check()


def test_two_silos_with_one_key_draw_two_cohorts_and_two_shares(begun):
    observer = begun("distributed")
    assert not observer.train("saved", 1)
    bank, shop = sorted(observer.folder.glob("workdir/silos/*/keys/sampling-*"))
    bank.write_bytes(shop.read_bytes())
    assert observer.train()
    observer.check()
    sampled_anew(observer)
    assert len({draw for draw, _, _ in observer.charges()}) == 2


def test_a_budget_counts_a_round_that_starts_from_something_else_once_more(begun):
    """Room for the run's rounds and no more: the state was edited, so round 3 is one release more, and round 4 is refused."""
    observer = begun("gaussian")
    assert not observer.train("before saved", 2)
    plan = read_json(observer.run / "run.json")
    observer._settings.append(f"privacy.budget_epsilon={plan['guarantee']['epsilon'] * 1.0001}")
    edit(observer.run / "states" / "round-00002", np.random.default_rng(0))
    with pytest.raises(PrivacyError, match=r"round 4 would pass the budget .* starts from something else now"):
        observer.train()
    observer.check()
    observer._settings.append("privacy.budget_epsilon=100")
    assert observer.train()
    observer.check()
    sampled_anew(observer)
    assert [number for _, number, _ in observer.charges()] == [1, 2, 3, 3, 4]


def test_runs_of_one_seed_share_no_noise_unless_they_are_the_same(tiny, tmp_path):
    """Two models with the same noise in them differ by their clients alone: whoever has both has no noise to fight.

    Both runtimes draw the same, so that they can be compared.
    """
    folder = tmp_path / "seeded"
    shutil.copytree(tiny, folder)

    def noise(*changes: str) -> list[float]:
        work = training.job(load(folder / "config.toml", [*SETTINGS, *GAUSSIAN, "pipeline.seed=3", *changes]))
        draws = secrets.draws_of(work, a_plan(), "network", quiet())
        return draws.server.noise(draws.round(["start"]), [(3,)])[0].tolist()

    assert noise() == noise("runtime.kind=reference") == noise("training.keep_states=1")
    assert noise() != noise("training.client_learning_rate=0.4")
    assert noise() != noise("pipeline.seed=4")


# -- whatever is done


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


PLACES = ("charged", "one reported", "all reported", "before saved", "saved")


@pytest.mark.parametrize("mechanism", sorted(MECHANISMS))
def test_whatever_is_done_to_its_files_a_round_is_the_same_release_or_a_fresh_one(begun, mechanism, tmp_path):
    """Twenty times: killed somewhere, then files deleted, restored, copied and edited. Fixed seeds, so nothing can flake but by
    what the operating system's generator draws; two cohorts that are equal by chance come once in 10^8 runs."""
    observer, random, story = begun(mechanism), np.random.default_rng(len(mechanism)), []
    copies: list[Path] = []
    for step in range(20):
        place, number = str(random.choice(PLACES)), int(random.integers(ROUNDS))
        with told(story):
            try:
                finished = observer.train(place, number)
                story.append("finished" if finished else f"killed in round {number + 1}, {place}")
            except PipelineError as error:
                # Refused: nothing was released. The documented way on is to abandon the keys, or what is damaged.
                story.append(f"refused ({type(error).__name__})")
                secrets.abandon(observer.config, secrets.unfinished(Workdir(observer.config.workdir)))
                shutil.rmtree(observer.run, ignore_errors=True)
            observer.check()
        if step % 3 == 0:
            copies.append(tmp_path / f"copy-{step}")
            shutil.copytree(observer.folder, copies[-1])
        story.append(tampered(observer, copies, random))
    with told(story):
        shutil.rmtree(observer.run, ignore_errors=True)
        assert observer.train()
        observer.check()
        if mechanism != "tree":
            sampled_anew(observer)
    assert is_complete(observer.run)
    # It was no idle walk.
    assert len(observer.attempts) > ROUNDS
    assert len({attempt.draw for attempt in observer.attempts}) > 3


@contextlib.contextmanager
def told(story: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{error}, after: {' | '.join(story)}") from error


def test_what_the_observer_writes_down_tells_rounds_apart(begun):
    """The checks above can fail: a round that is written down with another's noise, or another sum, is noticed."""
    observer = begun("gaussian")
    assert observer.train()
    observer.check()
    first, second = observer.attempts[:2]
    forged = dataclasses.replace(second, server_noise=first.server_noise)
    with pytest.raises(AssertionError, match="noise on another sum"):
        observer._share_nothing(first, forged)
    observer.attempts.append(
        dataclasses.replace(first, sums={"bank": hashlib.sha256(b"another").digest()}, shares={"bank": b""})
    )
    with pytest.raises(AssertionError, match="another sum under the same draw"):
        observer.check()
