"""A round of the distributed discrete Gaussian mechanism, in every runtime."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from builders import runtimes
from builders.cases import COHORT, Case, head_case, started
from builders.cases import DISTRIBUTED as PLAN
from builders.cases import plan as a_runtime_plan
from builders.plans import changed, discretization

from tff_pipeline.errors import InsecureProcessError, PrivacyError
from tff_pipeline.privacy.discrete_gaussian import discrete_gaussian
from tff_pipeline.runtime.scripted import ScriptedRuntime

KEY = b"k" * 32
SETTINGS = (
    "privacy.mechanism=distributed_discrete_gaussian",
    "privacy.clip_norm=1.0",
    "privacy.noise_multiplier=3.0",
    "privacy.delta=1e-3",
    "training.clients_per_round=2",
)
KIND = "poisson_distributed_discrete_gaussian"


SEED = np.array([11, 12], np.int64)
INTEGERS = discretization(PLAN)


@pytest.fixture(scope="module")
def case() -> Case:
    return head_case(PLAN)


@pytest.fixture(scope="module")
def local(case: Case) -> Iterator[Any]:
    with runtimes.local(case) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def reference(case: Case) -> Iterator[Any]:
    with runtimes.reference(case) as runtime:
        yield runtime


def share(silo: str) -> np.ndarray:
    return discrete_gaussian(silo.encode().ljust(32), INTEGERS.log2_scale, INTEGERS.length)


def silence(silo: str) -> np.ndarray:
    return np.zeros_like(share(silo))


def begun(case: Case, runtime: Any) -> list[np.ndarray]:

    return started(case, runtime).with_rotation(SEED)


def modular(sums: list[np.ndarray]) -> np.ndarray:
    """The one sum that is taken modulo 2**32, centred."""
    found = sums[-1]
    assert found.dtype == np.uint32
    return found.view(np.int32).astype(np.int64)


def test_the_update_is_the_only_modular_sum_and_the_oracles_integers_are_the_same(case, local, reference):
    """Rounding hangs on every bit of an update: where the executors' arithmetic differs in the last one, a client's
    integers may differ by one. Here they do not differ."""
    state = begun(case, local)
    ours, theirs = local.secure_sums(state, COHORT), reference.secure_sums(state, COHORT)

    assert len(ours) == len(theirs) == 1
    assert np.abs(modular(ours) - modular(theirs)).max() <= 4
    assert np.abs(modular(ours)).max() > 1000


def test_a_report_is_the_noised_sum_alone_whatever_the_cohort(case, monkeypatch):
    """What the server receives of nobody, of two clients of each silo, and of one client that is nobody else's."""
    from tff_pipeline.runtime.local import LocalRuntime
    from tff_pipeline.secagg.masking import Party

    sent, mask = [], Party.mask

    def watched(party: Party, *arguments: Any) -> list[np.ndarray]:
        sent.append(mask(party, *arguments))
        return sent[-1]

    monkeypatch.setattr(Party, "mask", watched)
    metrics = []
    with ScriptedRuntime(LocalRuntime, case.compiled, case.silos) as runtime:
        for number, cohort in enumerate(({}, COHORT, {"bank": [3]})):
            result = runtime.run_round(begun(case, runtime), cohort, round_number=number, shares=share)
            metrics.append((result.metrics, result.bytes_up, result.bytes_down))
    assert len(sent) == 3 * len(case.silos)
    assert {tuple((part.shape, part.dtype) for part in report) for report in sent} == {
        (((INTEGERS.length,), np.dtype(np.uint32)),)
    }
    # Nor does anything that the runtime gives back tell one cohort from another but the noised sum.
    assert metrics[0] == metrics[1] == metrics[2]
    assert list(metrics[0][0]) == ["update_non_finite"]


