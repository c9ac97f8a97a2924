"""The ledgers: what is charged once, what a kill may leave behind, and every damage that has to be refused with its line."""

import json
import re
import time
from pathlib import Path

import pytest
from builders.plans import plan as a_plan
from builders.tiny import PRIVATE, ROWS, prepared, quiet

from tff_pipeline.artifacts import Workdir, is_complete
from tff_pipeline.config import Config, load
from tff_pipeline.errors import ConfigError, PrivacyError
from tff_pipeline.privacy import accounting
from tff_pipeline.privacy import charges as account
from tff_pipeline.privacy.comparison import compare
from tff_pipeline.privacy.ledger import Ledger
from tff_pipeline.privacy.round import Round

EVENT = {"kind": "poisson_gaussian", "sampling_probability": 0.1, "noise_multiplier": 1.2}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledgers" / "people.jsonl", "people")


def anew(ledger: Ledger) -> Ledger:
    """The same ledger as another process sees it."""
    return Ledger(ledger.path, ledger.population, silo=ledger.silo)


def problems(population: Ledger, silo: Ledger) -> list[str]:
    """What is wrong between the ledgers of a population and of its only silo."""
    comparison = compare(
        {population.population: population}, {silo.silo: silo}, population=population.population, configured=[silo.silo]
    )
    return [problem.text for problem in comparison.problems]


def charged(ledger: Ledger, rounds: int, *, run: str = "r1", draw: str = "d") -> list[bool]:
    return [ledger.charge(run=run, round_number=number, event=EVENT, draw=draw) for number in range(1, rounds + 1)]


# -- charging


def test_a_round_is_charged_once_and_its_repetition_not_at_all(ledger):
    assert charged(ledger, 3) == [True] * 3
    assert charged(anew(ledger), 4) == [False, False, False, True]
    assert [entry["round"] for entry in anew(ledger).entries()] == [1, 2, 3, 4]


def test_the_same_round_under_other_secrets_is_another_release(ledger):
    charged(ledger, 2)
    assert charged(ledger, 2, draw="other") == [True, True]
    # The two draws of round 1 and 2 are four releases, whichever of them the planned run has drawn.
    assert ledger.epsilon(1e-5, planned=EVENT, rounds=2, run="r1", draw="other") == pytest.approx(
        accounting.epsilon([(EVENT, 4)], 1e-5)
    )


def test_the_same_round_from_another_start_is_another_release(ledger):
    """The state before round 2 was edited: cohort and noise are others. A repetition from the same start is not charged."""
    assert charged(ledger, 3) == [True] * 3
    again = {"run": "r1", "round_number": 2, "event": EVENT, "draw": "d"}
    assert [ledger.charge(**again, start=start) for start in ("x", "y", "x")] == [True, True, False]
    assert ledger.epsilon(1e-5) == pytest.approx(accounting.epsilon([(EVENT, 5)], 1e-5))
    # Four rounds are planned: three of them are charged, and two releases more have been.
    assert ledger.epsilon(1e-5, planned=EVENT, rounds=4, run="r1", draw="d") == pytest.approx(
        accounting.epsilon([(EVENT, 6)], 1e-5)
    )


def test_rounds_of_a_tree_from_another_start_are_a_second_line_of_trees(ledger):
    """Six rounds, and rounds 3 and 4 once more: trees of six rounds and trees of four, which begin with the run."""
    tree = {"kind": "tree", "noise_multiplier": 5.0, "rounds_per_tree": 3}
    for number in range(1, 7):
        ledger.charge(run="r1", round_number=number, event=tree, draw="d", start="a")
    for number in (3, 4):
        ledger.charge(run="r1", round_number=number, event=tree, draw="d", start="b")
    both = accounting.epsilon([(tree, 6), (tree, 4)], 1e-5)
    assert ledger.epsilon(1e-5) == pytest.approx(both)
    assert ledger.epsilon(1e-5, planned=tree, rounds=6, run="r1", draw="d") == pytest.approx(both)
    assert ledger.epsilon(1e-5, planned=tree, rounds=9, run="r1", draw="d") == pytest.approx(
        accounting.epsilon([(tree, 9), (tree, 4)], 1e-5)
    )
    assert ledger.epsilon(1e-5, planned=tree, rounds=4, run="r1", draw="d", again=True) == pytest.approx(
        accounting.epsilon([(tree, 6), (tree, 4), (tree, 4)], 1e-5)
    )


