"""A silo and the coordinator charge ledgers that the other cannot read, and each sees where the other's has become another."""

import shutil

import pytest
from builders.plans import plan

from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy.ledger import Ledger
from tff_pipeline.privacy.party_charges import PopulationAccount, SiloAccount
from tff_pipeline.privacy.round import Round

DRAW, NAMES = "d" * 64, ("bank", "shop")


def at(number, start="s"):
    return Round(DRAW, tuple(f"{start}{index}" for index in range(number + 1)))


class Both:
    """The two parties' ledgers, opened anew at every use as other processes would."""

    def __init__(self, folder, budget=None):
        self.folder, self.budget = folder, budget

    def ledger(self, silo=""):
        return Ledger(self.folder / (silo or "population") / "ledger.jsonl", "customers", silo=silo)

    def silo(self, name="bank"):
        return SiloAccount(
            self.ledger(name), self.budget, plan(rounds=2, sampling_probability=1.0), run="run", draw=DRAW[:16]
        )

    def population(self):
        return PopulationAccount(
            self.ledger(), self.budget, plan(rounds=2, sampling_probability=1.0), run="run", draw=DRAW[:16]
        )

    def charge(self, round_at):
        positions = {name: self.silo(name).position for name in NAMES}
        line = self.population().charge_population(round_at, positions)
        for name in NAMES:
            self.silo(name).charge_own(round_at, counterpart=line, members=NAMES)
        return line


@pytest.fixture
def both(tmp_path):
    return Both(tmp_path)


def test_each_line_names_the_other(both):
    line = both.charge(at(0))

    (charged,), (own,) = both.ledger().entries(), both.ledger("bank").entries()
    assert line == {"lines": 1, "hash": charged["hash"]} == own["counterpart"]
    assert charged["silos"]["bank"] == {"lines": 0, "hash": "0" * 64}
    assert own["members"] == ["bank", "shop"]
    assert own["start"] == charged["start"] == "s0"


def test_the_same_draw_is_charged_once_and_another_start_again(both):
    first = both.charge(at(0))
    assert both.charge(at(0)) == first
    assert len(both.ledger().entries()) == len(both.ledger("bank").entries()) == 1

    both.charge(at(0, "other"))
    assert len(both.ledger().entries()) == len(both.ledger("bank").entries()) == 2


def test_the_population_knows_whom_a_draw_was_charged_to(both):
    assert both.population().members(at(0)) is None
    both.charge(at(0))

    assert both.population().members(at(0)) == NAMES
    assert both.population().members(at(0, "other")) is None
    assert both.population().members(at(1)) is None


def test_a_silo_goes_on_with_the_ledger_that_the_population_counted(both):
    assert both.population().last_known("bank") is None
    both.silo().require_continues(None)
    both.charge(at(0))
    both.charge(at(1))

    known = both.population().last_known("bank")
    assert known is not None
    assert known["lines"] == 1
    both.silo().require_continues(known)  # it is one line further by now
    assert both.population().last_known("insurer") is None


@pytest.mark.parametrize("kept", [0, 1])
def test_an_older_copy_of_a_silos_ledger_is_refused(both, tmp_path, kept):
    for number in range(kept):
        both.charge(at(number))
    backup = tmp_path / "backup"
    if kept:
        shutil.copytree(tmp_path / "bank", backup)
    for number in range(kept, kept + 2):
        both.charge(at(number))
    shutil.rmtree(tmp_path / "bank")
    if kept:
        shutil.copytree(backup, tmp_path / "bank")

    with pytest.raises(
        PrivacyError, match=rf"has {kept} lines, .* this silo's had {kept + 1}, .*Nothing was charged. Restore it"
    ):
        both.silo().require_continues(both.population().last_known("bank"))


def test_another_ledger_of_the_same_length_is_refused(both, tmp_path):
    both.charge(at(0))
    both.charge(at(1))
    other = Both(tmp_path / "elsewhere")
    other.charge(at(0, "other"))
    other.charge(at(1, "other"))
    shutil.rmtree(tmp_path / "bank")
    shutil.copytree(tmp_path / "elsewhere" / "bank", tmp_path / "bank")

    with pytest.raises(PrivacyError, match="of which the last is not here"):
        both.silo().require_continues(both.population().last_known("bank"))


def test_a_run_whose_rounds_do_not_fit_the_budget_does_not_begin(tmp_path):
    for account in (Both(tmp_path, budget=0.1).silo, Both(tmp_path, budget=0.1).population):
        with pytest.raises(PrivacyError, match=r"over .*budget_epsilon 0.1 .*rounds left at these settings: 0"):
            account()


def test_a_round_that_is_drawn_anew_stops_before_it_passes_the_budget(tmp_path):
    """The planned rounds fit exactly; one that is charged again does not."""
    made = plan(rounds=2, sampling_probability=1.0)
    ledger = Both(tmp_path).ledger("bank")
    budget = ledger.epsilon(made.delta, planned=made.round_event, rounds=made.rounds)
    account = SiloAccount(ledger, budget, made, run="run", draw=DRAW[:16])
    line = {"lines": 1, "hash": "0" * 64}
    for number in (0, 1, 1):
        account.charge_own(at(number), counterpart=line, members=NAMES)

    with pytest.raises(PrivacyError, match=r"round 2 would pass the budget .* starts from something else now"):
        account.charge_own(at(1, "other"), counterpart=line, members=NAMES)
    assert len(ledger.entries()) == made.rounds


def test_a_silo_that_was_not_charged_does_not_work(both):
    both.charge(at(0))

    both.silo().require_charged("bank", at(0))
    with pytest.raises(PrivacyError, match=r"round 2 of run run is not charged to silo bank.*Nothing was computed"):
        both.silo().require_charged("bank", at(1))
