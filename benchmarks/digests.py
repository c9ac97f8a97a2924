"""Digests of what seeded runs write and send, to show that a change of the code changes nothing else.

    python -m benchmarks.digests --write before.json      on the code as it was
    python -m benchmarks.digests --compare before.json    on the code as it is: prints each difference by name, exit code 1

Runs every mechanism, kind of trained weights, task and privacy unit, tiny and with a seed, on generated messages, by the
commands of `tff-pipeline`. A record is a flat JSON object: the name of a thing, as in
`tree.head.train.state.round-00003.<name>`, and its SHA-256 (16 hex digits, behind "sha256:"), or the thing itself where it
is short. Recorded are snapshots, cohorts, noise, each silo's sums and the unmasked sum, key files, states, weights, ledgers
byte for byte, run.json, evaluation.json, exported versions' answers, and what the commands print.

Left out, with the reason at the place: what differs between two runs of the same code. The clock and the version are held
still, so that the ledgers' hash chains are the same. Floats may differ between two kinds of processors: write both records
on one machine.
"""

import argparse
import base64
import concurrent.futures
import contextlib
import csv
import dataclasses
import fnmatch
import hashlib
import importlib
import io
import json
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from examples.customer_messages import generate, messages

SEED, CLIENTS = 11, 60
_SHORT = 72  # characters of JSON that a record shows as they are
Record = dict[str, Any]

# -- the only part that knows names inside the pipeline: adapt it where they move ----------------------------------------

# For each hook, where its function is, "module:Class.method": the first that exists is wrapped. Where code moves, add
# its new place; where arguments change, change `_Hooks` below. What is recorded has to stay as it is.
PLACES: dict[str, tuple[str, ...]] = {
    "cohort": ("tff_pipeline.privacy.silo_draws:SiloDraws.cohort",),
    "noise": ("tff_pipeline.privacy.server_draws:ServerDraws.noise",),
    "metrics_noise": ("tff_pipeline.privacy.server_draws:ServerDraws.metrics_noise",),
    "noise_share": ("tff_pipeline.privacy.silo_draws:SiloDraws.noise_share",),
    "rotation": ("tff_pipeline.privacy.server_draws:ServerDraws.rotation",),
    "record": ("tff_pipeline.privacy.silo_draws:SiloDraws.record",),
    "receive": ("tff_pipeline.runtime.server:Server.receive",),
    "run_round": ("tff_pipeline.runtime.local:LocalRuntime.run_round",),
}


