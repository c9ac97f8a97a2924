"""What is no message of the protocol is refused by a sentence, whatever the bytes; and vectors are not copied."""

import random
import tracemalloc

import msgspec
import numpy as np
import pytest
from builders.secagg import ANSWERS, NAMES, REQUESTS, Attempt

from tff_pipeline.errors import ProtocolError
from tff_pipeline.secagg import messages
from tff_pipeline.secagg.messages import decode

SURVIVORS = {"version": 1, "session": "consortium/run-1", "round_number": 7, "attempt": 0, "message": "survivors"}


def survivors(**fields: object) -> bytes:
    """A list of survivors, from plain values."""
    plain = SURVIVORS | {"terms": Attempt().terms.digest, "survivors": list(NAMES)} | fields
    return msgspec.msgpack.encode({key: value for key, value in plain.items() if value is not ...})


def read(data: bytes) -> messages.Survivors:
    return decode(data, messages.Survivors, Attempt().terms, where="test")


def test_a_message_is_what_it_says():
    assert read(survivors()).survivors == NAMES


@pytest.mark.parametrize(
    "fields",
    [
        {"survivors": ...},
        {"survivors": "bank"},
        {"survivors": [1]},
        {"survivors": [""]},
        {"survivors": ["bank\n"]},
        {"survivors": ["../bank"]},
        {"survivors": ["b" * 101]},
        {"survivors": {"bank": 1}},
        {"round_number": "7"},
        {"round_number": 7.0},
        {"attempt": True},
        {"session": 1},
        {"terms": bytes(31)},
        {"terms": "x" * 32},
        {"message": "nothing"},
        {"message": ...},
        {"version": ...},
        {"version": "1"},
        {"more": 1},
    ],
)
def test_fields_of_other_types_are_refused(fields):
    """No conversion: 7.0 is no round, true no attempt, and unknown fields are errors."""
    with pytest.raises(
        ProtocolError, match=r"test: what came is no message of this protocol \(.*\); expected a message of"
    ):
        read(survivors(**fields))


def test_versions_are_compared_before_anything_else_is_read():
    """The other version's message may have any fields."""
    with pytest.raises(
        ProtocolError, match=r"speaks version 3 of the secure sum's protocol, this side version 1; .*Install"
    ):
        read(msgspec.msgpack.encode({"version": 3, "other": [1, 2]}))


@pytest.mark.parametrize("data", [b"", b"\x00", b"\xc1", b"GET / HTTP/1.1\r\n", b"\x91" * 100_000, b"\x81\xa1\xff\x01"])
def test_bytes_of_another_protocol(data):
    with pytest.raises(ProtocolError, match="no message of this protocol"):
        read(data)


def test_bytes_after_the_message_are_refused():
    with pytest.raises(ProtocolError, match="trailing characters"):
        read(survivors() + b"\x00")


def test_no_damage_to_any_message_raises_anything_else():
    """600 seeded changes to the nine kinds: cut short, bytes changed, bytes put in. What still decodes is of the right kind."""
    attempt = Attempt()
    sent: list[tuple[bytes, type[messages.Message]]] = []
    while not attempt.server.done:
        stage = attempt.server.stage
        if stage in REQUESTS:
            sent.append((attempt.requests["bank"], REQUESTS[stage]))
        attempt.stage()
        sent.append((attempt.answers[stage]["bank"], ANSWERS[stage]))
    choose, refusals = random.Random(5), []
    assert len(sent) == 9
    for number in range(600):
        data, kind = sent[number % 9]
        place = choose.randrange(len(data))
        damaged = [
            data[:place],
            data[:place] + choose.randbytes(3) + data[place + 3 :],
            data[:place] + choose.randbytes(2) + data[place:],
        ][number % 3]
        try:
            assert isinstance(decode(damaged, kind, attempt.terms, where="test"), kind)
        except ProtocolError as error:
            refusals.append(str(error))
    assert len(refusals) > 300
    assert all(refusal.isprintable() and len(refusal) < 700 for refusal in refusals)


def test_a_message_cannot_write_into_a_log():
    """Neither lines nor escape sequences, nor more than a little of it."""
    with pytest.raises(ProtocolError) as error:
        read(survivors(session="\x1b[31m\n" + "x" * 10_000))
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500


def test_a_vector_of_a_message_is_a_view_of_its_bytes():
    """40 MB are not copied when a report is read."""
    terms = Attempt().terms
    slot = messages.Slot("uint32", messages.words(np.zeros(10_000_000, np.uint32)))
    data = messages.encode(messages.Masked(**messages.header(terms), silo="bank", slots=(slot,)))
    assert len(data) < 40_000_500

    tracemalloc.start()
    message = decode(data, messages.Masked, terms, where="test")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert len(message.slots[0].words) == 40_000_000
    assert peak < 100_000
