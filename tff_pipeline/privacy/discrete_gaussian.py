"""Discrete Gaussian noise, sampled exactly: each silo's noise share in the distributed mechanism.

The discrete Gaussian of scale sigma gives an integer x with a probability proportional to exp(-x**2 / (2 sigma**2))
(Canonne, Kamath and Steinke 2020, arXiv:2004.00010, definition 1). Here sigma is a power of two, so that every
probability on the way to a sample is that of integers against a power of two, or exp of such a fraction, and uniform
bits decide it without rounding anything. There is no floating point in this module.

The bits are a ChaCha20 keystream under a key that follows from the silo's secret, like everything a run draws: a round
that is repeated after a crash adds the same noise share and is charged once. That, and the speed, is why `opendp` is not used
here: its sampler cannot be given a key, so a noise share would have to be kept on disk until the round's state is saved.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy.randomness import derive

_BLOCK = 2**18  # numbers drawn under one key; small enough that their arrays stay in a core's cache
_LARGEST = 24  # of log2 sigma: numerators stay below 2**49


def discrete_gaussian(key: bytes, log2_scale: int, count: int) -> np.ndarray:
    """int64 [count], independent discrete Gaussians of scale 2**log2_scale. The same arguments give the same numbers.

    Drawn in blocks on all cores; the numbers do not depend on how many there are.
    """
    if not 0 <= log2_scale <= _LARGEST:
        raise PrivacyError(f"noise of scale 2**{log2_scale} cannot be drawn exactly; expected 0 to {_LARGEST}.")
    result = np.empty(count, np.int64)

    def fill(start: int) -> None:
        block = result[start : start + _BLOCK]
        block[:] = _samples(_Bits(derive(key, f"block/{start // _BLOCK}")), log2_scale, block.size)

    starts = range(0, count, _BLOCK)
    if len(starts) <= 1:
        for start in starts:
            fill(start)
    else:
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            list(threads.map(fill, starts))
    return result


class _Bits:
    """A keystream of uniform 64-bit words."""

    def __init__(self, key: bytes):
        self._keystream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()

    def words(self, count: int) -> np.ndarray:
        return np.frombuffer(self._keystream.update(bytes(8 * count)), np.uint64)


def _samples(bits: _Bits, log2_scale: int, count: int) -> np.ndarray:
    """int64 [count]. Karney 2016 (arXiv:1303.6257), algorithm D, for a mean of 0 and an integer scale s.

    1. k >= 0 with a probability proportional to exp(-k**2 / 2).
    2. j uniform in 0 ... s - 1, and a sign; k s + j is the candidate, and -0 is none, so that 0 counts once.
    3. With x = j / s, it is kept with probability exp(-x (2 k + x) / 2), which is exp(-x) k times, and exp(-x**2 / 2).
    """
    samples, have = [], 0
    while have < count:
        # About 0.63 of all candidates are kept; a few more are asked for, so that one round nearly always suffices.
        tried = int((count - have) * 1.7) + 64
        k = _coarse(bits, tried)
        words = bits.words(tried)
        j = words & np.uint64(2**log2_scale - 1)
        negative = (words >> np.uint64(63)).astype(bool)
        kept = np.flatnonzero(~(negative & (k == 0) & (j == 0)))
        kept = kept[_coin(bits, np.square(j[kept]), 2 * log2_scale + 1)]
        for times in range(int(k.max(initial=0))):
            again = k[kept] > times
            passed = ~again
            passed[again] = _coin(bits, j[kept[again]], log2_scale)
            kept = kept[passed]
        size = (k[kept] << np.uint64(log2_scale)).astype(np.int64) + j[kept].astype(np.int64)
        samples.append(np.where(negative[kept], -size, size))
        have += kept.size
    return np.concatenate(samples)[:count]


def _coarse(bits: _Bits, count: int) -> np.ndarray:
    """uint64 [count]: k >= 0 with a probability proportional to exp(-k**2 / 2) (Karney's step D1).

    The coins of exp(-1/2) that succeed in a row are k with a probability proportional to exp(-k / 2), which is kept with
    exp(-k (k - 1) / 2): k (k - 1) more of them.
    """
    accepted, have = [], 0
    while have < count:
        k = _streak(bits, int((count - have) * 1.5) + 64)
        coins = np.where(k > 1, k * (k - np.uint64(1)), np.uint64(0))
        left = np.flatnonzero(coins)
        alive = coins == 0
        # As many coins as needed in a row: a streak of at least that length.
        alive[left] = _streak(bits, left.size) >= coins[left]
        accepted.append(k[alive])
        have += accepted[-1].size
    return np.concatenate(accepted)[:count]


def _streak(bits: _Bits, count: int) -> np.ndarray:
    """uint64 [count]: how many coins of exp(-1/2) succeed in a row."""
    lengths = np.zeros(count, np.uint64)
    going = np.arange(count)
    while going.size:
        going = going[_coin(bits, np.ones(going.size, np.uint64), 1)]
        lengths[going] += np.uint64(1)
    return lengths


def _coin(bits: _Bits, numerator: np.ndarray, log2_denominator: int) -> np.ndarray:
    """bool: each true with probability exp(-numerator / 2**log2_denominator), of a fraction from 0 to 1.

    Canonne, Kamath and Steinke 2020, algorithm 1: coins of probability fraction / 1, fraction / 2, fraction / 3, ... are
    thrown until one fails; the number thrown is odd with probability exp(-fraction).
    """
    odd = np.zeros(numerator.size, bool)
    going, turn = np.arange(numerator.size), 1
    mask = np.uint64(2**log2_denominator - 1)
    while going.size:
        heads = (bits.words(going.size) & mask) < numerator[going]
        if turn > 1:
            lucky = np.flatnonzero(heads)
            heads[lucky] = _one_in(bits, turn, lucky.size)
        if turn % 2:
            odd[going[~heads]] = True
        going, turn = going[heads], turn + 1
    return odd


def _one_in(bits: _Bits, number: int, count: int) -> np.ndarray:
    """bool [count], each true with probability 1 / number: words that would favour small remainders are drawn again."""
    fair = 2**64 // number * number
    words = bits.words(count).copy()
    if fair < 2**64:
        while (unfair := np.flatnonzero(words >= np.uint64(fair))).size:
            words[unfair] = bits.words(unfair.size)
    return words % np.uint64(number) == 0
