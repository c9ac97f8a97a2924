"""Ledgers held against each other: whoever resets, renames or copies one is found out by those that were left alone."""

import json
import shutil

import pytest
from builders.ledgers import PLAN, Folder, copied, delete, refused, rounds
from builders.tiny import PRIVATE

from tff_pipeline.artifacts import canonical_json
from tff_pipeline.cli import main
from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy import charges as account


def test_a_silos_ledger_that_is_deleted_with_its_head_is_refused(folder, capsys):
    config = folder.config("bank", "shop")
    folder.charge(config, 3)
    delete(folder.of_silo("bank"))
    refused(folder, config, capsys, r"silos/bank/ledger\.jsonl: ends after 0 lines, where line 2 of .* counted 1")


def test_a_silos_ledger_that_is_replaced_by_an_older_copy_is_refused(folder, capsys):
    config = folder.config("bank", "shop")
    folder.charge(config, 1)
    older = copied(folder.of_silo("bank"))
    folder.charge(config, 4)
    older()
    refused(folder, config, capsys, r"silos/bank/ledger\.jsonl: ends after 1 lines, where line 3 of .* counted 2")


def test_a_silos_ledger_that_was_written_anew_is_refused(folder, capsys):
    """As long as the old one, and sound in itself."""
    config = folder.config("bank", "shop")
    folder.charge(config, 3)
    other = Folder(folder.root / "other")
    other.charge(other.config("bank", "shop", "more"), 3)
    for source, target in zip(other.of_silo("bank"), folder.of_silo("bank"), strict=True):
        shutil.copy(source, target)
    refused(
        folder,
        config,
        capsys,
        r"people\.jsonl: the line for round 1 .* is not the one that the silo names",
    )


def test_a_charge_that_was_made_weaker_in_a_silos_ledger_is_refused(folder, capsys):
    """The line and its hash are forged, and the head too; the last line has no successor that would tell."""
    from tff_pipeline.privacy.hash_chain import _hash

    config = folder.config("bank", "shop")
    folder.charge(config, 1)
    path, head = folder.of_silo("bank")
    line = json.loads(path.read_text())
    line["event"]["noise_multiplier"] = 99.0
    line["hash"] = _hash({key: value for key, value in line.items() if key != "hash"})
    path.write_bytes(canonical_json(line) + b"\n")
    head.write_bytes(canonical_json({"entries": 1, "hash": line["hash"]}) + b"\n")
    refused(folder, config, capsys, r"people\.jsonl: lacks round 1 of run r1, which silo 'bank' was charged")


def test_a_silo_whose_folder_and_name_were_changed_is_refused(folder, capsys):
    folder.charge(folder.config("bank", "shop"), 3)
    folder.silo("bank").rename(folder.silo("acme"))
    renamed = folder.config("acme", "shop")
    refused(
        folder, renamed, capsys, r"acme/ledger\.jsonl: line 1 belongs to the ledger of silo 'bank'; .*--formerly bank"
    )


def test_a_silo_that_was_renamed_in_the_configuration_only_is_refused(folder, capsys):
    folder.charge(folder.config("bank", "shop"), 3)
    renamed = folder.config("acme", "shop")
    refused(
        folder, renamed, capsys, r"does not know silo 'acme', while 'bank', charged before, is not in the configuration"
    )


def test_a_silo_whose_folder_was_removed_and_whose_name_was_changed_is_refused(folder, capsys):
    folder.charge(folder.config("bank", "shop"), 3)
    shutil.rmtree(folder.silo("bank"))
    refused(folder, folder.config("acme", "shop"), capsys, "does not know silo 'acme'")


def test_a_silo_whose_ledger_is_gone_does_not_start_anew_in_another_population(folder, capsys):
    """Under a new name, where nothing that the new population knows would tell."""
    folder.charge(folder.config("bank", "shop"), 3)
    shutil.rmtree(folder.silo("bank"))
    friends = folder.config("acme", population="friends")
    refused(folder, friends, capsys, "does not know silo 'acme', while 'bank'")
    before = copied(folder.of_population("people"))
    account.leave(friends, "bank")
    folder.charge(friends, 1)
    assert rounds(friends) == [1, 1]
    before()
    delete([*folder.of_population("friends"), *folder.of_silo("acme")])
    account.admit(friends, "acme", formerly="bank")
    folder.charge(friends, 1)
    folder.charge(folder.config("acme", "shop"), 1, run="r2")
    assert rounds(friends) == [1, 5]