class _Hooks:
    """What is visible only inside of a run. Each method is called with a hooked function and the arguments it was given."""

    def __init__(self, folder: Path, *, stop_in_round: int = 0, forget_noise: bool = False):
        self.seen: Record = {}
        self._folder, self._stop, self._forget = folder, stop_in_round, forget_noise
        self._round = 0

    def cohort(self, inner: Callable[..., Any], draws: Any, at: Any, clients: int) -> Any:
        rows = inner(draws, at, clients)
        self._note(at.number + 1, f"cohort.{draws.silo}", list(map(int, rows)))
        return rows

    def noise(self, inner: Callable[..., Any], draws: Any, at: Any, shapes: Any) -> Any:
        arrays = inner(draws, at, shapes)
        self._note(at.number + 1, "noise", [digest_of_array(array) for array in arrays])
        return arrays

    def metrics_noise(self, inner: Callable[..., Any], draws: Any, at: Any) -> Any:
        numbers = inner(draws, at)
        self._note(at.number + 1, "metrics_noise", list(map(float, numbers)))
        return numbers

    def noise_share(self, inner: Callable[..., Any], draws: Any, at: Any) -> Any:
        share = inner(draws, at)
        self._note(at.number + 1, f"noise_share.{draws.silo}", digest_of_array(share))
        return share

    def rotation(self, inner: Callable[..., Any], draws: Any, at: Any) -> Any:
        seed = inner(draws, at)
        self._note(at.number + 1, "rotation", digest_of_array(seed))
        return seed

    def record(self, inner: Callable[..., Any], draws: Any, at: Any, sums: Any) -> Any:
        """A silo's sums before noise and masks, and the key files after it has recorded them."""
        self._round, silo = at.number + 1, draws.silo
        self._note(self._round, f"silo_sum.{silo}", [digest_of_array(part) for part in sums])
        if self._round == self._stop:
            self._stop = 0
            raise KeyboardInterrupt  # as a person at the keyboard does; the command ends, and is given again
        inner(draws, at, sums)
        self._note(self._round, f"round_name.{silo}", at.name)
        for path in sorted(self._folder.rglob(f"silos/{silo}/keys/sampling-*.key")):
            self._note(self._round, f"key.{silo}", digest_of_bytes(path.read_bytes()))
        for path in sorted(self._folder.rglob("runs/*/keys/*.key")):
            self._note(self._round, "key", digest_of_bytes(path.read_bytes()))

    def receive(self, inner: Callable[..., Any], server: Any, reports: Any) -> Any:
        """The unmasked sum. The masked reports are not recorded: masks follow from keys that no seed gives."""
        total = inner(server, reports)
        self._note(self._round, "sum", [digest_of_array(part) for part in total])
        return total

    def run_round(self, inner: Callable[..., Any], runtime: Any, state: Any, at: Any, **options: Any) -> Any:
        """The round; and before the first, the same cohorts without noise, after which the weights have to be as before."""
        if self._forget:
            self._forget = False
            before, self._round = self._round, 0
            try:
                with self._without_noise(runtime, at) as (initial, last):
                    result = inner(runtime, initial, last)
                self.seen["without_noise.metrics"] = told(result.metrics)
                for index, array in enumerate(result.state.arrays):
                    self.seen[f"without_noise.{index:02d}"] = digest_of_array(array)
            except Exception as error:  # whatever it is, it is recorded
                self.seen["without_noise.error"] = told(f"{type(error).__name__}: {error}")
            self._round = before
        return inner(runtime, state, at, **options)

    @contextlib.contextmanager
    def _without_noise(self, runtime: Any, at: Any) -> Iterator[tuple[Any, Any]]:
        """Has silos and server draw the round's cohorts and no noise; gives a state, and a round that will not come again."""
        from tff_pipeline.privacy.round import Round
        from tff_pipeline.runtime.base import NoLedgers
        from tff_pipeline.runtime.scripted import _Draws

        parties = [runtime.server, *runtime.silos]
        own = [(party._draws, getattr(party, "_charges", None)) for party in parties]
        script = _Draws([silo._clients for silo in runtime.silos])
        script.cohorts = {silo.name: silo._draws.cohort(at, len(silo._clients)) for silo in runtime.silos}
        script.state = runtime.initial_state()
        runtime.server._draws = script
        for silo in runtime.silos:
            silo._draws, silo._charges = script.silos[silo.name], NoLedgers()
        try:
            yield script.state, Round(at.draw, ("",) * (10**6 + 1))
        finally:
            for party, (draws, charges) in zip(parties, own, strict=True):
                party._draws = draws
                if charges is not None:
                    party._charges = charges

    def _note(self, number: int, name: str, value: Any) -> None:
        name, value = f"round-{number:05d}.{name}", told(value)
        while name in self.seen and self.seen[name] != value:  # a round that was repeated has to be the same round
            name += ".again"
        self.seen[name] = value

    @contextlib.contextmanager
    def placed(self) -> Iterator[None]:
        """Wraps the functions, and puts them back."""
        with contextlib.ExitStack() as stack:
            for hook, places in PLACES.items():
                holder, name = _place_of(hook, places)
                inner = getattr(holder, name)
                setattr(holder, name, _wrapped(getattr(self, hook), inner))
                stack.callback(setattr, holder, name, inner)
            yield


