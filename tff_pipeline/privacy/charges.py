"""The accounts a run is charged to: its population's ledger, and the ledger that each silo keeps for its own clients.

A round is charged everywhere before anything of it is computed. Where a budget would be passed the run does not start;
and if others have charged meanwhile, it stops before the round that would pass it.

Before a run charges anything all ledgers of the workdir are compared, and a charge that a kill cut short is completed.
What a person decides about silos and ledgers (`admit`, `leave`, `recover`) is recorded here too.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tff_pipeline.artifacts import Workdir
from tff_pipeline.config import Config
from tff_pipeline.errors import ConfigError, PrivacyError
from tff_pipeline.privacy.comparison import Comparison, Record, compare
from tff_pipeline.privacy.ledger import Ledger, charge_of, members_of
from tff_pipeline.privacy.plan import PrivacyPlan
from tff_pipeline.privacy.round import Round

_ATTEMPTS = 3  # to compare ledgers that change meanwhile


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


def workdir_ledgers(config: Config) -> tuple[dict[str, Ledger], dict[str, Ledger]]:
    """Every ledger of the workdir, populations' and silos', by name; the configuration's also where nothing is on disk yet."""
    (population, _), *silos = ledgers(config)
    populations = {
        name: Ledger(population.path.with_name(f"{name}.jsonl"), name)
        for name in _names(population.path.parent, ".jsonl", ".head.json")
    }
    own = {silo.silo: silo for silo, _ in silos}
    folders = Workdir(config.workdir).silo("any").parent
    for folder in sorted(folders.iterdir()) if folders.is_dir() else ():
        silo = Ledger(folder / "ledger.jsonl", config.population, silo=folder.name)
        if folder.name not in own and silo.exists:
            own[folder.name] = silo
    populations[config.population] = population
    for name in _newest_members(populations.values()) - own.keys():
        own[name] = Ledger(folders / name / "ledger.jsonl", config.population, silo=name)
    return populations, own


def _newest_members(populations: Iterable[Ledger]) -> set[str]:
    """The silos that the newest charges name; of a ledger that is damaged, which the comparison says, none."""
    members: set[str] = set()
    for population in populations:
        with contextlib.suppress(PrivacyError):
            for entry in population.entries()[-1:]:
                # A name that is a path leads out of the workdir; no configuration has such a silo.
                members.update(name for name in members_of(entry) or () if Path(name).name == name)
    return members


def _names(folder: Path, *endings: str) -> list[str]:
    """The names of a folder's files that end in one of `endings`, without it."""
    files = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted({name.removesuffix(ending) for name in files for ending in endings if name.endswith(ending)})


def compared(config: Config) -> Comparison:
    """All ledgers of the workdir, held against each other; read again where another run charged while they were compared."""
    configured = [silo.name for silo in config.silos]
    attempts = 0
    while True:
        attempts += 1
        populations, silos = workdir_ledgers(config)
        ledgers_read = [*populations.values(), *silos.values()]
        before = [ledger.looks() for ledger in ledgers_read]
        comparison = compare(populations, silos, population=config.population, configured=configured)
        unchanged = before == [ledger.looks() for ledger in ledgers_read]
        if not comparison.problems or unchanged or attempts == _ATTEMPTS:
            return comparison


