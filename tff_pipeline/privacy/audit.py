"""`tff-pipeline audit`: attacks the mechanism of a trained run, and says how much privacy it has at most.

What is attacked is what the run used: clip on the client, quantisation, masked secure sum, noise, as compiled by TFF and
run by the local runtime, with the run's own plan; only the model is small and its clients are canaries. A canary is the
worst client there can be: its update is as large as it likes, in a direction of its own. The attacker sees what every
round releases and says for each canary whether it took part, by where the released sum lies along its direction.

From how often the attacker errs follows a bound (Clopper and Pearson 1934), and from that a lower bound on epsilon:

1. Canaries with orthogonal directions are in or out by a fair coin. The attacker's threshold is half the clip, chosen
   before anything is seen. A mechanism that is mu-GDP lets nobody have error rates alpha and beta with
   Phi^-1(1 - alpha) - Phi^-1(beta) > mu (Dong, Roth and Su 2019, arXiv:1905.02383, equation 6); with upper bounds of both
   rates this is a lower bound of mu, and 1 / mu an upper bound of the noise multiplier (Nasr et al. 2023,
   arXiv:2302.07956, section 4; after Jagielski et al. 2020, arXiv:2006.07709).
2. How often the sampler draws a client is counted; its lower bound takes the place of the sampling probability.
3. The accountant turns both into an epsilon of the run's rounds. With the stated confidence the run has no smaller one.
4. The noise is compared with that of generators seeded by the clock, for every microsecond that the round could have
   begun in, and between rounds. Where it is found again there is no noise for an attacker, and epsilon is infinite.

Where silos add the noise, the attacker is the server together with as many silos as the claim tolerates: it knows their
shares and takes them away. In step 4 every other silo's share is looked at by itself.

With trees (DP-FTRL) the forty take part in the first round of a tree or not at all, and nobody does in the rounds after it.
The attacker looks at the sums since the tree began after rounds 1, 2, 4 and 8, each of which has the noise of one node of
its own, and guesses by their mean, and once more by the last of them alone, so that noise which later rounds take away shows. Of the sampler's draws it counts how often a client takes part in one tree.

Forty observations come from each round (Steinke, Nasr and Jagielski 2023, arXiv:2305.08846, use many canaries for the same
reason); they are independent because the directions are orthogonal and the noise of each coordinate is drawn by itself
(rotated back, discrete noise is so but for its shape, which after a sum of a hundred is that of a normal).
"""

import argparse
import dataclasses
import functools
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy import special, stats

from tff_pipeline import sampling
from tff_pipeline.artifacts import read_json
from tff_pipeline.errors import ConfigError, PrivacyError
from tff_pipeline.privacy import account, accounting, randomness
from tff_pipeline.privacy.discrete import discrete_gaussian
from tff_pipeline.privacy.plan import PrivacyPlan
from tff_pipeline.privacy.statement import rounded_up

CANARIES = 40
_LABELS = 3
_SHAPES = ((CANARIES, _LABELS), (_LABELS,))
_LARGE = 1000.0  # a canary's one feature: its update is hundreds of times the clip, and almost all of it in one row
_SAMPLER_ROUNDS = 20_000
_CLOCK_ROUNDS = 3
_LEVELS = 4  # of a tree that the attacker looks at; one more would take twice the rounds
_TURN_ROUNDS = 2000
_ROTATION = np.array([20210212, 6387], np.int64)  # public, and the same in every round: no bound depends on it
# Of noise that is found again. Among ten thousand wrong guesses at 123 coordinates the largest correlation is near 0.4.
_SAME = 0.9

