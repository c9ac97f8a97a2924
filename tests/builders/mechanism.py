"""The compiled aggregation around forty canaries, for tests that supply cohorts and noise themselves."""

from collections.abc import Sequence

import numpy as np

from builders.plans import discretization
from tff_pipeline.privacy.plan import PrivacyPlan

CANARIES = 40
LABELS = 3
SHAPES = ((CANARIES, LABELS), (LABELS,))
LARGE = 1000.0  # a canary's one feature: its update is hundreds of times the clip, and almost all of it in one row
ROTATION = np.array([20210212, 6387], np.int64)  # public, and the same in every round: no bound depends on it


class Mechanism:
    """The aggregation of a plan around canaries: rounds from one state, and what each of them releases."""

    def __init__(self, plan: PrivacyPlan):
        import tensorflow as tf

        from tff_pipeline.aggregators import distributed_discrete_gaussian as integer_aggregation
        from tff_pipeline.config import TrainingSection
        from tff_pipeline.learning import process as learning
        from tff_pipeline.model.learner import FeatureLearner
        from tff_pipeline.runtime.clients import FeatureClients
        from tff_pipeline.runtime.local import LocalRuntime
        from tff_pipeline.runtime.scripted import ScriptedRuntime

        training = TrainingSection(
            rounds=plan.rounds,
            clients_per_round=plan.expected_cohort,
            client_learning_rate=1.0,
            server_learning_rate=1.0,
            server_momentum=0.0,
        )
        self.plan = plan
        self._compiled = learning.build(
            lambda: FeatureLearner(hidden_size=CANARIES, labels=LABELS), training, plan, SHAPES
        )
        features = (LARGE * np.eye(CANARIES)).astype(np.float32)
        # Two silos, so that the sums are masked; as many as claimed where they add the noise.
        self._discretization = discretization(plan) if plan.mechanism.silos_add_noise else None
        count = plan.silos if self._discretization else 2
        self._silos = {f"silo-{place:04d}": np.arange(place, CANARIES, count) for place in range(count)}
        clients = [
            FeatureClients(
                name, features[rows], np.zeros(len(rows), np.int32), np.arange(len(rows) + 1), batch_size=1, epochs=1
            )
            for name, rows in self._silos.items()
        ]
        self._runtime = ScriptedRuntime(LocalRuntime, self._compiled, clients, devices="CPU", session="audit")
        self._state = self._runtime.initial_state()
        self._rounds = 0
        if self._discretization:
            self._state = self._state.with_rotation(ROTATION)
            self._turned_back = np.stack(
                [
                    integer_aggregation.rotated_back(
                        tf.constant(unit), tf.constant(ROTATION), self._discretization
                    ).numpy()
                    for unit in np.eye(self._discretization.length)
                ]
            )

    def __enter__(self) -> "Mechanism":
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
        made = self._discretization
        # Below zero: the server's step subtracts the sum.
        return [-made.step * (share @ self._turned_back) for share in shares] if made else []

    @property
    def drawn(self) -> int:
        """How many numbers are drawn at once."""
        return self._discretization.length if self._discretization else self.plan.dimension

    @property
    def _honest(self) -> int:
        return self._discretization.honest_silos if self._discretization else 0

    def _sum(self, canaries: Sequence[int], noise: Sequence[np.ndarray]) -> np.ndarray:

        cohorts = {
            name: [place for row in canaries for place in np.flatnonzero(rows == row)]
            for name, rows in self._silos.items()
        }
        shares = None
        if self._discretization:
            own = dict(zip(self._silos, noise, strict=True))
            state, shares = self._state, lambda silo: own[silo]
        else:
            state = self._state.with_noise(noise)
        result = self._runtime.run_round(state, cohorts, round_number=self._rounds, shares=shares)
        self._rounds += 1
        # The weights were zero, and the server takes one step of length one.
        weights = result.state.weights
        return np.concatenate([weight.astype(np.float64).ravel() for weight in weights]) * self.plan.denominator