class Account:
    """What one run charges, in every ledger it concerns. Made by `opened`.

    Attributes:
      notes: sentences about the ledgers for a person to know, such as which silo is new.
    """

    def __init__(
        self,
        accounts: Sequence[tuple[Ledger, float | None]],
        plan: PrivacyPlan,
        *,
        run: str,
        draw: str,
        notes: Sequence[str] = (),
    ):
        self._accounts, self._plan, self.notes = accounts, plan, notes
        self._charge: dict[str, Any] = {"run": run, "draw": draw, "event": plan.round_event}
        self._sizes = [len(ledger.entries()) for ledger, _ in accounts]
        self._reasons = [""] * len(accounts)  # why a budget has to be looked at again, once there is a reason

    def charge(self, round_number: int, *, start: str = "") -> None:
        """Charges a round (counted from 1) everywhere, on disk before it returns; what was charged before is not again.

        `start` identifies what the round starts from; see `Ledger.charge`.

        Raises:
          PrivacyError: if that would pass a budget: the round must not be run.
        """
        charge = self._charge | {"round_number": round_number, "start": start}
        self._require_budgets(charge)
        self._write(charge)
        self._note_sizes()

    def require_charged(self, silo: str, at: Round) -> None:
        """Raises PrivacyError unless the silo's own ledger holds the charge for this draw of the round."""
        (ledger,) = (ledger for ledger, _ in self._accounts if ledger.silo == silo)
        if not ledger.charged(**self._charge, round_number=at.number + 1, start=at.start):
            raise PrivacyError(
                f"{ledger.path}: round {at.number + 1} of run {self._charge['run']} is not charged to silo {silo}; expected the charge before the silo works on it. "
                "Nothing was computed. Was the ledger written by another program meanwhile? Look at `tff-pipeline ledger verify`."
            )

    def _require_budgets(self, charge: Mapping[str, Any]) -> None:
        """Raises PrivacyError if the charge would pass a budget.

        When the run began, its budgets were seen to last. That holds until somebody else charges, or a round that was
        charged is run again from something else; from then on every round is looked at.
        """
        round_number = charge["round_number"]
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

    def _note_sizes(self) -> None:
        self._sizes = [len(ledger.entries()) for ledger, _ in self._accounts]

    def _write(self, charge: Mapping[str, Any]) -> None:
        """The population's line, which names every silo and counts its lines; then each silo's, which names that line."""
        population, *silos = (ledger for ledger, _ in self._accounts)
        population.charge(silos={silo.silo: silo.position() for silo in silos}, **charge)
        counterpart = population.find(**charge)
        members = [silo.silo for silo in silos]
        for silo in silos:
            silo.charge(counterpart=counterpart, members=members, **charge)

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
      PrivacyError: if a ledger is damaged, missing or lacks charges that another one holds, if a silo is not known, or if a
        budget has no room for all rounds.
    """
    comparison = compared(config)
    comparison.require_sound()
    _complete(config, comparison)
    accounts = ledgers(config)
    for ledger, budget in accounts:
        if budget is not None and plan.delta is not None:
            ledger.require_budget(
                budget, plan.delta, planned=plan.round_event, rounds=plan.rounds, done=done, run=run, draw=draw
            )
    return Account(accounts, plan, run=run, draw=draw, notes=comparison.notes)


def spent(ledger: Ledger, delta: float | None) -> float | None:
    """Epsilon of everything charged, infinite with a release without privacy; None where there is no delta to state it at."""
    charges: Sequence[Mapping[str, Any]] = ledger.entries()
    if not charges:
        return 0.0
    if any(entry["event"]["kind"] == "none" for entry in charges):
        return float("inf")
    return None if delta is None else ledger.epsilon(delta)


def admit(config: Config, silo: str, *, formerly: str | None = None) -> str:
    """Records that a silo is new to the population; or, with `formerly`, that it took over another's charges, or its own again.

    With `formerly` the silo is charged everything that it lacks of what populations' ledgers, and the other silo's, say of
    that name. Its name may be the silo's own, where the ledger was lost.

    Returns:
      What was recorded, as a sentence.

    Raises:
      ConfigError: if the configuration does not have the silo, or has the former one too.
      PrivacyError: if a population's ledger is not sound, or the silo is not new.
    """
    names = [part.name for part in config.silos]
    if silo not in names:
        raise ConfigError(
            f"--silo {silo}: expected a silo of {config.path}: {', '.join(names)}. For one that is no longer there, use `tff-pipeline ledger leave`."
        )
    if formerly not in (None, silo) and formerly in names:
        raise ConfigError(
            f"--formerly {formerly}: is a silo of {config.path} too; expected the name that silo {silo!r} had before."
        )
    with exclusively(config):
        comparison = compared(config)
        _require_usable(comparison)
        _complete(config, comparison)
        populations, silos = workdir_ledgers(config)
        records = {name: Record(ledger) for name, ledger in populations.items()}
        known = records[config.population].known
        if formerly is None:
            if silo in known:
                raise PrivacyError(
                    f"{populations[config.population].path}: names silo {silo!r} already; expected one that is new. If its ledger was lost, run `tff-pipeline ledger admit --silo {silo} --formerly {silo}`."
                )
            concerned, copied = [config.population], 0
        else:
            charged = {name for record in records.values() for name in record.known} | silos.keys()
            if formerly not in charged and not records[config.population].unnamed:
                raise PrivacyError(
                    f"{populations[config.population].path}: does not name silo {formerly!r}, nor does another ledger; expected one that was charged: {', '.join(sorted(charged))}."
                )
            concerned = [
                name for name, record in records.items() if name == config.population or formerly in record.known
            ]
            copied = _take_over(silos[silo], silos.get(formerly), formerly, records, config.population)
        decision = {"kind": "admit", "silo": silo, "position": dict(silos[silo].position())}
        _decide(config, populations, concerned, decision | ({} if formerly is None else {"formerly": formerly}))
    if formerly is None:
        return f"silo {silo!r} is admitted to population {config.population!r} as a new one"
    return f"silo {silo!r}, formerly {formerly!r}, is admitted to {', '.join(map(repr, concerned))}; {copied} charges were added to {silos[silo].path}"


def leave(config: Config, silo: str) -> str:
    """Records that a silo left every population that has it, so that one that joins later is not taken for it under a new name.

    Returns:
      What was recorded, as a sentence.

    Raises:
      ConfigError: if the configuration still has the silo.
      PrivacyError: if no population knows it, or a population's ledger is not sound.
    """
    if silo in [part.name for part in config.silos]:
        raise ConfigError(f"--silo {silo}: is a silo of {config.path}; expected one that is no longer there.")
    with exclusively(config):
        comparison = compared(config)
        _require_usable(comparison)
        _complete(config, comparison)
        populations, _ = workdir_ledgers(config)
        concerned = [name for name, ledger in populations.items() if silo in Record(ledger).absent([])]
        if not concerned:
            raise PrivacyError(
                f"{populations[config.population].path}: does not name silo {silo!r}, or says already that it left; expected a silo that was charged. Look at `tff-pipeline ledger show`."
            )
        _decide(config, populations, concerned, {"kind": "leave", "silo": silo})
    return f"silo {silo!r} left: {', '.join(map(repr, concerned))}"


def _decide(
    config: Config, populations: Mapping[str, Ledger], concerned: Iterable[str], decision: Mapping[str, Any]
) -> None:
    """Records a decision with every population that it concerns; the configuration's own is locked already."""
    for name in concerned:
        own = name == config.population
        with contextlib.nullcontext() if own else populations[name].exclusively():
            populations[name].decide(decision)


