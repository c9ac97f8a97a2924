"""Readers of every format: compression, encodings, missing columns and empty files; and csv, which rows on which lines."""

import bz2
import gzip
import io
import lzma

import msgspec
import pytest
from builders.raw_rows import refusal, rows, source, texts

from beam_jobs import formats, lines, reading
from beam_jobs.formats import jsonl
from tff_pipeline.config import SiloSection
from tff_pipeline.errors import PipelineError


def test_csv_fields_by_name_whatever_the_order_of_columns():
    data = b"other,label,who,text\nx,lost,anna,my card\n"

    assert rows(data, source("csv", client="who", group="other")) == [
        reading.RawRow(2, reading.Fields("my card", "lost", "anna", "x"))
    ]


def test_quoted_line_breaks_stay_inside_the_field_and_line_numbers_stay_physical():
    data = b'text,label\n"my\ncard ""is""\r\nlost",x\nhelp,y\n'

    assert texts(data, source("csv")) == [(2, 'my\ncard "is"\r\nlost'), (5, "help")]


def test_lines_are_counted_past_what_is_broken_blank_or_long():
    """Rows come 64 at a time: line breaks in fields, blank lines and broken quotes in and across those, told by hand."""
    text, expected, line = "text,label\n", [], 2
    for number in range(300):
        row, lines, outcome = {
            0: ('"a\nb\rc\r\nd",x\r\n', 4, "a\nb\rc\r\nd"),
            1: ("\n", 1, None),
            2: ('"broken" quote,x\n', 1, "broken quoting"),
            3: ("one field\n", 1, "wrong number of fields"),
        }.get(number % 7, (f"row {number},x\n", 1, f"row {number}"))
        text += row
        expected += [(line, outcome)] if outcome else []
        line += lines

    assert texts(text.encode(), source("csv")) == expected


