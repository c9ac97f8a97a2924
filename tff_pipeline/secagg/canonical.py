"""Bytes that stand for a list of values, and for no other: what is signed, hashed, and bound into keys."""

import hashlib


def canonical(label: str, *parts: str | int | bytes) -> bytes:
    """The label and the parts, each with its type and its length before it, so that no two lists give the same bytes.

    Args:
      label: what the bytes are for. Every use has its own, so that bytes made for one never serve another.
      parts: strings as UTF-8, whole numbers in decimal.
    """
    encoded = bytearray()
    for part in (label, *parts):
        if isinstance(part, str):
            kind, content = b"s", part.encode()
        elif isinstance(part, int):
            kind, content = b"i", str(part).encode()
        else:
            kind, content = b"b", bytes(part)
        encoded += kind + len(content).to_bytes(8, "big") + content
    return bytes(encoded)


def digest(label: str, *parts: str | int | bytes) -> bytes:
    """SHA-256 of the canonical bytes."""
    return hashlib.sha256(canonical(label, *parts)).digest()
