"""Rounds over a link under attack: whatever is killed, lost, repeated or forged, files and sums keep what rounds promise.

`Parties.require_sound` looks at every party's files, and at all that ever left a silo: what left was charged, once, at the
silo and to the population; and of one draw's noise shares and cohorts one sum could be unmasked at most.
"""

import contextlib
import errno
import os
import re
import resource
import tempfile
from pathlib import Path

import numpy as np
import pytest
from builders.arithmetic import NAMES, Parties
from builders.cases import plan

from tff_pipeline.artifacts import append_synced
from tff_pipeline.errors import PipelineError, ProtocolError, TrainingError
from tff_pipeline.privacy.mechanisms import DistributedDiscreteGaussian
from tff_pipeline.runtime.network import requests
from tff_pipeline.runtime.network.link import Answer
from tff_pipeline.runtime.network.loopback import Faults, Kill, LoopbackLink
from tff_pipeline.secagg.journal import FileJournal
from tff_pipeline.secagg.terms import STAGES

TWO = plan(sampling_probability=0.5, expected_cohort=9.0, clients=18, rounds=2)
SHARES = plan(
    DistributedDiscreteGaussian,
    noise_multiplier=1.0,
    sampling_probability=0.5,
    expected_cohort=9.0,
    clients=18,
    rounds=2,
    silos=3,
    tolerated_silos=1,
    dimension=8,
)


class Crash(BaseException):
    """The coordinator is killed."""


@pytest.fixture(params=[TWO, SHARES], ids=["noise of the server", "noise of the silos"])
def parties(request, tmp_path):
    return Parties(tmp_path, request.param)


@pytest.fixture
def no_syncs(monkeypatch):
    """Nobody's machine loses its power here."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def in_memory():
    """A folder whose renames wait for no disk, where the system has one."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        yield Path(folder)


def undisturbed(folder, like: Parties) -> np.ndarray:
    """The weights of the same draws with nothing going wrong."""
    other = Parties(folder, like.plan, like.threshold)
    for name in (*NAMES, "server"):
        (folder / name / "run.key").write_bytes((like.folder / name / "run.key").read_bytes().splitlines()[0] + b"\n")
    other.draw = other.draws.digest
    assert other.draw == like.draw
    with other.link() as link:
        return other.train(link)


def test_undisturbed_rounds_give_the_sums_of_all(parties, tmp_path):
    with parties.link() as link:
        weights = parties.train(link)

    assert [total.survivors for _, total in parties.sums] == [NAMES, NAMES]
    np.testing.assert_array_equal(weights, parties.replayed())
    parties.require_sound()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_silo_is_killed_at_a_stage_and_the_round_goes_on_without_it(parties, stage, when):
    with parties.link(kills=(Kill("insurer", stage, 0, when),)) as link:
        weights = parties.train(link)

    others = ("bank", "shop")
    # Whose masked sum came is in the sum, also if it dies after that.
    dealt = stage in ("consistency", "unmask")
    assert [total.survivors for _, total in parties.sums] == [NAMES if dealt else others, others]
    np.testing.assert_array_equal(weights, parties.replayed())
    parties.require_sound()


@pytest.mark.parametrize("stage", STAGES)
def test_two_silos_are_killed_and_the_run_says_whose_turn_it_is_and_goes_on(parties, stage, tmp_path):
    with parties.link(kills=tuple(Kill(name, stage, 1) for name in ("bank", "shop"))) as link:
        with pytest.raises(TrainingError, match=r"round 2: .*It is the turn of .*bank.*shop") as stopped:
            parties.train(link)
        assert len(str(stopped.value)) < 2000
        parties.require_sound()
        link.restart("bank")
        link.restart("shop")
        weights = parties.train(link)

    np.testing.assert_array_equal(weights, parties.replayed())
    parties.require_sound()
    if stage in STAGES[:3]:  # no list of survivors was told: the same draw
        np.testing.assert_array_equal(weights, undisturbed(tmp_path / "other", parties))


