"""Readers: what rows they find on which line, and what they say of a file that cannot be used."""

import bz2
import datetime
import gzip
import io
import json
import lzma
import math
import uuid
from decimal import Decimal

import msgspec
import pyarrow
import pyarrow.parquet
import pytest

from beam_jobs import formats, lines, reading
from beam_jobs.formats import jsonl
from tff_pipeline.config import SiloSection
from tff_pipeline.errors import InputError, PipelineError


def source(form: str, **keys) -> reading.Source:
    return reading.Source(SiloSection(name="bank", input="unused", format=form, **keys), f"data.{form}")


def rows(data: bytes, at: reading.Source) -> list[reading.RawRow]:
    """Every row by itself, in the order of their lines."""
    all_rows = []
    for part in formats.read_columns(io.BytesIO(data), at):
        kept = [reading.RawRow(line, reading.Fields(*fields)) for line, *fields in zip(*part[:5], strict=True)]
        all_rows += sorted([*kept, *(reading.RawRow(line, None, reason) for line, reason, _ in part.rejects)])
    return all_rows


def texts(data: bytes, at: reading.Source) -> list[tuple[int, object]]:
    """(line, text or reason) of each row."""
    return [(row.line, row.fields.text if row.fields else row.reason) for row in rows(data, at)]


def refusal(data: bytes, at: reading.Source) -> str:
    """What check_columns or, if that passes, reading the file says."""

    def look_and_read() -> None:
        formats.check_columns(io.BytesIO(data), at)
        rows(data, at)

    with pytest.raises(InputError) as raised:
        look_and_read()
    return str(raised.value)


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


def test_jsonl_rejects_by_line():
    data = b'{"text": "help", "label": 3}\n\nnonsense\n[1]\n{"text": "my"}\n{"text": ["my"], "label": "y"}\n{"text": "\xff", "label": "y"}\n{"text": null, "label": true}'

    assert texts(data, source("jsonl")) == [
        (1, "help"),
        (3, "not JSON"),
        (4, "not JSON"),
        (5, "missing field"),
        (6, "field is not text"),
        (7, "not UTF-8"),
        (8, ""),
    ]
    assert rows(data, source("jsonl"))[0].fields.label == "3"
    assert rows(data, source("jsonl"))[-1].fields.label == "true"


def test_jsonl_that_never_has_a_field_is_a_missing_column():
    assert (
        "the field 'label' is missing from the first 1 objects; found 2 fields, among them 'text'. Did you mean"
        in refusal(b'{"text": "a", "labels": "b"}\n', source("jsonl"))
    )


def parquet(table: dict) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(table), file, row_group_size=2)
    return file.getvalue()


def test_parquet_rows_are_counted_across_row_groups():
    data = parquet({"text": ["a", None, "c"], "label": [1, 2, 3], "unused": [0.1, 0.2, 0.3]})

    assert [(row.line, row.fields.text, row.fields.label) for row in rows(data, source("parquet"))] == [
        (1, "a", "1"),
        (2, "", "2"),
        (3, "c", "3"),
    ]


def test_parquet_refusals():
    data = parquet({"text": ["a"], "lable": ["x"]})

    assert "the column 'label' is missing from the schema; found 'text', 'lable'. Did you mean 'lable'?" in refusal(
        data, source("parquet")
    )
    assert "data.parquet: the file is not readable as parquet" in refusal(data[:-20], source("parquet"))


def test_conll_sentences():
    data = "@paul\tO\n#tag\tB-x\n\t\n\n你好\tB-x\n".encode()

    sentences = rows(data, source("conll"))
    assert [(row.line, row.fields.text, row.fields.label) for row in sentences] == [
        (1, ("@paul", "#tag"), ("O", "B-x")),
        (5, ("你好",), ("B-x",)),
    ]


def test_conll_with_index_column_and_comment_keys():
    data = b"# newdoc id = d1\n# sent_id = s1\n# text = my card\n1\tmy\tO\t-\t-\n2\tcard\tB-x\t-\t-\n\n# sent_id = s2\n1\thelp\n\n# newdoc id = d2\n1\thelp\tO\t-\t-\n"

    sentences = rows(data, source("conll", text="1", label="2", client="newdoc id"))
    assert [(row.line, row.fields and (row.fields.text, row.fields.client), row.reason) for row in sentences] == [
        (4, (("my", "card"), "d1"), ""),
        (8, None, "wrong number of fields"),
        (11, (("help",), "d2"), ""),
    ]


