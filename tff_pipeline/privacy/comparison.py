"""Holds all ledgers of a workdir against each other: those of populations, and those that silos keep for themselves.

A charge is written into the population's ledger first and then into each silo's. Both lines name the other ledger: the
population's line says how many lines the ledger of every silo of the run had, with the hash of the last; the silo's
line says which line of the population it belongs to, and names the other silos. So whoever deletes a ledger, or puts an older copy in its place,
is found out by every ledger that was left alone. A kill between the two writes leaves the population's newest charge
without its counterpart; that is legal, for that one charge only, and is completed when a run opens its account.

Where a ledger cannot be restored, or silos come and go, a person has to say what happened. What was said stands in the
population's ledger as a decision:

  {"kind": "admit", "silo": ..., "position": ...}        the silo is new, and none of those that the population knows
  {"kind": "admit", ..., "formerly": ...}                the silo took over the charges of that one, or its own again
  {"kind": "leave", "silo": ...}                         the silo left, and is none of those that join later
  {"kind": "recover", "silos": {name: position, ...}}    charges that these silos' ledgers held were copied from them

A decision may start the counting of a silo's lines anew. It never removes a charge: every silo that a charge names, under its
old name or its new one, must have that charge, whatever was decided since.

Lines of the first format name no silos. What they say is compared as far as it goes: a silo's charge must be in its
population's ledger; and a silo that lacks the newest of such charges is refused until a person has said why, since whether
it took part in them cannot be told.
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy.ledger import Charge, Ledger, Position, charge_of, members_of


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something that forbids to charge anything.

    Attributes:
      kind: "damaged": a ledger cannot be read. "population": a population's ledger lacks what a silo's has. "silo": the
        other way round. "unknown": a silo of the configuration that its population does not know.
      name: of the population, or of the silo.
      text: what is wrong and what to do.
    """

    kind: Literal["damaged", "population", "silo", "unknown"]
    name: str
    text: str


@dataclasses.dataclass(frozen=True)
class Pending:
    """A population's newest charge, which a kill kept from a silo's ledger."""

    population: Ledger
    silo: Ledger
    entry: Mapping[str, Any]

    def complete(self) -> None:
        """Charges the silo too. The round was never computed, so this can only be too much."""
        number = self.population.number_of(self.entry["hash"])
        position = {"lines": number, "hash": self.entry["hash"]}
        self.silo.copy_charge(self.entry, source=self.population.owner, counterpart=position)


@dataclasses.dataclass
class Comparison:
    """What was found: `problems` forbid charges, `notes` are for a person to know, `pending` charges can be completed.

    Silos that are `gone` are named by a population, and have neither a place in the configuration nor a ledger.
    """

    problems: list[Problem] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    pending: list[Pending] = dataclasses.field(default_factory=list)
    gone: set[str] = dataclasses.field(default_factory=set)

    def require_sound(self) -> None:
        """Raises PrivacyError with the first problem, if there is any."""
        if self.problems:
            more = len(self.problems) - 1
            rest = f" Problems beside this one: {more}; `tff-pipeline ledger verify` prints them all." if more else ""
            raise PrivacyError(self.problems[0].text + rest)


@dataclasses.dataclass(frozen=True)
class _Mention:
    """A line of a population's ledger that says how long a silo's ledger was."""

    number: int
    position: Position


