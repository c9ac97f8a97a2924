"""A run of parties that are killed, restarted and asked for what they have not agreed to."""

import io
import json

import pytest
from builders.parties import GAUSSIAN, parties
from builders.tiny import trained_weights

from tff_pipeline.artifacts import is_complete, read_json
from tff_pipeline.errors import PrivacyError, TrainingError
from tff_pipeline.privacy.ledger import Ledger
from tff_pipeline.progress import Progress
from tff_pipeline.runtime.network.loopback import Kill


class Watching(Progress):
    """Keeps what happens, and does something about it."""

    def __init__(self, act=lambda event, fields: None):
        super().__init__(io.StringIO(), interactive=False)
        self.seen, self._act = [], act

    def event(self, event, message="", /, **fields):
        self.seen.append((event, message))
        self._act(event, fields)


def charged(made, name):
    return Ledger(made.folder / name / "work" / "silos" / name / "ledger.jsonl", "tiny", silo=name).entries()


@pytest.fixture(scope="module")
def agreed(tmp_path_factory):
    """A consortium of three whose stewards have approved the process; its run is not begun."""
    made = parties(tmp_path_factory.mktemp("agreed"), privacy=GAUSSIAN)
    with made.link() as link:
        with pytest.raises(
            TrainingError, match=r"join: not all silos .* is not approved here; it is the turn of"
        ) as error:
            made.coordinate(link)
        assert all(f"silo {name} refuses" in str(error.value) for name in made.silos)
    assert not any(charged(made, name) for name in made.silos)
    pending = read_json(made.folder / "bank" / "work" / "pending.json")
    assert "differentially private" in " ".join(pending["statement"])
    made.approve()
    return made


def test_a_silo_that_dies_is_left_out_and_comes_back(agreed):
    """It dies in round 1 before it is asked for its sum, and has its process again when the next round begins."""
    kills = (Kill("shop", "mask", 0),)
    with agreed.link(kills=kills) as link:
        watching = Watching(lambda event, fields: link.restart("shop") if event == "lost" else None)
        run = agreed.coordinate(link, watching)
        # Killed after the run was sealed, the coordinator finds it finished.
        assert agreed.coordinate(link) == run

    assert is_complete(run)
    assert ("rejoin", "silo shop is back in the run") in watching.seen
    assert [len(charged(agreed, name)) for name in ("bank", "insurer", "shop")] == [3, 3, 3]
    rounds = (run / "rounds.csv").read_text().splitlines()
    assert len(rounds) == 4
    # Nobody keeps a key of a run that is over.
    assert not list(agreed.folder.glob("*/work/silos/*/keys/sampling-*"))
    assert not list(agreed.folder.glob("coordinator/work/runs/*/keys"))
    assert json.loads((run / "run.json").read_text())["snapshots"]["bank"]["path"] == "at silo bank"
    assert all(weights.size for weights in trained_weights(run))


@pytest.mark.parametrize(("stage", "seed"), [("base", 11), ("share", 12), ("mask", 13), ("unmask", 14)])
def test_a_coordinator_that_was_killed_goes_on_where_it_stopped(agreed, stage, seed):
    """In the second round, or before the first; the silos stay. Nothing is charged twice."""
    process = agreed.folder / "process.toml"
    before = process.read_text()
    # A run of its own: another seed draws something else, and promises the same, so that nobody is asked again.
    process.write_text(before.replace("seed = 3", f"seed = {seed}"))
    charged_before = {name: len(charged(agreed, name)) for name in agreed.silos}
    try:
        with agreed.link() as link:
            ask, died = link.ask, []

            def dying(asked, number, *others):
                if asked == stage and number == (stage != "base") and not died:
                    died.append(asked)
                    raise KeyboardInterrupt
                return ask(asked, number, *others)

            link.ask = dying
            with pytest.raises(KeyboardInterrupt):
                agreed.coordinate(link)
            run = agreed.coordinate(link)
    finally:
        process.write_text(before)

    assert died == [stage]
    assert is_complete(run)
    assert {name: len(charged(agreed, name)) - charged_before[name] for name in agreed.silos} == dict.fromkeys(
        agreed.silos, 3
    )


def test_a_silo_whose_ledger_is_an_older_copy_takes_part_no_more(agreed, tmp_path):
    """The population's ledger says how long it was."""
    folder = agreed.folder / "insurer" / "work" / "silos" / "insurer"
    for file in ("ledger.jsonl", "ledger.head.json"):
        (folder / file).rename(tmp_path / file)
    process = agreed.folder / "process.toml"
    before = process.read_text()
    process.write_text(before.replace("rounds = 3", "rounds = 2"))
    try:
        with agreed.link() as link:
            with pytest.raises(TrainingError, match="is not approved"):
                agreed.coordinate(link)
        agreed.approve()
        with agreed.link() as link:
            watching = Watching()
            run = agreed.coordinate(link, watching)
        refusals = [message for event, message in watching.seen if event == "refused"]
        assert refusals
        assert all("silo insurer refused" in message and "its own log says why" in message for message in refusals)
        assert is_complete(run)  # without it: two of three are enough
        assert not charged(agreed, "insurer")
    finally:
        process.write_text(before)
        for file in ("ledger.jsonl", "ledger.head.json"):
            (tmp_path / file).rename(folder / file)


def test_a_budget_that_does_not_last_refuses_the_run(agreed):
    """The silo's own, in its own file: the coordinator learns that it refuses, and only the silo's log says why."""
    own = agreed.folder / "bank" / "silo.toml"
    own.write_text(own.read_text().replace("[policy]", "[policy]\nbudget_epsilon = 0.01"))
    from tff_pipeline.config import read_silo

    agreed.silos["bank"] = read_silo(own)
    process = agreed.folder / "process.toml"
    process.write_text(process.read_text().replace("rounds = 3", "rounds = 4"))
    with agreed.link() as link:
        with pytest.raises(TrainingError, match="is not approved"):
            agreed.coordinate(link)
        agreed.approve()
        with pytest.raises(
            TrainingError, match=rf"silo bank refuses: .*{PrivacyError.__name__}.*its own log says why"
        ) as error:
            agreed.coordinate(link)
    assert "0.01" not in str(error.value)
