"""Every key of the protocol, and every text that is signed: what each is derived from, and what it is bound to.

Keys are HKDF-SHA256 (RFC 5869) without a salt; the info has a label of its own for each purpose, the digest of the terms
(session, round, attempt, threshold, roster, version of the protocol) and whose key it is. So no key of one attempt,
direction or purpose is ever another's. Notation of Bonawitz et al. 2017, figure 4: c and s are a silo's X25519 pairs for
shares and for masks, b is the seed of its self mask, U1 to U3 are the silos that answered each of the first three stages.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tff_pipeline.secagg.canonical import canonical, digest
from tff_pipeline.secagg.messages import Keys
from tff_pipeline.secagg.shamir import SHARE_BYTES
from tff_pipeline.secagg.terms import Terms

_NONCE_BYTES = 12
_FIELD = 2**255 - 19


@dataclasses.dataclass(frozen=True)
class Peer:
    """A silo and one of its public keys, as they enter a derivation."""

    name: str
    public_key: bytes


def public_bytes(private: X25519PrivateKey) -> bytes:
    return private.public_key().public_bytes_raw()


def well_formed(public_key: bytes) -> bool:
    """Whether an X25519 key has the one encoding of its number (RFC 7748, section 5), so that equal keys are equal bytes."""
    return int.from_bytes(public_key, "little") < _FIELD


def gives_secret(public_key: bytes) -> bool:
    """Whether an exchange with this X25519 key gives a secret: it is not of small order (RFC 7748, section 6.1)."""
    try:
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(public_key))
    except ValueError:
        return False
    return True


def pair_mask_key(terms: Terms, private: X25519PrivateKey, own: Peer, other: Peer) -> bytes:
    """The key of the mask between two silos, s_uv of figure 4, round 2: the same from both sides.

    Raises:
      ValueError: if the other's public key is of small order, so that there is no secret.
    """
    low, high = sorted((own, other), key=lambda peer: peer.name)
    shared = private.exchange(X25519PublicKey.from_public_bytes(other.public_key))
    return _derive(shared, "pair mask", terms, low.name, high.name, low.public_key, high.public_key)


def self_mask_key(terms: Terms, name: str, seed: bytes) -> bytes:
    """The key of a silo's own mask, from its seed b; figure 4, round 2."""
    return _derive(seed, "self mask", terms, name)


def commitment(terms: Terms, name: str, seed: bytes) -> bytes:
    """32 bytes that tell nothing of a random seed, and by which it is known again."""
    return _derive(seed, "seed commitment", terms, name)


def seal(terms: Terms, private: X25519PrivateKey, sender: Peer, receiver: Peer, shares: bytes) -> bytes:
    """Two shares encrypted for one silo: nonce, AES-256-GCM ciphertext, tag; e_uv of figure 4, round 1.

    The key is of this direction of this pair, used once; the associated data repeats sender, receiver and terms.
    """
    key = _share_key(terms, private, receiver.public_key, sender, receiver)
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, shares, _associated(terms, sender, receiver))


def unseal(
    terms: Terms, private: X25519PrivateKey, sender: Peer, receiver: Peer, box: bytes
) -> tuple[bytes, bytes] | None:
    """The share of the sender's s and the share of its b; None if the box is not what the sender made for the receiver."""
    try:
        key = _share_key(terms, private, sender.public_key, sender, receiver)
        shares = AESGCM(key).decrypt(box[:_NONCE_BYTES], box[_NONCE_BYTES:], _associated(terms, sender, receiver))
    except (InvalidTag, ValueError):
        return None
    if len(shares) != 2 * SHARE_BYTES:
        return None
    return shares[:SHARE_BYTES], shares[SHARE_BYTES:]


def advertisement(terms: Terms, name: str, share_key: bytes, mask_key: bytes) -> bytes:
    """What a silo signs about its keys; sigma_u of figure 4, round 0, bound to the attempt."""
    return canonical("tff-pipeline secagg advertisement", terms.digest, name, share_key, mask_key)


def agreement(
    terms: Terms, name: str, advertised: Mapping[str, Keys], dealt: Sequence[str], survivors: Sequence[str]
) -> bytes:
    """What a silo signs about the survivors; sigma'_u of figure 4, round 3.

    The paper signs U3. Here it is U3 with U1, its keys, and U2, so that silos that were told different things before do not
    accept each other's signatures either.
    """
    keys = [
        part for peer in sorted(advertised) for part in (peer, advertised[peer].share_key, advertised[peer].mask_key)
    ]
    return canonical(
        "tff-pipeline secagg agreement",
        terms.digest,
        name,
        digest("tff-pipeline secagg advertised", *keys),
        digest("tff-pipeline secagg dealt", *sorted(dealt)),
        digest("tff-pipeline secagg survivors", *sorted(survivors)),
    )


def _share_key(terms: Terms, private: X25519PrivateKey, other: bytes, sender: Peer, receiver: Peer) -> bytes:
    shared = private.exchange(X25519PublicKey.from_public_bytes(other))
    return _derive(shared, "shares", terms, sender.name, receiver.name, sender.public_key, receiver.public_key)


def _associated(terms: Terms, sender: Peer, receiver: Peer) -> bytes:
    return canonical(
        "tff-pipeline secagg shares", terms.digest, terms.round_number, terms.attempt, sender.name, receiver.name
    )


def _derive(secret: bytes, purpose: str, terms: Terms, *parts: str | bytes) -> bytes:
    info = canonical(f"tff-pipeline secagg {purpose}", terms.digest, *parts)
    return HKDF(SHA256(), length=32, salt=None, info=info).derive(secret)
