"""Faults that are planted in the code which training runs, by replacing functions of production: the audit knows nothing of them."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from builders.audited import GAUSSIAN, SECRET, attacked
from builders.plans import discretization
from tff_pipeline.aggregators import distributed_discrete_gaussian as integer_aggregation
from tff_pipeline.aggregators import dp_sum
from tff_pipeline.audit import attack
from tff_pipeline.audit.testbed import _with_canaries
from tff_pipeline.learning.state import ServerState
from tff_pipeline.privacy import randomness, sampling
from tff_pipeline.privacy.mechanisms import distributed_discrete_gaussian
from tff_pipeline.privacy.round import Round
from tff_pipeline.privacy.server_draws import ServerDraws
from tff_pipeline.privacy.silo_draws import SiloDraws
from tff_pipeline.runtime.silo import Silo
from tff_pipeline.secagg.masking import Party

# The audit plays a hundred rounds at least, so that its bound on epsilon is not far below the claim. That a fault is there
# shows in fewer: as many as it takes to come back after 29 rounds, and whole trees.
ROUNDS = 40
Planted = list[tuple[Any, str, Any]]


def caught(monkeypatch: Any, name: str, planted: Planted, check: str) -> None:
    """With the fault planted, the audit of the plan refutes it, and by this check among others."""
    monkeypatch.setattr(attack, "_FEWEST_ROUNDS", ROUNDS)
    for target, attribute, value in planted:
        monkeypatch.setattr(target, attribute, value)

    finding = attacked(name, observations=1)

    assert finding.refuted
    assert check in finding.failed


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
SUM, NORM, MASK, MASK_KEY = Silo.sum, dp_sum.norm_at_least, Party.mask, Party._mask_key


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
