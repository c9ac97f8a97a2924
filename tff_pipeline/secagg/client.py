"""One silo's side of the secure sum: Bonawitz et al. 2017, figure 4, with the parts for a server that breaks the protocol.

A `Client` is made for one attempt at one round, with fresh keys, and is asked once for each stage, in this order:

    client = Client(name=..., identity=..., roster=..., threshold=..., session=..., round_number=..., attempt=...,
                    noised=..., journal=..., seen=...)
    bytes = client.advertise()                      stage "advertise":   its public keys, signed
    bytes = client.share_keys(request)              stage "share":       everybody's keys in, encrypted shares out
    bytes = client.mask(request, values, noise)     stage "mask":        encrypted shares in, the masked sums out
    bytes = client.consistency(request)             stage "consistency": the survivors in, its signature out
    bytes = client.unmask(request)                  stage "unmask":      everybody's signatures in, shares out

Requests are what `Server.finish` gave for this silo. Each answer is noted in the journal before it is returned. Whatever is
refused raises a ProtocolError, nothing has left then, and the client answers nothing more: the attempt goes on without it.

What a silo believes is its own configuration (roster, threshold, identity key) and what the other silos signed. The
server is believed nothing that could cost more than the attempt.
"""

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tff_pipeline.errors import ProtocolError
from tff_pipeline.secagg import identity, keys, messages, shamir
from tff_pipeline.secagg.journal import Journal
from tff_pipeline.secagg.keys import Peer
from tff_pipeline.secagg.masks import add_mask, keystream, noised
from tff_pipeline.secagg.terms import STAGES, Terms


