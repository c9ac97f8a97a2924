"""Plays a plan's rounds with canaries, as training plays them, and observes what each party sees.

The objects are training's: party keys in files, `Draws`, the compiled process, the local runtime, `rounds.play`. Only the
clients are canaries and the model is small. What is observed: the cohorts; each silo's sums before noise and masks; its
share of the noise, where silos add it; the reports that the server is given; the weights that it releases.
"""

import dataclasses
import hashlib
import math
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tff_pipeline.aggregators import distributed_discrete_gaussian as integer_aggregation
from tff_pipeline.aggregators.dp_sum import CLIP_LEARNING_RATE
from tff_pipeline.audit import canaries
from tff_pipeline.audit.attack import GUESSES_A_ROUND
from tff_pipeline.config import TrainingSection
from tff_pipeline.errors import PrivacyError
from tff_pipeline.learning import process as learning
from tff_pipeline.learning.state import ServerState
from tff_pipeline.model.learner import CanaryLearner
from tff_pipeline.privacy import randomness
from tff_pipeline.privacy.draws import Draws
from tff_pipeline.privacy.keys import PartyKey
from tff_pipeline.privacy.plan import PrivacyPlan
from tff_pipeline.privacy.round import Round, digest_of
from tff_pipeline.privacy.server_draws import ServerDraws
from tff_pipeline.privacy.silo_draws import SiloDraws
from tff_pipeline.progress import Bar
from tff_pipeline.runtime.base import NoLedgers, Report, RoundResult
from tff_pipeline.runtime.local import LocalRuntime
from tff_pipeline.runtime.scripted import ScriptedRuntime

_COHORT = 16  # expected, where there are enough canaries
_FEWEST, _MOST = 40, 400  # canaries
_SILOS = 8  # at most, unless every silo's noise counts
_SILOS_AS_CLIENTS = 12
_CLIPS = (1e-3, 1.0, 1e3)  # times the first round's, where the clip is adaptive
_ROTATIONS = 3
_SHOWN_EVERY = 25  # rounds between two lines of progress
# Where a round's rotation changes what a client sends, each works a second time to be compared: in the first rounds, and
# then now and then.
_COMPARED, _COMPARED_EVERY = 50, 5

Sums = Mapping[str, list[np.ndarray]]


@dataclasses.dataclass
class Observed:
    """What was observed over all rounds. Units are those of the sum of updates; of the clip, where that is adaptive.

    Attributes:
      directions: float [canaries, dimension], the unit vector along which each canary's update lies.
      norms: float [canaries], of the canaries' own updates after the clip, without noise.
      sensitivities: the largest norm over the plan's sensitivity that a client reached, by what the client does.
      cohorts: bool [rounds, canaries].
      released: float [rounds, dimension], the sum that the server releases. Where silos add the noise, without the shares
        of those that the claim tolerates on the attacker's side.
      noise: float [rounds, coordinates], the noise on the sum over its standard deviation; of the integers, where silos
        add it.
      shares: by silo int64 [rounds, coordinates], where silos add the noise.
      count_noise: float [rounds], on the number of clients within an adaptive clip, over its standard deviation.
      windows: of every draw of noise: between which two times it was drawn, in ns, and the first numbers of it.
      other_sums: in how many of the rounds compared a silo's sum was not that of the cohort's clients, each worked on by itself.
      unseen_reports: in how many rounds the server was not given one report from each silo.
      other_totals: in how many rounds the reports' sum was not that of the silos' sums and shares: masks are left over, or
        noise is not where it should be.
      mask_bits: int [silos, slots, 2], how many bits of masks were set, and how many there were.
      masks: a digest of every silo's mask in every round.
    """

    directions: np.ndarray
    norms: np.ndarray
    sensitivities: dict[str, float]
    cohorts: np.ndarray
    released: np.ndarray
    noise: np.ndarray
    shares: dict[str, np.ndarray]
    count_noise: np.ndarray
    windows: list[tuple[int, int, np.ndarray]]
    other_sums: int = 0
    unseen_reports: int = 0
    other_totals: int = 0
    mask_bits: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0, 2), np.int64))
    masks: list[bytes] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class _Watch:
    """What was seen of the round at hand: beside each silo, and beside the server."""

    sums: dict[str, list[np.ndarray]] = dataclasses.field(default_factory=dict)
    shares: dict[str, tuple[int, int, np.ndarray]] = dataclasses.field(default_factory=dict)  # began and ended, in ns
    noise: tuple[int, int] = (0, 0)  # when the server's was drawn, in ns
    reports: list[Report] = dataclasses.field(default_factory=list)


