"""Shamir's secret sharing of 256-bit secrets (Bonawitz et al. 2017, section 3.1): t shares give the secret, t - 1 nothing.

The library is `shamirs`: it works modulo any prime, so that a key is shared as a whole, and draws the coefficients from
`secrets`. PyCryptodome's `SecretSharing` has only GF(2**128): a key would be two secrets, at some fifty times the time.
"""

import secrets
from collections.abc import Mapping

import shamirs

# The smallest prime above 2**256: every 32 bytes are a number below it.
PRIME = 2**256 + 297
SHARE_BYTES = 33


def random_secret() -> bytes:
    """32 bytes from the operating system's generator."""
    return secrets.token_bytes(32)


def deal(secret: bytes, *, shares: int, threshold: int) -> dict[int, bytes]:
    """Shares of a secret of 32 bytes, 33 bytes each, by index from 1.

    They are the values at 1, 2, ... of a polynomial of degree threshold - 1 whose value at 0 is the secret and whose other
    coefficients are uniform.
    """
    dealt = shamirs.shares(int.from_bytes(secret, "big"), shares, PRIME, threshold, compact=True)
    return {index: value.to_bytes(SHARE_BYTES, "big") for index, value in dealt}


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes | None:
    """The secret that `threshold` of these shares give, or None where they are not shares of any 32 bytes.

    The first ones are taken. Wrong shares give a wrong secret: whoever has to know compares it with a commitment.
    """
    points = [
        shamirs.share(index, int.from_bytes(value, "big"), PRIME) for index, value in shares.items() if valid(value)
    ]
    if len(points) < threshold:
        return None
    secret = shamirs.interpolate(points[:threshold], PRIME, threshold)
    return secret.to_bytes(32, "big") if secret < 2**256 else None


def valid(share: bytes) -> bool:
    """Whether the bytes are a number of the field."""
    return len(share) == SHARE_BYTES and int.from_bytes(share, "big") < PRIME
