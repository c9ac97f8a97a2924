"""One frozen plan from the configuration: the run's numbers, and its mechanism.

The sampler, the aggregator, the noise, the ledger and the statement are all made from it, so they cannot disagree.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from tff_pipeline.config import Config, PrivacySection
from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy import accounting, mechanisms
from tff_pipeline.privacy.mechanisms import (
    Mechanism,
    NoisedMetrics,
    Quantization,
    RunNumbers,
    ServerInputs,
)
from tff_pipeline.privacy.round import Round

# What the flat form of a plan in run.json holds under the keys of other mechanisms' numbers.
_NOT_OF_THIS_MECHANISM = {
    "noise_multiplier": 0.0,
    "tolerated_silos": 0,
    "ring_bits": 32,
    "rounds_per_tree": 0,
    "clip_quantile": 0.0,
    "clip_count_stddev": 0.0,
    "metrics_stddev": 0.0,
    "trees": 0,
    "levels": 0,
    "integers": None,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrivacyPlan(RunNumbers):
    """What a run does for privacy. Two plans with the same numbers give the same guarantee.

    Attributes:
      mechanism: what happens to updates and their sum.
    """

    mechanism: Mechanism

    # -- accounting

    @property
    def private(self) -> bool:
        return self.mechanism.private

    @property
    def noise_multiplier(self) -> float:
        return self.mechanism.noise_multiplier

    @property
    def large_delta(self) -> bool:
        """Whether delta is at or above one in the number of units: publishing one of them outright would satisfy it."""
        return self.delta is not None and self.delta * self.clients >= 1

    @functools.cached_property
    def round_event(self) -> dict[str, Any]:
        """One round as the ledger charges it."""
        return self.mechanism.event(self).as_json()

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
        return accounting.epsilon([(self.round_event, rounds)], self.stated_delta, unit=unit)

    @property
    def stated_delta(self) -> float:
        """Delta where there has to be one.

        Raises:
          PrivacyError: if the plan has none.
        """
        if self.delta is None:
            raise PrivacyError("the plan has no delta to state an epsilon at; expected privacy.delta.")
        return self.delta

    def curve(self, *, rounds: int | None = None, noise_multiplier: float | None = None) -> float:
        """Epsilon if the plan had other rounds or another noise, rounded up in the fifth digit: quick, for plots.

        Where the silos add the noise it is that of the Gaussian noise which theirs is worth.
        """
        event = self.mechanism.gaussian_event(
            noise_multiplier or self.noise_multiplier, sampling_probability=self.sampling_probability
        )
        return accounting.epsilon([(event.as_json(), rounds or self.rounds)], self.stated_delta, step=accounting.COARSE)

    # -- the sum, its bounds and its noise

    @property
    def clip_norm(self) -> float | None:
        return self.mechanism.clip_norm

    @property
    def clip_of_sum(self) -> float | None:
        """See `Mechanism.clip_of_sum`."""
        return self.mechanism.clip_of_sum

    @property
    def sensitivity(self) -> float:
        """See `Mechanism.sensitivity`."""
        return self.mechanism.sensitivity(self)

    @property
    def noise_stddev(self) -> float:
        """See `Mechanism.noise_stddev`."""
        return self.mechanism.noise_stddev(self)

    @property
    def update_noise_multiplier(self) -> float:
        """See `Mechanism.update_noise_multiplier`."""
        return self.mechanism.update_noise_multiplier(self)

    @property
    def rounding_step(self) -> float:
        """See `Mechanism.rounding_step`."""
        return self.mechanism.rounding_step(self)

    @functools.cached_property
    def quantization(self) -> Quantization:
        """See `Mechanism.quantization`."""
        return self.mechanism.quantization(self)

    @property
    def noised_metrics(self) -> NoisedMetrics | None:
        """The noise on training metrics where they are released with noise, else None."""
        return self.mechanism.noised_metrics

    @property
    def noise_over_clip(self) -> float:
        """About how long the noise on a round's mean update is, in L2, over what bounds every single update; 0 for "none"."""
        if not self.private or self.clip_of_sum is None:
            return 0.0
        return self.noise_stddev * math.sqrt(self.dimension) / (self.denominator * self.clip_of_sum)

    # -- draws

    def cohort(self, secret: bytes, *, silo: str, round: Round, clients: int) -> np.ndarray:
        """See `Mechanism.cohort`."""
        return self.mechanism.cohort(self, secret, silo=silo, round=round, clients=clients)

    def server_inputs(self, secret: bytes, *, round: Round, shapes: Sequence[Sequence[int]]) -> ServerInputs:
        """See `Mechanism.server_inputs`."""
        return self.mechanism.server_inputs(self, secret, round=round, shapes=shapes)

    def noise_share(self, secret: bytes, *, silo: str, round: Round) -> np.ndarray:
        """See `Mechanism.noise_share`."""
        return self.mechanism.noise_share(self, secret, silo=silo, round=round)

    # -- run.json

    def as_json(self) -> dict[str, Any]:
        """Every number of the plan, and what follows from them: one flat form for all mechanisms, which old runs have too."""
        run = {field.name: getattr(self, field.name) for field in dataclasses.fields(RunNumbers)}
        return {
            "mechanism": self.mechanism.kind,
            **run,
            **_NOT_OF_THIS_MECHANISM,
            "value_range": self.quantization.value_range,
            "denominator": self.denominator,
            "noise_stddev": self.noise_stddev,
            "grain": self.rounding_step,
            "quanta": self.quantization.levels,
            "noise_over_clip": self.noise_over_clip,
            "update_noise_multiplier": self.update_noise_multiplier,
            "round_event": self.round_event,
            "sensitivity": self.sensitivity if self.private else None,
            **self.mechanism.numbers(),
            **self.mechanism.derived(self),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """The plan of a run.json, also of an older version's, which lacks what was not there yet."""
        run = {field.name: stored[field.name] for field in dataclasses.fields(RunNumbers) if field.name in stored}
        return cls(**run, mechanism=mechanisms.from_json(stored))


def make(config: Config, *, clients: int, dimension: int) -> PrivacyPlan:
    """The plan of a run on a population of `clients` (silos, where they are the unit) whose updates have `dimension` coordinates.

    With `target_epsilon` it has the smallest noise that stays at or under it.

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
    run = RunNumbers(
        unit=privacy.unit,
        clients=clients,
        expected_cohort=training.clients_per_round,
        sampling_probability=probability,
        rounds=training.rounds,
        delta=privacy.delta,
        dimension=dimension,
        max_examples_per_client=config.prepare.max_examples_per_client,
        local_epochs=training.local_epochs,
        silos=len(config.silos),
    )
    plan = _with_noise(config, run)
    _ = plan.noise_stddev  # refuses a cohort that is too small for what else a round releases
    return plan


def _with_noise(config: Config, run: RunNumbers) -> PrivacyPlan:
    """The plan with the noise multiplier that the configuration gives, or the smallest that reaches its target."""
    privacy, mechanism = config.privacy, mechanisms.type_of(config.privacy)
    numbers = {field.name: getattr(run, field.name) for field in dataclasses.fields(RunNumbers)}

    def planned(noise_multiplier: float) -> PrivacyPlan:
        return PrivacyPlan(**numbers, mechanism=mechanism.from_config(config, run, noise_multiplier=noise_multiplier))

    if privacy.noise_multiplier is not None or not mechanism.private:
        return planned(privacy.noise_multiplier or 0.0)
    if privacy.target_epsilon is None or privacy.delta is None:
        raise PrivacyError(
            f"{config.path}: there is neither a noise multiplier nor a target to calibrate one to; expected privacy.noise_multiplier, or privacy.target_epsilon and privacy.delta."
        )
    target, any_noise = privacy.target_epsilon, planned(1.0).mechanism

    def event(noise_multiplier: float) -> dict[str, Any]:
        return any_noise.gaussian_event(
            noise_multiplier, sampling_probability=run.sampling_probability, unit="client"
        ).as_json()

    noise_multiplier = accounting.calibrate(target, privacy.delta, event=event, rounds=run.rounds)
    plan = planned(noise_multiplier)
    # Integers are worth at least the noise that was calibrated; the last digits of a numerical epsilon need not know it.
    while plan.mechanism.silos_add_noise and plan.epsilon() > target:
        plan = planned(round(plan.noise_multiplier + 0.001, 3))
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
