"""Random numbers that a guarantee rests on: a ChaCha20 keystream under a key from the operating system.

Every draw of a run follows from a 32-byte secret: the server's for the noise, each silo's for its sampling. The secret
is made once a run and kept until the run is finished, so that a run that was killed draws again what it drew before:
the same round is the same release and is charged once. In a seeded run the secrets follow from the seed, and the
guarantee holds only against someone who does not know it.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


def seeded_secret(seed: int, purpose: str) -> bytes:
    """The secret of a seeded run."""
    return hashlib.sha256(f"tff-pipeline/{seed}/{purpose}".encode()).digest()


def derive(secret: bytes, purpose: str) -> bytes:
    """An independent 32-byte key for one purpose (RFC 5869, HKDF-SHA256)."""
    return HKDF(SHA256(), length=32, salt=None, info=purpose.encode()).derive(secret)


def uniform_words(key: bytes, count: int) -> np.ndarray:
    """uint64 [count], uniform. A key is used for one call only: the same key gives the same numbers."""
    keystream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    return np.frombuffer(keystream.update(bytes(8 * count)), np.uint64)


def bernoulli(key: bytes, probability: float, count: int) -> np.ndarray:
    """bool [count], independent, each true with `probability` rounded down to a multiple of 2**-64."""
    if probability >= 1:
        return np.ones(count, bool)
    return uniform_words(key, count) < np.uint64(int(probability * 2**64))


def gaussian(key: bytes, stddev: float, shapes: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Independent normal numbers, float64, by Box and Muller (1958).

    The radius comes from uniforms of 64 bits, so that numbers beyond 9.4 stddev, which cannot come out, are missed with
    a probability of 2**-64 each; the angle from 53 bits.
    """
    sizes = [int(np.prod(shape, dtype=np.int64)) for shape in shapes]
    pairs = (sum(sizes) + 1) // 2
    words = uniform_words(key, 2 * pairs)
    radius = np.sqrt(-2.0 * np.log((words[:pairs].astype(np.float64) + 1.0) * 2.0**-64))
    angle = 2.0 * np.pi * 2.0**-53 * (words[pairs:] >> np.uint64(11)).astype(np.float64)
    numbers = stddev * np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    parts = np.split(numbers[: sum(sizes)], np.cumsum(sizes)[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def round_noise(
    secret: bytes, *, round_number: int, stddev: float, shapes: Sequence[Sequence[int]]
) -> list[np.ndarray]:
    """The noise of one round of a run, float64, one array a weight. The same arguments give the same noise."""
    return gaussian(derive(secret, f"round/{round_number}"), stddev, shapes)
