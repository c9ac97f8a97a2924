"""`mechanism = "tree"` (DP-FTRL): accounting, turns and ledger against arithmetic of their own.

Its noise as the server receives it is tested in tests/privacy/statistical/test_tree_noise.py. Fixed secrets: nothing can flake.
"""

import math
import shutil

import numpy as np
import pytest
from builders.plans import gaussian_epsilon
from builders.plans import plan as a_plan
from builders.tiny import PRIVATE, ROWS, prepared, quiet, trained_weights
from dp_accounting import NeighboringRelation, SelfComposedDpEvent, SingleEpochTreeAggregationDpEvent
from dp_accounting.rdp import RdpAccountant

from tff_pipeline import audit
from tff_pipeline.artifacts import Workdir
from tff_pipeline.commands import plot
from tff_pipeline.config import load
from tff_pipeline.privacy import accounting, sampling, statement
from tff_pipeline.privacy.ledger import Ledger
from tff_pipeline.privacy.mechanisms import Tree
from tff_pipeline.privacy.mechanisms.tree import TreeEvent

TREE = {"kind": "tree", "noise_multiplier": 5.0, "rounds_per_tree": 10}


def plan(**changes):
    return a_plan(Tree, **{"noise_multiplier": 5.0, "rounds_per_tree": 10, **changes})


def levels_by_hand(rounds: int) -> int:
    """The most nodes that one of `rounds` rounds lies in, of those that end by the last: counted one by one."""
    return max(
        sum(math.ceil(leaf / 2**level) * 2**level <= rounds for level in range(rounds.bit_length()))
        for leaf in range(1, rounds + 1)
    )


# -- accounting


@pytest.mark.parametrize("rounds", [1, 2, 3, 4, 7, 8, 9, 10, 16, 31, 32, 33])
def test_a_tree_has_as_many_levels_as_a_round_has_nodes(rounds):
    assert TreeEvent(noise_multiplier=5.0, rounds_per_tree=33).gaussians(rounds) == levels_by_hand(rounds)


@pytest.mark.parametrize(("rounds", "mechanisms"), [(1, 1), (4, 3), (10, 4), (13, 4 + 2), (30, 12)])
def test_epsilon_is_the_analytic_gaussians_of_all_levels(rounds, mechanisms):
    """h Gaussian mechanisms of sensitivity 1 are one with the noise divided by sqrt(h): Balle and Wang's exact epsilon."""
    exact = gaussian_epsilon(5.0 / math.sqrt(mechanisms), 1e-5)
    assert exact <= accounting.epsilon([(TREE, rounds)], 1e-5) <= exact * 1.01 + 1e-3
    assert plan(rounds=rounds).epsilon() == accounting.epsilon([(TREE, rounds)], 1e-5)


@pytest.mark.parametrize("rounds_per_tree", [1, 5, 8, 100])
def test_it_is_never_more_than_dp_accountings_renyi_bound_and_close_to_it(rounds_per_tree):
    """dp_accounting knows trees by Renyi divergences only, where neighbours have an update replaced by nothing."""
    renyi = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_SPECIAL)
    renyi.compose(SelfComposedDpEvent(SingleEpochTreeAggregationDpEvent(5.0, rounds_per_tree), 3))
    ours = accounting.epsilon([({**TREE, "rounds_per_tree": rounds_per_tree}, 3 * rounds_per_tree)], 1e-5)
    assert 0.8 * renyi.get_epsilon(1e-5) < ours <= renyi.get_epsilon(1e-5)


def test_it_composes_with_what_a_population_was_charged_otherwise():
    """A sampled Gaussian with probability 1 is a Gaussian: 4 levels at 1/25 each and one at 1/4 are 0.41 together."""
    other = {"kind": "poisson_gaussian", "sampling_probability": 1.0, "noise_multiplier": 2.0}
    exact = gaussian_epsilon(1 / math.sqrt(4 / 25 + 1 / 4), 1e-5)
    assert exact <= accounting.epsilon([(TREE, 10), (other, 1)], 1e-5) <= exact * 1.01 + 1e-3


def test_calibration_never_exceeds_the_target_and_wastes_nothing():
    def spent(noise):
        return accounting.epsilon([({**TREE, "noise_multiplier": noise}, 25)], 1e-5)

    found = accounting.calibrate(4.0, 1e-5, event=lambda z: {**TREE, "noise_multiplier": z}, rounds=25)
    assert spent(found) <= 4.0 < spent(found - 0.001)


def test_every_run_and_every_draw_has_trees_of_its_own_in_the_ledger(tmp_path):
    """Three rounds each, which are two levels each: as one run of six they would be three levels, which is too little."""
    ledger = Ledger(tmp_path / "people.jsonl", "people")
    for run, draw in (("one", "a"), ("two", "a"), ("two", "b")):
        for number in (1, 2, 3):
            ledger.charge(run=run, round_number=number, event=TREE, draw=draw)
    exact = gaussian_epsilon(5.0 / math.sqrt(6), 1e-5)
    assert exact <= ledger.epsilon(1e-5) <= exact * 1.01 + 1e-3
    # Rounds that this draw was charged are among those planned: ten rounds of it, and two levels of each other draw.
    exact = gaussian_epsilon(5.0 / math.sqrt(4 + 4), 1e-5)
    assert exact <= ledger.epsilon(1e-5, planned=TREE, rounds=10, run="two", draw="b") <= exact * 1.01 + 1e-3