class Killing(LoopbackLink):
    """The coordinator is killed when it asks a stage of a round, or when it has the answers."""

    crash: tuple[str, int, str] | None = None

    def ask(self, stage, round_number, requests, deadline_s):
        if self.crash == (stage, round_number, "before"):
            self.crash = None
            raise Crash
        yield from super().ask(stage, round_number, requests, deadline_s)
        if self.crash == (stage, round_number, "after"):
            self.crash = None
            raise Crash


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("stage", STAGES)
def test_the_coordinator_is_killed_at_a_stage_and_ends_in_the_weights_of_an_undisturbed_run(
    parties, stage, when, tmp_path
):
    with parties.link(Killing) as link:
        link.crash = (stage, 1, when)
        with pytest.raises(Crash):
            parties.train(link)
        weights = parties.train(link)

    assert len(parties.ledger().entries()) == 2
    np.testing.assert_array_equal(weights, undisturbed(tmp_path / "other", parties))
    parties.require_sound()


@pytest.mark.parametrize("restarted", [False, True])
def test_a_sum_that_was_seen_is_not_seen_again_over_fewer_silos(parties, restarted):
    """The coordinator unmasks the sum of three and is killed. Then one of them is gone: the round is drawn and charged anew."""
    with parties.link(Killing) as link:
        link.crash = ("unmask", 0, "after")
        with pytest.raises(Crash):
            parties.train(link)
        link.kill("insurer")
        for name in ("bank", "shop") if restarted else ():
            link.restart(name)
        weights = parties.train(link)

    assert len(parties.ledger().entries()) == 3
    np.testing.assert_array_equal(weights, parties.replayed())
    parties.require_sound()


class Chaos(LoopbackLink):
    """Kills silos and the coordinator at random, and starts silos again."""

    def __init__(self, makers, *, chance: float, seed: int, **options):
        super().__init__(makers, seed=seed, **options)
        self.chance, self.random = chance, np.random.default_rng(10_000 + seed)
        self.makers = makers

    def ask(self, stage, round_number, requests, deadline_s):
        for name in NAMES:
            if self.random.random() < self.chance:
                self.kill(name)
        self._crash()
        for name, outcome in super().ask(stage, round_number, requests, deadline_s):
            yield name, outcome
            self._crash()
        for name in set(NAMES) - self.silos():
            if self.random.random() < 0.5:
                self.restart(name)

    def _crash(self):
        if self.random.random() < self.chance / 5:
            raise Crash

    def calm(self):
        self.chance, self._faults = 0.0, Faults()
        for name in set(NAMES) - self.silos():
            self.restart(name)


def mixture(random: np.random.Generator) -> Faults:
    """Some kinds of fault, each with a probability of its own."""
    kinds = ("lose", "delay", "repeat", "truncate", "forge")
    return Faults(
        **{kind: float(random.choice([0.0, 0.0, 0.02, 0.1])) for kind in kinds}, reorder=bool(random.random() < 0.5)
    )


def ended(parties: Parties, link: Chaos) -> np.ndarray:
    """Starts the coordinator, and silos that have died, until the run ends; nothing more goes wrong after some times."""
    for start in range(10):
        if start == 4:
            link.calm()
        stopped = ""
        with contextlib.suppress(Crash):
            try:
                return parties.train(link, attempts=3)
            except PipelineError as error:
                stopped = str(error)
            assert re.search("|".join(NAMES), stopped), stopped
        for name in set(NAMES) - link.silos():
            link.restart(name)
    raise AssertionError("the run does not end")


