"""A silo's side of a round: everything that needs its text, its clients, its secrets or its ledger.

What leaves a silo is a `Report`, and nothing else. This module and `runtime.server` do not import each other: what one knows
the other must not.
"""

from collections.abc import Sequence

import numpy as np

from tff_pipeline.privacy.round import Round
from tff_pipeline.runtime.base import Broadcast, Charges, Masks, OnClient, OnCohort, Report, SiloDraws
from tff_pipeline.runtime.clients import Clients
from tff_pipeline.runtime.workers import ClientWorkers


class Silo:
    """One organisation. With others in one process it shares the sessions that work on clients, and nothing else.

    Args:
      clients: its training clients.
      workers: works on them.
      draws: its random draws, from its own secret.
      masks: hide its sums, with keys that only the silo holds; they refuse a sum that lacks the noise share it must not leave without.
      noised: indices of the slots whose sum must not leave without a noise share.
      charges: asked whether the silo's ledger was charged, before anything is computed.
    """

    def __init__(
        self,
        clients: Clients,
        workers: ClientWorkers,
        draws: SiloDraws,
        *,
        masks: Masks,
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
        """Draws the cohort, works on it, and gives the masked sum, with the silo's noise share where it is the one to add it.

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
        noise = {slot: share for slot, share in shares.items() if share is not None}
        return Report(tuple(self._masks.mask(sums, at.number, noise)))

    def sum(
        self, broadcast: Broadcast, rows: Sequence[int] | np.ndarray, on_client: OnClient = lambda: None
    ) -> list[np.ndarray]:
        """The sum of what these clients send, each slot in its ring, without noise and masks. It must not leave the silo."""
        return self._workers.sum(broadcast, self._clients, rows, on_client)
