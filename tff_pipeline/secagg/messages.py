"""What silos and server send each other: frozen types, their bytes (MessagePack), and the checks that need no key.

Every message names the version of the protocol, the attempt it belongs to and the digest of its sender's terms; what belongs to
another attempt is refused before anything else is read from it. Lists hold their silos' names beside the values and are
never dictionaries: a name that comes twice is seen, and refused.

    stage         a silo sends       the server sends, to start the stage
    advertise     Advertisement      (nothing)
    share         Shares             Advertisements
    mask          Masked             RoutedShares
    consistency   Agreement          Survivors
    unmask        Revealed           Agreements
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal, TypedDict, TypeVar

import msgspec
import numpy as np
from msgspec import Meta

from tff_pipeline.errors import ProtocolError
from tff_pipeline.secagg.shamir import SHARE_BYTES
from tff_pipeline.secagg.terms import VERSION, Terms

# As the configuration writes names. Longer ones would only serve to fill somebody's log.
Name = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]*\Z", max_length=100)]
Bytes32 = Annotated[bytes, Meta(min_length=32, max_length=32)]
SignatureBytes = Annotated[bytes, Meta(min_length=64, max_length=64)]
ShareBytes = Annotated[bytes, Meta(min_length=SHARE_BYTES, max_length=SHARE_BYTES)]
# Nonce of 12 bytes, two shares, tag of 16 bytes.
BoxBytes = Annotated[bytes, Meta(min_length=28 + 2 * SHARE_BYTES, max_length=28 + 2 * SHARE_BYTES)]
DtypeName = Literal["uint16", "uint32", "uint64"]
# By silo's name, as small as that: no roster is longer.
_FEW = Meta(max_length=10_000)


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a message, about one silo."""

    silo: Name


class Keys(_Part, frozen=True):
    """A silo's public keys of one attempt, X25519: c and s of the paper, signed with its identity key."""

    share_key: Bytes32
    mask_key: Bytes32
    signature: SignatureBytes


class Box(_Part, frozen=True):
    """A share of s and a share of b, encrypted. `silo` is the other side: the receiver on the way up, the sender down."""

    box: BoxBytes


class Share(_Part, frozen=True):
    """A share of one of a silo's secrets, as it is revealed."""

    share: ShareBytes


class Signature(_Part, frozen=True):
    """A silo's signature under the list of survivors."""

    signature: SignatureBytes


