"""Who is who: from the id in a row to the hash that stands for a client, and from the hash to the client's split.

A client is the HMAC-SHA256 of its id, in the form that `normal_id` gives it, under the silo's client key; the id is written
nowhere. With `client = ""` every row (conll: every sentence) is a client of its own, known by the name of its file and its
line. So it stays itself while files are appended to and files are added; inserting lines makes new clients of the rows below.
The split is a second keyed hash, of the client alone, so no client changes its split when data grows.
"""

import hmac
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from beam_jobs.reading import INEXACT_FLOATS
from beam_jobs.rows import CLIENT_BYTES
from tff_pipeline.config import SPLITS

_WHOLE = re.compile(r"-?[0-9]+\.0+")
# A number that was a float: it has a fraction, or an exponent with a sign. "12345e17" may be an id in hexadecimal digits.
_FLOAT = re.compile(r"[+-]?[0-9]+(?:\.[0-9]*(?:[eE][+-]?[0-9]+)?|[eE][+-][0-9]+)")


class InexactIdError(ValueError):
    """An id that may stand for several people."""


@dataclass(frozen=True)
class Keys:
    """Independent keys for the three uses of the silo's client secret."""

    client: bytes
    split: bytes
    bound: bytes

    @classmethod
    def of(cls, secret: bytes) -> "Keys":
        return cls(*(hmac.digest(secret, b"tff-pipeline " + use, "sha256") for use in (b"client", b"split", b"bound")))


def client_hash(keys: Keys, raw_id: str) -> bytes:
    """16 bytes that stand for a client, written as 32 hex digits; ids with one `normal_id` have the same."""
    return hmac.digest(keys.client, b"id\0" + normal_id(raw_id).encode(), "sha256")[:CLIENT_BYTES]


def row_client_hash(keys: Keys, file_name: str, line: int) -> bytes:
    """The client of a row that is its own client."""
    return hmac.digest(keys.client, f"row\0{line}\0{file_name}".encode(), "sha256")[:CLIENT_BYTES]


def normal_id(raw_id: str) -> str:
    """One form for all spellings of an id: without blanks around it, in Unicode's NFC, and for a whole number without the zeros
    that a table of floats adds ("42.0", as tables with missing numbers are exported).

    Two people whom this takes for one would be protected together, as one client; one person taken for two would be
    protected less than the statement says.

    Raises:
      InexactIdError: if it is a float's text of 2^53 or above, which may stand for several ids.
    """
    (name,) = normal_names([raw_id])
    if ("." in name or "+" in name) and _FLOAT.fullmatch(name) and abs(float(name)) >= INEXACT_FLOATS:
        raise InexactIdError
    return name.partition(".")[0] if "." in name and _WHOLE.fullmatch(name) else name


def normal_names(names: Sequence[str]) -> list[str]:
    """Names without blanks around them, and in Unicode's NFC: names that look the same are the same."""
    normal = {name: name.strip() for name in set(names)}
    for name, stripped in normal.items():
        if not stripped.isascii():
            normal[name] = unicodedata.normalize("NFC", stripped)
    return list(map(normal.__getitem__, names))


def split_of(keys: Keys, client: bytes, fractions: Mapping[str, float]) -> str:
    """A client's split by hash: each split gets its fraction of all clients, whatever other clients there are."""
    position = int.from_bytes(hmac.digest(keys.split, client.hex().encode(), "sha256")[:8], "big") / 2**64
    given = [split for split in SPLITS if fractions.get(split, 0) > 0]
    for split in given[:-1]:
        position -= fractions[split]
        if position < 0:
            return split
    return given[-1]


def ranges_of(clients: np.ndarray, ranges: int) -> np.ndarray:
    """Which of `ranges` equal ranges of hashes each client (`Rows.clients`) lies in, int64 [n]. Ranges ascend with the hash,
    so ranges of ranges nest."""
    return ((clients[:, 0] >> np.uint64(32)).astype(np.int64) * ranges) >> 32
