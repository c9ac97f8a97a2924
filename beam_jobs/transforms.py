"""The pipeline of prepare, as PTransforms that wire the plain functions of `steps` and count.

    files -> Read -> Tokenize -> Spill -> Merge -> one ReadSummary             ReadAndTokenize
    parts of shards, ReadSummary -> Write -> a PartSummary each                WriteParts
    ReadSummary, PartSummaries -> the file that tells the driver of both       WriteResult

Elements are small throughout: names of files, batches of rows inside fused steps, places of segments. The rows themselves
go through the workdir (see `spill`). Whatever goes wrong on a worker reaches the driver as text in an exception, on any
runner; `reported` writes our own errors into it such that `failure_in` finds them again.
"""

import gc
import json
import re
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import apache_beam as beam
import msgspec
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

from beam_jobs import formats, inputs, steps
from beam_jobs.rows import Rows
from beam_jobs.spill import Segment, SegmentWriter, writing
from tff_pipeline import artifacts, errors
from tff_pipeline.config import PrepareSection, SiloSection
from tff_pipeline.data.tokenization import Tokenizer
from tff_pipeline.progress import silence_libraries

RESULT = "result.json"
_COLLECT_AFTER = (50_000, 20, 50)  # in place of (700, 10, 10), see gc.set_threshold
SPILL_BYTES = 16 * 2**20  # of tokenized rows that a worker holds before it writes them
RUNNING = ".rows"  # files of this ending hold how many rows of an input file have been read so far


@dataclass(frozen=True)
class Plan:
    """Everything a worker needs to know. The client secret is not in it, only where it lies: a plan travels to the runner."""

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

    def keys(self) -> steps.Keys:
        """The keys, on a worker. Never makes a secret: one made there would turn every client into another."""
        try:
            secret = Path(self.secret).read_bytes()
        except FileNotFoundError:
            raise errors.ArtifactError(
                f"{self.secret}: a Beam worker does not see this file. Workers must share the workdir's file system; "
                "set pipeline.workdir to a folder they all see, or run in process."
            ) from None
        except OSError as error:
            raise errors.ArtifactError(
                f"{self.secret}: cannot be read ({error.strerror or type(error).__name__}). Check that the account of the workers may read it."
            ) from None
        return steps.Keys.of(secret)

    def source(self, file: inputs.InputFile) -> formats.Source:
        """How a file is to be read."""
        labels = frozenset(self.known_labels) if self.known_labels is not None else None
        return formats.Source(self.silo, file.path, self.prepare.max_row_bytes, labels)

    def reject_line(self, file: int, reject: formats.Reject) -> bytes:
        return steps.reject_line(self.files[file].name, "row" if self.silo.format == "parquet" else "line", reject)

    def check_names(self, read: steps.ReadSummary, *, complete: bool) -> None:
        steps.check_names(
            read,
            self.silo,
            labels_listed=self.known_labels is not None,
            limit=self.prepare.max_labels,
            complete=complete,
        )

    @property
    def file_splits(self) -> list[str]:
        """The split of each file; empty where clients are split by hash."""
        return [file.split for file in self.files] if self.split_by_files else []

    def acceptable(self, rejects: int, rows: int) -> bool:
        return rejects <= self.prepare.max_reject_share * rows and rejects < rows


# -- errors that cross the runner --------------------------------------------------------------------------------------


class StepFailed(Exception):
    """Carries an error of ours, as JSON, through whatever a runner makes of exceptions."""


_FAILURE = re.compile(r"prepare-failure<(\{.*?\})>", re.DOTALL)


@contextmanager
def reported(step: str) -> Iterator[None]:
    """Raises what happens inside as a StepFailed. The text of an unexpected error is withheld: it could quote the silo's."""
    try:
        yield
    except errors.PipelineError as error:
        kind, message = type(error).__name__, str(error)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        kind = "PipelineError"
        message = (
            f"prepare, step {step}: an unexpected {type(error).__name__} in {Path(place.filename).name} line {place.lineno} ({place.name}). "
            "Its text is withheld because it may hold the silo's. This is a defect: please report it with this line."
        )
    else:
        return
    # From None: what went wrong would be quoted, text and all, wherever a worker or a runner prints this error.
    raise StepFailed(f"prepare-failure<{json.dumps({'kind': kind, 'message': message})}>") from None


def failure_in(error: BaseException) -> errors.PipelineError | None:
    """Our own error inside an exception that a runner raised, if there is one."""
    for found in _FAILURE.finditer(str(error)):
        with suppress(
            ValueError, KeyError, AttributeError
        ):  # the line of our source that raised it may be there as well
            failure = json.loads(found.group(1))
            return getattr(errors, failure["kind"])(failure["message"])
    return None


