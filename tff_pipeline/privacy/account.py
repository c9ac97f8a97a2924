"""The accounts a run is charged to: its population's ledger, and the ledger that each silo keeps for its own clients.

A round is charged everywhere before anything of it is computed. Where a budget would be passed the run does not start;
and if others have charged meanwhile, it stops before the round that would pass it.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tff_pipeline.artifacts import Workdir
from tff_pipeline.config import Config
from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy.ledger import Ledger, require_same_charges
from tff_pipeline.privacy.plan import PrivacyPlan


def ledgers(config: Config) -> list[tuple[Ledger, float | None]]:
    """The population's ledger and then each silo's, with the budget of each."""
    workdir, unit = Workdir(config.workdir), config.privacy.unit
    own = [
        (
            Ledger(workdir.silo(silo.name) / "ledger.jsonl", config.population, silo=silo.name, unit=unit),
            silo.budget_epsilon,
        )
        for silo in config.silos
    ]
    population = Ledger(workdir.ledger(config.population), config.population, unit=unit)
    return [(population, config.privacy.budget_epsilon), *own]


class Account:
    """What one run charges, in every ledger it concerns. Made by `opened`."""

    def __init__(self, accounts: Sequence[tuple[Ledger, float | None]], plan: PrivacyPlan, *, run: str, draw: str):
        self._accounts, self._plan = accounts, plan
        self._charge: dict[str, Any] = {"run": run, "draw": draw, "event": plan.round_event}
        self._sizes = [len(ledger.entries()) for ledger, _ in accounts]
        self._reasons = [""] * len(accounts)  # why a budget has to be looked at again, once there is a reason

    def charge(self, round_number: int, *, start: str = "") -> None:
        """Charges a round (counted from 1) everywhere, on disk before it returns; what was charged before is not again.

        `start` identifies what the round starts from; see `Ledger.charge`.

        Raises:
          PrivacyError: if that would pass a budget: the round must not be run.
        """
        # When the run began, its budgets were seen to last. That holds until somebody else charges, or a round that was
        # charged is run again from something else; from then on every round is looked at.
        charge = self._charge | {"round_number": round_number, "start": start}
        for position, (ledger, budget) in enumerate(self._accounts):
            again = not ledger.charged(**charge) and ledger.has_charged(
                run=charge["run"], round_number=round_number, draw=charge["draw"]
            )
            if len(ledger.entries()) != self._sizes[position]:
                self._reasons[position] = "others have been charged after this run began"
            elif again:
                self._reasons[position] = "a round that was charged before starts from something else now"
            if budget is not None and self._reasons[position] and not ledger.charged(**charge):
                self._require_room(ledger, budget, round_number, again=again, reason=self._reasons[position])
        for position, (ledger, _) in enumerate(self._accounts):
            ledger.charge(**charge)
            self._sizes[position] = len(ledger.entries())

    def _require_room(self, ledger: Ledger, budget: float, round_number: int, *, again: bool, reason: str) -> None:
        delta = self._plan.delta
        if delta is None:
            raise PrivacyError(
                f"{ledger.path}: has a budget of epsilon {budget:g}, and the run has no delta to state epsilon at; expected privacy.delta."
            )
        left = ledger.rounds_left(
            budget,
            delta,
            planned=self._charge["event"],
            rounds=round_number,
            done=round_number - 1,
            run=self._charge["run"],
            draw=self._charge["draw"],
            again=again,
        )
        if left < round_number:
            raise PrivacyError(
                f"{ledger.path}: round {round_number} would pass the budget of epsilon {budget:g} at delta {delta:g}, since {reason}; "
                f"the run stops before it. The model after round {round_number - 1} is kept. Raise the budget to go on."
            )


@contextlib.contextmanager
def exclusively(config: Config) -> Iterator[None]:
    """Keeps other runs off the population and off every silo of it.

    Raises:
      PrivacyError: if another run is training there.
    """
    with contextlib.ExitStack() as stack:
        for ledger, _ in ledgers(config):
            stack.enter_context(ledger.exclusively())
        yield


def opened(config: Config, plan: PrivacyPlan, *, run: str, draw: str, done: int = 0) -> Account:
    """The account of a run that may start (or go on).

    Args:
      config: names the population, the silos and their budgets.
      plan: what a round is charged as, and how many there will be.
      run: its id.
      draw: identifies the run's draw; see `Ledger.charge`.
      done: how many of its rounds are done.

    Raises:
      PrivacyError: if a ledger is damaged, lacks charges that another one holds, or has no room for all rounds.
    """
    accounts = ledgers(config)
    population = accounts[0][0]
    for ledger, _ in accounts[1:]:
        require_same_charges(population, ledger)
    for ledger, budget in accounts:
        if budget is not None and plan.delta is not None:
            ledger.require_budget(
                budget, plan.delta, planned=plan.round_event, rounds=plan.rounds, done=done, run=run, draw=draw
            )
    return Account(accounts, plan, run=run, draw=draw)


def spent(ledger: Ledger, delta: float | None) -> float | None:
    """Epsilon of everything charged, infinite with a release without privacy; None where there is no delta to state it at."""
    charges: Sequence[Mapping[str, Any]] = ledger.entries()
    if not charges:
        return 0.0
    if any(entry["event"]["kind"] == "none" for entry in charges):
        return float("inf")
    return None if delta is None else ledger.epsilon(delta)