def recover(config: Config) -> str:
    """Charges the population again what silos' ledgers hold of it and its own lacks: it was lost, or is an older copy.

    Returns:
      What was recorded, as a sentence.

    Raises:
      PrivacyError: if the population's ledger cannot be read, or lacks nothing.
    """
    with exclusively(config):
        populations, silos = workdir_ledgers(config)
        population = populations[config.population]
        known = {charge_of(entry) for entry in population.entries()}
        copied, positions = 0, {}
        for silo in silos.values():
            for entry in silo.entries():
                if entry["population"] != config.population:
                    continue
                positions[silo.silo] = dict(silo.position())
                if charge_of(entry) not in known:
                    population.copy_charge(entry, source=silo.owner)
                    known.add(charge_of(entry))
                    copied += 1
        if not copied:
            raise PrivacyError(
                f"{population.path}: lacks no charge of {population.owner} that a silo's ledger holds; there is nothing to recover."
            )
        population.decide({"kind": "recover", "silos": positions})
    return f"{copied} charges were added to {population.path} from the ledgers of {', '.join(map(repr, positions))}"


def _complete(config: Config, comparison: Comparison) -> None:
    """Completes charges that a kill cut short, in the ledgers that this configuration's lock covers, and their counterparts."""
    configured = [silo.name for silo in config.silos]
    for pending in comparison.pending:
        if pending.silo.silo in configured:
            pending.complete()
        elif pending.population.population == config.population:
            with pending.silo.exclusively():
                pending.complete()


def _require_usable(comparison: Comparison) -> None:
    """A decision is about silos: what is wrong with a population's ledger, or damaged, is put right before it."""
    for problem in comparison.problems:
        if problem.kind in ("population", "damaged"):
            raise PrivacyError(f"nothing can be decided before this is put right. {problem.text}")


def _take_over(
    silo: Ledger, other: Ledger | None, formerly: str, records: Mapping[str, Record], population: str
) -> int:
    """Charges a silo all that it lacks of another's charges, and returns how many. Those that name nobody count as the other's."""
    held = {charge_of(entry) for entry in silo.entries()}
    before = len(held)
    for name, record in records.items():
        named = [entry for _, entry in record.charged.get(formerly, ())]
        unnamed = [entry for _, entry in record.unnamed] if name == population else []
        for entry in (*unnamed, *named):
            if charge_of(entry) not in held:
                number = record.population.number_of(entry["hash"])
                position = {"lines": number, "hash": entry["hash"]}
                silo.copy_charge(entry, source=record.population.owner, counterpart=position)
                held.add(charge_of(entry))
    if other is not None and other is not silo:
        for entry in other.entries():
            if charge_of(entry) not in held:
                silo.copy_charge(entry, source=other.owner, counterpart=entry.get("counterpart"))
                held.add(charge_of(entry))
    return len(held) - before
