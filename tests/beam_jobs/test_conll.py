"""Sentences a word a line: what is a word, a comment or the mark of a document, and whose a sentence is."""

import io

import pytest
from builders.raw_rows import clients, refusal, rows, source, texts

from beam_jobs import formats, reading


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
