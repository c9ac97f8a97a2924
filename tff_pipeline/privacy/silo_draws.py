"""What a silo draws in a round, and what it remembers of it. Uses the silo's own secret, and public digests.

Nothing here knows a secret of the server or of another silo.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from tff_pipeline.privacy import randomness, sampling
from tff_pipeline.privacy.discrete_gaussian import discrete_gaussian
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
        if self.plan.rounds_per_tree:
            # A client's turn is the same in all rounds of a tree, whatever they start from.
            return sampling.cohort_of_tree(
                randomness.derive(self.key.secret, f"cohort/{self.silo}/{at.draw}"),
                round_number=at.number,
                clients=clients,
                probability=self.plan.sampling_probability,
                rounds_per_tree=self.plan.rounds_per_tree,
            )
        return sampling.cohort(
            randomness.derive(self.key.secret, f"cohort/{self.silo}/{at.binding}"),
            round_number=at.number,
            clients=clients,
            probability=self.plan.sampling_probability,
        )

    def noise_share(self, at: Round) -> np.ndarray:
        """The silo's share of the round's noise, int64 [length], where silos add it."""
        integers = self.plan.integers
        if integers is None:
            raise ValueError("the silos add no noise with this mechanism; expected a plan with integers.")
        key = randomness.derive(self.key.secret, f"share/{self.silo}/{at.binding}/{at.number}")
        return discrete_gaussian(key, integers.log2_share, integers.length)

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
