"""conll: a word and its tag on each line, a blank line after each sentence, clients and groups in comments.

A row is a sentence. `# key = value` sets the client or the group of the sentences after it, up to the next document; what
merely begins with "#" may be a word (see `_Comments`).
"""

import io
import itertools
import re
from collections.abc import Iterator, Sequence

import msgspec

from beam_jobs.lines import Lines, numbered_lines, text_lines
from beam_jobs.reading import TOO_LONG, WRONG_FIELDS, Fields, LineCounts, RawRow, Source, require_columns
from tff_pipeline.errors import InputError

_HEAD_LINES = 1000  # by which `check` knows the keys of a file's comments
_DOCUMENT_MARK = "-DOCSTART-"
_TAG = re.compile(r"O|[BIESLU]-\S+")
_BLANKS = re.compile(" +")


def check(content: io.BufferedReader, source: Source) -> None:
    """Raises InputError if no comment in the head of a file sets a configured key."""
    keys: dict[str, None] = {}
    comments = _Comments(source)
    lines = numbered_lines(Lines(content, limit=source.max_row_bytes), _stripped_lines)
    for number, line in itertools.islice(lines, _HEAD_LINES):
        if line is None or not line.strip() or line.startswith(_DOCUMENT_MARK):
            continue
        if comment := comments.read(number, line):
            keys[comment[0]] = None
    if source.silo.client or source.silo.group:
        require_columns(
            [key for key in keys if key],
            source._replace(silo=msgspec.structs.replace(source.silo, text="", label="")),
            kind="comment key",
            location=f"the first {_HEAD_LINES:,} lines",
            shown="near",
        )


def read(content: io.BufferedReader, source: Source) -> Iterator[RawRow | LineCounts]:
    """Every sentence of a file, each behind the count of its lines, and at the end what became of the other lines."""
    lines = Lines(content, limit=source.max_row_bytes)
    reader = _Reader(source)
    for number, line in numbered_lines(lines, _stripped_lines):
        yield from reader.line(number, line)
    yield from reader.end(lines.read)


def _stripped_lines(block: bytes) -> list[str]:
    return [line.rstrip("\r\n") for line in text_lines(block)]


def _positions(source: Source) -> tuple[int, int]:
    """The 0-based columns of word and tag: `text` and `label` where they are numbers, else 0 and 1."""
    text, label = source.silo.text, source.silo.label
    return int(text) if text.isdigit() else 0, int(label) if label.isdigit() else 1


def _split(line: str) -> list[str]:
    """The fields of a line: between tabs, or in a line without tabs, between blanks. Other spaces, such as U+00A0, are part of
    a word."""
    return line.split("\t") if "\t" in line else _BLANKS.split(line.strip(" "))


class _Reader:
    """Takes a file's lines one by one, and returns a sentence when it has ended."""

    def __init__(self, source: Source):
        self._source = source
        self._comments = _Comments(source)
        self._values: dict[str, str] = {}  # client and group by key, up to the next document
        self._sentence = _Sentence(source)
        self._blank = self._commented = self._marks = 0

    def line(self, number: int, line: str | None) -> Sequence[RawRow | LineCounts]:
        """Takes a line, or None for one above the limit; returns the sentence that it ends, if any, and the count of its lines."""
        if line is None:
            self._sentence.count(number, self._source.max_row_bytes + 1)
            return ()
        if not line.strip():
            self._blank += 1
            return self._end_sentence()
        if line.startswith(_DOCUMENT_MARK):
            self._marks += 1
            ended = self._end_sentence()
            self._values.clear()
            return ended
        if (comment := self._comments.read(number, line)) is None:
            self._sentence.add(number, line)
            return ()
        self._commented += 1
        key, value = comment
        if key not in self._comments.keys:
            return ()
        ended = self._end_sentence()  # the words before this comment are the previous client's
        self._values[key] = value
        return ended

    def end(self, read: int) -> Sequence[RawRow | LineCounts]:
        """Ends the file: the last sentence, if any, and what became of the other lines."""
        counts = LineCounts(read=read, blank=self._blank, comments=self._commented, document_marks=self._marks)
        return [*self._end_sentence(), counts]

    def _end_sentence(self) -> Sequence[RawRow | LineCounts]:
        if not self._sentence.lines:
            return ()
        sentence, self._sentence = self._sentence, _Sentence(self._source)
        silo = self._source.silo
        row = sentence.row(self._values.get(silo.client, ""), self._values.get(silo.group, ""))
        kind = "rejected" if row.fields is None else "rows"
        return LineCounts(**{kind: sentence.lines}), row


class _Sentence:
    """The lines of one sentence as they come."""

    def __init__(self, source: Source) -> None:
        self._limit = source.max_row_bytes
        self._word_at, self._tag_at = _positions(source)
        self._words: list[str] = []
        self._tags: list[str] = []
        self._line = self._size = 0
        self._reason = ""
        self.lines = 0

    def add(self, number: int, line: str) -> None:
        self.count(number, len(line) if line.isascii() else len(line.encode("utf-8", "surrogateescape")))
        fields = _split(line)
        if len(fields) <= max(self._word_at, self._tag_at):
            self._reason = self._reason or WRONG_FIELDS
        elif not self._reason:
            self._words.append(fields[self._word_at])
            self._tags.append(fields[self._tag_at].strip())

    def count(self, number: int, size: int) -> None:
        """Counts a line of the sentence; one that makes it too long empties it."""
        self._line, self.lines, self._size = self._line or number, self.lines + 1, self._size + size
        if self._size > self._limit:
            self._reason, self._words, self._tags = TOO_LONG, [], []

    def row(self, client: str, group: str) -> RawRow:
        if self._reason:
            return RawRow(self._line, None, self._reason)
        return RawRow(self._line, Fields(tuple(self._words), tuple(self._tags), client, group))


class _Comments:
    """Distinguishes comments from words that begin with "#"; it knows how many fields the file's rows have."""

    def __init__(self, source: Source):
        self._source = source
        self.keys = {source.silo.client, source.silo.group} - {""}
        self._tag_at = _positions(source)[1]
        self._width = 0  # of the first row

    def read(self, number: int, line: str) -> tuple[str, str] | None:
        """Key and value of "# key = value"; ("", "") for another comment; None for a word.

        "# # I-NP O", "#a=b O" and "# O" are words: they have as many fields as a row, and a tag where a row has it.

        Raises:
          InputError: if the line may be a comment that sets the client or the group, or may be a word.
        """
        if not line.startswith("#"):
            self._width = self._width or len(_split(line))
            return None
        fields = _split(line)
        key, equals, value = (part.strip() for part in line[1:].partition("="))
        spaced = line.startswith("# ")
        named = spaced and "\t" not in line and equals and (key in self.keys or (key and " = " in line))
        if not named and self._is_row(fields):
            return None
        if spaced:
            return (key, value) if equals else ("", "")
        if "\t" in line:
            return None
        if equals and key in self.keys:
            kind = "client" if key == self._source.silo.client else "group"
            raise InputError(
                f"{self._source.name}, line {number}: the line begins like a comment for the {kind} {key!r}, without a blank after the #; expected `# {key} = ...`, "
                "or a word and its tag. Write comments with the blank, and separate the fields of words with tabs."
            )
        return None if len(fields) > 1 and fields[1] != "=" else ("", "")

    def _is_row(self, fields: Sequence[str]) -> bool:
        as_many = len(fields) in (self._tag_at + 1, self._width) and len(fields) > self._tag_at
        return as_many and bool(_TAG.fullmatch(fields[self._tag_at].strip()))
