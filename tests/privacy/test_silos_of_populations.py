"""A silo in more than one population; silos that come, leave and change their names."""

import json
import shutil
from pathlib import Path

import pytest
from builders.ledgers import PLAN, copied, delete, refused, rounds

from tff_pipeline.cli import main
from tff_pipeline.errors import ConfigError, PrivacyError
from tff_pipeline.privacy import charges as account


def test_a_silo_in_two_populations_is_witnessed_by_both(folder, capsys):
    people, friends = folder.config("bank", "shop"), folder.config("bank", population="friends")
    folder.charge(people, 2)
    folder.charge(friends, 2)
    folder.charge(people, 4)
    assert rounds(people) == [4, 6, 4]
    assert rounds(friends) == [2, 6]
    # Set back to before the charges of one population: the other's, older ones, are all there.
    older = folder.of_silo("bank")[0].read_bytes().splitlines(keepends=True)[:2]
    delete(folder.of_silo("bank"))
    folder.of_silo("bank")[0].write_bytes(b"".join(older))
    head = {"entries": 2, "hash": json.loads(older[-1])["hash"]}
    folder.of_silo("bank")[1].write_text(json.dumps(head))
    for config in (people, friends):
        refused(folder, config, capsys, r"bank/ledger\.jsonl: ends after 2 lines")


def test_where_one_of_two_populations_is_reset_both_are_refused(folder, capsys):
    """The silo's own ledger tells; and what else was reset with that population cannot be known in the other one either."""
    people, friends = folder.config("bank", "shop"), folder.config("bank", population="friends")
    folder.charge(people, 2)
    folder.charge(friends, 2)
    delete(folder.of_population("friends"))
    for config in (people, friends):
        refused(
            folder,
            config,
            capsys,
            r"lacks round 1 of run r1, which silo 'bank' was charged .*recover --set privacy\.population=friends",
        )
    assert main(["ledger", "recover", "--config", people.path, "--set", "privacy.population=friends"]) == 0
    for config in (people, friends):
        folder.charge(config, 1, run="next")
    assert rounds(friends) == [3, 6]


def test_a_silo_set_back_together_with_one_population_is_found_out_by_another_silo(folder, capsys):
    people, friends = folder.config("bank"), folder.config("bank", "shop", population="friends")
    folder.charge(people, 1)
    older = copied([*folder.of_silo("bank"), *folder.of_population("friends")])
    folder.charge(friends, 2)
    older()
    refused(
        folder, people, capsys, r"population 'friends' has no ledger in this workdir.*which silo 'shop' was charged"
    )


def test_a_new_silo_joins_and_is_seen_to(folder, capsys):
    folder.charge(folder.config("bank"), 2)
    more = folder.config("bank", "shop")
    charges = account.opened(more, PLAN, run="r2", draw="d")
    assert any("silo 'shop' is new to population 'people'" in note for note in charges.notes)
    charges.charge(1)
    assert not account.opened(more, PLAN, run="r2", draw="d").notes
    assert rounds(more) == [3, 3, 1]
    assert main(["ledger", "show", "--config", more.path]) == 0
    assert "silo shop: named by 1 charges, lines 3 to 3" in capsys.readouterr().out


def test_a_silo_that_leaves_and_comes_back_brings_its_ledger(folder, capsys):
    both, one = folder.config("bank", "shop"), folder.config("bank")
    folder.charge(both, 2)
    folder.charge(one, 2, run="r2")
    kept = copied(folder.of_silo("shop"))
    delete(folder.of_silo("shop"))
    folder.charge(one, 1, run="r3")
    refused(folder, both, capsys, r"shop/ledger\.jsonl: ends after 0 lines, where line 2 of .* counted 1")
    kept()
    folder.charge(both, 3, run="r4")
    assert rounds(both) == [8, 8, 5]