def test_conll_client_key_that_is_missing():
    message = refusal(b"# newdoc id = d1\nmy\tO\n", source("conll", client="newdoc_id"))

    assert "the comment key 'newdoc_id' is missing from the first 1,000 lines; found 1 comment key" in message
    assert "Did you mean 'newdoc id'?" in message


# -- who is who --------------------------------------------------------------------------------------------------------


def clients(data: bytes, at: reading.Source) -> list[str]:
    return [row.fields.client for row in rows(data, at) if row.fields]


def test_a_whole_number_is_the_same_client_whatever_its_type():
    data = b'{"text": "a", "label": 1.0, "client": 42}\n{"text": "a", "label": 1, "client": 42.0}\n{"text": "a", "label": 1, "client": "42"}\n{"text": 2.50, "label": 1, "client": -0.0}\n'
    at = source("jsonl", client="client")

    assert clients(data, at) == ["42", "42", "42", "0"]
    assert {row.fields.label for row in rows(data, at)} == {"1"}
    assert rows(data, at)[3].fields.text == "2.5"
    for column in (pyarrow.array([42]), pyarrow.array([42.0]), pyarrow.array(["42"]), pyarrow.array([Decimal(42)])):
        assert clients(
            parquet({"text": ["a"], "label": ["x"], "client": column}), source("parquet", client="client")
        ) == ["42"]


def test_large_whole_numbers_are_exact_where_they_are_no_floats():
    large = pyarrow.array([Decimal(90071992547409931)], pyarrow.decimal128(20, 0))
    table = {"text": ["a"], "label": large, "client": large}
    (row,) = rows(parquet(table), source("parquet", client="client"))
    assert (row.fields.label, row.fields.client) == ("90071992547409931", "90071992547409931")

    at = source("jsonl", client="client")

    assert clients(b'{"text": "a", "label": "x", "client": 9007199254740993}\n', at) == ["9007199254740993"]
    assert clients(b'{"text": "a", "label": "x", "client": 123456789012345678901}\n', at) == ["123456789012345678901"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("9007199254740992.0", "a number of 2^53 or above as a float, which may stand for several people"),
        ("-1e300", "a number of 2^53 or above as a float"),
        ("42.25", "a number that is not whole"),
        ("true", "a truth value"),
        ('["anna"]', "a list"),
        ('{"name": "anna"}', "an object"),
    ],
)
def test_a_value_that_cannot_name_a_person_is_refused_by_column_and_type(value, words):
    at = source("jsonl", client="who")
    message = refusal(
        b'{"text": "a", "label": "x", "who": "ben"}\n{"text": "a", "label": "x", "who": ' + value.encode() + b"}\n", at
    )

    assert f"data.jsonl, line 2: the client column 'who' holds {words}" in message
    assert "Write the ids as text" in message
    assert not any(part in message for part in ("anna", "9007199254740992", "42.25", "1e", "300"))


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (pyarrow.array([Decimal("42.10")]), "decimal128(4, 2)"),
        (pyarrow.array([datetime.datetime(2026, 1, 2)]), "timestamp[us]"),
        (pyarrow.array([datetime.date(2026, 1, 2)]), "date32[day]"),
        (pyarrow.array([datetime.time(1)]), "time64[us]"),
        (pyarrow.array([b"0123456789abcdef"], pyarrow.binary(16)), "fixed_size_binary[16]"),
        (pyarrow.array([uuid.UUID(int=7).bytes], pyarrow.uuid()), "uuid"),
        (pyarrow.array([True]), "bool"),
        (pyarrow.array([["anna"]]), "list<"),
        (pyarrow.array([{"name": "anna"}]), "struct<"),
    ],
)
def test_a_parquet_column_that_cannot_name_people_is_refused_before_it_is_read(column, words):
    data = parquet({"text": ["a"], "label": ["x"], "who": column})

    with pytest.raises(InputError) as raised:
        formats.check_columns(io.BytesIO(data), source("parquet", client="who"))
    assert "data.parquet: the client column 'who' is of type" in str(raised.value)
    assert words in str(raised.value)
    assert "expected text or whole numbers. Write it as text" in str(raised.value)


