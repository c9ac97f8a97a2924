"""The pipeline of prepare as PTransforms. They wire the plain functions of `steps`, and count.

    InputFile -> Read -> RowBatch -> Tokenize -> Tokenized -> Spill -> ReadSummary -> Merge      ReadAndTokenize
    part number, ReadSummary -> Write -> PartSummary                                             WriteParts
    ReadSummary, PartSummaries -> the file that tells the driver of both                         WriteResult

Elements are small throughout: names of files, batches of rows inside fused steps, positions of segments. The rows themselves
go through the workdir (see `segments`).
"""

import gc
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import apache_beam as beam
import msgspec
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

from beam_jobs import formats
from beam_jobs.endpoints import open_raw
from beam_jobs.failures import reported
from beam_jobs.inputs import InputFile
from beam_jobs.planning import Plan
from beam_jobs.segments import Segment, writing
from beam_jobs.steps import batches, parts, spilling, summaries, tokens
from tff_pipeline import artifacts
from tff_pipeline.data.tokenization import Tokenizer
from tff_pipeline.progress import silence_libraries

RESULT = "result.json"
RUNNING = ".rows"  # files of this ending hold how many rows of an input file have been read so far
_COLLECT_AFTER = (50_000, 20, 50)  # in place of (700, 10, 10), see gc.set_threshold


def collect_seldom() -> None:
    """Makes this process look for cyclic garbage seldom.

    Rows make millions of small objects and no cycles. At Python's own thresholds, two fifths of the time went into searching
    them, and all that TensorFlow and Beam have, for cycles that do not exist.
    """
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)


# -- read and tokenize -------------------------------------------------------------------------------------------------


class ReadAndTokenize(beam.PTransform):
    """The plan's files -> one ReadSummary for all of them; tokenized rows and rejects lie in segment files."""

    def __init__(self, plan: Plan, tokenizer: Tokenizer):
        super().__init__()
        self._plan, self._tokenizer = plan, tokenizer

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection[summaries.ReadSummary]:  # type: ignore[override]
        bundles = (
            pipeline
            | "Files" >> beam.Create(self._plan.files)
            | "Read" >> beam.ParDo(_Read(self._plan))
            | "Tokenize" >> beam.ParDo(_Tokenize(self._tokenizer))
            | "Spill" >> beam.ParDo(_Spill(self._plan))
        )
        return (
            pipeline | "Once" >> beam.Impulse() | "Merge" >> beam.Map(_merge, self._plan, beam.pvalue.AsList(bundles))
        )


class _Read(beam.DoFn):
    """InputFile -> RowBatch."""

    def __init__(self, plan: Plan):
        self._plan = plan

    def setup(self) -> None:
        with reported("setup"):
            self._keys = self._plan.keys()
        self._rows = beam.metrics.Metrics.counter("prepare", "rows")

    def process(self, file: InputFile) -> Iterator[batches.RowBatch]:
        with reported("read"):
            source, rows = self._plan.source(file.path), 0
            # By file: a bundle that is tried again begins to count its files anew.
            running = Path(self._plan.work) / f"{file.index}{RUNNING}"
            with formats.opened(open_raw, file.path) as content:
                for batch in batches.batches(
                    formats.read_columns(content, source),
                    file=file.index,
                    file_name=file.name,
                    known_labels=source.labels,
                    client_column=self._plan.silo.client,
                    keys=self._keys,
                ):
                    self._rows.inc(batch.read)
                    yield batch
                    rows += batch.read
                    with writing(running):
                        running.write_text(str(rows))


