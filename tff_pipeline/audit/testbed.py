"""Plays a plan's rounds with canaries, as training plays them, and observes what each party sees.

The objects are training's: party keys in files, `Draws`, the compiled process, the local runtime. Only the
clients are canaries and the model is small. What is observed: the cohorts; each silo's sums before noise and masks; its
noise share, where silos add the noise; the reports that the server is given; the weights that it releases.
"""

import dataclasses
import hashlib
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tff_pipeline.audit import canaries
from tff_pipeline.audit.criteria import GUESSES_A_ROUND
from tff_pipeline.audit.observed import Observed, Watched
from tff_pipeline.audit.views import view_of
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
from tff_pipeline.runtime.local import LocalRuntime
from tff_pipeline.runtime.scripted import ScriptedRuntime

_COHORT = 16  # expected, where there are enough canaries
_FEWEST, _MOST = 40, 400  # canaries
_SILOS = 8  # at most, unless every silo's noise counts
_SILOS_AS_CLIENTS = 12
_SHOWN_EVERY = 25  # rounds between two lines of progress


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
        if plan.clip_norm is None:
            raise PrivacyError(
                "the plan has no clip, so canaries cannot be made to pass it; expected one with a mechanism."
            )
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
        self.view = view_of(plan, shapes)
        self.draws = self.fresh_draws("played")
        self._runtime = Watched(self.compiled, self._silos, self.draws, devices="CPU", session="audit")
        self._initial = self._runtime.initial_state()
        return self

    def __exit__(self, *_: object) -> None:
        self._runtime.close()
        self._folder.cleanup()

    @staticmethod
    def silos_of(plan: PrivacyPlan) -> int:
        """How many silos the canaries are in: the plan's, where each has a part in the guarantee."""
        if plan.mechanism.silos_add_noise:
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
            for state, at in self.view.states(self._initial, self._round):
                if state.layout.rotation is not None:
                    state = state.with_rotation(self.draws.server.rotation(at))
                for name, (silo, row) in self._tried.items():
                    slots = runtime.secure_sums(state, {silo: [row]})
                    largest[name] = max(largest.get(name, 0.0), self.view.over_sensitivity(slots))
                for slots in self._alone(state, at).values():
                    name = "a canary"
                    largest[name] = max(largest.get(name, 0.0), self.view.over_sensitivity(slots))
        return largest

    def _round(self, number: int) -> Round:
        return self.draws.round(self.starts(number + 1))

    # -- rounds

    def play(self, count: int, bar: Bar) -> Observed:
        """Plays `count` rounds, each from the initial state."""
        starts, clients = self.starts(count), self.clients
        offsets = dict(zip(clients, np.cumsum([0, *clients.values()]), strict=False))
        observed = self._nothing_observed(count)
        alone = self._alone(self._initial, self._round(0)) if self.view.clients_send_alike else {}
        observed.mask_bits = np.zeros((len(clients), len(self.compiled.slots), 2), np.int64)
        for number in range(count):
            at = self.draws.round(starts[: number + 1])
            result = self._runtime.run_round(self._initial, at)
            cohorts = result.cohorts or {}
            for silo, rows in cohorts.items():
                observed.cohorts[number, offsets[silo] + self._members(silo, rows)] = True
            if self.view.compared(number):
                self._compare_sums(observed, alone, cohorts, at)
            if self._seen():
                self._look_at_reports(observed)
                released = self._released(result.state)
                self.view.measure(observed, at, released, result.state, self._runtime, self.draws)
            else:
                observed.unseen_reports += 1
            shown = {"round": number + 1, "rounds": count} if (number + 1) % _SHOWN_EVERY == 0 else {}
            bar.advance(**shown)
        return observed

    @property
    def _noising_silos(self) -> list[str]:
        return list(self.clients) if self.plan.mechanism.silos_add_noise else []

    def _nothing_observed(self, count: int) -> Observed:
        plan, coordinates = self.plan, self.view.coordinates
        directions = np.zeros((plan.clients, plan.dimension))
        directions[np.arange(plan.clients), self._coordinates] = 1.0
        return Observed(
            directions=directions,
            norms=np.zeros(0),
            sensitivities={},
            cohorts=np.zeros((count, plan.clients), bool),
            released=np.zeros((count, plan.dimension)),
            noise=np.zeros((count, coordinates)),
            noise_shares={silo: np.zeros((count, coordinates), np.int64) for silo in self._noising_silos},
            count_noise=np.zeros(count),
            windows=[],
        )

    def _alone(self, state: ServerState, at: Round) -> dict[tuple[str, int], list[np.ndarray]]:
        """Every canary's own secure slots."""
        return {
            (silo.name, row): self._runtime.secure_sums(state, at, {silo.name: [row]})
            for silo in self._silos
            for row in range(len(silo))
        }

    def _members(self, silo: str, rows: Any) -> np.ndarray:
        """The silo's clients among `rows`, each once: a client that a cohort holds twice shows in the sum."""
        rows = np.unique(np.asarray(rows, np.int64))
        return rows[(rows >= 0) & (rows < self.clients[silo])]

    def _seen(self) -> bool:
        """Whether every silo's sum and report went where the runtime says it goes."""
        return set(self._runtime.sums) == set(self.clients) and len(self._runtime.given) == len(self.clients)

    def _compare_sums(
        self,
        observed: Observed,
        alone: Mapping[tuple[str, int], list[np.ndarray]],
        cohorts: Mapping[str, np.ndarray],
        at: Round,
    ) -> None:
        """Is each silo's sum that of its cohort's clients? Integers: to the last digit."""
        sums = self._runtime.sums
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
        runtime = self._runtime
        left = [np.zeros_like(part) for part in runtime.given[0]]
        for index, (silo, report) in enumerate(zip(runtime.sums, runtime.given, strict=True)):
            unmasked = [np.array(part) for part in runtime.sums[silo]]
            if silo in runtime.noise_shares:
                unmasked[-1] += runtime.noise_shares[silo][2].astype(unmasked[-1].dtype)
            masks = [np.subtract(given, known) for given, known in zip(report, unmasked, strict=True)]
            digest = hashlib.sha256()
            for slot, mask in enumerate(masks):
                left[slot] += mask
                bits = np.unpackbits(mask.reshape(-1).view(np.uint8))
                observed.mask_bits[index, slot] += (int(bits.sum()), bits.size)
                digest.update(np.ascontiguousarray(mask).tobytes())
            observed.masks.append(digest.digest())
        observed.other_totals += any(part.any() for part in left)

    def _released(self, state: ServerState) -> np.ndarray:
        """The sum that a round released. The weights were zero, and the server took one step of length one, against the mean."""
        weights = [np.asarray(weight, np.float64).ravel() for weight in state.weights]
        return -np.concatenate(weights) * self.plan.denominator


def _small(shapes: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """As many tensors as `shapes`, of their ranks but at least one, some hundred coordinates together."""
    size = max(2, math.ceil(GUESSES_A_ROUND / len(shapes) / 2) * 2)
    return [(size,) if len(shape) < 2 else (size // 2, 2, *[1] * (len(shape) - 2)) for shape in shapes]


def _with_canaries(plan: PrivacyPlan, dimension: int) -> PrivacyPlan:
    """The plan for canaries in place of the population: its noise, clip and sampling; fewer clients, a small model."""
    if plan.unit == "silo":
        clients = plan.silos if plan.mechanism.silos_add_noise else min(_SILOS_AS_CLIENTS, plan.clients)
    else:
        fewest = max(_FEWEST, 2 * plan.silos if plan.mechanism.silos_add_noise else 0)
        clients = min(_MOST, max(fewest, math.ceil(_COHORT / plan.sampling_probability)))
    clients = min(clients, dimension * 4 // 5)
    return dataclasses.replace(
        plan, clients=clients, expected_cohort=plan.sampling_probability * clients, dimension=dimension
    )
