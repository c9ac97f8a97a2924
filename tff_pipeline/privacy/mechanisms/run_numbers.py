"""The numbers of a run that are the same whatever its mechanism."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunNumbers:
    """The numbers of a run that no mechanism owns.

    Attributes:
      unit: what a neighbouring population has one more or one fewer of: "client", or "silo", which is then what a round
        samples, trains on and clips as a whole. The names below say client for either.
      clients: size of the population, N.
      expected_cohort: expected number of clients in a round, q N.
      sampling_probability: with which a client takes part in a round, q.
      rounds: number of rounds T.
      delta: the failure probability the guarantee is stated at, or None.
      dimension: number of coordinates of an update, d.
      max_examples_per_client: the contribution bound that preparation enforced.
      local_epochs: passes over a client's examples in a round.
      silos: number of silos, n.
    """

    unit: str
    clients: int
    expected_cohort: float
    sampling_probability: float
    rounds: int
    delta: float | None
    dimension: int
    max_examples_per_client: int
    local_epochs: int
    silos: int = 1

    @property
    def denominator(self) -> float:
        """What the noised sum is divided by: the expected cohort, which no client changes."""
        return self.expected_cohort