def test_rounds_that_are_done_are_not_planned_again_under_new_keys(ledger):
    """A key was lost after round 3 of 5: three were charged under the old draw, and two are left to charge."""
    charged(ledger, 3, draw="old")
    assert ledger.epsilon(1e-5, planned=EVENT, rounds=5, done=3, run="r1", draw="new") == pytest.approx(
        accounting.epsilon([(EVENT, 5)], 1e-5)
    )
    # One of them was charged before a kill.
    ledger.charge(run="r1", round_number=4, event=EVENT, draw="new")
    assert ledger.epsilon(1e-5, planned=EVENT, rounds=5, done=3, run="r1", draw="new") == pytest.approx(
        accounting.epsilon([(EVENT, 5)], 1e-5)
    )


def test_rounds_charged_beyond_those_planned_are_spent_all_the_same(ledger):
    """All four rounds were charged; the states were lost, and the rounds are run again from something else."""
    for number in range(1, 5):
        ledger.charge(run="r1", round_number=number, event=EVENT, draw="d", start="a")
    five = accounting.epsilon([(EVENT, 5)], 1e-5)
    plan = {"planned": EVENT, "rounds": 1, "run": "r1", "draw": "d"}
    assert ledger.epsilon(1e-5, **plan, again=True) == pytest.approx(five)
    assert ledger.rounds_left(five * 0.999, 1e-5, **plan, again=True) < 1
    tree = {"kind": "tree", "noise_multiplier": 5.0, "rounds_per_tree": 3}
    for number in range(1, 9):
        ledger.charge(run="r2", round_number=number, event=tree, draw="d", start="a")
    more = ledger.epsilon(1e-5, planned=tree, rounds=3, run="r2", draw="d", again=True)
    assert more == pytest.approx(accounting.epsilon([(EVENT, 4), (tree, 8), (tree, 3)], 1e-5))


def test_a_run_done_again_with_new_keys_pays_again(ledger):
    """Its folder and keys were removed: ten rounds were charged, ten more will be, and the budget has room for 15."""
    charged(ledger, 10, draw="lost")
    enough = accounting.epsilon([(EVENT, 15)], 1e-5)
    with pytest.raises(PrivacyError, match=r"rounds left at these settings: 5\."):
        ledger.require_budget(enough, 1e-5, planned=EVENT, rounds=10, run="r1", draw="new")


def test_a_round_cannot_be_charged_with_another_event(ledger):
    charged(ledger, 1)
    with pytest.raises(PrivacyError, match="round 1 of run r1 was charged as"):
        ledger.charge(run="r1", round_number=1, event={**EVENT, "noise_multiplier": 9.0}, draw="d")


def test_two_runs_on_one_population_exclude_each_other(ledger):
    with ledger.exclusively():
        with pytest.raises(PrivacyError, match="another run is training on population 'people'"):
            with anew(ledger).exclusively():
                pass
    with ledger.exclusively():
        pass


def test_budgets_compose_over_runs_and_say_what_is_left(ledger):
    charged(ledger, 10, run="earlier")
    enough = accounting.epsilon([(EVENT, 15)], 1e-5)
    ledger.require_budget(enough, 1e-5, planned=EVENT, rounds=5, run="now", draw="d")
    with pytest.raises(
        PrivacyError, match=r"20 rounds would bring population 'people' .* rounds left at these settings: 5\."
    ):
        ledger.require_budget(enough, 1e-5, planned=EVENT, rounds=20, run="now", draw="d")
    # A run that is under way has been charged some of its own rounds already.
    charged(ledger, 3, run="now")
    ledger.require_budget(enough, 1e-5, planned=EVENT, rounds=5, run="now", draw="d")


