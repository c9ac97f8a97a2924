"""What a round is to everybody: its number, the run's draw, and what it and every round before it started from.

All of it is public. What a party draws in the round follows from its own secret and from this (`draws`).
"""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from tff_pipeline.artifacts import canonical_json


@dataclasses.dataclass(frozen=True)
class Round:
    """A round of a run.

    Attributes:
      draw: the run's draw, 64 hex digits; see `draws.Draws.digest`.
      starts: what this round and every round before it started from (`start_of`), oldest first.
    """

    draw: str
    starts: tuple[str, ...]

    @property
    def number(self) -> int:
        """Of the round in its run, from 0."""
        return len(self.starts) - 1

    @property
    def start(self) -> str:
        """What the round starts from, as the ledger names it."""
        return self.starts[-1]

    @property
    def name(self) -> str:
        """Names the round's draw; see `round_name`."""
        return round_name(self.draw, self.number, self.start)

    @property
    def binding(self) -> str:
        """What every draw of the round is bound to."""
        return f"{self.draw}/{self.start}"


def round_name(draw: str, number: int, start: str) -> str:
    """Names the draw of a round, 32 hex digits, from the run's draw, the round's number from 0, and its `Round.start`."""
    return hashlib.sha256(f"tff-pipeline round\0{draw}/{number}/{start}".encode()).hexdigest()[:32]


def start_of(state: Sequence[np.ndarray], *others: str, before: Sequence[str]) -> str:
    """What a round starts from: a digest of the server's state, of `others`, and of what every round before it started from.

    The last because the noise of a tree's node is bound to the round that finished it, and is taken away in a later one.
    """
    return digest_of(state, *others, *before)


def digest_of(arrays: Sequence[np.ndarray], *others: str) -> str:
    """A SHA-256, 64 hex digits, of arrays as they are kept on disk (type, shape and bytes), and of other digests."""
    digest = hashlib.sha256(canonical_json(others))
    for array in map(np.asarray, arrays):
        plain = array.astype(np.bytes_) if array.dtype == object else np.ascontiguousarray(array)
        digest.update(f"\0{plain.dtype.str}{array.shape}\0".encode())
        digest.update(plain.tobytes() if plain.dtype.kind == "S" or not plain.ndim else plain.data)
    return digest.hexdigest()
