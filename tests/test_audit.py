"""The audit: it must leave a sound mechanism alone and catch each fault that is planted. Fixed secrets: nothing can flake."""

import dataclasses
import json
import math
import time

import numpy as np
import pytest
from test_ledger import PRIVATE, ROWS
from test_privacy import plan as a_plan
from tiny import prepared, quiet

from tff_pipeline import sampling
from tff_pipeline.cli import main
from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy import audit, randomness
from tff_pipeline.privacy.discrete import discrete_gaussian

SECRET = b"s" * 32
# Epsilon 3.9 or so: noise of almost three times the clip, which hides a canary well. The weaker the claim, the easier.
PLAN = a_plan(noise_multiplier=2.78, sampling_probability=0.5, expected_cohort=500.0, rounds=30, delta=1e-4)


@pytest.fixture(autouse=True, scope="module")
def compiled_once():
    """The process is compiled once for each plan, in place of once for each attack."""
    from tff_pipeline import learning

    made, build = {}, learning.build

    def cached(model_fn, training, plan, shapes, **options):
        if plan not in made:
            made[plan] = build(model_fn, training, plan, shapes, **options)
        return made[plan]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(learning, "build", cached)
        yield


def drawn(number: int) -> list[np.ndarray]:
    stddev = dataclasses.replace(PLAN, dimension=123).noise_stddev
    return randomness.round_noise(b"n" * 32, round_number=number, stddev=stddev, shapes=audit._SHAPES)


def attacked(**planted) -> audit.Finding:
    return audit.audit(PLAN, **{"observations": 2000, "secret": SECRET, "noise": drawn, **planted})


def test_the_sound_mechanism_stays_under_its_claim_and_not_far():
    found = attacked(observations=8000)

    assert 0.5 * found.claimed < found.at_least < found.claimed
    assert not found.refuted
    assert found.noise_found_again == ""
    assert 2.78 <= found.noise_multiplier_at_most < 4
    assert 0.48 < found.sampling_probability_at_least <= 0.5
    assert found.observations == 8000


def test_noise_left_out_is_caught():
    found = attacked(noise=lambda number: [np.zeros(shape) for shape in audit._SHAPES])
    assert found.refuted
    assert found.at_least == math.inf
    assert found.noise_found_again == "there is none"


def test_noise_half_as_large_is_caught():
    found = attacked(noise=lambda number: [part / 2 for part in drawn(number)])
    assert found.refuted
    assert found.noise_multiplier_at_most < 2.78


def test_a_clip_that_is_not_applied_is_caught():
    """The aggregator clips at a million; the noise is still that of a clip of 1."""
    far = dataclasses.replace(PLAN, clip_norm=1e6, value_range=1e6, noise_multiplier=2.78e-6)
    found = attacked(aggregated_as=far)
    assert found.refuted
    assert found.noise_multiplier_at_most < 1


def test_a_client_counted_twice_is_caught():
    def twice(*arguments, **keywords):
        return np.repeat(sampling.cohort(*arguments, **keywords), 2)

    assert attacked(cohort=twice).refuted


def test_a_client_sampled_too_often_is_caught():
    def often(*arguments, probability, **keywords):
        return sampling.cohort(*arguments, probability=min(1.0, 2 * probability), **keywords)

    found = attacked(cohort=often)
    assert found.sampling_probability_at_least > 0.9
    assert found.refuted