class Record:
    """What a population's ledger says about silos.

    Attributes:
      mentions: by silo, every line that gives its ledger's position, from its newest admission on.
      charged: by silo, every charge that names it or a silo it took over, with the line's number.
      unnamed: charges that do not say which silos took part, with their lines' numbers; of the first format.
      admitted: by silo, the line of its newest admission.
      left: silos that a person said have left, and that were not named since.
    """

    def __init__(self, population: Ledger):
        self.population = population
        self.mentions: dict[str, list[_Mention]] = {}
        self.charged: dict[str, list[tuple[int, Mapping[str, Any]]]] = {}
        self.unnamed: list[tuple[int, Mapping[str, Any]]] = []
        self.admitted: dict[str, int] = {}
        self.left: set[str] = set()
        for number, line in enumerate(population.lines(), start=1):
            if "decision" in line:
                self._decide(number, line["decision"])
                continue
            members = members_of(line)
            if members is None:
                self.unnamed.append((number, line))
            for silo in members or ():
                self.charged.setdefault(silo, []).append((number, line))
                self.left.discard(silo)
            for silo, position in line.get("silos", {}).items():
                self.mentions.setdefault(silo, []).append(_Mention(number, position))

    @property
    def known(self) -> set[str]:
        """Every silo that the ledger names."""
        return self.mentions.keys() | self.charged.keys()

    def absent(self, configured: Collection[str]) -> list[str]:
        """Silos that the population has charged, that the configuration does not name, and that nobody said have left."""
        return sorted(self.known - self.left - set(configured))

    def _decide(self, number: int, decision: Mapping[str, Any]) -> None:
        try:
            match decision["kind"]:
                case "admit":
                    self._admit(number, decision["silo"], decision["position"], decision.get("formerly"))
                case "leave":
                    self.left.add(decision["silo"])
                case "recover":
                    for silo, position in decision["silos"].items():
                        self.mentions.setdefault(silo, []).append(_mention(number, position))
                case _:
                    raise ValueError
        except (KeyError, TypeError, ValueError, AttributeError):
            raise PrivacyError(
                f"{self.population.path}: line {number} is a decision that this version does not know; expected admit, leave or recover. Was the ledger written by a newer version? Use that one."
            ) from None

    def _admit(self, number: int, silo: str, position: Position, formerly: str | None) -> None:
        self.mentions[silo] = [_mention(number, position)]
        self.admitted[silo] = number
        self.left.discard(silo)
        if formerly is not None and formerly != silo:
            self.charged.setdefault(silo, []).extend(self.charged.get(formerly, []))
            self.left.add(formerly)


def _mention(number: int, position: Position) -> _Mention:
    return _Mention(number, {"lines": int(position["lines"]), "hash": str(position["hash"])})


def compare(
    populations: Mapping[str, Ledger],
    silos: Mapping[str, Ledger],
    *,
    population: str,
    configured: Collection[str],
) -> Comparison:
    """Compares every population's ledger with every silo's, both ways. Writes nothing.

    Silos are read first: a run that charges meanwhile then shows as a pending charge.

    Args:
      populations: all ledgers of populations there are, by name.
      silos: all ledgers of silos there are, by name.
      population: the configuration's.
      configured: the names of the configuration's silos.
    """
    result = Comparison()
    own = {name: ledger for name, ledger in silos.items() if _readable(ledger, name, result)}
    records: dict[str, Record] = {}
    for name, ledger in populations.items():
        if _readable(ledger, name, result):
            try:
                records[name] = Record(ledger)
            except PrivacyError as error:
                result.problems.append(Problem("damaged", name, str(error)))
    for silo in own.values():
        result.problems += _lacking_in_populations(silo, populations, records)
    for record in records.values():
        _compare_silos(record, silos, own, configured, result)
    if population in records:
        _compare_members(records[population], own, configured, result)
    return result


def _readable(ledger: Ledger, name: str, result: Comparison) -> bool:
    try:
        ledger.lines()
    except PrivacyError as error:
        result.problems.append(Problem("damaged", name, str(error)))
        return False
    return True