def test_of_long_texts_few_come_at_a_time(monkeypatch):
    """A block of lines is taken in at a time, whatever the number of rows in it; of typed formats, so many characters."""
    monkeypatch.setattr(lines, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(formats, "SLICE_CHARACTERS", 1000)
    data = b"text,label\n" + b"a" * 100 + b",x\n" + (b"b" * 990 + b",x\n") * 200

    sizes = [len(part.lines) for part in formats.read_columns(io.BytesIO(data), source("csv"))]
    assert sum(sizes) == 201
    assert max(sizes) <= 2
    objects = b'{"text": "%b", "label": "x"}\n' % (b"a" * 600) * 4
    sizes = [len(part.lines) for part in formats.read_columns(io.BytesIO(objects), source("jsonl"))]
    assert sum(sizes) == 4
    assert max(sizes) == 2


def test_without_quoting_a_stray_quote_is_a_character():
    data = b'ham\t"my card\nspam\tis" lost\n'

    assert texts(data, source("tsv", columns=("label", "text"), quoting=False)) == [(1, '"my card'), (2, 'is" lost')]


def test_a_quote_never_closed_is_an_error_and_not_one_long_field():
    message = refusal(b'text,label\nfine,x\n"my card,x\nhelp,y\n', source("csv"))

    assert "data.csv: a quote opened in the row that begins on line 3 is still open at the end of the file" in message
    assert "quoting = false" in message


def test_a_field_of_a_megabyte_is_read():
    """Python's csv refuses fields above 131,072 characters by default."""
    assert rows(b"text,label\n" + b"a" * 2**20 + b",x\n", source("csv"))[0].fields.text == "a" * 2**20


def test_broken_quoting_costs_one_row():
    assert texts(b'text,label\n"my" card,x\nhelp,y\n', source("csv")) == [(2, "broken quoting"), (3, "help")]


def test_wrong_number_of_fields_is_rejected_and_blank_lines_are_no_rows():
    assert texts(b"text,label\nmy,card,x\n\nhelp,y\nlost\n", source("csv")) == [
        (2, "wrong number of fields"),
        (4, "help"),
        (5, "wrong number of fields"),
    ]


def test_a_byte_order_mark_is_not_part_of_the_first_column():
    assert texts(b"\xef\xbb\xbftext,label\nhelp,y\n", source("csv")) == [(2, "help")]


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_compression_is_recognised_by_content(compress):
    assert texts(compress(b"text,label\nhelp,y\n"), source("csv")) == [(2, "help")]


@pytest.mark.parametrize("keep", [20, 400])
def test_a_gzip_cut_short_is_an_error(keep):
    whole = gzip.compress(b"text,label\n" + b"".join(b"help %d,y\n" % (n * n) for n in range(2000)))

    assert "data.csv: the compressed data is cut short or damaged" in refusal(whole[:keep], source("csv"))
    assert "cut short" in refusal(whole[:-4], source("csv"))


def test_a_missing_column_is_named_with_those_there_and_the_nearest():
    message = refusal(b"utterence,intent\nmy card,x\n", source("tsv", text="utterance", label="intent", columns=()))
    assert (
        "data.tsv: the column 'utterance' is missing from the first line; found 1 column, none of them configured"
        in message
    )

    message = refusal(b"id\tutterence\tintent\n1\tmy card\tx\n", source("tsv", text="utterance", label="intent"))
    assert "found 3 columns, among them 'intent'. The column at position 2 is spelled much like it." in message
    assert "Correct `text` of silo 'bank'" in message


def test_the_first_row_of_a_file_without_header_does_not_get_into_the_error():
    message = refusal(b"ham,my secret number is 12345 and nobody may know\n", source("csv"))

    assert "12345" not in message
    assert "set `columns` if the file has no header" in message


def test_a_column_that_occurs_twice_is_refused():
    assert "the column 'text' occurs 2 times" in refusal(b"text,text,label\na,b,c\n", source("csv"))


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet", "conll"])
def test_an_empty_file_is_refused(form):
    assert f"data.{form}: the file is empty (0 bytes)" in refusal(b"", source(form))
    if form != "parquet":
        assert "the file is empty (nothing is compressed in it)" in refusal(gzip.compress(b""), source(form))


def test_utf16_is_refused():
    assert "UTF-16; expected UTF-8" in refusal("text,label\nhelp,y\n".encode("utf-16"), source("csv"))


def test_columns_of_the_configuration_that_repeat_one():
    assert "the column 'text' occurs 2 times" in refusal(b"a,b,c\n", source("csv", columns=("text", "text", "label")))


@pytest.mark.parametrize("first_line", ["anna-4711,ham", "ham,anna-4711", "anna,4711", "test,lable", "text,anna-4711"])
def test_no_cell_of_a_first_line_gets_into_an_error(first_line):
    """A file without header: short cells and cells like names of columns are as much a row's as others."""
    message = refusal(first_line.encode() + b"\n", source("csv"))

    assert "found 2 columns" in message
    assert not any(cell in message for cell in ("anna", "4711", "ham", "test", "'lable'"))


@pytest.mark.parametrize("end", [b"\n", b""])
@pytest.mark.parametrize(
    ("form", "data", "counts"),
    [
        ("csv", b'text,label\n\n"a\nb",x\nc\n\nd,y', reading.LineCounts(7, rows=3, rejected=1, header=1, blank=2)),
        ("jsonl", b'{"text": "a", "label": "x"}\n\nno\n{}', reading.LineCounts(4, rows=1, rejected=2, blank=1)),
        ("conll", b"# c\na\tO\nb\tO\n\nc\n\nd\tO", reading.LineCounts(7, rows=3, rejected=1, blank=2, comments=1)),
    ],
)
def test_every_line_is_counted_for_what_it_is(form, data, end, counts):
    total = reading.LineCounts()
    for part in formats.read_columns(io.BytesIO(data + end), source(form)):
        total = total.plus(part.counts)

    assert total == counts
    assert total.missing == 0


def test_lines_that_nothing_accounts_for_stop_the_job(monkeypatch):
    monkeypatch.setattr(
        jsonl, "numbered_lines", lambda lines, split: ((number, block) for number, block in enumerate(lines, 1))
    )

    with pytest.raises(PipelineError, match=r"of 2 lines 1 are accounted for .* This is a defect of prepare"):
        rows(b'{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n', source("jsonl"))


def test_sections_compare_by_value():
    """The helper above builds sections without a configuration file; they must be what a file gives."""
    assert msgspec.convert({"name": "bank", "input": "unused", "format": "csv"}, SiloSection) == source("csv").silo
