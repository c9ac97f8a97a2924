"""What every mechanism is: a frozen value that says what a round clips, draws, adds, costs and tells.

A mechanism holds its own numbers only. Those of the run (clients, rounds, sampling probability, dimension, ...) are
`RunNumbers`, which every method that needs them is given; `plan.PrivacyPlan` is both together.
"""

import abc
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from tff_pipeline.config import Config
from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy import sampling
from tff_pipeline.privacy.mechanisms.event import Event
from tff_pipeline.privacy.mechanisms.metrics import NoisedMetrics
from tff_pipeline.privacy.mechanisms.quantization import Quantization
from tff_pipeline.privacy.mechanisms.run_numbers import RunNumbers
from tff_pipeline.privacy.randomness import derive
from tff_pipeline.privacy.round import Round


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerInputs:
    """What the server puts into the aggregator's state before a round. What a mechanism does not need is None.

    Attributes:
      noise: float64, one array a weight, in units of the sum.
      count_noise: float64 scalar, on the number of clients within an adaptive clip.
      rotation: int64 [2], the public seed of the round's rotation.
    """

    noise: list[np.ndarray] | None = None
    count_noise: np.ndarray | None = None
    rotation: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mechanism(abc.ABC):
    """What a run does to each update and to their sum. Two runs with equal numbers and mechanisms give the same guarantee.

    Class attributes:
      kind: the mechanism's name in configurations and in run.json.
      event_type: of its rounds in the ledger.
      private: whether anything is guaranteed.
      silos_add_noise: whether the noise is in a silo's sum before it leaves; then nothing else may leave the silo in a round.
      turns_in_a_period: in how many rounds of a `period` a client takes part at most; None where it may in all.

    Attributes:
      clip_norm: L2 bound C on one client's update, of the first round where it is adaptive; None where there is no clip.
      noise_multiplier: z, the standard deviation of the noise over the sensitivity, as the accountant is told it; 0 where
        there is no noise.
    """

    kind: ClassVar[str]
    event_type: ClassVar[type[Event]]
    private: ClassVar[bool] = True
    silos_add_noise: ClassVar[bool] = False
    turns_in_a_period: ClassVar[int | None] = None
    clip_norm: float | None
    noise_multiplier: float

    @classmethod
    @abc.abstractmethod
    def from_config(cls, config: Config, run: RunNumbers, *, noise_multiplier: float) -> Self:
        """The mechanism that a configuration asks for, with a noise multiplier that is given or calibrated."""

    @classmethod
    @abc.abstractmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """The mechanism that a run.json's "plan" describes."""

    @abc.abstractmethod
    def numbers(self) -> dict[str, Any]:
        """The mechanism's own numbers, under the keys of run.json's "plan"."""

    def derived(self, run: RunNumbers) -> dict[str, Any]:
        """What follows from its numbers and the run's, under keys of run.json's "plan"."""
        return {}

    # -- accounting

    @abc.abstractmethod
    def event(self, run: RunNumbers) -> Event:
        """One round as it is charged."""

    @abc.abstractmethod
    def gaussian_event(self, noise_multiplier: float, *, sampling_probability: float, unit: str = "client") -> Event:
        """A round with continuous Gaussian noise in place of this mechanism's: for calibration, plots and audits."""

    # -- the sum, its bounds and its noise

    @property
    def noised_metrics(self) -> NoisedMetrics | None:
        """The noise on training metrics where they are released with noise, else None."""
        return None

    @property
    def clip_of_sum(self) -> float | None:
        """The clip in the units that updates are summed in: 1 where the sum is in units of the round's clip."""
        return self.clip_norm

    @abc.abstractmethod
    def sensitivity(self, run: RunNumbers) -> float:
        """The most by which one client changes the sum, in L2, after clipping and quantization."""

    @abc.abstractmethod
    def noise_stddev(self, run: RunNumbers) -> float:
        """Standard deviation of the noise on each coordinate of the sum, before division."""

    def update_noise_multiplier(self, run: RunNumbers) -> float:
        """The noise on the sum of updates over its sensitivity; more than z where a round releases other sums too."""
        return self.noise_multiplier

    def rounding_step(self, run: RunNumbers) -> float:
        """The power of two that the noised sum is rounded to; 0 where it is of integers, or has no noise."""
        return 0.0

    def quantization(self, run: RunNumbers) -> Quantization:
        """How updates become integers where the server adds the noise, or nobody does."""
        return Quantization.finest(
            self._value_range, largest_cohort=run.clients, dimension=run.dimension, in_int32=self.private
        )

    @property
    def _value_range(self) -> float:
        if self.clip_of_sum is None:
            raise PrivacyError(f'a "{self.kind}" mechanism has no clip; expected one, which a range follows from.')
        return self.clip_of_sum

    # -- draws

    @property
    def period(self) -> int:
        """After how many rounds cohorts and noise are drawn without regard to the rounds before."""
        return 1

    def own_noise(self, table: np.ndarray) -> np.ndarray:
        """Of numbers by round [rounds, ...], sums of rounds whose noise is independent: here the rounds' own."""
        return table

    def cohort(self, run: RunNumbers, secret: bytes, *, silo: str, round: Round, clients: int) -> np.ndarray:
        """The rows of the silo's clients that take part, int64, ascending: Poisson sampling.

        Args:
          run: whose sampling probability it is.
          secret: the silo's.
          silo: its name, so that two silos which came to have one secret do not draw the same.
          round: of the run.
          clients: how many the silo has to draw from.
        """
        return sampling.cohort(
            derive(secret, f"cohort/{silo}/{round.binding}"),
            round_number=round.number,
            clients=clients,
            probability=run.sampling_probability,
        )

    @abc.abstractmethod
    def server_inputs(
        self, run: RunNumbers, secret: bytes, *, round: Round, shapes: Sequence[Sequence[int]]
    ) -> ServerInputs:
        """What the server, whose `secret` it is, draws for a round whose weights have `shapes`."""

    def numbers_drawn_by_silos(self, run: RunNumbers) -> int:
        """How many numbers of noise all silos together draw in a round."""
        return 0

    def noise_share(self, run: RunNumbers, secret: bytes, *, silo: str, round: Round) -> np.ndarray:
        """The silo's share of the round's noise, int64 [length], where the silos add it.

        Raises:
          PrivacyError: where they do not.
        """
        raise PrivacyError(
            f'with the mechanism "{self.kind}" the silos add no noise; expected a mechanism whose noise they share.'
        )

    # -- sentences of the statement

    def participation(self, run: RunNumbers) -> str:
        """How often a client takes part, in words that follow "each"."""
        return f"in a round with probability {run.sampling_probability:.4g}"

    @abc.abstractmethod
    def mechanism_sentences(self, run: RunNumbers) -> list[str]:
        """What happens to an update, and what is added to the sum."""

    @abc.abstractmethod
    def accounting_sentences(self, run: RunNumbers) -> list[str]:
        """What the accounting rests on with this mechanism."""

    def holds_against_silos(self, run: RunNumbers) -> bool:
        """Whether the guarantee holds against another silo, which sees every round's model and what it adds itself."""
        return True

    def secure_sum_sentences(self, run: RunNumbers) -> list[str]:
        """What the server learns of a round, and who is trusted with what."""
        if run.silos == 1:
            learned = [
                "Secure sum: there is only one silo, so the masked sum is the sum of that silo.",
                "The server sees it.",
            ]
        else:
            learned = [
                f"Secure sum: each silo masks what it sends with keys that every two of the {run.silos} silos agree on.",
                f"A server that follows the protocol learns the sums over all silos of {self._summed(run)}; it learns nothing more, unless a silo tells it its own sums.",
            ]
        return [*learned, *self._trust()]

    def _summed(self, run: RunNumbers) -> str:
        """What a round's secure sums are of, where the server adds the noise."""
        return "the updates, before the noise, and of the training metrics"

    def _trust(self) -> list[str]:
        return [
            "The server is trusted to add the noise, and the silos are trusted to sample and clip as stated.",
            "The guarantee holds against anybody who obtains the models; it does not hold against the server, which sees every sum before the noise is added.",
        ]

    def metrics_sentences(self, run: RunNumbers, policy: str) -> list[str]:
        """What becomes of training metrics under `privacy.metrics`."""
        paragraph = [
            "Training metrics: the loss, the accuracy and the cohort size of every round are sums without noise, which no guarantee covers.",
            "The operator of the server has them: in memory, in the run's folder (rounds.csv, states and TensorBoard), and on standard error after every round, where anybody who reads its log sees them.",
        ]
        if self.private:
            paragraph.append("The guarantee does not hold against anybody who has the metrics of all rounds.")
        paragraph.append("A run that stops because no update of a round was finite reveals as much.")
        if policy == "released":
            return [
                *paragraph,
                "The metrics of the last round are released with every exported version, and the guarantee does not cover what they reveal.",
            ]
        return [*paragraph, "The metrics are withheld: no exported version contains them."]


def require_positive(mechanism: Mechanism, **numbers: float) -> None:
    """Refuses a mechanism whose numbers are not above 0 and finite.

    Raises:
      PrivacyError: naming the first number that is not.
    """
    for name, value in numbers.items():
        if not (value > 0 and math.isfinite(value)):
            raise PrivacyError(f'mechanism "{mechanism.kind}": {name} is {value!r}; expected a number above 0.')
