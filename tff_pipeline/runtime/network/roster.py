"""Who belongs to a consortium: one list, signed by the consortium's authority, which the coordinator and every silo check.

It names the coordinator, every silo with its organization and its identity key (Ed25519), and who was revoked. Each list has
a serial number; a party that has one never goes back to an earlier one, so that nobody can bring a revoked silo back.
"""

import base64
from collections.abc import Callable
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256

from tff_pipeline.errors import ArtifactError, PrivacyError

_PADDING = padding.PSS(padding.MGF1(SHA256()), padding.PSS.DIGEST_LENGTH)
_CONTEXT = b"tff-pipeline roster 1\0"  # the authority's key signs certificates too


class Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A silo.

    Attributes:
      name: as in its certificate; never given to another silo.
      organization: whose it is.
      identity_key: its Ed25519 public key, in hexadecimal digits.
      revoked: why it is no longer admitted; empty if it is.
    """

    name: str
    organization: str
    identity_key: str
    revoked: str = ""


class Coordinator(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the silos find the coordinator, and the common name of its certificate, which is its host."""

    host: str
    port: int
    organization: str


class Roster(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The consortium at one time."""

    consortium: str
    serial: int
    protocol: int
    threshold: int
    coordinator: Coordinator
    members: tuple[Member, ...]

    def admits(self, name: str) -> bool:
        """Whether a silo of this name belongs to the consortium and was not revoked."""
        return any(member.name == name and not member.revoked for member in self.members)

    def identity_keys(self) -> dict[str, bytes]:
        """The identity keys of the silos that are admitted, by name."""
        return {member.name: bytes.fromhex(member.identity_key) for member in self.members if not member.revoked}


class _Signed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    roster: Roster
    signature: str


def signed(roster: Roster, key: RSAPrivateKey) -> bytes:
    """The file of a roster, signed with the authority's private key."""
    signature = key.sign(_CONTEXT + msgspec.json.encode(roster), _PADDING, SHA256())
    document = _Signed(roster, base64.b64encode(signature).decode())
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def verified(document: bytes, authority: x509.Certificate, where: str) -> Roster:
    """The roster in the file's content `document`, if the authority signed it.

    Raises:
      ArtifactError: if it is no roster.
      PrivacyError: if the signature is not the authority's.
    """
    try:
        content = msgspec.json.decode(document, type=_Signed)
        signature = base64.b64decode(content.signature, validate=True)
    except (msgspec.DecodeError, ValueError) as error:
        raise ArtifactError(
            f"{where}: not a roster ({type(error).__name__}); expected the file that `tff-pipeline provision` wrote, unchanged. Ask the consortium's authority for it again."
        ) from None
    public_key = authority.public_key()
    if not isinstance(public_key, RSAPublicKey):
        raise ArtifactError(f"{where}: the authority's key is not an RSA key; expected FLARE's root certificate.")
    try:
        public_key.verify(signature, _CONTEXT + msgspec.json.encode(content.roster), _PADDING, SHA256())
    except InvalidSignature:
        raise PrivacyError(
            f"{where}: the signature is not that of this consortium's authority; expected a roster signed by it. Nobody on it is trusted. Ask the authority for the file again, and compare its SHA-256 by telephone."
        ) from None
    return content.roster


def require_not_older(new: Roster, known: Roster, where: str) -> None:
    """Raises PrivacyError if `new` is of another consortium, or older than the roster that this party has."""
    if new.consortium != known.consortium:
        raise PrivacyError(
            f"{where}: a roster of the consortium {new.consortium!r}; expected {known.consortium!r}, this site's own."
        )
    if new.serial < known.serial or (new.serial == known.serial and new != known):
        raise PrivacyError(
            f"{where}: serial number {new.serial} while this site has {known.serial}; expected a newer roster. An older one might admit a silo that was revoked since. Ask the authority for its newest."
        )


class RosterFile:
    """A roster on disk, which an operator may replace while a process runs.

    A file that was replaced by an older one, or by one that is not signed, is not taken: what was known stays in force.
    """

    def __init__(self, path: Path, authority: x509.Certificate, report: Callable[..., None]):
        self._path, self._authority, self._report = path, authority, report
        self._stamp = self._stamped()
        self._roster = verified(_read(path), authority, str(path))

    def current(self) -> Roster:
        """The newest roster that this process has seen."""
        if (stamp := self._stamped()) != self._stamp:
            self._stamp = stamp
            try:
                roster = verified(_read(self._path), self._authority, str(self._path))
                require_not_older(roster, self._roster, str(self._path))
                self._roster = roster
            except (ArtifactError, PrivacyError) as error:
                self._report("roster refused", reason=str(error))
        return self._roster

    def _stamped(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{path}: cannot be read ({error.strerror}); expected the consortium's roster. `tff-pipeline provision install` puts it there."
        ) from None
