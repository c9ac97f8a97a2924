"""What the server refuses of a silo: it goes on without that silo, and the sum is that of the others."""

import msgspec
import numpy as np
import pytest
from builders.secagg import ANSWERS, NAMES, Attempt, changed, forge, signed_keys, with_part

from tff_pipeline.errors import ProtocolError
from tff_pipeline.secagg import messages
from tff_pipeline.secagg.server import Server, Slot
from tff_pipeline.secagg.terms import STAGES


def refused(attempt: Attempt, answer: bytes, match: str, name: str = "bank") -> None:
    """The answer changes nothing: without that silo the round gives the sum of the rest."""
    before = [value.copy() for value in attempt.server._total]
    with pytest.raises(ProtocolError, match=match) as error:
        attempt.server.take(name, answer)
    assert "server: round 7, attempt 0" in str(error.value)
    for value, old in zip(attempt.server._total, before, strict=True):
        np.testing.assert_array_equal(value, old)
    stage = attempt.server.stage
    assert name in attempt.server.waiting_for
    sums = attempt.play(**{stage: [silo for silo in attempt.requests if silo != name]})
    left = 11110 if stage in STAGES[:3] else 11111
    np.testing.assert_array_equal(sums.values[0], np.full(3, left, np.uint32))


def answer(attempt: Attempt, /, **fields: object) -> bytes:
    """The bank's answer to the stage under way, with fields replaced."""
    return forge(attempt.ask("bank", attempt.server.stage), ANSWERS[attempt.server.stage], **fields)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"round_number": 6}, "belongs to round 6; expected round 7"),
        ({"attempt": 3}, "belongs to attempt 3; expected attempt 0"),
        ({"session": "x"}, "belongs to session x; expected session consortium/run-1"),
        ({"terms": bytes(32)}, "another roster or threshold"),
        ({"version": 9}, "speaks version 9 of the secure sum's protocol, this side version 1"),
        ({"silo": "shop"}, "names silo shop as its sender; expected the silo that the connection belongs to"),
    ],
)
def test_an_answer_of_another_attempt_version_or_silo(stage, fields, match):
    attempt = Attempt().until(stage)

    refused(attempt, answer(attempt, **fields), match)


@pytest.mark.parametrize("stage", STAGES)
def test_an_answer_comes_once_and_from_those_that_were_asked(stage):
    attempt = Attempt().until(stage)
    first = attempt.ask("bank", stage)
    attempt.server.take("bank", first)

    with pytest.raises(ProtocolError, match=f"came a second time in stage '{stage}'; expected one"):
        attempt.server.take("bank", first)
    with pytest.raises(ProtocolError, match="to which it was not asked; expected an answer of clinic, insurer"):
        attempt.server.take("union", first)


def test_a_silo_that_dropped_out_stays_out():
    """Its late report is not added."""
    attempt = Attempt().until("mask")
    late = attempt.ask("telco", "mask")
    attempt.stage(NAMES[:4])

    with pytest.raises(ProtocolError, match="in stage 'consistency', to which it was not asked"):
        attempt.server.take("telco", late)
    np.testing.assert_array_equal(attempt.play().values[0], np.full(3, 1111, np.uint32))


@pytest.mark.parametrize("stage", STAGES[1:])
def test_an_answer_to_another_stage(stage):
    earlier = STAGES[STAGES.index(stage) - 1]
    attempt = Attempt().until(stage)

    refused(attempt, attempt.answers[earlier]["bank"], r"a message of '[\w ]+' came; expected a message of")


def test_keys_that_are_not_signed_or_not_its_own():
    attempt = Attempt()
    first = msgspec.msgpack.decode(attempt.clients["clinic"].advertise(), type=messages.Advertisement).keys
    attempt.server.take(
        "clinic", messages.encode(messages.Advertisement(**messages.header(attempt.terms), silo="clinic", keys=first))
    )
    own = msgspec.msgpack.decode(attempt.ask("bank", "advertise"), type=messages.Advertisement)

    for wrong in (
        msgspec.structs.replace(own.keys, signature=changed(own.keys.signature)),
        msgspec.structs.replace(own.keys, mask_key=first.mask_key),
        first,
        msgspec.structs.replace(first, silo="bank"),
        signed_keys(attempt.terms, "bank", own.keys.share_key, own.keys.share_key),
        # Of small order: an insider would end the attempt of all.
        signed_keys(attempt.terms, "bank", own.keys.share_key, bytes(32)),
        signed_keys(attempt.terms, "bank", (1).to_bytes(32, "little"), own.keys.mask_key),
    ):
        with pytest.raises(ProtocolError, match="its keys are not signed by it for this attempt, or are not its own"):
            attempt.server.take("bank", messages.encode(msgspec.structs.replace(own, keys=wrong)))
    attempt.server.take("bank", messages.encode(own))


