"""What a population has been charged: an append-only file, a line a round, each bound to the one before by its hash.

A line is on disk before the round's result is used. Charging a round of a run a second time (the run was killed and
draws the same round again) appends nothing; a line that a kill cut short was never used and is removed.

Every line carries its own hash and that of the line before, so that an edit anywhere is seen, in the last line too. How
many lines there are, and the hash of the last, is kept in a second file, the head, so that lines missing at the end are
seen as well. The line is written first and the head after it: a kill in between leaves the ledger one line ahead of its
head, which is legal; a ledger behind its head has lost charges, and is refused. Who can write both files can forge both:
each silo therefore keeps a ledger of its own, and the two are compared.
"""

import fcntl
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tff_pipeline import __version__
from tff_pipeline.artifacts import canonical_json, now, sync_directory, write_atomic
from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy import accounting

_START = "0" * 64
_RESTORE = "nothing can be charged on top of it. Restore the ledger and its head from a backup."


class Ledger:
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
        self.path, self.population, self.silo, self.unit = path, population, silo, unit
        self._entries: list[dict[str, Any]] = []
        self._drawn: dict[tuple[str, int], list[dict[str, Any]]] = {}
        self._checked: tuple[Any, ...] | None = None  # what the files looked like when they were last found sound

    @property
    def head_path(self) -> Path:
        return self.path.with_suffix(".head.json")

    @property
    def head(self) -> str:
        """The hash of the last line, after checking; it stands for everything above it."""
        entries = self.entries()
        return entries[-1]["hash"] if entries else _START

    def entries(self) -> Sequence[dict[str, Any]]:
        """All charges, oldest first, after checking the chain of hashes and the head."""
        looks = (_looks(self.path), _looks(self.head_path))
        if self._checked is None or looks != self._checked:
            self._read()
            self._checked = looks
        return self._entries

    def charge(self, *, run: str, round_number: int, event: Mapping[str, Any], draw: str, start: str = "") -> bool:
        """Charges one round, synced to disk before it returns. Returns False where exactly this draw was charged already.

        Args:
          run: its id.
          round_number: counted from 1.
          event: what is charged; see privacy.accounting.
          draw: identifies the secrets from which cohort and noise follow, and what the run began with. The same round under
            another draw (a key was lost) is another release, and is charged again.
          start: identifies what the round starts from. The same round of the same draw that starts from something else (the
            state was restored, or edited) has another cohort and other noise: another release, charged again.

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
            "time": now(),
            "version": __version__,
            "previous": self.head,
        }
        if start:
            entry["start"] = start
        if self.silo:
            entry["silo"] = self.silo
        entry["hash"] = _hash(entry)
        created = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.truncate(_whole_bytes(self.path))
            file.write(canonical_json(entry) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if created:
            sync_directory(self.path.parent)
        self._take(entry)
        write_atomic(self.head_path, canonical_json({"entries": len(self._entries), "hash": entry["hash"]}) + b"\n")
        self._checked = (_looks(self.path), _looks(self.head_path))
        return True

    def charged(self, *, run: str, round_number: int, event: Mapping[str, Any], draw: str, start: str = "") -> bool:
        """Whether exactly this draw of the round has been charged.

        Raises:
          PrivacyError: if the round was charged with another event.
        """
        self.entries()
        found = False
        for entry in self._drawn.get((run, round_number), ()):
            if entry["population"] != self.population:
                continue
            if entry["event"] != dict(event):
                raise PrivacyError(
                    f"{self.path}: round {round_number} of run {run} was charged as {entry['event']}, and is now {dict(event)}; "
                    "a run's settings cannot change under way. Start a new run."
                )
            found = found or (entry["draw"], entry.get("start", "")) == (draw, start)
        return found

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
        lineages: dict[tuple[str, str, str], Counter[int]] = {}
        for entry in self.entries():
            lineage = canonical_json(entry["event"]).decode(), entry["run"], entry["draw"]
            lineages.setdefault(lineage, Counter())[entry["round"]] += 1
        own = (canonical_json(dict(planned)).decode(), run, draw) if planned is not None else None
        if own:
            lineages.setdefault(own, Counter())
        charges: list[tuple[str, int]] = []
        for lineage, times in lineages.items():
            event = lineage[0]
            if again and lineage == own:
                times = times + Counter({rounds: 1})
            if json.loads(event).get("kind") == "tree":
                # The newest round stands for all before it: trees begin with the run, and if some of these rounds were another
                # draw's that is too much. A round charged twice is one of two lines of trees, and so are those that follow.
                longest = [max(number for number in times if times[number] > copy) for copy in range(_most(times))]
                charges += [(event, rounds if lineage == own and not copy else n) for copy, n in enumerate(longest)]
                if lineage == own and not longest:
                    charges.append((event, rounds))
            elif lineage == own:
                repeated = sum(count - 1 for count in times.values())
                charges.append((event, repeated + sum(number <= done for number in times) + max(0, rounds - done)))
            else:
                charges.append((event, times.total()))
        together: Counter[str] = Counter()
        trees: list[tuple[str, int]] = []
        for event, count in charges:
            if json.loads(event).get("kind") == "tree":
                trees.append((event, count))  # each has levels of its own
            else:
                together[event] += count
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
        who = f"silo {self.silo!r}" if self.silo else f"population {self.population!r}"
        raise PrivacyError(
            f"{self.path}: the run's {rounds} rounds would bring {who} to epsilon {total(rounds):.4g} at delta {delta:g}, over {key} {budget:g} "
            f"(spent so far otherwise: {total(0):.4g}); rounds left at these settings: {max(left, 0)}. Plan fewer rounds or more noise."
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
                whose = f"at silo {self.silo!r}" if self.silo else f"on population {self.population!r}"
                raise PrivacyError(
                    f"{self.path}: another run is training {whose} right now; expected one at a time. Wait for it to end."
                ) from None
            yield

    def _read(self) -> None:
        """Reads and checks everything."""
        self._entries, self._drawn = [], {}
        whole = self.path.read_bytes()[: _whole_bytes(self.path)] if self.path.exists() else b""
        for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
            entry: dict[str, Any] = {}
            try:
                entry = json.loads(line)
                sound = (
                    entry["previous"] == (self._entries[-1]["hash"] if self._entries else _START)
                    and entry["hash"] == _hash({key: value for key, value in entry.items() if key != "hash"})
                    and entry.get("silo", "") == self.silo
                    and (bool(self.silo) or entry["population"] == self.population)
                    and canonical_json(entry) == line
                )
            except (ValueError, KeyError, TypeError, AttributeError):
                sound = False
            if not sound:
                raise PrivacyError(
                    f"{self.path}: line {number} is damaged, edited or out of order (its hash, or the chain of hashes, does not fit); {_RESTORE}"
                )
            self._take(entry)
        self._check_head()

    def _check_head(self) -> None:
        """The ledger may be one line ahead of its head (a kill between the two writes), and never behind it."""
        found = len(self._entries)
        try:
            head = json.loads(self.head_path.read_bytes())
            counted, last = int(head["entries"]), str(head["hash"])
        except FileNotFoundError:
            counted, last = 0, _START
        except (ValueError, KeyError, TypeError):
            raise PrivacyError(
                f"{self.head_path}: is damaged; expected the number of the ledger's lines and the hash of the last; {_RESTORE}"
            ) from None
        if found < counted:
            raise PrivacyError(
                f"{self.path}: line {found + 1} is missing: the ledger ends after {found} lines, its head ({self.head_path.name}) counted {counted}; {_RESTORE}"
            )
        if found > counted + 1:
            raise PrivacyError(
                f"{self.head_path}: counts {counted} lines, the ledger has {found}; expected as many, or one fewer; {_RESTORE}"
            )
        if last != (self._entries[counted - 1]["hash"] if counted else _START):
            raise PrivacyError(
                f"{self.path}: line {counted} is not the one that its head ({self.head_path.name}) stands for; {_RESTORE}"
            )

    def _take(self, entry: dict[str, Any]) -> None:
        self._entries.append(entry)
        self._drawn.setdefault((entry["run"], entry["round"]), []).append(entry)


def require_same_charges(population: Ledger, silo: Ledger) -> None:
    """Refuses a population's ledger that lacks what a silo was charged in that population: it has been set back.

    Raises:
      PrivacyError: naming the first charge that is missing.
    """
    known = {_charge_of(entry) for entry in population.entries()}
    for number, entry in enumerate(silo.entries(), start=1):
        if entry["population"] == population.population and _charge_of(entry) not in known:
            raise PrivacyError(
                f"{population.path}: lacks round {entry['round']} of run {entry['run']}, which silo {silo.silo!r} was charged ({silo.path}, line {number}); "
                "expected every charge of a silo there too. Was an older copy put in its place? Restore the newest."
            )


def _charge_of(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return entry["run"], entry["round"], entry["draw"], entry.get("start", ""), canonical_json(entry["event"])


def _most(times: Counter[int]) -> int:
    return max(times.values(), default=0)


def _hash(entry: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(entry)).hexdigest()


def _looks(path: Path) -> tuple[int, ...] | None:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _whole_bytes(path: Path) -> int:
    """Up to where the file consists of whole lines; it reads only the end."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 4096)
            file.seek(start)
            place = file.read(end - start).rfind(b"\n")
            if place >= 0:
                return start + place + 1
            end = start
    return 0
