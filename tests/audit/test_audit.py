"""The audit: it leaves sound mechanisms alone, and catches each fault that is planted in the code that training runs.

The faults are planted here by replacing functions of production; the audit knows nothing of them. Keys are fixed, so cohorts
and noise cannot flake; masks have keys of the operating system, and refute a sound run in 2 of 100,000 (`SIGNIFICANCE`).
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from builders.plans import changed, discretization
from builders.plans import plan as a_plan
from builders.tiny import PRIVATE, ROWS, prepared, quiet
from scipy import stats

from tff_pipeline import audit
from tff_pipeline.aggregators import distributed_discrete_gaussian as integer_aggregation
from tff_pipeline.aggregators import dp_sum
from tff_pipeline.audit import attack, criteria, exact
from tff_pipeline.audit.testbed import _with_canaries
from tff_pipeline.cli import main
from tff_pipeline.errors import PrivacyError
from tff_pipeline.learning.state import ServerState
from tff_pipeline.privacy import randomness, sampling
from tff_pipeline.privacy.draws import Draws
from tff_pipeline.privacy.mechanisms import (
    AdaptiveGaussian,
    DistributedDiscreteGaussian,
    NoPrivacy,
    Tree,
    distributed_discrete_gaussian,
)
from tff_pipeline.privacy.round import Round
from tff_pipeline.privacy.server_draws import ServerDraws
from tff_pipeline.privacy.silo_draws import SiloDraws
from tff_pipeline.runtime.silo import Silo
from tff_pipeline.secagg.masking import Party

SECRET = b"s" * 32
OBSERVATIONS = 50_000  # a hundred rounds; the default is four times that

# Noise of a bit more than the clip; epsilon is of no account here.
GAUSSIAN = a_plan(noise_multiplier=1.2, sampling_probability=0.5, expected_cohort=500.0, rounds=30, delta=1e-4)
RARE = dataclasses.replace(GAUSSIAN, sampling_probability=0.02, expected_cohort=20.0)
ADAPTIVE = changed(GAUSSIAN, AdaptiveGaussian, quantile=0.5, count_stddev=25.0)
TREE = a_plan(
    Tree,
    noise_multiplier=1.5,
    sampling_probability=0.1,
    expected_cohort=20.0,
    clients=200,
    rounds=40,
    rounds_per_tree=10,
    delta=1e-4,
)
SHARED = changed(GAUSSIAN, DistributedDiscreteGaussian, silos=3, tolerated_silos=1)
SHARED_16 = changed(SHARED, bits=16)
SILOS = dataclasses.replace(GAUSSIAN, unit="silo", clients=12, silos=12, expected_cohort=6.0)
SHARED_SILOS = dataclasses.replace(
    SHARED, unit="silo", clients=6, silos=6, expected_cohort=3.0, sampling_probability=0.5
)
PLANS = {
    "gaussian": GAUSSIAN,
    "rare": RARE,
    "adaptive": ADAPTIVE,
    "tree": TREE,
    "distributed": SHARED,
    "distributed 16 bits": SHARED_16,
    "silos": SILOS,
    "distributed silos": SHARED_SILOS,
}


def attacked(name: str, **options: Any) -> audit.Finding:
    return audit.audit(PLANS[name], **{"observations": OBSERVATIONS, "secret": SECRET, **options})


# -- sound mechanisms stand


@pytest.mark.parametrize("name", PLANS)
def test_a_sound_mechanism_stands(name):
    finding = attacked(name)
    assert finding.failed == []
    assert not finding.refuted
    assert finding.noise_found_again == ""
    assert 0 < finding.at_least < finding.claimed
    assert finding.noise_multiplier_at_most >= finding.claimed_noise_multiplier
    assert finding.sampling_probability_at_least <= finding.claimed_sampling_probability


def test_the_bound_is_not_far_below_the_claim():
    finding = attacked("gaussian")
    assert finding.at_least > 0.6 * finding.claimed
    assert finding.observations == OBSERVATIONS


def test_every_client_sampled_always_stands_too():
    """Nobody is ever out; the attacker guesses about directions that are nobody's."""
    plan = dataclasses.replace(GAUSSIAN, sampling_probability=1.0, expected_cohort=1000.0)
    finding = audit.audit(plan, observations=OBSERVATIONS, secret=SECRET)
    assert finding.failed == []
    assert 0 < finding.at_least < finding.claimed


