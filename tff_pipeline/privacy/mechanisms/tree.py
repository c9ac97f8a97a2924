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
from tff_pipeline.privacy.mechanisms.base import ServerInputs
from tff_pipeline.privacy.mechanisms.event import Event
from tff_pipeline.privacy.mechanisms.run_numbers import RunNumbers
from tff_pipeline.privacy.mechanisms.server_noise import ServerNoise, clip_sentence
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
    turns_in_a_period: ClassVar[int | None] = 1
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

    def derived(self, run: RunNumbers) -> dict[str, Any]:
        return {"trees": self.trees(run), "levels": self.levels(run)}

    def trees(self, run: RunNumbers) -> int:
        """How many trees are begun, which is how often a client takes part at most."""
        return math.ceil(run.rounds / self.rounds_per_tree)

    def levels(self, run: RunNumbers) -> int:
        """Levels of the highest tree, floor(log2 of its rounds) + 1."""
        return min(run.rounds, self.rounds_per_tree).bit_length()

    @property
    def period(self) -> int:
        return self.rounds_per_tree

    def own_noise(self, table: np.ndarray) -> np.ndarray:
        """Of numbers by round [rounds, ...], those of the tree's node that each round finishes.

        A round ends the node of as many rounds as the lowest set bit of its number in its tree. The prefix sums at both of the
        node's ends have all other nodes in common, so that their difference has this node's noise alone.
        """
        nodes = np.empty_like(table)
        for start in range(0, len(table), self.rounds_per_tree):
            prefix = np.cumsum(table[start : start + self.rounds_per_tree], axis=0)
            for index in range(len(prefix)):
                before = index + 1 - ((index + 1) & -(index + 1))
                nodes[start + index] = prefix[index] - (prefix[before - 1] if before else 0)
        return nodes

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
            noise=tree_noise(
                randomness.derive(secret, f"noise/{round.draw}"),
                round_number=round.number,
                rounds_per_tree=self.rounds_per_tree,
                stddev=self.noise_stddev(run),
                shapes=shapes,
                starts=round.starts,
            )
        )

    def participation(self, run: RunNumbers) -> str:
        return f"at most once in {self.rounds_per_tree} rounds"

    def mechanism_sentences(self, run: RunNumbers) -> list[str]:
        trees, levels = self.trees(run), self.levels(run)
        return [
            f"Mechanism: DP-FTRL (tree aggregation) over {run.rounds} rounds.",
            f"A tree spans {self.rounds_per_tree} rounds, and a {run.unit} takes part in at most one round of a tree: every one of {run.clients} {run.unit}s draws its round at random, independently of all others, and takes part in a tree with probability {min(1.0, self.rounds_per_tree * run.sampling_probability):.6g}.",
            f"So a {run.unit} takes part at most {trees} time(s), in {trees} tree(s) of at most {levels} level(s).",
            clip_sentence(run, self.clip_norm),
            f"Every node of a tree has Gaussian noise on every coordinate, of standard deviation {self.noise_stddev(run):.6g}, which the server adds.",
            f"That is {self.noise_multiplier:g} times the sensitivity, which is the most that one {run.unit} can change the sum of a node (in L2 norm, quantization included).",
            f"The sum of all updates since a tree began has the noise of at most {levels} node(s).",
            f"The noised sum of a round is divided by {run.denominator:g}, the expected number of {run.unit}s in a round.",
        ]

    def accounting_sentences(self, run: RunNumbers) -> list[str]:
        return [
            "The guarantee does not rely on sampling.",
            f"Removing a {run.unit} is the same as replacing its updates by zero, because the sum is divided by a public number and every {run.unit}'s round is drawn independently.",
            "A tree that the run did not finish is charged for the rounds that were run.",
            *super().accounting_sentences(run),
        ]

    def _trust(self) -> list[str]:
        _, against = super()._trust()
        return [
            "The server is trusted to add the noise, and the silos are trusted to draw their clients' rounds and to clip as stated.",
            against,
        ]


def tree_noise(
    secret: bytes,
    *,
    round_number: int,
    rounds_per_tree: int,
    stddev: float,
    shapes: Sequence[Sequence[int]],
    starts: Sequence[str] = (),
) -> list[np.ndarray]:
    """What a round adds to the noise of its tree, float64, one array a weight. The same arguments give the same noise.

    A node (level l, index i) of a tree stands for its rounds (i - 1) 2**l + 1 to i 2**l, and has noise of its own, of
    standard deviation `stddev`. The noise N_t of the rounds 1 to t together is that of the nodes which cover them, one for
    each bit of t (Chan, Shi and Song 2011; Kairouz et al. 2021, arXiv:2103.00039, algorithm 2). This gives N_t - N_(t-1),
    the noise on the update of round t alone, so that a server that adds up noised updates, with whatever optimizer, is one
    that works on noised prefix sums (the residuals of TFF's `DifferentiallyPrivateFactory.tree_aggregation`).

    Args:
      secret: the server's, of the run.
      round_number: of the run, from 0; a new tree begins whenever it is a multiple of `rounds_per_tree`.
      rounds_per_tree: E.
      stddev: of a node.
      shapes: of the weights.
      starts: what every round of the run started from, up to this one; a node's noise is bound to that of the round which
        finishes it, so that another sum gets other noise. Where the list is not the one of the earlier rounds, noise that was
        added is not subtracted again: more noise, never less.
    """
    tree, before = divmod(round_number, rounds_per_tree)

    def node(level: int, index: int) -> list[np.ndarray]:
        finished = tree * rounds_per_tree + (index << level) - 1
        bound = f"/{starts[finished]}" if starts else ""
        return randomness.gaussian(randomness.derive(secret, f"tree/{tree}/{level}/{index}{bound}"), stddev, shapes)

    level = ((before + 1) & -(before + 1)).bit_length() - 1  # of the highest node that this round finishes
    noise = node(level, (before + 1) >> level)
    # It takes the place of one node on every level below, which ended with the round before.
    for lower in range(level):
        noise = [added - ended for added, ended in zip(noise, node(lower, before >> lower), strict=True)]
    return noise