def test_a_draw_that_begins_within_a_tree_is_charged_as_if_it_had_begun_the_run(tmp_path):
    """A key was lost after round 4. Rounds 5 to 8 of the new draw: round 5 lies in three nodes; four levels are charged."""
    ledger = Ledger(tmp_path / "people.jsonl", "people")
    for number in (5, 6, 7, 8):
        ledger.charge(run="one", round_number=number, event=TREE, draw="new")
    assert ledger.epsilon(1e-5) == accounting.epsilon([(TREE, 8)], 1e-5)


def test_rounds_left_are_those_that_finish_no_level_more(tmp_path):
    """A budget for three levels: rounds 4 to 7 have them, the eighth would begin a fourth."""
    budget = accounting.epsilon([(TREE, 4)], 1e-5)
    ledger = Ledger(tmp_path / "people.jsonl", "people")
    assert ledger.rounds_left(budget, 1e-5, planned=TREE, rounds=10) == 7


# -- turns


@pytest.mark.parametrize("clients", [1, 7, 200])
@pytest.mark.parametrize(("probability", "rounds_per_tree"), [(1.0, 1), (0.6, 1), (0.5, 2), (1 / 3, 3), (0.07, 14)])
def test_no_client_has_two_turns_in_a_tree(clients, probability, rounds_per_tree):
    for tree in range(5):
        drawn = [
            sampling.cohort_of_tree(
                bytes([tree]) * 32,
                round_number=tree * rounds_per_tree + place,
                clients=clients,
                probability=probability,
                rounds_per_tree=rounds_per_tree,
            )
            for place in range(rounds_per_tree)
        ]
        assert np.bincount(np.concatenate(drawn), minlength=clients).max() <= 1


def test_every_round_expects_the_same_cohort_and_trees_draw_anew():
    """2,000 clients, 0.07 in each of 14 rounds: within five standard deviations of 140."""
    cohorts = [
        sampling.cohort_of_tree(b"s" * 32, round_number=number, clients=2000, probability=0.07, rounds_per_tree=14)
        for number in range(28)
    ]
    assert all(abs(len(rows) - 140) < 5 * math.sqrt(140 * 0.93) for rows in cohorts)
    # Of 140 clients about 140 * 0.07 = 10 have the same turn again.
    assert len(set(cohorts[0]) & set(cohorts[14])) < 30


# -- what is said


def test_the_statement_says_trees_and_turns_and_no_sampling():
    said = " ".join(statement.sentences(plan(rounds=25), seeded=False))
    for words in (
        "A tree spans 10 rounds",
        "takes part at most 3 time(s), in 3 tree(s) of at most 4 level(s)",
        "does not rely on sampling",
        "replacing its updates by zero",
    ):
        assert words in said
    assert "Poisson" not in said
    assert "at most once in 10 rounds" in plot.svg(plan(), plan().epsilon())


# -- a run


def test_a_run_that_was_killed_goes_on_with_the_same_tree_and_charges_nothing_twice(tmp_path, monkeypatch):
    """Four clients, two a round: trees of two rounds. Killed in the fourth round, after its charge."""
    from tff_pipeline.runtime.local import LocalRuntime
    from tff_pipeline.training import run as training

    changes = [*PRIVATE, "privacy.mechanism=tree", "training.clients_per_round=2", "training.rounds=5"]
    (tmp_path / "whole").mkdir()
    whole = prepared(tmp_path / "whole", ROWS, changes=changes)
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    killed = load(tmp_path / "killed" / "config.toml", changes)
    expected = trained_weights(training.train(whole, progress=quiet()))

    class Killed(Exception):
        pass

    run_round = LocalRuntime.run_round

    def killing(self, state, at, **keywords):
        if at.number == 3:
            raise Killed
        return run_round(self, state, at, **keywords)

    with monkeypatch.context() as patched:
        patched.setattr(LocalRuntime, "run_round", killing)
        with pytest.raises(Killed):
            training.train(killed, progress=quiet())
    run = training.train(killed, progress=quiet())

    for one, other in zip(trained_weights(run), expected, strict=True):
        np.testing.assert_array_equal(one, other)
    ledger = Ledger(Workdir(killed.workdir).ledger("tiny"), "tiny")
    event = {"kind": "tree", "noise_multiplier": 1.0, "rounds_per_tree": 2}
    assert [(entry["round"], entry["event"]) for entry in ledger.entries()] == [
        (number, event) for number in range(1, 6)
    ]
    # Two whole trees of two levels, and one of one.
    assert ledger.epsilon(1e-3) == accounting.epsilon([(event, 5)], 1e-3)
    assert audit.uncharged(run) == []
    assert audit.plan_of_run(run).mechanism.rounds_per_tree == 2
