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

Forty observations come from each round (Steinke, Nasr and Jagielski 2023, arXiv:2305.08846, use many canaries for the same
reason); they are independent because the directions are orthogonal and the noise of each coordinate is drawn by itself.
"""

import argparse
import dataclasses
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
from tff_pipeline.privacy.plan import PrivacyPlan
from tff_pipeline.privacy.statement import rounded_up

CANARIES = 40
_LABELS = 3
_SHAPES = ((CANARIES, _LABELS), (_LABELS,))
_LARGE = 1000.0  # a canary's one feature: its update is hundreds of times the clip, and almost all of it in one row
_SAMPLER_ROUNDS = 20_000
_CLOCK_ROUNDS = 3
# Of noise that is found again. Among ten thousand wrong guesses at 123 coordinates the largest correlation is near 0.4.
_SAME = 0.9

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

    @property
    def refuted(self) -> bool:
        """Whether the claim is false, or one of the two numbers it follows from."""
        return (
            self.at_least > self.claimed
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
    cohort: Cohort = sampling.cohort,
    aggregated_as: PrivacyPlan | None = None,
) -> Finding:
    """Attacks the mechanism of `plan`.

    Args:
      plan: what is claimed.
      observations: guesses of the attacker, rounded up to whole rounds of 40.
      confidence: of the lower bound.
      secret: from which coins and noise follow; the operating system's where it is None.
      noise: gives the noise of a round by its number; the run's own way of drawing it where it is None.
      cohort: the sampler.
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
    share = (1 - confidence) / 3  # three bounds hold together
    with _Mechanism(aggregated_as or plan) as mechanism:
        again = _noise_found_again(mechanism, noise)
        false_positives, outs, false_negatives, ins = _guess(mechanism, plan, noise, cohort, secret, observations)
    mu = special.ndtri(1 - _upper(false_positives, outs, share)) - special.ndtri(_upper(false_negatives, ins, share))
    noise_at_most = 1 / mu if mu > 0 else math.inf
    rate = _sampler_rate(plan, cohort, secret, share)
    if again:
        at_least = math.inf
    elif math.isinf(noise_at_most) or rate == 0:
        at_least = 0.0
    else:
        event = {"kind": "poisson_gaussian", "sampling_probability": rate, "noise_multiplier": noise_at_most}
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
    )


class _Mechanism:
    """The run's aggregation around canaries: rounds from one state, and what each of them releases."""

    def __init__(self, plan: PrivacyPlan):
        from tff_pipeline import learning
        from tff_pipeline.config import TrainingSection
        from tff_pipeline.model.learner import FeatureLearner
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
        # Two silos, so that the sums are masked.
        self._silos = {"even": np.arange(0, CANARIES, 2), "odd": np.arange(1, CANARIES, 2)}
        clients = [
            FeatureClients(
                name, features[rows], np.zeros(len(rows), np.int32), np.arange(len(rows) + 1), batch_size=1, epochs=1
            )
            for name, rows in self._silos.items()
        ]
        self._runtime = LocalRuntime(self._compiled, clients, devices="CPU", session="audit")
        self._state = self._runtime.initial_state()
        self._rounds = 0

    def __enter__(self) -> "_Mechanism":
        return self

    def __exit__(self, *_: object) -> None:
        self._runtime.close()

    def released(self, canaries: Sequence[int], noise: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The noised sum that a round with these canaries releases (listed twice, a canary is counted twice)."""
        from tff_pipeline.runtime.base import weights_of, with_noise

        cohorts = {
            name: [place for row in canaries for place in np.flatnonzero(rows == row)]
            for name, rows in self._silos.items()
        }
        state = with_noise(self._compiled, self._state, noise)
        result = self._runtime.run_round(state, cohorts, round_number=self._rounds)
        self._rounds += 1
        # The weights were zero, and the server takes one step of length one.
        return [
            weight.astype(np.float64) * self.plan.denominator for weight in weights_of(self._compiled, result.state)
        ]


def _own_noise(plan: PrivacyPlan, secret: bytes) -> Noise:
    own = randomness.derive(secret, "audit/noise")
    return lambda number: randomness.round_noise(own, round_number=number, stddev=plan.noise_stddev, shapes=_SHAPES)


def _guess(
    mechanism: _Mechanism, plan: PrivacyPlan, noise: Noise, cohort: Cohort, secret: bytes, observations: int
) -> tuple[int, int, int, int]:
    """(false positives, canaries that were out, false negatives, canaries that were in) over all rounds."""
    # A canary's update at weights of zero: its feature times (label - softmax), cut to the clip.
    gap = np.eye(_LABELS)[0] - 1 / _LABELS
    direction = gap / np.linalg.norm(gap)
    assert plan.clip_norm is not None
    threshold = plan.clip_norm / 2
    counts = [0, 0, 0, 0]
    for number in range(math.ceil(observations / CANARIES)):
        coins = randomness.bernoulli(randomness.derive(secret, f"audit/coins/{number}"), 0.5, CANARIES)
        # The sampler is asked for everybody who is in, so that one that repeats a client shows.
        taking_part = np.flatnonzero(coins)
        drawn = cohort(secret, round_number=number, clients=len(taking_part), probability=1.0)
        kernel, _ = mechanism.released(taking_part[drawn].tolist(), noise(number))
        said_in = kernel @ direction > threshold
        for place, wrong in enumerate((said_in & ~coins, ~coins, ~said_in & coins, coins)):
            counts[place] += int(wrong.sum())
    return counts[0], counts[1], counts[2], counts[3]


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
        released = np.concatenate([part.ravel() for part in mechanism.released([], drawn)])
        if not np.abs(released).max() > 0:
            return "there is none"
        if any(_correlation(released, other) > _SAME for other in seen):
            return "two rounds have the same noise"
        seen.append(released)
        for seed in _clock_seeds(began, ended):
            for guess in _seeded_normals(seed, released.size):
                if _correlation(released, guess) > _SAME:
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
    return PrivacyPlan(**{field.name: stored[field.name] for field in dataclasses.fields(PrivacyPlan)})


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
    if missing:
        said.append(f"the ledger lacks {len(missing)} of the run's rounds, round {missing[0]} first.")
    said.append(
        "the claim is REFUTED." if found.refuted else "the claim stands; an attack can only refute it, never prove it."
    )
    return said
