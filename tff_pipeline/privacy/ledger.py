"""What a population has been charged: an append-only file, a line a round, each bound to the one before by its hash.

A line is on disk before the round's result is used. Charging a round of a run a second time (the run was killed and
draws the same round again) appends nothing; a line that a kill cut short was never used and is removed.

Every line carries its own hash and that of the line before, so that an edit anywhere is seen, in the last line too. How
many lines there are, and the hash of the last, is kept in a second file, the head, so that lines missing at the end are
seen as well. The line is written first and the head after it: a kill in between leaves the ledger one line ahead of its
head, which is legal; a ledger behind its head has lost charges, and is refused.

Who can write both files can forge both. Each silo therefore keeps a ledger of its own, and the ledgers name and count each
other: a population's line says how long the ledger of every silo of the run was, and a silo's line says which line of
the population it belongs to. `privacy.comparison` holds them against each other.

Beside charges a population's ledger has lines that record what a person decided: that a silo is admitted, that it left,
that charges were recovered. Lines of the first format have neither counterparts nor decisions; they are read as they are.
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
from tff_pipeline.rounding import rounded_up

_START = "0" * 64
_RESTORE = "nothing can be charged on top of it. Restore the ledger and its head from a backup."

Position = Mapping[
    str, Any
]  # {"lines": how many, "hash": of the last of them}: one state of a ledger, and all before it
Charge = tuple[Any, ...]  # what makes a charge the same charge in two ledgers; see charge_of


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
        self._lines: list[dict[str, Any]] = []
        self._entries: list[dict[str, Any]] = []
        self._drawn: dict[tuple[str, int], list[dict[str, Any]]] = {}
        self._numbers: dict[str, int] = {}  # of lines, from 1, by hash
        self._counted = 0  # lines, by the head
        self._checked: tuple[Any, ...] | None = None  # what the files looked like when they were last found sound

    @property
    def head_path(self) -> Path:
        return self.path.with_suffix(".head.json")

    @property
    def owner(self) -> str:
        """Whose ledger it is, as messages name it."""
        return f"silo {self.silo!r}" if self.silo else f"population {self.population!r}"

    @property
    def exists(self) -> bool:
        """Whether anything of it is on disk."""
        return self.path.exists() or self.head_path.exists()

    @property
    def head(self) -> str:
        """The hash of the last line, after checking; it stands for everything above it."""
        return self.position()["hash"]

    def position(self) -> Position:
        """How many lines there are and the hash of the last, after checking."""
        lines = self.lines()
        return {"lines": len(lines), "hash": lines[-1]["hash"] if lines else _START}

    def extends(self, position: Position) -> bool:
        """Whether the ledger was once as long as `position` says, with the same last line, and so with all above it."""
        count, lines = position["lines"], self.lines()
        return count <= len(lines) and position["hash"] == (lines[count - 1]["hash"] if count else _START)

    def number_of(self, line_hash: str) -> int | None:
        """The number, from 1, of the line with this hash."""
        self.lines()
        return self._numbers.get(line_hash)

    def entries(self) -> Sequence[dict[str, Any]]:
        """All charges, oldest first, after checking the chain of hashes and the head."""
        self.lines()
        return self._entries

    def lines(self) -> Sequence[dict[str, Any]]:
        """All lines, charges and decisions, after checking."""
        looks = self.looks()
        if self._checked is None or looks != self._checked:
            self._read()
            self._checked = looks
        return self._lines

    def looks(self) -> tuple[Any, ...]:
        """Differs whenever the files were written in between."""
        return _looks(self.path), _looks(self.head_path)

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

    def _append(self, line: dict[str, Any]) -> None:
        """Completes a line with its place in the chain and writes it, then the head."""
        if self._counted < len(self.lines()):
            self._write_head()  # A kill kept it from counting the last line; one more would leave it two behind.
        line |= {"time": now(), "version": __version__, "previous": self.head}
        if self.silo:
            line["silo"] = self.silo
        line["hash"] = _hash(line)
        created = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.truncate(_whole_bytes(self.path))
            file.write(canonical_json(line) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if created:
            sync_directory(self.path.parent)
        self._take(line)
        self._write_head()

    def _write_head(self) -> None:
        self._counted = len(self._lines)
        head = {"entries": self._counted, "hash": self._lines[-1]["hash"]}
        write_atomic(self.head_path, canonical_json(head) + b"\n")
        self._checked = self.looks()

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
        self._lines, self._entries, self._drawn, self._numbers = [], [], {}, {}
        self._checked = None
        whole = self.path.read_bytes()[: _whole_bytes(self.path)] if self.path.exists() else b""
        for number, text in enumerate(whole.split(b"\n")[:-1], start=1):
            line: dict[str, Any] = {}
            try:
                line = json.loads(text)
                sound = (
                    line["previous"] == (self._lines[-1]["hash"] if self._lines else _START)
                    and line["hash"] == _hash({key: value for key, value in line.items() if key != "hash"})
                    and canonical_json(line) == text
                    and _well_formed(line)
                )
            except (ValueError, KeyError, TypeError, AttributeError):
                sound = False
            if not sound:
                raise PrivacyError(
                    f"{self.path}: line {number} is damaged, edited or out of order (its hash, or the chain of hashes, does not fit); {_RESTORE}"
                )
            self._require_own(line, number)
            self._take(line)
        self._check_head()

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

    def _check_head(self) -> None:
        """The ledger may be one line ahead of its head (a kill between the two writes), and never behind it."""
        found = len(self._lines)
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
        if last != (self._lines[counted - 1]["hash"] if counted else _START):
            raise PrivacyError(
                f"{self.path}: line {counted} is not the one that its head ({self.head_path.name}) stands for; {_RESTORE}"
            )
        self._counted = counted

    def _take(self, line: dict[str, Any]) -> None:
        self._lines.append(line)
        self._numbers[line["hash"]] = len(self._lines)
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