def test_parquet_floats_as_clients():
    """NaN, as tables write a number that is missing, names nobody; null is an empty client, which is a row's own fault."""

    def data(values):
        return parquet({"text": ["a"] * 2, "label": ["x"] * 2, "who": pyarrow.array(values, pyarrow.float64())})

    assert clients(data([7.0, None]), source("parquet", client="who")) == ["7", ""]
    assert "data.parquet, row 2: the client column 'who' holds a number that is not whole" in refusal(
        data([7.0, math.nan]), source("parquet", client="who")
    )
    assert "holds a number of 2^53 or above" in refusal(data([7.0, 2.0**53]), source("parquet", client="who"))


def test_a_missing_number_is_an_empty_text_or_label():
    data = parquet({"text": ["a", "b"], "label": [math.nan, 2.0]})

    assert [row.fields.label for row in rows(data, source("parquet"))] == ["", "2"]


def test_other_columns_of_types_that_are_no_text_are_refused_too():
    data = parquet({"text": ["a"], "label": [datetime.date(2026, 1, 2)]})

    assert "the label column 'label' is of type date32[day]; expected text, numbers or truth values" in refusal(
        data, source("parquet")
    )


# -- twice, and other oddities -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"client": "anna", "text": "a", "label": "x", "client": "ben"}', "repeated key"),
        (b'{"client": "anna", "text": "a", "label": "x", "cli\\u0065nt": "ben"}', "repeated key"),
        (b'{"client": "anna", "text": "a \\u00e9", "label": "x"}', ""),
        (b'{"client": "anna", "text": "a", "label": "x", "more": {"client": "ben"}}', ""),
        (b'{"client": "anna", "text": "\\"client\\": \\"ben\\"", "label": "x"}', ""),
        (b'{"client": "client", "text": "text", "label": "label"}', ""),
        (b'{"client": "anna", "text": "a", "label": "x", "other": 1, "other": 2}', ""),
    ],
)
def test_a_key_that_occurs_twice(line, reason):
    (row,) = rows(line + b"\n", source("jsonl", client="client"))
    assert row.reason == reason


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (rb'{"te\u0078t": 1}', True),
        (rb'{"a": "x\\", "\u0062" : 1}', True),
        (rb'{"a": {"\u0062": 1}}', True),
        (rb'{"a": "\u0041", "b": 1}', False),
        (rb'{"a": "\"\u0041\":", "b": 1}', False),
        (rb'{"a": ["\u0041", "b"]}', False),
    ],
)
def test_keys_with_escapes_are_told_from_values_with_escapes(line, answer):
    assert jsonl._has_escaped_key(line) is answer


def test_a_long_text_of_escapes_is_read():
    """As json.dumps writes every text that is not ASCII; a search that begins anew at each escape would not end."""
    text = "я" * 200_000
    line = json.dumps({"text": text, "label": "x", "client": "anna"}).encode() + b"\n"

    assert [row.fields.text for row in rows(line, source("jsonl", client="client"))] == [text]


def test_parquet_columns_of_the_same_name():
    file = io.BytesIO()
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 3, names=["text", "label", "text"])
    pyarrow.parquet.write_table(table, file)

    assert "the column 'text' occurs 2 times; expected once" in refusal(file.getvalue(), source("parquet"))


def test_columns_of_the_configuration_that_repeat_one():
    assert "the column 'text' occurs 2 times" in refusal(b"a,b,c\n", source("csv", columns=("text", "text", "label")))


@pytest.mark.parametrize("first_line", ["anna-4711,ham", "ham,anna-4711", "anna,4711", "test,lable", "text,anna-4711"])
def test_no_cell_of_a_first_line_gets_into_an_error(first_line):
    """A file without header: short cells and cells like names of columns are as much a row's as others."""
    message = refusal(first_line.encode() + b"\n", source("csv"))

    assert "found 2 columns" in message
    assert not any(cell in message for cell in ("anna", "4711", "ham", "test", "'lable'"))


def test_keys_that_may_be_names_of_people_are_counted():
    message = refusal(b'{"anna": "my card is lost", "ben": "help"}\n', source("jsonl"))

    assert "the field 'text' is missing from the first 1 objects; found 2 fields, none of them configured" in message
    assert "anna" not in message