# -- read and tokenize -------------------------------------------------------------------------------------------------


class ReadAndTokenize(beam.PTransform):
    """The plan's files -> one ReadSummary for all of them; tokenized rows and rejects lie in segment files."""

    def __init__(self, plan: Plan, tokenizer: Tokenizer):
        super().__init__()
        self._plan, self._tokenizer = plan, tokenizer

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection[steps.ReadSummary]:  # type: ignore[override]
        parts = (
            pipeline
            | "Files" >> beam.Create(self._plan.files)
            | "Read" >> beam.ParDo(_Read(self._plan))
            | "Tokenize" >> beam.ParDo(_Tokenize(self._plan, self._tokenizer))
            | "Spill" >> beam.ParDo(_Spill(self._plan))
        )
        return pipeline | "Once" >> beam.Impulse() | "Merge" >> beam.Map(_merge, self._plan, beam.pvalue.AsList(parts))


def _merge(_: bytes, plan: Plan, parts: Sequence[steps.ReadSummary]) -> steps.ReadSummary:
    with reported("merge"):
        read = steps.merged(parts)
        plan.check_names(read, complete=True)
        return read


class _Read(beam.DoFn):
    """InputFile -> RowBatch."""

    def __init__(self, plan: Plan):
        self._plan = plan

    def setup(self) -> None:
        with reported("setup"):
            self._keys = self._plan.keys()
        self._known = frozenset(self._plan.known_labels) if self._plan.known_labels is not None else None
        self._rows = beam.metrics.Metrics.counter("prepare", "rows")

    def process(self, file: inputs.InputFile) -> Iterator[steps.RowBatch]:
        with reported("read"):
            rows = 0
            # By file: a bundle that is tried again begins to count its files anew.
            running = Path(self._plan.work) / f"{file.index}{RUNNING}"
            with formats.opened(inputs.open_raw, file.path) as handle:
                for batch in steps.batches(
                    formats.read_columns(handle, self._plan.source(file)),
                    file=file.index,
                    file_name=file.name,
                    known_labels=self._known,
                    has_client=bool(self._plan.silo.client),
                    keys=self._keys,
                    client_column=self._plan.silo.client,
                ):
                    self._rows.inc(batch.read)
                    yield batch
                    rows += batch.read
                    with writing(running):
                        running.write_text(str(rows))


def collect_seldom() -> None:
    """Has this process look for cyclic garbage seldom.

    Rows make millions of small objects and no cycles. At Python's own thresholds two fifths of the time went into looking
    through them, and through all that TensorFlow and Beam have, for garbage that is not there.
    """
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)


class _Tokenize(beam.DoFn):
    """RowBatch -> Tokenized."""

    def __init__(self, plan: Plan, tokenizer: Tokenizer):
        self._plan, self._tokenizer = plan, tokenizer

    def setup(self) -> None:
        silence_libraries()  # a worker may be a process of its own
        collect_seldom()

    def process(self, batch: steps.RowBatch) -> Iterator[steps.Tokenized]:
        with reported("tokenize"):
            yield steps.tokenize(batch, self._tokenizer)


class _Spill(beam.DoFn):
    """Tokenized -> segment files of the bundle, and at its end their ReadSummary. A bundle tried again leaves files nobody names."""

    def __init__(self, plan: Plan):
        self._plan = plan

    def start_bundle(self) -> None:
        self._segments, self._rejected = SegmentWriter(Path(self._plan.work)), SegmentWriter(Path(self._plan.work))
        self._waiting: list[Rows] = []
        self._waiting_bytes = 0
        self._labels: set[str] = set()
        self._groups: set[str] = set()
        self._rows, self._reasons = Counter[int](), Counter[str]()
        self._labelled, self._lines = 0, formats.LineCounts()

    def process(self, batch: steps.Tokenized) -> None:
        with reported("spill"):
            if len(batch.rows):
                self._waiting.append(batch.rows)
                self._waiting_bytes += batch.rows.size
                self._labels.update(batch.rows.label_names)
                self._groups.update(batch.rows.group_names)
                self._labelled += batch.rows.labelled
                self._plan.check_names(
                    self._summary(), complete=False
                )  # before more than that many are held or written
            if self._waiting_bytes >= SPILL_BYTES:
                self._spill()
            for reject in batch.rejects:
                self._rejected.add(batch.file, self._plan.reject_line(batch.file, reject), order=reject.line)
                self._reasons[reject.reason] += reject.rows
                beam.metrics.Metrics.counter("prepare", f"rejected: {reject.reason}").inc(reject.rows)
            self._rows[batch.file] += batch.read
            self._lines = self._lines.plus(batch.counts)

    def _summary(self) -> steps.ReadSummary:
        return steps.ReadSummary(
            rows=dict(self._rows),
            reasons=dict(self._reasons),
            labels=sorted(self._labels - {""}),
            groups=sorted(self._groups),
            labelled=self._labelled,
            lines=self._lines._asdict(),
        )

    def _spill(self) -> None:
        """Parts the rows that wait by ranges, and writes them: the more wait, the fewer and larger are the pieces."""
        if self._waiting:
            for key, rows in steps.by_range(Rows.joined(self._waiting), self._plan.ranges):
                self._segments.add(key, rows.encode())
            self._segments.flush()
        self._waiting, self._waiting_bytes = [], 0

    def finish_bundle(self) -> Iterator[WindowedValue]:  # type: ignore[override]
        with reported("spill"):
            self._spill()
            summary = self._summary()
            summary.segments, summary.rejected = self._segments.close(), self._rejected.close()
        yield GlobalWindows.windowed_value(summary)


