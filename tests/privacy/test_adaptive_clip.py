"""A clip that follows a quantile of the clients' norms: what it does, what it tells, and what that costs."""

import math
from typing import Any

import numpy as np
import pytest
from builders.cases import COHORT, head_case, started
from builders.cases import adaptive_plan as plan
from builders.mechanism import SHAPES, Mechanism
from builders.plans import changed
from scipy import stats

from tff_pipeline import audit
from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy.mechanisms import Gaussian
from tff_pipeline.privacy.mechanisms.adaptive_gaussian import count_noise
from tff_pipeline.privacy.mechanisms.noise import round_noise
from tff_pipeline.privacy.statement import sentences

ETA = 0.2


def silence(compiled: Any) -> list[np.ndarray]:
    return [*(np.zeros(shape) for shape in compiled.shapes), np.zeros(())]


@pytest.fixture(scope="module")
def mechanism():
    """Forty canaries whose updates are all of one norm, hundreds of times the clip."""
    with Mechanism(plan(dimension=123)) as made:
        yield made


def next_clip(mechanism: Any, clip: float, canaries: Any, count_noise: float = 0.0) -> float:

    compiled, number = mechanism._compiled, mechanism._rounds
    mechanism._rounds += 1
    state = mechanism._state.with_noise([*silence(compiled)[:-1], np.array(count_noise)])
    state = state.with_clip(clip)
    cohorts = {name: np.flatnonzero(np.isin(rows, canaries)) for name, rows in mechanism._silos.items()}
    after = mechanism._runtime.run_round(state, cohorts, round_number=number).state
    return float(after.clip)


@pytest.mark.parametrize(("clip", "share"), [(200.0, 0.0), (2000.0, 1.0)])
def test_the_clip_moves_by_the_share_of_clients_within_it(mechanism, clip, share):
    found = next_clip(mechanism, clip, range(40))
    assert found == pytest.approx(clip * math.exp(-ETA * (share - 0.5)), rel=1e-6)


def test_the_clip_ends_at_the_norm_that_all_have(mechanism):
    clip = 300.0
    for _ in range(16):
        clip = next_clip(mechanism, clip, range(40))
    norm = 1000 * math.sqrt(6) / 3  # of label minus softmax, times the feature
    assert clip == pytest.approx(norm, rel=math.exp(ETA / 2) - 1)


def test_a_round_with_nobody_moves_it_by_the_noise_alone(mechanism):
    assert next_clip(mechanism, 1.0, []) == pytest.approx(1.0)
    step = plan().mechanism.count_rounding_step
    assert next_clip(mechanism, 1.0, [], 3.3) == pytest.approx(
        math.exp(-ETA * round(3.3 / step) * step / 40), rel=1e-12
    )


def test_a_client_moves_both_sums_by_no_more_than_the_plan_counts(mechanism):
    made = mechanism.plan
    for canary in range(3):
        released = mechanism.released([canary], silence(mechanism._compiled))
        assert 0.999 * made.clip_norm < np.linalg.norm(released) <= made.clip_norm * made.sensitivity
    moved = [abs(math.log(next_clip(mechanism, clip, [0])) - math.log(clip)) * 40 / ETA for clip in (0.5, 5000.0)]
    assert np.allclose(moved, 0.5, atol=made.mechanism.count_rounding_step)


def test_update_and_count_together_are_one_mechanism_with_the_plans_noise():
    for z, stddev in ((0.5, 1.0), (2.0, 3.0), (5.0, 30.0)):
        made = plan(noise_multiplier=z, count_stddev=stddev)
        count = 0.5 / stddev
        update = made.sensitivity / made.noise_stddev
        assert math.hypot(update, count) == pytest.approx(1 / z, rel=1e-12)
        assert made.update_noise_multiplier > z
        # What it is charged as is that one mechanism.
        assert made.epsilon() == changed(made, Gaussian).epsilon()


def test_a_cohort_too_small_for_it_is_refused_with_what_would_do():
    with pytest.raises(PrivacyError, match=r"too small for adaptive clipping.*expected more than 5") as error:
        _ = plan(noise_multiplier=10.0).noise_stddev
    assert "fixed" in str(error.value)


def test_what_is_released_has_the_plans_noise(mechanism):
    """800 rounds of nobody; secrets are fixed, so nothing can flake."""

    made = mechanism.plan
    clip, updates, counts = 3.0, [], []
    state = mechanism._state
    for number in range(800):
        secret, update_stddev, count_stddev = b"a" * 32, made.noise_stddev, made.mechanism.count_stddev
        noise = [
            *round_noise(secret, round_number=number, stddev=update_stddev, shapes=SHAPES),
            count_noise(secret, round_number=number, stddev=count_stddev),
        ]
        given = state.with_noise(noise).with_clip(clip)
        after = mechanism._runtime.run_round(given, {}, round_number=mechanism._rounds).state
        mechanism._rounds += 1
        flat = np.concatenate([weight.astype(np.float64).ravel() for weight in after.weights])
        updates.append(flat * made.denominator / clip / made.noise_stddev)
        # Nobody adds nothing: the share is a half, and what moves the clip is the count's noise.
        counts.append(math.log(after.clip / clip) * -made.denominator / ETA / made.mechanism.count_stddev)
    assert stats.kstest(np.concatenate(updates), "norm").pvalue > 1e-3
    assert stats.kstest(counts, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(np.stack(updates)[:, 0], counts)[0, 1]) < 4 / math.sqrt(800)


def test_the_audit_finds_nothing():
    found = audit.audit(
        plan(expected_cohort=20.0, sampling_probability=0.2, rounds=5), observations=50_000, secret=b"p" * 32
    )
    assert not found.refuted, found.failed
    assert found.at_least > 0.5 * found.claimed
    assert found.noise_found_again == ""


def test_both_runtimes_end_in_the_same_weights_and_clip():
    from tff_pipeline.runtime.local import LocalRuntime
    from tff_pipeline.runtime.reference import ReferenceRuntime
    from tff_pipeline.runtime.scripted import ScriptedRuntime

    case = head_case(plan(expected_cohort=4.0))
    ends = []
    for kind in (LocalRuntime, ReferenceRuntime):
        with ScriptedRuntime(kind, case.compiled, case.silos) as runtime:
            state = started(case, runtime)
            for number in range(3):
                filled = state.with_noise(silence(case.compiled))
                state = runtime.run_round(filled, COHORT, round_number=number).state
            ends.append((*state.weights, state.clip))
            before = state.clip
            forgotten = runtime.run_round(state, COHORT, round_number=3).state
            for kept, after in zip(state.weights, forgotten.weights, strict=True):
                np.testing.assert_array_equal(kept, after)
            assert forgotten.clip == before
    for ours, theirs in zip(*ends, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-8)
    assert ends[0][-1] != plan().clip_norm


def test_the_statement_says_that_the_clip_follows_the_clients():
    (mechanism,) = [sentence for sentence in sentences(plan(), seeded=False) if "Mechanism" in sentence]
    assert "0.5 quantile of the clients' norms" in mechanism
    assert "noise multiplier 1." in mechanism
    assert "standard deviation 2." in mechanism
