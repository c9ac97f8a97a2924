"""`tff-pipeline coordinator`: one run of a consortium, from the coordinator's side."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from tff_pipeline import config as configuration
from tff_pipeline.artifacts import read_json
from tff_pipeline.commands.signals import stopped_by_signals
from tff_pipeline.errors import ConfigError
from tff_pipeline.progress import Progress

_DESCRIPTION = """Trains one model with the silos of a consortium, each of which runs `tff-pipeline silo` where its text is.

Waits until every silo of the process is connected and has agreed, then runs the rounds; a silo that drops out of a round is
left out of it, as long as enough stay. Killed at any moment, the same command goes on where it stopped. The trained run is in
the coordinator's work directory, where `tff-pipeline export` finds it."""


def main(argv: Sequence[str] | None = None) -> int:
    """`tff-pipeline coordinator`."""
    parser = argparse.ArgumentParser(
        prog="tff-pipeline coordinator",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="the coordinator's own file; docs/consortium.md explains every key",
    )
    parser.add_argument(
        "--loopback-only",
        action="store_true",
        help="listen at this machine's loopback address only, for demonstrations",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    arguments = parser.parse_args(argv)
    progress = Progress()
    with stopped_by_signals():
        run = coordinate(Path(arguments.config), loopback_only=arguments.loopback_only, progress=progress)
    facts = read_json(run / "run.json")
    if arguments.json:
        print(
            json.dumps({"run": run.name, "path": str(run), "rounds": facts["rounds"], "guarantee": facts["guarantee"]})
        )
    else:
        print(f"run {run.name}: {facts['rounds']} rounds, in {run}")
        print(facts["guarantee"]["statement"][0])
    return 0


def coordinate(path: Path, *, loopback_only: bool, progress: Progress) -> Path:
    """Runs what the coordinator's file says; returns the run's folder.

    Raises:
      ConfigError: if the file, the process or the roster do not fit each other.
      PipelineError: as of `federation.coordinator.Coordinator.run`.
    """
    from tff_pipeline.federation.coordinator import Consortium, Coordinator
    from tff_pipeline.runtime.network.flare import FlareLink
    from tff_pipeline.runtime.network.roster import RosterFile
    from tff_pipeline.runtime.network.site import ROSTER, read_certificate, read_coordinator

    own = configuration.read_coordinator(path)
    config = configuration.coordinator_config(own)
    site = read_coordinator(Path(own.site))
    keys = site.roster.identity_keys()
    names = [silo.name for silo in config.silos]
    if strangers := [name for name in names if name not in keys]:
        raise ConfigError(
            f"{config.path}: silos names {', '.join(strangers)}, which the roster in {own.site} does not admit; expected silos of the consortium: {', '.join(sorted(keys))}."
        )
    roster = RosterFile(Path(own.site) / ROSTER, read_certificate(site.credentials.authority), progress.event)
    who = Consortium({name: keys[name] for name in names}, own.threshold)

    def report(event: str, **fields: object) -> None:
        progress.event(event, **fields)

    with FlareLink(
        site.roster.coordinator.port,
        site.credentials,
        lambda name: roster.current().admits(name),
        report=report,
        loopback_only=loopback_only,
    ) as link:
        progress.event("listening", f"waits for silos at port {site.roster.coordinator.port}", silos=names)
        return Coordinator(config, who, link, own.patience, progress).run()