def test_the_ledger_holds_no_secret_and_no_text(ledger):
    charged(ledger, 1)
    (entry,) = [json.loads(line) for line in ledger.path.read_text().splitlines()]
    assert set(entry) == {"population", "run", "round", "event", "draw", "time", "version", "previous", "hash"}


def test_ten_thousand_charges_are_checked_in_seconds_and_the_next_costs_what_the_first_did(ledger):
    ledger.path.parent.mkdir()
    lines, previous = [], "0" * 64
    from tff_pipeline.artifacts import canonical_json
    from tff_pipeline.privacy.hash_chain import _hash

    for number in range(1, 10_001):
        entry = {"population": "people", "run": f"r{number % 50}", "round": number, "event": EVENT, "draw": "d"}
        entry |= {"time": "2026-01-01T00:00:00Z", "version": "0", "previous": previous}
        previous = entry["hash"] = _hash(entry)
        lines.append(canonical_json(entry) + b"\n")
    ledger.path.write_bytes(b"".join(lines))
    ledger.head_path.write_bytes(canonical_json({"entries": 10_000, "hash": previous}))

    started = time.monotonic()
    assert len(ledger.entries()) == 10_000
    checked = time.monotonic()
    charged(ledger, 20, run="next")
    ended = time.monotonic()

    print(f"{checked - started:.2f} s for all, {(ended - checked) / 20 * 1000:.1f} ms a charge")
    assert checked - started < 5
    assert (ended - checked) / 20 < (checked - started) / 2  # 3 ms were seen, most of it waiting for the disk
    assert len(anew(ledger).entries()) == 10_020


# -- kills


def test_a_kill_at_any_byte_loses_at_most_the_line_being_written(ledger):
    """The head is written after the line, so while line 3 is written the head stands at 2."""
    charged(ledger, 2)
    head = ledger.head_path.read_bytes()
    before = len(ledger.path.read_bytes())
    charged(ledger, 3)
    whole = ledger.path.read_bytes()
    for cut in range(before, len(whole) + 1):
        ledger.path.write_bytes(whole[:cut])
        ledger.head_path.write_bytes(head)
        complete = 3 if cut == len(whole) else 2
        assert len(anew(ledger).entries()) == complete
        assert charged(anew(ledger), 3) == [False] * complete + [True] * (3 - complete)
        assert len(anew(ledger).entries()) == 3


def test_a_kill_before_the_first_head_is_legal(ledger):
    charged(ledger, 1)
    ledger.head_path.unlink()
    assert len(anew(ledger).entries()) == 1
    assert charged(anew(ledger), 2) == [False, True]
    assert len(anew(ledger).entries()) == 2


def test_kills_between_line_and_head_again_and_again_leave_a_sound_ledger(ledger, monkeypatch):
    """Each charge is killed before it writes the head; the next one first counts the line that is there."""
    from tff_pipeline.privacy import hash_chain as module

    write = module.write_atomic

    def killed(path: Path, data: bytes) -> None:
        if json.loads(data)["entries"] == number:
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr(module, "write_atomic", killed)
    for number in range(1, 5):
        with pytest.raises(KeyboardInterrupt):
            anew(ledger).charge(run="r1", round_number=number, event=EVENT, draw="d")
        assert len(anew(ledger).entries()) == number


# -- damage


@pytest.mark.parametrize(
    "damage", ["edited", "last line edited", "swapped", "first line gone", "not JSON", "not an object"]
)
def test_a_damaged_ledger_is_refused_with_its_line(ledger, damage):
    charged(ledger, 3)
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    weaker = (b'"noise_multiplier":1.2', b'"noise_multiplier":9.2')
    line = {"edited": 1, "last line edited": 3, "first line gone": 1}.get(damage, 2)
    if damage.endswith("edited"):
        lines[line - 1] = lines[line - 1].replace(*weaker)
    elif damage == "swapped":
        lines[1], lines[2] = lines[2], lines[1]
    elif damage == "first line gone":
        lines = lines[1:]
    else:
        lines[1] = b"spilled coffee\n" if damage == "not JSON" else b"[1, 2]\n"
    ledger.path.write_bytes(b"".join(lines))
    for reader in (ledger, anew(ledger)):
        with pytest.raises(PrivacyError, match=f"line {line} is damaged, edited or out of order"):
            charged(reader, 4)


