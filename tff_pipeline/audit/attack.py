"""The attack on a plan: rounds with canaries, checks of what they show, and a lower bound on epsilon from guesses."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import special

from tff_pipeline.audit import exact
from tff_pipeline.audit.canaries import GUESSES_A_ROUND
from tff_pipeline.audit.criteria import Check
from tff_pipeline.config import TrainingSection
from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy import accounting
from tff_pipeline.privacy.plan import PrivacyPlan
from tff_pipeline.progress import Bar

GUESSES = 200_000
# Half of `criteria.FALSE_REFUTATIONS` is left for the bound.
CONFIDENCE = 0.9995
_FEWEST_ROUNDS = 100
_NO_NOISE = 1e-6  # of the planned variance: what rounding the sum leaves
# Of a head on an encoder: weights and biases.
_SHAPES = ((40, 3), (3,))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of an audit.

    Attributes:
      claimed: epsilon of the run's rounds at its delta; the next two are what it follows from.
      at_least: the lower bound; a claim below it is false, but for the chance of `1 - confidence`.
      confidence: that all the bounds below hold together.
      observations: guesses the attacker made.
      rounds: that were played.
      noise_multiplier_at_most: the bound that the guesses gave, infinite if they told nothing.
      sampling_probability_at_least: the bound that the sampler's draws gave.
      noise_found_again: how an attacker knows the noise, or "" where none does.
      turns_in_a_tree: with trees, the most that a client was drawn in one of them; more than one refutes the claim.
      checks: what else was looked at (`criteria.Check`); one that failed refutes the claim.
    """

    claimed: float
    claimed_noise_multiplier: float
    claimed_sampling_probability: float
    at_least: float
    confidence: float
    observations: int
    rounds: int
    noise_multiplier_at_most: float
    sampling_probability_at_least: float
    noise_found_again: str
    turns_in_a_tree: int = 0
    checks: tuple[Check, ...] = ()

    @property
    def failed(self) -> list[str]:
        """The names of the checks that a sound mechanism passes and this one did not."""
        return [check.name for check in self.checks if not check.passed]

    @property
    def refuted(self) -> bool:
        """Whether the claim is false, or something that it follows from."""
        return (
            bool(self.failed)
            or self.at_least > self.claimed
            or self.turns_in_a_tree > 1
            or self.noise_multiplier_at_most < self.claimed_noise_multiplier
            or self.sampling_probability_at_least > self.claimed_sampling_probability
        )


def audit(
    plan: PrivacyPlan,
    *,
    training: TrainingSection | None = None,
    shapes: Sequence[Sequence[int]] = _SHAPES,
    observations: int = GUESSES,
    confidence: float = CONFIDENCE,
    secret: bytes | None = None,
    bar: Bar | None = None,
) -> Finding:
    """Attacks the mechanism of `plan`.

    Args:
      plan: what is claimed.
      training: what clients do in a round (algorithm, optimizer, batches); plain averaging where it is None.
      shapes: of the run's weights.
      observations: guesses of the attacker, rounded up to whole rounds. At least as many rounds are played as the plan has.
      confidence: of the lower bound.
      secret: that the parties' keys follow from; the operating system's generator makes them where it is None.
      bar: is advanced once a round.

    Raises:
      PrivacyError: for a plan without privacy, of which there is nothing to refute.
    """
    if not plan.private:
        raise PrivacyError('privacy.mechanism is "none": the run claims nothing; expected a mechanism to attack.')
    from tff_pipeline.audit import checks
    from tff_pipeline.audit.testbed import Testbed

    training = training or TrainingSection(rounds=plan.rounds, clients_per_round=plan.expected_cohort)
    with Testbed(plan, training, shapes, secret) as testbed:
        count = rounds_for(plan, observations)
        sensitivities = testbed.sensitivities()
        observed = testbed.play(count, bar or Bar(lambda steps, fields: None))
        observed.sensitivities = sensitivities
        table = checks.sampled(testbed, observed)
        done = tuple(checks.everything(testbed, observed, table))
        turns = checks.turns(testbed, observed)
        errors = guess(testbed.plan, observed.released, observed.cohorts, observed.directions)
    failure = (1 - confidence) / 3  # three bounds hold together
    noise_at_most = noise_multiplier_at_most(*errors, failure=failure)
    rate = exact.lower_rate(int(table.sum()), table.size, failure)
    known_noise = _known_noise(done)
    return Finding(
        claimed=plan.epsilon(),
        claimed_noise_multiplier=plan.noise_multiplier,
        claimed_sampling_probability=plan.sampling_probability,
        at_least=math.inf if known_noise else _epsilon(plan, noise_at_most, rate),
        confidence=confidence,
        observations=errors[1] + errors[3],
        rounds=count,
        noise_multiplier_at_most=noise_at_most,
        sampling_probability_at_least=rate,
        noise_found_again=known_noise,
        turns_in_a_tree=turns,
        checks=done,
    )


