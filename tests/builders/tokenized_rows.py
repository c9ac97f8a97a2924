"""Rows before and after tokenization, for the plain functions of prepare."""

import numpy as np

from beam_jobs.reading import Columns
from beam_jobs.rows import Rows, hashes_to_numbers
from beam_jobs.steps import batches, clients, gathering
from builders.prepare_helpers import VOCABULARY
from tff_pipeline.data.tokenization import Tokenizer

KEYS = clients.Keys.of(b"k" * 32)
TOKENIZER = Tokenizer(VOCABULARY, lower_case=True, max_length=8)
AB = bytes.fromhex("ab" * 16)


def rows_of(client: bytes = AB, file: int = 0, first: int = 1, values=((5,), (6, 7)), label: str = "x") -> Rows:
    """Rows on consecutive lines with the given pieces."""
    count = len(values)
    return Rows(
        hashes_to_numbers(client * count),
        np.full(count, file, np.int32),
        np.arange(first, first + count),
        np.array([len(value) + 2 for value in values]),
        np.array([token for value in values for token in (2, *value, 3)], np.int32),
        np.zeros(count, np.int32),
        np.zeros(count, np.int32),
        [label],
        [""],
    )


def examples(rows: Rows) -> list[gathering.Example]:
    return list(gathering.examples_of(rows, 0, len(rows)))


def columns(*rows: tuple[int, str, str, str, str], rejects=()) -> Columns:
    return Columns(*(list(column) for column in zip(*rows, strict=True)), list(rejects))


def batched(slices, labels=None, *, client_column="client"):
    return list(
        batches.batches(slices, file=0, file_name="a.csv", known_labels=labels, client_column=client_column, keys=KEYS)
    )
