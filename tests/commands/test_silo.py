"""`tff-pipeline silo` and `coordinator`: what they say of what they are given. Runs over a network are in tests/federation and contracts."""

import json

import pytest
from builders.tiny import vocabulary

from tff_pipeline import config as configuration
from tff_pipeline.cli import main
from tff_pipeline.errors import ConfigError
from tff_pipeline.federation.approvals import Approvals

PROCESS = """
silos = ["bank", "shop"]
[pipeline]
name = "tiny"
[model]
checkpoint = "random"
vocabulary = "vocab.txt"
[training]
rounds = 2
clients_per_round = 2
[privacy]
mechanism = "none"
"""
SILO = """
name = "bank"
process = "process.toml"
workdir = "work"
site = "site"
[data]
input = "*.csv"
format = "csv"
[policy]
threshold = 2
"""


@pytest.fixture
def folder(tmp_path):
    vocabulary(tmp_path)
    (tmp_path / "process.toml").write_text(PROCESS)
    (tmp_path / "silo.toml").write_text(SILO)
    (tmp_path / "coordinator.toml").write_text(
        'process = "process.toml"\nworkdir = "coordinated"\nsite = "site"\nthreshold = 2\n'
    )
    return tmp_path


def test_a_party_has_its_own_data_and_of_the_others_names(folder):
    own = configuration.load(folder / "silo.toml")
    assert own.silo("bank").input == str(folder / "*.csv")
    assert own.silo("shop").input == ()
    assert own.workdir == folder / "work"
    theirs = configuration.load(folder / "coordinator.toml")
    assert [silo.input for silo in theirs.silos] == [(), ()]
    assert theirs.workdir == folder / "coordinated"


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("process.toml", 'silos = ["bank", "shop"]', "", "silos is not a list of at least two names"),
        ("process.toml", 'silos = ["bank", "shop"]', 'silos = ["insurer", "shop"]', "expected 'bank' among them"),
        ("process.toml", 'name = "tiny"', 'name = "tiny"\nworkdir = "here"', "has workdir; expected none in a process"),
        ("silo.toml", "threshold = 2", "", "missing required field threshold"),
        ("silo.toml", "threshold = 2", "threshold = 1", "Expected int >= 2"),
        ("silo.toml", "threshold = 2", 'threshold = 2\nhours = "late"', "policy.hours"),
        ("silo.toml", 'format = "csv"', 'format = "xml"', "format is 'xml'"),
        ("silo.toml", 'site = "site"', 'site = "site"\nports = 3', "unknown field ports"),
    ],
)
def test_what_is_wrong_in_a_partys_files_is_named(folder, file, old, new, said):
    content = (folder / file).read_text()
    assert old in content
    (folder / file).write_text(content.replace(old, new))
    with pytest.raises(ConfigError, match=said):
        configuration.load(folder / "silo.toml")


def test_what_parties_agree_on_is_not_changed_by_one_of_them(folder):
    with pytest.raises(ConfigError, match="expected no --set, since what the parties agree on"):
        configuration.load(folder / "silo.toml", ["training.rounds=3"])


def test_a_silo_elsewhere_is_not_prepared_here(folder, capsys):
    assert main(["prepare", "--config", str(folder / "coordinator.toml")]) == ConfigError.exit_code
    assert "says nothing of the text of" in capsys.readouterr().err
    assert main(["prepare", "--config", str(folder / "silo.toml"), "--silo", "shop"]) == ConfigError.exit_code
    assert "says nothing of the text of shop" in capsys.readouterr().err


def test_a_steward_sees_what_waits_and_approves_that_and_nothing_else(folder, capsys):
    own = str(folder / "silo.toml")
    assert main(["silo", "approve", "--config", own]) == 0
    assert "nothing waits for approval" in capsys.readouterr().out
    approvals = Approvals(folder / "work")
    approvals.ask("a" * 64, ["The guarantee."], run="r", silos=["bank", "shop"], threshold=2, labels=["card"])

    assert main(["silo", "approve", "--config", own]) == 0
    shown = capsys.readouterr().out
    assert f"process {'a' * 64}" in shown
    assert "* The guarantee." in shown
    assert not approvals.approved("a" * 64)

    assert main(["silo", "approve", "--config", own, "--process", "b" * 64]) == ConfigError.exit_code
    assert "expected " + "b" * 64 in capsys.readouterr().err
    assert main(["silo", "approve", "--config", own, "--process", "a" * 64]) == 0
    assert approvals.approved("a" * 64)
    assert approvals.pending() is None
    capsys.readouterr()
    assert main(["silo", "status", "--config", own, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [entry["process"] for entry in said["approved"]] == ["a" * 64]
    assert (said["pending"], said["rounds_charged"]) == (None, 0)


@pytest.mark.parametrize("arguments", [["silo", "run"], ["coordinator"]])
def test_a_party_without_its_folder_says_what_is_missing(folder, capsys, arguments):
    own = folder / ("silo.toml" if arguments[0] == "silo" else "coordinator.toml")
    assert main([*arguments, "--config", str(own)]) != 0
    assert "rootCA.pem: no certificate can be read" in capsys.readouterr().err