@pytest.mark.parametrize(
    ("attack", "match"),
    [
        (lambda boxes: boxes[:-1], "has shares for 3 silos; expected the 4 others"),
        (lambda boxes: (*boxes, boxes[0]), "silo clinic is in the list of receivers twice"),
        (lambda boxes: (*boxes, messages.Box("bank", boxes[0].box)), "silo bank .* none of those that may be"),
    ],
)
def test_shares_for_others_than_those_that_advertised(attack, match):
    attempt = Attempt().until("share")
    sent = msgspec.msgpack.decode(attempt.ask("bank", "share"), type=messages.Shares)

    refused(attempt, messages.encode(msgspec.structs.replace(sent, boxes=attack(sent.boxes))), match)


@pytest.mark.parametrize(
    "slots",
    [
        (),
        (("uint32", 12),),
        (("uint32", 12), ("uint16", 2), ("uint16", 2)),
        (("uint32", 8), ("uint16", 2)),
        (("uint32", 16), ("uint16", 2)),
        (("uint32", 11), ("uint16", 2)),
        (("uint64", 12), ("uint16", 2)),
        (("uint16", 2), ("uint32", 12)),
    ],
)
def test_a_report_of_other_lengths_or_dtypes(slots):
    attempt = Attempt().until("mask")
    wrong = tuple(messages.Slot(dtype, memoryview(bytes(nbytes))) for dtype, nbytes in slots)

    refused(attempt, answer(attempt, slots=wrong), "its arrays are .*; expected 12 bytes of uint32, 2 bytes of uint16")


def test_a_signature_under_another_list():
    attempt = Attempt().until("consistency")
    sent = msgspec.msgpack.decode(attempt.ask("bank", "consistency"), type=messages.Agreement)

    refused(
        attempt,
        messages.encode(msgspec.structs.replace(sent, signature=changed(sent.signature))),
        "did not sign the list of survivors that it was sent; expected its signature under bank, clinic",
    )


@pytest.mark.parametrize(
    ("attack", "match"),
    [
        (lambda sent: {"seeds": sent.seeds[1:]}, "has 4 shares of seeds; expected one of each of 5 silos"),
        (lambda sent: {"seeds": (*sent.seeds, sent.seeds[0])}, "silo bank is in the list of seeds twice"),
        (lambda sent: {"mask_keys": sent.seeds[:1]}, "silo bank is in the list of keys, and is none"),
        (
            lambda sent: {"seeds": with_part(sent.seeds, "shop", lambda own: messages.Share("shop", b"\xff" * 33))},
            "expected one of each of 5 silos, in the field",
        ),
    ],
)
def test_shares_of_others_than_were_asked_for(attack, match):
    attempt = Attempt().until("unmask")
    sent = msgspec.msgpack.decode(attempt.ask("bank", "unmask"), type=messages.Revealed)

    refused(attempt, messages.encode(msgspec.structs.replace(sent, **attack(sent))), match)


@pytest.mark.parametrize("kind", ["seeds", "mask_keys"])
def test_a_changed_share_gives_no_sum_rather_than_a_wrong_one(kind):
    """The seed does not fit its commitment, the key not its public key."""
    attempt = Attempt().until("unmask", mask=NAMES[:4])
    sent = msgspec.msgpack.decode(attempt.ask("bank", "unmask"), type=messages.Revealed)
    whose = "clinic" if kind == "seeds" else "telco"
    wrong = with_part(getattr(sent, kind), whose, lambda own: messages.Share(whose, changed(own.share)))
    attempt.server.take("bank", messages.encode(msgspec.structs.replace(sent, **{kind: wrong})))

    with pytest.raises(ProtocolError, match=rf"the shares of silo {whose}'s secret do not give it; .*There is no sum"):
        attempt.stage(NAMES[1:4])
    with pytest.raises(ProtocolError, match="stage 'unmask' is not over"):
        attempt.server.result()


def test_a_server_without_a_sound_threshold_is_not_made():
    with pytest.raises(ProtocolError, match="the threshold is 2 of 5 silos"):
        Server(
            roster=Attempt().terms.roster,
            threshold=2,
            session="run",
            round_number=1,
            attempt=0,
            slots=[Slot((1,), np.dtype(np.uint32))],
        )


def test_a_ring_that_the_protocol_does_not_have_is_refused():
    with pytest.raises(ProtocolError, match="a sum is of float32; expected uint16, uint32 or uint64"):
        Attempt(values={name: [np.zeros(1, np.float32)] for name in NAMES})


def test_nothing_comes_after_the_result():
    attempt = Attempt()
    attempt.play()

    assert attempt.server.stage == "done"
    with pytest.raises(ProtocolError, match="is done; expected no more stages"):
        attempt.server.finish()
    with pytest.raises(ProtocolError, match="in stage 'done', to which it was not asked; expected an answer of nobody"):
        attempt.server.take("bank", b"")