def _lacking_in_populations(
    silo: Ledger, populations: Mapping[str, Ledger], records: Mapping[str, Record]
) -> Iterator[Problem]:
    """What a silo was charged and its populations' ledgers do not have: these were deleted or set back. One for each."""
    charged = {
        name: {charge_of(entry): entry for entry in record.population.entries()} for name, record in records.items()
    }
    blamed: set[str] = set()
    for number, entry in enumerate(silo.lines(), start=1):
        name = entry["population"]
        if name in blamed or (name in populations and name not in records):
            continue
        what = f"round {entry['round']} of run {entry['run']}, which silo {silo.silo!r} was charged ({silo.path}, line {number})"
        restore = f"Restore the newest; if there is none, charge again what the silos' ledgers hold: `tff-pipeline ledger recover --set privacy.population={name}`."
        if name not in records:
            text = f"population {name!r} has no ledger in this workdir, and so lacks {what}; expected the ledger of every population that silos were charged in. {restore}"
        elif (counterpart := charged[name].get(charge_of(entry))) is None:
            text = f"{records[name].population.path}: lacks {what}; expected every charge of a silo there too. Was an older copy put in its place? {restore}"
        elif not _fit(entry, counterpart, records[name].population):
            text = f"{records[name].population.path}: the line for {what}, is not the one that the silo names; expected line {entry['counterpart']['lines']} with hash {entry['counterpart']['hash']}. One of the two was written anew. Restore the right one; if there is none of this one, move it and its head away, and run `tff-pipeline ledger recover --set privacy.population={name}`."
        else:
            continue
        blamed.add(name)
        yield Problem("population", name, text)


def _fit(entry: Mapping[str, Any], counterpart: Mapping[str, Any], population: Ledger) -> bool:
    """Whether a silo's line belongs to the population's line, or this was recovered and names the same silos."""
    if "counterpart" not in entry:
        return True
    if "copied_from" in counterpart:
        return members_of(counterpart) == members_of(entry)
    position = entry["counterpart"]
    return position["hash"] == counterpart["hash"] and population.number_of(position["hash"]) == position["lines"]


def _compare_silos(
    record: Record,
    silos: Mapping[str, Ledger],
    own: Mapping[str, Ledger],
    configured: Collection[str],
    result: Comparison,
) -> None:
    """Every silo that a population names must have a ledger that goes on from what was named, with all charges."""
    for name in sorted(record.known):
        silo = silos.get(name)
        if silo is None or (name not in configured and not silo.exists):
            if silo is not None and _never_written(record, name):
                _note_pending(Pending(record.population, silo, record.population.entries()[-1]), result)
            elif name not in record.left:
                result.gone.add(name)
                result.notes.append(
                    f"silo {name!r}, which {record.population.path} names, has no ledger here and is not in the configuration; if it comes back, it has to bring its ledger."
                )
        elif name in own and (problem := _set_back(record, silo)):
            result.problems.append(problem)
        elif name in own:
            _compare_charges(record, silo, result)


def _never_written(record: Record, silo: str) -> bool:
    """Whether the silo's first charge ever is the newest one of the population: a kill kept the ledger from being made."""
    charged = [entry for _, entry in record.charged.get(silo, ())]
    return (
        len(charged) == 1
        and charged[0] is record.population.entries()[-1]
        and all(mention.position["lines"] == 0 for mention in record.mentions.get(silo, ()))
    )


def _set_back(record: Record, silo: Ledger) -> Problem | None:
    for mention in record.mentions.get(silo.silo, ()):
        if silo.extends(mention.position):
            continue
        lines = len(silo.lines())
        counted = mention.position["lines"]
        state = (
            f"ends after {lines} lines, where line {mention.number} of {record.population.path} counted {counted}"
            if lines < counted
            else f"line {counted} is not the one that line {mention.number} of {record.population.path} names"
        )
        return Problem(
            "silo",
            silo.silo,
            f"{silo.path}: {state}; expected the ledger of that time and what came after. {_lost(silo)}",
        )
    return None


