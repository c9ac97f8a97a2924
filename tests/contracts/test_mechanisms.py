"""What every mechanism is held to, whichever it is: a new one is added to PLANS and to nothing else here."""

import dataclasses
import json

import numpy as np
import pytest
from builders.plans import changed, plan

from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy import accounting
from tff_pipeline.privacy.mechanisms import (
    EVENTS,
    MECHANISMS,
    AdaptiveGaussian,
    DistributedDiscreteGaussian,
    Gaussian,
    NoisedMetrics,
    NoPrivacy,
    RunNumbers,
    Tree,
)
from tff_pipeline.privacy.plan import PrivacyPlan
from tff_pipeline.privacy.round import Round
from tff_pipeline.privacy.statement import sentences

SMALL = {"dimension": 15, "clients": 200, "expected_cohort": 20.0, "silos": 2}
PLANS = {
    "gaussian": plan(Gaussian, **SMALL),
    "gaussian, metrics": plan(Gaussian, **SMALL, metrics=NoisedMetrics(stddev=5.0)),
    "adaptive": plan(AdaptiveGaussian, **SMALL, quantile=0.4, count_stddev=3.0),
    "adaptive, metrics": plan(
        AdaptiveGaussian, **SMALL, quantile=0.4, count_stddev=3.0, metrics=NoisedMetrics(stddev=5.0)
    ),
    "tree": plan(Tree, **SMALL, rounds_per_tree=10),
    "distributed": plan(DistributedDiscreteGaussian, **SMALL, tolerated_silos=1),
    "none": plan(NoPrivacy, **SMALL, delta=None),
    "none, no clip": plan(NoPrivacy, **SMALL, delta=None, clip_norm=None),
}
SHAPES = ((4, 3), (3,))
START = Round("d" * 64, ("s" * 64,))
SECRET = b"k" * 32


@pytest.fixture(params=PLANS)
def made(request) -> PrivacyPlan:
    return PLANS[request.param]


def test_every_type_is_held_to_this():
    assert {type(each.mechanism) for each in PLANS.values()} == set(MECHANISMS)


def test_no_mechanism_has_a_number_of_the_run_or_of_another_mechanism():
    names = {kind: {field.name for field in dataclasses.fields(kind)} for kind in MECHANISMS}
    assert not set().union(*names.values()) & {field.name for field in dataclasses.fields(RunNumbers)}
    common = {"clip_norm", "noise_multiplier"}
    assert {kind.__name__: own - common for kind, own in names.items()} == {
        "Gaussian": {"metrics"},
        "AdaptiveGaussian": {"metrics", "quantile", "count_stddev"},
        "Tree": {"rounds_per_tree"},
        "DistributedDiscreteGaussian": {"tolerated_silos", "bits"},
        "NoPrivacy": set(),
    }


def test_a_plan_is_what_its_run_json_says(made):
    written = json.loads(json.dumps(made.as_json()))
    assert PrivacyPlan.from_json(written) == made
    assert written["mechanism"] == made.mechanism.kind


def test_every_plan_is_written_under_the_same_keys():
    """Those that run.json has had since its first version: whatever reads it need not know the mechanism."""
    assert len({frozenset(each.as_json()) for each in PLANS.values()}) == 1
    assert set(PLANS["gaussian"].as_json()) == {
        "mechanism", "unit", "clients", "expected_cohort", "sampling_probability", "rounds", "clip_norm", "value_range",
        "noise_multiplier", "delta", "dimension", "max_examples_per_client", "local_epochs", "silos", "tolerated_silos",
        "ring_bits", "rounds_per_tree", "clip_quantile", "clip_count_stddev", "metrics_stddev", "denominator",
        "noise_stddev", "grain", "quanta", "noise_over_clip", "update_noise_multiplier", "trees", "levels", "round_event",
        "integers", "sensitivity",
    }  # fmt: skip


def test_an_event_is_what_the_ledger_holds_of_it(made):
    for unit in ("client", "silo"):
        event = changed(made, unit=unit).mechanism.event(changed(made, unit=unit))
        stored = json.loads(json.dumps(event.as_json()))
        if made.private:
            assert ("unit" in stored) == (unit == "silo")
        assert accounting.event_of(stored).as_json() == stored
        assert EVENTS[stored["kind"]] is type(event) is made.mechanism.event_type
        assert str(event)


def test_epsilon_is_finite_where_something_is_guaranteed_and_only_there(made):
    coarse = accounting.epsilon([(made.round_event, 1)], 1e-3, step=accounting.COARSE)
    assert np.isfinite(coarse) == made.private == (made.noise_stddev > 0) == (made.noise_multiplier > 0)