class _WatchedSilo:
    """A silo's draws with an observer beside them."""

    def __init__(self, testbed: "Testbed", silo: str):
        self._testbed, self._silo = testbed, silo

    def cohort(self, at: Round, clients: int) -> np.ndarray:
        return self._draws.cohort(at, clients)

    def noise_share(self, at: Round) -> np.ndarray:
        began = time.time_ns()
        share = self._draws.noise_share(at)
        self._testbed.watch.shares[self._silo] = began, time.time_ns(), np.array(share)
        return share

    def record(self, at: Round, sums: Sequence[np.ndarray]) -> None:
        self._testbed.watch.sums[self._silo] = [np.array(part) for part in sums]
        self._draws.record(at, sums)

    @property
    def _draws(self) -> SiloDraws:
        return self._testbed.draws.silos[self._silo]


class _WatchedServer:
    """The server's draws with an observer beside them."""

    def __init__(self, testbed: "Testbed"):
        self._testbed = testbed

    def noise(self, at: Round, shapes: Sequence[Sequence[int]]) -> list[np.ndarray]:
        began = time.time_ns()
        noise = self._testbed.draws.server.noise(at, shapes)
        self._testbed.watch.noise = began, time.time_ns()
        return noise

    def rotation(self, at: Round) -> np.ndarray:
        return self._testbed.draws.server.rotation(at)


class _WatchedDraws:
    """All parties' draws, each with an observer beside it."""

    def __init__(self, testbed: "Testbed", silos: Iterable[str]):
        self.server = _WatchedServer(testbed)
        self.silos = {silo: _WatchedSilo(testbed, silo) for silo in silos}


