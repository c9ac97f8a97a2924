"""A frozen encoder's output for every training text of a silo: computed once a run, kept in the silo, gone with the run.

With `trainable = "head"` the encoder never changes, so neither does what it says about a text; encoding it again in
every round would be most of the work of the run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tff_pipeline.artifacts import is_complete, read_manifest, staged
from tff_pipeline.model.network import Network
from tff_pipeline.progress import Bar
from tff_pipeline.records import IGNORED, LABELS, LENGTHS
from tff_pipeline.runtime.clients import FeatureClients, FeatureSilo
from tff_pipeline.silos import Snapshot

_FILES = ("features.npy", "labels.npy", "starts.npy")


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

    Raises:
      ArtifactError: if a finished `folder` is damaged.
    """
    if is_complete(folder):
        read_manifest(folder, check_files=True)
        bar.advance(snapshot.count("train"))
    else:
        _compute(snapshot, network, label_map, folder, bar)
    features, labels, starts = (np.load(folder / name, mmap_mode="r") for name in _FILES)
    kind = FeatureSilo if as_one else FeatureClients
    return kind(snapshot.silo, features, np.asarray(labels), np.asarray(starts), batch_size=batch_size, epochs=epochs)


def _compute(snapshot: Snapshot, network: Network, label_map: np.ndarray, folder: Path, bar: Bar) -> None:
    tokens_too = network.task == "token_classification"
    counts, offsets = _instances(snapshot, tokens_too)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    encode = tf.function(network.features, input_signature=[tf.TensorSpec([None, None], tf.int32)], autograph=False)

    def manifest() -> Mapping[str, Any]:
        return {
            "kind": "features",
            "format": 1,
            "silo": snapshot.silo,
            "snapshot": snapshot.id,
            "instances": int(starts[-1]),
        }

    with staged(folder, manifest) as aside:
        shape = (int(starts[-1]), network.hidden_size)
        features = np.lib.format.open_memmap(aside / _FILES[0], mode="w+", dtype=np.float32, shape=shape)
        labels = np.zeros(shape[0], np.int32)
        for batch in snapshot.examples("train", label_map, pad_id=network.pad_id):
            encoded = encode(tf.constant(batch.tokens)).numpy()
            if tokens_too:
                for vectors, tags, position in zip(encoded, batch.labels, batch.positions, strict=True):
                    place = slice(offsets[position], offsets[position + 1])
                    features[place], labels[place] = vectors[tags != IGNORED], tags[tags != IGNORED]
            else:
                features[batch.positions], labels[batch.positions] = encoded, batch.labels
            bar.advance(len(batch.tokens))
        features.flush()
        np.save(aside / _FILES[1], labels)
        np.save(aside / _FILES[2], starts)


def _instances(snapshot: Snapshot, tokens_too: bool) -> tuple[list[int], np.ndarray]:
    """Instances of each client, and where those of each example begin: an instance is a text, or a labelled token."""
    by_client, by_example = [], [np.zeros(1, np.int64)]
    for arrays in snapshot.decoded_clients("train"):
        lengths = arrays[LENGTHS]
        if tokens_too:
            labelled = (
                np.add.reduceat(arrays[LABELS] != IGNORED, np.concatenate([[0], np.cumsum(lengths)[:-1]]))
                if len(lengths)
                else lengths
            )
        else:
            labelled = np.ones_like(lengths)
        by_client.append(int(labelled.sum()))
        by_example.append(labelled)
    return by_client, np.cumsum(np.concatenate(by_example))
