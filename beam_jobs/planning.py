"""What a snapshot will be, known before it is made: its files, its settings, its id; and the plan that workers follow.

The id follows from the inputs' checksums, the settings, the tokenizer and the silo's client key. Whatever changes the bytes of
a snapshot changes its id, so a finished one is never made again.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from beam_jobs import inputs
from beam_jobs.reading import Reject, Source
from beam_jobs.steps import parts, summaries
from beam_jobs.steps.clients import Keys
from beam_jobs.steps.gathering import SEVERAL_SPLITS
from tff_pipeline import artifacts, config
from tff_pipeline.config import Config, PrepareSection, SiloSection
from tff_pipeline.data.tokenization import Tokenizer
from tff_pipeline.errors import ArtifactError

FORMAT = 1
RULES = 2  # by which rows are read and clients distinguished; other rules make another snapshot of the same files
RANGE_BYTES = 16 * 2**20  # raw text that one worker groups in memory at a time, roughly;
MAX_RANGES = 256  # more where a silo has more text than so many: every range is a segment of every segment file
_COMPRESSION = 8  # how much larger than the file its text may be


@dataclass(frozen=True)
class Plan:
    """Everything a worker needs to know. The client secret is not in it, only its path: a plan travels to the runner."""

    silo: SiloSection
    prepare: PrepareSection
    known_labels: tuple[str, ...] | None
    files: tuple[inputs.InputFile, ...]
    split_by_files: bool
    secret: str
    ranges_per_shard: int
    work: str = ""

    @property
    def ranges(self) -> int:
        return self.prepare.shards * self.ranges_per_shard

    @property
    def file_splits(self) -> list[str]:
        """The split of each file; empty where clients are split by hash."""
        return [file.split for file in self.files] if self.split_by_files else []

    def keys(self) -> Keys:
        """The keys, on a worker. Never makes a secret: one made there would turn every client into another."""
        try:
            secret = Path(self.secret).read_bytes()
        except FileNotFoundError:
            raise ArtifactError(
                f"{self.secret}: a Beam worker does not see this file; expected all workers to share the workdir's file system. "
                "Set pipeline.workdir to a folder they all see, or run in process."
            ) from None
        except OSError as error:
            raise ArtifactError(
                f"{self.secret}: the file cannot be read ({error.strerror or type(error).__name__}). Check that the account of the workers may read it."
            ) from None
        return Keys.of(secret)

    def source(self, path: str) -> Source:
        """How a file is to be read."""
        return _source(self.silo, self.prepare, self.known_labels, path)

    def reject_line(self, file: int, reject: Reject) -> bytes:
        """The line of rejected.jsonl for a reject of a file."""
        unit = "row" if self.silo.format == "parquet" else "line"
        return summaries.reject_line(self.files[file].name, unit, reject)

    def check_names(self, read: summaries.ReadSummary, *, complete: bool) -> None:
        """InputError where labels or groups look like free text (`summaries.check_names`)."""
        listed = self.known_labels is not None
        limit = self.prepare.max_labels
        summaries.check_names(read, self.silo, labels_listed=listed, limit=limit, complete=complete)

    def acceptable(self, rejects: int, rows: int) -> bool:
        """Whether so many rejects of so many rows still make a snapshot."""
        return rejects <= self.prepare.max_reject_share * rows and rejects < rows

    def part_settings(self, read: summaries.ReadSummary, keys: Keys) -> parts.PartSettings:
        """How the parts are written of what was read."""
        return parts.PartSettings(
            folder=Path(self.work),
            labels=read.labels if self.known_labels is None else self.known_labels,
            groups=read.groups,
            limit=self.prepare.max_examples_per_client,
            max_length=self.prepare.max_length,
            keys=keys,
            file_splits=self.file_splits,
            split_fractions=self.prepare.splits,
            reject_line=lambda file, line: self.reject_line(file, Reject(line, SEVERAL_SPLITS)),
        )


class Job(NamedTuple):
    """What is known of a snapshot before it is made."""

    id: str
    final: Path
    rejected_aside: Path
    manifest: dict[str, Any]
    tokenizer: Tokenizer
    plan: Plan


def plan_job(configuration: Config, section: SiloSection) -> Job:
    """Reads inputs, labels, tokenizer and keys, as far as they say which snapshot they make."""
    workdir, prepare = artifacts.Workdir(configuration.workdir), configuration.prepare
    tokenizer = Tokenizer.from_config(configuration.model, prepare.max_length)
    labels = config.known_labels(configuration)
    silo_inputs = inputs.find(
        section, Path(configuration.path).parent, lambda path: _source(section, prepare, labels, path)
    )
    secret = _client_secret(configuration, section.name, workdir)
    settings = _settings(configuration, section, labels)
    name = snapshot_id(silo_inputs.entries, settings, tokenizer.fingerprint, secret)
    return Job(
        id=name,
        final=workdir.snapshots(section.name) / name,
        rejected_aside=workdir.silo(section.name) / f"rejected-{name}.jsonl",
        manifest={
            "kind": "snapshot",
            "format": FORMAT,
            "silo": section.name,
            "id": name,
            "task": configuration.task.kind,
            "inputs": silo_inputs.entries,
            "warnings": [warned._asdict() for warned in silo_inputs.warnings],
            "settings": settings,
            "tokenizer": {
                "fingerprint": tokenizer.fingerprint,
                "max_length": tokenizer.max_length,
                "lower_case": tokenizer.lower_case,
                "vocabulary_size": len(tokenizer.vocabulary),
            },
        },
        tokenizer=tokenizer,
        plan=Plan(
            silo=section,
            prepare=prepare,
            known_labels=labels,
            files=silo_inputs.files,
            split_by_files=bool(silo_inputs.files[0].split),
            secret=str(_secret_path(workdir, section.name)),
            ranges_per_shard=_ranges_per_shard(silo_inputs.entries, prepare.shards),
        ),
    )


def snapshot_id(
    entries: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], tokenizer: str, secret: bytes
) -> str:
    """The id of the snapshot that these inputs make: a fingerprint of everything that determines its bytes."""
    return artifacts.fingerprint(
        {
            "format": FORMAT,
            "rules": RULES,
            "inputs": [[entry["name"], entry["split"], entry["sha256"]] for entry in entries],
            "settings": settings,
            "tokenizer": tokenizer,
            "client_key": hashlib.sha256(b"fingerprint" + secret).hexdigest(),
        }
    )


def text_bytes(entries: Sequence[Mapping[str, Any]]) -> int:
    """About how much text the input files hold, decompressed."""
    return sum(
        entry["bytes"] * (1 if entry["name"].endswith((".csv", ".tsv", ".jsonl")) else _COMPRESSION)
        for entry in entries
    )


def _source(section: SiloSection, prepare: PrepareSection, labels: tuple[str, ...] | None, path: str) -> Source:
    return Source(section, path, prepare.max_row_bytes, frozenset(labels) if labels is not None else None)


def _settings(configuration: Config, section: SiloSection, labels: tuple[str, ...] | None) -> dict[str, Any]:
    """Everything in the configuration that determines the snapshot's bytes."""
    columns = {
        key: getattr(section, key) for key in ("format", "text", "label", "client", "group", "columns", "quoting")
    }
    preparation = msgspec.to_builtins(configuration.prepare)
    for key in (
        "max_reject_share",  # decides whether there is a snapshot, not what is in it,
        "max_labels",  # and so does this;
        "workers",  # this decides how long it takes
    ):
        del preparation[key]
    if isinstance(section.input, dict):
        del preparation["splits"]  # the files say
    return {
        "task": configuration.task.kind,
        "labels": labels if labels is not None else "auto",
        **msgspec.to_builtins(columns),
        **preparation,
    }


def _secret_path(workdir: artifacts.Workdir, silo: str) -> Path:
    return workdir.silo_keys(silo) / "clients.key"


def _client_secret(configuration: Config, silo: str, workdir: artifacts.Workdir) -> bytes:
    seed = configuration.pipeline.seed
    derived = None if seed is None else lambda: hashlib.sha256(f"{seed}/{silo}/clients".encode()).digest()
    return artifacts.secret(_secret_path(workdir, silo), derived=derived)


def _ranges_per_shard(entries: Sequence[Mapping[str, Any]], shards: int) -> int:
    """Into how many ranges of clients a shard is cut, so that each fits in memory. Does not change the output."""
    ranges = min(-(-text_bytes(entries) // RANGE_BYTES), MAX_RANGES)
    return max(1, -(-ranges // shards))
