"""What every runtime does, so that the training loop and the contract tests need not know which one it is.

The server's state is a flat list of arrays in the order of `Compiled.state_names`; a cohort is, for each silo, the rows
of its clients. `local` runs the compiled form's graphs in TensorFlow sessions of this process; `reference` runs the
uncompiled process under TFF's own executor, and is the oracle.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from tff_pipeline.aggregators.distributed_discrete_gaussian import ROTATION, SHARES
from tff_pipeline.aggregators.dp_sum import CLIP, NOISE
from tff_pipeline.learning.process import Compiled

State = list[np.ndarray]
Cohorts = Mapping[str, Sequence[int] | np.ndarray]
# A silo's share of the round's noise, int64 [length], for its name.
Shares = Callable[[str], np.ndarray]
# Called in a silo with its name and its sums, before noise and masks; raises where they must not be reported.
OnSum = Callable[[str, Sequence[np.ndarray]], None]
# Parts of the names of operations that a BERT's time goes to.
_ARITHMETIC = ("MatMul", "Softmax", "BiasAdd", "Erf", "Tanh", "L2Loss", "ResourceGather", "SegmentSum", "Einsum")


@dataclasses.dataclass(frozen=True)
class RoundResult:
    """What a round gave.

    Attributes:
      state: the server's state after it.
      metrics: by the last parts of their TFF names ("loss", "accuracy", ...); of the clients none where the silos add the
        noise.
      bytes_down, bytes_up: what the server sent to each silo, and each silo to the server; None for a simulation.
    """

    state: State
    metrics: dict[str, float]
    bytes_down: int | None = None
    bytes_up: int | None = None


class Runtime(Protocol):
    """Runs rounds. Used in a `with` block; nothing it starts outlives the block."""

    def initial_state(self) -> State:
        """The state before the first round, with weights of zero and no noise supplied."""
        ...

    def run_round(
        self,
        state: State,
        cohorts: Cohorts,
        *,
        round_number: int,
        shares: Shares | None = None,
        on_sum: OnSum | None = None,
        on_client: Callable[[], None] = ...,
    ) -> RoundResult:
        """One round. `on_client` is called as each client's work ends.

        `shares` is asked in every silo, its cohort empty or not, where the process is one whose noise the silos add;
        without it nothing is released. `on_sum` is called in every silo before anything leaves it; a simulation, which has no
        silos, does not call it.
        """
        ...

    def placement(self) -> dict[str, dict[str, int]]:
        """Where the clients' work so far ran: by device ("GPU:0"), how many operations of each type; empty if unknown."""
        ...

    def close(self) -> None: ...


def off_device(placement: Mapping[str, Mapping[str, int]], devices: Sequence[str]) -> dict[str, int]:
    """The arithmetic of the model that ran on none of `devices`, by type; input pipelines and bookkeeping may."""
    found: dict[str, int] = {}
    for device, counts in placement.items():
        for kind, count in counts.items() if device not in devices else ():
            if any(part in kind for part in _ARITHMETIC):
                found[kind] = found.get(kind, 0) + count
    return found


def weights_of(compiled: Compiled, state: State) -> list[np.ndarray]:
    """The trained weights in a state, in the model's order."""
    return [np.asarray(state[place]) for place in _places(compiled, "global_model_weights/trainable/")]


def with_weights(compiled: Compiled, state: State, weights: Sequence[np.ndarray]) -> State:
    """A copy of the state that holds other weights."""
    return _replaced(state, _places(compiled, "global_model_weights/trainable/"), weights)


def with_noise(compiled: Compiled, state: State, noise: Sequence[np.ndarray]) -> State:
    """A copy of the state with the noise of the coming round (float64, one array a weight) in its place."""
    return _replaced(state, noise_places(compiled), noise)


def clip_of(compiled: Compiled, state: State) -> float | None:
    """The clip of the coming round where it is adaptive, else None."""
    places = _places(compiled, f"/{CLIP}")
    return float(state[places[0]]) if places else None


def noise_places(compiled: Compiled) -> list[int]:
    """Where in the state the aggregator expects the noise; nowhere for an aggregator without."""
    return _places(compiled, f"/{NOISE}/")


def rotation_places(compiled: Compiled) -> list[int]:
    """Where in the state the aggregator expects the public seed of the round's rotation; nowhere for one without."""
    return _places(compiled, f"/{ROTATION}")


def share_places(compiled: Compiled) -> list[int]:
    """Where in the state the silos' noise is expected, if the silos have not added it; nowhere for an aggregator without."""
    return _places(compiled, f"/{SHARES}")


def with_rotation(compiled: Compiled, state: State, seed: np.ndarray) -> State:
    """A copy of the state with the public seed of the coming round's rotation, int64 [2]."""
    return _replaced(state, rotation_places(compiled), [seed])


def with_shares(compiled: Compiled, state: State, noise: np.ndarray) -> State:
    """A copy of the state with noise that is not in the sum yet (int64), or zeros where it is."""
    return _replaced(state, share_places(compiled), [noise])


def named_metrics(compiled: Compiled, values: Sequence[np.ndarray]) -> dict[str, float]:
    """Scalars of the round by name; TFF's bookkeeping of the metrics' own secure sums is left out."""
    named = zip(compiled.metric_names, values, strict=True)
    return {
        name.rsplit("/", 1)[-1]: float(value)
        for name, value in named
        if "secure_sum_measurements" not in name and np.ndim(value) == 0
    }


def _places(compiled: Compiled, part: str) -> list[int]:
    return [place for place, name in enumerate(compiled.state_names) if part in name]


def _replaced(state: State, places: Sequence[int], values: Sequence[np.ndarray]) -> State:
    changed = list(state)
    for place, value in zip(places, values, strict=True):
        changed[place] = value
    return changed
