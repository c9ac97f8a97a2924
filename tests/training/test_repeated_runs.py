"""Runs that are done again after somebody deleted, restored, copied or edited some of their files.

Whatever was done, a round is either the very same release as before, charged once, or a fresh one with a cohort and noise
of its own, charged as one more. The rounds are real ones of the local runtime; what every party drew and reported is
written down beside them.
"""

import dataclasses
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from builders.plans import plan as a_plan
from builders.repeated_rounds import (
    MECHANISMS,
    ROUNDS,
    SETTINGS,
    Observer,
    edit,
    resealed,
    sampled_anew,
    silo_rows,
    tampered,
    told,
)
from builders.tiny import PRIVATE, prepared, quiet

from tff_pipeline.artifacts import MANIFEST, Workdir, is_complete, read_json
from tff_pipeline.config import load
from tff_pipeline.errors import ArtifactError, PipelineError, PrivacyError
from tff_pipeline.training import run as training
from tff_pipeline.training import secrets


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two silos of 40 clients; two cohorts of a silo are equal by chance less often than once in 10^10."""
    folder = tmp_path_factory.mktemp("tiny")
    prepared(folder, {silo: silo_rows(silo, 40) for silo in ("bank", "shop")}, changes=[*SETTINGS, *PRIVATE])
    return folder


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
        work = training.job(load(folder / "config.toml", [*SETTINGS, *PRIVATE, "pipeline.seed=3", *changes]))
        draws = secrets.draws_of(work, a_plan(), "network", quiet())
        return draws.server.noise(draws.round(["start"]), [(3,)])[0].tolist()

    assert noise() == noise("runtime.kind=reference") == noise("training.keep_states=1")
    assert noise() != noise("training.client_learning_rate=0.4")
    assert noise() != noise("pipeline.seed=4")


# -- whatever is done

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
