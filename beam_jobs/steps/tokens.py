"""Batches of rows to token ids, as arrays."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from beam_jobs.reading import LineCounts, Reject
from beam_jobs.rows import Rows, hashes_to_numbers, numbered
from beam_jobs.steps.batches import EMPTY_TEXT, RowBatch
from beam_jobs.steps.clients import ranges_of
from tff_pipeline.data.tokenization import Tokenizer


class Tokenized(NamedTuple):
    """A batch after tokenization: its rows, its rejects with those that tokenization added, how many rows were read, and what
    became of their lines."""

    file: int
    read: int
    rows: Rows
    rejects: list[Reject]
    counts: LineCounts = LineCounts()


def tokenize(batch: RowBatch, tokenizer: Tokenizer) -> Tokenized:
    """Tokenizes a batch. A text that leaves no token (only control characters, say) is rejected as empty."""
    sentences = bool(batch.texts) and not isinstance(batch.texts[0], str)
    ids, lengths, labels = _sentences(batch, tokenizer) if sentences else _texts(batch, tokenizer)
    numbers, label_names = numbered(labels)
    groups, group_names = numbered(batch.groups)
    rows = Rows(
        hashes_to_numbers(batch.clients),
        np.full(len(lengths), batch.file, np.int32),
        np.array(batch.lines, np.int64),
        lengths,
        ids,
        numbers,
        groups,
        label_names,
        group_names,
    )
    rejects, empty = batch.rejects, lengths <= 2
    if empty.any():
        rejects = sorted([*rejects, *(Reject(line, EMPTY_TEXT) for line in rows.lines[empty].tolist())])
        rows = rows.take(np.flatnonzero(~empty)).with_names_used()
    return Tokenized(batch.file, batch.read, rows, rejects, batch.counts)


def _texts(batch: RowBatch, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray, list[str]]:
    ids, lengths = tokenizer.encode(batch.texts)  # type: ignore[arg-type]
    return ids, lengths, batch.labels  # type: ignore[return-value]


def _sentences(batch: RowBatch, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Sentences of words: the first piece of each word carries its tag, the other tokens ""."""
    ids, lengths, labels = [], [], list[str]()
    for words, tags in zip(batch.texts, batch.labels, strict=True):
        tokens, first = tokenizer.encode_words(words)
        ids.append(tokens)
        lengths.append(len(tokens))
        labels += (tags[word] if word >= 0 else "" for word in first.tolist())
    return np.concatenate(ids), np.array(lengths, np.int64), labels


def by_range(rows: Rows, ranges: int) -> Iterator[tuple[int, Rows]]:
    """Parts rows by `ranges_of`: the number of each range that has some, and its rows."""
    range_of_row = ranges_of(rows.clients, ranges)
    order = np.argsort(range_of_row, kind="stable")
    numbers, first = np.unique(range_of_row[order], return_index=True)
    for number, members in zip(numbers.tolist(), np.split(order, first[1:]), strict=True):
        yield number, rows.take(members)