# -- write -------------------------------------------------------------------------------------------------------------


class WriteParts(beam.PTransform):
    """The ranges of client hashes -> PartSummary for each; nothing is written if too many rows were rejected.

    Ranges and not shards, so that all workers write, however few shards there are.
    """

    def __init__(self, plan: Plan, read: beam.PCollection[steps.ReadSummary]):
        super().__init__()
        self._plan, self._read = plan, read

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection[steps.PartSummary]:  # type: ignore[override]
        parts = pipeline | "Parts" >> beam.Create(range(self._plan.ranges))
        return parts | "Write" >> beam.ParDo(_WritePart(self._plan), read=beam.pvalue.AsSingleton(self._read))


class _WritePart(beam.DoFn):
    """Part number -> PartSummary."""

    def __init__(self, plan: Plan):
        self._plan = plan

    def setup(self) -> None:
        collect_seldom()
        self._read: steps.ReadSummary | None = None
        with reported("setup"):
            self._keys = self._plan.keys()

    def process(self, part: int, read: steps.ReadSummary) -> Iterator[steps.PartSummary]:
        plan = self._plan
        if not plan.acceptable(sum(read.reasons.values()), sum(read.rows.values())):
            return
        with reported("write"):
            if self._read is not read:  # sorted once, not for each part
                self._read, self._segments = read, defaultdict[int, list[Segment]](list)
                for segment in read.segments:
                    self._segments[segment.key].append(segment)
            summary = steps.write_part(
                part,
                self._segments.get(part, ()),
                shard=part // plan.ranges_per_shard,
                folder=Path(plan.work),
                labels=read.labels if plan.known_labels is None else plan.known_labels,
                groups=read.groups,
                limit=plan.prepare.max_examples_per_client,
                max_length=plan.prepare.max_length,
                keys=self._keys,
                file_splits=plan.file_splits,
                shares=plan.prepare.splits,
                reject_line=lambda file, line: plan.reject_line(file, formats.Reject(line, steps.SEVERAL_SPLITS)),
            )
            beam.metrics.Metrics.counter("prepare", "clients").inc(
                sum(split.clients for split in summary.splits.values())
            )
            yield summary


class Result(msgspec.Struct):
    """What the whole pipeline found and wrote; `RESULT` in the work folder holds it when the pipeline has ended well."""

    read: steps.ReadSummary
    parts: list[steps.PartSummary]


class WriteResult(beam.PTransform):
    """PartSummary -> the file `RESULT`. A file, since a runner may be another process on another machine."""

    def __init__(
        self, plan: Plan, read: beam.PCollection[steps.ReadSummary], parts: beam.PCollection[steps.PartSummary]
    ):
        super().__init__()
        self._plan, self._read, self._parts = plan, read, parts

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection[None]:  # type: ignore[override]
        found = beam.pvalue.AsSingleton(self._read), beam.pvalue.AsList(self._parts)
        return pipeline | "Once" >> beam.Impulse() | "Write" >> beam.Map(_write_result, self._plan.work, *found)


def _write_result(_: bytes, work: str, read: steps.ReadSummary, parts: Sequence[steps.PartSummary]) -> None:
    with reported("result"):
        path = Path(work) / RESULT
        with writing(path):
            result = Result(read, sorted(parts, key=lambda one: one.part))
            artifacts.write_atomic(path, msgspec.json.encode(result))
