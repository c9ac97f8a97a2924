"""How a mechanism shows in what is observed: what a client's integers say, where the noise is, what else is checked.

A mechanism whose noise the server adds shows as `View` says, unless `view_of` names another.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from tff_pipeline.aggregators import distributed_discrete_gaussian
from tff_pipeline.aggregators.dp_sum import CLIP_LEARNING_RATE
from tff_pipeline.audit.criteria import Check, cosines, variance
from tff_pipeline.audit.observed import Observed, Watched
from tff_pipeline.errors import PrivacyError
from tff_pipeline.learning.state import ServerState
from tff_pipeline.privacy.draws import Draws
from tff_pipeline.privacy.mechanisms import AdaptiveGaussian, DistributedDiscreteGaussian
from tff_pipeline.privacy.mechanisms.adaptive_gaussian import COUNT_SENSITIVITY
from tff_pipeline.privacy.plan import PrivacyPlan
from tff_pipeline.privacy.round import Round

_CLIPS = (1e-3, 1.0, 1e3)  # times the first round's, where the clip is adaptive
_ROTATIONS = 3
# Where a round's rotation changes what a client sends, each works a second time to be compared: in the first rounds, and
# then now and then.
_COMPARED, _COMPARED_EVERY = 50, 5

Total = Sequence[np.ndarray]  # the secure slots of a round, summed over all silos


def view_of(plan: PrivacyPlan, shapes: Sequence[Sequence[int]]) -> "View":
    """The view of the plan's mechanism."""
    match plan.mechanism:
        case AdaptiveGaussian() as mechanism:
            return AdaptiveView(plan, mechanism, shapes)
        case DistributedDiscreteGaussian() as mechanism:
            return NoiseShareView(plan, mechanism, shapes)
        case _:
            return View(plan, shapes)


