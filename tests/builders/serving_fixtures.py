"""A finished run on disk, made without preparing or training: a random two-layer BERT and hand-written snapshots.

`make_run(workdir)` writes three silos' snapshots and a run over them, all as the real stages do, in about two seconds.
The head is random, so that different texts get different answers.
"""

import atexit
import dataclasses
import fcntl
import functools
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from tff_pipeline.artifacts import Workdir, staged, write_json
from tff_pipeline.config import (
    Config,
    ExportSection,
    ModelSection,
    PipelineSection,
    PrepareSection,
    PrivacySection,
    SiloSection,
    TaskSection,
    TrainingSection,
)
from tff_pipeline.data import records
from tff_pipeline.data.tokenization import Tokenizer

if TYPE_CHECKING:
    from tff_pipeline.export.verification_request import VerificationRequest

WORDS = "card lost stolen money transfer fee charged why account open close help please my the a is not loan claim paid refund doctor visit 我 的 卡 丢 了 钱 转 账"
ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'-"
LABELS = ("card", "fees", "other")
TAGS = ("B-ORG", "B-PER", "I-ORG", "I-PER", "O")

# silo -> (its labels, its groups, split -> clients as lists of (text, label, group))
Clients = Sequence[Sequence[tuple[str, str, str]]]


@dataclasses.dataclass(frozen=True)
class SiloData:
    labels: Sequence[str]
    groups: Sequence[str]
    splits: Mapping[str, Clients]


SILOS = {
    "bank": SiloData(
        labels=("card", "fees"),
        groups=("app", "phone"),
        splits={
            "train": [
                [("my card is lost", "card", "app"), ("why the fee", "fees", "app")],
                [("charged a fee", "fees", "phone")],
            ],
            "test": [
                [("my card is stolen", "card", "app"), ("why is the fee charged please", "fees", "phone")],
                [("我 的 卡 丢 了", "card", "app")],
                [("not my fee", "fees", "phone"), ("close my account", "card", "phone"), ("card", "card", "app")],
            ],
        },
    ),
    # Its numbers for labels differ from the model's; it has no group column.
    "clinic": SiloData(
        labels=("other", "fees"),
        groups=("",),
        splits={
            "train": [[("doctor visit", "other", "")]],
            "test": [[("claim paid", "other", ""), ("refund the fee", "fees", "")], [("visit", "other", "")]],
        },
    ),
    "insurer": SiloData(
        labels=("other",), groups=("app",), splits={"train": [[("help please", "other", "app")]], "test": []}
    ),
}
# Sentences as words and tags.
TAGGED_SILOS = {
    "paper": SiloData(
        labels=TAGS,
        groups=("",),
        splits={
            "train": [[("anna lost my card", "B-PER O O O", "")]],
            "test": [
                [("anna b visit acme bank", "B-PER I-PER O B-ORG I-ORG", ""), ("the fee", "O O", "")],
                [("acme paid", "B-ORG O", "")],
            ],
        },
    )
}


def vocabulary(path: Path) -> Path:
    """Special tokens, words, and single characters with their continuations, so that any English word has pieces."""
    tokens = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *dict.fromkeys([*WORDS.split(), *ALPHABET]),
        *(f"##{letter}" for letter in ALPHABET),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(tokens) + "\n", encoding="utf-8")
    return path


def config(
    workdir: Path,
    *,
    task: str = "sequence_classification",
    silos: Sequence[str] = tuple(SILOS),
    max_length: int = 24,
    **model: object,
) -> Config:
    """The configuration of a private run of two rounds in `workdir`."""
    settings: dict = {
        "checkpoint": "random",
        "vocabulary": str(vocabulary(workdir / "vocabulary.txt")),
        "hidden_size": 32,
        "intermediate_size": 64,
    }
    if model.get("checkpoint"):
        settings = {}
    return Config(
        path=str(workdir / "config.toml"),
        pipeline=PipelineSection(name="desk", workdir=str(workdir), seed=7),
        task=TaskSection(kind=task),
        silos=tuple(
            SiloSection(name=name, input="unused", format="conll" if task == "token_classification" else "csv")
            for name in silos
        ),
        prepare=PrepareSection(max_length=max_length),
        model=ModelSection(**{**settings, **model}),
        training=TrainingSection(rounds=2, clients_per_round=2.0),
        privacy=PrivacySection(mechanism="gaussian", clip_norm=1.0, noise_multiplier=1.0, delta=1e-5),
    )