class _Tokenize(beam.DoFn):
    """RowBatch -> Tokenized."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer

    def setup(self) -> None:
        silence_libraries()  # a worker may be a process of its own
        collect_seldom()

    def process(self, batch: batches.RowBatch) -> Iterator[tokens.Tokenized]:
        with reported("tokenize"):
            yield tokens.tokenize(batch, self._tokenizer)


class _Spill(beam.DoFn):
    """Tokenized -> segment files of the bundle, and at its end their ReadSummary. The plan names no file of a bundle that failed
    and is tried again."""

    def __init__(self, plan: Plan):
        self._plan = plan

    def start_bundle(self) -> None:
        self._spill = spilling.Spill(Path(self._plan.work), self._plan.ranges, self._plan.reject_line)

    def process(self, batch: tokens.Tokenized) -> None:
        with reported("spill"):
            self._spill.add(batch)
            if len(batch.rows):  # checked before more names than that are in memory, or on the disk
                self._plan.check_names(self._spill.summary(), complete=False)
            self._spill.write_if_large()
            for reject in batch.rejects:
                beam.metrics.Metrics.counter("prepare", f"rejected: {reject.reason}").inc(reject.rows)

    def finish_bundle(self) -> Iterator[WindowedValue]:  # type: ignore[override]
        with reported("spill"):
            summary = self._spill.close()
        yield GlobalWindows.windowed_value(summary)


def _merge(_: bytes, plan: Plan, bundles: Sequence[summaries.ReadSummary]) -> summaries.ReadSummary:
    with reported("merge"):
        read = summaries.merged(bundles)
        plan.check_names(read, complete=True)
        return read


# -- write -------------------------------------------------------------------------------------------------------------


class WriteParts(beam.PTransform):
    """The ranges of client hashes -> PartSummary for each; nothing is written if too many rows were rejected.

    Ranges and not shards, so that all workers write, however few shards there are.
    """

    def __init__(self, plan: Plan, read: beam.PCollection[summaries.ReadSummary]):
        super().__init__()
        self._plan, self._read = plan, read

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection[parts.PartSummary]:  # type: ignore[override]
        numbers = pipeline | "Parts" >> beam.Create(range(self._plan.ranges))
        return numbers | "Write" >> beam.ParDo(_WritePart(self._plan), read=beam.pvalue.AsSingleton(self._read))


class _WritePart(beam.DoFn):
    """Part number -> PartSummary."""

    def __init__(self, plan: Plan):
        self._plan = plan

    def setup(self) -> None:
        collect_seldom()
        self._read: summaries.ReadSummary | None = None
        with reported("setup"):
            self._keys = self._plan.keys()

    def process(self, part: int, read: summaries.ReadSummary) -> Iterator[parts.PartSummary]:
        plan = self._plan
        if not plan.acceptable(sum(read.reasons.values()), sum(read.rows.values())):
            return
        with reported("write"):
            if self._read is not read:  # once for all parts
                self._read, self._settings = read, plan.part_settings(read, self._keys)
                self._segments = defaultdict[int, list[Segment]](list)
                for segment in read.segments:
                    self._segments[segment.key].append(segment)
            shard = part // plan.ranges_per_shard
            summary = parts.write_part(part, self._segments.get(part, ()), shard=shard, settings=self._settings)
            clients = sum(split.clients for split in summary.splits.values())
            beam.metrics.Metrics.counter("prepare", "clients").inc(clients)
            yield summary


# -- the result --------------------------------------------------------------------------------------------------------


class Result(msgspec.Struct):
    """What the whole pipeline read and wrote; `RESULT` in the work folder holds it when the pipeline has ended well."""

    read: summaries.ReadSummary
    parts: list[parts.PartSummary]


class WriteResult(beam.PTransform):
    """ReadSummary, PartSummary -> the file `RESULT`. A file, since a runner may be another process on another machine."""

    def __init__(
        self,
        plan: Plan,
        read: beam.PCollection[summaries.ReadSummary],
        written: beam.PCollection[parts.PartSummary],
    ):
        super().__init__()
        self._plan, self._read, self._written = plan, read, written

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection[None]:  # type: ignore[override]
        read, written = beam.pvalue.AsSingleton(self._read), beam.pvalue.AsList(self._written)
        once = pipeline | "Once" >> beam.Impulse()
        return once | "Write" >> beam.Map(_write_result, self._plan.work, read, written)


def _write_result(_: bytes, work: str, read: summaries.ReadSummary, written: Sequence[parts.PartSummary]) -> None:
    with reported("result"):
        path = Path(work) / RESULT
        with writing(path):
            result = Result(read, sorted(written, key=lambda summary: summary.part))
            artifacts.write_atomic(path, msgspec.json.encode(result))