class View:
    """Of a mechanism whose Gaussian noise the server adds to the sum of quantized updates.

    Args:
      plan: with canaries for clients.
      shapes: of the weights.

    Attributes:
      by_tensor: whether the noise is on the coordinates of the weights, so that tensors can be told apart.
      step_over_noise: the distance of two values of the noise over its standard deviation; 0 where it is continuous.
      clients_send_alike: whether a client sends the same in every round, so that one look at each is enough.
    """

    by_tensor: bool = True
    step_over_noise: float = 0.0
    clients_send_alike: bool = True

    def __init__(self, plan: PrivacyPlan, shapes: Sequence[Sequence[int]]):
        self.plan, self._shapes = plan, [tuple(shape) for shape in shapes]

    @property
    def coordinates(self) -> int:
        """On how many coordinates the noise is."""
        return self.plan.dimension

    def states(self, initial: ServerState, round_of: Callable[[int], Round]) -> Iterator[tuple[ServerState, Round]]:
        """Yields states and rounds that the clip could depend on, given the run's rounds by their numbers."""
        yield initial, round_of(0)

    def over_sensitivity(self, slots: Sequence[np.ndarray]) -> float:
        """Of one client's secure slots: the norm of its integers over what is allowed."""
        return float(np.linalg.norm(self._update_of(slots, clients=1)) / self.plan.sensitivity)

    def compared(self, number: int) -> bool:
        """Whether the silos' sums of this round are held against their clients' own."""
        return True

    def measure(
        self, observed: Observed, at: Round, released: np.ndarray, after: ServerState, watched: Watched, draws: Draws
    ) -> None:
        """Notes what a round shows: what it released, and the noise on it.

        Args:
          observed: where it is noted.
          at: the round.
          released: the sum that the server released, in units of the update.
          after: the state after the round.
          watched: what the parties saw.
          draws: of the run.
        """
        total, clients = _total(watched.sums), int(observed.cohorts[at.number].sum())
        observed.released[at.number] = released
        observed.noise[at.number] = (released - self._update_of(total, clients)) / self.plan.noise_stddev
        observed.windows.append((*watched.noise_window, observed.noise[at.number]))

    def draw_noise(self, draws: Draws, at: Round, shapes: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """All noise of a round, one flat array for each party that draws some."""
        return [np.concatenate([part.ravel() for part in draws.server.noise(at, shapes)])]

    def checks(self, observed: Observed) -> Iterator[Check]:
        """What is to be checked of this mechanism's noise beside that on the sum of updates."""
        yield from ()

    # -- what the secure slots hold

    def _update_slots(self, slots: Sequence[np.ndarray]) -> list[int]:
        """Which slots an update is in: they alone are no scalars."""
        indices = [index for index, slot in enumerate(slots) if slot.ndim]
        if [slots[index].shape for index in indices] != self._shapes:
            raise PrivacyError(
                f"the process sums arrays of other shapes than its weights'; expected those of {len(self._shapes)} weights, and scalars. The audit does not know this process."
            )
        return indices

    def _update_of(self, slots: Sequence[np.ndarray], clients: int) -> np.ndarray:
        """The sum of some clients' updates, flat, from the integers of the secure slots."""
        numbers = np.concatenate([self._centred(slots[index], clients).ravel() for index in self._update_slots(slots)])
        return numbers * self.plan.quantization.step

    def _centred(self, slot: np.ndarray, clients: int) -> np.ndarray:
        """What clients summed, for what they sent: `QuantizedSumFactory` adds its largest number to each."""
        signed = np.dtype(f"i{slot.dtype.itemsize}")
        zero = np.array(clients * self.plan.quantization.largest_summand).astype(slot.dtype)
        return (slot - zero).view(signed).astype(np.float64)


class AdaptiveView(View):
    """Of a clip that follows the clients: sums are in units of it, and the count of clients within it is noised too."""

    def __init__(self, plan: PrivacyPlan, mechanism: AdaptiveGaussian, shapes: Sequence[Sequence[int]]):
        super().__init__(plan, shapes)
        self._mechanism = mechanism

    def states(self, initial: ServerState, round_of: Callable[[int], Round]) -> Iterator[tuple[ServerState, Round]]:
        for times in _CLIPS:
            yield initial.with_clip(times * self._mechanism.clip_norm), round_of(0)

    def over_sensitivity(self, slots: Sequence[np.ndarray]) -> float:
        """Also of where it counts itself."""
        counted = abs(self._count_of(slots, clients=1)) / COUNT_SENSITIVITY
        return max(super().over_sensitivity(slots), counted)

    def measure(
        self, observed: Observed, at: Round, released: np.ndarray, after: ServerState, watched: Watched, draws: Draws
    ) -> None:
        mechanism = self._mechanism
        if after.clip is None:
            raise PrivacyError("the process has no adaptive clip; expected one. The audit does not know this process.")
        moved = math.log(mechanism.clip_norm / after.clip) / CLIP_LEARNING_RATE
        counted = (moved + mechanism.quantile - 0.5) * self.plan.denominator
        clients = int(observed.cohorts[at.number].sum())
        within = self._count_of(_total(watched.sums), clients)
        observed.count_noise[at.number] = (counted - within) / mechanism.count_stddev
        super().measure(observed, at, released / mechanism.clip_norm, after, watched, draws)

    def checks(self, observed: Observed) -> Iterator[Check]:
        counted = np.square(observed.count_noise).sum()
        rounds = len(observed.count_noise)
        yield variance("noise on the count", counted, rounds, "variance of the noise on the count within the clip")

    def _count_of(self, slots: Sequence[np.ndarray], clients: int) -> float:
        """Those within the clip less those beyond it, halved. The slot after the update's."""
        index = self._update_slots(slots)[-1] + 1
        return float(self._centred(slots[index], clients) / self.plan.quantization.levels)


class NoiseShareView(View):
    """Of noise that the silos add to their integers before these are masked."""

    by_tensor = False
    clients_send_alike = False

    def __init__(
        self,
        plan: PrivacyPlan,
        mechanism: DistributedDiscreteGaussian,
        shapes: Sequence[Sequence[int]],
    ):
        super().__init__(plan, shapes)
        self._discretization = mechanism.discretization(plan)
        self.step_over_noise = 1 / (2.0**self._discretization.log2_scale * math.sqrt(self._discretization.silos))

    @property
    def coordinates(self) -> int:
        return self._discretization.length

    def states(self, initial: ServerState, round_of: Callable[[int], Round]) -> Iterator[tuple[ServerState, Round]]:
        for number in range(_ROTATIONS):
            yield initial, round_of(number)

    def over_sensitivity(self, slots: Sequence[np.ndarray]) -> float:
        numbers = centred(slots[-1], self._discretization.modulus).astype(np.float64)
        return float(np.linalg.norm(numbers) / math.sqrt(self._discretization.sensitivity_squared))

    def compared(self, number: int) -> bool:
        return number < _COMPARED or number % _COMPARED_EVERY == 0

    def measure(
        self, observed: Observed, at: Round, released: np.ndarray, after: ServerState, watched: Watched, draws: Draws
    ) -> None:
        number = at.number
        discretization, total = self._discretization, _total(watched.sums)
        seed = tf.constant(draws.server.rotation(at))
        given = np.sum([report[-1] for report in watched.given], axis=0).astype(total[-1].dtype)
        noise = centred(given - total[-1], discretization.modulus)
        observed.noise[number] = noise / (2.0**discretization.log2_scale * math.sqrt(discretization.silos))
        known = np.zeros(discretization.length)
        for silo_number, (silo, (began, ended, noise_share)) in enumerate(watched.noise_shares.items()):
            observed.noise_shares[silo][number] = noise_share
            observed.windows.append((began, ended, noise_share))
            known += noise_share if silo_number >= discretization.honest_silos else 0
        known = distributed_discrete_gaussian.rotated_back(tf.constant(known), seed, discretization).numpy()
        observed.released[number] = released - discretization.step * known

    def draw_noise(self, draws: Draws, at: Round, shapes: Sequence[Sequence[int]]) -> list[np.ndarray]:
        return [silo.noise_share(at).astype(np.float64) for silo in draws.silos.values()]

    def checks(self, observed: Observed) -> Iterator[Check]:
        """Each silo's noise share by itself: the claim counts on those of any silos but the tolerated ones."""
        drawn = np.stack(list(observed.noise_shares.values())) / 2.0**self._discretization.log2_scale
        squares = np.square(drawn).sum(axis=(1, 2))
        yield variance("noise of each silo", squares, drawn[0].size, "smallest variance of a silo's noise share")
        yield cosines(
            "noise between shares",
            drawn.reshape(-1, drawn.shape[-1]),
            "largest correlation of two noise shares, of any silos and rounds",
        )


def centred(numbers: np.ndarray, modulus: int) -> np.ndarray:
    """Integers modulo `modulus` as those around zero, int64."""
    half = modulus // 2
    return (numbers.astype(np.int64) + half) % modulus - half


def _total(sums: Mapping[str, list[np.ndarray]]) -> list[np.ndarray]:
    """The sum over all silos, slot by slot, in the type that they send it in."""
    slots = zip(*sums.values(), strict=True)
    return [np.sum(parts, axis=0).astype(parts[0].dtype) for parts in slots]
