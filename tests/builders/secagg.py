"""A consortium in one process whose parties talk in bytes, and the forging of what they say."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tff_pipeline.secagg import identity, keys, messages
from tff_pipeline.secagg.client import Client
from tff_pipeline.secagg.journal import Journal, MemoryJournal
from tff_pipeline.secagg.server import Server, Slot, Sums
from tff_pipeline.secagg.terms import STAGES, Terms

NAMES = ("bank", "clinic", "insurer", "shop", "telco")
IDENTITIES = {name: Ed25519PrivateKey.generate() for name in (*NAMES, "union", "yard")}
REQUESTS = {
    "share": messages.Advertisements,
    "mask": messages.RoutedShares,
    "consistency": messages.Survivors,
    "unmask": messages.Agreements,
}
ANSWERS = dict(
    zip(
        STAGES,
        (messages.Advertisement, messages.Shares, messages.Masked, messages.Agreement, messages.Revealed),
        strict=True,
    )
)


def roster(names: Iterable[str] = NAMES) -> dict[str, bytes]:
    return {name: identity.public_bytes(IDENTITIES[name]) for name in names}


def small_values(names: Iterable[str] = NAMES) -> dict[str, list[np.ndarray]]:
    """Two arrays for each silo: 1, 10, 100, ... in uint32, and the largest number of uint16."""
    return {
        name: [np.full(3, 10**place, np.uint32), np.array(2**16 - 1, np.uint16)] for place, name in enumerate(names)
    }


class Attempt:
    """One attempt of some silos. `requests` are what the server asked of each silo in the stage that is under way."""

    def __init__(
        self,
        names: Sequence[str] = NAMES,
        *,
        threshold: int = 3,
        session: str = "consortium/run-1",
        round_number: int = 7,
        attempt: int = 0,
        values: Mapping[str, list[np.ndarray]] | None = None,
        noised: Collection[int] = (),
        noise: Mapping[int, np.ndarray] | None = None,
        journals: Mapping[str, Journal] | None = None,
        seen: Mapping[str, set[bytes]] | None = None,
        server: bool = True,
    ):
        self.terms = Terms(session, round_number, attempt, threshold, roster(names))
        self.values = small_values(names) if values is None else values
        self.noise = noise or {}
        agreed: dict[str, Any] = {
            "roster": roster(names),
            "threshold": threshold,
            "session": session,
            "round_number": round_number,
            "attempt": attempt,
        }
        self.clients = {
            name: Client(
                name=name,
                identity_key=IDENTITIES[name],
                journal=journals[name] if journals else MemoryJournal(f"silo {name}"),
                seen=seen[name] if seen else set(),
                noised=noised,
                **agreed,
            )
            for name in names
        }
        shapes = [Slot(value.shape, value.dtype) for value in next(iter(self.values.values()))]
        self.server = Server(slots=shapes, **agreed)
        self.requests: dict[str, bytes] = dict.fromkeys(names, b"")
        self.answers: dict[str, dict[str, bytes]] = {stage: {} for stage in STAGES}

    def ask(self, name: str, stage: str, request: bytes | None = None) -> bytes:
        """A silo's answer to a stage; to the server's own request where no other is given."""
        client = self.clients[name]
        request = self.requests[name] if request is None else request
        match stage:
            case "advertise":
                return client.advertise()
            case "share":
                return client.share_keys(request)
            case "mask":
                return client.mask(request, self.values[name], self.noise)
            case "consistency":
                return client.consistency(request)
        return client.unmask(request)

    def stage(self, answering: Iterable[str] | None = None) -> dict[str, bytes]:
        """Plays the stage that is under way with these silos, or all that were asked; the next one's requests."""
        stage = self.server.stage
        for name in self.requests if answering is None else answering:
            self.answers[stage][name] = self.ask(name, stage)
            self.server.take(name, self.answers[stage][name])
        self.requests = self.server.finish()
        return self.requests

    def until(self, stage: str, **answering: Iterable[str]) -> "Attempt":
        """Plays all stages before this one, with the silos named by stage."""
        while self.server.stage != stage:
            self.stage(answering.get(self.server.stage))
        return self

    def play(self, **answering: Iterable[str]) -> Sums:
        """Plays what is left."""
        self.until("done", **answering)
        return self.server.result()

    def forged(self, name: str, **fields: object) -> bytes:
        """The server's request of the stage under way to a silo, with fields replaced."""
        return forge(self.requests[name], REQUESTS[self.server.stage], **fields)

    def request(self, name: str) -> Any:
        """The server's request of the stage under way, decoded."""
        return msgspec.msgpack.decode(self.requests[name], type=REQUESTS[self.server.stage])


def forge(data: bytes, kind: type[messages.Message], /, **fields: object) -> bytes:
    """A message with fields replaced."""
    return messages.encode(msgspec.structs.replace(msgspec.msgpack.decode(data, type=kind), **fields))


def signed_keys(terms: Terms, name: str, share_key: bytes, mask_key: bytes) -> messages.Keys:
    """Keys under the silo's own signature, as a silo that colludes makes them."""
    content = keys.advertisement(terms, name, share_key, mask_key)
    return messages.Keys(name, share_key, mask_key, identity.sign(IDENTITIES[name], content))


def fresh_key() -> bytes:
    return X25519PrivateKey.generate().public_key().public_bytes_raw()


def with_part(parts: Sequence[Any], silo: str, change: Callable[[Any], Any]) -> tuple[Any, ...]:
    """The parts of a message, that of one silo changed."""
    return tuple(change(part) if part.silo == silo else part for part in parts)


def changed(data: bytes, place: int = -1) -> bytes:
    """Bytes with one bit changed."""
    altered = bytearray(data)
    altered[place] ^= 1
    return bytes(altered)


def plain_sum(values: Mapping[str, Sequence[np.ndarray]], survivors: Iterable[str]) -> list[np.ndarray]:
    """The sum of these silos' values, by Python's integers, in each array's ring."""
    survivors = tuple(survivors)
    sums = []
    for index, first in enumerate(values[survivors[0]]):
        modulus = 2 ** (8 * first.dtype.itemsize)
        exact = sum(values[name][index].astype(object) for name in survivors)
        sums.append(np.array(np.asarray(exact, object) % modulus, first.dtype))
    return sums