class Client:
    """One silo in one attempt at one round. Its secrets are drawn from the operating system and leave it as shares only.

    Args:
      name: the silo's, in the roster.
      identity_key: its Ed25519 key; the roster has the public one.
      roster: the Ed25519 public key of each silo that may take part, by name.
      threshold: t, above half of the roster.
      session: names the consortium and the run.
      round_number: of the run.
      attempt: at the round.
      journal: notes every answer before it is given.
      seen: the public keys of earlier attempts, by this and other silos; new ones are added. The silo's service keeps it.
      noised: indices of the arrays that must not leave without noise.
      colluding: how many of the other silos may side with a server that breaks the protocol.

    Raises:
      ProtocolError: if the threshold does not protect against that, or the silo's name or key is not the roster's.
    """

    def __init__(
        self,
        *,
        name: str,
        identity_key: Ed25519PrivateKey,
        roster: Mapping[str, bytes],
        threshold: int,
        session: str,
        round_number: int,
        attempt: int,
        journal: Journal,
        seen: set[bytes],
        noised: Collection[int] = (),
        colluding: int = 0,
    ):
        self._terms = Terms(session, round_number, attempt, threshold, MappingProxyType(dict(roster)))
        self.name, self._identity, self._journal, self._seen = name, identity_key, journal, seen
        self._noised = frozenset(noised)
        self._where = f"silo {name}: {self._terms.where}"
        if roster.get(name) != identity.public_bytes(identity_key):
            raise ProtocolError(
                f"{self._where}: the roster does not have this silo with the public key of its identity; expected it. Nothing was sent. Compare the roster with the silo's certificate."
            )
        if 2 * threshold <= len(roster) + colluding:
            raise ProtocolError(
                f"{self._where}: the threshold is {threshold} of {len(roster)} silos, of which {colluding} may collude with the server; expected more than half of {len(roster) + colluding}, since they could otherwise sign for two lists of survivors. Raise the threshold."
            )
        self._share_private = X25519PrivateKey.generate()  # c
        self._mask_private = X25519PrivateKey.generate()  # s
        self._seed = shamir.random_secret()  # b
        self._own = self._signed_keys()
        self._advertised: dict[str, messages.Keys] = {}  # U1
        self._mask_keys: dict[str, bytes] = {}  # of the pair masks, by the other silo
        self._held: dict[str, tuple[bytes, bytes]] = {}  # the shares of s and of b that this silo holds, by whose; U2
        self._survivors: tuple[str, ...] = ()  # U3
        self._answered: list[str] = []
        self._over = False
        self._lock = threading.Lock()

    def advertise(self) -> bytes:
        """Round 0: the public keys c and s of this attempt, signed with the identity key."""
        with self._stage("advertise"):
            return messages.encode(
                messages.Advertisement(**messages.header(self._terms), silo=self.name, keys=self._own)
            )

    def share_keys(self, request: bytes) -> bytes:
        """Round 1: checks everybody's keys, and deals shares of s and b, encrypted for each other silo.

        Args:
          request: the `Advertisements` of U1.

        Raises:
          ProtocolError: if they are of fewer than t silos, or this silo's are not among them as it sent them; if some are not signed for
            this attempt, equal to others or to earlier ones, or of small order.
        """
        with self._stage("share"):
            advertised = self._decode(request, messages.Advertisements).keys
            self._check_keys(advertised)
            self._advertised = {silo.silo: silo for silo in advertised}
            peers = [name for name in sorted(self._advertised) if name != self.name]
            terms, shares = self._terms, len(self._terms.names)
            of_key = shamir.deal(self._mask_private.private_bytes_raw(), shares=shares, threshold=terms.threshold)
            of_seed = shamir.deal(self._seed, shares=shares, threshold=terms.threshold)
            self._held = {self.name: (of_key[terms.index(self.name)], of_seed[terms.index(self.name)])}
            boxes = []
            for peer in peers:
                pair = of_key[terms.index(peer)] + of_seed[terms.index(peer)]
                boxes.append(messages.Box(peer, self._agree(peer, pair)))
            self._seen.update(key for silo in advertised for key in (silo.share_key, silo.mask_key))
            return messages.encode(
                messages.Shares(
                    **messages.header(terms),
                    silo=self.name,
                    commitment=keys.commitment(terms, self.name, self._seed),
                    boxes=tuple(boxes),
                )
            )

    def mask(
        self,
        request: bytes,
        values: Sequence[np.ndarray],
        noise: Mapping[int, np.ndarray] = MappingProxyType({}),
    ) -> bytes:
        """Round 2: the silo's sums with noise shares and masks, each in the ring of its dtype (y_u of section 4.0.2).

            y_u = x_u + PRG(b_u) + sum over v > u of PRG(s_uv) - sum over v < u of PRG(s_uv)        over v in U2

        Args:
          request: the `RoutedShares` for this silo; who dealt them is U2.
          values: the silo's sums, uint16, uint32 or uint64 of any shape.
          noise: by index, int64 of the array's shape: what is added to an array that must not leave without it.

        Raises:
          ProtocolError: if fewer than t silos dealt, or a share is not what its sender encrypted for this silo.
          PrivacyError: if a sum cannot be masked, or its noise is missing.
        """
        with self._stage("mask"):
            boxes = self._decode(request, messages.RoutedShares).boxes
            others = [name for name in self._advertised if name != self.name]
            dealers = messages.distinct((box.silo for box in boxes), others, what="silos that dealt", where=self._where)
            messages.enough(len(dealers) + 1, self._terms, what="dealt shares", where=self._where)
            for box in boxes:
                self._held[box.silo] = self._unseal(box)
            vectors = noised(values, noise, self._noised, where=self._where)
            names = [messages.dtype_name(vector.dtype) for vector in vectors]
            add_mask(vectors, keystream(keys.self_mask_key(self._terms, self.name, self._seed)))
            for peer in dealers:
                add_mask(vectors, keystream(self._mask_keys[peer]), subtract=self.name > peer)
            slots = tuple(
                messages.Slot(name, messages.words(vector)) for name, vector in zip(names, vectors, strict=True)
            )
            return messages.encode(messages.Masked(**messages.header(self._terms), silo=self.name, slots=slots))

    def consistency(self, request: bytes) -> bytes:
        """Round 3: signs the list of survivors.

        Args:
          request: the `Survivors`, U3.

        Raises:
          ProtocolError: if this silo is not in it, although it sent its report; if fewer than t are, or silos that did not deal.
        """
        with self._stage("consistency"):
            survivors = self._decode(request, messages.Survivors).survivors
            messages.distinct(survivors, sorted(self._held), what="survivors", where=self._where)
            if self.name not in survivors:
                raise ProtocolError(
                    f"{self._where}: the list of survivors leaves this silo out, although it lives and has sent its report; expected it in the list. Nothing was sent. If its report came too late, it takes part in the next attempt."
                )
            messages.enough(len(survivors), self._terms, what="sent their report", where=self._where)
            self._survivors = tuple(sorted(survivors))
            signature = identity.sign(self._identity, self._agreement(self.name))
            return messages.encode(
                messages.Agreement(**messages.header(self._terms), silo=self.name, signature=signature)
            )

    def unmask(self, request: bytes) -> bytes:
        """Round 4: for each survivor the share of its b, for each silo that dealt and dropped out the share of its s; never both.

        Args:
          request: the `Agreements`: who signed the list of survivors, and whose shares of which kind are asked for.

        Raises:
          ProtocolError: if fewer than t signed exactly the list that this silo signed, or other shares are asked for than follow from it.
        """
        with self._stage("unmask"):
            agreements = self._decode(request, messages.Agreements)
            self._check_asked(agreements)
            self._check_signatures(agreements.signatures)
            revealed = messages.Revealed(
                **messages.header(self._terms),
                silo=self.name,
                seeds=tuple(messages.Share(name, self._held[name][1]) for name in self._survivors),
                mask_keys=tuple(
                    messages.Share(name, self._held[name][0]) for name in sorted(set(self._held) - set(self._survivors))
                ),
            )
            self._held.clear()
            return messages.encode(revealed)

    @contextmanager
    def _stage(self, stage: str) -> Iterator[None]:
        """Answers a stage once and in its turn; notes the answer; after a refusal nothing more is answered."""
        with self._lock:
            self._require_turn(stage)
            self._answered.append(stage)  # before the work, so that no second call finds it open
        try:
            yield
            self._journal.note(stage, self._terms.round_number, self._terms.attempt, self._survivors)
        except BaseException:
            self._over = True
            self._held.clear()
            raise

    def _require_turn(self, stage: str) -> None:
        if self._over:
            raise ProtocolError(
                f"{self._where}: stage {stage!r} was asked for after this silo had refused another; expected nothing more in this attempt. Nothing was sent. Begin another attempt."
            )
        if stage in self._answered:
            raise ProtocolError(
                f"{self._where}: stage {stage!r} was asked for a second time; expected once, since two answers tell more than one. Nothing was sent."
            )
        if stage != STAGES[len(self._answered)]:
            raise ProtocolError(
                f"{self._where}: stage {stage!r} was asked for out of order; expected {STAGES[len(self._answered)]!r}. Nothing was sent."
            )

    def _decode(self, request: bytes, kind: type[messages.M]) -> messages.M:
        return messages.decode(request, kind, self._terms, where=f"{self._where}: request of the server")

    def _signed_keys(self) -> messages.Keys:
        share_key, mask_key = keys.public_bytes(self._share_private), keys.public_bytes(self._mask_private)
        content = keys.advertisement(self._terms, self.name, share_key, mask_key)
        return messages.Keys(self.name, share_key, mask_key, identity.sign(self._identity, content))

    def _check_keys(self, advertised: Sequence[messages.Keys]) -> None:
        names = messages.distinct(
            (silo.silo for silo in advertised), self._terms.names, what="advertised keys", where=self._where
        )
        messages.enough(len(names), self._terms, what="advertised keys", where=self._where)
        if self._own not in advertised:
            raise ProtocolError(
                f"{self._where}: the list of public keys does not hold the keys this silo sent; expected them unchanged. Nothing was sent. Check who relays the keys."
            )
        used: set[bytes] = set()
        for silo in advertised:
            where = f"{self._where}: the keys of silo {silo.silo}"
            content = keys.advertisement(self._terms, silo.silo, silo.share_key, silo.mask_key)
            if not identity.verify(self._terms.roster[silo.silo], content, silo.signature):
                raise ProtocolError(
                    f"{where} are not signed by it for this attempt; expected its signature under session, round, attempt, roster and keys. Nothing was sent. Somebody has changed or swapped them, or has kept them from another attempt."
                )
            for key in (silo.share_key, silo.mask_key):
                if not keys.well_formed(key):
                    raise ProtocolError(
                        f"{where} hold a number outside the field; expected the one encoding of an X25519 key. Nothing was sent."
                    )
                if key in used:
                    raise ProtocolError(
                        f"{where} hold a key that is in the list already; expected every key once. Nothing was sent. A silo has copied another's, or has one for both purposes."
                    )
                if key in self._seen:
                    raise ProtocolError(
                        f"{where} hold a key of an earlier attempt; expected new ones in every attempt. Nothing was sent. Does that silo's machine start from a copy?"
                    )
                used.add(key)

    def _agree(self, peer: str, shares: bytes) -> bytes:
        """Derives the key of the pair's mask, and encrypts the shares for the peer."""
        own, other = self._own, self._advertised[peer]
        try:
            self._mask_keys[peer] = keys.pair_mask_key(
                self._terms, self._mask_private, Peer(self.name, own.mask_key), Peer(peer, other.mask_key)
            )
            return keys.seal(
                self._terms, self._share_private, Peer(self.name, own.share_key), Peer(peer, other.share_key), shares
            )
        except ValueError:
            raise ProtocolError(
                f"{self._where}: a key of silo {peer} is of small order; expected one that gives a secret. Nothing was sent. That silo runs another program."
            ) from None

    def _unseal(self, box: messages.Box) -> tuple[bytes, bytes]:
        sender = Peer(box.silo, self._advertised[box.silo].share_key)
        shares = keys.unseal(self._terms, self._share_private, sender, Peer(self.name, self._own.share_key), box.box)
        if shares is None or not all(shamir.valid(share) for share in shares):
            raise ProtocolError(
                f"{self._where}: the shares of silo {box.silo} are not what it encrypted for this silo in this attempt; expected them unchanged. Nothing was sent. Look at who relays them."
            )
        return shares

    def _agreement(self, signer: str) -> bytes:
        return keys.agreement(self._terms, signer, self._advertised, tuple(self._held), self._survivors)

    def _check_asked(self, asked: messages.Agreements) -> None:
        dealt = sorted(self._held)
        survivors = set(messages.distinct(asked.survivors, dealt, what="survivors", where=self._where))
        dropped = set(messages.distinct(asked.dropped, dealt, what="dropped silos", where=self._where))
        if both := survivors & dropped:
            raise ProtocolError(
                f"{self._where}: both kinds of share are asked for of silo {min(both)}; expected the one of its seed or the one of its key, since both together unmask its report. Nothing was sent."
            )
        if self.name in dropped:
            raise ProtocolError(
                f"{self._where}: shares of this silo's own key are asked for, as if it had dropped out; it lives. Expected it among the survivors. Nothing was sent."
            )
        if survivors != set(self._survivors):
            raise ProtocolError(
                f"{self._where}: shares are asked for another list of survivors than this silo signed; expected {', '.join(self._survivors)}. Nothing was sent. The server has told silos different things."
            )
        if dropped != set(dealt) - survivors:
            raise ProtocolError(
                f"{self._where}: the dropped silos are not those that dealt and did not survive; expected {len(dealt) - len(survivors)} of them. Nothing was sent."
            )

    def _check_signatures(self, signatures: Sequence[messages.Signature]) -> None:
        signers = messages.distinct(
            (signature.silo for signature in signatures), self._survivors, what="signatures", where=self._where
        )
        messages.enough(len(signers), self._terms, what="signed the list of survivors", where=self._where)
        for signature in signatures:
            public_key = self._terms.roster[signature.silo]
            if not identity.verify(public_key, self._agreement(signature.silo), signature.signature):
                raise ProtocolError(
                    f"{self._where}: silo {signature.silo} did not sign the list of survivors that this silo signed; expected the same list, with the same keys and dealers before it. Nothing was sent. The server has told silos different things, or has changed the signature."
                )