def _compare_charges(record: Record, silo: Ledger, result: Comparison) -> None:
    own = {charge_of(entry) for entry in silo.entries()}
    for number, entry in record.charged.get(silo.silo, ()):
        if charge_of(entry) in own:
            continue
        if entry is record.population.entries()[-1]:
            _note_pending(Pending(record.population, silo, entry), result)
            continue
        result.problems.append(
            Problem(
                "silo",
                silo.silo,
                f"{silo.path}: lacks round {entry['round']} of run {entry['run']}, which {record.population.owner} was charged for it ({record.population.path}, line {number}); "
                f"expected every charge that names the silo. {_lost(silo)}",
            )
        )
        return


def _lost(silo: Ledger) -> str:
    return (
        f"Was the ledger deleted, or an older copy put in its place? Restore the newest; if there is none, `tff-pipeline ledger admit --silo {silo.silo} --formerly {silo.silo}` "
        "charges the silo again everything that populations' ledgers say of it."
    )


def _note_pending(pending: Pending, result: Comparison) -> None:
    entry = pending.entry
    result.pending.append(pending)
    result.notes.append(
        f"round {entry['round']} of run {entry['run']} is in {pending.population.path} and not yet in {pending.silo.path}: a run is charging right now, or was killed while it did. The next run completes it."
    )


def _compare_members(
    record: Record, own: Mapping[str, Ledger], configured: Collection[str], result: Comparison
) -> None:
    """The configuration's silos, where the population does not name them: are they new, or were they renamed or reset?"""
    population = record.population
    absent = record.absent(configured)
    for name in configured:
        if name not in own:
            continue
        charges: set[Charge] = {charge_of(entry) for entry in own[name].entries()}
        taken = [number for number, entry in record.unnamed if charge_of(entry) in charges]
        since = max([0, record.admitted.get(name, 0), *taken])
        lacking = [entry for number, entry in record.unnamed if number > since]
        if len(lacking) == 1 and lacking[0] is population.entries()[-1]:
            _note_pending(Pending(population, own[name], lacking[0]), result)
        elif lacking:
            result.problems.append(Problem("unknown", name, _undecidable(record, own[name], lacking)))
        elif name in record.known:
            continue
        elif not taken and (missing := absent or ([] if own[name].lines() else sorted(result.gone))):
            result.problems.append(Problem("unknown", name, _renamed(population, own[name], missing)))
        elif not taken and population.entries():
            result.notes.append(
                f"silo {name!r} is new to {population.owner}; the next charge names it ({own[name].path})."
            )
        elif len(taken) < len(record.unnamed):
            result.notes.append(
                f"{own[name].path}: lacks {len(record.unnamed) - len(taken)} older charges of {population.owner}, from before ledgers named silos. It joined later, or its ledger was deleted then; which cannot be told."
            )


def _undecidable(record: Record, silo: Ledger, lacking: Sequence[Mapping[str, Any]]) -> str:
    newest = record.population.number_of(lacking[-1]["hash"])
    return (
        f"{silo.path}: lacks {len(lacking)} charges of {record.population.owner}, the newest in line {newest} of {record.population.path}, which do not say whether silo {silo.silo!r} took part. "
        f"If it did, restore its ledger; if there is none, run `tff-pipeline ledger admit --silo {silo.silo} --formerly {silo.silo}`, which charges it again. "
        f"If it did not, run `tff-pipeline ledger admit --silo {silo.silo}`."
    )


def _renamed(population: Ledger, silo: Ledger, absent: Sequence[str]) -> str:
    names = ", ".join(map(repr, absent))
    return (
        f"{population.path}: does not know silo {silo.silo!r}, while {names}, charged before, is not in the configuration; expected to know whether {silo.silo!r} is new. "
        f"If {silo.silo!r} is another name for {absent[0]!r}, use the old name, or run `tff-pipeline ledger admit --silo {silo.silo} --formerly {absent[0]}`, which charges it what the old name was charged. "
        f"If it is new, run `tff-pipeline ledger admit --silo {silo.silo}`; where a silo left for good, `tff-pipeline ledger leave --silo {absent[0]}` says so."
    )