def test_any_single_byte_changed_is_refused(ledger):
    charged(ledger, 2)
    whole = ledger.path.read_bytes()
    for place in range(len(whole)):
        ledger.path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(PrivacyError):
            anew(ledger).entries()


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_lines_missing_at_the_end_are_refused(ledger, kept):
    charged(ledger, 3)
    ledger.path.write_bytes(b"".join(ledger.path.read_bytes().splitlines(keepends=True)[:kept]))
    with pytest.raises(
        PrivacyError, match=f"line {kept + 1} is missing: the ledger ends after {kept} lines, .* counted 3"
    ):
        anew(ledger).entries()


def test_a_ledger_that_is_gone_is_refused(ledger):
    charged(ledger, 2)
    ledger.path.unlink()
    with pytest.raises(PrivacyError, match="line 1 is missing"):
        anew(ledger).entries()


def test_a_head_that_is_gone_edited_or_anothers_is_refused(ledger):
    charged(ledger, 3)
    good = ledger.head_path.read_text()
    for bad, words in (
        (None, "counts 0 lines, the ledger has 3"),
        ("not JSON", "is damaged"),
        (good.replace("3", "1", 1), "counts 1 lines, the ledger has 3"),
        (json.dumps({"entries": 3, "hash": "f" * 64}), "line 3 is not the one that its head"),
    ):
        ledger.head_path.unlink(missing_ok=True)
        if bad is not None:
            ledger.head_path.write_text(bad)
        with pytest.raises(PrivacyError, match=words):
            anew(ledger).entries()


def test_a_ledger_of_another_population_is_refused(ledger):
    charged(ledger, 1)
    with pytest.raises(PrivacyError, match="line 1 "):
        Ledger(ledger.path, "others").entries()


# -- the silos' own ledgers


def test_a_population_ledger_that_was_set_back_is_found_out_by_a_silo(ledger, tmp_path):
    silo = Ledger(tmp_path / "silo.jsonl", "people", silo="bank")
    for number in (1, 2):
        ledger.charge(run="r1", round_number=number, event=EVENT, draw="d")
        silo.charge(run="r1", round_number=number, event=EVENT, draw="d")
        if number == 1:
            older = ledger.path.read_bytes(), ledger.head_path.read_bytes()
    assert not problems(ledger, silo)
    for path, content in zip((ledger.path, ledger.head_path), older, strict=True):
        path.write_bytes(content)
    (problem,) = problems(anew(ledger), silo)
    assert re.search(r"lacks round 2 of run r1, which silo 'bank' was charged .*line 2", problem)


def test_a_silo_counts_what_its_clients_were_charged_under_any_name(tmp_path):
    path = tmp_path / "silo.jsonl"
    charged(Ledger(path, "people", silo="bank"), 3)
    renamed = Ledger(path, "friends", silo="bank")
    assert charged(renamed, 3) == [True] * 3
    assert renamed.epsilon(1e-5) == pytest.approx(accounting.epsilon([(EVENT, 6)], 1e-5))
    with pytest.raises(PrivacyError, match=r"would bring silo 'bank' .* over silos\[\]\.budget_epsilon"):
        renamed.require_budget(0.1, 1e-5, planned=EVENT, rounds=1, run="r2", draw="d")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return prepared(tmp_path_factory.mktemp("tiny"), ROWS, changes=PRIVATE)


def again(config: Config, folder: Path, *changes: str) -> Config:
    """The same prepared silos, with ledgers and runs of their own."""
    import shutil

    shutil.copytree(Path(config.path).parent, folder, dirs_exist_ok=True)
    return load(folder / "config.toml", [*PRIVATE, *changes])