def test_a_sound_run_is_refuted_in_at_most_one_of_a_thousand():
    """By the union bound: the shares of all tests, and what the bound on epsilon may err with."""
    assert sum(criteria.SIGNIFICANCE.values()) + (1 - attack.CONFIDENCE) <= criteria.FALSE_REFUTATIONS == 1e-3


# -- faults, in what training calls


def zeros(self: ServerDraws, at: Round, shapes: Any) -> list[np.ndarray]:
    return [np.zeros_like(part) for part in NOISE(self, at, shapes)]


NOISE, SHARE, COHORT, REPORT = ServerDraws.noise, SiloDraws.noise_share, SiloDraws.cohort, Silo.report
GAUSS, DISCRETE, POISSON, TURNS = (
    randomness.gaussian,
    distributed_discrete_gaussian.discrete_gaussian,
    sampling.cohort,
    sampling.cohort_of_tree,
)
WITH_NOISE = ServerState.with_noise
SUM, NORM, MASK, KEYSTREAM = Silo.sum, dp_sum.norm_at_least, Party.mask, Party._keystream


def earlier(at: Round, number: int) -> Round:
    """An earlier round of the run."""
    return Round(at.draw, at.starts[: number + 1])


def scaled(factor: float) -> list[tuple[Any, str, Any]]:
    return [
        (
            randomness,
            "gaussian",
            lambda key, stddev, shapes: [np.asarray(factor * part) for part in GAUSS(key, stddev, shapes)],
        ),
        (
            distributed_discrete_gaussian,
            "discrete_gaussian",
            lambda key, scale, count: np.rint(factor * DISCRETE(key, scale, count)).astype(np.int64),
        ),
    ]


def repeating(period: int) -> list[tuple[Any, str, Any]]:
    return [
        (ServerDraws, "noise", lambda self, at, shapes: NOISE(self, earlier(at, at.number % period), shapes)),
        (SiloDraws, "noise_share", lambda self, at: SHARE(self, earlier(at, at.number % period))),
    ]


def no_noise_on(tensor: int) -> list[tuple[Any, str, Any]]:
    def planted(self: ServerDraws, at: Round, shapes: Any) -> list[np.ndarray]:
        noise = NOISE(self, at, shapes)
        noise[tensor] = np.zeros_like(noise[tensor])
        return noise

    return [(ServerDraws, "noise", planted)]


def norm_without(chosen: slice) -> list[tuple[Any, str, Any]]:
    return [
        (dp_sum, "norm_at_least", lambda tensors: NORM(tensors[chosen])),
        (integer_aggregation, "encode", encoded(chosen)),
    ]


def encoded(chosen: slice) -> Callable[..., tf.Tensor]:
    """The client's integers with a tensor left out of both norms: the float one, and that of the integers."""

    def encode(update: Any, seed: tf.Tensor, integers: Any) -> tf.Tensor:
        update = [tf.cast(part, tf.float64) for part in update]
        norm = tf.linalg.norm(tf.concat([tf.reshape(part, [-1]) for part in update[chosen]], axis=0)) / integers.step
        factor = tf.minimum(
            tf.constant(1.0, tf.float64), tf.math.divide_no_nan(tf.constant(integers.clip_in_steps, tf.float64), norm)
        )
        flat = tf.concat([tf.reshape(part, [-1]) for part in update], axis=0) / integers.step
        padded = tf.concat([factor * flat, tf.zeros([integers.length - integers.dimension], tf.float64)], axis=0)
        rotated = integer_aggregation._hadamard(
            integer_aggregation._signs(seed, integers.length) * padded, integers.length
        )
        return tf.math.floormod(tf.cast(tf.round(rotated), tf.int64), integers.modulus)

    return encode


def clip_skipped(for_clients_of: Callable[[int], bool]) -> list[tuple[Any, str, Any]]:
    """The integers of some clients, by how many examples they have, are five times as long as the clip allows."""

    def planted(self: Silo, broadcast: Any, rows: Any, on_client: Any = lambda: None) -> list[np.ndarray]:
        total = SUM(self, broadcast, rows, on_client)
        for row in rows:
            fed = self._clients.feed(row)
            labels = fed[-1] if len(fed) == 2 else fed[2]
            if not for_clients_of(len(labels)):
                continue
            for slot, part in zip(total, SUM(self, broadcast, [row], on_client), strict=True):
                if part.ndim:
                    zero = 0 if self._noised else PLAN_WITH_CANARIES.quantization.largest_summand
                    slot += (4 * (part - np.array(zero).astype(part.dtype))).astype(slot.dtype)
        return total

    return [(Silo, "sum", planted)]


