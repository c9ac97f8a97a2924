"""A signed digest of all ledgers, to keep where whoever holds the ledgers cannot write.

Ledgers that lie in one hand can all be set back together, and then agree with each other. An anchor kept elsewhere names how
many lines each ledger had and the hash of the last, which stands for all above it; a ledger that does not go on from there was
set back or written anew. The signature (Ed25519, RFC 8032) says that the holder of the key made the anchor. It does not
say that the ledgers were right then, and does not bind the holder of the key, who can sign another anchor: so the
other party keeps the anchor and the public key, and compares public keys, not only signatures.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from tff_pipeline import __version__
from tff_pipeline.artifacts import canonical_json, now, write_atomic
from tff_pipeline.errors import ArtifactError, PrivacyError
from tff_pipeline.privacy.ledger import Ledger

_KIND, _FORMAT = "tff-pipeline ledger anchor", 1


def public_path(key: Path) -> Path:
    """Where the public half of a signing key lies."""
    return key.with_name(f"{key.name}.pub")


def make(ledgers: Sequence[Ledger], *, population: str, key: Path) -> bytes:
    """An anchor of these ledgers as a line of JSON, signed with the private key in `key`, which is made on first use.

    Raises:
      ArtifactError: if the key cannot be read.
      PrivacyError: if a ledger is damaged.
    """
    signer = _signing_key(key)
    anchor = {
        "kind": _KIND,
        "format": _FORMAT,
        "time": now(),
        "version": __version__,
        "population": population,
        "ledgers": [_named(ledger) | dict(ledger.position()) for ledger in ledgers if ledger.exists],
        "public_key": _raw(signer.public_key()).hex(),
    }
    return canonical_json({**anchor, "signature": signer.sign(canonical_json(anchor)).hex()}) + b"\n"


def read(path: Path, *, key: Path) -> dict[str, Any]:
    """An anchor whose signature was checked under the key in `key`, public or private.

    Raises:
      ArtifactError: if one of the files is missing, or is something else.
      PrivacyError: if the anchor was signed with another key, or the signature does not fit.
    """
    trusted = _trusted_key(key)
    anchor, signature = _parsed(path)
    if anchor["public_key"] != _raw(trusted).hex():
        raise PrivacyError(
            f"{path}: was signed with the key {anchor['public_key']}; expected {_raw(trusted).hex()} ({key}). Whoever has another key can sign anything: do not trust the anchor before its maker confirms the key."
        )
    try:
        trusted.verify(signature, canonical_json(anchor))
    except InvalidSignature:
        raise PrivacyError(
            f"{path}: the signature does not fit; the anchor was edited or damaged. Expected it as it was signed. Use another copy."
        ) from None
    return anchor


def _parsed(path: Path) -> tuple[dict[str, Any], bytes]:
    """An anchor without its signature, and the signature."""
    try:
        anchor = json.loads(path.read_bytes())
        signature = bytes.fromhex(anchor.pop("signature"))
        if (anchor["kind"], anchor["format"]) == (_KIND, _FORMAT) and isinstance(anchor["public_key"], str):
            return anchor, signature
    except FileNotFoundError:
        raise ArtifactError(
            f"{path}: no such file; expected an anchor, as `tff-pipeline ledger anchor` makes it."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ArtifactError(
        f"{path}: is not an anchor of format {_FORMAT}; expected one line of JSON, as `tff-pipeline ledger anchor` makes it."
    )


def set_back(anchor: Mapping[str, Any], ledgers: Sequence[Ledger], *, path: Path) -> list[str]:
    """A sentence for every ledger that does not go on from where the anchor saw it."""
    problems = []
    present = {canonical_json(_named(ledger)): ledger for ledger in ledgers if ledger.exists}
    for part in anchor["ledgers"]:
        position = {"lines": part["lines"], "hash": part["hash"]}
        name = {key: value for key, value in part.items() if key not in position}
        owner = f"silo {part['silo']!r}" if "silo" in part else f"population {part['population']!r}"
        ledger = present.get(canonical_json(name))
        if ledger is None:
            state = f"the ledger of {owner} is not in this workdir"
        elif ledger.extends(position):
            continue
        elif (lines := len(ledger.lines())) < part["lines"]:
            state = f"{ledger.path}: ends after {lines} lines"
        else:
            state = f"{ledger.path}: line {part['lines']} is not the one that was anchored"
        problems.append(
            f"{state}; expected the {part['lines']} lines that {path} saw at {anchor['time']}, and what came after. "
            "It was set back or written anew: restore the newest. If it was lost and charged again on purpose (`tff-pipeline ledger show` has the decision), make a new anchor."
        )
    return problems


def _named(ledger: Ledger) -> dict[str, str]:
    return {"silo": ledger.silo} if ledger.silo else {"population": ledger.population}


def _raw(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def _signing_key(path: Path) -> Ed25519PrivateKey:
    """The private key in `path`; where there is none it is made, with its public half beside it."""
    if not path.exists():
        made = Ed25519PrivateKey.generate()
        private = made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        public = made.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        write_atomic(public_path(path), public)
        write_atomic(path, private, mode=0o600)
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ArtifactError(
            f"{path}: is not a private Ed25519 key (PEM, not encrypted); expected the one that `tff-pipeline ledger anchor` made. Restore it, or name a new file, which is another key."
        )
    return key


def _trusted_key(path: Path) -> Ed25519PublicKey:
    """The public key in `path`, or of the private key in it."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ArtifactError(
            f"{path}: no such file; expected the public key of whoever made the anchor. Name it with --key FILE."
        ) from None
    loaders = (load_pem_public_key, lambda data: load_pem_private_key(data, password=None))
    for load in loaders:
        try:
            key = load(content)
        except (ValueError, TypeError):
            continue
        if isinstance(key, Ed25519PrivateKey):
            return key.public_key()
        if isinstance(key, Ed25519PublicKey):
            return key
    raise ArtifactError(
        f"{path}: is no Ed25519 key (PEM); expected the public key of whoever made the anchor, or the private one."
    )