# Half a second each: TFF_PIPELINE_FAULT_BLOCKS=10 plays seeds 0 to 499, the suite the first 50.
@pytest.mark.parametrize("block", range(int(os.environ.get("TFF_PIPELINE_FAULT_BLOCKS", "1"))))
def test_random_mixtures_of_faults(in_memory, no_syncs, block):
    """Fifty of them, each from its seed."""
    for seed in range(50 * block, 50 * block + 50):
        random = np.random.default_rng(seed)
        parties = Parties(in_memory / str(seed), SHARES if seed % 2 else TWO)
        faults = mixture(random)
        with parties.link(Chaos, chance=float(random.choice([0.0, 0.03])), faults=faults, seed=seed) as link:
            weights = ended(parties, link)
            parties.require_sound(forged=bool(faults.forge))
            if not faults.forge:  # what the server broadcasts is vouched for by the link alone
                np.testing.assert_array_equal(weights, parties.replayed(), err_msg=f"seed {seed}")


@pytest.mark.parametrize(
    ("party", "file"),
    [*(("insurer", file) for file in ("ledger", "run.key", "rounds")), ("server", "ledger"), ("server", "attempts")],
)
@pytest.mark.parametrize("skipped", range(2))
def test_a_full_disk_at_one_party(parties, tmp_path, monkeypatch, party, file, skipped):
    """Some write of a file fails, half done, while a round runs; then there is space again."""
    real, failing, passed = os.fsync, [True], [0]

    def full(handle: int) -> None:
        path = os.readlink(f"/proc/self/fd/{handle}")
        if failing and path.startswith(str(parties.folder / party)) and file in path:
            passed[0] += 1
            if passed[0] > skipped:
                raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with parties.link() as link:
        if party == "server":
            with pytest.raises(TrainingError, match=r"could not be written .*It is the turn of the coordinator"):
                parties.train(link)
        else:
            parties.train(link)
        parties.require_sound()
        failing.clear()
        if party != "server":
            link.restart(party)
        weights = parties.train(link)

    np.testing.assert_array_equal(weights, parties.replayed())
    parties.require_sound()


class Lying(LoopbackLink):
    """One silo's answers in the stage of work are changed."""

    change = staticmethod(lambda content: content)

    def _outcomes(self, stage, round_number, requests):
        for name, outcome in super()._outcomes(stage, round_number, requests):
            lies = stage == "mask" and name == "shop" and isinstance(outcome, Answer)
            yield name, Answer(self.change(bytes(outcome.content))) if lies else outcome


@pytest.mark.parametrize(
    "change", [lambda content: content[:-8], lambda content: content + bytes(8), lambda content: b""]
)
def test_a_silo_that_lies_about_lengths_is_out_of_the_round(parties, change):
    with parties.link(Lying) as link:
        link.change = change
        weights = parties.train(link)

    assert [total.survivors for _, total in parties.sums] == [("bank", "insurer")] * 2
    np.testing.assert_array_equal(weights, parties.replayed())
    parties.require_sound()


@pytest.mark.parametrize(("dtype", "shape"), [("<f1", (8,)), ("|u1", (1,) * 8 + (0,) * 80)])
def test_an_array_that_numpy_lacks_is_refused_in_words(dtype, shape):
    sent = requests.Array(dtype=dtype, shape=shape, content=memoryview(bytes(8 if 0 not in shape else 0)))

    with pytest.raises(ProtocolError, match=r"silo bank: has an array of .*expected a type and a shape that NumPy has"):
        requests.to_arrays([sent], where="silo bank")


def test_a_disk_that_becomes_full_leaves_no_part_of_a_line(tmp_path):
    """The system takes what there is room for, and says so only to the next write."""
    path = tmp_path / "lines"
    path.write_bytes(b"first\n")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    journal = FileJournal(tmp_path / "journal.jsonl", "run")
    before = (tmp_path / "journal.jsonl").read_bytes()
    with path.open("ab") as file:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 9, limits[1]))
            with pytest.raises(OSError, match="File too large"):
                append_synced(file.fileno(), bytes(len(before) + 9))
            with pytest.raises(OSError, match="File too large"):
                journal.note("advertise", 0, 0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert path.read_bytes() == b"first\n"
    assert (tmp_path / "journal.jsonl").read_bytes() == before
