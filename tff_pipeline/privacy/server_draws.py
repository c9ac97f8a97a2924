"""What the server draws in a round: its noise, the noise on metrics, the rotation. Uses the server's own secret.

Nothing here knows a secret of a silo.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy.keys import PartyKey
from tff_pipeline.privacy.mechanisms import ServerInputs
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
        inputs = self._inputs(at, shapes)
        if inputs.noise is None:
            raise PrivacyError("the server adds no noise with this mechanism; expected one whose noise it adds.")
        return [*inputs.noise, *([] if inputs.count_noise is None else [inputs.count_noise])]

    def metrics_noise(self, at: Round) -> list[float]:
        """The noise on the sums that a round's metrics are released as."""
        metrics = self.plan.noised_metrics
        if metrics is None:
            raise PrivacyError('the run releases no metrics with noise; expected privacy.metrics = "noised".')
        return metrics.noise(self.key.secret, round=at)

    def rotation(self, at: Round) -> np.ndarray:
        """The public seed of the round's rotation, int64 [2]."""
        rotation = self._inputs(at, ()).rotation
        if rotation is None:
            raise PrivacyError("updates are not rotated with this mechanism; expected one whose noise the silos add.")
        return rotation

    def _inputs(self, at: Round, shapes: Sequence[Sequence[int]]) -> ServerInputs:
        return self.plan.server_inputs(self.key.secret, round=at, shapes=shapes)
