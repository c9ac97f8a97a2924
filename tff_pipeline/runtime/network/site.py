"""The folder of a party: its keys and certificates, the roster, and files that leave stock FLARE nothing to do here.

    startup/rootCA.pem               the certificate of the consortium's authority
    startup/{client,server}.{crt,key} this party's certificate and private key for TLS, as FLARE names them
    identity.key                     a silo's Ed25519 private key, which signs what it says to the other silos
    roster.json                      who belongs to the consortium, signed
    local/authorization.json         FLARE's rights: none, for anybody
    local/resources.json             FLARE's components: none, and no class may be made

`tff-pipeline coordinator` and `silo` read the first four; the last two are for whoever starts FLARE's own programs on this
folder all the same: its defaults let an administrator send code and run shell commands, and send a site's logs to the server.
"""

import dataclasses
import datetime
import json
import stat
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from tff_pipeline.errors import ArtifactError, PipelineError
from tff_pipeline.runtime.network.roster import Roster, verified

_RIGHTS = (
    "submit_job",
    "clone_job",
    "manage_job",
    "download_job",
    "view",
    "operate",
    "shell_commands",
    "byoc",
    "server-predeployed-flwr",
)
# For every role, since the server says which role the submitter has.
AUTHORIZATION = {
    "format_version": "1.0",
    "permissions": {role: dict.fromkeys(_RIGHTS, "none") for role in ("project_admin", "org_admin", "lead", "member")},
}
RESOURCES = {
    "format_version": 2,
    "class_list_enforcement_mode": "enforce",
    "class_allow_list": [],
    "allow_log_streaming": False,
    "components": [],
}
AUTHORITY, ROSTER, IDENTITY_KEY = "startup/rootCA.pem", "roster.json", "identity.key"
_KNOWN = {"rootCA.pem", "client.crt", "client.key", "server.crt", "server.key"}
_WARNING_DAYS = 30


@dataclasses.dataclass(frozen=True)
class Credentials:
    """A party's certificate and private key, and the certificate of the consortium's authority: PEM files."""

    certificate: Path
    key: Path
    authority: Path


@dataclasses.dataclass(frozen=True)
class Site:
    """A party as its folder describes it.

    Attributes:
      name: the common name of its certificate: a silo's name, or the coordinator's host.
      roster: as it was when the folder was read.
    """

    folder: Path
    name: str
    credentials: Credentials
    roster: Roster

    @property
    def coordinator(self) -> str:
        """Host and port to dial."""
        return f"{self.roster.coordinator.host}:{self.roster.coordinator.port}"

    @property
    def coordinator_name(self) -> str:
        """The common name of the coordinator's certificate."""
        return self.roster.coordinator.host


def write_strict(folder: Path) -> None:
    """Writes the files under local/ that give FLARE's own programs nothing."""
    local = folder / "local"
    local.mkdir(parents=True, exist_ok=True)
    for name, content in (("authorization.json", AUTHORIZATION), ("resources.json", RESOURCES)):
        (local / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_silo(folder: Path) -> Site:
    """A silo's folder.

    Raises:
      PipelineError: if a file is missing or wrong, or the roster does not admit this silo.
    """
    site = _read(folder, "client")
    if not site.roster.admits(site.name):
        raise ArtifactError(
            f"{folder}: the roster (serial number {site.roster.serial}) does not admit the silo {site.name!r}; expected it there and not revoked. Ask the consortium's authority for the newest roster."
        )
    return site


def read_coordinator(folder: Path) -> Site:
    """The coordinator's folder.

    Raises:
      PipelineError: if a file is missing or wrong, or the certificate is not the coordinator's.
    """
    site = _read(folder, "server")
    if site.name != site.roster.coordinator.host:
        raise ArtifactError(
            f"{folder}: the certificate is for {site.name!r}; expected the coordinator's host on the roster, {site.roster.coordinator.host!r}."
        )
    return site


def check_site(folder: Path, now: datetime.datetime | None = None) -> list[str]:
    """What is wrong with a party's folder, a sentence each that ends with what to do; empty if nothing is."""
    return list(_faults(folder, now or datetime.datetime.now(datetime.UTC)))


def read_certificate(path: Path) -> x509.Certificate:
    """The certificate in a PEM file.

    Raises:
      ArtifactError: if there is none.
    """
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{path}: no certificate can be read ({type(error).__name__}); expected a PEM file. `tff-pipeline provision install` writes it."
        ) from None


