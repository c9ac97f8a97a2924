"""The server's side of the secure sum: Bonawitz et al. 2017, figure 4.

A `Server` is made for one attempt at one round, and is driven stage by stage; who answers it and how is the caller's:

    server = Server(roster=..., threshold=..., session=..., round_number=..., attempt=..., slots=[Slot(shape, dtype), ...])
    while not server.done:
        for each silo that answers in time:
            server.take(name, answer)                what Client.advertise, share_keys, mask, consistency, unmask returned
        requests = server.finish()                   by silo: the request of the next stage; a silo that is not in it is out
    result = server.result()                         the sums, and whose they are

Before the first `finish` every silo of the roster is asked to advertise, with an empty request. `take` raises a ProtocolError for
an answer that cannot be used, and leaves everything as it was: the caller goes on without that silo. `finish` raises one
where fewer silos than the threshold are left, or no sum can be unmasked: the attempt is over.

A masked vector is added to the sum as it is taken, and is not kept. Beside the message that is being taken the server holds one
vector, whatever the number of silos, and removes masks from it piece by piece.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tff_pipeline.errors import ProtocolError
from tff_pipeline.secagg import identity, keys, messages, shamir
from tff_pipeline.secagg.keys import Peer
from tff_pipeline.secagg.masks import add_mask, add_to, keystream
from tff_pipeline.secagg.terms import STAGES, Terms


@dataclasses.dataclass(frozen=True)
class Slot:
    """One array of a report: its shape, and the dtype whose ring it is summed in."""

    shape: tuple[int, ...]
    dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class Sums:
    """What an attempt gives.

    Attributes:
      values: the sums over the survivors, with their noise shares, each in its ring.
      survivors: whose reports are in it.
    """

    values: list[np.ndarray]
    survivors: tuple[str, ...]


class Server:
    """The server in one attempt at one round. It has no secret, and what it is not sent it does not know.

    Args:
      roster: the Ed25519 public key of each silo that may take part, by name.
      threshold: t, above half of the roster.
      session: names the consortium and the run.
      round_number: of the run.
      attempt: at the round.
      slots: what every report consists of.

    Raises:
      ProtocolError: if the threshold or the roster is not one of the protocol.
    """

    def __init__(
        self,
        *,
        roster: Mapping[str, bytes],
        threshold: int,
        session: str,
        round_number: int,
        attempt: int,
        slots: Sequence[Slot],
    ):
        self._terms = Terms(session, round_number, attempt, threshold, MappingProxyType(dict(roster)))
        self._names = [messages.dtype_name(slot.dtype) for slot in slots]
        self._total = [np.zeros(slot.shape, slot.dtype) for slot in slots]
        self._stages_over = 0
        self._asked: tuple[str, ...] = self._terms.names  # who may answer the current stage
        self._answered: list[str] = []  # who has
        self._keys: dict[str, messages.Keys] = {}  # U1
        self._shares: dict[str, messages.Shares] = {}  # U2
        self._survivors: tuple[str, ...] = ()  # U3
        self._signatures: dict[str, bytes] = {}  # U4
        self._revealed: dict[str, messages.Revealed] = {}  # U5

    @property
    def stage(self) -> str:
        """The stage that is under way, of `terms.STAGES`, or "done"."""
        return "done" if self.done else STAGES[self._stages_over]

    @property
    def done(self) -> bool:
        """Whether there is a result."""
        return self._stages_over == len(STAGES)

    @property
    def waiting_for(self) -> tuple[str, ...]:
        """The silos that have not answered the current stage."""
        return tuple(name for name in self._asked if name not in self._answered)

    def take(self, name: str, answer: bytes) -> None:
        """Takes a silo's answer to the current stage.

        Args:
          name: of the silo that the connection belongs to.
          answer: what its client returned.

        Raises:
          ProtocolError: if it cannot be used. Nothing has changed then.
        """
        where = f"server: {self._terms.where}: answer of silo {name}"
        if self.done or name not in self._asked:
            raise ProtocolError(
                f"{where}: came in stage {self.stage!r}, to which it was not asked; expected an answer of {', '.join(self.waiting_for) or 'nobody'}. It has dropped out, or is none of the roster; nothing was used of it."
            )
        if name in self._answered:
            raise ProtocolError(
                f"{where}: came a second time in stage {self.stage!r}; expected one. Nothing was used of it."
            )
        kind = (
            messages.Advertisement,
            messages.Shares,
            messages.Masked,
            messages.Agreement,
            messages.Revealed,
        )[self._stages_over]
        message = messages.decode(answer, kind, self._terms, where=where)
        if message.silo != name:
            raise ProtocolError(
                f"{where}: names silo {message.silo} as its sender; expected the silo that the connection belongs to. Nothing was used of it."
            )
        match message:
            case messages.Advertisement():
                self._take_keys(name, message, where)
            case messages.Shares():
                self._take_shares(name, message, where)
            case messages.Masked():
                self._take_masked(message, where)
            case messages.Agreement():
                self._take_signature(name, message, where)
            case messages.Revealed():
                self._take_revealed(name, message, where)
        self._answered.append(name)

    def finish(self) -> dict[str, bytes]:
        """Ends the current stage with those that have answered.

        Returns:
          The request of the next stage for each of them; nothing after the last stage, when there is a result.

        Raises:
          ProtocolError: if fewer than t have answered, or their shares do not unmask the sum. The attempt is over.
        """
        if self.done:
            raise ProtocolError(f"server: {self._terms.where}: is done; expected no more stages. Take its result.")
        where = f"server: {self._terms.where}"
        messages.enough(len(self._answered), self._terms, what=f"answered stage {self.stage!r}", where=where)
        answered = tuple(sorted(self._answered))
        requests: dict[str, bytes] = {}
        match self.stage:
            case "advertise":
                requests = self._to_all(
                    messages.Advertisements(
                        **messages.header(self._terms), keys=tuple(self._keys[name] for name in answered)
                    ),
                    answered,
                )
            case "share":
                requests = {name: self._routed(name, answered) for name in answered}
            case "mask":
                self._survivors = answered
                survivors = messages.Survivors(**messages.header(self._terms), survivors=answered)
                requests = self._to_all(survivors, answered)
            case "consistency":
                requests = self._to_all(self._agreements(answered), answered)
            case "unmask":
                self._unmask(where)
        self._stages_over += 1
        self._asked, self._answered = tuple(requests), []
        return requests

    def result(self) -> Sums:
        """The sums; the arrays are the caller's from then on.

        Raises:
          ProtocolError: before the last stage is over.
        """
        if not self.done:
            raise ProtocolError(
                f"server: {self._terms.where}: stage {self.stage!r} is not over; expected all five before there is a sum. Finish them."
            )
        return Sums(self._total, self._survivors)

    def _take_keys(self, name: str, message: messages.Advertisement, where: str) -> None:
        own = message.keys
        content = keys.advertisement(self._terms, name, own.share_key, own.mask_key)
        known = {key for silo in self._keys.values() for key in (silo.share_key, silo.mask_key)}
        if (
            own.silo != name
            or not identity.verify(self._terms.roster[name], content, own.signature)
            or not all(keys.well_formed(key) and key not in known for key in (own.share_key, own.mask_key))
            # Passed on, it would end everybody's attempt: each of them refuses it.
            or not all(keys.gives_secret(key) for key in (own.share_key, own.mask_key))
            or own.share_key == own.mask_key
        ):
            raise ProtocolError(
                f"{where}: its keys are not signed by it for this attempt, or are not its own alone; expected two new X25519 keys under its identity's signature. Nothing was used of it. Look at that silo."
            )
        self._keys[name] = own

    def _take_shares(self, name: str, message: messages.Shares, where: str) -> None:
        others = [silo for silo in self._asked if silo != name]
        receivers = messages.distinct((box.silo for box in message.boxes), others, what="receivers", where=where)
        if len(receivers) != len(others):
            raise ProtocolError(
                f"{where}: has shares for {len(receivers)} silos; expected the {len(others)} others that advertised keys. Nothing was used of it."
            )
        self._shares[name] = message

    def _take_masked(self, message: messages.Masked, where: str) -> None:
        """Adds a report to the sum, after all of it was checked."""
        came = [(slot.dtype, slot.words.nbytes) for slot in message.slots]
        expected = [(name, part.nbytes) for name, part in zip(self._names, self._total, strict=True)]
        if came != expected:
            raise ProtocolError(
                f"{where}: its arrays are {_layout(came)}; expected {_layout(expected)}. Nothing was used of it. Does the silo run the same process?"
            )
        add_to(
            self._total,
            [
                np.frombuffer(slot.words, np.dtype(slot.dtype).newbyteorder("<")).reshape(part.shape)
                for slot, part in zip(message.slots, self._total, strict=True)
            ],
        )

    def _take_signature(self, name: str, message: messages.Agreement, where: str) -> None:
        content = keys.agreement(self._terms, name, self._keys, tuple(self._shares), self._survivors)
        if not identity.verify(self._terms.roster[name], content, message.signature):
            raise ProtocolError(
                f"{where}: did not sign the list of survivors that it was sent; expected its signature under {', '.join(self._survivors)}. Nothing was used of it."
            )
        self._signatures[name] = message.signature

    def _take_revealed(self, name: str, message: messages.Revealed, where: str) -> None:
        for shares, whose, what in (
            (message.seeds, self._survivors, "seeds"),
            (message.mask_keys, self._dropped, "keys"),
        ):
            revealed = messages.distinct((share.silo for share in shares), whose, what=what, where=where)
            if len(revealed) != len(whose) or not all(shamir.valid(share.share) for share in shares):
                raise ProtocolError(
                    f"{where}: has {len(revealed)} shares of {what}; expected one of each of {len(whose)} silos, in the field. Nothing was used of it."
                )
        self._revealed[name] = message

    @property
    def _dropped(self) -> tuple[str, ...]:
        """U2 without U3: the silos that dealt, and whose report did not come."""
        return tuple(name for name in sorted(self._shares) if name not in self._survivors)

    def _to_all(self, message: messages.Message, silos: Sequence[str]) -> dict[str, bytes]:
        encoded = messages.encode(message)
        return dict.fromkeys(silos, encoded)

    def _routed(self, receiver: str, dealers: Sequence[str]) -> bytes:
        boxes = [
            messages.Box(dealer, box.box)
            for dealer in dealers
            for box in self._shares[dealer].boxes
            if box.silo == receiver
        ]
        return messages.encode(messages.RoutedShares(**messages.header(self._terms), boxes=tuple(boxes)))

    def _agreements(self, signers: Sequence[str]) -> messages.Agreements:
        return messages.Agreements(
            **messages.header(self._terms),
            survivors=self._survivors,
            dropped=self._dropped,
            signatures=tuple(messages.Signature(name, self._signatures[name]) for name in signers),
        )

    def _unmask(self, where: str) -> None:
        """Puts the secrets together, all of them before any mask is removed, and removes what did not cancel."""
        seeds = {name: self._seed(name, where) for name in self._survivors}
        dropped = {name: self._mask_key(name, where) for name in self._dropped}
        for name, seed in seeds.items():
            stream = keystream(keys.self_mask_key(self._terms, name, seed))
            add_mask(self._total, stream, subtract=True)
        for name, private in dropped.items():
            own = Peer(name, self._keys[name].mask_key)
            for survivor in self._survivors:
                other = Peer(survivor, self._keys[survivor].mask_key)
                stream = keystream(keys.pair_mask_key(self._terms, private, own, other))
                add_mask(self._total, stream, subtract=survivor < name)

    def _seed(self, name: str, where: str) -> bytes:
        shares = {
            self._terms.index(holder): share.share
            for holder, message in self._revealed.items()
            for share in message.seeds
            if share.silo == name
        }
        seed = shamir.combine(shares, self._terms.threshold)
        if seed is None or keys.commitment(self._terms, name, seed) != self._shares[name].commitment:
            raise self._wrong_shares(name, where)
        return seed

    def _mask_key(self, name: str, where: str) -> X25519PrivateKey:
        shares = {
            self._terms.index(holder): share.share
            for holder, message in self._revealed.items()
            for share in message.mask_keys
            if share.silo == name
        }
        secret = shamir.combine(shares, self._terms.threshold)
        private = None if secret is None else X25519PrivateKey.from_private_bytes(secret)
        if private is None or keys.public_bytes(private) != self._keys[name].mask_key:
            raise self._wrong_shares(name, where)
        return private

    def _wrong_shares(self, name: str, where: str) -> ProtocolError:
        return ProtocolError(
            f"{where}: the shares of silo {name}'s secret do not give it; expected those it dealt. It, or one of {', '.join(sorted(self._revealed))}, sent other shares than the protocol's. There is no sum; begin another attempt without it."
        )


def _layout(slots: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{nbytes} bytes of {dtype}" for dtype, nbytes in slots) or "none"
