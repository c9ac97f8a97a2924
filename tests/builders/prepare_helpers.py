"""A tiny vocabulary, a configuration around it, prepare as a user would call it or as it fails, and reading back what it wrote."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from beam_jobs import prepare_silo
from tff_pipeline import artifacts, config
from tff_pipeline.data import records
from tff_pipeline.errors import InputError, PipelineError
from tff_pipeline.progress import Progress, silence_libraries

silence_libraries()

VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "my",
    "card",
    "is",
    "lost",
    "please",
    "help",
    "thanks",
    "你",
    "好",
    "##s",
    ",",
    "a",
    "b",
    "##a",
    "##b",
]


@dataclass
class Case:
    """One silo's configuration in a folder of its own."""

    folder: Path
    silo: dict[str, Any] = field(default_factory=lambda: {"input": "data.csv", "format": "csv", "client": "client"})
    prepare: dict[str, Any] = field(default_factory=dict)
    labels: Any = "auto"
    kind: str = "sequence_classification"
    seed: int | None = 7
    workdir: str = "work"

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def config(self) -> config.Config:
        self.write("vocab.txt", "\n".join(VOCABULARY) + "\n")
        lines = [
            "[pipeline]",
            'name = "test"',
            f'workdir = "{self.workdir}"',
            *([f"seed = {self.seed}"] if self.seed is not None else []),
        ]
        lines += ["[task]", f'kind = "{self.kind}"', f"labels = {json.dumps(self.labels)}"]
        lines += ["[prepare]", *(f"{key} = {_toml(value)}" for key, value in self.prepare.items())]
        lines += ["[model]", 'checkpoint = "random"', 'vocabulary = "vocab.txt"']
        lines += ["[training]", "rounds = 1", "clients_per_round = 1", "[privacy]", 'mechanism = "none"']
        lines += ["[[silos]]", 'name = "bank"', *(f"{key} = {_toml(value)}" for key, value in self.silo.items())]
        return config.load(self.write("config.toml", "\n".join(lines)))

    def prepare_it(self, *beam_args: str, progress: Progress | None = None) -> Path:
        return prepare_silo.prepare(
            self.config(), "bank", beam_args=beam_args, progress=progress or Progress(interactive=False)
        )

    @property
    def silo_folder(self) -> Path:
        return self.folder / self.workdir / "silos" / "bank"


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)


def manifest_of(snapshot: Path) -> dict[str, Any]:
    return artifacts.read_manifest(snapshot, check_files=True)


def rejected_of(path: Path) -> list[tuple[str, int, str]]:
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [(row["file"], row.get("line", row.get("row")), row["reason"]) for row in rows]


def words_by_client(snapshot: Path) -> dict[str, dict[str, list[tuple[str, str]]]]:
    """Split to client to [(words, label)], read back through ClientReader."""
    import tensorflow as tf

    manifest = manifest_of(snapshot)
    words: dict[str, dict[str, list[tuple[str, str]]]] = {}
    for split, summary in manifest["splits"].items():
        words[split] = {}
        with records.ClientReader(snapshot, split, summary["shards"]) as reader:
            for row in range(len(reader)):
                record = reader.read(row)
                client = (
                    tf.train.Example.FromString(record).features.feature[records.CLIENT].bytes_list.value[0].decode()
                )
                arrays = records.decode_client(record)
                texts, at = [], 0
                for length in arrays[records.LENGTHS]:
                    texts.append(
                        " ".join(VOCABULARY[token] for token in arrays[records.TOKENS][at + 1 : at + length - 1])
                    )
                    at += length
                words[split][client] = list(
                    zip(texts, [manifest["labels"][label] for label in arrays[records.LABELS]], strict=True)
                )
    return words


def examples_in(snapshot: Path) -> list[tuple[str, str]]:
    """Every (words, label) of a snapshot, sorted."""
    return sorted(
        example
        for clients in words_by_client(snapshot).values()
        for examples in clients.values()
        for example in examples
    )


def data_bytes(snapshot: Path) -> dict[str, bytes]:
    """Everything in a snapshot but the manifest, which holds a time, and the mark, which holds its checksum."""
    return {
        path.name: path.read_bytes()
        for path in snapshot.iterdir()
        if path.name not in (artifacts.MANIFEST, artifacts.COMPLETE)
    }


WORKERS = {
    mode: ["--direct_num_workers=2", f"--direct_running_mode={mode}"]
    for mode in ("multi_threading", "multi_processing")
}

GOOD = "text,label,client\nmy card is lost,lost,anna\nhelp,help,ben\nplease help,help,anna\nthanks,bye,carl\n"
EXAMPLES = [("help", "help"), ("my card is lost", "lost"), ("please help", "help"), ("thanks", "bye")]


def many(clients: int, *, rows: int = 3) -> str:
    """A csv of `clients` clients with `rows` rows each."""
    return "text,label,client\n" + "".join(
        f"{VOCABULARY[4 + (client + row) % 7]} {VOCABULARY[4 + client % 5]},l{row % 2},client {client}\n"
        for row in range(rows)
        for client in range(clients)
    )


def refusal(case: Case, kind: type[PipelineError] = InputError, *, beam_args: Sequence[str] = ()) -> str:
    """The message prepare fails with; the silo's folder then holds neither a snapshot nor unfinished files."""
    with pytest.raises(kind) as raised:
        case.prepare_it(*beam_args)
    assert nothing_left(case)
    return str(raised.value)


def nothing_left(case: Case) -> bool:
    left = (
        {path.relative_to(case.silo_folder).parts[0] for path in case.silo_folder.rglob("*")}
        if case.silo_folder.exists()
        else set()
    )
    left -= {".prepare.lock", "keys"}
    return not {name for name in left if not name.startswith("rejected-")} or not list(
        (case.silo_folder / "snapshots").iterdir()
    )