def common_name(certificate: x509.Certificate) -> str:
    """The name that a certificate is for."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def _read(folder: Path, kind: str) -> Site:
    startup = folder / "startup"
    credentials = Credentials(startup / f"{kind}.crt", startup / f"{kind}.key", folder / AUTHORITY)
    authority, path = read_certificate(credentials.authority), folder / ROSTER
    certificate = read_certificate(credentials.certificate)
    try:
        roster = verified(path.read_bytes(), authority, str(path))
    except OSError as error:
        raise ArtifactError(
            f"{path}: cannot be read ({error.strerror}); expected the consortium's roster. `tff-pipeline provision install` puts it there."
        ) from None
    return Site(folder, common_name(certificate), credentials, roster)


def _faults(folder: Path, now: datetime.datetime) -> Iterator[str]:
    kind = "server" if (folder / "startup" / "server.crt").exists() else "client"
    try:
        site = read_coordinator(folder) if kind == "server" else read_silo(folder)
    except PipelineError as error:
        yield str(error)
        return
    yield from _certificate_faults(site, now)
    secrets = [site.credentials.key, *([folder / IDENTITY_KEY] if kind == "client" else [])]
    for path in secrets:
        yield from _secret_faults(path)
    for name, expected in (("authorization.json", AUTHORIZATION), ("resources.json", RESOURCES)):
        path = folder / "local" / name
        if _json(path) != expected:
            yield f"{path}: not the strict file, which gives FLARE's own programs no right, class or component; expected it unchanged. `tff-pipeline provision strict --site {folder}` writes it again."
    for path in sorted([*folder.glob("startup/*"), *folder.glob("local/*"), *folder.glob("custom")]):
        if path.name not in _KNOWN | {"authorization.json", "resources.json"}:
            yield f"{path}: this file has no business here, since FLARE's own programs would read or run it; expected only keys, certificates and the two strict files. Remove it."


def _certificate_faults(site: Site, now: datetime.datetime) -> Iterator[str]:
    path, certificate = site.credentials.certificate, read_certificate(site.credentials.certificate)
    try:
        certificate.verify_directly_issued_by(read_certificate(site.credentials.authority))
    except (ValueError, TypeError, InvalidSignature):
        yield f"{path}: not issued by the authority in {site.credentials.authority}; expected both from one consortium. Ask the authority for both again."
    days = (certificate.not_valid_after_utc - now).days
    if now < certificate.not_valid_before_utc:
        yield f"{path}: valid only from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC; expected it to be valid now. Check this machine's clock."
    elif days < _WARNING_DAYS:
        left = f"expires in {days} days" if days >= 0 else "has expired"
        yield f"{path}: {left} ({certificate.not_valid_after_utc:%Y-%m-%d}); expected at least {_WARNING_DAYS} days. Renew it: `tff-pipeline provision request --renew`."
    try:
        key = load_pem_private_key(site.credentials.key.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        yield f"{site.credentials.key}: no private key can be read ({type(error).__name__}); expected the one of {path.name}."
        return
    spki = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    if key.public_key().public_bytes(*spki) != certificate.public_key().public_bytes(*spki):
        yield f"{site.credentials.key}: not the key of {path.name}; expected the pair that was made together. Restore it, or renew the certificate."


def _secret_faults(path: Path) -> Iterator[str]:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        yield f"{path}: not there; expected this party's private key. It exists nowhere else: restore it from this party's backup, or join under a new name."
        return
    if mode & 0o077:
        yield f"{path}: others may read it (mode {mode:04o}); expected 0600. `chmod 600 {path}`, and renew it if others had access."


def _json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