@pytest.mark.parametrize("unit_ns", [1_000, 1_000_000, 1_000_000_000], ids=["microseconds", "milliseconds", "seconds"])
def test_the_clock_as_the_seed_is_caught(unit_ns):
    def seeded(number: int) -> list[np.ndarray]:
        generator = np.random.default_rng(time.time_ns() // unit_ns)
        return [generator.normal(0, PLAN.noise_stddev, shape) for shape in audit._SHAPES]

    found = attacked(noise=seeded, observations=40)
    assert found.at_least == math.inf
    assert found.noise_found_again in ("its generator was seeded by the clock", "two rounds have the same noise")


def test_noise_that_repeats_is_caught():
    assert (
        attacked(noise=lambda number: drawn(0), observations=40).noise_found_again == "two rounds have the same noise"
    )


def test_clopper_and_pearsons_bound_is_the_textbooks():
    """No errors in 100: 1 - 0.05**(1/100). All wrong: 1."""
    assert audit._upper(0, 100, 0.05) == pytest.approx(1 - 0.05**0.01)
    assert audit._upper(100, 100, 0.05) == 1.0


# -- noise that silos add: three silos, of which one is in league with the attacker

SHARED = dataclasses.replace(PLAN, mechanism="distributed_discrete_gaussian", silos=3, tolerated_silos=1)


def shares(number: int) -> list[np.ndarray]:
    integers = dataclasses.replace(SHARED, dimension=123).integers
    assert integers is not None
    keys = [randomness.derive(b"n" * 32, f"{silo}/{number}") for silo in range(integers.silos)]
    return [discrete_gaussian(key, integers.log2_share, integers.length) for key in keys]


def attacked_silos(**planted) -> audit.Finding:
    return audit.audit(SHARED, **{"observations": 2000, "secret": SECRET, "noise": shares, **planted})


def test_silos_noise_stays_under_its_claim_and_not_far():
    """The attacker knows one share of three, which is what is claimed to be harmless."""
    found = attacked_silos(observations=2400)

    assert 0.3 * found.claimed < found.at_least < found.claimed
    assert not found.refuted
    assert 2.78 <= found.noise_multiplier_at_most < 6


def test_a_silo_more_that_leaves_out_its_share_is_caught():
    found = attacked_silos(
        noise=lambda number: [np.zeros_like(shares(number)[0]), *shares(number)[1:]], observations=40
    )
    assert found.noise_found_again == "there is none"
    assert found.refuted


def test_silos_noise_half_as_large_is_caught():
    found = attacked_silos(noise=lambda number: [share // 2 for share in shares(number)], observations=1200)
    assert found.noise_multiplier_at_most < 2.78
    assert found.refuted


def test_silos_that_do_not_clip_are_caught():
    """Their integers may be fifty times as long; the noise is that of the plan."""
    far = dataclasses.replace(SHARED, clip_norm=50.0, noise_multiplier=2.78 / 50)
    claimed, used = (dataclasses.replace(made, dimension=123).integers for made in (SHARED, far))
    assert claimed is not None
    assert used is not None
    scale = claimed.quantum * 2.0**claimed.log2_share / (used.quantum * 2.0**used.log2_share)

    def drawn_for(number: int) -> list[np.ndarray]:
        key = [randomness.derive(b"n" * 32, f"{silo}/{number}") for silo in range(3)]
        return [np.rint(scale * discrete_gaussian(each, used.log2_share, used.length)).astype(np.int64) for each in key]

    found = attacked_silos(aggregated_as=far, noise=drawn_for, observations=400)
    assert found.noise_multiplier_at_most < 1
    assert found.refuted


def test_one_silo_that_seeds_its_share_by_the_clock_is_caught():
    def seeded(number: int) -> list[np.ndarray]:
        generator = np.random.default_rng(time.time_ns() // 1000)
        own = shares(number)
        return [np.rint(generator.normal(0, own[0].std(), own[0].size)).astype(np.int64), *own[1:]]

    found = attacked_silos(noise=seeded, observations=40)
    assert found.noise_found_again == "its generator was seeded by the clock"
    assert found.at_least == math.inf


def test_two_silos_that_share_a_secret_are_caught():
    found = attacked_silos(noise=lambda number: [shares(number)[0]] * 3, observations=40)
    assert found.noise_found_again == "two shares are the same"


def test_a_run_is_audited_from_its_folder(tmp_path, capsys):
    from tff_pipeline.training import train

    config = prepared(tmp_path, ROWS, changes=PRIVATE)
    run = train(config, progress=quiet())

    assert main(["audit", "--run", str(run), "--observations", "400", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["at_least"] <= said["claimed"]
    assert said["refuted"] is False
    assert said["rounds_not_charged"] == []

    (tmp_path / "workdir" / "ledgers" / "tiny.jsonl").unlink()
    (tmp_path / "workdir" / "ledgers" / "tiny.head.json").unlink()
    assert main(["audit", "--run", str(run), "--observations", "40"]) == PrivacyError.exit_code
    out = capsys.readouterr().out
    assert "the ledger lacks 2 of the run's rounds, round 1 first" in out
    assert "the claim stands" in out


def test_a_run_without_privacy_claims_nothing():
    with pytest.raises(PrivacyError, match="the run claims nothing"):
        audit.audit(a_plan(mechanism="none", noise_multiplier=0.0, delta=None))
