"""Rounds over a link give what `local` gives with the same draws: integers, weights and metrics; and where a silo is gone, the sum of the rest."""

import dataclasses

import numpy as np
import pytest
from builders.cases import head_case, plan
from builders.networked import Consortium, same

from tff_pipeline.privacy.draws import Draws
from tff_pipeline.privacy.mechanisms import AdaptiveGaussian, DistributedDiscreteGaussian, Gaussian, NoPrivacy, Tree
from tff_pipeline.runtime.base import NoLedgers
from tff_pipeline.runtime.network.loopback import Kill, LoopbackLink
from tff_pipeline.secagg.terms import STAGES

NAMES = ("bank", "insurer", "shop")
# Half of four clients at each of three silos: no cohort is likely to be empty.
_RUN = {"clients": 12, "expected_cohort": 6.0, "sampling_probability": 0.5, "noise_multiplier": 1.0}
PLANS = {
    "gaussian": plan(Gaussian, **_RUN),
    "adaptive": plan(AdaptiveGaussian, **_RUN, quantile=0.5, count_stddev=2.0),
    "tree": plan(Tree, **_RUN, rounds_per_tree=2),
    "silos' noise": plan(DistributedDiscreteGaussian, **_RUN, silos=3, tolerated_silos=1),
    "none": plan(NoPrivacy, clients=12, expected_cohort=6.0, sampling_probability=0.5, delta=None),
}


@pytest.fixture(scope="module", params=PLANS)
def made(request):
    """A plan and the process that is compiled for it."""
    return PLANS[request.param], head_case(PLANS[request.param], NAMES)


@pytest.fixture
def consortium(made, tmp_path):
    own = Consortium(tmp_path, made[1].compiled, made[1].silos, made[0])
    yield own
    own.close()


def local(consortium, names=NAMES):
    """The local runtime of these silos, with the consortium's draws."""
    from tff_pipeline.runtime.local import LocalRuntime

    draws = consortium.draws
    mine = Draws(draws.server, {name: draws.silos[name] for name in names}, draws.origin)
    clients = [consortium.clients[name] for name in names]
    return LocalRuntime(
        consortium.compiled, clients, draws=mine, charges=NoLedgers(), devices=("CPU:0",), session="same"
    )


def trained(runtime, consortium, weights, count=3):
    """The results of some rounds."""
    state, results = runtime.initial_state().with_weights(weights), []
    for number in range(count):
        results.append(runtime.run_round(state, consortium.at(number)))
        state = results[-1].state
    return results


def test_three_rounds_are_those_of_local(made, consortium):
    with consortium.runtime() as runtime:
        ours = trained(runtime, consortium, made[1].weights)
    with local(consortium) as runtime:
        theirs = trained(runtime, consortium, made[1].weights)

    for one, other in zip(ours, theirs, strict=True):
        assert same(one.state.weights, other.state.weights)
        assert one.metrics == pytest.approx(other.metrics, nan_ok=True)
    assert not same(ours[0].state.weights, made[1].weights)


def test_every_slot_has_the_integers_of_local(made, consortium):
    """Without noise shares: of what the silos add, minus the shares that they draw."""
    at, draws = consortium.at(0), consortium.draws
    with local(consortium) as runtime:
        state = runtime.initial_state().with_weights(made[1].weights)
        cohorts = {name: draws.silos[name].cohort(at, 4) for name in NAMES}
        expected = runtime.secure_sums(state, at, cohorts)
    sums = []
    with consortium.runtime() as runtime:
        inner = runtime._rounds.sum
        runtime._rounds.sum = lambda *asked: sums.append(inner(*asked)) or sums[-1]
        runtime.run_round(runtime.initial_state().with_weights(made[1].weights), at)
    for slot in consortium.compiled.noised_slots:
        for name in NAMES:
            expected[slot] = expected[slot] + draws.silos[name].noise_share(at).astype(expected[slot].dtype)

    assert sums[0].survivors == NAMES
    for ours, theirs in zip(sums[0].values, expected, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("stage", STAGES)
def test_with_a_silo_gone_it_is_the_sum_of_the_survivors(made, consortium, stage):
    makers = {name: lambda name=name: consortium.service(name) for name in NAMES}
    with consortium.runtime(LoopbackLink(makers, kills=(Kill("insurer", stage, 0),))) as runtime:
        (ours,) = trained(runtime, consortium, made[1].weights, count=1)
    survivors = NAMES if stage in ("consistency", "unmask") else ("bank", "shop")
    with local(consortium, survivors) as runtime:
        (theirs,) = trained(runtime, consortium, made[1].weights, count=1)

    assert same(ours.state.weights, theirs.state.weights)
    assert ours.metrics == pytest.approx(theirs.metrics, nan_ok=True)
    assert len(consortium.silo_ledger("bank").entries()) == len(consortium.population.entries()) == 1
    # It was charged in the population's ledger if it had advertised keys, and in its own once it was told so.
    assert len(consortium.silo_ledger("insurer").entries()) == (stage not in ("advertise", "share"))


def test_a_round_of_another_draw_is_refused_by_the_silos(made, consortium):
    """Its cohort and noise would be new, and the charge would be that of the round at hand."""
    from tff_pipeline.errors import TrainingError

    at = consortium.at(0)
    with consortium.runtime() as runtime:
        state = runtime.initial_state().with_weights(made[1].weights)
        # The ledger names a draw by its first digits.
        other = dataclasses.replace(at, draw=at.draw[:16] + at.draw[16:][::-1])
        with pytest.raises(TrainingError, match=r"of draw .*and this silo has agreed to draw"):
            runtime.run_round(state, other)
    assert not consortium.silo_ledger("bank").entries()
