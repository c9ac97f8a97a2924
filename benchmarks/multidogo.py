"""Real customer-service text, six businesses as silos: private, not private, pooled, and majority class, side by side.

    python -m benchmarks.multidogo [--config configs/multidogo.toml] [--set KEY=VALUE ...]

Runs the pipeline of the configuration; then the same training with `privacy.mechanism = "none"` (same clip, same
cohorts' size, no noise); then, where the data may be pooled, an ordinary classifier: the same frozen encoder with the
same linear head, trained by Adam on all silos' texts together. Prints a Markdown table of accuracy and macro-F1 on the
silos' own test files.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tff_pipeline.rounding import rounded_up

EPOCHS, BATCH_SIZE, LEARNING_RATE = 10, 256, 1e-3
WITHOUT_PRIVACY = (
    "privacy.mechanism=none",
    "privacy.target_epsilon=",
    "privacy.noise_multiplier=",
    "privacy.delta=",
    "privacy.budget_epsilon=",
)


def command(name: str, config: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Runs a command of the pipeline with --json, and returns what it printed."""
    changes = [part for override in overrides for part in ("--set", override)]
    arguments = [sys.executable, "-m", "tff_pipeline", name, "--config", config, *changes, "--json"]
    return json.loads(subprocess.run(arguments, stdout=subprocess.PIPE, check=True).stdout)


def pooled(run: Path) -> dict[str, dict[str, float]]:
    """Accuracy and macro-F1 of a head trained on pooled data, overall and by silo."""
    import tensorflow as tf
    import tf_keras

    from tff_pipeline.data.snapshots import Snapshot, open_snapshot
    from tff_pipeline.evaluation.metrics import macro_f1
    from tff_pipeline.training.store import load_trained

    trained = load_trained(run)
    network, labels = trained.network, trained.labels
    encode = tf.function(network.features, input_signature=[tf.TensorSpec([None, None], tf.int32)])

    def encoded(snapshot: Snapshot, split: str) -> tuple[np.ndarray, np.ndarray]:
        features = np.zeros((snapshot.count(split), network.hidden_size), np.float32)
        classes = np.zeros(len(features), np.int64)
        for batch in snapshot.examples(split, snapshot.label_map(labels), pad_id=network.pad_id):
            features[batch.positions] = encode(tf.constant(batch.tokens)).numpy()
            classes[batch.positions] = batch.labels
        return features, classes

    snapshots = {silo: open_snapshot(Path(entry["path"])) for silo, entry in trained.facts["snapshots"].items()}
    features, classes = (
        np.concatenate(parts)
        for parts in zip(*(encoded(snapshot, "train") for snapshot in snapshots.values()), strict=True)
    )
    tf_keras.utils.set_random_seed(1)
    head = tf_keras.Sequential([tf_keras.layers.Input([network.hidden_size]), tf_keras.layers.Dense(len(labels))])
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    head.compile(tf_keras.optimizers.Adam(LEARNING_RATE), loss)
    head.fit(features, classes, batch_size=BATCH_SIZE, epochs=EPOCHS, verbose=0)

    answers: dict[str, tuple[Any, Any]] = {}
    for silo, snapshot in snapshots.items():
        tested, truth = encoded(snapshot, "test")
        answers[silo] = (truth, head.predict(tested, batch_size=4096, verbose=0).argmax(axis=1))
    truths, predictions = zip(*answers.values(), strict=True)
    answers["overall"] = (np.concatenate(truths), np.concatenate(predictions))
    return {
        name: {"accuracy": float((truth == predicted).mean()), "macro_f1": macro_f1(truth, predicted)}
        for name, (truth, predicted) in answers.items()
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--config", default="configs/multidogo.toml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args(argv)

    private = command("run", arguments.config, arguments.set)
    without = [*arguments.set, *WITHOUT_PRIVACY]
    run = Path(command("train", arguments.config, without)["path"])
    subprocess.run(
        [sys.executable, "-m", "tff_pipeline", "evaluate", "--run", str(run), "--json"],
        stdout=subprocess.DEVNULL,
        check=True,
    )
    not_private = json.loads((run / "evaluation.json").read_text())
    together = pooled(Path(private["paths"]["run"]))

    guarantee = private["guarantee"]
    print(
        f"epsilon {rounded_up(guarantee['epsilon'])} at delta {guarantee['delta']!r}; accuracy / macro-F1 on the test files\n"
    )
    print(
        "| silo | test texts | majority class | private | without privacy | pooled |\n| --- | --- | --- | --- | --- | --- |"
    )
    rows = {"overall": private["evaluation"]["overall"], **private["evaluation"]["silos"]}
    for name, scores in rows.items():
        other = not_private["overall"] if name == "overall" else not_private["silos"][name]
        cells = (f"{part['accuracy']:.3f} / {part['macro_f1']:.3f}" for part in (scores, other, together[name]))
        print(f"| {name} | {scores['examples']} | {scores['majority_accuracy']:.3f} | {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