# The noise of a round by its number: float64, one array a weight; or, where silos add it, int64 [length], one a silo.
Noise = Callable[[int], list[np.ndarray]]
Cohort = Callable[..., np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """What an audit found.

    Attributes:
      claimed: epsilon of the run's rounds at its delta; the next two are what it follows from.
      at_least: the lower bound; a claim below it is false, but for the chance of `1 - confidence`.
      confidence: that all the bounds below hold together.
      observations: guesses the attacker made.
      noise_multiplier_at_most: the bound that the guesses gave, infinite if they told nothing.
      sampling_probability_at_least: the bound that the sampler's draws gave.
      noise_found_again: how the noise was guessed, or "" where it was not.
      turns_in_a_tree: with trees, the most that a client was drawn in one of them; more than one refutes the claim.
    """

    claimed: float
    claimed_noise_multiplier: float
    claimed_sampling_probability: float
    at_least: float
    confidence: float
    observations: int
    noise_multiplier_at_most: float
    sampling_probability_at_least: float
    noise_found_again: str
    turns_in_a_tree: int = 0

    @property
    def refuted(self) -> bool:
        """Whether the claim is false, or one of the two numbers it follows from."""
        return (
            self.at_least > self.claimed
            or self.turns_in_a_tree > 1
            or self.noise_multiplier_at_most < self.claimed_noise_multiplier
            or self.sampling_probability_at_least > self.claimed_sampling_probability
        )


def audit(
    plan: PrivacyPlan,
    *,
    observations: int = 10_000,
    confidence: float = 0.99,
    secret: bytes | None = None,
    noise: Noise | None = None,
    cohort: Cohort | None = None,
    aggregated_as: PrivacyPlan | None = None,
) -> Finding:
    """Attacks the mechanism of `plan`.

    Args:
      plan: what is claimed.
      observations: guesses of the attacker, rounded up to whole rounds of 40.
      confidence: of the lower bound.
      secret: from which coins and noise follow; the operating system's where it is None.
      noise: gives the noise of a round by its number; the run's own way of drawing it where it is None.
      cohort: the sampler; the plan's own where it is None.
      aggregated_as: a plan that the aggregator is built from in place of `plan`. This and the two above are where the
        tests plant faults.

    Raises:
      PrivacyError: for a plan without privacy, of which there is nothing to refute.
    """
    if not plan.private:
        raise PrivacyError('privacy.mechanism is "none": the run claims nothing; expected a mechanism to attack.')
    delta = plan.delta
    assert delta is not None
    secret = secret or os.urandom(32)
    plan = dataclasses.replace(plan, dimension=sum(math.prod(shape) for shape in _SHAPES))
    noise = noise or _own_noise(plan, secret)
    if cohort is None:
        trees = functools.partial(sampling.cohort_of_tree, rounds_per_tree=plan.rounds_per_tree)
        cohort = trees if plan.rounds_per_tree else sampling.cohort
    share = (1 - confidence) / 3  # three bounds hold together
    with _Mechanism(dataclasses.replace(aggregated_as or plan, dimension=plan.dimension)) as mechanism:
        again = _noise_found_again(mechanism, noise)
        guesses = _guess(mechanism, plan, noise, cohort, secret, observations)
    noise_at_most = _noise_at_most(guesses, sums=len(_looks(plan)), share=share)
    _, outs, _, ins = guesses[0]
    rate = _sampler_rate(plan, cohort, secret, share)
    if again:
        at_least = math.inf
    elif math.isinf(noise_at_most) or rate == 0:
        at_least = 0.0
    else:
        event = accounting.gaussian_event(
            noise_at_most, sampling_probability=rate, rounds_per_tree=plan.rounds_per_tree
        )
        spent = accounting.epsilon([(event, plan.rounds)], delta, step=accounting.COARSE)
        at_least = max(0.0, 0.998 * spent - 1e-3)  # without what the accountant's coarse steps may have added
    return Finding(
        claimed=plan.epsilon(),
        claimed_noise_multiplier=plan.noise_multiplier,
        claimed_sampling_probability=plan.sampling_probability,
        at_least=at_least,
        confidence=confidence,
        observations=ins + outs,
        noise_multiplier_at_most=noise_at_most,
        sampling_probability_at_least=rate,
        noise_found_again=again,
        turns_in_a_tree=_turns(plan, cohort, secret),
    )


class _Mechanism:
    """The run's aggregation around canaries: rounds from one state, and what each of them releases."""

    def __init__(self, plan: PrivacyPlan):
        import tensorflow as tf

        from tff_pipeline import integer_aggregation, learning
        from tff_pipeline.config import TrainingSection
        from tff_pipeline.model.learner import FeatureLearner
        from tff_pipeline.runtime.base import with_rotation
        from tff_pipeline.runtime.clients import FeatureClients
        from tff_pipeline.runtime.local import LocalRuntime

        training = TrainingSection(
            rounds=plan.rounds,
            clients_per_round=plan.expected_cohort,
            client_learning_rate=1.0,
            server_learning_rate=1.0,
            server_momentum=0.0,
        )
        self.plan = plan
        self._compiled = learning.build(
            lambda: FeatureLearner(hidden_size=CANARIES, labels=_LABELS), training, plan, _SHAPES
        )
        features = (_LARGE * np.eye(CANARIES)).astype(np.float32)
        # Two silos, so that the sums are masked; as many as claimed where they add the noise.
        count = plan.silos if plan.integers else 2
        self._silos = {f"silo-{place:04d}": np.arange(place, CANARIES, count) for place in range(count)}
        clients = [
            FeatureClients(
                name, features[rows], np.zeros(len(rows), np.int32), np.arange(len(rows) + 1), batch_size=1, epochs=1
            )
            for name, rows in self._silos.items()
        ]
        self._runtime = LocalRuntime(self._compiled, clients, devices="CPU", session="audit")
        self._state = self._runtime.initial_state()
        self._rounds = 0
        if plan.integers:
            self._state = with_rotation(self._compiled, self._state, _ROTATION)
            self._turned_back = np.stack(
                [
                    integer_aggregation.turned_back(tf.constant(unit), tf.constant(_ROTATION), plan.integers).numpy()
                    for unit in np.eye(plan.integers.length)
                ]
            )

    def __enter__(self) -> "_Mechanism":
        return self

    def __exit__(self, *_: object) -> None:
        self._runtime.close()

    def released(self, canaries: Sequence[int], noise: Sequence[np.ndarray]) -> np.ndarray:
        """The noised sum that a round with these canaries releases (listed twice, a canary is counted twice), flat.

        Where silos add the noise, without the shares of those who are in league with the attacker.
        """
        return self._sum(canaries, noise) - sum(self.noise_of(noise)[self._honest :])

    def shares(self, noise: Sequence[np.ndarray]) -> list[np.ndarray]:
        """What an empty round releases, from each honest silo by itself where silos add the noise."""
        released, known = self.released([], noise), self.noise_of(noise)[: self._honest]
        return [released - sum(known[:place] + known[place + 1 :]) for place in range(len(known))] or [released]

    def noise_of(self, shares: Sequence[np.ndarray]) -> list[np.ndarray]:
        """How each silo's share shows in what is released; nothing where the server adds the noise."""
        integers = self.plan.integers
        # Below zero: the server's step is the sum taken away.
        return [-integers.quantum * (share @ self._turned_back) for share in shares] if integers else []

    @property
    def drawn(self) -> int:
        """How many numbers are drawn at once."""
        return self.plan.integers.length if self.plan.integers else self.plan.dimension

    @property
    def _honest(self) -> int:
        return self.plan.integers.honest if self.plan.integers else 0

    def _sum(self, canaries: Sequence[int], noise: Sequence[np.ndarray]) -> np.ndarray:
        from tff_pipeline.runtime.base import weights_of, with_noise

        cohorts = {
            name: [place for row in canaries for place in np.flatnonzero(rows == row)]
            for name, rows in self._silos.items()
        }
        shares = None
        if self.plan.integers:
            own = dict(zip(self._silos, noise, strict=True))
            state, shares = self._state, lambda silo: own[silo]
        else:
            state = with_noise(self._compiled, self._state, noise)
        result = self._runtime.run_round(state, cohorts, round_number=self._rounds, shares=shares)
        self._rounds += 1
        # The weights were zero, and the server takes one step of length one.
        weights = weights_of(self._compiled, result.state)
        return np.concatenate([weight.astype(np.float64).ravel() for weight in weights]) * self.plan.denominator


def _own_noise(plan: PrivacyPlan, secret: bytes) -> Noise:
    own, integers = randomness.derive(secret, "audit/noise"), plan.integers
    if integers:
        return lambda number: [
            discrete_gaussian(randomness.derive(own, f"{silo}/{number}"), integers.log2_share, integers.length)
            for silo in range(integers.silos)
        ]
    if plan.rounds_per_tree:
        return lambda number: randomness.tree_noise(
            own,
            round_number=number,
            rounds_per_tree=plan.rounds_per_tree,
            stddev=plan.noise_stddev,
            shapes=_SHAPES,
        )
    return lambda number: randomness.round_noise(
        own,
        round_number=number,
        stddev=plan.noise_stddev,
        shapes=_SHAPES,
        count_stddev=plan.clip_count_stddev,
    )


def _noise_at_most(guesses: Sequence[tuple[int, int, int, int]], *, sums: int, share: float) -> float:
    """The bound on the noise multiplier from all ways to guess, which is wrong as rarely as one with `share` would be.

    Whatever the attacker looks at of a tree, its guess is one about `sums` Gaussian mechanisms, which together are
    (sqrt(sums) / z)-GDP; so a single sum bounds z too, if less well.
    """
    each = share / len(guesses)
    found = [math.inf]
    for false_positives, outs, false_negatives, ins in guesses:
        mu = special.ndtri(1 - _upper(false_positives, outs, each)) - special.ndtri(_upper(false_negatives, ins, each))
        found.append(math.sqrt(sums) / mu if mu > 0 else math.inf)
    return min(found)


def _guess(
    mechanism: _Mechanism, plan: PrivacyPlan, noise: Noise, cohort: Cohort, secret: bytes, observations: int
) -> list[tuple[int, int, int, int]]:
    """(false positives, canaries that were out, false negatives, canaries that were in) over all rounds, for each way to guess."""
    # A canary's update at weights of zero: its feature times (label - softmax), cut to the clip.
    gap = np.eye(_LABELS)[0] - 1 / _LABELS
    direction = gap / np.linalg.norm(gap)
    assert plan.clip_norm is not None
    threshold = plan.clip_norm / 2
    counts = np.zeros((2 if len(_looks(plan)) > 1 else 1, 4), np.int64)
    for number in range(math.ceil(observations / CANARIES)):
        coins = randomness.bernoulli(randomness.derive(secret, f"audit/coins/{number}"), 0.5, CANARIES)
        # The sampler is asked for everybody who is in, so that one that repeats a client shows.
        taking_part = np.flatnonzero(coins)
        first = number * max(1, plan.rounds_per_tree)
        drawn = cohort(secret, round_number=first, clients=len(taking_part), probability=1.0)
        so_far = mechanism.released(taking_part[drawn].tolist(), noise(first))
        looked_at = [so_far]
        for place in range(2, max(_looks(plan)) + 1):
            so_far = so_far + mechanism.released([], noise(first + place - 1))
            if place in _looks(plan):
                looked_at.append(so_far)
        for way, released in zip(counts, (np.mean(looked_at, axis=0), looked_at[-1]), strict=False):
            kernel = released[: CANARIES * _LABELS].reshape(_SHAPES[0])
            said_in = kernel @ direction > threshold
            way += [int(part.sum()) for part in (said_in & ~coins, ~coins, ~said_in & coins, coins)]
    return [(way[0], way[1], way[2], way[3]) for way in counts.tolist()]


def _looks(plan: PrivacyPlan) -> list[int]:
    """After which rounds, from 1, of a tree the attacker looks at the sum; only after the first where there are no trees."""
    return [2**level for level in range(min(max(1, plan.levels), _LEVELS))]


def _turns(plan: PrivacyPlan, cohort: Cohort, secret: bytes) -> int:
    """The most that one of forty clients was drawn in one of some trees; 0 where there are none."""
    most, rounds = 0, plan.rounds_per_tree
    for tree in range(math.ceil(_TURN_ROUNDS / rounds) if rounds else 0):
        counts = np.zeros(CANARIES, np.int64)
        for place in range(rounds):
            drawn = cohort(
                secret,
                round_number=tree * rounds + place,
                clients=CANARIES,
                probability=plan.sampling_probability,
            )
            np.add.at(counts, drawn, 1)
        most = max(most, int(counts.max()))
    return most


def _sampler_rate(plan: PrivacyPlan, cohort: Cohort, secret: bytes, share: float) -> float:
    """A lower bound of how often the sampler draws one client."""
    hits = sum(
        int((cohort(secret, round_number=number, clients=2, probability=plan.sampling_probability) == 0).sum())
        for number in range(_SAMPLER_ROUNDS)
    )
    hits = min(hits, _SAMPLER_ROUNDS)
    return float(stats.beta.ppf(share, hits, _SAMPLER_ROUNDS - hits + 1)) if hits else 0.0


def _noise_found_again(mechanism: _Mechanism, noise: Noise) -> str:
    """Whether what empty rounds release can be guessed from the clock or from each other; how, or ""."""
    seen: list[np.ndarray] = []
    for number in range(_CLOCK_ROUNDS):
        began = time.time_ns()
        drawn = noise(1_000_000 + number)
        ended = time.time_ns()
        shares = mechanism.shares(drawn)
        if not all(np.abs(share).max() > 1e-6 * mechanism.plan.noise_stddev for share in shares):
            return "there is none"
        for share in shares:
            if any(_correlation(share, other) > _SAME for other in seen):
                return "two rounds have the same noise" if not mechanism.plan.integers else "two shares are the same"
            seen.append(share)
        for seed in _clock_seeds(began, ended):
            for guess in _seeded_normals(seed, mechanism.drawn):
                (shown,) = mechanism.noise_of([guess]) or [guess]
                if any(_correlation(share, shown) > _SAME for share in shares):
                    return "its generator was seeded by the clock"
    return ""


def _clock_seeds(began_ns: int, ended_ns: int) -> Iterator[int]:
    """Every second, millisecond and microsecond in between, a thousand microseconds at most."""
    for unit_ns, most in ((10**9, 10), (10**6, 100), (10**3, 1000)):
        yield from range(began_ns // unit_ns, min(ended_ns // unit_ns, began_ns // unit_ns + most) + 1)


def _seeded_normals(seed: int, size: int) -> Iterator[np.ndarray]:
    yield np.random.default_rng(seed).normal(size=size)
    yield np.random.RandomState(seed % 2**32).normal(size=size)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    return abs(float(one @ other)) / (float(np.linalg.norm(one)) * float(np.linalg.norm(other)) or 1.0)


def _upper(errors: int, trials: int, share: float) -> float:
    """Clopper and Pearson's upper bound on an error rate, wrong with a probability of `share`."""
    return float(stats.beta.ppf(1 - share, errors + 1, trials - errors)) if errors < trials else 1.0


def plan_of_run(run: Path) -> PrivacyPlan:
    """The plan a run was trained with."""
    stored = read_json(run / "run.json")["plan"]
    known = {field.name: stored[field.name] for field in dataclasses.fields(PrivacyPlan) if field.name in stored}
    return PrivacyPlan(**known)


def uncharged(run: Path) -> list[int]:
    """The run's rounds that its population's ledger does not hold as the plan has them."""
    from tff_pipeline.state import config_of

    facts = read_json(run / "run.json")
    population, _ = account.ledgers(config_of(run))[0]
    charged = {
        entry["round"]
        for entry in population.entries()
        if (entry["run"], entry["event"]) == (facts["id"], facts["plan"]["round_event"])
    }
    return [number for number in range(1, facts["rounds"] + 1) if number not in charged]


def main(argv: Sequence[str] | None = None) -> int:
    """`tff-pipeline audit`; exit code 5 where the claim is refuted or a round was not charged."""
    from tff_pipeline.evaluation import add_run_arguments, chosen_run

    parser = argparse.ArgumentParser(
        prog="tff-pipeline audit",
        description="Attack the mechanism of a trained run with canaries, and compare what the attack proves with what the run claims.",
    )
    add_run_arguments(parser)
    parser.add_argument(
        "--observations",
        type=int,
        default=10_000,
        metavar="N",
        help="guesses of the attacker; more give a tighter bound",
    )
    parser.add_argument("--confidence", type=float, default=0.99, metavar="C", help="of the bound, below 1")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    arguments = parser.parse_args(argv)
    if arguments.observations < 1 or not 0.5 <= arguments.confidence < 1:
        raise ConfigError(
            f"--observations {arguments.observations} --confidence {arguments.confidence}: expected at least one observation, and a confidence of at least 0.5 and below 1."
        )
    run, _ = chosen_run(arguments)
    plan = plan_of_run(run)
    found = audit(plan, observations=arguments.observations, confidence=arguments.confidence)
    missing = uncharged(run)
    if arguments.json:
        numbers = {
            name: value if not isinstance(value, float) or math.isfinite(value) else None
            for name, value in dataclasses.asdict(found).items()
        }
        print(json.dumps({"run": str(run), **numbers, "refuted": found.refuted, "rounds_not_charged": missing}))
    else:
        print("\n".join(_sentences(run, plan, found, missing)))
    return PrivacyError.exit_code if found.refuted or missing else 0


def _sentences(run: Path, plan: PrivacyPlan, found: Finding, missing: Sequence[int]) -> list[str]:
    claim = (
        f"run {run.name}: claims epsilon {rounded_up(found.claimed)} at delta {plan.delta:g} for {plan.rounds} rounds with noise multiplier {plan.noise_multiplier:g} "
        f"and sampling probability {plan.sampling_probability:.4g}."
    )
    attack = (
        f"attack: {found.observations} guesses; with confidence {found.confidence:g} the noise multiplier is at most {found.noise_multiplier_at_most:.4g}, "
        f"the sampling probability at least {found.sampling_probability_at_least:.4g}, and so epsilon at least {found.at_least:.4g}."
    )
    said = [claim, attack]
    if found.noise_found_again:
        said.append(f"the noise was found out: {found.noise_found_again}.")
    if found.turns_in_a_tree > 1:
        said.append(f"the sampler drew a client {found.turns_in_a_tree} times in one tree; the claim assumes once.")
    if missing:
        said.append(f"the ledger lacks {len(missing)} of the run's rounds, round {missing[0]} first.")
    said.append(
        "the claim is REFUTED." if found.refuted else "the claim stands; an attack can only refute it, never prove it."
    )
    return said
