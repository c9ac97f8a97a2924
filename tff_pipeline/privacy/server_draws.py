"""What the server draws in a round: its noise, the noise on metrics, the rotation. Uses the server's own secret.

Nothing here knows a secret of a silo.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from tff_pipeline.privacy import randomness
from tff_pipeline.privacy.keys import PartyKey
from tff_pipeline.privacy.plan import PrivacyPlan
from tff_pipeline.privacy.round import Round


@dataclasses.dataclass(frozen=True)
class ServerDraws:
    """The draws of the server.

    Attributes:
      plan: what is drawn, and how much of it.
      key: the server's secret of the run.
    """

    plan: PrivacyPlan
    key: PartyKey

    def noise(self, at: Round, shapes: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """The noise that the server adds, float64, one array a weight; and one number for the count of an adaptive clip."""
        plan = self.plan
        if not plan.private:
            return [np.zeros(shape) for shape in shapes]
        if plan.rounds_per_tree:
            return randomness.tree_noise(
                randomness.derive(self.key.secret, f"noise/{at.draw}"),
                round_number=at.number,
                rounds_per_tree=plan.rounds_per_tree,
                stddev=plan.noise_stddev,
                shapes=shapes,
                starts=at.starts,
            )
        return randomness.round_noise(
            self._secret_of(at),
            round_number=at.number,
            stddev=plan.noise_stddev,
            shapes=shapes,
            count_stddev=plan.clip_count_stddev,
        )

    def metrics_noise(self, at: Round) -> list[float]:
        """The noise on the sums that a round's metrics are released as."""
        return randomness.metrics_noise(self._secret_of(at), round_number=at.number, stddev=self.plan.metrics_stddev)

    def rotation(self, at: Round) -> np.ndarray:
        """The public seed of the round's rotation, int64 [2]."""
        key = randomness.derive(self._secret_of(at), f"rotation/{at.number}")
        return randomness.uniform_words(key, 2).view(np.int64)

    def _secret_of(self, at: Round) -> bytes:
        return randomness.derive(self.key.secret, f"noise/{at.binding}")
