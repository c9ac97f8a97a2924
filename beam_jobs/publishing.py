"""Makes a snapshot of what the pipeline wrote: checks the counts, joins parts to shards, and renames the folder into place.

The snapshot is complete or does not exist.
"""

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from beam_jobs.planning import Job, Plan
from beam_jobs.reading import LineCounts
from beam_jobs.segments import read_segments, writing
from beam_jobs.steps.gathering import SEVERAL_SPLITS
from beam_jobs.steps.parts import PartSummary, SplitSummary
from beam_jobs.steps.summaries import percentiles
from beam_jobs.transforms import Result
from tff_pipeline import artifacts
from tff_pipeline.config import SPLITS
from tff_pipeline.data import records
from tff_pipeline.errors import InputError, PipelineError

REJECTED = "rejected.jsonl"


def publish(job: Job, plan: Plan, result: Result) -> None:
    """Puts the snapshot together and renames it into place.

    Raises:
      InputError: if there are no rows, or too many were rejected; the list of these is left aside.
      PipelineError: if lines or rows are not accounted for.
    """
    rows, rejects = _counted(result)
    if not rows:
        raise InputError(
            f"{plan.files[0].path}: the input has no rows, only a header or blank lines ({len(plan.files)} files in all); "
            f"expected rows of silo {plan.silo.name!r}. Export it again."
        )
    if not plan.acceptable(rejects.total(), rows):
        with job.rejected_aside.open("wb") as file:
            _write_rejected(file, result)
        raise _too_many_rejects(plan, rejects, rows, job.rejected_aside)
    labels, groups = list(plan.known_labels or result.read.labels), result.read.groups
    manifest = {
        **job.manifest,
        "labels": labels,
        "groups": groups,
        "rows": rows,
        "accepted": rows - rejects.total(),
        "rejects": dict(sorted(rejects.items())),
        "lines": result.read.lines,
        "over_bound": {
            "clients": sum(part.over_bound_clients for part in result.parts),
            "examples_dropped": sum(part.examples_dropped for part in result.parts),
        },
    }
    with artifacts.staged(job.final, lambda: manifest) as aside:
        with (aside / REJECTED).open("wb") as file:
            _write_rejected(file, result)
        manifest["splits"] = {split: _write_split(split, result.parts, aside, plan, labels, groups) for split in SPLITS}
        _require_sums(manifest, plan)


def _counted(result: Result) -> tuple[int, Counter[str]]:
    """How many rows were read, and how many of them were rejected, by reason."""
    rejects = Counter(result.read.reasons)
    if several := sum(part.rejects for part in result.parts):
        rejects[SEVERAL_SPLITS] = several
    return sum(result.read.rows.values()), rejects


def _too_many_rejects(plan: Plan, rejects: Counter[str], rows: int, rejected: Path) -> InputError:
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in rejects.most_common())
    fraction, limit = rejects.total() / rows, plan.prepare.max_reject_share
    allowed = (
        f"prepare.max_reject_share allows {limit:.1%}" if rejects.total() < rows else "nothing is left to train on"
    )
    return InputError(
        f"silo {plan.silo.name!r}: {rejects.total():,} of {rows:,} rows ({fraction:.1%}) were rejected; {allowed}. Reasons: {reasons}. "
        f"{rejected} lists them by file and line. Correct the rows or the silo's configuration; raise the limit only if their loss is intended."
    )


def _require_sums(manifest: Mapping[str, Any], plan: Plan) -> None:
    """PipelineError where lines or rows are lost: each is counted when it is read, and again for what became of it."""
    lines = LineCounts(**manifest["lines"])
    kept = sum(split["examples"] for split in manifest["splits"].values())
    accounted = kept + manifest["over_bound"]["examples_dropped"] + sum(manifest["rejects"].values())
    if lines.missing or accounted != manifest["rows"]:
        raise PipelineError(
            f"silo {plan.silo.name!r}: {manifest['rows']:,} rows were read and {accounted:,} are accounted for, and of {lines.read:,} lines {lines.read - lines.missing:,}; "
            "expected all of them. No snapshot is made. This is a defect of prepare: please report it with this line."
        )


# -- files -------------------------------------------------------------------------------------------------------------


def _write_rejected(file: BinaryIO, result: Result) -> None:
    """The rejected rows: those rejected on reading by file and line, then those of clients found in several splits."""
    for line in read_segments(result.read.rejected):
        file.write(line)
    for part in result.parts:
        with open(part.rejected, "rb") as lines:
            shutil.copyfileobj(lines, file)


def _write_split(
    split: str,
    summaries: Sequence[PartSummary],
    aside: Path,
    plan: Plan,
    labels: Sequence[str],
    groups: Sequence[str],
) -> dict[str, Any]:
    """Joins one split's parts to shards in the snapshot, writes its index, and returns the manifest's entry on it."""
    written = {summary.part: summary.splits[split] for summary in summaries if split in summary.splits}
    count = plan.prepare.shards
    names = [records.shard_name(split, shard, count) for shard in range(count)] if written else []
    entries = [np.zeros((0, 4), np.int64)]
    for shard, name in enumerate(names):
        first = shard * plan.ranges_per_shard
        parts = [written[part] for part in range(first, first + plan.ranges_per_shard) if part in written]
        with writing(aside / name):
            offsets = _join([Path(part.data) for part in parts], aside / name)
        for part, offset in zip(parts, offsets, strict=True):
            entries.append(np.load(part.index) + np.array([0, offset, 0, 0]))
    index = np.concatenate(entries)
    np.save(aside / records.index_name(split), index)
    lengths = max((len(part.token_lengths) for part in written.values()), default=1)
    return {
        "clients": len(index),
        "examples": int(index[:, records.EXAMPLES].sum()),
        "shards": names,
        "labels": dict(zip(labels, _total(written.values(), "labels", len(labels)), strict=True)),
        "groups": dict(zip(groups, _total(written.values(), "groups", len(groups)), strict=True)),
        "examples_per_client": percentiles(np.bincount(index[:, records.EXAMPLES])),
        "token_length": percentiles(_total(written.values(), "token_lengths", lengths)),
    }


def _total(parts: Iterable[SplitSummary], histogram: str, size: int) -> list[int]:
    """The sum of the parts' histograms of this name, of `size` numbers each."""
    histograms = [np.array(getattr(part, histogram), np.int64) for part in parts]
    return np.sum([np.zeros(size, np.int64), *histograms], axis=0).tolist()


def _join(files: Sequence[Path], shard: Path) -> list[int]:
    """Makes a shard of files, which are gone afterwards; returns where in it each begins. It may be empty: no client's hash
    fell into it."""
    offsets, size = [], 0
    for file in files:
        offsets.append(size)
        size += file.stat().st_size
        if not shard.exists():
            os.rename(file, shard)
            continue
        with shard.open("ab") as whole, file.open("rb") as part:
            shutil.copyfileobj(part, whole, 1 << 20)
        file.unlink()
    shard.touch()
    return offsets