class Testbed:
    """A plan's mechanism around canaries. Used in a `with` block.

    Args:
      plan: the run's; `self.plan` is what it becomes with canaries for clients.
      training: the run's, for what clients do.
      shapes: the run's weights; the testbed's are as many tensors, of the same ranks.
      secret: that keys follow from; the operating system's generator makes them where it is None.
    """

    __test__ = False  # for pytest, which takes it for a test by its name

    def __init__(
        self, plan: PrivacyPlan, training: TrainingSection, shapes: Sequence[Sequence[int]], secret: bytes | None
    ):
        self.shapes = _small(shapes)
        self.plan = _with_canaries(plan, sum(math.prod(shape) for shape in self.shapes))
        self._training, self._secret = training, secret
        assert plan.clip_norm is not None
        self._clip = plan.clip_norm

    def __enter__(self) -> "Testbed":
        self._folder = tempfile.TemporaryDirectory(prefix="tff-pipeline-audit-")
        plan, folder, clip = self.plan, Path(self._folder.name), self._clip
        count = self.silos_of(plan)
        options: dict[str, Any] = {
            "as_one": plan.unit == "silo",
            "folder": folder,
            "batch_size": self._training.batch_size,
            "epochs": plan.local_epochs,
        }
        self._silos, self._coordinates = canaries.population(
            plan.clients, count, plan.dimension, scale=canaries.BEYOND * clip, **options
        )
        self._extremes, self._tried = canaries.extremes(
            [math.prod(shape) for shape in self.shapes],
            clip=clip,
            most_examples=plan.max_examples_per_client,
            **options,
        )
        step = 1.0 if self._training.client_optimizer == "sgd" else canaries.BEYOND * clip
        training = TrainingSection(
            rounds=plan.rounds,
            clients_per_round=plan.expected_cohort,
            local_epochs=plan.local_epochs,
            batch_size=self._training.batch_size,
            algorithm=self._training.algorithm,
            proximal_strength=self._training.proximal_strength,
            client_optimizer=self._training.client_optimizer,
            client_learning_rate=step,
            server_learning_rate=1.0,
            server_momentum=0.0,
        )
        shapes = self.shapes
        self.compiled = learning.build(lambda: CanaryLearner(shapes), training, plan, shapes)
        self.watch = _Watch()
        watched = _WatchedDraws(self, self.clients)
        self._runtime = LocalRuntime(
            self.compiled, self._silos, draws=watched, charges=NoLedgers(), devices="CPU", session="audit"
        )
        self._observe_the_server()
        self._initial = self._runtime.initial_state()
        self.draws = self.fresh_draws("played")
        return self

    def __exit__(self, *_: object) -> None:
        self._runtime.close()
        self._folder.cleanup()

    def _observe_the_server(self) -> None:
        """Has the watch see what the server is given."""
        server = self._runtime.server
        receive = server.receive

        def observed(reports: Iterable[Report]) -> list[np.ndarray]:
            def seen() -> Iterator[Report]:
                for report in reports:
                    self.watch.reports.append(Report(tuple(np.array(part) for part in report.sums)))
                    yield report

            return receive(seen())

        server.receive = observed  # type: ignore[method-assign]

    @staticmethod
    def silos_of(plan: PrivacyPlan) -> int:
        """How many silos the canaries are in: the plan's, where each has a part in the guarantee."""
        if plan.integers:
            return plan.silos
        return plan.clients if plan.unit == "silo" else min(_SILOS, max(2, plan.silos))

    @property
    def clients(self) -> dict[str, int]:
        """How many canaries each silo has to draw from."""
        return {silo.name: len(silo) for silo in self._silos}

    def fresh_draws(self, name: str, *, origin: str = "audit", like: Draws | None = None, renewed: str = "") -> Draws:
        """New keys for every party; or those of `like`, but for the one named `renewed` ("server", or a silo)."""
        folder = Path(self._folder.name) / "keys" / name

        def key(party: str) -> PartyKey:
            if like is not None and party != renewed:
                return like.server.key if party == "server" else like.silos[party].key
            secret = self._secret
            seeded = None if secret is None else lambda: randomness.derive(secret, f"key/{name}/{party}")
            return PartyKey(folder / f"{party}.key", seeded)

        silos = {silo: SiloDraws(silo, self.plan, key(silo)) for silo in self.clients}
        return Draws(ServerDraws(self.plan, key("server")), silos, origin)

    def starts(self, count: int) -> list[str]:
        """What some rounds start from: the weights are set back, so a counter stands for how they would differ."""
        common = digest_of(self._initial.kept, *self._initial.layout.names)
        return [digest_of([], common, str(number)) for number in range(count)]

    # -- the clip

    def sensitivities(self) -> dict[str, float]:
        """The norm over the plan's sensitivity that each extreme client reaches in the noiseless sum."""
        largest: dict[str, float] = {}
        with ScriptedRuntime(
            LocalRuntime, self.compiled, self._extremes, devices="CPU", session="audit extremes"
        ) as runtime:
            for state, at in self._states():
                for name, (silo, row) in self._tried.items():
                    slots = runtime.secure_sums(state, {silo: [row]})
                    largest[name] = max(largest.get(name, 0.0), self._over_sensitivity(slots))
                for silo in self._silos:
                    for row in range(len(silo)):
                        slots = self._runtime.secure_sums(state, at, {silo.name: [row]})
                        name = "a canary"
                        largest[name] = max(largest.get(name, 0.0), self._over_sensitivity(slots))
        return largest

    def _states(self) -> Iterator[tuple[ServerState, Round]]:
        """States and rounds that the clip could depend on: rotations, and clips."""
        at = self.draws.round(self.starts(1))
        if self.plan.integers:
            for number in range(_ROTATIONS):
                at = self.draws.round(self.starts(number + 1))
                yield self._initial.with_rotation(self.draws.server.rotation(at)), at
        elif self.plan.adaptive:
            for times in _CLIPS:
                yield self._initial.with_clip(times * self._clip), at
        else:
            yield self._initial, at

    def _over_sensitivity(self, slots: Sequence[np.ndarray]) -> float:
        """Of one client's secure slots: the norm of its whole numbers, and where it counts itself, over what is allowed."""
        plan = self.plan
        if plan.integers:
            numbers = _centred(slots[-1], plan.integers.modulus).astype(np.float64)
            return float(np.linalg.norm(numbers) / math.sqrt(plan.integers.sensitivity_squared))
        update = float(np.linalg.norm(self._update_of(slots, clients=1)) / plan.sensitivity)
        if not plan.adaptive:
            return update
        return max(update, abs(self._count_of(slots, clients=1)) / 0.5)

    # -- rounds

    def play(self, count: int, bar: Bar) -> Observed:
        """Plays `count` rounds, each from the initial state."""
        plan, starts, clients = self.plan, self.starts(count), self.clients
        first = self.draws.round(starts[:1])
        offsets = dict(zip(clients, np.cumsum([0, *clients.values()]), strict=False))
        observed = self._nothing_observed(count)
        alone = self._alone(first) if not plan.integers else {}
        slots = len(self.compiled.slots)
        observed.mask_bits = np.zeros((len(clients), slots, 2), np.int64)
        for number in range(count):
            at, self.watch = self.draws.round(starts[: number + 1]), _Watch()
            result = self._runtime.run_round(self._initial, at)
            cohorts = result.cohorts
            for silo, rows in cohorts.items():
                observed.cohorts[number, offsets[silo] + self._members(silo, rows)] = True
            if alone or number < _COMPARED or number % _COMPARED_EVERY == 0:
                self._compare_sums(observed, alone, cohorts, at)
            if self._seen():
                self._look_at_reports(observed)
                self._measure(observed, number, result, at)
            else:
                observed.unseen_reports += 1
            shown = {"round": number + 1, "rounds": count} if (number + 1) % _SHOWN_EVERY == 0 else {}
            bar.advance(**shown)
        return observed

    def _nothing_observed(self, count: int) -> Observed:
        plan = self.plan
        dimension = plan.dimension
        length = plan.integers.length if plan.integers else dimension
        directions = np.zeros((plan.clients, dimension))
        directions[np.arange(plan.clients), self._coordinates] = 1.0
        shares = {silo: np.zeros((count, length), np.int64) for silo in self.clients} if plan.integers else {}
        return Observed(
            directions=directions,
            norms=np.zeros(0),
            sensitivities={},
            cohorts=np.zeros((count, plan.clients), bool),
            released=np.zeros((count, dimension)),
            noise=np.zeros((count, length)),
            shares=shares,
            count_noise=np.zeros(count if plan.adaptive else 0),
            windows=[],
        )

    def _alone(self, at: Round) -> dict[tuple[str, int], list[np.ndarray]]:
        """Every canary's own secure slots."""
        return {
            (silo.name, row): self._runtime.secure_sums(self._initial, at, {silo.name: [row]})
            for silo in self._silos
            for row in range(len(silo))
        }

    def _members(self, silo: str, rows: Any) -> np.ndarray:
        """The silo's clients among `rows`, each once: a client that a cohort holds twice shows in the sum."""
        rows = np.unique(np.asarray(rows, np.int64))
        return rows[(rows >= 0) & (rows < self.clients[silo])]

    def _seen(self) -> bool:
        """Whether every silo's sum and report went where the runtime says it goes."""
        return set(self.watch.sums) == set(self.clients) and len(self.watch.reports) == len(self.clients)

    def _compare_sums(
        self,
        observed: Observed,
        alone: Mapping[tuple[str, int], list[np.ndarray]],
        cohorts: Mapping[str, np.ndarray],
        at: Round,
    ) -> None:
        """Is each silo's sum that of its cohort's clients? Whole numbers: to the last digit."""
        sums = self.watch.sums
        agree = set(sums) == set(self.clients)
        for silo, rows in cohorts.items():
            expected = [np.zeros_like(part) for part in sums.get(silo, ())]
            for row in self._members(silo, rows).tolist():
                slots = alone.get((silo, row)) or self._runtime.secure_sums(self._initial, at, {silo: [row]})
                for total, part in zip(expected, slots, strict=False):
                    total += part
            agree &= all(np.array_equal(one, other) for one, other in zip(expected, sums.get(silo, ()), strict=False))
        observed.other_sums += not agree

    def _look_at_reports(self, observed: Observed) -> None:
        """What the server is given, against what each silo summed and drew."""
        watch = self.watch
        reports = [report.sums for report in watch.reports]
        left = [np.zeros_like(part) for part in reports[0]]
        for place, (silo, report) in enumerate(zip(watch.sums, reports, strict=True)):
            unmasked = [np.array(part) for part in watch.sums[silo]]
            if silo in watch.shares:
                unmasked[-1] += watch.shares[silo][2].astype(unmasked[-1].dtype)
            masks = [np.subtract(given, known) for given, known in zip(report, unmasked, strict=True)]
            digest = hashlib.sha256()
            for slot, mask in enumerate(masks):
                left[slot] += mask
                bits = np.unpackbits(mask.reshape(-1).view(np.uint8))
                observed.mask_bits[place, slot] += (int(bits.sum()), bits.size)
                digest.update(np.ascontiguousarray(mask).tobytes())
            observed.masks.append(digest.digest())
        observed.other_totals += any(part.any() for part in left)

    def _measure(self, observed: Observed, number: int, result: RoundResult, at: Round) -> None:
        """The noise of a round: what is released without what its clients add."""
        plan, watch = self.plan, self.watch
        weights = [np.asarray(weight, np.float64).ravel() for weight in result.state.weights]
        # The weights were zero. TFF sums how far clients went back, and the server takes the mean away: a step of length one.
        released = -np.concatenate(weights) * plan.denominator
        total = [
            np.sum([sums[slot] for sums in watch.sums.values()], axis=0) for slot in range(len(self.compiled.slots))
        ]
        total = [part.astype(sent.dtype) for part, sent in zip(total, next(iter(watch.sums.values())), strict=True)]
        if plan.integers:
            self._measure_shares(observed, number, released, total, at)
            return
        clients = int(observed.cohorts[number].sum())
        if plan.adaptive:
            released /= self._clip
            after = result.state.clip
            if after is None:
                raise PrivacyError(
                    "the process has no adaptive clip; expected one. The audit does not know this process."
                )
            share = math.log(self._clip / after) / CLIP_LEARNING_RATE + plan.clip_quantile
            counted = (share - 0.5) * plan.denominator
            observed.count_noise[number] = (counted - self._count_of(total, clients)) / plan.clip_count_stddev
        observed.released[number] = released
        observed.noise[number] = (released - self._update_of(total, clients)) / plan.noise_stddev
        observed.windows.append((*watch.noise, observed.noise[number]))

    def _measure_shares(
        self, observed: Observed, number: int, released: np.ndarray, total: Sequence[np.ndarray], at: Round
    ) -> None:
        plan, watch = self.plan, self.watch
        assert plan.integers is not None
        seed = tf.constant(self.draws.server.rotation(at))
        given = np.sum([report.sums[-1] for report in watch.reports], axis=0).astype(total[-1].dtype)
        noise = _centred(given - total[-1], plan.integers.modulus)
        observed.noise[number] = noise / (2.0**plan.integers.log2_share * math.sqrt(plan.integers.silos))
        known = np.zeros(plan.integers.length)
        for place, (silo, (began, ended, share)) in enumerate(watch.shares.items()):
            observed.shares[silo][number] = share
            observed.windows.append((began, ended, share))
            known += share if place >= plan.integers.honest else 0
        known = integer_aggregation.turned_back(tf.constant(known), seed, plan.integers).numpy()
        observed.released[number] = released - plan.integers.quantum * known

    # -- what the secure slots hold

    def _update_places(self, slots: Sequence[np.ndarray]) -> list[int]:
        """Which slots an update is in: they alone are no scalars."""
        places = [place for place, slot in enumerate(slots) if slot.ndim]
        if [slots[place].shape for place in places] != self.shapes:
            raise PrivacyError(
                f"the process sums arrays of other shapes than its weights'; expected those of {len(self.shapes)} weights, and scalars. The audit does not know this process."
            )
        return places

    def _update_of(self, slots: Sequence[np.ndarray], clients: int) -> np.ndarray:
        """The sum of some clients' updates, flat, from the integers of the secure slots."""
        plan = self.plan
        numbers = np.concatenate(
            [_counted(slots[place], clients, plan).ravel() for place in self._update_places(slots)]
        )
        return numbers * (plan.value_range / plan.quanta)

    def _count_of(self, slots: Sequence[np.ndarray], clients: int) -> float:
        """Of an adaptive clip: those within it less those beyond it, halved. The slot after the update's."""
        place = self._update_places(slots)[-1] + 1
        return float(_counted(slots[place], clients, self.plan) / self.plan.quanta)


