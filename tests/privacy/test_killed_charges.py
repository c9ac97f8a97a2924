"""A charge that was killed between any two files is completed."""

import pytest
from builders.ledgers import PLAN, copied, killed, refused, rounds

from tff_pipeline.cli import main
from tff_pipeline.privacy import charges as account


@pytest.mark.parametrize("draw", ["d", "other"])
@pytest.mark.parametrize("write", range(6))
def test_a_charge_that_was_killed_between_any_two_files_is_completed(folder, monkeypatch, write, draw):
    """Also where the run comes back with other secrets, or another run comes: the round is charged everywhere or nowhere."""
    config = folder.config("bank", "shop")
    folder.charge(config, 1)
    assert killed(monkeypatch, config, write=write, run="r1", draw="d", number=2)
    charges = account.opened(config, PLAN, run="r1", draw=draw)
    begun = write > 0
    assert rounds(config) == [2 if begun else 1] * 3
    charges.charge(2)
    assert rounds(config) == [3 if begun and draw == "other" else 2] * 3
    account.opened(config, PLAN, run="r1", draw=draw)


def test_a_charge_that_was_killed_is_completed_in_a_silo_that_left_meanwhile(folder, monkeypatch):
    both, one = folder.config("bank", "shop"), folder.config("bank")
    folder.charge(both, 1)
    assert killed(monkeypatch, both, write=2, run="r1", draw="d", number=2)
    folder.charge(one, 1, run="r2")
    folder.charge(both, 1, run="r3")
    assert rounds(both) == [4, 4, 3]


def test_a_charge_that_was_killed_before_a_silos_first_line_is_completed_though_the_silo_left(folder, monkeypatch):
    both, one = folder.config("bank", "shop"), folder.config("bank")
    assert killed(monkeypatch, both, write=2, run="r1", draw="d", number=1)
    assert not folder.of_silo("shop")[0].exists()
    folder.charge(one, 2, run="r2")
    folder.charge(both, 1, run="r3")
    assert rounds(both) == [4, 4, 2]


def test_a_charge_that_was_killed_is_completed_by_a_run_on_another_population(folder, monkeypatch):
    """Before that one charges the silo, so that the silo's lines stay in order."""
    people, friends = folder.config("bank", "shop"), folder.config("bank", population="friends")
    assert killed(monkeypatch, people, write=1, run="r1", draw="d", number=1)
    folder.charge(friends, 1)
    folder.charge(people, 2)
    assert rounds(people) == [2, 3, 2]


def test_only_the_newest_charge_may_lack_its_counterpart(folder, capsys):
    config = folder.config("bank", "shop")
    folder.charge(config, 2)
    two = copied(folder.of_silo("bank"))
    folder.charge(config, 3)
    two()
    capsys.readouterr()
    assert main(["ledger", "verify", "--config", config.path]) == 0
    assert "not yet in" in capsys.readouterr().out
    account.opened(config, PLAN, run="r1", draw="lost")
    assert rounds(config) == [3, 3, 3]
    folder.charge(config, 4)
    two()
    refused(folder, config, capsys, r"bank/ledger\.jsonl: ends after 2 lines, where line 4 of .* counted 3")