def test_a_populations_ledger_that_is_deleted_with_its_head_is_refused(folder, capsys):
    config = folder.config("bank", "shop")
    folder.charge(config, 3)
    delete(folder.of_population("people"))
    refused(folder, config, capsys, r"lacks round 1 of run r1, which silo 'bank' was charged \(.*line 1\)")


def test_a_populations_ledger_that_is_deleted_is_refused_for_silos_that_are_not_in_the_configuration_too(
    folder, capsys
):
    folder.charge(folder.config("bank"), 3)
    delete(folder.of_population("people"))
    refused(folder, folder.config("shop"), capsys, r"lacks round 1 of run r1, which silo 'bank' was charged")


def test_a_populations_ledger_under_another_populations_name_is_refused(folder, capsys):
    folder.charge(folder.config("bank"), 2)
    for source, target in zip(folder.of_population("people"), folder.of_population("others"), strict=True):
        shutil.copy(source, target)
    config = folder.config("bank", population="others")
    refused(folder, config, capsys, r"others\.jsonl: line 1 belongs to the ledger of population 'people'")


def test_a_silos_ledger_under_another_silos_name_is_refused(folder, capsys):
    config = folder.config("bank", "shop")
    folder.charge(config, 2)
    for source, target in zip(folder.of_silo("shop"), folder.of_silo("bank"), strict=True):
        shutil.copy(source, target)
    refused(folder, config, capsys, r"bank/ledger\.jsonl: line 1 belongs to the ledger of silo 'shop'")


def test_both_older_copies_agree_and_only_an_anchor_tells(folder, tmp_path, capsys):
    """All in one hand: nothing that lies there can tell."""
    config = folder.config("bank", "shop")
    everything = [*folder.of_population("people"), *folder.of_silo("bank"), *folder.of_silo("shop")]
    folder.charge(config, 1)
    older = copied(everything)
    folder.charge(config, 3)
    anchor, key = tmp_path / "anchor.json", tmp_path / "mine.key"
    assert main(["ledger", "anchor", "--config", config.path, "--out", str(anchor), "--key", str(key)]) == 0
    verify = ["ledger", "verify", "--config", config.path, "--anchor", str(anchor), "--key", f"{key}.pub"]
    assert main(verify) == 0
    folder.charge(config, 4)
    assert main(verify) == 0

    older()
    assert main(["ledger", "verify", "--config", config.path]) == 0
    capsys.readouterr()
    assert main(verify) == PrivacyError.exit_code
    said = capsys.readouterr().err
    assert "people.jsonl: ends after 1 lines; expected the 3 lines that" in said
    assert "bank/ledger.jsonl: ends after 1 lines" in said
    delete(everything)
    assert main(verify) == PrivacyError.exit_code
    assert "the ledger of population 'people' is not in this workdir" in capsys.readouterr().err


def test_no_command_states_what_was_spent_by_ledgers_that_do_not_agree(folder, capsys):
    config = folder.config("bank", "shop")
    folder.charge(config, 3)
    delete(folder.of_silo("bank"))
    private = [word for key in PRIVATE for word in ("--set", key)]
    assert main(["ledger", "budget", "--config", config.path, *private]) == PrivacyError.exit_code
    assert "ends after 0 lines" in capsys.readouterr().err
    assert main(["ledger", "show", "--config", config.path]) == 0
    assert "not to be relied on: " in capsys.readouterr().out
    assert main(["privacy", "--config", config.path, "--clients", "9", *private]) == 0
    assert "That may be too little" in capsys.readouterr().out
    assert main(["ledger", "verify", "--json", "--config", config.path]) == PrivacyError.exit_code
    said = json.loads(capsys.readouterr().out)
    assert said["sound"] is False
    assert len(said["problems"]) == 1


def test_a_charge_reads_no_ledger_again(folder, monkeypatch):
    """What it costs does not grow with what was charged before."""
    from tff_pipeline.privacy.ledger import Ledger

    charges = account.opened(folder.config("bank", "shop"), PLAN, run="r1", draw="d")
    monkeypatch.setattr(Ledger, "_read", lambda self: pytest.fail(f"{self.path} was read again"))
    for number in range(1, 6):
        charges.charge(number)
