"""What a population has been charged: an append-only file, a line a round.

A line is on disk before the round's result is used. Charging a round of a run a second time (the run was killed and
draws the same round again) appends nothing.

The file is a `hash_chain`: an edit anywhere, and a line missing at the end, are seen when it is read.

Who can write both files can forge both. Each silo therefore keeps a ledger of its own, and the ledgers name and count each
other: a population's line says how long the ledger of every silo of the run was, and a silo's line says which line of
the population it belongs to. `privacy.comparison` holds them against each other.

Beside charges a population's ledger has lines that record what a person decided: that a silo is admitted, that it left,
that charges were recovered. Lines of the first format have neither counterparts nor decisions; they are read as they are.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tff_pipeline.artifacts import canonical_json
from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy import accounting
from tff_pipeline.privacy.hash_chain import HashChain, Position
from tff_pipeline.rounding import rounded_up

Charge = tuple[Any, ...]  # what makes a charge the same charge in two ledgers; see charge_of


class Ledger(HashChain):
    """One ledger, in one file: a population's, or a silo's, which holds what its clients were charged in any population.

    Reading checks everything once; after that only what has changed on disk, so that a charge costs the same however
    many there were before.

    Args:
      path: of the file; the head lies beside it.
      population: whose charges these are.
      silo: the name of the silo that keeps this ledger, or "" for the population's own.
      unit: "client" or "silo": for whom epsilon is worked out.

    Raises (from every method that reads):
      PrivacyError: naming the line that is damaged, edited or out of order, or how many are missing.
    """

    def __init__(self, path: Path, population: str, *, silo: str = "", unit: str = "client"):
        super().__init__(path)
        self.population, self.silo, self.unit = population, silo, unit
        self._entries: list[dict[str, Any]] = []
        self._drawn: dict[tuple[str, int], list[dict[str, Any]]] = {}

    @property
    def owner(self) -> str:
        """Whose ledger it is, as messages name it."""
        return f"silo {self.silo!r}" if self.silo else f"population {self.population!r}"

    @property
    def place(self) -> str:
        return f"at silo {self.silo!r}" if self.silo else f"on population {self.population!r}"

    def entries(self) -> Sequence[dict[str, Any]]:
        """All charges, oldest first, after checking the chain of hashes and the head."""
        self.lines()
        return self._entries

    def charge(
        self,
        *,
        run: str,
        round_number: int,
        event: Mapping[str, Any],
        draw: str,
        start: str = "",
        silos: Mapping[str, Position] | None = None,
        counterpart: Position | None = None,
        members: Sequence[str] | None = None,
    ) -> bool:
        """Charges one round, synced to disk before it returns. Returns False where exactly this draw was charged already.

        Args:
          run: its id.
          round_number: counted from 1.
          event: what is charged; see privacy.accounting.
          draw: identifies the secrets from which cohort and noise follow, and what the run began with. The same round under
            another draw (a key was lost) is another release, and is charged again.
          start: identifies what the round starts from. The same round of the same draw that starts from something else (the
            state was restored, or edited) has another cohort and other noise: another release, charged again.
          silos: in a population's ledger, the position of every silo's ledger before this charge, by the silo's name.
          counterpart: in a silo's ledger, the position of the population's line for the same round.
          members: in a silo's ledger, the names of all silos of the run, so that each is a witness of the others' charges.

        Raises:
          PrivacyError: if the round was charged before with another event.
        """
        if self.charged(run=run, round_number=round_number, event=event, draw=draw, start=start):
            return False
        entry: dict[str, Any] = {
            "population": self.population,
            "run": run,
            "round": round_number,
            "event": dict(event),
            "draw": draw,
        }
        if start:
            entry["start"] = start
        if silos is not None:
            entry["silos"] = {name: dict(position) for name, position in silos.items()}
        if counterpart is not None:
            entry["counterpart"] = dict(counterpart)
        if members is not None:
            entry["members"] = sorted(members)
        self._append(entry)
        return True

    def copy_charge(self, entry: Mapping[str, Any], *, source: str, counterpart: Position | None = None) -> None:
        """Charges what another ledger was charged, as `admit --formerly` and `recover` do. `source` names that ledger's owner."""
        copied = {
            name: entry[name] for name in ("population", "run", "round", "event", "draw", "start") if name in entry
        }
        copied["copied_from"] = source
        if (members := members_of(entry)) is not None:
            copied["members"] = members
        if counterpart is not None:
            copied["counterpart"] = dict(counterpart)
        self._append(copied)

    def decide(self, decision: Mapping[str, Any]) -> None:
        """Records in a population's ledger what a person decided; see privacy.comparison for what decisions there are."""
        self._append({"population": self.population, "decision": dict(decision)})

    def find(
        self, *, run: str, round_number: int, event: Mapping[str, Any], draw: str, start: str = ""
    ) -> Position | None:
        """The position of the line that charges exactly this draw on this population."""
        self.entries()
        for entry in self._drawn.get((run, round_number), ()):
            if charge_of(entry) == (self.population, run, round_number, draw, start, canonical_json(dict(event))):
                return {"lines": self._numbers[entry["hash"]], "hash": entry["hash"]}
        return None

    def charged(self, *, run: str, round_number: int, event: Mapping[str, Any], draw: str, start: str = "") -> bool:
        """Whether exactly this draw of the round has been charged.

        Raises:
          PrivacyError: if the round was charged with another event.
        """
        self.entries()
        charged = False
        for entry in self._drawn.get((run, round_number), ()):
            if entry["population"] != self.population:
                continue
            if entry["event"] != dict(event):
                raise PrivacyError(
                    f"{self.path}: round {round_number} of run {run} was charged as {entry['event']}, and is now {dict(event)}; "
                    "a run's settings cannot change under way. Start a new run."
                )
            charged = charged or (entry["draw"], entry.get("start", "")) == (draw, start)
        return charged

    def has_charged(self, *, run: str, round_number: int, draw: str) -> bool:
        """Whether a round has been charged under a draw, whatever it started from."""
        self.entries()
        return any(entry["draw"] == draw for entry in self._drawn.get((run, round_number), ()))

    def charges_of(self, *, run: str, draw: str) -> list[dict[str, Any]]:
        """What a run has been charged under one draw, oldest first."""
        return [entry for entry in self.entries() if (entry["run"], entry["draw"]) == (run, draw)]

    def epsilon(
        self,
        delta: float,
        *,
        planned: Mapping[str, Any] | None = None,
        rounds: int = 0,
        done: int = 0,
        run: str = "",
        draw: str = "",
        again: bool = False,
        step: float = accounting.FINE,
    ) -> float:
        """Epsilon at `delta` of everything charged so far, and of a run's planned rounds; events are composed.

        Args:
          delta: that of the guarantee.
          planned: the event of a planned round.
          rounds: up to which round of the run it is planned, counted from 1. What the run has been charged for a round under
            `draw` is that round, and not one more; what it was charged for it a second time, because it started from
            something else, is.
          done: how many of the run's rounds are done; those are not planned any more, under whatever draw they were charged.
          run, draw: whose rounds are planned, and under which draw.
          again: whether round `rounds` is about to be charged once more although it has been charged under `draw`.
          step: of the accountant.
        """
        own = (canonical_json(dict(planned)).decode(), run, draw) if planned is not None else None
        charged: dict[tuple[str, str, str], Counter[int]] = {own: Counter()} if own else {}
        for entry in self.entries():
            under = canonical_json(entry["event"]).decode(), entry["run"], entry["draw"]
            charged.setdefault(under, Counter())[entry["round"]] += 1
        if own and again:
            charged[own][rounds] += 1
        together: Counter[str] = Counter()
        trees: list[tuple[str, int]] = []  # each has levels of its own
        for under, times in charged.items():
            event = under[0]
            until = rounds if under == own else None
            if json.loads(event).get("kind") == "tree":
                trees += [(event, length) for length in _lines_of_trees(times, until)]
            else:
                together[event] += _charges(times, until, done)
        events = [(json.loads(event), count) for event, count in (*together.items(), *trees)]
        return accounting.epsilon(events, delta, unit=self.unit, step=step)

    def rounds_left(
        self,
        budget: float,
        delta: float,
        *,
        planned: Mapping[str, Any],
        rounds: int,
        done: int = 0,
        run: str = "",
        draw: str = "",
        again: bool = False,
    ) -> int:
        """How many of a run's `rounds` fit the budget, counting those it has been charged; -1 if the budget is passed already.

        The arguments are those of `epsilon`.
        """

        def fits(count: int, step: float) -> bool:
            spent = self.epsilon(
                delta,
                planned=planned,
                rounds=count,
                done=done,
                run=run,
                draw=draw,
                again=again and count == rounds,
                step=step,
            )
            return spent <= budget

        # Coarse steps are quick and give a little too much; what they leave open is settled finely.
        low, high = (rounds, rounds) if fits(rounds, accounting.COARSE) else (-1, rounds)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle, accounting.COARSE) else (low, middle)
        while low < rounds and fits(low + 1, accounting.FINE):
            low += 1
        return low

    def require_budget(
        self,
        budget: float,
        delta: float,
        *,
        planned: Mapping[str, Any],
        rounds: int,
        run: str,
        draw: str,
        done: int = 0,
    ) -> None:
        """Refuses a run that could pass the budget.

        Raises:
          PrivacyError: saying what has been spent and how many of the planned rounds are left.
        """
        left = self.rounds_left(budget, delta, planned=planned, rounds=rounds, done=done, run=run, draw=draw)
        if left == rounds:
            return

        def total(count: int) -> float:
            return self.epsilon(delta, planned=planned, rounds=count, done=done, run=run, draw=draw)

        key = "silos[].budget_epsilon" if self.silo else "privacy.budget_epsilon"
        raise PrivacyError(
            f"{self.path}: the run's {rounds} rounds would bring {self.owner} to epsilon {rounded_up(total(rounds))} at delta {delta:g}, over {key} {budget:g} "
            f"(spent so far: {rounded_up(total(0))}); rounds left at these settings: {max(left, 0)}. Plan fewer rounds or more noise."
        )

    def _require_own(self, line: Mapping[str, Any], number: int) -> None:
        """Refuses a ledger that was copied or moved from another silo or population."""
        silo = line.get("silo", "")
        if silo == self.silo and (silo or line["population"] == self.population):
            return
        other = f"silo {silo!r}" if silo else f"population {line['population']!r}"
        advice = (
            f"Put it back where the ledger of {other} belongs. If that silo has a new name now, then run `tff-pipeline ledger admit --silo {self.silo} --formerly {silo}`."
            if silo and self.silo
            else f"Put it back where the ledger of {other} belongs, and restore this one from a backup."
        )
        raise PrivacyError(
            f"{self.path}: line {number} belongs to the ledger of {other}; expected the ledger of {self.owner}. Was the file or its folder copied or renamed? {advice}"
        )

    def _signed(self, line: dict[str, Any]) -> dict[str, Any]:
        return line | {"silo": self.silo} if self.silo else line

    def _well_formed(self, line: Mapping[str, Any]) -> bool:
        return _well_formed(line)

    def _forget(self) -> None:
        super()._forget()
        self._entries, self._drawn = [], {}

    def _take(self, line: dict[str, Any]) -> None:
        super()._take(line)
        if "decision" not in line:
            self._entries.append(line)
            self._drawn.setdefault((line["run"], line["round"]), []).append(line)


