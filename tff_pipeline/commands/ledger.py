"""`tff-pipeline ledger`: what a configuration's population and its silos have been charged, and who joined or left."""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tff_pipeline import config as configuration
from tff_pipeline.artifacts import Workdir, canonical_json, write_atomic
from tff_pipeline.commands.privacy import finite, plan_of, together
from tff_pipeline.config import Config
from tff_pipeline.errors import ArtifactError, ConfigError, PrivacyError
from tff_pipeline.privacy import accounting, anchor
from tff_pipeline.privacy import charges as account
from tff_pipeline.privacy.comparison import Record
from tff_pipeline.privacy.ledger import Ledger
from tff_pipeline.privacy.plan import PrivacyPlan

_LEDGER = """What the configuration's population has been charged, and its silos: each keeps a ledger of its own.

Every run compares all ledgers of the workdir before it charges, and refuses where one lacks what another has. `verify` is
the same comparison. Where a ledger cannot be restored, or silos come, go or change their name, somebody has to say what
happened, with admit, leave or recover; the population's ledger keeps what was said."""

_ACTIONS: dict[str, tuple[str, str]] = {
    "show": ("the charges by run, and what was decided about silos", ""),
    "verify": (
        "compare all ledgers both ways, and with an anchor; exit code 5 where something is wrong",
        "Compares every ledger of the workdir with every other: no line edited or lost, and each charge in the population's ledger and in its silos'. It writes nothing.",
    ),
    "budget": ("what is left of the budgets", ""),
    "anchor": (
        "a signed digest of all ledgers, to be kept elsewhere",
        "Ledgers that are all in one hand can all be set back together. Give an anchor, and the public key, to somebody else; `verify --anchor` then tells.",
    ),
    "admit": (
        "say that a silo is new, or took over the charges of another name",
        "Needed where a silo appears while one that the population knows is gone, or where its ledger was lost. With --formerly the silo is charged what it lacks of that name's charges, which can only be too much.",
    ),
    "leave": (
        "say that a silo left for good",
        "A silo that joins later is then not taken for this one under a new name. The charges stay; if the silo comes back it has to bring its ledger.",
    ),
    "recover": (
        "charge the population again what silos' ledgers hold and its own lacks",
        "For a population's ledger that was lost and of which there is no backup. Restore the newest backup first if there is one. Charges that no silo's ledger holds cannot be recovered.",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """`tff-pipeline ledger`."""
    arguments = _ledger_parser().parse_args(argv)
    config = configuration.load(arguments.config, arguments.set)
    actions = {
        "show": lambda: _show(config),
        "verify": lambda: _verify(config, arguments),
        "budget": lambda: _budget(config),
        "anchor": lambda: _anchor(config, arguments),
        "admit": lambda: _decided(account.admit(config, arguments.silo, formerly=arguments.formerly)),
        "leave": lambda: _decided(account.leave(config, arguments.silo)),
        "recover": lambda: _decided(account.recover(config)),
    }
    result, lines = actions[arguments.action]()
    if arguments.json:
        print(json.dumps(result))
    elif lines:
        print("\n".join(lines))
    if result.get("problems"):
        raise PrivacyError("\n".join(result["problems"]))
    return 0


def _ledger_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tff-pipeline ledger", description=_LEDGER, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    parsers = {}
    for name, (summary, more) in _ACTIONS.items():
        parsers[name] = actions.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}. {more}")
        configuration.add_arguments(parsers[name])
    parsers["verify"].add_argument(
        "--anchor", metavar="FILE", help="also require that every ledger goes on from where this anchor saw it"
    )
    parsers["verify"].add_argument(
        "--key", metavar="FILE", help="the public key of whoever made the anchor, as you got it from them"
    )
    parsers["anchor"].add_argument("--out", metavar="FILE", help="write the anchor there, in place of printing it")
    parsers["anchor"].add_argument(
        "--key",
        metavar="FILE",
        help="the private key to sign with, made on first use with its public half beside it (default: anchor.key in the workdir; better where those who can write the ledgers cannot read it)",
    )
    parsers["admit"].add_argument("--silo", required=True, metavar="NAME", help="a silo of the configuration")
    parsers["admit"].add_argument(
        "--formerly",
        metavar="OLD",
        help="the name under which its clients were charged before; its own name where its ledger was lost",
    )
    parsers["leave"].add_argument("--silo", required=True, metavar="NAME", help="a silo that the configuration dropped")
    return parser


def _decided(sentence: str) -> tuple[dict[str, Any], list[str]]:
    return {"decided": sentence}, [sentence]


def _show(config: Config) -> tuple[dict[str, Any], list[str]]:
    population, _ = account.ledgers(config)[0]
    entries = population.entries()
    lines = [f"population {config.population}: {len(entries)} rounds charged ({population.path})"]
    charges = Counter((entry["run"], entry["draw"], canonical_json(entry["event"]).decode()) for entry in entries)
    for (run, draw, event), count in charges.items():
        times = [entry["time"] for entry in entries if (entry["run"], entry["draw"]) == (run, draw)]
        lines.append(f"  run {run}, draw {draw}: {count} rounds, {times[0]} to {times[-1]}, each {_plainly(event)}")
    record = Record(population)
    for silo, named in sorted(record.charged.items()):
        lines.append(f"  silo {silo}: named by {len(named)} charges, lines {named[0][0]} to {named[-1][0]}")
    if record.unnamed:
        lines.append(f"  {len(record.unnamed)} charges do not name their silos: they were made before ledgers did")
    decisions = [
        {"line": number, "time": line["time"], **line["decision"]}
        for number, line in enumerate(population.lines(), start=1)
        if "decision" in line
    ]
    lines += [f"  decided {decision['time']}, line {decision['line']}: {_decision(decision)}" for decision in decisions]
    doubts = [problem.text for problem in account.compared(config).problems]
    lines += [f"  not to be relied on: {doubt}" for doubt in doubts]
    return {
        "population": config.population,
        "path": str(population.path),
        "entries": list(entries),
        "decisions": decisions,
        "doubts": doubts,
    }, lines


def _decision(decision: dict[str, Any]) -> str:
    match decision["kind"]:
        case "admit" if "formerly" in decision:
            return f"silo {decision['silo']} took over the charges of {decision['formerly']}"
        case "admit":
            return f"silo {decision['silo']} is new"
        case "leave":
            return f"silo {decision['silo']} left"
        case _:
            return f"charges were recovered from the ledgers of {', '.join(decision['silos'])}"


def _verify(config: Config, arguments: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    if (arguments.anchor is None) != (arguments.key is None):
        raise ConfigError(
            "--anchor and --key: expected both or neither. Name the public key that you trust: the one that the anchor itself names proves nothing."
        )
    comparison = account.compared(config)
    problems = [problem.text for problem in comparison.problems]
    ledgers = _workdir_ledgers(config)
    if arguments.anchor is not None:
        path = Path(arguments.anchor)
        anchored = anchor.read(path, key=Path(arguments.key))
        if all(problem.kind != "damaged" for problem in comparison.problems):
            problems += anchor.set_back(anchored, ledgers, path=path)
    if problems:
        return {"sound": False, "problems": problems, "notes": comparison.notes}, []
    positions = [
        {
            "ledger": str(ledger.path),
            "population": None if ledger.silo else ledger.population,
            "silo": ledger.silo or None,
            "entries": len(ledger.lines()),
            "head": ledger.head,
        }
        for ledger in ledgers
    ]
    lines = [
        f"sound: {part['ledger']}, {part['entries']} lines, the last with hash {part['head']}" for part in positions
    ]
    lines += [f"note: {note}" for note in comparison.notes]
    if arguments.anchor is not None:
        lines.append(f"all that {arguments.anchor} saw is still there")
    else:
        lines.append(
            "Who can write to all of these files can set all of them back; to notice, keep an anchor elsewhere (`tff-pipeline ledger anchor`)."
        )
    return {"sound": True, "ledgers": positions, "notes": comparison.notes, "problems": []}, lines


def _workdir_ledgers(config: Config) -> list[Ledger]:
    """All ledgers of the workdir: the configuration's first, in its order."""
    own = [ledger for ledger, _ in account.ledgers(config)]
    paths = {ledger.path for ledger in own}
    populations, silos = account.workdir_ledgers(config)
    others = (*populations.values(), *silos.values())
    return [*own, *(ledger for ledger in others if ledger.path not in paths)]


def _anchor(config: Config, arguments: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    account.compared(config).require_sound()
    key = Path(arguments.key) if arguments.key else Workdir(config.workdir).root / "anchor.key"
    signed = anchor.make(_workdir_ledgers(config), population=config.population, key=key)
    if not arguments.out:
        return json.loads(signed), [signed.decode().rstrip("\n")]
    write_atomic(Path(arguments.out), signed)
    return {"anchor": arguments.out, "public_key": str(anchor.public_path(key))}, [
        f"anchor written to {arguments.out}; give it to somebody who cannot write to the ledgers, once with the public key {anchor.public_path(key)}"
    ]


def _budget(config: Config) -> tuple[dict[str, Any], list[str]]:
    delta = config.privacy.delta
    if delta is None:
        raise PrivacyError(
            f'{config.path}: there is no privacy.delta to state a budget at (mechanism = "{config.privacy.mechanism}"); set one with --set, together with a mechanism.'
        )
    account.compared(config).require_sound()
    try:
        plan, missing = plan_of(config), None
    except ArtifactError as error:
        plan, missing = None, str(error)
    budgets, lines = [], []
    for ledger, budget in account.ledgers(config):
        spent = account.spent(ledger, delta)
        left = None if plan is None or budget is None else _rounds_within(ledger, budget, plan)
        name = f"silo {ledger.silo}" if ledger.silo else f"population {ledger.population}"
        budgets.append(
            {
                "ledger": str(ledger.path),
                "silo": ledger.silo or None,
                "rounds": len(ledger.entries()),
                "epsilon": finite(spent),
                "budget_epsilon": budget,
                "rounds_left": left,
            }
        )
        limit = f"of a budget of {budget:g}" if budget is not None else "and no budget is set"
        room = "" if left is None else f"; {left} more rounds of this configuration fit"
        lines.append(
            f"{name}: {len(ledger.entries())} rounds charged, {together(spent, config.privacy.unit)} at delta {delta!r} {limit}{room}"
        )
    if missing:
        lines.append(f"How many rounds are left cannot be said: {missing}")
    return {"delta": delta, "ledgers": budgets, "missing": [missing] if missing else []}, lines


def _rounds_within(ledger: Ledger, budget: float, plan: PrivacyPlan) -> int:
    """How many new rounds of the plan fit what is left, counted up to ten thousand."""
    most = left = 0
    while left == most and most < 10_000:
        most = min(2 * most + 1, 10_000)
        left = max(0, ledger.rounds_left(budget, plan.stated_delta, planned=plan.round_event, rounds=most))
    return left


def _plainly(event: str) -> str:
    return str(accounting.event_of(json.loads(event)))