def test_a_new_silo_in_the_place_of_another_is_admitted_by_a_person(folder, capsys):
    folder.charge(folder.config("bank", "shop"), 2)
    changed = folder.config("bank", "acme")
    refused(folder, changed, capsys, "does not know silo 'acme'")
    assert main(["ledger", "admit", "--silo", "acme", "--config", changed.path]) == 0
    folder.charge(changed, 2, run="r2")
    assert rounds(changed) == [4, 4, 2]
    assert main(["ledger", "show", "--config", changed.path]) == 0
    assert "line 3: silo acme is new" in capsys.readouterr().out
    # Admitted once; and not to be reset in that way.
    with pytest.raises(PrivacyError, match="names silo 'acme' already"):
        account.admit(changed, "acme")


def test_a_silo_that_left_for_good_is_not_asked_about_again(folder, capsys):
    folder.charge(folder.config("bank", "shop"), 2)
    one, changed = folder.config("bank"), folder.config("bank", "acme")
    assert main(["ledger", "leave", "--silo", "shop", "--config", one.path]) == 0
    folder.charge(changed, 1, run="r2")
    assert main(["ledger", "show", "--config", changed.path]) == 0
    assert "silo shop left" in capsys.readouterr().out
    # It has charges still: when it comes back, its ledger has to be there.
    delete(folder.of_silo("shop"))
    refused(folder, folder.config("bank", "acme", "shop"), capsys, r"shop/ledger\.jsonl: ends after 0 lines")
    with pytest.raises(PrivacyError, match="says already that it left"):
        account.leave(one, "shop")


def test_a_silo_with_a_new_name_takes_its_charges_along(folder):
    """Also those of another population, and of the rounds it was in under the old name only."""
    people, friends = folder.config("bank", "shop"), folder.config("bank", population="friends")
    folder.charge(people, 2)
    folder.charge(friends, 3)
    renamed = folder.config("acme", "shop")
    said = account.admit(renamed, "acme", formerly="bank")
    assert "5 charges were added" in said
    folder.charge(renamed, 1, run="r2")
    folder.charge(folder.config("acme", population="friends"), 1, run="r2")
    assert rounds(renamed) == [3, 7, 3]
    # The new name is held to the old one's charges too.
    delete(folder.of_silo("acme"))
    with pytest.raises(PrivacyError, match=r"acme/ledger\.jsonl: ends after 0 lines"):
        folder.charge(renamed, 1, run="r3")


@pytest.mark.parametrize("formerly", ["bank", "acme"])
def test_a_ledger_that_was_lost_is_charged_again(folder, formerly):
    """By what every population's ledger says, under the old name or a new one."""
    people, friends = folder.config("bank", "shop"), folder.config("bank", population="friends")
    folder.charge(people, 2)
    folder.charge(friends, 3)
    folder.charge(people, 4)
    shutil.rmtree(folder.silo("bank"))
    name = {"bank": "bank", "acme": "acme"}[formerly]
    config = folder.config(name, "shop")
    account.admit(config, name, formerly="bank")
    folder.charge(config, 1, run="r2")
    folder.charge(folder.config(name, population="friends"), 1, run="r2")
    assert rounds(config) == [5, 9, 5]


def test_a_populations_ledger_that_was_lost_is_charged_again_from_the_silos(folder, capsys):
    config = folder.config("bank", "shop")
    folder.charge(folder.config("bank"), 1)
    folder.charge(config, 2, run="r2")
    older = copied(folder.of_population("people"))
    folder.charge(config, 2, run="r3")
    for lose in (lambda: delete(folder.of_population("people")), older):
        lose()
        assert main(["ledger", "recover", "--config", config.path]) == 0
        assert main(["ledger", "verify", "--config", config.path]) == 0
    folder.charge(config, 1, run="r4")
    assert rounds(config) == [6, 6, 5]
    # A silo that was reset with it is found out by the other one's lines.
    delete([*folder.of_population("people"), *folder.of_silo("shop")])
    assert main(["ledger", "recover", "--config", config.path]) == 0
    refused(folder, config, capsys, r"shop/ledger\.jsonl: (lacks round 1 of run r2|ends after 0 lines)")
    with pytest.raises(PrivacyError, match="there is nothing to recover"):
        account.recover(config)