def charge_of(entry: Mapping[str, Any]) -> Charge:
    """What makes a charge the same charge in a population's ledger and in a silo's."""
    start = entry.get("start", "")
    return entry["population"], entry["run"], entry["round"], entry["draw"], start, canonical_json(entry["event"])


def _charges(times: Counter[int], planned: int | None, done: int) -> int:
    """How many charges of one draw count, given how often each round was charged, and up to which round it is planned, if it is.

    A planned round that was charged is that charge, and not one more; rounds that are done are not planned any more.
    """
    return times.total() + sum(number not in times for number in range(done + 1, (planned or 0) + 1))


def _lines_of_trees(times: Counter[int], planned: int | None) -> list[int]:
    """The lengths, in rounds, of the lines of trees under one draw; the first reaches at least as far as is planned, if anything is.

    The newest round stands for all before it: trees begin with the run, and if some of these rounds were another draw's that
    is too much. A round that was charged twice began a second line, and so on.
    """
    most = max(times.values(), default=0)
    lengths = [max(number for number, count in times.items() if count > line) for line in range(most)]
    return lengths if planned is None else [max([planned, *lengths[:1]]), *lengths[1:]]


def members_of(entry: Mapping[str, Any]) -> list[str] | None:
    """The silos of the run that a charge names; None for a charge of the first format."""
    names = entry.get("silos", entry.get("members"))
    return None if names is None else sorted(names)


def _well_formed(line: Mapping[str, Any]) -> bool:
    """Whether a line has what is read of it; lines of the first format name no silos and have no counterpart."""
    if not isinstance(line["population"], str):
        return False
    if "decision" in line:
        return isinstance(line["decision"], dict) and isinstance(line["decision"].get("kind"), str)
    positions = [*line.get("silos", {}).values(), *([line["counterpart"]] if "counterpart" in line else [])]
    return (
        isinstance(line["run"], str)
        and isinstance(line["round"], int)
        and isinstance(line["event"], dict)
        and isinstance(line["draw"], str)
        and isinstance(line.get("start", ""), str)
        and all(isinstance(name, str) for name in line.get("members", []))
        and all(isinstance(position["lines"], int) and position["lines"] >= 0 for position in positions)
        and all(isinstance(position["hash"], str) for position in positions)
    )
