"""A frozen encoder's output for every training text of a silo: computed once a run, kept in the silo, gone with the run.

With `trainable = "head"` the encoder never changes, so neither does what it says about a text; encoding it again in
every round would be most of the work of the run.

Each client is encoded by itself, in calls of the encoder that hold its texts only, in the order of its record and without
padding. So its features depend on its own texts, the weights and the machine, to the last bit. In batches that clients share
they would not: float32 sums depend on the padding, and so on the longest text of the batch, whoever wrote it. The
sensitivity of a sum counts what one client adds to it, and holds only if the client changes nothing of what the others add.
"""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tff_pipeline.artifacts import COMPLETE, is_complete, read_manifest, staged
from tff_pipeline.data.records import IGNORED, LABELS, LENGTHS, TOKENS
from tff_pipeline.data.snapshots import Snapshot, map_labels
from tff_pipeline.model.network import Network
from tff_pipeline.privacy.round import digest_of
from tff_pipeline.progress import Bar
from tff_pipeline.runtime.clients import FeatureClients, FeatureSilo
from tff_pipeline.runtime.threads import bounded_map

# Of how features are computed: those of another format have other bits. 1: in batches that clients shared.
FORMAT = 2
_FILES = ("features.npy", "labels.npy", "starts.npy")
# A call takes texts up to this many tokens together, or a single longer one. More would make attention, which grows with
# the square, cost more than the rest of the encoder gains.
_TOKENS_A_CALL = 256


def feature_clients(
    snapshot: Snapshot,
    network: Network,
    label_map: np.ndarray,
    folder: Path,
    *,
    batch_size: int,
    epochs: int,
    bar: Bar,
    as_one: bool = False,
) -> FeatureClients:
    """The silo's training clients with their features, from `folder` or computed into it; `as_one` makes the silo a client.

    A finished `folder` of another format, snapshot or encoder is not used, but computed again.

    Raises:
      ArtifactError: if a finished `folder` is damaged.
    """
    facts = {
        "kind": "features",
        "format": FORMAT,
        "silo": snapshot.silo,
        "snapshot": snapshot.id,
        "encoder": _digest(network),
    }
    if is_complete(folder) and not facts.items() <= read_manifest(folder).items():
        (folder / COMPLETE).unlink()  # first, so that a kill never leaves part of it as finished
    if is_complete(folder):
        read_manifest(folder, check_files=True)
        bar.advance(snapshot.count("train"))
    else:
        _compute(snapshot, network, label_map, folder, facts, bar)
    features, labels, starts = (np.load(folder / name, mmap_mode="r") for name in _FILES)
    kind = FeatureSilo if as_one else FeatureClients
    return kind(snapshot.silo, features, np.asarray(labels), np.asarray(starts), batch_size=batch_size, epochs=epochs)


def _compute(
    snapshot: Snapshot, network: Network, label_map: np.ndarray, folder: Path, facts: Mapping[str, Any], bar: Bar
) -> None:
    tokens_too = network.task == "token_classification"
    starts = np.cumsum([0, *_instances(snapshot, tokens_too)], dtype=np.int64)
    encode = network.encode_packed

    def instances(arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, int]:
        """Features and labels of one client, from its record alone; and how many examples it has."""
        calls = [encode(tf.constant(tokens), tf.constant(lengths)).numpy() for tokens, lengths in _calls(arrays)]
        vectors = np.concatenate([np.zeros((0, network.hidden_size), np.float32), *calls])
        labels = map_labels(arrays[LABELS], label_map)
        counted = labels != IGNORED if tokens_too else slice(None)
        return vectors[counted], labels[counted], len(arrays[LENGTHS])

    # Calls of one client's texts are too small to keep several cores busy; so several clients are encoded at a time.
    cores = os.cpu_count() or 1
    with (
        staged(folder, lambda: {**facts, "instances": int(starts[-1])}) as aside,
        ThreadPoolExecutor(cores, thread_name_prefix="encode") as threads,
    ):
        shape = (int(starts[-1]), network.hidden_size)
        features = np.lib.format.open_memmap(aside / _FILES[0], mode="w+", dtype=np.float32, shape=shape)
        labels = np.zeros(shape[0], np.int32)
        clients = bounded_map(threads, instances, snapshot.decoded_clients("train"), ahead=2 * cores)
        for start, end, (vectors, own_labels, examples) in zip(starts, starts[1:], clients, strict=False):
            features[start:end], labels[start:end] = vectors, own_labels
            bar.advance(examples)
        features.flush()
        np.save(aside / _FILES[1], labels)
        np.save(aside / _FILES[2], starts)


def _calls(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A client's tokens and lengths, int32, cut between texts into calls of at most `_TOKENS_A_CALL`, if a text allows."""
    tokens, lengths = (arrays[name].astype(np.int32) for name in (TOKENS, LENGTHS))
    ends = np.cumsum(lengths)
    first = 0
    while first < len(lengths):
        start = ends[first] - lengths[first]
        last = max(first + 1, int(np.searchsorted(ends, start + _TOKENS_A_CALL, side="right")))
        yield tokens[start : ends[last - 1]], lengths[first:last]
        first = last


def _instances(snapshot: Snapshot, tokens_too: bool) -> Iterator[int]:
    """How many instances each client has: an instance is a text, or for token classification a labelled token."""
    for arrays in snapshot.decoded_clients("train"):
        yield int((arrays[LABELS] != IGNORED).sum()) if tokens_too else len(arrays[LENGTHS])


def _digest(network: Network) -> str:
    """Identifies the encoder's weights."""
    return digest_of([variable.numpy() for variable in network.encoder_variables])