def write_config(configuration: Config, path: Path) -> Path:
    """The configuration as the file it might have come from."""

    def toml(value: object) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{key} = {toml(each)}" for key, each in value.items() if each is not None) + "}"
        return (
            "[" + ", ".join(map(toml, value)) + "]"
            if isinstance(value, list | tuple)
            else msgspec.json.encode(value).decode()
        )

    lines = []
    for section, value in msgspec.to_builtins(configuration).items():
        if section == "silos":
            lines += [
                f"[[silos]]\n{key} = {toml(each)}" if key == "name" else f"{key} = {toml(each)}"
                for silo in value
                for key, each in silo.items()
                if each is not None
            ]
        elif section != "path":
            lines += [f"[{section}]", *(f"{key} = {toml(each)}" for key, each in value.items() if each is not None)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_snapshot(
    workdir: Path,
    silo: str,
    data: SiloData,
    tokenizer: Tokenizer,
    *,
    task: str = "sequence_classification",
    identity: str = "0001",
) -> Path:
    """A snapshot as `prepare` writes one, with a shard a split, and the file that makes it the current one."""
    work = Workdir(workdir)
    folder = work.snapshots(silo) / identity
    splits: dict[str, dict] = {}

    def manifest() -> dict:
        made_from = {
            "kind": "snapshot",
            "silo": silo,
            "id": identity,
            "task": task,
            "labels": list(data.labels),
            "groups": list(data.groups),
        }
        return {**made_from, "tokenizer": {"fingerprint": tokenizer.fingerprint}, "splits": splits}

    with staged(folder, manifest) as aside:
        for split, clients in data.splits.items():
            shard = records.shard_name(split, 0, 1)
            index = []
            with (aside / shard).open("wb") as file:
                for number, client in enumerate(clients):
                    record = records.encode_client(f"{number:032x}", *_arrays(client, data, tokenizer, task))
                    index.append((0, file.tell(), len(record), len(client)))
                    records.write_frame(file, record)
            np.save(aside / records.index_name(split), np.array(index, np.int64).reshape(-1, 4))
            splits[split] = {
                "clients": len(clients),
                "examples": sum(map(len, clients)),
                "shards": [shard] if clients else [],
            }
    write_json(work.current_snapshot(silo), {"id": identity})
    return folder


def _arrays(
    client: Sequence[tuple[str, str, str]], data: SiloData, tokenizer: Tokenizer, task: str
) -> tuple[np.ndarray, ...]:
    """tokens, lengths, labels and groups of one client."""
    groups = np.array([data.groups.index(group) for *_, group in client])
    if task == "sequence_classification":
        tokens, lengths = tokenizer.encode([text for text, *_ in client])
        return tokens, lengths, np.array([data.labels.index(label) for _, label, _ in client]), groups
    tokens, labels, lengths = [], [], []
    for text, tags, _ in client:
        ids, first = tokenizer.encode_words(text.split())
        numbers = np.array([data.labels.index(tag) for tag in tags.split()] + [records.IGNORED])
        tokens.append(ids)
        labels.append(numbers[first])
        lengths.append(len(ids))
    return np.concatenate(tokens), np.array(lengths), np.concatenate(labels), groups


def write_run(
    configuration: Config,
    snapshots: Mapping[str, Path],
    labels: Sequence[str],
    *,
    run: str = "20240101-000000",
    spread: float = 2.0,
) -> Path:
    """A finished run: base weights, a trained head with a random kernel of about `spread`, and its description."""
    from tff_pipeline.model.network import base_network
    from tff_pipeline.training.store import save_arrays

    tokenizer = Tokenizer.from_config(configuration.model, configuration.prepare.max_length)
    folder = Workdir(configuration.workdir).runs / run
    network = base_network(configuration.model, tokenizer, labels=len(labels), task=configuration.task.kind, seed=7)
    base = [variable.numpy() for variable in network.variables]
    # A random encoder says almost the same of every text; the bias takes that away, so that the rest decides.
    common = (
        network.features(tokenizer.ragged(["my card", "the fee", "doctor"]).to_tensor())
        .numpy()
        .reshape(-1, base[-2].shape[0])
        .mean(axis=0)
    )
    kernel = (spread * np.random.default_rng(7).standard_normal(base[-2].shape)).astype(np.float32)
    head = [kernel, -common @ kernel]
    save_arrays(folder / "base", base, kind="weights")
    save_arrays(folder / "trained", head, kind="weights")
    write_json(
        folder / "run.json",
        {
            "id": run,
            "name": configuration.pipeline.name,
            "created": "2024-01-01T00:00:00Z",
            "config": msgspec.to_builtins(configuration),
            "labels": list(labels),
            "tokenizer": tokenizer.fingerprint,
            "rounds": 2,
            "snapshots": {silo: {"id": path.name, "path": str(path)} for silo, path in snapshots.items()},
            "plan": {},
            "guarantee": {
                "mechanism": "gaussian",
                "epsilon": 3.5,
                "delta": 1e-5,
                "statement": ["A guarantee in a sentence.", "And another."],
            },
        },
    )
    write_json(folder.parent / "run.json", {"id": run})
    return folder


def make_run(workdir: Path, *, task: str = "sequence_classification", **model: object) -> Path:
    """Snapshots of all silos and a finished run over them; returns the run's folder."""
    silos, labels = (SILOS, LABELS) if task == "sequence_classification" else (TAGGED_SILOS, TAGS)
    configuration = config(workdir, task=task, silos=tuple(silos), **model)
    tokenizer = Tokenizer.from_config(configuration.model, configuration.prepare.max_length)
    snapshots = {silo: write_snapshot(workdir, silo, data, tokenizer, task=task) for silo, data in silos.items()}
    return write_run(configuration, snapshots, labels)


def request_of(run: Path, settings: ExportSection | None = None) -> "VerificationRequest":
    """What a version of the run, exported with `settings`, is to be verified with."""
    from tff_pipeline.export.manifest import served_name
    from tff_pipeline.export.verification_request import verification_request
    from tff_pipeline.training.store import config_of, load_trained

    trained = load_trained(run)
    settings = settings if settings is not None else config_of(run).export
    weights = [variable.numpy() for variable in trained.network.variables]
    return verification_request(trained, weights, settings, name=served_name(run, settings))


def exported(task: str = "sequence_classification") -> tuple[Path, Path]:
    """A run, evaluated, and its exported version 1; made once for all tests and all workers of xdist, which must not change it."""
    return _exported(task)  # a cache takes a default and the same argument for two calls


@functools.cache
def _exported(task: str) -> tuple[Path, Path]:
    shared = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if not shared:
        workdir = Path(tempfile.mkdtemp(prefix="exported-"))
        atexit.register(shutil.rmtree, workdir, ignore_errors=True)
        return _export(workdir, task)
    workdir = Path(tempfile.gettempdir()) / f"exported-{shared}-{task}"
    (workdir / "users").mkdir(parents=True, exist_ok=True)
    (workdir / "users" / str(os.getpid())).touch()
    atexit.register(_leave, workdir)
    with (workdir / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (workdir / "made").exists():
            made = _export(workdir, task)
            (workdir / "made").write_text("\n".join(map(str, made)))
        run, version = (workdir / "made").read_text().splitlines()
    return Path(run), Path(version)


def _leave(workdir: Path) -> None:
    """Whoever is the last to go clears up."""
    (workdir / "users" / str(os.getpid())).unlink()
    if not any((workdir / "users").iterdir()):
        shutil.rmtree(workdir, ignore_errors=True)


def _export(workdir: Path, task: str) -> tuple[Path, Path]:
    from tff_pipeline.artifacts import model_base
    from tff_pipeline.evaluation.evaluate import evaluate
    from tff_pipeline.export.build import export
    from tff_pipeline.progress import Progress
    from tff_pipeline.training.store import config_of

    run, quiet = make_run(workdir, task=task), Progress(interactive=False)
    evaluate(run, progress=quiet)
    return run, export(run, model_base(config_of(run)), progress=quiet)
