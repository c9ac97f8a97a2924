"""What makes a consortium, step by step: the authority's part and the silo's part, which exchange three files.

    silo       request      its keys, made where they stay; the request with their public halves     -> request
    authority  approve      the certificate, and the roster with the silo on it                      -> approval
    silo       install      the certificate, the authority's own, and the roster

The first request, and the authority's certificate at the first installation, are trusted because people compare fingerprints
by another way, say by telephone. Later ones are signed by keys that are known.
"""

import hashlib
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from tff_pipeline.artifacts import write_atomic
from tff_pipeline.errors import ArtifactError, ConfigError, PrivacyError
from tff_pipeline.runtime.network import certificates
from tff_pipeline.runtime.network.definition import Definition, SiloDefinition, require_sound
from tff_pipeline.runtime.network.roster import Coordinator, Member, Roster, require_not_older, signed, verified
from tff_pipeline.runtime.network.site import (
    AUTHORITY,
    IDENTITY_KEY,
    ROSTER,
    common_name,
    read_certificate,
    read_silo,
    write_strict,
)

_SIGNS_REQUEST = b"tff-pipeline request 1\0"
_NEW_KEY = "startup/client.key.new"
_LEAST_DIGITS = 32  # of a fingerprint that somebody reads out
_SECRET = 0o600
_Document = TypeVar("_Document")


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a silo sends to the authority: its request for a certificate, and its identity key, which signed it."""

    csr: str
    identity_key: str
    signature: str


class Approval(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the authority sends back: two certificates and the signed roster."""

    certificate: str
    authority: str
    roster: str


class Authority:
    """The consortium's authority: a folder that whoever runs the consortium keeps, best on a machine of its own."""

    def __init__(self, folder: Path):
        self._folder = folder
        self.certificate = read_certificate(folder / "rootCA.pem")
        self._key = certificates.authority_key(str(folder / "rootCA.key"))
        self._definition = msgspec.json.decode((folder / "consortium.json").read_bytes(), type=Definition)
        path = folder / ROSTER
        self.roster = verified(path.read_bytes(), self.certificate, str(path))

    @classmethod
    def create(cls, definition: Definition, folder: Path) -> "Authority":
        """A new authority, whose roster is empty.

        Raises:
          ConfigError: if the folder is there already.
        """
        if folder.exists():
            raise ConfigError(
                f"{folder}: there already; expected a new folder. A consortium has one authority: use its `provision` actions, or choose another folder for a new consortium."
            )
        folder.mkdir(parents=True, mode=0o700)
        key, certificate = certificates.make_authority(definition.name)
        write_atomic(folder / "rootCA.key", key, mode=_SECRET)
        write_atomic(folder / "rootCA.pem", certificate)
        write_atomic(folder / "consortium.json", msgspec.json.encode(definition))
        coordinator = Coordinator(
            definition.coordinator.host, definition.coordinator.port, definition.coordinator.organization
        )
        roster = Roster(definition.name, 1, definition.protocol, definition.threshold, coordinator, ())
        write_atomic(folder / ROSTER, signed(roster, certificates.authority_key(str(folder / "rootCA.key"))))
        return cls(folder)

    @property
    def fingerprint(self) -> str:
        """Of the authority's certificate: what silos compare before they first trust it."""
        return self.certificate.fingerprint(SHA256()).hex()

    def coordinator_site(self, folder: Path, *, days: int) -> None:
        """Makes the coordinator's folder, with its keys, or renews its certificate."""
        coordinator = self.roster.coordinator
        (folder / "startup").mkdir(parents=True, exist_ok=True, mode=0o700)
        key, request = certificates.make_request(coordinator.host, coordinator.organization)
        _, _, certificate = certificates.issue(request, self.certificate, self._key, days=days, server=True)
        write_atomic(folder / "startup" / "server.key", key, mode=_SECRET)
        write_atomic(folder / "startup" / "server.crt", certificate)
        write_atomic(folder / AUTHORITY, self.certificate.public_bytes(Encoding.PEM))
        write_atomic(folder / ROSTER, self.signed_roster())
        write_strict(folder)

    def approve(self, document: bytes, *, fingerprint: str | None, days: int) -> tuple[str, bytes]:
        """The name in the request `document`, and the approval to send back.

        Args:
          fingerprint: of the request, as the silo's people say it; needed the first time, not where a silo that is on the
            roster renews its certificate.

        Raises:
          PrivacyError: if the request is not signed, not expected, not the one of that fingerprint, or the name is taken or
            was revoked.
        """
        request = _decoded(document, Request, "the request")
        _verify_request(request)
        name, organization, certificate = certificates.issue(
            request.csr.encode(), self.certificate, self._key, days=days
        )
        known = next((member for member in self.roster.members if member.name == name), None)
        if known is None:
            self._require_expected(name, organization)
            _require_fingerprint(fingerprint, hashlib.sha256(document).hexdigest(), "the request")
            self._publish(members=(*self.roster.members, Member(name, organization, request.identity_key)))
        elif known.revoked or (known.identity_key, known.organization) != (request.identity_key, organization):
            why = "was revoked" if known.revoked else "has another identity key or organization"
            raise PrivacyError(
                f"silo {name}: on the roster this silo {why}; expected the silo itself, with the key that it joined with. Who lost that key joins under a new name."
            )
        approval = Approval(
            certificate.decode(),
            self.certificate.public_bytes(Encoding.PEM).decode(),
            self.signed_roster().decode(),
        )
        return name, msgspec.json.encode(approval)

    def add(self, silo: SiloDefinition, threshold: int | None) -> None:
        """Expects one more silo, which may then ask for its certificate.

        Raises:
          ConfigError: if the name is taken, or the threshold is not above half of the silos.
        """
        changed = msgspec.structs.replace(
            self._definition,
            silos=(*self._definition.silos, silo),
            threshold=self._definition.threshold if threshold is None else threshold,
        )
        require_sound(changed, str(self._folder / "consortium.json"))
        write_atomic(self._folder / "consortium.json", msgspec.json.encode(changed))
        self._definition = changed
        if changed.threshold != self.roster.threshold:
            self._publish(threshold=changed.threshold)

    def revoke(self, name: str, reason: str) -> None:
        """Marks a silo as revoked on the roster, for good.

        Raises:
          ConfigError: if the roster does not admit it, or no reason is given.
        """
        if not self.roster.admits(name) or not reason.strip():
            names = ", ".join(member.name for member in self.roster.members if not member.revoked)
            raise ConfigError(
                f"{name!r} cannot be revoked for the reason {reason!r}; expected one of the silos that the roster admits ({names or 'none'}), and a reason, which all silos will read."
            )
        self._publish(
            members=tuple(
                msgspec.structs.replace(member, revoked=reason) if member.name == name else member
                for member in self.roster.members
            )
        )

    def signed_roster(self) -> bytes:
        """The roster as everybody installs it."""
        return signed(self.roster, self._key)

    def _publish(self, **changes: object) -> None:
        roster = msgspec.structs.replace(self.roster, serial=self.roster.serial + 1, **changes)
        write_atomic(self._folder / ROSTER, signed(roster, self._key))
        self.roster = roster

    def _require_expected(self, name: str, organization: str) -> None:
        if SiloDefinition(name, organization) not in self._definition.silos:
            expected = ", ".join(f"{silo.name} of {silo.organization}" for silo in self._definition.silos)
            raise PrivacyError(
                f"a request of the silo {name!r} of {organization!r}; expected one of {expected}. `tff-pipeline provision add` expects one more."
            )