def _counted(slot: np.ndarray, clients: int, plan: PrivacyPlan) -> np.ndarray:
    """What clients counted, for what they sent: `WholeNumberSumFactory` adds its largest number to each."""
    signed = np.dtype(f"i{slot.dtype.itemsize}")
    zero = np.array(clients * plan.largest_whole_number).astype(slot.dtype)
    return (slot - zero).view(signed).astype(np.float64)


def _centred(numbers: np.ndarray, modulus: int) -> np.ndarray:
    """Integers modulo `modulus` as those around zero, int64."""
    half = modulus // 2
    return (numbers.astype(np.int64) + half) % modulus - half


def _small(shapes: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """As many tensors as `shapes`, of their ranks but at least one, some hundred coordinates together."""
    each = max(2, math.ceil(GUESSES_A_ROUND / len(shapes) / 2) * 2)
    return [(each,) if len(shape) < 2 else (each // 2, 2, *[1] * (len(shape) - 2)) for shape in shapes]


def _with_canaries(plan: PrivacyPlan, dimension: int) -> PrivacyPlan:
    """The plan for canaries in place of the population: its noise, clip and sampling; fewer clients, a small model."""
    if plan.unit == "silo":
        clients = plan.silos if plan.integers else min(_SILOS_AS_CLIENTS, plan.clients)
    else:
        fewest = max(_FEWEST, 2 * plan.silos if plan.integers else 0)
        clients = min(_MOST, max(fewest, math.ceil(_COHORT / plan.sampling_probability)))
    clients = min(clients, dimension * 4 // 5)
    return dataclasses.replace(
        plan, clients=clients, expected_cohort=plan.sampling_probability * clients, dimension=dimension
    )