def test_conll_words_that_begin_like_comments():
    data = b"# a comment\n#tag O\n# O\n# B-x\n#\n#tag\tB-x\nmy O\n#sent_id=1\n"

    (row,) = rows(data, source("conll"))
    assert row == (2, (("#tag", "#", "#", "#tag", "my"), ("O", "O", "B-x", "B-x", "O"), "", ""), "")


@pytest.mark.parametrize("word", ["#", "#a=b", "#client=xyz"])
@pytest.mark.parametrize(
    ("more", "keys"), [("", {}), ("\tO", {}), (" SYM I-NP", {"label": "3"}), (" x y z", {"label": "1"})]
)
def test_conll_words_like_comments_in_rows_of_several_columns(word, more, keys):
    """A row has as many fields as its tag needs, or as the row before it, and its tag looks like one."""
    end = {"": " O", "\tO": "\tO", " SYM I-NP": " SYM I-NP O", " x y z": " O y z"}[more]
    data = f"# client = anna\nmy{end}\n{word}{end}\n"

    (row,) = rows(data.encode(), source("conll", client="client", **keys))
    assert (row.fields.text, row.fields.label, row.fields.client) == (("my", word), ("O", "O"), "anna")


@pytest.mark.parametrize("client", ["U-123", "O", "ann lee", "a = b"])
@pytest.mark.parametrize("label", ["1", "2", "3", "4"])
def test_conll_clients_that_look_like_tags(client, label):
    for equals in (" = ", "=", "= ", " ="):
        data = f"# client{equals}{client}\nmy{' O' * 4}\n"
        assert clients(data.encode(), source("conll", client="client", label=label)) == [client]


def test_conll_comments_of_clients_need_a_blank():
    """Whether "#client=ben lee" is a comment or a word and its tag nobody can tell, and it may be another person's text."""
    data = b"# client = anna\nmy O\n\n%b\nhelp O\n"
    at = source("conll", client="client")

    for line in (b"#client=ben", b"#client=ben lee", b"#client = ben"):
        message = refusal(data % line, at)
        assert "data.conll, line 4: the line begins like a comment for the client 'client'" in message
        assert "ben" not in message


def test_conll_fields_end_at_blanks_and_tabs_only():
    assert texts("10\u00a0000 O\nmy  B-x \n".encode(), source("conll")) == [(1, ("10\u00a0000", "my"))]
    assert texts("10\u00a0000\n".encode(), source("conll")) == [(1, "wrong number of fields")]
    assert texts("10\u2003000\tO\n".encode(), source("conll")) == [(1, ("10\u2003000",))]


@pytest.mark.parametrize("key", ["client", "group"])
def test_conll_comment_with_another_client_ends_a_sentence(key):
    data = b"# client = anna\n# group = g\nmy O\ncard O\n# %b = new\nhelp O\n# other = x\nme O\n\n" % key.encode()

    sentences = rows(data, source("conll", client="client", group="group"))
    second = {"client": ("new", "g"), "group": ("anna", "new")}[key]
    assert [(row.line, row.fields.text, row.fields[2:]) for row in sentences] == [
        (3, ("my", "card"), ("anna", "g")),
        (6, ("help", "me"), second),
    ]


def test_conll_client_ends_with_its_document():
    """A document without a comment of its own is nobody's: its rows have no client, and are rejected as such."""
    data = b"# client = anna\n# group = g\nmy O\n-DOCSTART- O\n\nsecret O\n\n-DOCSTART- O\n# client = ben\nhelp O\n"

    sentences = rows(data, source("conll", client="client", group="group"))
    assert [(row.fields.text, row.fields.client, row.fields.group) for row in sentences] == [
        (("my",), "anna", "g"),
        (("secret",), "", ""),
        (("help",), "ben", ""),
    ]


def test_conll_document_marks_are_no_words():
    data = b"-DOCSTART- -X- -X- O\n\nmy X X O\n-DOCSTART-\nhelp X X B-x\n"
    at = source("conll", label="3")

    assert texts(data, at) == [(3, ("my",)), (5, ("help",))]
    (counts,) = [part.counts for part in formats.read_columns(io.BytesIO(data), at)]
    assert counts == reading.LineCounts(read=5, rows=2, blank=1, document_marks=2)


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
