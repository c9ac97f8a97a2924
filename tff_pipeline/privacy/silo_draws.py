"""What a silo draws in a round, and what it remembers of it. Uses the silo's own secret, and public digests.

Nothing here knows a secret of the server or of another silo.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from tff_pipeline.privacy.keys import PartyKey
from tff_pipeline.privacy.plan import PrivacyPlan
from tff_pipeline.privacy.round import Round


@dataclasses.dataclass(frozen=True)
class SiloDraws:
    """The draws of one silo. Purposes name the silo, so that two silos which came to have one key do not draw the same.

    Attributes:
      silo: its name.
      plan: what is drawn, and how much of it.
      key: the silo's secret of the run, and the rounds that it has begun and reported.
    """

    silo: str
    plan: PrivacyPlan
    key: PartyKey

    def cohort(self, at: Round, clients: int) -> np.ndarray:
        """The indices of the silo's clients that take part, int64, ascending, drawn as the plan's accounting assumes."""
        return self.plan.cohort(self.key.secret, silo=self.silo, round=at, clients=clients)

    def noise_share(self, at: Round) -> np.ndarray:
        """The silo's share of the round's noise, int64 [length], where silos add it."""
        return self.plan.noise_share(self.key.secret, silo=self.silo, round=at)

    def begin(self, at: Round) -> None:
        """Notes that the round is about to be charged; see `PartyKey.begin`."""
        if self.plan.private:
            self.key.begin(at.name, where=self._where(at))

    def record(self, at: Round, sums: Sequence[np.ndarray]) -> None:
        """Records what the silo is about to report; see `PartyKey.record`.

        Raises:
          PrivacyError: if it has reported something else in this round. Nothing must be sent.
        """
        if self.plan.private:
            self.key.record(at.name, sums, where=self._where(at))

    def _where(self, at: Round) -> str:
        return f"silo {self.silo}: round {at.number + 1}"
