"""Rows as they were read, to batches for the tokenizer: rows that are no examples are rejected, and clients are hashed."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from beam_jobs.reading import NOT_UTF8, Columns, Fields, LineCounts, Reject, text_size
from beam_jobs.steps.clients import InexactIdError, Keys, client_hash, normal_names, row_client_hash
from tff_pipeline.errors import InputError

EMPTY_TEXT = "empty text"
EMPTY_LABEL = "empty label"
EMPTY_CLIENT = "empty client"
UNKNOWN_LABEL = "unknown label"

CLIENTS_REMEMBERED = 2**17  # so that a client's hash is not computed for each of its rows; they take about 30 MB
BATCH_ROWS = 2048  # the tokenizer is fastest between 256 and 4,096 texts
BATCH_CHARACTERS = 4 * 2**20  # so that a batch of long documents stays small


class RowBatch(NamedTuple):
    """Consecutive rows of one file: those kept, column by column, and those rejected."""

    file: int
    lines: list[int]
    texts: list[str] | list[tuple[str, ...]]
    labels: list[str] | list[tuple[str, ...]]
    clients: bytes  # their hashes, one after the other
    groups: list[str]
    rejects: list[Reject]
    counts: LineCounts = LineCounts()

    @property
    def read(self) -> int:
        """How many rows these are: rejects can stand for several."""
        return len(self.lines) + sum(reject.rows for reject in self.rejects)


def batches(
    slices: Iterable[Columns],
    *,
    file: int,
    file_name: str,
    known_labels: frozenset[str] | None,
    client_column: str,
    keys: Keys,
) -> Iterator[RowBatch]:
    """Checks rows and puts them together. Rows that are kept have labels in normal form and clients as hashes. The last batch
    may hold no rows, only counts of lines.

    Args:
      client_column: "" where every row is a client of its own.

    Raises:
      InputError: if a client is a float's text that may stand for several people.
    """
    hashes: dict[str, bytes] = {}

    def batch() -> RowBatch:
        if client_column:
            try:
                _remember(hashes, kept.clients, keys)
            except InexactIdError:
                raise InputError(
                    f"{file_name}: the client column {client_column!r} holds a number of 2^53 or above as a float, with a fraction or an exponent, which may stand for several people; "
                    "expected text or whole numbers. Write the ids as text where the file is made: a table of floats has lost their last digits."
                ) from None
            clients = b"".join(map(hashes.__getitem__, kept.clients))
        else:
            clients = b"".join(row_client_hash(keys, file_name, line) for line in kept.lines)
        return RowBatch(file, kept.lines, kept.texts, kept.labels, clients, kept.groups, kept.rejects, kept.counts)  # type: ignore[arg-type]

    kept, characters = Columns.without_rows(), 0
    for rows in slices:
        rows = _checked(rows, known_labels, has_client=bool(client_column))
        kept = kept.plus(rows)
        characters += sum(map(text_size, rows.texts))
        if len(kept.lines) + len(kept.rejects) >= BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield batch()
            kept, characters = Columns.without_rows(), 0
    if kept.lines or kept.rejects or any(kept.counts):
        yield batch()


def reject_reason(fields: Fields, known_labels: frozenset[str] | None, *, has_client: bool) -> str:
    """Why a row is rejected, or "" if it is kept."""
    text, label, client, group = fields
    words = (text,) if isinstance(text, str) else text
    labels = (label,) if isinstance(label, str) else label
    if not all(value.isascii() or _is_utf8(value) for value in (*words, *labels, client, group)):
        return NOT_UTF8
    if not any(word and not word.isspace() for word in words):
        return EMPTY_TEXT
    if has_client and not client.strip():
        return EMPTY_CLIENT
    if not all(labels):
        return EMPTY_LABEL
    if known_labels is not None and not known_labels.issuperset(labels):
        return UNKNOWN_LABEL
    return ""


def _is_utf8(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # a surrogate stands for a byte that is not UTF-8
        return False
    return True


def _checked(rows: Columns, known_labels: frozenset[str] | None, *, has_client: bool) -> Columns:
    """The rows with labels and groups in their normal form; those with a `reject_reason` are among the rejects."""
    if not rows.lines:
        return rows
    if isinstance(rows.texts[0], str):
        rows = rows._replace(labels=normal_names(rows.labels), groups=normal_names(rows.groups))  # type: ignore[arg-type]
        if _all_good(rows, known_labels, has_client=has_client):
            return rows
    else:
        labels = [tuple(normal_names(labels)) for labels in rows.labels]
        rows = rows._replace(labels=labels, groups=normal_names(rows.groups))  # type: ignore[arg-type]
    kept, rejects = Columns.without_rows(counts=rows.counts), list(rows.rejects)
    for line, *values in zip(*rows[:5], strict=True):
        fields = Fields(*values)  # type: ignore[arg-type]
        if reason := reject_reason(fields, known_labels, has_client=has_client):
            rejects.append(Reject(line, reason))
        else:
            kept.add(line, fields)
    return kept._replace(rejects=sorted(rejects))


def _all_good(rows: Columns, known_labels: frozenset[str] | None, *, has_client: bool) -> bool:
    """Whether no row surely has a `reject_reason`, judged a column at a time, which is ten times as fast."""
    _, texts, labels, clients, groups, *_ = rows
    if not all(_is_utf8("".join(column)) for column in (texts, labels, clients, groups)):  # type: ignore[arg-type]
        return False
    return (
        all(map(str.strip, texts))  # type: ignore[arg-type]
        and all(labels)
        and (not has_client or all(map(str.strip, clients)))
        and (known_labels is None or known_labels.issuperset(labels))  # type: ignore[arg-type]
    )


def _remember(hashes: dict[str, bytes], raw_ids: Iterable[str], keys: Keys) -> None:
    """Makes sure that these clients' hashes are in `hashes`, which grows to about CLIENTS_REMEMBERED."""
    if len(hashes) >= CLIENTS_REMEMBERED:
        hashes.clear()
    for raw_id in set(raw_ids).difference(hashes):
        hashes[raw_id] = client_hash(keys, raw_id)