def test_an_update_that_is_not_finite_counts_as_zero_and_nobody_is_told(case):
    """As on a client whose training diverged: its integers are zeros, and the round ends as one without it."""
    from tff_pipeline.runtime.clients import FeatureClients
    from tff_pipeline.runtime.local import LocalRuntime

    broken = FeatureClients(
        "bank", np.full((2, 16), np.nan, np.float32), np.zeros(2, np.int32), np.array([0, 2]), batch_size=8, epochs=1
    )
    with ScriptedRuntime(LocalRuntime, case.compiled, [broken, case.silos[1]]) as runtime:
        state, ends = begun(case, runtime), []
        (total,) = runtime.secure_sums(state, {"bank": [0]})
        for number, cohort in enumerate(({"bank": [0], "shop": [1]}, {"shop": [1]})):
            ends.append(runtime.run_round(state, cohort, round_number=number, shares=share))
    assert not total.any()
    assert ends[0].metrics == ends[1].metrics
    for one, other in zip(*(end.state.arrays for end in ends), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("planted", ["metrics", "another modular sum", "a sum without noise"])
def test_a_sum_beside_the_noised_one_is_refused(planted):
    """Each would tell the server how many clients took part; all are secure sums, so nothing else would refuse them."""
    import tensorflow_federated as tff

    from tff_pipeline.aggregators.factory import aggregator_for
    from tff_pipeline.learning import process as learning
    from tff_pipeline.model.learner import FeatureLearner

    federated: Any = tff

    def counted(_: Any) -> Any:
        def count(values: Any) -> Any:
            one = federated.federated_map(federated.tensorflow.computation(lambda _: 1), values)
            if planted == "another modular sum":
                return federated.backends.mapreduce.federated_secure_modular_sum(one, 2**16)
            return federated.federated_secure_sum_bitwidth(one, 16)

        return lambda metrics: count(metrics["instances"])

    shapes = [(16, 3), (3,)]
    process = tff.learning.algorithms.build_unweighted_fed_avg(
        lambda: FeatureLearner(hidden_size=16, labels=3),
        client_optimizer_fn=tff.learning.optimizers.build_sgdm(0.1),
        server_optimizer_fn=tff.learning.optimizers.build_sgdm(1.0),
        model_aggregator=aggregator_for(PLAN, shapes),
        metrics_aggregator=tff.learning.metrics.secure_sum_then_finalize if planted == "metrics" else counted,
    )
    seen = (0, 2) if planted == "another modular sum" else (r"\d+" if planted == "metrics" else 1, 1)
    with pytest.raises(
        InsecureProcessError,
        match=rf"sends {seen[0]} sums without noise and {seen[1]} sums modulo .* expected one sum.* Nothing was run",
    ):
        learning.compile_process(process, shapes)


def test_three_rounds_with_the_same_shares_end_in_the_oracles_weights(case, local, reference):

    ends = []
    for runtime in (local, reference):
        state = begun(case, runtime)
        for number in range(3):
            state = state.with_rotation(SEED + number)
            state = runtime.run_round(state, COHORT, round_number=number, shares=share).state
        ends.append(state.weights)
    for one, other, before in zip(*ends, case.weights, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)
        assert not np.array_equal(one, before)


def test_without_noise_the_update_is_the_gaussian_mechanisms(case, local):
    """Clip, rotation, rounding, sum and back: the mean of the clipped updates, but for the rounding."""
    from tff_pipeline.runtime.local import LocalRuntime

    ours = local.run_round(begun(case, local), COHORT, round_number=50, shares=silence)
    plain = head_case()
    with ScriptedRuntime(LocalRuntime, plain.compiled, plain.silos) as runtime:
        quiet = [np.zeros(shape) for shape in plain.compiled.shapes]
        theirs = runtime.run_round(started(plain, runtime).with_noise(quiet), COHORT, round_number=0)
    for one, other in zip(ours.state.weights, theirs.state.weights, strict=True):
        np.testing.assert_allclose(one, other, atol=20 * INTEGERS.step + a_runtime_plan().rounding_step)


def test_a_silo_with_nobody_sampled_adds_its_share_too(case, local):
    """Nobody takes part in the round: what the server reads is the two shares."""
    import tensorflow as tf

    from tff_pipeline.aggregators.distributed_discrete_gaussian import decode

    result = local.run_round(begun(case, local), {}, round_number=60, shares=share)
    noise = (share("bank") + share("shop")) % INTEGERS.modulus
    shown = decode(tf.constant(noise), tf.constant(SEED), INTEGERS).numpy() / PLAN.denominator
    moved = [(before - after).ravel() for before, after in zip(case.weights, result.state.weights, strict=True)]
    np.testing.assert_allclose(np.concatenate(moved), shown, atol=1e-6)


def test_noise_that_was_forgotten_releases_nothing(case, local, reference):
    with pytest.raises(PrivacyError, match=r"silo bank: round 70 came with noise for 0 of its 1 sums"):
        local.run_round(begun(case, local), COHORT, round_number=70)
    result = reference.run_round(begun(case, reference), COHORT, round_number=70)
    assert result.metrics["update_non_finite"] == 1
    for after, before in zip(result.state.weights, case.weights, strict=True):
        np.testing.assert_array_equal(after, before)
    # And after a round the state has forgotten it again.
    after = local.run_round(begun(case, local), COHORT, round_number=71, shares=share).state
    assert after.layout.noise_shares is not None
    assert (after.arrays[after.layout.noise_shares] == np.iinfo(np.int64).min).all()


def test_any_client_moves_the_integers_by_at_most_the_plans_bound(case, local):
    """Before the noise, exactly: for every client, its integers are what the sum moves by."""
    state, moved = begun(case, local), []
    base = modular(local.secure_sums(state, COHORT))
    for silo, other in (("bank", 1), ("bank", 3), ("shop", 0), ("shop", 2)):
        more = modular(local.secure_sums(state, {**COHORT, silo: sorted([*COHORT[silo], other])}))
        moved.append(int(((more - base) ** 2).sum()))
    assert max(moved) <= INTEGERS.sensitivity_squared
    assert max(moved) > 0.01 * INTEGERS.sensitivity_squared


def test_with_16_bits_a_silo_sends_half_and_the_round_is_the_same(case, local):
    """Two bytes for each of 64 coordinates in place of four; the update is that of 32 bits, but for coarser rounding."""
    from tff_pipeline.runtime.local import LocalRuntime

    made = changed(PLAN, bits=16)
    small = head_case(made)
    with ScriptedRuntime(LocalRuntime, small.compiled, small.silos) as runtime:
        ours = runtime.run_round(begun(small, runtime), COHORT, round_number=0, shares=silence)
    theirs = local.run_round(begun(case, local), COHORT, round_number=80, shares=silence)

    assert (theirs.bytes_up or 0) - (ours.bytes_up or 0) == 64 * 2
    for one, other in zip(ours.state.weights, theirs.state.weights, strict=True):
        np.testing.assert_allclose(one, other, atol=4 * discretization(made).step)