def _wrapped(hook: Callable[..., Any], inner: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        return hook(inner, *arguments, **options)

    return call


def _place_of(hook: str, places: Sequence[str]) -> tuple[Any, str]:
    for place in places:
        module, _, path = place.partition(":")
        *parents, name = path.split(".")
        try:
            holder: Any = importlib.import_module(module)
            for parent in parents:
                holder = getattr(holder, parent)
            getattr(holder, name)
        except (ImportError, AttributeError):
            continue
        return holder, name
    raise SystemExit(
        f"benchmarks/digests.py: none of {', '.join(places)} exists; expected the function behind the hook {hook!r}. Add its new place to PLACES."
    )


def hold_still() -> None:
    """Stops the clock that files are dated by, and sets the version that ledgers name. Before the pipeline is imported."""
    import tff_pipeline

    tff_pipeline.__version__ = "0"
    gmtime = time.gmtime
    time.gmtime = lambda seconds=None: gmtime(1_767_225_600 if seconds is None else seconds)  # 2026-01-01


# -- what is run ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
      changes: of the configuration below, as `--set` takes them.
      words: whether labels are of words; of texts otherwise.
      export: whether a version is exported and asked.
      audit: whether the run's records are audited.
      stop_in_round: the round in which the run is interrupted once; 0 for none.
      forget_noise: whether a round is also run with the noise forgotten.
      again: changes of a second run on the same population, which is charged on the same ledgers.
    """

    changes: tuple[str, ...]
    words: bool = False
    export: bool = False
    audit: bool = False
    stop_in_round: int = 0
    forget_noise: bool = False
    again: tuple[str, ...] = ()


def _set(text: str) -> tuple[str, ...]:
    return tuple(text.split())


GAUSSIAN = _set("privacy.mechanism=gaussian privacy.clip_norm=0.5 privacy.noise_multiplier=0.8 privacy.delta=1e-3")
TREE = _set(
    "privacy.mechanism=tree privacy.clip_norm=0.5 privacy.noise_multiplier=2.0 privacy.delta=1e-3 training.rounds=5 training.clients_per_round=14"
)
DISTRIBUTED = _set(
    "privacy.mechanism=distributed_discrete_gaussian privacy.clip_norm=0.5 privacy.noise_multiplier=0.8 privacy.delta=1e-3"
)
NONE = _set("privacy.mechanism=none")
ADAPTIVE = _set("privacy.clipping=adaptive privacy.clip_count_stddev=0.5 privacy.clip_quantile=0.6")
NOISED = _set("privacy.metrics=noised privacy.metrics_stddev=2.0")
EXAMPLES = _set("training.weighting=examples")
FEDPROX = _set("training.algorithm=fedprox training.proximal_strength=0.5")
ADAM = _set("training.server_optimizer=adam training.client_optimizer=adam training.client_learning_rate=0.01")
PLAIN = _set("training.server_momentum=0.0 training.local_epochs=2")
SILO = _set("privacy.unit=silo training.clients_per_round=1.5 privacy.allow_large_delta=true")
SILO_NONE = _set("privacy.unit=silo training.clients_per_round=1.5")
BITS_16 = _set("secure_sum.bits=16")
REFERENCE = _set("runtime.kind=reference")
TARGET = _set("privacy.noise_multiplier= privacy.target_epsilon=6.0")
HEAD, LORA, FULL = ((f"model.trainable={kind}",) for kind in ("head", "lora", "full"))

CASES: dict[str, Case] = {
    "gaussian.head": Case((*GAUSSIAN, *HEAD), export=True, forget_noise=True, audit=True),
    "gaussian.lora": Case((*GAUSSIAN, *LORA, "export.weights=int8"), export=True, forget_noise=True),
    "gaussian.full": Case((*GAUSSIAN, *FULL)),
    "target.head": Case(
        (
            *GAUSSIAN,
            *TARGET,
            *HEAD,
            "privacy.budget_epsilon=20",
            "silos.0.budget_epsilon=30",
            "privacy.metrics=released",
        ),
        again=("training.rounds=2", "privacy.population=example"),
    ),
    "adaptive.head": Case((*GAUSSIAN, *ADAPTIVE, *HEAD), forget_noise=True),
    "noised_metrics.head": Case((*GAUSSIAN, *NOISED, *HEAD), export=True),
    "adaptive.noised_metrics.lora": Case((*GAUSSIAN, *ADAPTIVE, *NOISED, *LORA)),
    "plain.head": Case((*GAUSSIAN, *PLAIN, *HEAD)),
    "fedprox.head": Case((*GAUSSIAN, *FEDPROX, *HEAD)),
    "adam.head": Case((*GAUSSIAN, *ADAM, *HEAD)),
    "tree.head": Case((*TREE, *HEAD), forget_noise=True),
    "tree.full": Case((*TREE, *FULL, "model.pooling=pooler")),
    "distributed.head": Case((*DISTRIBUTED, *HEAD), forget_noise=True),
    "distributed.full": Case((*DISTRIBUTED, *FULL, "privacy.tolerated_silos=2")),
    "distributed_16.head": Case((*DISTRIBUTED, *BITS_16, *TARGET, *HEAD, "privacy.tolerated_silos=0")),
    "distributed_16.lora": Case((*DISTRIBUTED, *BITS_16, *LORA)),
    "none.head": Case((*NONE, *HEAD, "privacy.metrics=released"), export=True),
    "none.clip.head": Case((*NONE, *HEAD, "privacy.clip_norm=0.5")),
    "examples.head": Case((*NONE, *EXAMPLES, *ADAM, *HEAD)),
    "examples.full": Case((*NONE, *EXAMPLES, *FEDPROX, *FULL)),
    "silo.gaussian.head": Case((*GAUSSIAN, *SILO, *HEAD)),
    "silo.tree.head": Case((*TREE, *SILO, *HEAD)),
    "silo.distributed.head": Case((*DISTRIBUTED, *SILO, *HEAD)),
    "silo.examples.lora": Case((*NONE, *SILO_NONE, *EXAMPLES, *LORA)),
    "resumed.gaussian.head": Case((*GAUSSIAN, *HEAD), stop_in_round=3),
    "resumed.tree.lora": Case((*TREE, *TARGET, *LORA), stop_in_round=5),
    "resumed.distributed.head": Case((*DISTRIBUTED, *HEAD), stop_in_round=2),
    "reference.gaussian.head": Case((*GAUSSIAN, *HEAD, *REFERENCE)),
    "reference.distributed.head": Case((*DISTRIBUTED, *HEAD, *REFERENCE)),
    "words.gaussian.full": Case((*GAUSSIAN, *FULL, "export.weights=float16"), words=True, export=True),
    "words.gaussian.head": Case((*GAUSSIAN, *HEAD), words=True),
    "words.distributed.lora": Case((*DISTRIBUTED, *LORA), words=True),
    "words.examples.head": Case((*NONE, *EXAMPLES, *HEAD), words=True),
    "words.silo.gaussian.full": Case((*GAUSSIAN, *SILO, *FULL), words=True),
}

_SILOS = """
[[silos]]
name = "bank"
input = "data/bank/*.csv"
format = "csv"
text = "message"
label = "intent"
client = "customer"
group = "channel"

[[silos]]
name = "insurer"
input = "data/insurer/*.jsonl"
format = "jsonl"
text = "body"
label = "topic"
client = "policyholder"
group = "via"

[[silos]]
name = "shop"
input = "data/shop/*.tsv.gz"
format = "tsv"
text = "text"
label = "reason"
client = "customer_no"
group = "channel"
quoting = false
"""
_WORD_SILOS = "".join(
    f'\n[[silos]]\nname = "{name}"\ninput = "data/{name}/*.conll"\nformat = "conll"\nclient = "client"\ngroup = "channel"\n'
    for name in ("bank", "insurer", "shop")
)
_CONFIGURATION = """
[pipeline]
name = "example"
seed = 20260101
{task}{silos}
[prepare]
max_length = 16
max_examples_per_client = 6
shards = 2
workers = 1

[model]
checkpoint = "random"
vocabulary = "data/vocabulary.txt"
hidden_size = 16
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 32
lora_rank = 2
lora_alpha = 4.0

[training]
rounds = 3
clients_per_round = 10
batch_size = 4
client_learning_rate = 0.3
server_learning_rate = 0.5
server_momentum = 0.9
keep_states = 100

[privacy]
mechanism = "none"

[runtime]
devices = "CPU"
clients_in_parallel = 2

[export]
warmup_batch_sizes = [1, 2]
explain_steps = 4
intended_use = "To be compared."
"""


def write_inputs(folder: Path, *, words: bool) -> None:
    """The configuration and what the silos have, texts with labels or words with tags."""
    task = '\n[task]\nkind = "token_classification"\n' if words else ""
    silos = _WORD_SILOS if words else _SILOS
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(_CONFIGURATION.format(task=task, silos=silos))
    generate(folder / "data", seed=SEED, clients=CLIENTS)
    if not words:
        return
    for silo in ("bank", "insurer", "shop"):
        sentences = [
            "\n".join((f"# client = {row.client}", f"# channel = {row.channel}", *_tagged(row.text)))
            for row in messages(silo, clients=CLIENTS // 3, seed=SEED)
        ]
        (folder / "data" / silo / "messages.conll").write_text("\n\n".join(sentences) + "\n")


def _tagged(text: str) -> list[str]:
    """Words with tags that can be read off them: numbers, and words with a capital letter inside of a text."""
    lines, before = [], "O"
    for index, word in enumerate(text.split()):
        kind = "NUM" if any(map(str.isdigit, word)) else "NAME" if index and word[0].isupper() else ""
        tag = f"{'I' if before.endswith(kind) else 'B'}-{kind}" if kind else "O"
        before = tag
        lines.append(f"{word}\t{tag}")
    return lines


# -- what is recorded ----------------------------------------------------------------------------------------------------


def digest_of_bytes(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()[:16]}"


def digest_of_array(array: Any) -> str:
    """Of type, shape and bytes; "NaN" and the shape where it holds nothing else."""
    array = np.asarray(array)
    if array.dtype == object:
        array = array.astype(np.bytes_)
    if array.dtype.kind == "f" and array.size and np.isnan(array).all():
        return f"NaN {array.dtype.str}{array.shape}"
    return digest_of_bytes(f"{array.dtype.str}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())


def told(value: Any) -> Any:
    """A JSON value as a record has it: itself where it is short, else a digest of it."""
    written = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return value if len(written) <= _SHORT else digest_of_bytes(written.encode())


# When it was, how long it took, with which packages, and of which commit.
_UNSTEADY = {"created", "time", "seconds", "left_s", "versions", "code"}


def steady(value: Any, folder: Path) -> Any:
    """A JSON value without times, and with `<folder>` for the folder of this run."""
    match value:
        case dict():
            return {
                steady(name, folder): sorted({re.sub(r"^tensorboard/.*", "tensorboard/", path) for path in part})
                # Of a manifest's files the names: the contents are recorded by themselves, and some hold times.
                if name == "files" and isinstance(part, dict)
                else steady(part, folder)
                for name, part in value.items()
                if name not in _UNSTEADY
            }
        case list():
            return [steady(part, folder) for part in value]
        case str():
            return value.replace(str(folder), "<folder>")
    return value


def record_json(record: Record, name: str, value: Any, folder: Path, *, depth: int = 2) -> None:
    """Puts a JSON value into the record, by its keys down to `depth`."""

    def put(name: str, value: Any, depth: int) -> None:
        if isinstance(value, dict) and depth:
            for key, part in value.items():
                put(f"{name}.{key}", part, depth - 1)
        else:
            record[name] = told(value)

    put(name, steady(value, folder), depth)


def record_files(record: Record, name: str, root: Path, folder: Path, *, without: Sequence[str] = ()) -> None:
    """Puts every file under `root` into the record.

    Left out are completion marks, which digest manifests, which hold versions and times; and what `without` names.
    """
    for path in sorted(root.rglob("*")):
        within = path.relative_to(root).as_posix()
        if not path.is_file() or path.name == "COMPLETE" or any(fnmatch.fnmatch(within, part) for part in without):
            continue
        key = f"{name}.{within}"
        if path.suffix == ".json":
            record_json(record, key, json.loads(path.read_text(encoding="utf-8")), folder)
        else:
            record[key] = digest_of_bytes(path.read_bytes().replace(os.fsencode(folder), b"<folder>"))


def record_run(record: Record, name: str, run: Path, folder: Path) -> None:
    """A run's folder: its files, and each array by name."""
    # TensorBoard's files hold times. rounds.csv holds seconds, and is recorded below without.
    record_files(record, name, run, folder, without=("tensorboard/*", "rounds.csv"))
    with (run / "rounds.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            record[f"{name}.rounds.csv.{row['round']}"] = told({key: row[key] for key in row if key != "seconds"})
    for arrays in sorted(run.rglob("arrays.npz")):
        names = json.loads((arrays.parent / "manifest.json").read_text())["names"]
        part = arrays.parent.relative_to(run).as_posix().replace("states/", "state.")
        with np.load(arrays) as stored:
            for index, key in enumerate(sorted(stored.files)):
                record[f"{name}.{part}.{names[index] if names else key}"] = digest_of_array(stored[key])


def record_version(record: Record, name: str, version: Path, folder: Path) -> None:
    """An exported version: its golden pairs, warm-up requests and card, and what its signatures answer to the pairs."""
    import tensorflow as tf
    import tensorflow_text  # noqa: F401  its operations are in the graph
    from tensorflow_serving.apis import classification_pb2, predict_pb2

    # A graph's bytes depend on the order in which threads and dictionaries come by; its answers do not. The card names the
    # commit, and is recorded without.
    record_files(record, name, version, folder, without=("*.pb", "variables/*", "MODEL_CARD.md"))
    card = (version / "MODEL_CARD.md").read_text(encoding="utf-8")
    record[f"{name}.MODEL_CARD.md"] = told(re.sub(r"tff-pipeline 0, .*", "tff-pipeline", card))
    model = tf.saved_model.load(str(version))
    pairs = json.loads((version / "assets.extra" / "golden.json").read_text(encoding="utf-8"))["pairs"]
    for index, pair in enumerate(pairs):
        asked, function = base64.b64decode(pair["grpc"]["request"]), model.signatures[pair["signature"]]
        if pair["api"] == "classify":
            examples = classification_pb2.ClassificationRequest.FromString(asked).input.example_list.examples
            inputs = {"inputs": tf.constant([example.SerializeToString() for example in examples])}
        else:
            tensors = predict_pb2.PredictRequest.FromString(asked).inputs
            inputs = {key: tf.constant(tf.make_ndarray(tensor)) for key, tensor in tensors.items()}
        for output, answer in sorted(function(**inputs).items()):
            record[f"{name}.answers.{index:02d}.{pair['signature']}.{output}"] = digest_of_array(answer.numpy())


# -- running it ----------------------------------------------------------------------------------------------------------


def command(record: Record, name: str, folder: Path, *arguments: str, expected: Sequence[int] = (0,)) -> Any:
    """Gives one command of `tff-pipeline`; records its exit code, its events and what it prints. Returns that as JSON."""
    from tff_pipeline import cli

    printed, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
        code = cli.main(arguments)
    if code not in expected:
        raise RuntimeError(f"{name}: tff-pipeline {' '.join(arguments)} ended with {code}:\n{said.getvalue()[-3000:]}")
    record[f"{name}.exit_code"] = code
    events = [json.loads(line) for line in said.getvalue().splitlines() if line.startswith('{"time"')]
    # These two say how long something took, and how far preparation was after some seconds.
    kept = [event for event in events if event["event"] not in ("compile", "prepare_running")]
    record[f"{name}.events"] = told(steady(kept, folder))
    try:
        result = [json.loads(line) for line in printed.getvalue().splitlines()]
    except ValueError:
        result = []
    return result[0] if len(result) == 1 else result


def prepared(words: bool, base: str) -> Record:
    """Prepares the silos, once for all cases."""
    hold_still()
    folder, record, name = Path(base) / ("words" if words else "texts"), Record(), "words" if words else "texts"
    write_inputs(folder, words=words)
    record_files(record, f"{name}.inputs", folder / "data", folder)
    result = command(record, f"{name}.prepare", folder, "prepare", "--config", str(folder / "config.toml"), "--json")
    record_json(record, f"{name}.prepare.result", {part["silo"]: part for part in result}, folder)
    record_files(record, f"{name}.prepare", folder / "workdir", folder)
    return record


def run_case(name: str, base: str) -> tuple[Record, float]:
    """Runs a case in a copy of the prepared folder; returns its record and the seconds it took."""
    started = time.monotonic()
    hold_still()
    case, record = CASES[name], Record()
    folder = Path(base) / "cases" / name
    shutil.copytree(Path(base) / ("words" if case.words else "texts"), folder)
    options = ["--config", str(folder / "config.toml")]
    for change in case.changes:
        options += ["--set", change]
    hooks = _Hooks(folder, stop_in_round=case.stop_in_round, forget_noise=case.forget_noise)

    record_json(
        record, f"{name}.privacy", command(record, f"{name}.privacy", folder, "privacy", *options, "--json"), folder
    )
    with hooks.placed():
        if case.stop_in_round:
            command(record, f"{name}.interrupted", folder, "train", *options, "--json", expected=(130,))
        run = _train(record, f"{name}.train", folder, options)
    record |= {f"{name}.train.{key}": value for key, value in hooks.seen.items()}
    evaluated = command(record, f"{name}.evaluate", folder, "evaluate", "--run", str(run), "--json")
    record_json(record, f"{name}.evaluate", evaluated, folder)
    if case.export:
        _export(record, f"{name}.export", folder, run, words=case.words)
    if case.audit:
        _audit(record, f"{name}.audit", folder, run)
    if case.again:
        _train(
            record, f"{name}.again", folder, [*options, *(part for change in case.again for part in ("--set", change))]
        )
    record_run(record, f"{name}.train", run, folder)
    for action in ("show", "verify", *(("budget",) if case.again else ())):
        result = command(record, f"{name}.ledger.{action}", folder, "ledger", action, *options, "--json")
        record_json(record, f"{name}.ledger.{action}", result, folder)
    workdir = folder / "workdir"
    for path in sorted([*workdir.glob("ledgers/*"), *workdir.glob("silos/*/ledger*")]):
        if path.is_file():
            record[f"{name}.ledger.{path.relative_to(workdir).as_posix()}"] = digest_of_bytes(path.read_bytes())
    return record, time.monotonic() - started


def _train(record: Record, name: str, folder: Path, options: Sequence[str]) -> Path:
    result = command(record, name, folder, "train", *options, "--json")
    record_json(record, f"{name}.result", result, folder)
    return Path(result["path"])


def _export(record: Record, name: str, folder: Path, run: Path, *, words: bool) -> None:
    result = command(record, name, folder, "export", "--run", str(run), "--to", str(folder / "models"), "--json")
    record_json(record, f"{name}.result", result, folder)
    record_version(record, name, folder / "models" / "1", folder)
    texts = ("where is my card?", "我上周搬家了，请修改地址", 'caf\udce9 19" monitor', "")
    for way in ((), ("--explain",)) if not words else ((),):
        asked = ("predict", "--model", str(folder / "models"), "--json", *way, *texts)
        record[f"{name}.predict{way[0] if way else ''}"] = told(command(record, f"{name}.predict", folder, *asked))


def _audit(record: Record, name: str, folder: Path, run: Path) -> None:
    """What the audit reads in the run's folder and plan. Its attack draws keys of its own, from the operating system."""
    arguments = ("audit", "--run", str(run), "--observations", "500", "--json")
    result = command(record, name, folder, *arguments, expected=(0, 5))
    for key in ("claimed", "rounds_not_charged", "rounds", "observations"):
        record[f"{name}.{key}"] = told(result[key])
    for check in result["checks"]:
        if check["name"].startswith("recorded"):
            record[f"{name}.{check['name']}"] = told(check)
    record[f"{name}.checks"] = told([check["name"] for check in result["checks"]])
    for unsteady in ("exit_code", "events"):
        del record[f"{name}.{unsteady}"]


def run_all(names: Sequence[str], base: str, *, jobs: int, save: Callable[[Record], None]) -> Record:
    """Prepares, and runs the cases in processes that each take one after the other; `save` is given what there is so far."""
    record, started = Record(), time.monotonic()
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context) as pool:
        tasks = {CASES[name].words for name in names}
        for part in pool.map(prepared, sorted(tasks), [base] * len(tasks)):
            record |= part
        _say(f"prepared, {time.monotonic() - started:.0f} s")
        pending = {pool.submit(run_case, name, base): name for name in names}
        for done, future in enumerate(concurrent.futures.as_completed(pending), start=1):
            try:
                part, seconds = future.result()
            except Exception as error:  # the other cases are of use without this one
                part, seconds = {f"{pending[future]}.failed": str(error)}, 0.0
                _say(f"{pending[future]} failed: {error!r}")
            record |= part
            save(record)
            _say(f"{done} of {len(names)}: {pending[future]}, {len(part)} things in {seconds:.0f} s")
    _say(f"{len(record)} things recorded in {time.monotonic() - started:.0f} s")
    return record


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """A line for each name whose value is not the same in both, or that one of them lacks."""
    lines = []
    for name in sorted({*before, *after}):
        if name not in after:
            lines.append(f"missing   {name}: was {before[name]!r}")
        elif name not in before:
            lines.append(f"new       {name}: is {after[name]!r}")
        elif before[name] != after[name]:
            lines.append(f"different {name}: was {before[name]!r}, is {after[name]!r}")
    return lines


_EPILOG = f"""\
The rest of the description is at the top of the file. Cases:
  {chr(10).join("  " + name for name in CASES).strip()}

A difference in snapshots or keys explains those that follow from them: read the first stage that differs, in the order
prepare, privacy, cohort, silo_sum, sum, state, evaluate, export. `--folder DIR` keeps the files of both runs to look at.
If a hook is not found, the code has moved: add its new place to PLACES at the top of the file.
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.digests",
        description="Records digests of what seeded runs write and send, or compares with a record made before: a refactoring has to change none.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--write",
        metavar="FILE",
        type=Path,
        help="write the record there; with --only, beside what the file holds of other cases",
    )
    which.add_argument(
        "--compare", metavar="FILE", type=Path, help="compare with this record; exit code 1 if they differ"
    )
    parser.add_argument(
        "--only", metavar="NAME", nargs="+", default=["*"], help='cases, "tree.head" or "tree.*" (default: all of them)'
    )
    parser.add_argument("--jobs", metavar="N", type=int, default=2, help="processes that run cases (default: 2)")
    parser.add_argument(
        "--folder", metavar="DIR", type=Path, help="run in this new folder, and keep it, with the record"
    )
    arguments = parser.parse_args(argv)
    names = [name for name in CASES if any(fnmatch.fnmatch(name, given) for given in arguments.only)]
    if not names:
        parser.error(f"--only {' '.join(arguments.only)}: expected at least one of {', '.join(CASES)}")
    before = _read(arguments.compare or arguments.write)
    if arguments.compare and not before:
        parser.error(f"--compare {arguments.compare}: there is no record; expected one that --write made")
    mine = _owned(names)
    others = {name: value for name, value in before.items() if not name.startswith(mine)}
    kept = arguments.folder / "record.json" if arguments.folder else None
    if kept:
        kept.parent.mkdir(parents=True)

    def save(record: Record) -> None:
        """After each case, so that what is done of a long run is not lost."""
        if arguments.write:
            _write(arguments.write, others | record)
        if kept:
            _write(kept, record)

    with contextlib.ExitStack() as stack:
        base = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="digests-")))
        record = run_all(names, str(base.resolve()), jobs=arguments.jobs, save=save)
    if arguments.write:
        return 1 if any(name.endswith(".failed") for name in record) else 0
    lines = differences({name: value for name, value in before.items() if name.startswith(mine)}, record)
    print("\n".join(lines) or f"nothing differs in {len(record)} things of {len(names)} cases")
    return 1 if lines else 0


def _owned(names: Sequence[str]) -> tuple[str, ...]:
    """What the names of everything begin with that running these cases records."""
    tasks = {"words" if CASES[name].words else "texts" for name in names}
    return tuple(
        f"{part}." for part in (*names, *(f"{task}.{kind}" for task in tasks for kind in ("inputs", "prepare")))
    )


def _read(path: Path) -> Record:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _write(path: Path, record: Record) -> None:
    """Writes a record, a thing a line."""
    lines = [f"{json.dumps(name)}: {json.dumps(record[name], ensure_ascii=False)}" for name in sorted(record)]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
