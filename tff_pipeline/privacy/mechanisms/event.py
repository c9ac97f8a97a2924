"""What one round is to the accountant: Gaussian mechanisms, or no privacy at all.

The ledger holds an event's JSON form, so a form that was once written is read for ever. Each mechanism's module has the
events of its rounds.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event(abc.ABC):
    """One round as the ledger charges it and as the accountant composes it: Gaussian mechanisms, or no privacy at all.

    Attributes:
      unit: whom the round's noise hides, "client" or "silo".
    """

    kind: ClassVar[str]
    unit: str = "client"

    @classmethod
    @abc.abstractmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self: ...

    @abc.abstractmethod
    def numbers(self) -> dict[str, Any]:
        """The event's own numbers, under the ledger's keys."""

    def as_json(self) -> dict[str, Any]:
        """The ledger's form. The unit is in it only where it is not the client."""
        unit = {"unit": self.unit} if self.unit != "client" else {}
        return {**unit, "kind": self.kind, **self.numbers()}

    @property
    @abc.abstractmethod
    def gaussian_noise_multiplier(self) -> float | None:
        """Of the Gaussian mechanisms that the round is accounted for as; None where nothing is guaranteed."""

    @property
    def poisson_probability(self) -> float | None:
        """Of the Poisson sampling that is counted on; None where none is."""
        return None

    @property
    def log_error(self) -> float:
        """How far the logarithm of a probability may be from that of the mechanism which is accounted for in its place."""
        return 0.0

    def gaussians(self, rounds: int) -> int:
        """How many Gaussian mechanisms the first `rounds` rounds of a run are."""
        return rounds

    @abc.abstractmethod
    def __str__(self) -> str:
        """The round in words, as `tff-pipeline ledger show` lists it after the word "each"."""
