"""What every mechanism is: a frozen value that says what a round clips, draws, adds, costs and tells.

A mechanism holds its own numbers only. Those of the run (clients, rounds, sampling probability, dimension, ...) are
`RunNumbers`, which every method that needs them is given; `plan.PrivacyPlan` is both together. An `Event` is what one round
is to the accountant: the ledger holds its JSON form, so a form that was once written is read for ever.
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
from tff_pipeline.privacy.mechanisms.quantization import Quantization
from tff_pipeline.privacy.randomness import derive
from tff_pipeline.privacy.round import Round


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunNumbers:
    """The numbers of a run that no mechanism owns.

    Attributes:
      unit: what a neighbouring population has one more or one fewer of: "client", or "silo", which is then what a round
        samples, trains on and clips as a whole. The names below say client for either.
      clients: size of the population, N.
      expected_cohort: expected number of clients in a round, q N.
      sampling_probability: with which a client takes part in a round, q.
      rounds: number of rounds T.
      delta: the failure probability the guarantee is stated at, or None.
      dimension: number of coordinates of an update, d.
      max_examples_per_client: the contribution bound that preparation enforced.
      local_epochs: passes over a client's examples in a round.
      silos: number of silos, n.
    """

    unit: str
    clients: int
    expected_cohort: float
    sampling_probability: float
    rounds: int
    delta: float | None
    dimension: int
    max_examples_per_client: int
    local_epochs: int
    silos: int = 1

    @property
    def denominator(self) -> float:
        """What the noised sum is divided by: the expected cohort, which no client changes."""
        return self.expected_cohort


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event(abc.ABC):
    """One round as the ledger charges it and as the accountant composes it: Gaussian mechanisms, or no privacy at all.

    Attributes:
      unit: whom the round's noise hides, "client" or "silo".
    """

    kind: ClassVar[str]
    unit: str = "client"

    @classmethod
    @abc.abstractmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self: ...

    @abc.abstractmethod
    def numbers(self) -> dict[str, Any]:
        """The event's own numbers, under the ledger's keys."""

    def as_json(self) -> dict[str, Any]:
        """The ledger's form. The unit is in it only where it is not the client."""
        unit = {"unit": self.unit} if self.unit != "client" else {}
        return {**unit, "kind": self.kind, **self.numbers()}

    @property
    @abc.abstractmethod
    def gaussian_noise_multiplier(self) -> float | None:
        """Of the Gaussian mechanisms that the round is accounted for as; None where nothing is guaranteed."""

    @property
    def poisson_probability(self) -> float | None:
        """Of the Poisson sampling that is counted on; None where none is."""
        return None

    @property
    def log_error(self) -> float:
        """How far the logarithm of a probability may be from that of the mechanism which is accounted for in its place."""
        return 0.0

    def gaussians(self, rounds: int) -> int:
        """How many Gaussian mechanisms the first `rounds` rounds of a run are."""
        return rounds

    @abc.abstractmethod
    def __str__(self) -> str:
        """The round in words, as `tff-pipeline ledger show` lists it after the word "each"."""


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

    Attributes:
      clip_norm: L2 bound C on one client's update, of the first round where it is adaptive; None where there is no clip.
      noise_multiplier: z, the standard deviation of the noise over the sensitivity, as the accountant is told it; 0 where
        there is no noise.
    """

    kind: ClassVar[str]
    event_type: ClassVar[type[Event]]
    private: ClassVar[bool] = True
    silos_add_noise: ClassVar[bool] = False
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

    # -- accounting

    @abc.abstractmethod
    def event(self, run: RunNumbers) -> Event:
        """One round as it is charged."""

    @abc.abstractmethod
    def gaussian_event(self, noise_multiplier: float, *, sampling_probability: float, unit: str = "client") -> Event:
        """A round with continuous Gaussian noise in place of this mechanism's: for calibration, plots and audits."""

    # -- the sum, its bounds and its noise

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

    def noise_share(self, run: RunNumbers, secret: bytes, *, silo: str, round: Round) -> np.ndarray:
        """The silo's share of the round's noise, int64 [length], where the silos add it.

        Raises:
          PrivacyError: where they do not.
        """
        raise PrivacyError(
            f'with the mechanism "{self.kind}" the silos add no noise; expected a mechanism whose noise they share.'
        )

    # -- sentences of the statement

    @abc.abstractmethod
    def mechanism_sentence(self, run: RunNumbers) -> str:
        """What happens to an update, and what is added to the sum."""

    @abc.abstractmethod
    def accounting_sentences(self, run: RunNumbers) -> list[str]:
        """What the accounting rests on with this mechanism."""

    def holds_against_silos(self, run: RunNumbers) -> bool:
        """Whether the guarantee holds against another silo, which sees every round's model and what it adds itself."""
        return True

    def secure_sum_sentences(self, run: RunNumbers, silos: int) -> list[str]:
        """What the server learns of a round, and who is trusted with what."""
        said = (
            "Secure sum: there is one silo, so its masked sum is its sum. The server sees it."
            if silos == 1
            else f"Secure sum: what a silo sends is masked with keys agreed pairwise among the {silos} silos; a server that follows the protocol learns the sums over all silos of {self._summed(run)}, and nothing more as long as no silo tells it its own."
        )
        return [said, *self._trust()]

    def _summed(self, run: RunNumbers) -> str:
        """What a round's secure sums are of, where the server adds the noise."""
        return "their updates, before the noise, and of their training metrics"

    def _trust(self) -> list[str]:
        return [
            "The server is trusted to add the noise, and the silos to sample and clip as stated.",
            "The guarantee holds against whoever gets the models; it does not hold against the server, which has every sum without noise.",
        ]

    def metrics_sentences(self, run: RunNumbers, policy: str) -> list[str]:
        """What becomes of training metrics under `privacy.metrics`."""
        said = [
            "Training metrics: the loss, the accuracy and the size of the cohort of every round are sums without noise, which no guarantee covers.",
            "The server's operator has them: in memory, in the run's folder (rounds.csv, states and TensorBoard), and on standard error after every round, from where they reach whoever reads its log.",
        ]
        if self.private:
            said.append("The guarantee does not hold against whoever has those of all rounds.")
        said.append("A run that stops because no update of a round was finite tells as much.")
        if policy == "released":
            return [
                *said,
                "Those of the last round are released with every exported version, and the guarantee does not cover what they tell.",
            ]
        return [*said, "They are withheld: no exported version has them."]


def server_secret(secret: bytes, round: Round) -> bytes:
    """What the server's draws of a round follow from, where no other round has a part in them."""
    return derive(secret, f"noise/{round.binding}")


def rounding_step(stddev: float) -> float:
    """A power of two, about a thousandth of the noise's standard deviation.

    It hides what float64 arithmetic does to a Gaussian, the better the coarser it is, and costs nothing: uniform
    rounding adds step**2 / 12 to the variance, less than a ten-millionth of it.
    """
    return 2.0 ** math.floor(math.log2(stddev) - 10)


def require_positive(mechanism: Mechanism, **numbers: float) -> None:
    """Refuses a mechanism whose numbers are not above 0 and finite.

    Raises:
      PrivacyError: naming the first number that is not.
    """
    for name, value in numbers.items():
        if not (value > 0 and math.isfinite(value)):
            raise PrivacyError(f'mechanism "{mechanism.kind}": {name} is {value!r}; expected a number above 0.')
