"""Random numbers that a guarantee rests on: a ChaCha20 keystream under a key from the operating system.

What a run draws, and from which secrets, is `draws`; here are the generators. In a seeded run the secrets follow from the
seed, and the guarantee holds only against someone who does not know it.
"""

import collections
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_BLOCK, _THREADS = 2**16, 4


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
    a probability of 2**-64 each; the angle from 53 bits. Made block by block, each of a size that stays in a core's
    cache, on several cores; how many changes nothing about the numbers.
    """
    sizes = [int(np.prod(shape, dtype=np.int64)) for shape in shapes]
    numbers = np.empty(sum(sizes))
    keystream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()

    def words() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(numbers), _BLOCK):
            block = numbers[start : start + _BLOCK]
            yield block, np.frombuffer(keystream.update(bytes(16 * ((len(block) + 1) // 2))), np.uint64)

    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as threads:
        pending: collections.deque[Future[None]] = collections.deque()
        for block, drawn in words():
            pending.append(threads.submit(_box_muller, drawn, stddev, block))
            if len(pending) > 2 * _THREADS:
                pending.popleft().result()
        for future in pending:
            future.result()
    parts = np.split(numbers, np.cumsum(sizes)[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def _box_muller(words: np.ndarray, stddev: float, out: np.ndarray) -> None:
    """Fills `out` from twice half as many words (rounded up): those of the radii first, then those of the angles."""
    pairs = len(words) // 2
    radius = words[:pairs].astype(np.float64)
    np.log((radius + 1.0) * 2.0**-64, out=radius)
    np.sqrt(-2.0 * radius, out=radius)
    radius *= stddev
    angle = (words[pairs:] >> np.uint64(11)).astype(np.float64)
    angle *= 2.0 * np.pi * 2.0**-53
    np.multiply(radius, np.cos(angle), out=out[:pairs])
    np.multiply(radius[: len(out) - pairs], np.sin(angle)[: len(out) - pairs], out=out[pairs:])
