"""One frozen plan from the configuration: clip, sampling, noise, denominator and accounting event, built together.

The sampler, the aggregator, the noise, the ledger and the statement are all made from it, so they cannot disagree.
"""

import bisect
import dataclasses
import functools
import math
from typing import Any

from tff_pipeline.config import Config, PrivacySection
from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy import accounting, distributed
from tff_pipeline.privacy.distributed import Integers

# By how much a client's whole numbers may be longer than the clip, relatively: equation (1) of whole_numbers, which proves
# a little more than half of it.
CLIP_EXCESS = 2.0**-16
# Quanta of a clip: at most _MOST_QUANTA, where the sum is of 64 bits; with sums of 32 bits as many as the largest cohort leaves
# room for, if cutting so coarsely shortens an update at the clip by no more than a 64th of it.
_MOST_QUANTA, _COARSEST = 2**30, 64
_CERTAIN = 128 * math.log(2)  # minus the logarithm of the probability of a larger cohort
# Without a clip an update still has to fit a range to be quantised; a coordinate beyond it is cut.
_RANGE_WITHOUT_CLIP = 8.0
# What Andrew et al. 2021 (section 3.1) recommend for adaptive clipping: the median, and a count of the clients within the
# clip whose noise is a twentieth of the cohort. Metrics are released with as much.
_CLIP_QUANTILE, _COUNT_STDDEV = 0.5, 1 / 20
# Of that count: one client adds a half or takes it away, a whole number of quanta.
_COUNT_SENSITIVITY = 0.5
# Of metrics: one client adds its accuracy to one sum and itself to another.
_METRICS_SENSITIVITY = math.sqrt(2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrivacyPlan:
    """What a run does for privacy. Two plans with the same numbers give the same guarantee.

    Attributes:
      mechanism: "gaussian", "distributed_discrete_gaussian", "tree" or "none".
      unit: what a neighbouring population has one more or one fewer of: "client", or "silo", which is then what a round
        samples, trains on and clips as a whole. The names below say client for either.
      clients: size of the population, N.
      expected_cohort: expected number of clients in a round, q N.
      sampling_probability: of each client in each round, q; draws are independent (Poisson sampling). With "tree" they are
        not: a client takes part in at most one round of each tree.
      rounds: number of rounds T.
      clip_norm: L2 bound C on one client's update, or None; where the clip is adaptive, that of the first round.
      value_range: R of which `quanta` are made: C, or 1 where the clip is adaptive; without a clip coordinates are cut to
        [-R, R].
      noise_multiplier: z, the noise's standard deviation over the sensitivity; 0 for "none". Of noise that the silos add
        in shares, that of the shares the guarantee counts on; with "tree" that of each node of a tree.
      delta: the failure probability the guarantee is stated at, or None.
      dimension: number of coordinates of an update, d.
      max_examples_per_client: the contribution bound that preparation enforced.
      local_epochs: passes over a client's examples in a round.
      silos: number of silos, n.
      tolerated_silos: with "distributed_discrete_gaussian", how many silos' shares the guarantee does without, t.
      ring_bits: with "distributed_discrete_gaussian", the sum is taken modulo 2**ring_bits.
      rounds_per_tree: with "tree", after how many rounds a new tree begins, E; 0 with other mechanisms.
      clip_quantile: where the clip is adaptive, the quantile of the clients' norms that it follows, gamma; else 0.
      clip_count_stddev: where it is, the standard deviation of the noise on the number of clients within it, sigma_b; else 0.
      metrics_stddev: where training metrics are released with noise, its standard deviation, in clients; else 0.
    """

    mechanism: str
    unit: str
    clients: int
    expected_cohort: float
    sampling_probability: float
    rounds: int
    clip_norm: float | None
    value_range: float
    noise_multiplier: float
    delta: float | None
    dimension: int
    max_examples_per_client: int
    local_epochs: int
    silos: int = 1
    tolerated_silos: int = 0
    ring_bits: int = 32
    rounds_per_tree: int = 0
    clip_quantile: float = 0.0
    clip_count_stddev: float = 0.0
    metrics_stddev: float = 0.0

    @property
    def private(self) -> bool:
        return self.mechanism != "none"

    @property
    def large_delta(self) -> bool:
        """Whether delta is at or above one in the number of units: publishing one of them outright would satisfy it."""
        return self.delta is not None and self.delta * self.clients >= 1

    @property
    def denominator(self) -> float:
        """What the noised sum is divided by: the expected cohort, which no client changes."""
        return self.expected_cohort

    @functools.cached_property
    def integers(self) -> Integers | None:
        """How updates become integers with "distributed_discrete_gaussian"; None with other mechanisms.

        Raises:
          PrivacyError: if the sum of a round does not fit the ring.
        """
        if self.mechanism != "distributed_discrete_gaussian":
            return None
        assert self.clip_norm is not None
        found = distributed.integers(
            clip_norm=self.clip_norm,
            noise_multiplier=self.noise_multiplier,
            dimension=self.dimension,
            clients=self.clients,
            expected_cohort=self.expected_cohort,
            silos=self.silos,
            tolerated=self.tolerated_silos,
            bits=self.ring_bits,
        )
        if found is None:
            raise PrivacyError(
                f"secure_sum.bits is {self.ring_bits}: the sum of about {self.expected_cohort:g} updates of {self.dimension} coordinates and its noise does not fit "
                "without rounding that costs more than a quarter more noise. Set secure_sum.bits = 32, or plan smaller cohorts or fewer weights."
            )
        return found

    @functools.cached_property
    def largest_cohort(self) -> int:
        """The most clients whose sum a round has room for, L; a larger cohort gives nothing (`whole_numbers`).

        With "gaussian" such a cohort does not happen: it is a sum of independent draws with mean n = q N, so by Chernoff's
        bound P(cohort >= L) <= exp(L - n - L ln(L / n)), and L is where that is 2**-128. Delta is exceeded by no more than
        that a round, without a factor of exp(epsilon): given the draws of all other clients, a round with one more is the
        sampled Gaussian mechanism, or nothing on both sides, but for just L others; and there either side may be taken for
        one that tells nothing. `accounting.epsilon` takes it off. With other mechanisms L is N.
        """
        if self.mechanism != "gaussian" or self.sampling_probability >= 1:
            return self.clients
        n = self.expected_cohort

        def certainty(size: int) -> float:
            return size * math.log(size / n) - size + n

        return bisect.bisect_left(range(self.clients), _CERTAIN, lo=math.ceil(n), key=certainty)

    @property
    def quanta(self) -> int:
        """How many whole numbers `value_range` is made of; what is behind the point is cut off (`whole_numbers`).

        Sums of private rounds are of 32 bits where that is fine enough: what is cut off a vector of d coordinates is shorter
        than sqrt(d) quanta, and the noise hides far more of it. They are of 64 bits otherwise, and without privacy.
        """

        def room(bits: int) -> int:
            fits = int((2**bits / (2 * self.largest_cohort) - 2) / (1 + CLIP_EXCESS))
            # Half a clip, which an adaptive clip counts with, has to be a whole number too, and one that float32 holds.
            return min(fits - fits % (1 << max(1, fits.bit_length() - 24)), _MOST_QUANTA)

        narrow = room(31)
        enough = narrow >= _COARSEST * math.sqrt(self.dimension)
        return narrow if self.private and enough else room(53)

    @property
    def largest_whole_number(self) -> int:
        """What no coordinate of a client's, in quanta, is above."""
        return math.ceil(self.quanta * (1 + CLIP_EXCESS))

    @property
    def sensitivity(self) -> float:
        """Most by which one client changes the sum, in L2, after clipping and quantisation.

        With "distributed_discrete_gaussian" the bound of its integers, in units of the update. With "gaussian" and "tree"
        C (1 + CLIP_EXCESS), which is more than float32 makes of a clip to C. Quantisation adds nothing, since it cuts
        towards zero, nor does the sum, which is exact (integers below 2**53 in float64).

        Where the clip is adaptive, C is 1 here: updates are summed in units of the round's clip.
        """
        if self.clip_norm is None:
            return math.inf
        if self.integers:
            return self.integers.sensitivity
        return (1.0 if self.adaptive else self.clip_norm) * (1 + CLIP_EXCESS)

    @property
    def noise_stddev(self) -> float:
        """Standard deviation of the noise on each coordinate of the sum, before division; 0 for "none".

        With "tree" that of one node: the noise of all rounds of a tree together has between one and `levels` of them.
        """
        if self.integers:
            return self.integers.noise_stddev
        return self.update_noise_multiplier * self.sensitivity if self.private else 0.0

    @property
    def update_noise_multiplier(self) -> float:
        """The noise on the sum of updates over its sensitivity: z; somewhat more, z_u, where a round releases other sums too.

        Those are the count of the clients within an adaptive clip, and metrics with noise. Of the updates one client changes
        the sum by S, of the others by S_b. Divided by their noise they are one vector that a client changes by
        sqrt(1 / z_u**2 + (S_b / sigma_b)**2 + ...), and with z_u chosen so that this is 1 / z the round is one Gaussian
        mechanism with noise multiplier z (Andrew et al. 2021, arXiv:1905.03871, theorem 1, with all rounding in S and S_b).

        Raises:
          PrivacyError: if the others alone tell more than that.
        """
        if not self.adaptive and not self.metrics_stddev:
            return self.noise_multiplier
        left = 1 / self.noise_multiplier**2
        if self.metrics_stddev:
            left -= (_METRICS_SENSITIVITY / self.metrics_stddev) ** 2
        if left <= 0:
            raise PrivacyError(
                f"the cohort of {self.expected_cohort:g} {self.unit}s is too small for metrics with noise at noise multiplier {self.noise_multiplier:g}: with a standard deviation of {self.metrics_stddev:g} they "
                f"would tell more than everything together may; expected more than {self.noise_multiplier * _METRICS_SENSITIVITY:g}. "
                'Raise training.clients_per_round (or privacy.metrics_stddev, by default a twentieth of it), or set privacy.metrics = "withheld".'
            )
        needed = _COUNT_SENSITIVITY / math.sqrt(left)
        if self.adaptive:
            left -= (_COUNT_SENSITIVITY / self.clip_count_stddev) ** 2
        if left <= 0:
            raise PrivacyError(
                f"the cohort of {self.expected_cohort:g} {self.unit}s is too small for adaptive clipping at noise multiplier {self.noise_multiplier:g}: counting those within the clip with noise of standard deviation "
                f"{self.clip_count_stddev:g} would tell more than everything together may; expected more than {needed:g}. "
                'Raise training.clients_per_round (or privacy.clip_count_stddev, by default a twentieth of it, which makes the clip less steady), or set privacy.clipping = "fixed".'
            )
        return left**-0.5

    @property
    def adaptive(self) -> bool:
        """Whether the clip follows a quantile of the clients' norms."""
        return self.clip_count_stddev > 0

    @property
    def count_grain(self) -> float:
        """As `grain`, of the count of clients within an adaptive clip."""
        return _grain(self.clip_count_stddev) if self.adaptive else 0.0

    def on_metrics_grain(self, noised: float) -> float:
        """A noised sum of metrics without its low-order bits; see `grain`."""
        grain = _grain(self.metrics_stddev)
        return round(noised / grain) * grain

    @property
    def grain(self) -> float:
        """The power of two that the noised sum is rounded to, about a thousandth of the noise; 0 where it is of integers.

        It hides what float64 arithmetic does to a Gaussian, the better the coarser it is, and costs nothing: uniform
        rounding adds grain**2 / 12 to the variance, less than a ten-millionth of it.
        """
        return _grain(self.noise_stddev) if self.mechanism in ("gaussian", "tree") else 0.0

    @property
    def trees(self) -> int:
        """How many trees are begun, which is how often a client takes part at most; 0 with other mechanisms than "tree"."""
        return math.ceil(self.rounds / self.rounds_per_tree) if self.rounds_per_tree else 0

    @property
    def levels(self) -> int:
        """Levels of the highest tree, floor(log2 of its rounds) + 1; 0 with other mechanisms than "tree"."""
        return min(self.rounds, self.rounds_per_tree).bit_length()

    @property
    def round_event(self) -> dict[str, Any]:
        """One round as the ledger charges it."""
        if not self.private:
            return {"kind": "none"}
        if self.integers:
            return self._unit | {
                "kind": "poisson_distributed_discrete_gaussian",
                "sampling_probability": self.sampling_probability,
                "sensitivity_squared": self.integers.sensitivity_squared,
                "log2_share": self.integers.log2_share,
                "honest_silos": self.integers.honest,
                "length": self.integers.length,
            }
        return self._unit | self._gaussian_event(self.noise_multiplier)

    @property
    def _unit(self) -> dict[str, str]:
        return {"unit": self.unit} if self.unit != "client" else {}

    @property
    def log_error(self) -> float:
        """By how much the logarithm of a probability may be off over all rounds; see privacy.distributed. Counted."""
        return self.rounds * accounting.log_error(self.round_event)

    def _gaussian_event(self, noise_multiplier: float) -> dict[str, Any]:
        return accounting.gaussian_event(
            noise_multiplier, sampling_probability=self.sampling_probability, rounds_per_tree=self.rounds_per_tree
        )

    def epsilon(self, rounds: int | None = None) -> float:
        """Epsilon at the plan's delta after `rounds` rounds (all of them by default); infinite without privacy."""
        if not self.private or self.delta is None:
            return math.inf
        return self._epsilon_for(self.unit, self.rounds if rounds is None else rounds)

    @property
    def client_epsilon(self) -> float:
        """Epsilon of all rounds for one client, which with unit "silo" is protected as a part of its silo, and less."""
        return self._epsilon_for("client", self.rounds)

    def _epsilon_for(self, unit: str, rounds: int) -> float:
        assert self.delta is not None
        return accounting.epsilon([(self.round_event, rounds)], self.delta, unit=unit)

    @property
    def noise_over_clip(self) -> float:
        """About how long the noise on a round's mean update is, in L2, over what bounds every single update; 0 for "none"."""
        if not self.private:
            return 0.0
        assert self.clip_norm is not None
        clip = 1.0 if self.adaptive else self.clip_norm
        return self.noise_stddev * math.sqrt(self.dimension) / (self.denominator * clip)

    def curve(self, *, rounds: int | None = None, noise_multiplier: float | None = None) -> float:
        """Epsilon if the plan had other rounds or another noise, rounded up in the fifth digit: quick, for plots.

        With "distributed_discrete_gaussian" it is that of the Gaussian noise which the silos' is worth.
        """
        event = self._gaussian_event(noise_multiplier or self.noise_multiplier)
        assert self.delta is not None
        return accounting.epsilon([(event, rounds or self.rounds)], self.delta, step=accounting.COARSE)

    def as_json(self) -> dict[str, Any]:
        """Every number of the plan, and what follows from them."""
        derived = {
            "denominator": self.denominator,
            "noise_stddev": self.noise_stddev,
            "grain": self.grain,
            "quanta": self.quanta,
            "noise_over_clip": self.noise_over_clip,
            "update_noise_multiplier": self.update_noise_multiplier,
            "trees": self.trees,
            "levels": self.levels,
            "round_event": self.round_event,
            "integers": dataclasses.asdict(self.integers) if self.integers else None,
        }
        return {**dataclasses.asdict(self), **derived, "sensitivity": self.sensitivity if self.private else None}


def make(config: Config, *, clients: int, dimension: int) -> PrivacyPlan:
    """The plan of a run on a population of `clients` (silos, where they are the unit) whose updates have `dimension` coordinates.

    With `target_epsilon` the smallest noise is found that stays at or under it.

    Raises:
      PrivacyError: if the cohort is larger than the population, no noise reaches the target, or delta is too large for the
        population and the configuration does not insist.
    """
    privacy, training = config.privacy, config.training
    if clients < 1:
        raise PrivacyError(
            "the population has no training clients; expected at least one. Look at the rejected rows of each silo's snapshot."
        )
    probability = training.clients_per_round / clients
    if probability > 1:
        raise PrivacyError(
            f"training.clients_per_round is {training.clients_per_round:g}, the population has {clients} "
            + (
                "training clients"
                if privacy.unit == "client"
                else 'silos, which privacy.unit = "silo" makes the clients of a round'
            )
            + "; expected at most that many."
        )
    _require_small_delta(privacy, clients)
    # As many rounds as everybody has a turn in. The last clients may be left without, so that the expected cohort is exact.
    rounds_per_tree = math.floor(clients / training.clients_per_round) if privacy.mechanism == "tree" else 0
    noise_multiplier = 0.0
    if privacy.mechanism != "none":
        assert privacy.delta is not None
        if privacy.noise_multiplier is not None:
            noise_multiplier = privacy.noise_multiplier
        else:
            assert privacy.target_epsilon is not None
            noise_multiplier = accounting.calibrate(
                privacy.target_epsilon,
                privacy.delta,
                sampling_probability=probability,
                rounds=training.rounds,
                rounds_per_tree=rounds_per_tree,
            )
    adaptive = privacy.clipping == "adaptive"
    plan = PrivacyPlan(
        mechanism=privacy.mechanism,
        unit=privacy.unit,
        clients=clients,
        expected_cohort=training.clients_per_round,
        sampling_probability=probability,
        rounds=training.rounds,
        clip_norm=privacy.clip_norm,
        value_range=1.0 if adaptive else privacy.clip_norm or _RANGE_WITHOUT_CLIP,
        noise_multiplier=noise_multiplier,
        delta=privacy.delta,
        dimension=dimension,
        max_examples_per_client=config.prepare.max_examples_per_client,
        local_epochs=training.local_epochs,
        silos=len(config.silos),
        tolerated_silos=config.tolerated_silos,
        ring_bits=config.secure_sum.bits,
        rounds_per_tree=rounds_per_tree,
        clip_quantile=(privacy.clip_quantile or _CLIP_QUANTILE) if adaptive else 0.0,
        metrics_stddev=(privacy.metrics_stddev or _COUNT_STDDEV * training.clients_per_round)
        if privacy.metrics == "noised"
        else 0.0,
        clip_count_stddev=(privacy.clip_count_stddev or _COUNT_STDDEV * training.clients_per_round)
        if adaptive
        else 0.0,
    )
    # Integers are worth at least the noise that was calibrated; the last digits of a numerical epsilon need not know it.
    while plan.integers and privacy.target_epsilon is not None and plan.epsilon() > privacy.target_epsilon:
        plan = dataclasses.replace(plan, noise_multiplier=round(plan.noise_multiplier + 0.001, 3))
    _ = plan.noise_stddev  # refuses a cohort that is too small for adaptive clipping
    return plan


def _require_small_delta(privacy: PrivacySection, clients: int) -> None:
    if privacy.delta is None or privacy.delta * clients < 1 or privacy.allow_large_delta:
        return
    units = "training clients" if privacy.unit == "client" else "silos"
    raise PrivacyError(
        f"privacy.delta is {privacy.delta!r}, and the population has {clients} {units}; expected a delta below one in their number, {1 / clients:.3g}. "
        f"Delta is the probability with which the guarantee may fail: publishing everything about one of the {units}, chosen at random, would satisfy such a delta. "
        f"A tenth of {1 / clients:.3g} or less is usual. Lower privacy.delta, or insist with privacy.allow_large_delta = true; the statement then says so."
    )


def _grain(stddev: float) -> float:
    return 2.0 ** math.floor(math.log2(stddev) - 10)