def request(folder: Path, name: str, organization: str) -> tuple[bytes, str]:
    """Makes a silo's keys in its folder; the request to send to the authority, and its fingerprint to read out.

    Raises:
      ConfigError: if the folder has keys already.
    """
    identity = folder / IDENTITY_KEY
    if identity.exists():
        raise ConfigError(
            f"{identity}: there already; expected a folder without keys. To renew this silo's certificate, use --renew."
        )
    (folder / "startup").mkdir(parents=True, exist_ok=True, mode=0o700)
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_atomic(identity, pem, mode=_SECRET)
    write_strict(folder)
    return _request(folder, key, name, organization)


def renewal(folder: Path) -> tuple[bytes, str]:
    """Makes a new TLS key in a silo's folder, beside the one in use, and the request for its certificate.

    Raises:
      ArtifactError: if the folder is not that of a silo on the roster.
    """
    site = read_silo(folder)
    member = next(member for member in site.roster.members if member.name == site.name)
    return _request(folder, identity_key(folder), member.name, member.organization)


def install(folder: Path, document: bytes, *, fingerprint: str | None) -> Roster:
    """Installs an approval, or a newer roster, in a silo's or the coordinator's folder.

    Args:
      fingerprint: of the authority's certificate, as its people say it; needed the first time.

    Raises:
      PrivacyError: if it is not signed by this consortium's authority, not for this silo's keys, or older than what is there.
    """
    path = folder / AUTHORITY
    if not _is_approval(document):
        return _install_roster(folder, document, read_certificate(path))
    approval = _decoded(document, Approval, "the approval")
    try:
        authority = x509.load_pem_x509_certificate(approval.authority.encode())
        certificate = x509.load_pem_x509_certificate(approval.certificate.encode())
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        raise PrivacyError(
            "the approval: its certificate is not issued by its authority; expected the file that `tff-pipeline provision approve` wrote. Ask for it again."
        ) from None
    if not path.exists():
        _require_fingerprint(fingerprint, authority.fingerprint(SHA256()).hex(), "the authority's certificate")
    elif read_certificate(path) != authority:
        raise PrivacyError(
            f"the approval is of another authority than {path}; expected this consortium's own. Nothing was installed."
        )
    new_key, key_in_use = folder / _NEW_KEY, folder / "startup" / "client.key"
    keys = [path for path in (new_key, key_in_use) if path.exists()]  # the second, if this was interrupted before
    if not any(_public(load_pem_private_key(path.read_bytes(), None)) == _public(certificate) for path in keys):
        raise PrivacyError(
            f"the approval's certificate is not for the key in {new_key}; expected the answer to this folder's newest request. Make a new request, and install its approval."
        )
    roster = verified(approval.roster.encode(), authority, "the approval")
    name, own = common_name(certificate), _public(identity_key(folder))
    if roster.identity_keys().get(name) != own:
        raise PrivacyError(
            f"the approval's roster does not name this silo's identity key under {name!r}; expected the key in {folder / IDENTITY_KEY}. Nothing was installed."
        )
    write_atomic(path, approval.authority.encode())
    _install_roster(folder, approval.roster.encode(), authority)
    if new_key.exists():
        new_key.replace(key_in_use)
    write_atomic(folder / "startup" / "client.crt", approval.certificate.encode())
    return roster


