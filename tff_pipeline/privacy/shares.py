"""A silo's share of each round's noise, which is never added to two different sums.

The share of a round follows from the silo's secret, so that a round repeated after a crash adds the same one, and is the
same release. That holds if the silo's sum is the same, to the last digit; then it may be charged once. On a device whose
arithmetic is not repeatable, such as a GPU, it might not be, and the difference of two sums under one share would have no
noise at all. So the silo remembers a digest of the sum that a share was drawn for, on disk before the share is used, and
refuses to draw it for another one.
"""

import hashlib
import hmac
from pathlib import Path

import numpy as np

from tff_pipeline.artifacts import read_json, write_json
from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy import randomness
from tff_pipeline.privacy.discrete import discrete_gaussian
from tff_pipeline.privacy.distributed import Integers


def share(
    key_path: Path, secret: bytes, total: np.ndarray | None, *, silo: str, round_number: int, integers: Integers
) -> np.ndarray:
    """The silo's share of a round, int64 [length].

    Args:
      key_path: where the silo keeps `secret`; what it remembers lies beside it.
      secret: the silo's.
      total: the sum that the share will be added to, or None in a simulation, which has no silos.
      silo: its name.
      round_number: of the run, from 0.
      integers: scale and number of coordinates.

    Raises:
      PrivacyError: if the share was drawn for another sum before.
    """
    key = randomness.derive(secret, f"share/{round_number}")
    if total is not None:
        # Keyed, so that the file tells nobody whether a guessed sum is right.
        digest = hmac.new(randomness.derive(key, "sum"), total.tobytes(), hashlib.sha256).hexdigest()
        seen = {"share": hashlib.sha256(randomness.derive(key, "name")).hexdigest()[:16], "sum": digest}
        path = memory(key_path)
        before = read_json(path) if path.exists() else {}
        if before.get("share") == seen["share"] and before != seen:
            raise PrivacyError(
                f"silo {silo}: round {round_number + 1} is repeated, and its sum is not the one of the first time (is its device's arithmetic repeatable?); the same noise on both would show their difference. "
                f"Nothing was sent. Remove {key_path}: the silo then draws anew, and the repeated round is charged again."
            )
        if before != seen:
            write_json(path, seen)
    return discrete_gaussian(key, integers.log2_share, integers.length)


def memory(key_path: Path) -> Path:
    """The file in which a silo remembers what its newest share was drawn for; to be removed with its secret."""
    return key_path.with_suffix(".sum.json")
