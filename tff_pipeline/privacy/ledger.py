"""What a population has been charged: an append-only file, a line a round, each bound to the one before by its hash.

A line is on disk before the round's result is used. Charging a round of a run a second time (the run was killed and
draws the same round again) appends nothing; a line that a kill cut short was never used and is removed.
"""

import fcntl
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tff_pipeline import __version__
from tff_pipeline.artifacts import canonical_json, now, sync_directory
from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy import accounting

_START = "0" * 64


class Ledger:
    """The ledger of one population, in one file.

    Raises (from every method that reads):
      PrivacyError: naming the line that is damaged, edited or out of order.
    """

    def __init__(self, path: Path, population: str):
        self.path, self.population = path, population

    def entries(self) -> list[dict[str, Any]]:
        """All charges, oldest first, after checking the chain of hashes."""
        if not self.path.exists():
            return []
        whole, _, _cut_short = self.path.read_bytes().rpartition(b"\n")
        found: list[dict[str, Any]] = []
        previous = _START
        for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
            entry: dict[str, Any] = {}
            try:
                entry = json.loads(line)
                sound = (
                    entry["previous"] == previous
                    and entry["population"] == self.population
                    and canonical_json(entry) == line
                )
            except (ValueError, KeyError, TypeError):
                sound = False
            if not sound:
                raise PrivacyError(
                    f"{self.path}: line {number} is damaged, edited or out of order (it does not continue the chain of hashes); nothing can be charged on top of it. Restore the ledger from a backup."
                )
            previous = hashlib.sha256(line).hexdigest()
            found.append(entry)
        return found

    def charge(self, *, run: str, round_number: int, event: Mapping[str, Any], draw: str) -> bool:
        """Charges one round, synced to disk before it returns. Returns False where exactly this draw was charged already.

        Args:
          run: its id.
          round_number: counted from 1.
          event: what is charged; see privacy.accounting.
          draw: identifies the secrets from which cohort and noise follow. The same round under other secrets (a key was
            lost) is another release, and is charged again.

        Raises:
          PrivacyError: if the round was charged before with another event.
        """
        for entry in self.entries():
            if (entry["run"], entry["round"]) == (run, round_number):
                if entry["event"] != dict(event):
                    raise PrivacyError(
                        f"{self.path}: round {round_number} of run {run} was charged as {entry['event']}, and is now {dict(event)}; "
                        "a run's settings cannot change under way. Start a new run."
                    )
                if entry["draw"] == draw:
                    return False
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            whole = self.path.read_bytes()
            end = whole.rfind(b"\n") + 1
            file.truncate(end)
            lines = whole[:end].splitlines()
            entry = {
                "population": self.population,
                "run": run,
                "round": round_number,
                "event": dict(event),
                "draw": draw,
                "time": now(),
                "version": __version__,
                "previous": hashlib.sha256(lines[-1]).hexdigest() if lines else _START,
            }
            file.write(canonical_json(entry) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        sync_directory(self.path.parent)
        return True

    def epsilon(
        self, delta: float, *, planned: Mapping[str, Any] | None = None, rounds: int = 0, run: str = ""
    ) -> float:
        """Epsilon at `delta` of everything charged so far, and of `rounds` planned ones; events are composed.

        What `run` has been charged already is among the planned rounds, except what it was charged twice for.
        """
        counts: Counter[str] = Counter()
        own: set[int] = set()
        for entry in self.entries():
            if entry["run"] == run and planned is not None and entry["round"] not in own:
                own.add(entry["round"])
            else:
                counts[canonical_json(entry["event"]).decode()] += 1
        if planned is not None:
            counts[canonical_json(dict(planned)).decode()] += rounds
        return accounting.epsilon([(json.loads(event), count) for event, count in counts.items()], delta)

    def require_budget(self, budget: float, delta: float, *, planned: Mapping[str, Any], rounds: int, run: str) -> None:
        """Refuses a run that could pass the population's budget.

        Raises:
          PrivacyError: saying what has been spent and how many of the planned rounds are left.
        """

        def total(count: int) -> float:
            return self.epsilon(delta, planned=planned, rounds=count, run=run)

        if total(rounds) <= budget:
            return
        low, high = -1, rounds
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if total(middle) <= budget else (low, middle)
        raise PrivacyError(
            f"{self.path}: the run's {rounds} rounds would bring population {self.population!r} to epsilon {total(rounds):.4g} at delta {delta:g}, over privacy.budget_epsilon {budget:g} "
            f"(spent so far by other runs: {total(0):.4g}); rounds left at these settings: {max(low, 0)}. Plan fewer rounds or more noise."
        )

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """Keeps other runs off this population while the block runs; the lock ends with the process.

        Raises:
          PrivacyError: if another run holds it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise PrivacyError(
                    f"{self.path}: another run is training on population {self.population!r} right now; expected one at a time. Wait for it to end."
                ) from None
            yield
