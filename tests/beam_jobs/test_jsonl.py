"""Objects a line: what is rejected, which keys are there, and which occur twice."""

import json

import pytest
from builders.raw_rows import refusal, rows, source, texts

from beam_jobs.formats import jsonl


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


def test_keys_that_may_be_names_of_people_are_counted():
    message = refusal(b'{"anna": "my card is lost", "ben": "help"}\n', source("jsonl"))

    assert "the field 'text' is missing from the first 1 objects; found 2 fields, none of them configured" in message
    assert "anna" not in message


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
