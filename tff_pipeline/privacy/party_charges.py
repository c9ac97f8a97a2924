"""Charges of parties in processes of their own: a silo charges its ledger, the coordinator that of the population.

They are the two halves of `charges.Account._write`. The population's line comes first and says how long every silo's ledger
was; each silo's line then names the population's. Neither party can read the other's file: each tells the other the
position of its ledger, and refuses to go on where the other's has become shorter or another one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy.charges import Account
from tff_pipeline.privacy.hash_chain import Position
from tff_pipeline.privacy.ledger import Ledger
from tff_pipeline.privacy.plan import PrivacyPlan
from tff_pipeline.privacy.round import Round


class _PartyAccount(Account):
    """The account of a run in one ledger."""

    def __init__(self, ledger: Ledger, budget: float | None, plan: PrivacyPlan, *, run: str, draw: str, done: int = 0):
        if budget is not None and plan.delta is not None:
            ledger.require_budget(
                budget, plan.delta, planned=plan.round_event, rounds=plan.rounds, done=done, run=run, draw=draw
            )
        super().__init__([(ledger, budget)], plan, run=run, draw=draw)
        self._ledger = ledger

    @property
    def position(self) -> Position:
        """How long the ledger is; what the other party is told."""
        return dict(self._ledger.position())

    def _of(self, at: Round) -> dict[str, Any]:
        return self._charge | {"round_number": at.number + 1, "start": at.start}

    def _charge_once(self, at: Round, **links: Any) -> None:
        charge = self._of(at)
        self._require_budgets(charge)
        self._ledger.charge(**links, **charge)
        self._note_sizes()


class SiloAccount(_PartyAccount):
    """What a silo in a process of its own charges.

    Args:
      ledger: the silo's own.
      budget: the epsilon that it must stay within, or None.
      plan: what a round is charged as.
      run: its id.
      draw: identifies the run's draw; see `Ledger.charge`.

    Raises:
      PrivacyError: if the ledger is damaged, or the budget has no room for all rounds.
    """

    def require_continues(self, known: Position | None) -> None:
        """Refuses to go on with a ledger that lacks what the population's says that this silo was charged.

        Args:
          known: the position of this silo's ledger in the population's newest line that names it; None if there is none.

        Raises:
          PrivacyError: if the ledger is shorter, or another one.
        """
        if known is not None and not self._ledger.extends(known):
            raise PrivacyError(
                f"{self._ledger.path}: has {self.position['lines']} lines, and the population's ledger says that this silo's had {known['lines']}, of which the last is not here; "
                "expected the ledger that the silo has always kept. Was it lost, or is it an older copy? Nothing was charged. Restore it from a backup."
            )

    def charge_own(self, at: Round, *, counterpart: Position, members: Sequence[str]) -> None:
        """Charges the round to the silo, on disk before it returns; what was charged before is not again.

        Args:
          at: the round.
          counterpart: the position of the population's line for it.
          members: the silos that the round was charged to.

        Raises:
          PrivacyError: if that would pass the silo's budget.
        """
        self._charge_once(at, counterpart=counterpart, members=members)


class PopulationAccount(_PartyAccount):
    """What the coordinator charges to the population. The arguments are those of `SiloAccount`, with the population's ledger."""

    def last_known(self, silo: str) -> Position | None:
        """The position of a silo's ledger in the newest line that names it, or None."""
        for entry in reversed(self._ledger.entries()):
            if silo in entry.get("silos", {}):
                return dict(entry["silos"][silo])
        return None

    def members(self, at: Round) -> tuple[str, ...] | None:
        """The silos that this draw of the round was charged to, or None if it was not charged yet."""
        line = self._ledger.find(**self._of(at))
        return None if line is None else tuple(self._ledger.lines()[line["lines"] - 1].get("silos", {}))

    def charge_population(self, at: Round, silos: Mapping[str, Position]) -> Position:
        """Charges the round to the population, on disk before it returns; what was charged before is not again.

        Args:
          at: the round.
          silos: the position of every silo's ledger before the round, by name.

        Returns:
          The position of the line that charges the round.

        Raises:
          PrivacyError: if that would pass the population's budget.
        """
        self._charge_once(at, silos=silos)
        line = self._ledger.find(**self._of(at))
        if line is None:
            raise PrivacyError(
                f"{self._ledger.path}: the charge of round {at.number + 1} is not there after it was written; expected this process to be the only one that writes. Nothing was computed."
            )
        return dict(line)
