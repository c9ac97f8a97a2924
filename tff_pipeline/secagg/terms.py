"""What all parties of one attempt at a round have to agree on, and how a message says which attempt it belongs to.

A party makes its `Terms` from its own configuration and never from a message. Their digest is part of every signature and of
every key's derivation, so that parties with different terms cannot use anything of each other's.
"""

import dataclasses
import functools
from collections.abc import Mapping

from tff_pipeline.errors import ProtocolError
from tff_pipeline.secagg.canonical import digest

VERSION = 1

# The order in which a silo answers. Bonawitz et al. 2017, figure 4: rounds 0 to 4.
STAGES = ("advertise", "share", "mask", "consistency", "unmask")


@dataclasses.dataclass(frozen=True)
class Terms:
    """The agreement of one attempt.

    Attributes:
      session: names the consortium and the run.
      round_number: of the run.
      attempt: at the round; a round that failed is tried again with the next number.
      threshold: t, the number of silos without which nothing is unmasked.
      roster: the Ed25519 public key, 32 bytes, of each silo that may take part; a silo not in it does not exist.

    Raises:
      ProtocolError: if the threshold is not above half of the roster, or two silos have one key.
    """

    session: str
    round_number: int
    attempt: int
    threshold: int
    roster: Mapping[str, bytes]

    def __post_init__(self) -> None:
        silos = len(self.roster)
        if silos < 2:
            raise ProtocolError(
                f"{self.where}: the roster has {silos} silo(s); expected at least 2, since the sum of one silo is its own. Complete the roster."
            )
        if not silos < 2 * self.threshold <= 2 * silos:
            raise ProtocolError(
                f"{self.where}: the threshold is {self.threshold} of {silos} silos; expected more than half of them and at most all, since a server could otherwise unmask two different sums. Set a threshold from {silos // 2 + 1} to {silos}."
            )
        if any(len(key) != 32 for key in self.roster.values()):
            raise ProtocolError(
                f"{self.where}: the roster has an identity key that is not 32 bytes long; expected Ed25519 public keys. Correct the roster."
            )
        if len(set(self.roster.values())) < silos:
            raise ProtocolError(
                f"{self.where}: two silos of the roster have the same identity key; expected one key for each, since one silo could otherwise sign as two. Correct the roster."
            )

    @property
    def where(self) -> str:
        """As messages name the attempt."""
        return f"round {self.round_number}, attempt {self.attempt}"

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The roster's silos in order. The order decides who adds and who subtracts, and which share a silo holds."""
        return tuple(sorted(self.roster))

    def index(self, name: str) -> int:
        """Where the silo's shares lie on the polynomials: from 1, the same in every round of a roster."""
        return self.names.index(name) + 1

    @functools.cached_property
    def digest(self) -> bytes:
        """32 bytes that stand for the terms and for the version of the protocol."""
        members = [part for name in self.names for part in (name, self.roster[name])]
        return digest(
            "tff-pipeline secagg terms",
            VERSION,
            self.session,
            self.round_number,
            self.attempt,
            self.threshold,
            *members,
        )
