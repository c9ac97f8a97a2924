"""Ledgers held against each other: whoever resets, renames or copies one is found out by those that were left alone."""

import json
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from builders.plans import plan as a_plan
from builders.tiny import PRIVATE, configured

from tff_pipeline.artifacts import canonical_json
from tff_pipeline.cli import main
from tff_pipeline.config import Config
from tff_pipeline.errors import ConfigError, PrivacyError
from tff_pipeline.privacy import charges as account

PLAN = a_plan(rounds=1000)


class Folder:
    """A workdir with ledgers, and configurations on it that differ in their population and their silos."""

    def __init__(self, root: Path):
        self.root, self.workdir = root, root / "workdir"

    def config(self, *silos: str, population: str = "people") -> Config:
        folder = self.root / f"{population}-{'-'.join(silos)}"
        folder.mkdir(parents=True, exist_ok=True)
        tables = "".join(
            f'[[silos]]\nname = "{name}"\ninput = "{name}.csv"\nformat = "csv"\nclient = "client"\n' for name in silos
        )
        changes = (f"pipeline.workdir={self.workdir}", f"privacy.population={population}")
        config = configured(folder, tables, changes=changes)
        path = Path(config.path)
        text = path.read_text().replace('name = "tiny"', f'name = "tiny"\nworkdir = "{self.workdir}"', 1)
        path.write_text(text.replace("[privacy]", f'[privacy]\npopulation = "{population}"', 1))
        return config

    def charge(self, config: Config, rounds: int, *, run: str = "r1", draw: str = "d") -> None:
        charges = account.opened(config, PLAN, run=run, draw=draw)
        for number in range(1, rounds + 1):
            charges.charge(number)

    def silo(self, name: str) -> Path:
        return self.workdir / "silos" / name

    def of_silo(self, name: str) -> list[Path]:
        return [self.silo(name) / "ledger.jsonl", self.silo(name) / "ledger.head.json"]

    def of_population(self, name: str) -> list[Path]:
        return [self.workdir / "ledgers" / f"{name}.jsonl", self.workdir / "ledgers" / f"{name}.head.json"]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def delete(paths: list[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def copied(paths: list[Path]) -> Callable[[], None]:
    """Remembers what the files hold; the function that it returns puts it back."""
    contents = [path.read_bytes() if path.exists() else None for path in paths]

    def restore() -> None:
        for path, content in zip(paths, contents, strict=True):
            if content is None:
                path.unlink(missing_ok=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)

    return restore


def first_format(paths: list[Path]) -> None:
    """Rewrites a ledger as version 0.1 wrote it: without counterparts."""
    lines = [json.loads(text) for text in paths[0].read_text().splitlines()]
    old = [{key: value for key, value in line.items() if key not in NEW_FIELDS} for line in lines]
    paths[0].write_bytes(rechained(paths[0], old))


NEW_FIELDS = ("silos", "counterpart", "members")


def rounds(config: Config) -> list[int]:
    return [len(ledger.entries()) for ledger, _ in account.ledgers(config)]


def refused(folder: Folder, config: Config, capsys: pytest.CaptureFixture[str], words: str) -> None:
    """A run is refused in these words, and `ledger verify` says the same."""
    with pytest.raises(PrivacyError, match=words):
        folder.charge(config, 1, run="next")
    assert main(["ledger", "verify", "--config", config.path]) == PrivacyError.exit_code
    assert re.search(words, json.loads(capsys.readouterr().err.splitlines()[-1])["message"])


# -- what was reset unnoticed


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


# -- more than one population


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


# -- silos that come, leave and change their names


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


# -- ledgers of the first format


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


# -- kills


def killed(monkeypatch: pytest.MonkeyPatch, config: Config, *, write: int, run: str, draw: str, number: int) -> bool:
    """Charges a round and is killed before the `write`-th file is written. Returns whether it was."""
    from tff_pipeline.privacy import hash_chain, ledger

    class Killed(BaseException):
        pass

    left = write
    atomic = hash_chain.write_atomic

    def count() -> None:
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1

    def counted_write(path: Path, data: bytes) -> None:
        count()
        atomic(path, data)

    def counted_append(self, line):
        count()
        return append(self, line)

    append = ledger.Ledger._append
    charges = account.opened(config, PLAN, run=run, draw=draw)
    with monkeypatch.context() as patch:
        patch.setattr(hash_chain, "write_atomic", counted_write)
        patch.setattr(ledger.Ledger, "_append", counted_append)
        try:
            charges.charge(number)
        except Killed:
            return True
    return False


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


# -- anchors


def test_an_anchor_that_was_edited_or_signed_by_another_key_is_refused(folder, tmp_path, capsys):
    config = folder.config("bank")
    folder.charge(config, 2)
    anchor, key, other = tmp_path / "anchor.json", tmp_path / "mine.key", tmp_path / "others.key"
    for file, signer in ((anchor, key), (tmp_path / "theirs.json", other)):
        assert main(["ledger", "anchor", "--config", config.path, "--out", str(file), "--key", str(signer)]) == 0
    assert key.stat().st_mode & 0o777 == 0o600

    def verified(file: Path, trusted: str, code: int) -> str:
        capsys.readouterr()
        command = ["ledger", "verify", "--config", config.path, "--anchor", str(file)]
        assert main([*command, *(["--key", trusted] if trusted else [])]) == code
        return capsys.readouterr().err

    verified(anchor, f"{key}.pub", 0)
    verified(anchor, str(key), 0)
    assert "was signed with the key" in verified(tmp_path / "theirs.json", f"{key}.pub", 5)
    assert "expected both or neither" in verified(anchor, "", 2)
    assert "is no Ed25519 key" in verified(anchor, config.path, 4)
    assert "no such file; expected an anchor" in verified(tmp_path / "none.json", f"{key}.pub", 4)
    good = json.loads(anchor.read_text())
    good["ledgers"][0]["lines"] = 1
    anchor.write_text(json.dumps(good))
    assert "the signature does not fit" in verified(anchor, f"{key}.pub", 5)
    anchor.write_text("[]")
    assert "is not an anchor of format 1" in verified(anchor, f"{key}.pub", 4)


def test_no_anchor_is_made_of_ledgers_that_do_not_agree(folder, tmp_path):
    config = folder.config("bank")
    folder.charge(config, 2)
    delete(folder.of_silo("bank"))
    command = ["ledger", "anchor", "--config", config.path, "--out", str(tmp_path / "anchor.json")]
    assert main(command) == PrivacyError.exit_code
    assert not (tmp_path / "anchor.json").exists()
    assert not (folder.workdir / "anchor.key").exists()


def test_an_anchor_is_printed_and_its_key_is_kept(folder, capsys):
    config = folder.config("bank")
    folder.charge(config, 1)
    keys = set()
    for _ in range(2):
        assert main(["ledger", "anchor", "--config", config.path]) == 0
        keys.add(json.loads(capsys.readouterr().out)["public_key"])
    assert len(keys) == 1
    assert (folder.workdir / "anchor.key").stat().st_mode & 0o777 == 0o600


# -- everything at once


def rechained(path: Path, lines: list[dict[str, Any]]) -> bytes:
    """Lines with hashes that fit again: what somebody writes who can compute them."""
    from tff_pipeline.privacy.hash_chain import _hash

    previous = "0" * 64
    for line in lines:
        line["previous"] = previous
        previous = line["hash"] = _hash({key: value for key, value in line.items() if key != "hash"})
    path.with_suffix(".head.json").write_bytes(canonical_json({"entries": len(lines), "hash": previous}) + b"\n")
    return b"".join(canonical_json(line) + b"\n" for line in lines)


class Walk:
    """Honest runs, kills and joining silos on one workdir; attacks on a part of its ledgers; and what was truly charged."""

    SILOS, POPULATIONS = ("bank", "shop", "care"), ("people", "friends")

    def __init__(self, folder: Folder, seed: int, monkeypatch: pytest.MonkeyPatch):
        self.folder, self.random, self.monkeypatch = folder, random.Random(seed), monkeypatch
        self.true: list[tuple[str, tuple[str, ...], str, int, str]] = []  # population, members, run, round, draw
        self.older: list[dict[str, bytes]] = []
        self.outcomes: Counter[str] = Counter()
        self.configs: dict[tuple[str, ...], Config] = {}

    def parties(self) -> dict[str, list[Path]]:
        """Every ledger with its head, by a name of its own."""
        return {name: self.folder.of_silo(name) for name in self.SILOS} | {
            f"/{name}": self.folder.of_population(name) for name in self.POPULATIONS
        }

    def config(self, population: str, silos: tuple[str, ...]) -> Config:
        key = (population, *silos)
        if key not in self.configs:
            self.configs[key] = self.folder.config(*silos, population=population)
        return self.configs[key]

    def some_config(self) -> tuple[str, tuple[str, ...], Config]:
        population = self.random.choice(self.POPULATIONS)
        silos = tuple(sorted(self.random.sample(self.SILOS, self.random.randint(1, 3))))
        return population, silos, self.config(population, silos)

    def contents(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for paths in self.parties().values() for path in paths if path.exists()}

    def restore(self, contents: dict[str, bytes]) -> None:
        for leftover in self.folder.workdir.glob("silos/acme"):
            shutil.rmtree(leftover)
        for paths in self.parties().values():
            for path in paths:
                path.unlink(missing_ok=True)
                if str(path) in contents:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(contents[str(path)])

    def opened(self, config: Config, run: str, draw: str) -> account.Account:
        """Honest: refused only where a new silo comes while another is away, until it is admitted."""
        for _ in range(3):
            try:
                return account.opened(config, PLAN, run=run, draw=draw)
            except PrivacyError as error:
                silo = re.search(r"does not know silo '(\w+)'", str(error))
                if not silo:
                    raise
                account.admit(config, silo[1])
        return account.opened(config, PLAN, run=run, draw=draw)

    def honest(self) -> None:
        population, silos, config = self.some_config()
        run, draw = f"r{self.random.randint(1, 3)}-{'-'.join(silos)}", self.random.choice("de")
        first = self.random.randint(1, 3)
        for number in range(first, first + self.random.randint(1, 3)):
            charges = self.opened(config, run, draw)
            if self.random.random() < 0.3:
                write = self.random.randint(0, 2 * len(silos) + 1)
                if killed(self.monkeypatch, config, write=write, run=run, draw=draw, number=number):
                    self.outcomes["killed"] += 1
                    return
            else:
                charges.charge(number)
            if (charge := (population, silos, run, number, draw)) not in self.true:
                self.true.append(charge)

    def tamper(self, name: str, paths: list[Path]) -> None:
        path, head = paths
        match self.random.choice(("delete", "ledger", "head", "older", "mixed", "swap", "cut", "drop")):
            case "delete":
                delete(paths)
            case "ledger":
                delete([path])
            case "head":
                delete([head])
            case "older" if self.older:
                contents = self.random.choice(self.older)
                for file in paths:
                    file.write_bytes(contents[str(file)]) if str(file) in contents else delete([file])
            case "mixed" if self.older:
                file, contents = self.random.choice(paths), self.random.choice(self.older)
                file.write_bytes(contents[str(file)]) if str(file) in contents else delete([file])
            case "swap":
                for source, file in zip(self.parties()[self.random.choice([*self.parties()])], paths, strict=True):
                    if source.exists() and source != file:
                        shutil.copy(source, file)
            case "cut" | "drop" as how if path.exists():
                lines = [json.loads(text) for text in path.read_text().splitlines() if text.endswith("}")]
                count = self.random.choice((self.random.randint(0, len(lines)), max(0, len(lines) - 1)))
                kept = lines[:count] if how == "cut" else lines[:count] + lines[count + 1 :]
                path.write_bytes(rechained(path, kept))

    def attack(self) -> None:
        """Changes some ledgers, never all; then opens a run, which is refused or has every charge that a ledger left alone knew."""
        before = self.contents()
        parties = {name: paths for name, paths in self.parties().items() if str(paths[0]) in before}
        if not parties:
            return
        most = self.random.choice((1, 1, 2, max(1, len(parties) - 1)))
        touched = self.random.sample([*parties], self.random.randint(1, min(most, len(parties))))
        for name in touched:
            self.tamper(name, parties[name])
        population, silos, _ = self.some_config()
        renamed = None
        if self.random.random() < 0.25 and (hit := [name for name in silos if name in touched]):
            renamed = hit[0]
            if self.random.random() < 0.5 and self.folder.silo(renamed).exists():
                self.folder.silo(renamed).rename(self.folder.silo("acme"))
        names = tuple("acme" if name == renamed else name for name in silos)
        config = self.config(population, names)
        try:
            account.opened(config, PLAN, run="after", draw="d")
        except PrivacyError:
            self.outcomes["refused"] += 1
        else:
            self.outcomes["went on"] += 1
            witnessed = [charge for charge in self.true if {f"/{charge[0]}", *charge[1]} - set(touched)]
            self.require(config, population, dict(zip(silos, names, strict=True)), witnessed)
        self.restore(before)

    def require(
        self,
        config: Config,
        population: str,
        silos: dict[str, str],
        charges: list[tuple[str, tuple[str, ...], str, int, str]],
    ) -> None:
        """The ledgers of a configuration have all these charges, each silo's those that it took part in."""
        (own, _), *others = account.ledgers(config)
        held = {
            ledger.silo or "/": Counter(map(identity, ledger.entries())) for ledger, _ in (*((own, None),), *others)
        }
        for charge in charges:
            if charge[0] == population:
                assert held["/"][charge[0], *charge[2:]] == 1, (charge, "population")
            for name, called in silos.items():
                # Under a new name in another population it looks like any new silo there, as long as the old ledger lies here.
                if name in charge[1] and (name == called or population == charge[0]):
                    assert held[called][charge[0], *charge[2:]] == 1, (charge, called)


def identity(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return entry["population"], entry["run"], entry["round"], entry["draw"]


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_done_to_some_ledgers_a_run_is_refused_or_charges_are_complete(folder, monkeypatch, seed):
    """Seeds 0 to 5, 25 honest steps and as many attacks each; some 300 other seeds were tried once."""
    walk = Walk(folder, seed, monkeypatch)
    for _ in range(25):
        walk.honest()
        if walk.random.random() < 0.3:
            walk.older.append(walk.contents())
        walk.attack()
        # Put back as it was, everything is well: no honest state is refused, and no charge was lost in it.
        population, silos, config = walk.some_config()
        walk.opened(config, "check", "d")
        walk.require(config, population, {name: name for name in silos}, walk.true)
    assert walk.outcomes["refused"] > 5
    assert walk.outcomes["went on"] > 0