def test_decisions_forged_into_a_populations_ledger_free_no_silo_of_its_charges(folder, capsys):
    config = folder.config("bank", "shop")
    folder.charge(config, 2)
    delete(folder.of_silo("bank"))
    (population, _), (bank, _), _ = account.ledgers(config)
    for decision in (
        {"kind": "admit", "silo": "bank", "position": bank.position()},
        {"kind": "admit", "silo": "bank", "position": bank.position(), "formerly": "bank"},
        {"kind": "leave", "silo": "bank"},
        {"kind": "recover", "silos": {"bank": bank.position()}},
    ):
        before = copied(folder.of_population("people"))
        population.decide(decision)
        refused(folder, config, capsys, r"bank/ledger\.jsonl: (lacks round 1 of run r1|ends after 0 lines)")
        before()


@pytest.mark.parametrize("write", range(7))
def test_an_admission_that_was_killed_is_done_by_doing_it_again(folder, monkeypatch, write):
    """Killed before any of the files that it writes: three charges and two decisions, with their heads."""
    from tff_pipeline.privacy import hash_chain as module

    people, friends = folder.config("bank", "shop"), folder.config("bank", population="friends")
    folder.charge(people, 2)
    folder.charge(friends, 1)
    delete(folder.of_silo("bank"))
    left, atomic = write, module.write_atomic

    def write_or_die(path: Path, data: bytes) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        atomic(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_atomic", write_or_die)
        try:
            account.admit(people, "bank", formerly="bank")
        except KeyboardInterrupt:
            assert write < 5
    account.admit(people, "bank", formerly="bank")
    assert rounds(people) == [2, 3, 2]
    for config in (people, friends):
        folder.charge(config, 1, run="next")


def test_a_decision_of_a_newer_version_is_refused_by_its_line(folder, capsys):
    config = folder.config("bank")
    folder.charge(config, 1)
    (population, _), _ = account.ledgers(config)
    for decision in ({"kind": "forget"}, {"kind": "admit", "silo": "bank"}):
        before = copied(folder.of_population("people"))
        population.decide(decision)
        refused(folder, config, capsys, r"people\.jsonl: line 2 is a decision that this version does not know")
        before()


def test_a_silo_name_that_is_a_path_leads_nowhere(folder):
    """Forged into a population's newest line, whose missing counterparts are completed."""
    config = folder.config("bank")
    folder.charge(config, 1)
    (population, _), (bank, _) = account.ledgers(config)
    silos = {"bank": bank.position(), "../../out": {"lines": 0, "hash": "0" * 64}}
    population.charge(run="r2", round_number=1, event=PLAN.round_event, draw="d", silos=silos)
    account.opened(config, PLAN, run="r3", draw="d")
    assert rounds(config) == [2, 2]
    assert not (folder.root / "out").exists()


def test_decisions_are_refused_where_they_make_no_sense(folder):
    config = folder.config("bank", "shop")
    folder.charge(config, 1)
    for words, decide in (
        ("expected a silo of", lambda: account.admit(config, "acme")),
        ("is a silo of .* too", lambda: account.admit(config, "bank", formerly="shop")),
        ("expected one that is no longer there", lambda: account.leave(config, "bank")),
    ):
        with pytest.raises(ConfigError, match=words):
            decide()
    with pytest.raises(PrivacyError, match="does not name silo 'nobody'"):
        account.admit(config, "bank", formerly="nobody")
    delete(folder.of_population("people"))
    with pytest.raises(PrivacyError, match=r"nothing can be decided before this is put right.*recover"):
        account.admit(config, "bank", formerly="bank")
