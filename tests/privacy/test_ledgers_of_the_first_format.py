"""Ledgers of the first format, which have no counterparts, are read, and the first charge anchors them."""

import json

from builders.ledgers import Folder, delete, first_format, refused, rounds

from tff_pipeline.cli import main
from tff_pipeline.privacy import charges as account


def as_before(folder: Folder, *silos: str) -> None:
    for paths in (folder.of_population("people"), *map(folder.of_silo, silos)):
        first_format(paths)


def test_ledgers_of_the_first_format_are_read_and_the_first_charge_anchors_them(folder, capsys):
    config = folder.config("bank", "shop")
    folder.charge(config, 3)
    as_before(folder, "bank", "shop")
    assert main(["ledger", "verify", "--config", config.path]) == 0
    assert main(["ledger", "show", "--config", config.path]) == 0
    assert "3 charges do not name their silos" in capsys.readouterr().out
    folder.charge(config, 4)
    assert rounds(config) == [4, 4, 4]
    line = json.loads(folder.of_population("people")[0].read_text().splitlines()[-1])
    assert {name: position["lines"] for name, position in line["silos"].items()} == {"bank": 3, "shop": 3}
    delete(folder.of_silo("bank"))
    refused(folder, config, capsys, r"bank/ledger\.jsonl: ends after 0 lines, where line 4 of .* counted 3")


def test_a_silo_that_lacks_newer_charges_of_the_first_format_needs_a_persons_word(folder, capsys):
    config = folder.config("bank", "shop")
    folder.charge(config, 3)
    as_before(folder, "bank", "shop")
    delete(folder.of_silo("bank"))
    refused(folder, config, capsys, r"bank/ledger\.jsonl: lacks 3 charges .* do not say whether silo 'bank' took part")
    account.admit(config, "bank", formerly="bank")
    folder.charge(config, 4)
    assert rounds(config) == [4, 4, 4]


def test_a_silo_that_was_in_none_of_the_charges_of_the_first_format_is_admitted(folder, capsys):
    folder.charge(folder.config("bank"), 3)
    as_before(folder, "bank")
    config = folder.config("bank", "shop")
    refused(folder, config, capsys, "do not say whether silo 'shop' took part")
    assert main(["ledger", "admit", "--silo", "shop", "--config", config.path]) == 0
    folder.charge(config, 1, run="r2")
    assert rounds(config) == [4, 4, 1]


def test_a_silo_that_joined_late_in_the_first_format_is_noted(folder, capsys):
    """Or was reset then: this is what cannot be seen."""
    folder.charge(folder.config("bank"), 2)
    config = folder.config("bank", "shop")
    folder.charge(config, 1, run="r2")
    as_before(folder, "bank", "shop")
    capsys.readouterr()
    assert main(["ledger", "verify", "--config", config.path]) == 0
    assert "lacks 2 older charges of population 'people'" in capsys.readouterr().out
    folder.charge(config, 2, run="r2")
    assert rounds(config) == [4, 4, 2]
