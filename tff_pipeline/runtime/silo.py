"""A silo's side of a round: everything that needs its text, its clients, its secrets or its ledger.

What leaves a silo is a `Report`, and nothing else. This module and `runtime.server` do not import each other: what one knows
the other must not.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy.round import Round
from tff_pipeline.runtime.base import Broadcast, Charges, Masks, OnClient, OnCohort, Report, SiloDraws
from tff_pipeline.runtime.clients import Clients
from tff_pipeline.runtime.workers import ClientWorkers


@dataclasses.dataclass(frozen=True)
class Contribution:
    """What a silo adds to the sum of a round. It must not leave the silo without masks.

    Attributes:
      sums: of each slot, unsigned, in the slot's ring.
      noise: by slot, int64 of its shape: what has to be added before the masks.
    """

    sums: list[np.ndarray]
    noise: dict[int, np.ndarray]


class Silo:
    """One organisation. With others in one process it shares the sessions that work on clients, and nothing else.

    Args:
      clients: its training clients.
      workers: works on them.
      draws: its random draws, from its own secret.
      masks: hide its sums, with keys that only the silo holds. They refuse a sum that lacks the noise share it must not leave
        without. None where every round has masks of its own, which hide a `contribution`.
      noised: indices of the slots whose sum must not leave without a noise share.
      charges: asked whether the silo's ledger was charged, before anything is computed.
    """

    def __init__(
        self,
        clients: Clients,
        workers: ClientWorkers,
        draws: SiloDraws,
        *,
        masks: Masks | None = None,
        noised: Sequence[int],
        charges: Charges,
    ):
        self.name = clients.name
        self._clients, self._workers, self._draws, self._charges = clients, workers, draws, charges
        self._masks, self._noised = masks, tuple(noised)

    def report(
        self,
        broadcast: Broadcast,
        at: Round,
        *,
        on_client: OnClient = lambda: None,
        on_cohort: OnCohort = lambda silo, rows: None,
    ) -> Report:
        """The masked `contribution`: what leaves the silo.

        Raises:
          PrivacyError: as of `contribution`; and if the sum cannot be masked. Nothing leaves then.
        """
        if self._masks is None:
            raise PrivacyError(
                f"silo {self.name}: has no masks for round {at.number + 1}; expected them from who made this silo. Nothing was computed."
            )
        own = self.contribution(broadcast, at, on_client=on_client, on_cohort=on_cohort)
        return Report(tuple(self._masks.mask(own.sums, at.number, own.noise)))

    def contribution(
        self,
        broadcast: Broadcast,
        at: Round,
        *,
        on_client: OnClient = lambda: None,
        on_cohort: OnCohort = lambda silo, rows: None,
    ) -> Contribution:
        """Draws the cohort, works on it, and gives its sum, and the silo's noise shares where it is the one to add them.

        Args:
          broadcast: what the server sent.
          at: the round.
          on_client: called as each client's work ends.
          on_cohort: told the cohort, which does not leave this process.

        Raises:
          PrivacyError: if the silo's ledger was not charged for the round, or the silo has reported something else under the
            same draw. Nothing leaves then.
        """
        self._charges.require_charged(self.name, at)
        rows = self._draws.cohort(at, len(self._clients))
        on_cohort(self.name, rows)
        sums = self.sum(broadcast, rows, on_client)
        self._draws.record(at, sums)
        shares = {slot: self._draws.noise_share(at) for slot in self._noised}
        # Where one is missing, nothing is masked.
        return Contribution(sums, {slot: share for slot, share in shares.items() if share is not None})

    def sum(
        self, broadcast: Broadcast, rows: Sequence[int] | np.ndarray, on_client: OnClient = lambda: None
    ) -> list[np.ndarray]:
        """The sum of what these clients send, each slot in its ring, without noise and masks. It must not leave the silo."""
        return self._workers.sum(broadcast, self._clients, rows, on_client)