PLAN_WITH_CANARIES = _with_canaries(GAUSSIAN, 500)


def cohorts(drawn: Callable[..., Any]) -> list[tuple[Any, str, Any]]:
    """Another sampler of a silo's clients, given the key of the round, how many they are, and the probability."""

    def planted(secret: bytes, *, round_number: int, clients: int, probability: float) -> np.ndarray:
        return drawn(randomness.derive(secret, f"planted/{round_number}"), clients, probability)

    return [(sampling, "cohort", planted)]


def fixed_size(key: bytes, clients: int, probability: float) -> np.ndarray:
    order = np.argsort(randomness.uniform_words(key, clients))
    return np.sort(order[: round(clients * probability)])


def whole_silo(key: bytes, clients: int, probability: float) -> np.ndarray:
    return np.arange(clients) if randomness.bernoulli(key, probability, 1)[0] else np.arange(0)


def same_number_of_silos(self: SiloDraws, at: Round, clients: int) -> np.ndarray:
    """Half of the silos, drawn for all of them with one key."""
    silos = self.plan.clients
    key = randomness.derive(SECRET, f"planted/{at.number}")
    chosen = np.argsort(randomness.uniform_words(key, silos))[: silos // 2]
    return np.arange(1 if number_of(self.silo) in chosen else 0)


def number_of(silo: str) -> int:
    """The audit names its silos silo-0000, silo-0001, ..."""
    return int(silo.removeprefix("silo-"))


def poisson_in_trees(secret: bytes, *, rounds_per_tree: int, **options: Any) -> np.ndarray:
    return POISSON(secret, **options)


def everybody_works(self: Silo, broadcast: Any, at: Round, **options: Any) -> Any:
    def everybodys(broadcast: Any, rows: Any, on_client: Any) -> list[np.ndarray]:
        return SUM(self, broadcast, np.arange(len(self._clients)), on_client)

    self.sum = everybodys  # type: ignore[method-assign]
    try:
        return REPORT(self, broadcast, at, **options)
    finally:
        del self.sum


def without_masks(self: Party, values: Any, round_number: int, noise: Any = None) -> list[np.ndarray]:
    shared, self._shared = self._shared, {}
    try:
        return MASK(self, values, round_number, noise or {})
    finally:
        self._shared = shared


def without_a_silos_share(self: SiloDraws, at: Round) -> np.ndarray:
    share = SHARE(self, at)
    return share if number_of(self.silo) else np.zeros_like(share)


def share_of_the_first(self: SiloDraws, at: Round) -> np.ndarray:
    """Every silo's is drawn from a key and a name that all have."""
    return self.plan.noise_share(SECRET, silo="silo-0000", round=at)


def by_the_clock(unit_ns: int) -> list[tuple[Any, str, Any]]:
    def noise(self: ServerDraws, at: Round, shapes: Any) -> list[np.ndarray]:
        generator = np.random.default_rng(time.time_ns() // unit_ns)
        return [generator.normal(0, self.plan.noise_stddev, shape) for shape in shapes]

    def share(self: SiloDraws, at: Round) -> np.ndarray:
        if number_of(self.silo) != 1:
            return SHARE(self, at)
        made = discretization(self.plan)
        generator = np.random.default_rng(time.time_ns() // unit_ns)
        return np.rint(generator.normal(0, 2.0**made.log2_scale, made.length)).astype(np.int64)

    return [(ServerDraws, "noise", noise), (SiloDraws, "noise_share", share)]


def taken_away(self: ServerDraws, at: Round, shapes: Any) -> list[np.ndarray]:
    """Every second round subtracts the noise of the one before, and adds none: no tree's."""
    if at.number % 2:
        return [-part for part in NOISE(self, earlier(at, at.number - 1), shapes)]
    return NOISE(self, at, shapes)


def no_noise_in_one_round_of_ten(self: ServerDraws, at: Round, shapes: Any) -> list[np.ndarray]:
    return zeros(self, at, shapes) if at.number % 10 == 3 else NOISE(self, at, shapes)


FAULTS: list[tuple[str, str, list[tuple[Any, str, Any]], str]] = [
    ("noise times 0.9", "gaussian", scaled(0.9), "noise variance"),
    ("noise times 0.9", "adaptive", scaled(0.9), "noise variance"),
    ("noise times 0.9", "tree", scaled(0.9), "noise variance"),
    ("noise times 0.9", "distributed", scaled(0.9), "noise of each silo"),
    ("noise times 0.9", "distributed 16 bits", scaled(0.9), "noise of each silo"),
    ("noise times 0.9", "silos", scaled(0.9), "noise variance"),
    ("noise times 0.9", "distributed silos", scaled(0.9), "noise of each silo"),
    ("noise zero", "gaussian", [(ServerDraws, "noise", zeros)], "noise variance"),
    ("noise zero, by the generator", "tree", scaled(0.0), "noise variance"),
    ("noise zero, by the generator", "distributed", scaled(0.0), "noise variance"),
    (
        "noise zero, where it is given to the round",
        "gaussian",
        [(ServerState, "with_noise", lambda self, noise: WITH_NOISE(self, [0 * part for part in noise]))],
        "noise variance",
    ),
    (
        "no noise in one round of ten",
        "gaussian",
        [(ServerDraws, "noise", no_noise_in_one_round_of_ten)],
        "noise variance by round",
    ),
    ("no noise on the first tensor", "gaussian", no_noise_on(0), "noise variance by tensor"),
    ("no noise on the last tensor", "gaussian", no_noise_on(1), "noise variance by tensor"),
    ("no noise on one tensor", "adaptive", no_noise_on(0), "noise variance by tensor"),
    ("no noise on one tensor", "tree", no_noise_on(1), "noise variance by tensor"),
    ("no noise on the count of an adaptive clip", "adaptive", no_noise_on(-1), "noise on the count"),
    ("the last tensor left out of the norm", "gaussian", norm_without(slice(0, -1)), "clip"),
    ("the first tensor left out of the norm", "gaussian", norm_without(slice(1, None)), "clip"),
    ("a tensor left out of the norm", "adaptive", norm_without(slice(0, -1)), "clip"),
    ("a tensor left out of the norm", "tree", norm_without(slice(1, None)), "clip"),
    ("a tensor left out of the norm", "distributed", norm_without(slice(0, -1)), "clip"),
    ("a tensor left out of the norm", "silos", norm_without(slice(0, -1)), "clip"),
    ("the clip skipped for one example", "gaussian", clip_skipped(lambda count: count == 1), "clip"),
    ("the clip skipped for many", "gaussian", clip_skipped(lambda count: count > 50), "clip"),
    ("the clip skipped for one example", "distributed", clip_skipped(lambda count: count == 1), "clip"),
    ("the clip skipped for many", "distributed", clip_skipped(lambda count: count > 50), "clip"),
    *(
        (f"noise repeating every {period} rounds", name, repeating(period), "noise between rounds")
        for name in ("gaussian", "adaptive", "distributed")
        for period in (1, 7, 29)
    ),
    ("noise repeating every 20 rounds", "tree", repeating(20), "noise between rounds"),
    ("noise repeating every 39 rounds", "tree", repeating(39), "noise between rounds"),
    (
        "the same cohort every round",
        "gaussian",
        [(SiloDraws, "cohort", lambda self, at, clients: COHORT(self, earlier(at, 0), clients))],
        "cohorts between rounds",
    ),
    (
        "the same cohort every round",
        "rare",
        [(SiloDraws, "cohort", lambda self, at, clients: COHORT(self, earlier(at, 0), clients))],
        "cohorts between rounds",
    ),
    (
        "the same cohort every round",
        "tree",
        [(SiloDraws, "cohort", lambda self, at, clients: COHORT(self, earlier(at, 0), clients))],
        "turns in a tree",
    ),
    (
        "the same cohort every round",
        "silos",
        [(SiloDraws, "cohort", lambda self, at, clients: COHORT(self, earlier(at, 0), clients))],
        "cohorts between rounds",
    ),
    ("whole silos in or out", "gaussian", cohorts(whole_silo), "cohort sizes by silo"),
    ("whole silos in or out", "rare", cohorts(whole_silo), "cohort sizes by silo"),
    ("whole silos in or out", "distributed", cohorts(whole_silo), "cohort sizes by silo"),
    ("a cohort of fixed size", "gaussian", cohorts(fixed_size), "cohort sizes by silo"),
    ("a cohort of fixed size", "rare", cohorts(fixed_size), "cohort sizes by silo"),
    ("a cohort of fixed size", "distributed", cohorts(fixed_size), "cohort sizes by silo"),
    ("a cohort of fixed size", "silos", [(SiloDraws, "cohort", same_number_of_silos)], "cohort sizes"),
    (
        "everybody in every round",
        "gaussian",
        [(SiloDraws, "cohort", lambda self, at, clients: np.arange(clients))],
        "sampling rate",
    ),
    (
        "everybody in every round, past the cohorts",
        "gaussian",
        [(Silo, "report", everybody_works)],
        "sum of the cohort",
    ),
    ("everybody in every round", "distributed", cohorts(lambda key, clients, q: np.arange(clients)), "sampling rate"),
    (
        "everybody in every round, past the cohorts",
        "distributed",
        [(Silo, "report", everybody_works)],
        "sum of the cohort",
    ),
    (
        "clients sampled twice as often",
        "rare",
        cohorts(lambda key, clients, q: np.flatnonzero(randomness.bernoulli(key, 2 * q, clients))),
        "sampling rate",
    ),
    (
        "clients counted twice",
        "gaussian",
        cohorts(lambda key, clients, q: np.repeat(np.flatnonzero(randomness.bernoulli(key, q, clients)), 2)),
        "sum of the cohort",
    ),
    (
        "a turn in every round of a tree, by Poisson sampling",
        "tree",
        [(sampling, "cohort_of_tree", poisson_in_trees)],
        "turns in a tree",
    ),
    ("noise that later rounds take away", "tree", [(ServerDraws, "noise", taken_away)], "noise variance by round"),
    ("masks left out", "gaussian", [(Party, "mask", without_masks)], "mask bits"),
    ("masks left out", "distributed", [(Party, "mask", without_masks)], "mask bits"),
    ("masks left out", "silos", [(Party, "mask", without_masks)], "mask bits"),
    (
        "the same masks in every round",
        "gaussian",
        [(Party, "_keystream", lambda self, peer, shared, number: KEYSTREAM(self, peer, shared, 0))],
        "masks repeated",
    ),
    ("a silo without noise", "distributed", [(SiloDraws, "noise_share", without_a_silos_share)], "noise of each silo"),
    (
        "silos with one share",
        "distributed",
        [(SiloDraws, "noise_share", share_of_the_first)],
        "noise between shares",
    ),
    ("noise from the clock in us", "gaussian", by_the_clock(1_000), "noise from the clock"),
    ("noise from the clock in ms", "tree", by_the_clock(1_000_000), "noise from the clock"),
    ("a share from the clock in us", "distributed", by_the_clock(1_000), "noise from the clock"),
    (
        "noise that only the server's key decides",
        "gaussian",
        [(Draws, "digest", property(lambda self: self.server.key.commitment))],
        "draws bound to keys",
    ),
    (
        "noise that does not depend on the start",
        "gaussian",
        [(Round, "binding", property(lambda self: self.draw))],
        "draws bound to keys",
    ),
]


@pytest.mark.parametrize(
    ("name", "planted", "check"),
    [pytest.param(name, planted, check, id=f"{fault}, {name}") for fault, name, planted, check in FAULTS],
)
def test_a_fault_in_what_training_runs_is_caught(monkeypatch, name, planted, check):
    for target, attribute, value in planted:
        monkeypatch.setattr(target, attribute, value)

    finding = attacked(name)

    assert finding.refuted
    assert check in finding.failed


def test_noise_left_out_leaves_no_epsilon(monkeypatch):
    monkeypatch.setattr(ServerDraws, "noise", zeros)
    finding = attacked("gaussian")
    assert finding.at_least == math.inf
    assert finding.noise_found_again == "there is none"


def test_half_the_noise_is_found_out_by_guessing_alone(monkeypatch):
    for target, attribute, value in scaled(0.5):
        monkeypatch.setattr(target, attribute, value)
    finding = attacked("gaussian")
    assert finding.noise_multiplier_at_most < finding.claimed_noise_multiplier
    assert finding.at_least > finding.claimed


# -- exact distributions


def test_the_spread_of_cohort_sizes_is_that_of_all_cohorts():
    """Two rounds of three clients: all 16 pairs of sizes, counted by hand."""
    masses = stats.binom.pmf(np.arange(4), 3, 0.25)
    distances = (np.arange(4) - 1) ** 2
    for one in range(4):
        for other in range(4):
            total = distances[one] + distances[other]
            sums = distances[:, np.newaxis] + distances
            joint = np.outer(masses, masses)
            expected = min(1.0, 2 * min(joint[sums <= total].sum(), joint[sums >= total].sum()))
            sizes = np.array([[one], [other]])
            assert exact.spread(sizes, np.array([3]), 0.25) == pytest.approx(expected, rel=1e-9)


def test_two_sided_binomial_tails():
    """Of ten fair coins none shows heads: one in 1024, doubled."""
    assert exact.binomial(np.array([0, 5, 10]), 10, 0.5) == pytest.approx([2 / 1024, 1.0, 2 / 1024])


def test_cosines_of_vectors_in_space_are_even():
    """On a sphere in three dimensions a coordinate is uniform (Archimedes)."""
    assert exact.cosine_bound(3, 0.1) == pytest.approx(0.9)


def test_clopper_and_pearsons_bound_is_the_textbooks():
    """No errors in 100: 1 - 0.05**(1/100). All wrong: 1."""
    assert exact.upper_rate(0, 100, 0.05) == pytest.approx(1 - 0.05**0.01)
    assert exact.upper_rate(100, 100, 0.05) == 1.0
    assert exact.lower_rate(100, 100, 0.05) == pytest.approx(0.05**0.01)


def test_a_node_of_a_tree_is_what_its_round_finishes():
    """Rounds 1 to 5 of a tree, then a new one: the nodes (1), (1, 2), (3), (1 ... 4), (5)."""
    table = np.array([1.0, 10.0, 100.0, 1000.0, 10_000.0, 7.0])
    assert changed(TREE, rounds_per_tree=5).mechanism.own_noise(table).tolist() == [
        1.0,
        11.0,
        100.0,
        1111.0,
        10_000.0,
        7.0,
    ]
    assert GAUSSIAN.mechanism.own_noise(table).tolist() == table.tolist()


# -- a finished run


def trained(tmp_path, *changes: str):
    from tff_pipeline.training.run import train

    config = prepared(tmp_path, ROWS, changes=[*PRIVATE, *changes])
    return train(config, progress=quiet())


def test_a_run_is_audited_from_its_folder(tmp_path, capsys, monkeypatch):
    run = trained(tmp_path)

    assert main(["audit", "--run", str(run), "--observations", "1", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["at_least"] <= said["claimed"]
    assert said["refuted"] is False
    assert said["rounds_not_charged"] == []
    assert said["failed"] == []
    names = [check["name"] for check in said["checks"]]
    assert {"noise variance", "clip", "mask bits", "recorded noise", "recorded cohorts"} <= set(names)

    (tmp_path / "workdir" / "ledgers" / "tiny.jsonl").unlink()
    (tmp_path / "workdir" / "ledgers" / "tiny.head.json").unlink()
    assert main(["audit", "--run", str(run), "--observations", "1"]) == PrivacyError.exit_code
    out = capsys.readouterr().out
    assert "the ledger lacks 2 of the run's rounds, round 1 first" in out
    assert "the claim stands" in out
    assert "passed  clip" in out


@pytest.mark.parametrize("trainable", ["head", "full"])
def test_a_run_that_trained_without_noise_shows_it_in_its_states(tmp_path, capsys, monkeypatch, trainable):
    with monkeypatch.context() as patched:
        patched.setattr(ServerDraws, "noise", zeros)
        run = trained(tmp_path, f"model.trainable={trainable}")

    assert main(["audit", "--run", str(run), "--observations", "1"]) == PrivacyError.exit_code
    out = capsys.readouterr().out
    assert "FAILED  recorded noise" in out
    assert "REFUTED" in out


def test_a_run_that_trained_on_everybody_shows_it_in_its_history(tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(SiloDraws, "cohort", lambda self, at, clients: np.arange(clients))
        run = trained(tmp_path, "training.clients_per_round=1", "training.rounds=6")

    assert main(["audit", "--run", str(run), "--observations", "1"]) == PrivacyError.exit_code
    assert "FAILED  recorded cohorts" in capsys.readouterr().out


def test_a_run_without_privacy_claims_nothing():
    with pytest.raises(PrivacyError, match="the run claims nothing"):
        audit.audit(a_plan(NoPrivacy, delta=None))
