"""What a silo in a process of its own does in a round of training: it charges its own ledger, and works as in any runtime."""

from collections.abc import Sequence

import numpy as np

from tff_pipeline.errors import Refused
from tff_pipeline.privacy.party_charges import SiloAccount
from tff_pipeline.privacy.round import Round
from tff_pipeline.privacy.silo_draws import SiloDraws
from tff_pipeline.runtime.base import Broadcast
from tff_pipeline.runtime.network.requests import Position
from tff_pipeline.runtime.silo import Contribution, Silo


class TrainingWork:
    """The work of a round of training.

    Args:
      silo: draws, trains, clips, sums and adds its noise; it asks `account` whether the round is charged.
      draws: the silo's draws, which note a round before it is charged.
      account: the silo's charges.
      draw: the run's, 64 hex digits (`privacy.draws.draw_digest`), as this silo has worked it out. `account` charges rounds of it;
        a round of another would have other noise under the same charge.
      noised: indices of the slots that must not leave without noise.
    """

    def __init__(
        self,
        silo: Silo,
        draws: SiloDraws,
        account: SiloAccount,
        *,
        draw: str,
        noised: Sequence[int],
    ):
        self.noised = tuple(noised)
        self._silo, self._draws, self._account, self._draw = silo, draws, account, draw

    def begin(self, at: Round, known: Position | None) -> Position:
        if at.draw != self._draw:
            raise Refused(
                f"round {at.number + 1} is of draw {at.draw[:16]}, and this silo has agreed to draw {self._draw[:16]}; expected rounds of that one, since no other is charged. Nothing was charged. Start the run again: it brings the silos together anew."
            )
        self._account.require_continues(None if known is None else {"lines": known.lines, "hash": known.hash})
        self._draws.begin(at)
        return Position(**self._account.position)

    def charge(self, at: Round, counterpart: Position, members: Sequence[str]) -> None:
        self._account.charge_own(
            at, counterpart={"lines": counterpart.lines, "hash": counterpart.hash}, members=members
        )

    def contribution(self, broadcast: Sequence[np.ndarray], at: Round) -> Contribution:
        return self._silo.contribution(Broadcast(tuple(broadcast)), at)