def identity_key(folder: Path) -> Ed25519PrivateKey:
    """A silo's own identity key.

    Raises:
      ArtifactError: if there is none.
    """
    try:
        key = load_pem_private_key((folder / IDENTITY_KEY).read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise ArtifactError(
            f"{folder / IDENTITY_KEY}: no private key can be read ({type(error).__name__}); expected the one that `tff-pipeline provision request` made."
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ArtifactError(f"{folder / IDENTITY_KEY}: not an Ed25519 key; expected the one that was made here.")
    return key


def _is_approval(document: bytes) -> bool:
    try:
        content = msgspec.json.decode(document)
    except msgspec.DecodeError:
        return False
    return isinstance(content, dict) and "certificate" in content


def _install_roster(folder: Path, document: bytes, authority: x509.Certificate) -> Roster:
    path = folder / ROSTER
    roster = verified(document, authority, "the roster")
    if path.exists():
        require_not_older(roster, verified(path.read_bytes(), authority, str(path)), "the roster")
    write_atomic(path, document)
    return roster


def _request(folder: Path, key: Ed25519PrivateKey, name: str, organization: str) -> tuple[bytes, str]:
    tls_key, csr = certificates.make_request(name, organization)
    write_atomic(folder / _NEW_KEY, tls_key, mode=_SECRET)
    signature = key.sign(_SIGNS_REQUEST + csr)
    document = msgspec.json.encode(Request(csr.decode(), _public(key).hex(), signature.hex()))
    return document, hashlib.sha256(document).hexdigest()


def _verify_request(request: Request) -> None:
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(request.identity_key))
        key.verify(bytes.fromhex(request.signature), _SIGNS_REQUEST + request.csr.encode())
    except (ValueError, InvalidSignature):
        raise PrivacyError(
            "the request is not signed with its own identity key; expected the file that `tff-pipeline provision request` wrote, unchanged. Ask the silo for it again."
        ) from None


def _require_fingerprint(said: str | None, actual: str, what: str) -> None:
    digits = "".join((said or "").lower().replace(":", " ").split())
    if len(digits) < _LEAST_DIGITS or not actual.startswith(digits):
        raise PrivacyError(
            f"{what} has the fingerprint {actual}, and --fingerprint is {said!r}; expected at least its first {_LEAST_DIGITS} digits, as whoever sent it reads them to you on another way than the file came. Do not copy them from here."
        )


class _HasPublicKey(Protocol):
    def public_key(self) -> object: ...


def _public(key: _HasPublicKey) -> bytes:
    """The public half of a key or certificate; of an Ed25519 key its 32 bytes."""
    public = key.public_key()
    if isinstance(public, Ed25519PublicKey):
        return public.public_bytes_raw()
    if isinstance(public, RSAPublicKey):
        return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    raise ArtifactError(f"a key of the type {type(public).__name__}; expected RSA or Ed25519.")


def _decoded(document: bytes, kind: type[_Document], what: str) -> _Document:
    try:
        return msgspec.json.decode(document, type=kind)
    except msgspec.DecodeError as error:
        raise ArtifactError(
            f"{what} cannot be read ({type(error).__name__}); expected the file that `tff-pipeline provision` wrote, unchanged."
        ) from None
