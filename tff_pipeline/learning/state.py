"""The server's state by name and type: which of TFF's tensors is what, and what a round is given from outside.

TFF flattens the state of a learning process into a list of tensors, each with a path such as
`global_model_weights/trainable/0`. `StateLayout` knows the paths, exactly; everything else asks it by name.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from tff_pipeline.aggregators.distributed_discrete_gaussian import ROTATION, SHARES
from tff_pipeline.aggregators.dp_sum import CLIP, NOISE

_WEIGHTS = "global_model_weights/trainable"
_AGGREGATOR = "aggregator"
_QUERY = f"{_AGGREGATOR}/query_state/numerator_state"  # of DifferentiallyPrivateFactory around a NormalizedQuery


@dataclasses.dataclass(frozen=True)
class StateLayout:
    """Where in the flat state what lies.

    Attributes:
      names: TFF's path of every tensor, in TFF's order.
      weights: indices of the trained weights, in the model's order.
      noise: indices of the noise that the server supplies, float64, one tensor a weight; with an adaptive clip one more, for the
        count. Empty for an aggregator to which the server adds none.
      rotation: index of the public seed of the round's rotation, int64 [2], or None.
      noise_shares: index of noise that silos have drawn and that is not in the sum yet, int64 [length], or None.
      clip: index of the round's adaptive clip, a float64 scalar, or None.
    """

    names: tuple[str, ...]
    weights: tuple[int, ...]
    noise: tuple[int, ...] = ()
    rotation: int | None = None
    noise_shares: int | None = None
    clip: int | None = None

    @classmethod
    def of(cls, names: Sequence[str]) -> "StateLayout":
        """The layout of a process whose state has these paths."""
        index_of = {name: index for index, name in enumerate(names)}
        return cls(
            names=tuple(names),
            weights=_below(names, _WEIGHTS),
            noise=_below(names, f"{_QUERY}/{NOISE}"),
            rotation=index_of.get(f"{_AGGREGATOR}/{ROTATION}"),
            noise_shares=index_of.get(f"{_AGGREGATOR}/{SHARES}"),
            clip=index_of.get(f"{_QUERY}/{CLIP}"),
        )

    @property
    def supplied(self) -> frozenset[int]:
        """Indices of what a round is given from outside. It is drawn anew for each round, and never kept."""
        single = {index for index in (self.rotation, self.noise_shares) if index is not None}
        return frozenset({*self.noise, *single})

    @property
    def kept(self) -> tuple[int, ...]:
        """Indices of what is kept between rounds."""
        return tuple(index for index in range(len(self.names)) if index not in self.supplied)

    @property
    def kept_names(self) -> tuple[str, ...]:
        """The paths of what is kept between rounds."""
        return tuple(self.names[index] for index in self.kept)


@dataclasses.dataclass(frozen=True)
class ServerState:
    """The state of the server, before or after a round. Nothing changes it; `with_...` return another one.

    Attributes:
      layout: what each of the arrays is.
      arrays: every tensor, in TFF's order. What a round is given is "not supplied" (NaN, or a value that no noise has) until
        it is: a round whose noise was forgotten releases nothing.
    """

    layout: StateLayout
    arrays: tuple[np.ndarray, ...]

    @property
    def weights(self) -> list[np.ndarray]:
        """The trained weights, in the model's order."""
        return [np.asarray(self.arrays[index]) for index in self.layout.weights]

    @property
    def clip(self) -> float | None:
        """The clip of the coming round where it is adaptive, else None."""
        return None if self.layout.clip is None else float(self.arrays[self.layout.clip])

    @property
    def kept(self) -> list[np.ndarray]:
        """What is kept between rounds, in the order of `StateLayout.kept_names`."""
        return [self.arrays[index] for index in self.layout.kept]

    def with_weights(self, weights: Sequence[np.ndarray]) -> "ServerState":
        """The same state with other weights, in the model's order."""
        return self._with(dict(zip(self.layout.weights, weights, strict=True)))

    def with_kept(self, arrays: Sequence[np.ndarray]) -> "ServerState":
        """The state that was kept as these arrays."""
        return self._with(dict(zip(self.layout.kept, arrays, strict=True)))

    def with_clip(self, clip: float) -> "ServerState":
        """The same state with another clip for the coming round."""
        return self._with({_required(self.layout.clip, "an adaptive clip"): np.array(clip)})

    def with_noise(self, noise: Sequence[np.ndarray]) -> "ServerState":
        """The state with the noise of the coming round supplied: float64, as `StateLayout.noise` says."""
        return self._with(dict(zip(self.layout.noise, noise, strict=True)))

    def with_rotation(self, seed: np.ndarray) -> "ServerState":
        """The state with the public seed of the coming round's rotation supplied, int64 [2]."""
        return self._with({_required(self.layout.rotation, "a rotation"): seed})

    def with_noise_shares(self, total: np.ndarray) -> "ServerState":
        """The state with the sum of the silos' noise shares supplied, int64 [length]; zeros where they are in the sum already."""
        return self._with({_required(self.layout.noise_shares, "noise of the silos"): total})

    def _with(self, changes: Mapping[int, np.ndarray]) -> "ServerState":
        arrays = list(self.arrays)
        for index, array in changes.items():
            arrays[index] = array
        return dataclasses.replace(self, arrays=tuple(arrays))


def _below(names: Sequence[str], parent: str) -> tuple[int, ...]:
    """The indices of the tensors directly below a path."""
    return tuple(index for index, name in enumerate(names) if name.rpartition("/")[0] == parent)


def _required(index: int | None, part: str) -> int:
    if index is None:
        raise ValueError(f"the learning process was built without {part}; expected one whose state has it.")
    return index
