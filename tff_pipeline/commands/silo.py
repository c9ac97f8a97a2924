"""`tff-pipeline silo`: one silo of a consortium takes part in runs, where its text is."""

import argparse
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tff_pipeline import config as configuration
from tff_pipeline.artifacts import Workdir
from tff_pipeline.commands.signals import stopped_by_signals
from tff_pipeline.config import SiloFile
from tff_pipeline.errors import ConfigError
from tff_pipeline.privacy import charges
from tff_pipeline.privacy.ledger import Ledger
from tff_pipeline.progress import Progress
from tff_pipeline.rounding import rounded_up

_DESCRIPTION = """One silo of a consortium. Its text, its keys, its ledger and its policy stay here.

  tff-pipeline prepare --config silo.toml            raw text to a snapshot, once and after every change
  tff-pipeline silo run --config silo.toml           connect to the coordinator, and take part until told to stop
  tff-pipeline silo approve --config silo.toml       show what a run computes and promises, and let it run here
  tff-pipeline silo status --config silo.toml        what is approved, what waits, what was charged

The silo opens no port: it dials the coordinator, again and again if need be. It takes part in nothing that its data steward
has not approved."""


def main(argv: Sequence[str] | None = None) -> int:
    """`tff-pipeline silo`."""
    arguments = _parser().parse_args(argv)
    own = configuration.read_silo(Path(arguments.config))
    if arguments.action == "run":
        return _run(own)
    if arguments.action == "approve":
        return _approve(own, arguments.process, as_json=arguments.json)
    return _status(own, as_json=arguments.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tff-pipeline silo", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, about in (
        ("run", "connect to the coordinator and take part in runs, until Ctrl-C or SIGTERM"),
        ("approve", "show the process that waits for approval, and with --process approve it"),
        ("status", "what is approved, what waits for approval, and what was charged"),
    ):
        action = actions.add_parser(name, help=about, description=about)
        action.add_argument(
            "--config", required=True, metavar="FILE", help="the silo's own file; docs/consortium.md explains every key"
        )
        action.add_argument("--json", action="store_true", help="print the result as JSON")
        if name == "approve":
            action.add_argument(
                "--process", metavar="DIGEST", default="", help="approve this process, the one that was shown"
            )
    return parser


def _run(own: SiloFile) -> int:
    from tff_pipeline.federation.silo import Identity, SiloParty
    from tff_pipeline.runtime.network.flare_silo import FlareSilo
    from tff_pipeline.runtime.network.provisioning import identity_key
    from tff_pipeline.runtime.network.site import read_silo

    progress, config = Progress(), configuration.silo_config(own)
    site = read_silo(Path(own.site))
    if site.name != own.name:
        raise ConfigError(
            f"{own.path}: name is {own.name!r}, and the certificate in {own.site} is for {site.name!r}; expected the same."
        )
    keys = site.roster.identity_keys()
    names = [silo.name for silo in config.silos]
    if strangers := [name for name in names if name not in keys]:
        raise ConfigError(
            f"{config.path}: silos names {', '.join(strangers)}, which the roster in {own.site} does not admit; expected silos of the consortium: {', '.join(sorted(keys))}."
        )
    identity = Identity(own.name, identity_key(Path(own.site)), {name: keys[name] for name in names})
    party = SiloParty(config, identity, own.policy, progress)

    def report(event: str, **fields: object) -> None:
        progress.event(event, **fields)

    try:
        with (
            stopped_by_signals(),
            FlareSilo(own.name, site.coordinator, site.coordinator_name, site.credentials, party, report=report),
        ):
            progress.event("silo", f"silo {own.name} takes part; the coordinator is {site.coordinator}", silo=own.name)
            threading.Event().wait()
    except KeyboardInterrupt:
        progress.event("stopped", f"silo {own.name} takes part no more; nothing is lost", silo=own.name)
    finally:
        party.close()
    return 0


def _approve(own: SiloFile, process: str, *, as_json: bool) -> int:
    from tff_pipeline.federation.approvals import Approvals

    approvals = Approvals(Path(own.workdir))
    pending = approvals.pending()
    if process:
        approvals.approve(process)
        print(json.dumps({"approved": process}) if as_json else f"process {process} is approved: it may run here")
        return 0
    if as_json:
        print(json.dumps({"pending": pending}))
        return 0
    if pending is None:
        print("nothing waits for approval; a run asks for it when the coordinator starts")
        return 0
    print(f"process {pending['process']}")
    print(f"asked {pending['asked']}, as run {pending['run']}, of silos {', '.join(pending['silos'])}")
    print(f"a sum is over at least {pending['threshold']} silos; labels: {', '.join(pending['labels'])}")
    for sentence in pending["statement"]:
        print(f"* {sentence}")
    print(f"to let it run here: tff-pipeline silo approve --config {own.path} --process {pending['process']}")
    return 0


def _status(own: SiloFile, *, as_json: bool) -> int:
    from tff_pipeline.federation.approvals import Approvals

    config, approvals = configuration.silo_config(own), Approvals(Path(own.workdir))
    ledger = Ledger(
        Workdir(config.workdir).silo(own.name) / "ledger.jsonl",
        config.population,
        silo=own.name,
        unit=config.privacy.unit,
    )
    spent = charges.spent(ledger, config.privacy.delta)
    pending = approvals.pending()
    said: dict[str, Any] = {
        "silo": own.name,
        "approved": approvals.entries(),
        "pending": None if pending is None else pending["process"],
        "rounds_charged": len(ledger.entries()),
        "epsilon": None if spent is None else rounded_up(spent),
        "delta": config.privacy.delta,
        "budget_epsilon": own.policy.budget_epsilon,
    }
    if as_json:
        print(json.dumps(said, default=float))
        return 0
    print(f"silo {own.name}: {len(said['approved'])} processes are approved; waiting: {said['pending'] or 'none'}")
    budget = "no budget is set" if own.policy.budget_epsilon is None else f"the budget is {own.policy.budget_epsilon:g}"
    print(
        f"{said['rounds_charged']} rounds were charged, together epsilon {said['epsilon']} at delta {config.privacy.delta}; {budget}"
    )
    return 0