def test_every_round_is_in_the_populations_ledger_and_in_each_silos(tiny, tmp_path):
    from tff_pipeline.training.run import train

    config = again(tiny, tmp_path)
    train(config, progress=quiet())
    charges = [[(entry["run"], entry["round"]) for entry in ledger.entries()] for ledger, _ in account.ledgers(config)]
    assert len(charges) == 3
    assert [number for _, number in charges[0]] == [1, 2]
    assert charges[0] == charges[1] == charges[2]


def test_a_silo_refuses_by_itself(tiny, tmp_path):
    from tff_pipeline.training.run import train

    config = again(tiny, tmp_path, "silos.1.budget_epsilon=0.1")
    with pytest.raises(PrivacyError, match=r"shop.ledger\.jsonl: .* would bring silo 'shop' to epsilon"):
        train(config, progress=quiet())
    assert not Workdir(config.workdir).ledger("tiny").exists()
    with pytest.raises(ConfigError, match=r"silos\[1\]\.budget_epsilon is 1\.0; .* nothing with mechanism"):
        load(config.path, ["silos.1.budget_epsilon=1.0"])


def test_a_run_stops_before_the_round_that_would_pass_the_budget_and_goes_on_when_it_is_raised(
    tiny, tmp_path, monkeypatch
):
    """Somebody charges the population while the run is under way, as a run on another machine would."""
    from tff_pipeline.training import run as training

    event = {"kind": "poisson_gaussian", "sampling_probability": 1.0, "noise_multiplier": 1.0}
    two = accounting.epsilon([(event, 2)], 1e-3)
    config = again(tiny, tmp_path, f"privacy.budget_epsilon={two * 1.01}")
    path = Workdir(config.workdir).ledger("tiny")
    save = training.StateStore.save

    def save_and_be_overtaken(self, number, *args):
        save(self, number, *args)
        if number == 1:
            Ledger(path, "tiny").charge(run="other", round_number=1, event=event, draw="d")

    monkeypatch.setattr(training.StateStore, "save", save_and_be_overtaken)
    with pytest.raises(PrivacyError, match=r"round 2 would pass the budget .* The model after round 1 is kept"):
        training.train(config, progress=quiet())
    run = training.job(config).folder
    assert is_complete(run / "states" / "round-00001")
    assert [entry["run"] for entry in Ledger(path, "tiny").entries()] == [run.name, "other"]

    monkeypatch.undo()
    raised = load(config.path, [*PRIVATE, "privacy.budget_epsilon=100"])
    assert training.train(raised, progress=quiet()) == run
    assert len(Ledger(path, "tiny").entries()) == 3


def test_a_run_without_privacy_uses_up_its_population(tiny, tmp_path):
    from tff_pipeline.training.run import train

    config = again(tiny, tmp_path)
    train(load(config.path), progress=quiet())
    with pytest.raises(PrivacyError, match="would bring population 'tiny' to epsilon inf"):
        train(load(config.path, [*PRIVATE, "privacy.budget_epsilon=50"]), progress=quiet())


def test_a_silo_is_told_whether_its_own_ledger_holds_this_draw_of_the_round(tmp_path):
    """Charged is the round of this run, this draw and this start, in the silo's ledger; whatever the population's says."""
    config = prepared(tmp_path, ROWS, changes=PRIVATE)
    run = account.opened(config, a_plan(delta=1e-3), run="r1", draw="d" * 16)
    at = Round("d" * 64, ("one", "two"))
    with pytest.raises(PrivacyError, match=r"round 2 of run r1 is not charged to silo bank.*Nothing was computed"):
        run.require_charged("bank", at)

    run.charge(2, start="two")

    run.require_charged("bank", at)
    for other in (Round("d" * 64, ("one", "another")), Round("d" * 64, ("two",))):
        with pytest.raises(PrivacyError, match="is not charged to silo bank"):
            run.require_charged("bank", other)
