"""Everything random in a run: cohorts, noise, noise shares, rotation. All of it follows from one draw.

The draw is a digest of every party's key and of what the run starts from: its settings, its base weights, every silo's
data. What a party draws in a round follows from its own secret (`silo_draws`, `server_draws`), the draw, the round's number,
and a digest of what the round starts from: the server's state, and what clients are fed (`round`). So a round that is
repeated from the same files is the same round, and the same release; and where any key is lost, or any file is another,
cohorts, noise and rotation are all new, for every party, and the ledger is charged for a new round. Nobody adds the same
noise to two sums, and no cohort stands for two charges.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence

from tff_pipeline.artifacts import canonical_json
from tff_pipeline.privacy.plan import PrivacyPlan
from tff_pipeline.privacy.round import Round
from tff_pipeline.privacy.server_draws import ServerDraws
from tff_pipeline.privacy.silo_draws import SiloDraws


@dataclasses.dataclass(frozen=True)
class Draws:
    """The draws of a run whose parties are all in this process. Each party is given its own, and no other's.

    Attributes:
      server: the server's.
      silos: each silo's, by name.
      origin: a digest of what the run starts from.
    """

    server: ServerDraws
    silos: Mapping[str, SiloDraws]
    origin: str

    @property
    def plan(self) -> PrivacyPlan:
        """What is drawn, and how much of it."""
        return self.server.plan

    @functools.cached_property
    def digest(self) -> str:
        """The draw, 64 hex digits: one bit of a key or of the origin more or less, and it is another."""
        commitments = {name: silo.key.commitment for name, silo in self.silos.items()}
        return draw_digest(self.origin, self.server.key.commitment, commitments)

    @property
    def name(self) -> str:
        """The draw as the ledger names it; see `draw_name`."""
        return draw_name(self.digest)

    def round(self, starts: Sequence[str]) -> Round:
        """A round of the run, given what it and every round before it started from (`round.start_of`), oldest first."""
        return Round(self.digest, tuple(starts))

    def begin(self, at: Round) -> None:
        """Has every silo note that the round is about to be charged."""
        for silo in self.silos.values():
            silo.begin(at)


def draw_digest(origin: str, server: str, silos: Mapping[str, str]) -> str:
    """The draw of a run, 64 hex digits, from public parts alone.

    Args:
      origin: a digest of what the run starts from.
      server: the commitment to the server's key (`keys.PartyKey.commitment`).
      silos: the commitments to the silos' keys, by name.
    """
    parts = {"origin": origin, "server": server, "silos": dict(silos)}
    return hashlib.sha256(b"tff-pipeline draw\0" + canonical_json(parts)).hexdigest()


def draw_name(digest: str) -> str:
    """A draw as the ledger names it; it tells nothing about the keys."""
    return digest[:16]
