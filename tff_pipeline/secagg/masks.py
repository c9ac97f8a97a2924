"""Masks as keystreams, added to vectors piece by piece, so that no mask is ever in memory as a whole.

A mask is the ChaCha20 keystream (RFC 8439) of a key that is used for nothing else, with counter and nonce 0, read as
little-endian integers of the vectors' dtypes, one vector after the other. It is the PRG of Bonawitz et al. 2017, section 3.4.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms

from tff_pipeline.errors import PrivacyError

# Fits the second-level cache beside the piece of the vector; a multiple of every item's size.
_PIECE = 256 * 1024
_ZEROS = bytes(_PIECE)


def keystream(key: bytes) -> CipherContext:
    """The stream of a key of 32 bytes. Its block counter has 32 bits: it has to be used for less than 256 GiB."""
    return Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()


def add_mask(vectors: Iterable[np.ndarray], stream: CipherContext, *, subtract: bool = False) -> None:
    """Adds the stream to the vectors, or subtracts it, in place and in the ring of each one's dtype.

    Args:
      vectors: unsigned, contiguous, of any shape. The stream goes on from one to the next.
      stream: of this mask; advanced.
      subtract: instead of adding.
    """
    piece = bytearray(_PIECE)
    operation = np.subtract if subtract else np.add
    for vector in vectors:
        if not vector.flags.c_contiguous:
            raise ValueError("masks are added in place; expected contiguous vectors")
        flat = vector.reshape(-1)
        words = np.frombuffer(piece, vector.dtype.newbyteorder("<"))
        for start in range(0, flat.size, words.size):
            part = flat[start : start + words.size]
            stream.update_into(memoryview(_ZEROS)[: part.nbytes], piece)
            operation(part, words[: part.size], out=part)


def noised(
    values: Sequence[np.ndarray],
    noise: Mapping[int, np.ndarray],
    required: Collection[int],
    *,
    where: str,
) -> list[np.ndarray]:
    """Copies of the values, contiguous, with the noise shares added: what is masked next.

    Args:
      values: a silo's sums.
      noise: by index, int64 of the array's shape.
      required: the indices of the arrays that must not leave without noise.
      where: silo and round, for the error.

    Raises:
      PrivacyError: if an array is not of unsigned integers, or noise is missing, too much or of another shape.
    """
    if signed := [value.dtype.name for value in values if value.dtype.kind != "u"]:
        raise PrivacyError(
            f"{where} came with sums of {', '.join(sorted(set(signed)))}; expected unsigned integers, since no mask hides another number. Nothing was sent."
        )
    if set(noise) != set(required) or any(
        index >= len(values) or noise[index].shape != values[index].shape for index in noise
    ):
        raise PrivacyError(
            f"{where} came with noise for {len(noise)} of its {len(required)} sums that must not leave without; expected its noise share on each, of the sum's shape. Nothing was sent."
        )
    copies = [np.array(value, order="C") for value in values]
    for index, noise_share in noise.items():
        copies[index] += noise_share.astype(copies[index].dtype)
    return copies


def add_to(total: Sequence[np.ndarray], report: Sequence[np.ndarray]) -> None:
    """Adds a report to a sum, array by array, each in its ring."""
    for sum_so_far, part in zip(total, report, strict=True):
        np.add(sum_so_far, part, out=sum_so_far)


def add_up(reports: Iterable[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """The sum of all reports, array by array, each in its ring. Masks that were added and subtracted cancel.

    Reports are taken one after the other, so that a generator of them is never in memory as a whole. The arrays of the
    first report become the sum.
    """
    remaining = iter(reports)
    total = [np.asarray(part) for part in next(remaining)]
    for report in remaining:
        add_to(total, report)
    return total
