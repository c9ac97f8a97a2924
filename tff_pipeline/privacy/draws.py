"""Everything random in a run: cohorts, noise, noise shares, rotation. All of it follows from one draw.

The draw is a digest of every party's key and of what the run starts from: its settings, its base weights, every silo's
data. What a party draws in a round follows from its own secret, the draw, the round's number, and a digest of what the
round starts from: the server's state, and what clients are fed. So a round that is repeated from the same files is the
same round, and the same release; and where any key is lost, or any file is another, cohorts, noise and rotation are all
new, for every party, and the ledger is charged for a new round. Nobody adds the same noise to two sums, and no cohort
stands for two charges.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from tff_pipeline.artifacts import canonical_json
from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy.keys import PartyKey
from tff_pipeline.privacy.mechanisms import ServerInputs
from tff_pipeline.privacy.plan import PrivacyPlan
from tff_pipeline.privacy.round import Round


@dataclasses.dataclass(frozen=True)
class Draws:
    """The draws of a run.

    Attributes:
      plan: what is drawn, and how much of it.
      server: the server's key.
      silos: each silo's, by name.
      origin: a digest of what the run starts from.
    """

    plan: PrivacyPlan
    server: PartyKey
    silos: Mapping[str, PartyKey]
    origin: str

    @functools.cached_property
    def digest(self) -> str:
        """The draw, 64 hex digits: one bit of a key or of the origin more or less, and it is another."""
        commitments = {name: key.commitment for name, key in self.silos.items()}
        parts = {"origin": self.origin, "server": self.server.commitment, "silos": commitments}
        return hashlib.sha256(b"tff-pipeline draw\0" + canonical_json(parts)).hexdigest()

    @property
    def name(self) -> str:
        """The draw as the ledger names it; it tells nothing about the keys."""
        return self.digest[:16]

    def round(self, starts: Sequence[str]) -> "RoundDraws":
        """The draws of a round, given what it and every round before it started from (`start_of`), oldest first."""
        return RoundDraws(self, Round(self.digest, tuple(starts)))


@dataclasses.dataclass(frozen=True)
class RoundDraws:
    """What the parties draw in one round. Each method uses the secret of one party only, and public digests.

    Purposes name the silo, so that two silos which came to have one key do not draw the same.
    """

    draws: Draws
    round: Round

    @property
    def number(self) -> int:
        """Of the round in its run, from 0."""
        return self.round.number

    @property
    def start(self) -> str:
        """What the round starts from, as the ledger names it."""
        return self.round.start

    @property
    def name(self) -> str:
        """Names the round's draw."""
        return self.round.name

    # -- what a silo draws

    def cohort(self, silo: str, clients: int) -> np.ndarray:
        """The rows of the silo's clients that take part, int64, ascending, drawn as the plan's accounting assumes."""
        return self.draws.plan.cohort(self.draws.silos[silo].secret, silo=silo, round=self.round, clients=clients)

    def noise_share(self, silo: str) -> np.ndarray:
        """The silo's share of the round's noise, int64 [length], where silos add it."""
        return self.draws.plan.noise_share(self.draws.silos[silo].secret, silo=silo, round=self.round)

    def begin(self) -> None:
        """Has every silo note that the round is about to be charged; see `PartyKey.begin`."""
        for silo, key in self.draws.silos.items() if self.draws.plan.private else ():
            key.begin(self.name, where=f"silo {silo}: round {self.number + 1}")

    def record(self, silo: str, sums: Sequence[np.ndarray]) -> None:
        """Has the silo record what it is about to report; see `PartyKey.record`.

        Raises:
          PrivacyError: if it has reported something else in this round.
        """
        if self.draws.plan.private:
            where = f"silo {silo}: round {self.number + 1}"
            self.draws.silos[silo].record(self.name, sums, where=where)

    # -- what the server draws

    def noise(self, shapes: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """The noise that the server adds, float64, one array a weight; and one number for the count of an adaptive clip."""
        inputs = self._server_inputs(shapes)
        if inputs.noise is None:
            raise PrivacyError("the server adds no noise with this mechanism; expected one whose noise it adds.")
        return [*inputs.noise, *([] if inputs.count_noise is None else [inputs.count_noise])]

    def metrics_noise(self) -> list[float]:
        """The noise on the sums that a round's metrics are released as."""
        metrics = self.draws.plan.noised_metrics
        if metrics is None:
            raise PrivacyError('the run releases no metrics with noise; expected privacy.metrics = "noised".')
        return metrics.noise(self.draws.server.secret, round=self.round)

    def rotation(self) -> np.ndarray:
        """The public seed of the round's rotation, int64 [2]."""
        rotation = self._server_inputs(()).rotation
        if rotation is None:
            raise PrivacyError("updates are not rotated with this mechanism; expected one whose noise the silos add.")
        return rotation

    def _server_inputs(self, shapes: Sequence[Sequence[int]]) -> ServerInputs:
        return self.draws.plan.server_inputs(self.draws.server.secret, round=self.round, shapes=shapes)
