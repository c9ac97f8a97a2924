"""DP-FTRL: noise in trees of rounds, and no sampling that is counted on (Kairouz et al. 2021, arXiv:2103.00039).

A tree of t rounds that a client takes part in at most once is floor(log2 t) + 1 Gaussian mechanisms: a round lies in at most
one node of each level (their theorem 4.1; dp_accounting's SingleEpochTreeAggregationDpEvent counts the same). Nodes finish
one after the other, later updates may follow from earlier nodes, and composition of Gaussian mechanisms allows that (Dong,
Roth and Su 2019, corollary 3.3).

Kairouz et al. define neighbours by a client whose records are replaced by nothing (definition 1.1, dp_accounting's
REPLACE_SPECIAL). Here that is the same as removing the client. Its summand becomes zero either way, since the denominator
is a public number; and the others' rounds are drawn for each by itself, so their joint distribution does not know whether
it is there. That the number of clients is public is assumed for all events alike. So they compose.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from tff_pipeline.config import Config
from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy import randomness, sampling
from tff_pipeline.privacy.mechanisms.base import Event, RunNumbers, ServerInputs
from tff_pipeline.privacy.mechanisms.server_noise import ServerNoise
from tff_pipeline.privacy.round import Round


@dataclasses.dataclass(frozen=True, kw_only=True)
class TreeEvent(Event):
    """A round of DP-FTRL, the one event whose rounds are not alike: `count` of them are the first `count` rounds of one run."""

    kind: ClassVar[str] = "tree"
    noise_multiplier: float
    rounds_per_tree: int

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        return cls(
            unit=stored.get("unit", "client"),
            noise_multiplier=float(stored["noise_multiplier"]),
            rounds_per_tree=int(stored["rounds_per_tree"]),
        )

    def numbers(self) -> dict[str, Any]:
        return {"noise_multiplier": self.noise_multiplier, "rounds_per_tree": self.rounds_per_tree}

    @property
    def gaussian_noise_multiplier(self) -> float:
        return self.noise_multiplier

    def gaussians(self, rounds: int) -> int:
        """A level of a tree each.

        An unfinished tree counts as far as it went: a level appears in the round that finishes its first node, the rounds 1,
        2, 4, 8, ... of the tree, and is charged with that round.
        """
        trees, rest = divmod(rounds, self.rounds_per_tree)
        return trees * self.rounds_per_tree.bit_length() + rest.bit_length()

    def __str__(self) -> str:
        return f"of trees of {self.rounds_per_tree} rounds whose nodes have noise multiplier {self.noise_multiplier:g}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tree(ServerNoise):
    """Every node of a tree of rounds has noise of its own; a client takes part in at most one round of each tree.

    Attributes:
      noise_multiplier: of each node.
      rounds_per_tree: after how many rounds a new tree begins, E.
    """

    kind: ClassVar[str] = "tree"
    event_type: ClassVar[type[Event]] = TreeEvent
    rounds_per_tree: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds_per_tree < 1:
            raise PrivacyError(f"rounds_per_tree is {self.rounds_per_tree!r}; expected at least one round.")

    @classmethod
    def from_config(cls, config: Config, run: RunNumbers, *, noise_multiplier: float) -> Self:
        """As many rounds as everybody has a turn in. The last clients may be left without, so that the expected cohort is exact."""
        clip_norm = config.privacy.clip_norm
        if clip_norm is None:
            raise PrivacyError(f'{config.path}: privacy.clip_norm is missing; expected a number with "tree".')
        turns = math.floor(run.clients / config.training.clients_per_round)
        return cls(clip_norm=clip_norm, noise_multiplier=noise_multiplier, rounds_per_tree=turns)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        return cls(
            clip_norm=stored["clip_norm"],
            noise_multiplier=stored["noise_multiplier"],
            rounds_per_tree=stored["rounds_per_tree"],
        )

    def numbers(self) -> dict[str, Any]:
        return super().numbers() | {"rounds_per_tree": self.rounds_per_tree}

    def trees(self, run: RunNumbers) -> int:
        """How many trees are begun, which is how often a client takes part at most."""
        return math.ceil(run.rounds / self.rounds_per_tree)

    def levels(self, run: RunNumbers) -> int:
        """Levels of the highest tree, floor(log2 of its rounds) + 1."""
        return min(run.rounds, self.rounds_per_tree).bit_length()

    def event(self, run: RunNumbers) -> Event:
        return self.gaussian_event(self.noise_multiplier, sampling_probability=run.sampling_probability, unit=run.unit)

    def gaussian_event(self, noise_multiplier: float, *, sampling_probability: float, unit: str = "client") -> Event:
        """Of nodes with another noise multiplier; the sampling probability is of no account."""
        return TreeEvent(unit=unit, noise_multiplier=noise_multiplier, rounds_per_tree=self.rounds_per_tree)

    def cohort(self, run: RunNumbers, secret: bytes, *, silo: str, round: Round, clients: int) -> np.ndarray:
        """As its base says, with turns in place of Poisson sampling.

        A client's turn is the same in all rounds of a tree, whatever they start from.
        """
        return sampling.cohort_of_tree(
            randomness.derive(secret, f"cohort/{silo}/{round.draw}"),
            round_number=round.number,
            clients=clients,
            probability=run.sampling_probability,
            rounds_per_tree=self.rounds_per_tree,
        )

    def server_inputs(
        self, run: RunNumbers, secret: bytes, *, round: Round, shapes: Sequence[Sequence[int]]
    ) -> ServerInputs:
        return ServerInputs(
            noise=randomness.tree_noise(
                randomness.derive(secret, f"noise/{round.draw}"),
                round_number=round.number,
                rounds_per_tree=self.rounds_per_tree,
                stddev=self.noise_stddev(run),
                shapes=shapes,
                starts=round.starts,
            )
        )

    def mechanism_sentence(self, run: RunNumbers) -> str:
        trees, levels = self.trees(run), self.levels(run)
        return (
            f"Mechanism: DP-FTRL (tree aggregation) over {run.rounds} rounds. A tree spans {self.rounds_per_tree} rounds, and a {run.unit} takes part in at most one round of each: every one of {run.clients} {run.unit}s draws its turn, and has one with probability "
            f"{min(1.0, self.rounds_per_tree * run.sampling_probability):.6g}. So it takes part at most {trees} time(s), in {trees} tree(s) of at most {levels} level(s). Its update is clipped to an L2 norm of {self.clip_norm:g}. Every node of a tree has Gaussian noise of standard deviation "
            f"{self.noise_stddev(run):.6g} ({self.noise_multiplier:g} times the sensitivity, quantisation included), added at the server, so that the sum of all updates since a tree began has the noise of at most {levels} node(s). A round's noised sum is divided by {run.denominator:g}, the expected cohort."
        )

    def accounting_sentences(self, run: RunNumbers) -> list[str]:
        return [
            "No sampling is counted on.",
            f"A {run.unit} that is removed is one whose updates are replaced by zero, since the denominator is a public number and every {run.unit}'s turn is drawn by itself: the two neighbouring relations are the same here.",
            "A tree that the run did not finish is charged as far as it went.",
            *super().accounting_sentences(run),
        ]

    def _trust(self) -> list[str]:
        _, against = super()._trust()
        return ["The server is trusted to add the noise, and the silos to give turns and clip as stated.", against]