def test_a_gaussian_of_the_same_noise_costs_as_much(made):
    """What calibration and plots reckon with is what is charged."""
    if not made.private:
        with pytest.raises(PrivacyError, match="has no noise"):
            made.mechanism.gaussian_event(1.0, sampling_probability=0.1)
        return
    gaussian = made.mechanism.gaussian_event(made.noise_multiplier, sampling_probability=made.sampling_probability)
    costs = [
        accounting.epsilon([(event, 10)], 1e-3, step=accounting.COARSE)
        for event in (gaussian.as_json(), made.round_event)
    ]
    assert costs[0] == pytest.approx(costs[1], rel=1e-3)


def test_bounds_are_refused(made):
    worse = {
        "clip_norm": (0.0, -1.0, float("nan"), float("inf")),
        "noise_multiplier": (0.0, -1.0, float("nan")),
        "quantile": (0.0, 1.0),
        "count_stddev": (0.0, -3.0),
        "rounds_per_tree": (0,),
        "tolerated_silos": (-1,),
        "bits": (8, 64),
    }
    for field in dataclasses.fields(made.mechanism):
        for value in worse.get(field.name, ()) if field.init else ():
            with pytest.raises(PrivacyError, match="expected"):
                dataclasses.replace(made.mechanism, **{field.name: value})
    with pytest.raises(PrivacyError, match=r"metrics_stddev is 0\.0; expected a number of clients above 0"):
        NoisedMetrics(stddev=0.0)


def test_a_cohort_follows_from_the_silos_secret_and_the_round(made):
    def cohort(secret: bytes = SECRET, silo: str = "bank", drawn: Round = START) -> list[int]:
        return made.cohort(secret, silo=silo, round=drawn, clients=2000).tolist()

    rows = cohort()
    assert rows == cohort() == sorted(set(rows))
    assert 0 < len(rows) < 400  # 200 of 2,000 are expected
    others = [cohort(b"o" * 32), cohort(silo="shop"), cohort(drawn=Round("e" * 64, START.starts))]
    assert all(rows != other for other in others)


def test_over_a_period_no_client_has_more_turns_than_the_accounting_assumes(made):
    mechanism = made.mechanism
    assert mechanism.period >= 1
    rounds = [Round("d" * 64, ("s",) * (number + 1)) for number in range(mechanism.period)]
    turns = np.bincount(np.concatenate([made.cohort(SECRET, silo="bank", round=one, clients=500) for one in rounds]))
    assert turns.max() <= (mechanism.turns_in_a_period or mechanism.period)


def test_what_the_server_draws_is_of_one_round_and_one_secret(made):
    def drawn(secret: bytes = SECRET, one: Round = START) -> list[np.ndarray]:
        inputs = made.server_inputs(secret, round=one, shapes=SHAPES)
        noise = inputs.noise or []
        assert [part.shape for part in noise] == ([] if made.mechanism.silos_add_noise else list(SHAPES))
        assert (inputs.rotation is not None) == made.mechanism.silos_add_noise
        parts = [*noise, inputs.count_noise, inputs.rotation]
        return [np.ravel(part) for part in parts if part is not None]

    first = np.concatenate(drawn())
    np.testing.assert_array_equal(first, np.concatenate(drawn()))
    if not made.private:
        assert not first.any()
        return
    for others in (drawn(b"o" * 32), drawn(one=Round("d" * 64, ("t" * 64,))), drawn(one=Round("e" * 64, START.starts))):
        assert not np.intersect1d(first, np.concatenate(others)).size


def test_noise_shares_are_drawn_where_silos_add_them_and_refused_elsewhere(made):
    if not made.mechanism.silos_add_noise:
        with pytest.raises(PrivacyError, match="the silos add no noise"):
            made.noise_share(SECRET, silo="bank", round=START)
        return
    shares = [made.noise_share(SECRET, silo=silo, round=START) for silo in ("bank", "bank", "shop")]
    np.testing.assert_array_equal(shares[0], shares[1])
    assert shares[0].dtype == np.int64
    assert (shares[0] != shares[2]).any()


def test_it_has_an_aggregator(made):
    from tff_pipeline.aggregators.factory import aggregator_for, weighted_aggregator_for

    assert aggregator_for(made, SHAPES) is not None
    if made.private:
        with pytest.raises(PrivacyError, match=r"expected training\.weighting = \"uniform\""):
            weighted_aggregator_for(made, largest_weight=30.0)
    else:
        assert weighted_aggregator_for(made, largest_weight=30.0) is not None


def test_rows_with_noise_of_their_own_hold_as_much_as_the_rounds_do(made):
    """Over one period: where a client took part in round r alone, it is in the row of round r, and its update is there whole."""
    mechanism = made.mechanism
    for number in range(mechanism.period):
        took_part = np.zeros((mechanism.period, 1))
        took_part[number] = 1.0
        assert mechanism.own_noise(took_part)[number] == 1.0


def test_the_statement_names_its_noise_or_that_there_is_none(made):
    said = " ".join(sentences(made, seeded=False))
    assert ("No guarantee" in said) == (not made.private)
    if made.private:
        assert f"{made.noise_stddev:.6g}" in said