def rounds_for(plan: PrivacyPlan, observations: int) -> int:
    """How many rounds are played: enough for the guesses, and for anything that repeats within the plan's rounds to do so."""
    count = max(_FEWEST_ROUNDS, math.ceil(observations / GUESSES_A_ROUND), plan.rounds)
    period = plan.mechanism.period
    return math.ceil(count / period) * period  # trees are played to their end


def guess(
    plan: PrivacyPlan, released: np.ndarray, cohorts: np.ndarray, directions: np.ndarray
) -> tuple[int, int, int, int]:
    """False positives, canaries that were out, false negatives, canaries that were in, over all rounds.

    The attacker says of every direction in every round whether its canary took part, by where the released sum lies along
    it: beyond half the clip or not. Directions of nobody are guessed too, so that somebody is out if all are sampled. With
    trees the sum is that of the node which the round finishes, and a canary was in if it took part in one of its rounds.
    """
    sums = plan.mechanism.own_noise(released)
    took_part = plan.mechanism.own_noise(cohorts.astype(np.int64)) > 0
    taken = np.abs(directions).max(axis=0) > 0
    along = np.concatenate([sums @ directions.T, sums[:, ~taken]], axis=1)
    inside = np.concatenate([took_part, np.zeros((len(sums), int((~taken).sum())), bool)], axis=1)
    said = along > _clip(plan) / 2
    return int((said & ~inside).sum()), int((~inside).sum()), int((~said & inside).sum()), int(inside.sum())


def _clip(plan: PrivacyPlan) -> float:
    """In the units of the released sums."""
    if plan.clip_of_sum is None:
        raise PrivacyError("the plan has no clip, so nothing tells who took part; expected one with a mechanism.")
    return plan.clip_of_sum


def noise_multiplier_at_most(
    false_positives: int, outs: int, false_negatives: int, ins: int, *, failure: float
) -> float:
    """The bound on the noise multiplier: 1 / mu, for the largest mu that such error rates allow."""
    if not ins or not outs:
        return math.inf
    mu = special.ndtri(1 - exact.upper_rate(false_positives, outs, failure)) - special.ndtri(
        exact.upper_rate(false_negatives, ins, failure)
    )
    return 1 / mu if mu > 0 else math.inf


def _epsilon(plan: PrivacyPlan, noise_at_most: float, rate: float) -> float:
    if math.isinf(noise_at_most) or rate == 0:
        return 0.0
    event = plan.mechanism.gaussian_event(noise_at_most, sampling_probability=rate).as_json()
    spent = accounting.epsilon([(event, plan.rounds)], plan.stated_delta, step=accounting.COARSE)
    return max(0.0, 0.998 * spent - 1e-3)  # without what the accountant's coarse steps may have added


def _known_noise(done: Sequence[Check]) -> str:
    """How an attacker knows the noise, so that there is none for it; or ""."""
    by_name = {check.name: check for check in done}
    if by_name["noise variance"].statistic < _NO_NOISE:
        return "there is none"
    if by_name["noise from the clock"].statistic:
        return "its generator was seeded by the clock"
    if by_name["noise between rounds"].statistic > 0.9:
        return "two rounds have the same noise"
    if "noise between shares" in by_name and by_name["noise between shares"].statistic > 0.9:
        return "two noise shares are the same"
    return ""