class Slot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One masked array: its integers, little-endian."""

    dtype: DtypeName
    words: memoryview


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="message"):
    """What every message begins with."""

    version: int
    session: str
    round_number: int
    attempt: int
    terms: Bytes32


class FromSilo(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="message"):
    silo: Name


class Advertisement(FromSilo, frozen=True, kw_only=True, tag="advertisement"):
    keys: Keys


class Shares(FromSilo, frozen=True, kw_only=True, tag="shares"):
    """A share of its secrets for each other silo that advertised keys; and the commitment to its seed b.

    The commitment is not in the paper. It lets the server see that a seed was put together from wrong shares.
    """

    commitment: Bytes32
    boxes: Annotated[tuple[Box, ...], _FEW]


class Masked(FromSilo, frozen=True, kw_only=True, tag="masked"):
    slots: tuple[Slot, ...]


class Agreement(FromSilo, frozen=True, kw_only=True, tag="agreement"):
    signature: SignatureBytes


class Revealed(FromSilo, frozen=True, kw_only=True, tag="revealed"):
    """For each survivor a share of its seed b; for each silo that dropped out after it had dealt, a share of its key s."""

    seeds: Annotated[tuple[Share, ...], _FEW]
    mask_keys: Annotated[tuple[Share, ...], _FEW]


class Advertisements(Message, frozen=True, kw_only=True, tag="advertisements"):
    keys: Annotated[tuple[Keys, ...], _FEW]


class RoutedShares(Message, frozen=True, kw_only=True, tag="routed shares"):
    boxes: Annotated[tuple[Box, ...], _FEW]


class Survivors(Message, frozen=True, kw_only=True, tag="survivors"):
    survivors: Annotated[tuple[Name, ...], _FEW]


class Agreements(Message, frozen=True, kw_only=True, tag="agreements"):
    """The signatures, and whose seeds and whose keys are asked for: survivors and dropped."""

    survivors: Annotated[tuple[Name, ...], _FEW]
    dropped: Annotated[tuple[Name, ...], _FEW]
    signatures: Annotated[tuple[Signature, ...], _FEW]


class _Versioned(msgspec.Struct, frozen=True):
    """What a message of any version has."""

    version: int


_ALL = Advertisement | Shares | Masked | Agreement | Revealed | Advertisements | RoutedShares | Survivors | Agreements
_ANY, _VERSIONED = msgspec.msgpack.Decoder(_ALL), msgspec.msgpack.Decoder(_Versioned)
M = TypeVar("M", bound=Message)


def encode(message: Message) -> bytes:
    return msgspec.msgpack.encode(message)


class Header(TypedDict):
    """The fields of `Message`."""

    version: int
    session: str
    round_number: int
    attempt: int
    terms: bytes


def header(terms: Terms) -> Header:
    """What a message of the current version begins with."""
    return Header(
        version=VERSION,
        session=terms.session,
        round_number=terms.round_number,
        attempt=terms.attempt,
        terms=terms.digest,
    )


def decode(data: bytes, kind: type[M], terms: Terms, *, where: str) -> M:
    """The message that the bytes are, if it is one of this kind, version and attempt.

    Args:
      data: as they came. A vector in the message is a view of them.
      kind: the one that is expected.
      terms: the receiver's.
      where: receiver, sender and attempt, for the error.

    Raises:
      ProtocolError: for anything else.
    """
    try:
        version = _VERSIONED.decode(data).version
        if version != VERSION:
            raise ProtocolError(
                f"{where}: the other side speaks version {version} of the secure sum's protocol, this side version {VERSION}; expected the same. Install the same release of tff-pipeline at both."
            )
        message = _ANY.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(
            f"{where}: what came is no message of this protocol ({_reason(error)}); expected {_called(kind)}. Nothing was used of it. Look at the connection and at the other side's version."
        ) from None
    if not isinstance(message, kind):
        raise ProtocolError(
            f"{where}: {_called(type(message))} came; expected {_called(kind)}. Messages belong to one stage each; nothing was used of it."
        )
    for named, expected, value in (
        ("session", terms.session, message.session),
        ("round", terms.round_number, message.round_number),
        ("attempt", terms.attempt, message.attempt),
    ):
        if value != expected:
            raise ProtocolError(
                f"{where}: the message belongs to {named} {_short(value)}; expected {named} {expected}. It is stale or was sent twice; nothing was used of it."
            )
    if message.terms != terms.digest:
        raise ProtocolError(
            f"{where}: the other side has another roster or threshold; expected the same at all parties. Compare the rosters; nothing was used of the message."
        )
    return message


def distinct(names: Iterable[str], allowed: Sequence[str], *, what: str, where: str) -> tuple[str, ...]:
    """The names, if none comes twice and all are allowed.

    Raises:
      ProtocolError: naming the first that is not.
    """
    seen: set[str] = set()
    for name in (names := tuple(names)):
        if name in seen:
            raise ProtocolError(
                f"{where}: silo {name} is in the list of {what} twice; expected every silo once. Nothing was sent."
            )
        if name not in allowed:
            raise ProtocolError(
                f"{where}: silo {name} is in the list of {what}, and is none of those that may be: {', '.join(allowed)}. Nothing was sent."
            )
        seen.add(name)
    return names


def enough(count: int, terms: Terms, *, what: str, where: str) -> None:
    """Refuses what fewer silos than the threshold stand behind.

    Raises:
      ProtocolError: naming both numbers.
    """
    if count < terms.threshold:
        raise ProtocolError(
            f"{where}: {count} of {len(terms.roster)} silos {what}; expected at least the threshold, {terms.threshold}. The attempt ends without a sum. Start another when more silos are there."
        )


def words(vector: np.ndarray) -> memoryview:
    """A contiguous array's integers as they are sent; a view of them where the machine is little-endian."""
    little = vector.astype(vector.dtype.newbyteorder("<"), copy=False).reshape(-1)
    return little.data.cast("B") if little.size else memoryview(b"")


def dtype_name(dtype: np.dtype) -> DtypeName:
    """As messages write a dtype.

    Raises:
      ProtocolError: if its ring is none of the protocol's.
    """
    match dtype.name:
        case "uint16" | "uint32" | "uint64" as name:
            return name
    raise ProtocolError(
        f"a sum is of {dtype.name}; expected uint16, uint32 or uint64, the rings of the secure sum. Nothing was sent."
    )


def _called(kind: type[Message]) -> str:
    return f"a message of {kind.__struct_config__.tag!r}"


def _reason(error: Exception) -> str:
    """What msgspec says. It names fields and types; of the message it repeats at most a field's name or the message's kind."""
    return _short(str(error).replace("`", "'"))


def _short(value: object) -> str:
    """So that a message cannot write lines of its own into a log, nor fill it."""
    return "".join(character if character.isprintable() else "?" for character in str(value))[:200]
