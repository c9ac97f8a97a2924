"""`tff-pipeline provision`: makes a consortium, and admits, renews and revokes its silos. docs/consortium.md shows every step."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from tff_pipeline.artifacts import write_atomic
from tff_pipeline.errors import ArtifactError, ConfigError

_PROVISION = """Makes a consortium: companies that train together, each on machines of its own.

One company keeps the authority, a folder whose key signs certificates and the roster, the list of who belongs to the
consortium. `create` makes it, with the coordinator's folder. Each company makes its silo's keys with `request`, on its own
machine, which they never leave; it sends the request, and gets an approval back, which it installs. When silos come or go
there is a newer roster, which everybody installs; nobody goes back to an older one."""

_ACTIONS = {
    "create": (
        "make a consortium's authority and the coordinator's folder from one TOML file",
        "With --all-here also makes every silo's folder, for demonstrations: all private keys are then on this machine.",
    ),
    "request": (
        "at a silo: make its keys, and the request to send to the authority",
        "Prints the request's fingerprint, which you read out to the authority's people. With --renew it asks for a new certificate for a new key; the silo's identity key stays.",
    ),
    "approve": (
        "at the authority: check a request, and write the approval to send back",
        "A silo's first request needs the fingerprint that its people read out to you; a renewal is signed with the key that is on the roster.",
    ),
    "install": (
        "at a silo or the coordinator: install an approval, or a newer roster",
        "The first approval needs the fingerprint of the authority's certificate, as its people read it out to you.",
    ),
    "add": ("at the authority: expect one more silo, which can then make its request", ""),
    "revoke": (
        "at the authority: revoke a silo for good, and write the newer roster",
        "Install the roster at the coordinator and at every silo: from then on they do not admit it. Its name is not given again.",
    ),
    "renew-coordinator": ("at the authority: a new key and certificate in the coordinator's folder", ""),
    "strict": (
        "write the files again that leave FLARE's own programs nothing to do in a site's folder",
        "`tff-pipeline doctor --site FOLDER` says whether they are as they should be.",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """`tff-pipeline provision`."""
    arguments = _parser().parse_args(argv)
    actions = {
        "create": _create,
        "request": _request,
        "approve": _approve,
        "install": _install,
        "add": _add,
        "revoke": _revoke,
        "renew-coordinator": _renew_coordinator,
        "strict": _strict,
    }
    result, lines = actions[arguments.action](arguments)
    print(json.dumps(result) if arguments.json else "\n".join(lines))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tff-pipeline provision", description=_PROVISION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    parsers = {}
    for name, (summary, more) in _ACTIONS.items():
        parsers[name] = actions.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}. {more}")
        parsers[name].add_argument("--json", action="store_true", help="print the result as JSON")
    for name in ("approve", "add", "revoke", "renew-coordinator"):
        _folder(parsers[name], "--authority", "the authority's folder")
    for name in ("request", "install", "renew-coordinator", "strict"):
        _folder(parsers[name], "--site", "the party's folder")
    for name in ("create", "approve", "renew-coordinator"):
        parsers[name].add_argument(
            "--days",
            type=int,
            default=365,
            metavar="N",
            help="for how long a certificate is good (default: %(default)s)",
        )
    for name in ("approve", "install"):
        parsers[name].add_argument("file", metavar="FILE", help=f"what to {name}")
        parsers[name].add_argument("--fingerprint", metavar="DIGITS", help="its first 32 digits or more, as read out")
    for name in ("request", "approve", "revoke"):
        parsers[name].add_argument("--out", metavar="FILE", help="where to write it (default: a name of its own, here)")
    create = parsers["create"]
    create.add_argument("--consortium", required=True, metavar="FILE", help="the consortium's TOML file")
    create.add_argument("--out", required=True, metavar="FOLDER", help="a folder for authority/ and coordinator/")
    create.add_argument("--all-here", action="store_true", help="also make silos/NAME/ for every silo (demonstrations)")
    for name in ("request", "add", "revoke"):
        parsers[name].add_argument("--silo", required=name != "request", metavar="NAME", help="the silo's name")
    for name in ("request", "add"):
        parsers[name].add_argument("--organization", metavar="NAME", help="the company that operates the silo")
    parsers["request"].add_argument(
        "--renew", action="store_true", help="renew the certificate of a silo that is admitted"
    )
    parsers["add"].add_argument("--threshold", type=int, metavar="N", help="silos without which no sum is unmasked")
    parsers["revoke"].add_argument("--reason", required=True, metavar="TEXT", help="why; everybody will read it")
    return parser


def _folder(parser: argparse.ArgumentParser, option: str, text: str) -> None:
    parser.add_argument(option, required=True, type=Path, metavar="FOLDER", help=text)


# The modules that do the work import FLARE, which --help does not wait for.

_Result = tuple[dict[str, object], list[str]]


def _create(arguments: argparse.Namespace) -> _Result:
    from tff_pipeline.runtime.network import provisioning
    from tff_pipeline.runtime.network.definition import read_definition

    definition = read_definition(Path(arguments.consortium))
    out = Path(arguments.out)
    authority = provisioning.Authority.create(definition, out / "authority")
    for silo in definition.silos if arguments.all_here else ():
        site = out / "silos" / silo.name
        request, fingerprint = provisioning.request(site, silo.name, silo.organization)
        _, approval = authority.approve(request, fingerprint=fingerprint, days=arguments.days)
        provisioning.install(site, approval, fingerprint=authority.fingerprint)
    for silo in definition.silos if arguments.all_here else ():  # who came first has a roster without who came later
        provisioning.install(out / "silos" / silo.name, authority.signed_roster(), fingerprint=None)
    authority.coordinator_site(out / "coordinator", days=arguments.days)
    lines = [
        f"consortium {definition.name}: {len(definition.silos)} silos, threshold {definition.threshold}",
        f"authority    {out / 'authority'}   keep it where only its people are; its certificate's fingerprint, to read out, is",
        f"             {authority.fingerprint}",
        f"coordinator  {out / 'coordinator'}   for {definition.coordinator.host}, port {definition.coordinator.port}",
    ]
    if arguments.all_here:
        lines.append(f"silos        {out / 'silos'}   all private keys are on this machine: for demonstrations only")
    else:
        names = ", ".join(silo.name for silo in definition.silos)
        lines.append(f"next         {names}: `tff-pipeline provision request`, each on its own machine")
    return {"consortium": definition.name, "fingerprint": authority.fingerprint, "folder": str(out)}, lines


def _request(arguments: argparse.Namespace) -> _Result:
    from tff_pipeline.runtime.network import provisioning

    if arguments.renew:
        document, fingerprint = provisioning.renewal(arguments.site)
    elif arguments.silo and arguments.organization:
        document, fingerprint = provisioning.request(arguments.site, arguments.silo, arguments.organization)
    else:
        raise ConfigError(
            "provision request: --silo and --organization are missing; expected both, as the consortium's file names this silo, or --renew."
        )
    path = Path(arguments.out or f"{arguments.silo or arguments.site.name}.request.json")
    write_atomic(path, document)
    lines = [
        f"{path}: send it to the consortium's authority; it holds no secret.",
        f"Its fingerprint, to read out to them: {fingerprint}",
    ]
    return {"request": str(path), "fingerprint": fingerprint}, lines[: 1 if arguments.renew else 2]


def _approve(arguments: argparse.Namespace) -> _Result:
    from tff_pipeline.runtime.network import provisioning

    authority = provisioning.Authority(arguments.authority)
    name, approval = authority.approve(_read(arguments.file), fingerprint=arguments.fingerprint, days=arguments.days)
    path = Path(arguments.out or f"{name}.approval.json")
    write_atomic(path, approval)
    roster = arguments.authority / "roster.json"
    lines = [
        f"{path}: send it back to {name}; it holds no secret.",
        f"The authority's fingerprint, to read out to them: {authority.fingerprint}",
        f"{roster}: serial number {authority.roster.serial}; install it at the coordinator and at every other silo.",
    ]
    return {"silo": name, "approval": str(path), "fingerprint": authority.fingerprint}, lines


def _install(arguments: argparse.Namespace) -> _Result:
    from tff_pipeline.runtime.network import provisioning

    roster = provisioning.install(arguments.site, _read(arguments.file), fingerprint=arguments.fingerprint)
    silos = [member.name for member in roster.members if not member.revoked]
    line = (
        f"{arguments.site}: roster {roster.serial} of {roster.consortium}; silos admitted: {', '.join(silos) or 'none'}"
    )
    return {"serial": roster.serial, "silos": silos}, [line]


def _add(arguments: argparse.Namespace) -> _Result:
    from tff_pipeline.runtime.network import provisioning
    from tff_pipeline.runtime.network.definition import SiloDefinition

    authority = provisioning.Authority(arguments.authority)
    authority.add(SiloDefinition(arguments.silo, arguments.organization or ""), arguments.threshold)
    line = f"{arguments.silo} of {arguments.organization} is expected, threshold {authority.roster.threshold}: they make their request"
    return {"silo": arguments.silo, "threshold": authority.roster.threshold}, [line]


def _revoke(arguments: argparse.Namespace) -> _Result:
    from tff_pipeline.runtime.network import provisioning

    authority = provisioning.Authority(arguments.authority)
    authority.revoke(arguments.silo, arguments.reason)
    path = Path(arguments.out or arguments.authority / "roster.json")
    if arguments.out:
        write_atomic(path, authority.signed_roster())
    line = f"{path}: serial number {authority.roster.serial}, without {arguments.silo}; install it at the coordinator and at every silo."
    return {"roster": str(path), "serial": authority.roster.serial}, [line]


def _renew_coordinator(arguments: argparse.Namespace) -> _Result:
    from tff_pipeline.runtime.network import provisioning

    authority = provisioning.Authority(arguments.authority)
    authority.coordinator_site(arguments.site, days=arguments.days)
    return {"site": str(arguments.site)}, [f"{arguments.site}: a new key and certificate; start the coordinator again."]


def _strict(arguments: argparse.Namespace) -> _Result:
    from tff_pipeline.runtime.network.site import write_strict

    write_strict(arguments.site)
    return {"site": str(arguments.site)}, [f"{arguments.site / 'local'}: FLARE's own programs have no rights here."]


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror}); expected the file that was sent.") from None
