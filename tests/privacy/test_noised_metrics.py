"""Training metrics that are released with noise: what one client can change of them, and what they cost."""

import csv
import math

import numpy as np
import pytest
from builders.cases import COHORT, head_case, started
from builders.plans import plan as a_plan
from builders.tiny import Row, prepared, quiet
from scipy import stats

from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy.mechanisms import AdaptiveGaussian, NoisedMetrics
from tff_pipeline.privacy.round import Round
from tff_pipeline.privacy.statement import sentences

BANK: list[Row] = [("a", "lost my card", "card"), ("a", "send money", "money"), ("b", "send money", "money")]
NOISED = {"metrics": NoisedMetrics(stddev=20.0), "noise_multiplier": 2.0}


def test_updates_and_metrics_together_are_one_mechanism_with_the_plans_noise():
    made = a_plan(**NOISED)
    update = made.sensitivity / made.noise_stddev
    assert math.hypot(update, math.sqrt(2) / 20.0) == pytest.approx(1 / 2.0, rel=1e-12)
    assert made.epsilon() == a_plan(noise_multiplier=2.0).epsilon()
    three = a_plan(AdaptiveGaussian, **NOISED, quantile=0.5, count_stddev=9.0)
    count = 0.5 / 9.0
    assert math.hypot(three.sensitivity / three.noise_stddev, count, math.sqrt(2) / 20.0) == pytest.approx(
        0.5, rel=1e-12
    )
    with pytest.raises(PrivacyError, match=r"too small for metrics with noise .* expected more than 2.828"):
        _ = a_plan(metrics=NoisedMetrics(stddev=2.0), noise_multiplier=2.0).noise_stddev
    # What the metrics tell is not there for the clip: of 1 / 4 they leave 1 / 4 - 2 / 9.
    both = {"metrics": NoisedMetrics(stddev=3.0), "quantile": 0.5, "count_stddev": 2.0}
    with pytest.raises(PrivacyError, match=r"too small for adaptive clipping .* expected more than 3\."):
        _ = a_plan(AdaptiveGaussian, noise_multiplier=2.0, **both).noise_stddev


def test_one_client_adds_its_accuracy_and_itself_and_no_more():
    """Clients of 3, 1, 20 and 7 examples: the sum is of shares, whatever their number."""
    from tff_pipeline.model.learner import MILLION
    from tff_pipeline.runtime.local import LocalRuntime
    from tff_pipeline.runtime.scripted import ScriptedRuntime

    case = head_case()
    silence = [np.zeros(shape) for shape in case.compiled.shapes]
    with ScriptedRuntime(LocalRuntime, case.compiled, case.silos) as runtime:
        state = started(case, runtime).with_noise(silence)

        def metrics(cohorts, number):
            return runtime.run_round(state, cohorts, round_number=number).metrics

        alone = [metrics({silo: [row]}, 4 * place + row) for place, silo in enumerate(COHORT) for row in range(4)]
        together = metrics(COHORT, 8)
    for one in alone:
        assert 0 <= one["client_accuracy"] <= MILLION
        assert one["client_accuracy"] == math.floor(MILLION * one["accuracy"] + 1e-3)
        assert one["finite_clients"] == 1
    assert any(0 < one["client_accuracy"] < MILLION for one in alone)
    chosen = [alone[4 * place + row] for place, silo in enumerate(COHORT) for row in COHORT[silo]]
    assert together["client_accuracy"] == sum(one["client_accuracy"] for one in chosen)
    assert together["finite_clients"] == 4


def test_the_noise_is_normal_and_of_each_round():
    """Fixed secrets: nothing here can flake."""
    metrics, rounds = NoisedMetrics(stddev=3.0), [Round("d" * 64, ("s",) * (number + 1)) for number in range(2000)]
    drawn = np.array([metrics.noise(b"m" * 32, round=one) for one in rounds])
    assert stats.kstest(drawn.ravel() / 3.0, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 4 / math.sqrt(2000)
    assert drawn.tolist()[0] == metrics.noise(b"m" * 32, round=rounds[0])


def test_a_run_releases_the_mean_of_noised_sums(tmp_path):
    changes = [
        "privacy.mechanism=gaussian", "privacy.clip_norm=1.0", "privacy.noise_multiplier=0.3", "privacy.delta=1e-3",
        "privacy.metrics=noised", "privacy.metrics_stddev=0.5", "training.clients_per_round=2", "training.rounds=3",
    ]  # fmt: skip
    from tff_pipeline.training.run import train

    run = train(prepared(tmp_path, {"bank": BANK}, changes=changes), progress=quiet())

    rounds = list(csv.DictReader((run / "rounds.csv").open()))
    released = [float(each["released_accuracy"]) for each in rounds]
    assert all(0 <= value <= 1 for value in released)
    # Both clients are in each round; the noise, of a quarter of them, shows.
    assert released != [float(each["accuracy"]) for each in rounds]
    assert len(set(released)) == 3


def test_they_are_one_number_of_the_noise_and_the_sums():
    from tff_pipeline.training.releases import _released_accuracy

    noised = NOISED["metrics"]
    sums = {"client_accuracy": 300_000_000.0, "finite_clients": 400.0}
    assert _released_accuracy(sums, [0.0, 0.0], noised) == 0.75
    assert _released_accuracy(sums, [20.0, -20.0], noised) == pytest.approx(320 / 380, abs=1e-3)
    assert _released_accuracy(sums, [1000.0, 0.0], noised) == 1.0
    assert _released_accuracy(sums, [-1000.0, -1000.0], noised) == 0.0
    # Neighbours cannot be told by low-order bits: what is released is a multiple of the rounding step.
    assert noised.released(1 / 3) * 2**6 == round(noised.released(1 / 3) * 2**6)


def test_the_statement_says_what_is_released():
    said = " ".join(sentences(a_plan(**NOISED), seeded=False, metrics="noised"))
    assert "two sums with Gaussian noise of standard deviation 20, which epsilon covers" in said
    assert "the released training metrics are computed from has Gaussian noise of standard deviation 20." in said
