"""Pairwise masks: the server adds up what the silos send and learns the sum, and nothing else.

The protocol is the first half of Bonawitz et al. 2017 ("Practical Secure Aggregation for Privacy-Preserving Machine
Learning", section 4.0.1), for parties that do not drop out within a round: every pair of silos u < v agrees on a secret
by X25519 and expands it, with HKDF-SHA256 and ChaCha20, into a mask m(u, v) for each round; u adds it, v subtracts it,

    y_u = x_u + sum over v > u of m(u, v) - sum over v < u of m(v, u)      (mod 2**64, or what the array's dtype holds)

so that the masks cancel in the sum over all silos, and the reports of any proper subset look uniform. Numbers are uint64,
uint32 or uint16. Either their ring is large enough for the exact sum, or the sum is defined modulo 2**32 or 2**16; then it
has to be masked in that ring, since its sum in a larger one would tell how often it wrapped around.

Where a silo's sum must not leave without noise, the party is told so when it is made: it adds the noise itself before the
mask, and refuses to mask without it.

A server that is curious but follows the protocol learns only the sum, if at least two silos do not collude with it.
With a single silo there is nothing to hide in: its sum is the sum. The protocol does not resist a server that swaps public
keys: on a network, silos have to authenticate each other's keys.
"""

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tff_pipeline.errors import PrivacyError
from tff_pipeline.secagg.masks import add_mask, add_up, keystream, noised

__all__ = ["Party", "add_up", "introduce"]


class Party:
    """One silo's side. Its private key is drawn from the operating system and never leaves the object.

    Args:
      name: unique among the parties; the order of names decides who adds and who subtracts.
      session: identifies the run; part of every key's derivation.
      noised: indices of the arrays that must not leave without noise.
    """

    def __init__(self, name: str, session: str, *, noised: Collection[int] = ()):
        self.name, self._session, self._noised = name, session, frozenset(noised)
        self._private = X25519PrivateKey.generate()
        self.public_key = self._private.public_key().public_bytes_raw()
        self._shared: dict[str, bytes] | None = None
        self._used: set[int] = set()

    def agree(self, public_keys: Mapping[str, bytes]) -> None:
        """Takes the public keys of all parties, its own among them.

        Raises:
          PrivacyError: if its own key is missing or is not the one it sent.
        """
        if public_keys.get(self.name) != self.public_key:
            raise PrivacyError(
                f"silo {self.name}: the list of public keys does not hold the key this silo sent; expected it unchanged. No mask is made with such a list. Check who relays the keys, and start the run again."
            )
        self._shared = {
            name: self._private.exchange(X25519PublicKey.from_public_bytes(key))
            for name, key in public_keys.items()
            if name != self.name
        }

    def mask(
        self, values: Sequence[np.ndarray], round_number: int, noise: Mapping[int, np.ndarray] = MappingProxyType({})
    ) -> list[np.ndarray]:
        """`values`, unsigned arrays of any shape, masked for one round, each in the ring of its dtype.

        Args:
          values: the silo's sums.
          round_number: of the run.
          noise: by index, int64 of the array's shape: what is added to an array that must not leave without it.

        Raises:
          PrivacyError: if this round was masked before, since two reports under one mask would show their difference; if
            noise is missing; or if no mask can be made, since keys were not agreed or numbers are not unsigned integers.
        """
        if self._shared is None:
            raise PrivacyError(
                f"silo {self.name}: round {round_number} was to be masked before public keys were exchanged; expected the keys of all silos first. Nothing was sent."
            )
        where = f"silo {self.name}: round {round_number}"
        masked = noised(values, noise, self._noised, where=where)
        if round_number in self._used:
            raise PrivacyError(
                f"silo {self.name}: round {round_number} was masked before; expected one report a round, since two under one mask reveal their difference."
            )
        self._used.add(round_number)
        for peer, shared in self._shared.items():
            add_mask(masked, keystream(self._mask_key(peer, shared, round_number)), subtract=self.name > peer)
        return masked

    def _mask_key(self, peer: str, shared: bytes, round_number: int) -> bytes:
        low, high = sorted((self.name, peer))
        info = "\0".join(("tff-pipeline mask", self._session, str(round_number), low, high)).encode()
        return HKDF(SHA256(), length=32, salt=None, info=info).derive(shared)


def introduce(parties: Sequence[Party]) -> None:
    """Gives every party everybody's public key: what a server relays."""
    public_keys = {party.name: party.public_key for party in parties}
    for party in parties:
        party.agree(public_keys)
