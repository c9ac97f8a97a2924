"""What the coordinator asks a silo for in the stages of a round, and what the silo answers. Bytes on the wire, types here.

Each stage carries the secure sum's message (`secagg.messages`), which its protocol checks, and what the round adds to it:

    stage         the coordinator sends                          the silo answers
    advertise     the round and the attempt                      the position of its ledger; its keys
    share         the population's line that charges the round   its encrypted shares, once its own ledger is charged
    mask          what the server broadcasts                     its masked sums
    consistency   the survivors                                  its signature
    unmask        the signatures                                 its shares

Encoded as MessagePack by msgspec, with strict types: what does not decode is refused. Nothing is pickled.
"""

import math
from collections.abc import Sequence
from typing import Annotated, TypeVar

import msgspec
import numpy as np
from msgspec import Meta

from tff_pipeline.errors import ProtocolError
from tff_pipeline.privacy.round import Round

Hex = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
_ORDER = "<"
# Of numbers, which is all that a round sends.
Kind = Annotated[str, Meta(pattern=r"\A[<|][biuf][1248]\Z")]


class _Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Position(_Message, frozen=True, kw_only=True):
    """How long a ledger is, and the hash of its last line."""

    lines: Annotated[int, Meta(ge=0)]
    hash: Hex


class Array(_Message, frozen=True, kw_only=True):
    """An array of numbers: its dtype as NumPy writes it, in little-endian order; its shape; its bytes, row by row."""

    dtype: Kind
    shape: tuple[Annotated[int, Meta(ge=0)], ...]
    content: memoryview


class Attempt(_Message, frozen=True, kw_only=True):
    """Which attempt at which round a request is of."""

    draw: Hex
    starts: Annotated[tuple[Hex, ...], Meta(min_length=1)]
    attempt: Annotated[int, Meta(ge=0)]

    @property
    def round(self) -> Round:
        return Round(self.draw, self.starts)


class Begin(_Message, frozen=True, kw_only=True):
    """Stage "advertise".

    Attributes:
      at: the attempt.
      known: the position of this silo's ledger as the population's newest line has it; None if none names it.
    """

    at: Attempt
    known: Position | None


class Begun(_Message, frozen=True, kw_only=True):
    """The answer: where the silo's ledger ends, and its keys."""

    position: Position
    message: bytes


class Charge(_Message, frozen=True, kw_only=True):
    """Stage "share": the population's line for the round, the silos that it was charged to, and everybody's keys."""

    counterpart: Position
    members: tuple[str, ...]
    message: bytes


class Work(_Message, frozen=True, kw_only=True):
    """Stage "mask": what the server broadcasts, and the shares for this silo."""

    broadcast: tuple[Array, ...]
    message: bytes


M = TypeVar("M", bound=msgspec.Struct)


def encode(message: _Message) -> bytes:
    return msgspec.msgpack.encode(message)


def decode(content: bytes | memoryview, kind: type[M], *, where: str) -> M:
    """The message.

    Raises:
      ProtocolError: if the bytes are something else.
    """
    try:
        return msgspec.msgpack.decode(content, type=kind, strict=True)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(
            f"{where}: is not a {kind.__name__} of this version ({error}); expected what the other side of the protocol sends. Nothing was done. Do both run the same version?"
        ) from None


def arrays_of(arrays: Sequence[np.ndarray]) -> tuple[Array, ...]:
    """Numbers to send. Bytes are not copied before they are encoded.

    Raises:
      ProtocolError: if an array holds something else than numbers.
    """
    return tuple(_array_of(np.asarray(array)) for array in arrays)


def _array_of(array: np.ndarray) -> Array:
    if array.dtype.kind not in "biuf":
        raise ProtocolError(
            f"an array of {array.dtype} was to be sent to silos; expected numbers, since a round sends nothing else."
        )
    plain = np.ascontiguousarray(array, array.dtype.newbyteorder(_ORDER))
    content = plain.reshape(-1).view(np.uint8).data if plain.size else memoryview(b"")
    return Array(dtype=plain.dtype.str, shape=array.shape, content=content)


def to_arrays(sent: Sequence[Array], *, where: str) -> list[np.ndarray]:
    """The arrays that were sent; they may share the message's memory.

    Raises:
      ProtocolError: if an array's bytes are not as many as its shape needs.
    """
    arrays = []
    for array in sent:
        content = memoryview(array.content)
        try:
            dtype = np.dtype(array.dtype)
            needed = dtype.itemsize * math.prod(array.shape)
            if content.nbytes != needed:
                raise ProtocolError(
                    f"{where}: has {content.nbytes} bytes for an array of shape {_short(array.shape)} and {dtype}; expected {needed}. Nothing was done."
                )
            plain = np.frombuffer(content, dtype) if needed else np.zeros(0, dtype)
            arrays.append(plain.reshape(array.shape))
        except (TypeError, ValueError):
            raise ProtocolError(
                f"{where}: has an array of {array.dtype} and shape {_short(array.shape)}; expected a type and a shape that NumPy has. Nothing was done."
            ) from None
    return arrays


def _short(shape: Sequence[int]) -> str:
    """So that a message cannot fill somebody's log."""
    return str(tuple(shape))[:100]
