"""Canaries: clients whose updates are what an attacker would choose, fed through the classes that training feeds from.

A canary's update does not depend on the weights: the learner's loss is linear in them, with the client's features as its
gradient. So each canary has one coordinate of its own, is far beyond the clip in every round, and what it adds to the
noiseless sum is known.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tff_pipeline.runtime.clients import Clients, FeatureClients, FeatureSilo

GUESSES_A_ROUND = 500  # at least: one for every coordinate of the testbed's model
BEYOND = 1000.0  # an update's norm over the clip
_MANY = 1000  # the most examples that a canary has
# Of a silo's canaries, one after the other.
_EXAMPLES = (1, 2, 1, 1, 37)


def coordinates_of(clients: int, dimension: int) -> np.ndarray:
    """A coordinate for each of some clients, spread over all tensors; int64 [clients]."""
    stride = next(number for number in range(7, dimension + 8) if math.gcd(number, dimension) == 1)
    return np.arange(clients) * stride % dimension


def population(
    clients: int, silos: int, dimension: int, *, scale: float, as_one: bool, folder: Path, batch_size: int, epochs: int
) -> tuple[list[Clients], np.ndarray]:
    """Silos of canaries; and for each canary, in the silos' order, its coordinate. `as_one` makes a silo one client."""
    coordinates = coordinates_of(clients, dimension)
    made: list[Clients] = []
    for number, own in enumerate(np.array_split(coordinates, silos)):
        examples = [
            np.repeat(scale * np.eye(dimension, dtype=np.float32)[[coordinate]], _EXAMPLES[index % 5], axis=0)
            for index, coordinate in enumerate(own)
        ]
        name = f"silo-{number:04d}"
        made.append(
            _clients(name, examples, dimension, as_one=as_one, folder=folder, batch_size=batch_size, epochs=epochs)
        )
    return made, coordinates


def extremes(
    sizes: Sequence[int],
    *,
    clip: float,
    most_examples: int,
    as_one: bool,
    folder: Path,
    batch_size: int,
    epochs: int,
) -> tuple[list[Clients], Mapping[str, tuple[str, int]]]:
    """Clients that try to pass the clip, and where each is (silo, row) by what it does.

    Each tensor alone; few and many examples; updates that are barely beyond the clip, too large for float32's squares, and
    not finite.
    """
    dimension = sum(sizes)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    everywhere = np.full(dimension, clip / math.sqrt(dimension), np.float32)
    tried: dict[str, np.ndarray] = {}
    for number, (start, end) in enumerate(itertools.pairwise(starts)):
        alone = np.zeros(dimension, np.float32)
        alone[start:end] = BEYOND * clip / math.sqrt(end - start)
        tried[f"all in tensor {number}"] = alone[np.newaxis]
    for count in sorted({1, 2, 3, 5, 10, 20, 50, 100, min(_MANY, most_examples), _MANY}):
        tried[f"{count} example(s)"] = np.repeat(BEYOND * everywhere[np.newaxis], count, axis=0)
    for times in (0.999, 1.001, 1e10, 1e20, 1e30):
        with np.errstate(over="ignore"):
            tried[f"{times:g} times the clip"] = np.minimum(times * everywhere, np.float32(3e38))[np.newaxis]
    for value in (np.nan, np.inf, -np.inf):
        tried[f"update {value}"] = np.full((1, dimension), value, np.float32)
    options: dict[str, Any] = {"as_one": as_one, "folder": folder, "batch_size": batch_size, "epochs": epochs}
    if as_one:
        silos = [
            _clients(f"extreme-{row:04d}", [features], dimension, **options)
            for row, features in enumerate(tried.values())
        ]
        return silos, {name: (silo.name, 0) for name, silo in zip(tried, silos, strict=True)}
    silo = _clients("extreme", list(tried.values()), dimension, **options)
    return [silo], {name: (silo.name, row) for row, name in enumerate(tried)}


def _clients(
    name: str,
    examples: Sequence[np.ndarray],
    dimension: int,
    *,
    as_one: bool,
    folder: Path,
    batch_size: int,
    epochs: int,
) -> Clients:
    features = np.concatenate(examples) if examples else np.zeros((0, dimension), np.float32)
    labels = np.zeros(len(features), np.int32)
    starts = np.concatenate([[0], np.cumsum([len(own) for own in examples])]).astype(np.int64)
    if not as_one:
        return FeatureClients(name, features, labels, starts, batch_size=batch_size, epochs=epochs)
    path = folder / f"{name}.npy"
    np.save(path, features)
    return FeatureSilo(name, np.load(path, mmap_mode="r"), labels, starts, batch_size=batch_size, epochs=epochs)
