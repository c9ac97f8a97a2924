"""What a silo refuses. Every test is an attack by the server or by another silo; nothing leaves, and the attempt is over."""

import dataclasses
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from builders.secagg import IDENTITIES, NAMES, Attempt, changed, fresh_key, roster, signed_keys, with_part

from tff_pipeline.errors import PrivacyError, ProtocolError
from tff_pipeline.secagg import messages
from tff_pipeline.secagg.client import Client
from tff_pipeline.secagg.journal import MemoryJournal
from tff_pipeline.secagg.terms import STAGES


def refused(attempt: Attempt, name: str, request: bytes, match: str) -> None:
    """The silo refuses the request of the stage under way, and answers nothing more in the attempt."""
    stage = attempt.server.stage
    with pytest.raises(ProtocolError, match=match) as error:
        attempt.ask(name, stage, request)
    assert f"silo {name}: round 7, attempt 0" in str(error.value)
    with pytest.raises(ProtocolError, match=r"after this silo had refused another; .* Nothing was sent"):
        attempt.ask(name, stage)


@pytest.mark.parametrize("threshold", [0, 1, 2, 6])
def test_a_threshold_that_is_not_above_half_is_refused(threshold):
    with pytest.raises(
        ProtocolError, match=rf"the threshold is {threshold} of 5 silos; expected more than half .* from 3 to 5"
    ):
        Attempt(threshold=threshold)


def test_half_of_an_even_roster_is_refused():
    """Two halves could sign two lists of survivors."""
    with pytest.raises(ProtocolError, match="the threshold is 2 of 4 silos; expected more than half"):
        Attempt(NAMES[:4], threshold=2)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"colluding": 1}, r"threshold is 3 of 5 silos, of which 1 may collude .* more than half of 6"),
        ({"name": "shop"}, "does not have this silo with the public key of its identity"),
        ({"name": "nobody"}, "does not have this silo with the public key of its identity"),
        ({"roster": roster(["bank"]), "threshold": 1}, "has 1 silo"),
        ({"roster": roster() | {"shop": roster()["bank"]}}, "two silos of the roster have the same identity key"),
        ({"roster": roster() | {"shop": b"short"}}, "identity key that is not 32 bytes long"),
    ],
)
def test_a_roster_that_cannot_be_right_is_refused(change, match):
    arguments: dict[str, Any] = {
        "name": "bank",
        "identity_key": IDENTITIES["bank"],
        "roster": roster(),
        "threshold": 3,
        "session": "run",
        "round_number": 1,
        "attempt": 0,
        "journal": MemoryJournal(),
        "seen": set(),
    }
    Client(**arguments)
    with pytest.raises(ProtocolError, match=match):
        Client(**arguments | change)


@pytest.mark.parametrize("repeated", range(5))
def test_every_stage_is_answered_once(repeated):
    attempt = Attempt()
    stage = STAGES[repeated]
    for _ in range(repeated + 1):
        requests = attempt.requests
        attempt.stage()

    with pytest.raises(
        ProtocolError, match=rf"stage '{stage}' was asked for a second time; .*two answers.*Nothing was sent"
    ):
        attempt.ask("bank", stage, requests["bank"])
    attempt.play()  # a repeated request does not end the attempt


@pytest.mark.parametrize("stage", STAGES[1:])
def test_no_stage_is_answered_before_its_turn(stage):
    played = Attempt().until(stage)

    with pytest.raises(ProtocolError, match=rf"stage '{stage}' was asked for out of order; expected 'advertise'"):
        Attempt().ask("bank", stage, played.requests["bank"])


SHARE: list[tuple[Callable[[Attempt, tuple[messages.Keys, ...]], tuple[messages.Keys, ...]], str]] = [
    (lambda at, sent: sent[:2], "2 of 5 silos advertised keys; expected at least the threshold, 3"),
    (lambda at, sent: (*sent, sent[0]), "silo bank is in the list of advertised keys twice"),
    (
        lambda at, sent: (*sent, signed_keys(at.terms, "union", fresh_key(), fresh_key())),
        "silo union is in the list of advertised keys, and is none of those that may be",
    ),
    (lambda at, sent: sent[:2] + sent[3:], "does not hold the keys this silo sent"),
    (
        lambda at, sent: with_part(
            sent, "insurer", lambda own: signed_keys(at.terms, "insurer", fresh_key(), fresh_key())
        ),
        "does not hold the keys this silo sent",
    ),
    (
        lambda at, sent: with_part(sent, "shop", lambda own: msgspec.structs.replace(own, signature=bytes(64))),
        "keys of silo shop are not signed by it for this attempt",
    ),
    (  # the server in the middle: its own key in the shop's name
        lambda at, sent: with_part(sent, "shop", lambda own: msgspec.structs.replace(own, mask_key=fresh_key())),
        "keys of silo shop are not signed by it for this attempt",
    ),
    (  # c for s and s for c
        lambda at, sent: with_part(
            sent,
            "shop",
            lambda own: msgspec.structs.replace(own, mask_key=own.share_key, share_key=own.mask_key),
        ),
        "keys of silo shop are not signed by it for this attempt",
    ),
    (  # two silos' keys exchanged, each with its signature
        lambda at, sent: with_part(sent, "shop", lambda own: msgspec.structs.replace(sent[0], silo="shop")),
        "keys of silo shop are not signed by it for this attempt",
    ),
    (  # signed by another silo of the roster
        lambda at, sent: with_part(
            sent,
            "shop",
            lambda own: msgspec.structs.replace(signed_keys(at.terms, "bank", fresh_key(), fresh_key()), silo="shop"),
        ),
        "keys of silo shop are not signed by it for this attempt",
    ),
    *(
        (  # keys of another attempt, round or session, or of another roster or threshold, under the silo's own signature
            lambda at, sent, other=other: with_part(
                sent,
                "shop",
                lambda own: signed_keys(dataclasses.replace(at.terms, **other), "shop", own.share_key, own.mask_key),
            ),
            "keys of silo shop are not signed by it for this attempt",
        )
        for other in (
            {"attempt": 1},
            {"round_number": 6},
            {"session": "another"},
            {"threshold": 4},
            {"roster": roster(NAMES[:4])},
        )
    ),
    (  # a silo that copies another's key
        lambda at, sent: with_part(
            sent, "shop", lambda own: signed_keys(at.terms, "shop", fresh_key(), sent[0].mask_key)
        ),
        "keys of silo shop hold a key that is in the list already",
    ),
    (
        lambda at, sent: with_part(
            sent, "shop", lambda own: signed_keys(at.terms, "shop", own.share_key, own.share_key)
        ),
        "keys of silo shop hold a key that is in the list already",
    ),
    (  # the same number in another encoding: 2**255 - 19 more
        lambda at, sent: with_part(
            sent,
            "shop",
            lambda own: signed_keys(at.terms, "shop", own.share_key, (2**255 - 19 + 9).to_bytes(32, "little")),
        ),
        "keys of silo shop hold a number outside the field",
    ),
    *(
        (  # points of small order, with which every exchange gives zeros
            lambda at, sent, point=point: with_part(
                sent, "shop", lambda own: signed_keys(at.terms, "shop", fresh_key(), point.to_bytes(32, "little"))
            ),
            "a key of silo shop is of small order",
        )
        for point in (0, 1)
    ),
    (
        lambda at, sent: with_part(sent, "shop", lambda own: signed_keys(at.terms, "shop", bytes(32), fresh_key())),
        "a key of silo shop is of small order",
    ),
]


@pytest.mark.parametrize(("attack", "match"), SHARE)
def test_keys_that_are_not_the_silos_own_for_this_attempt(attack, match):
    attempt = Attempt().until("share")

    refused(attempt, "insurer", attempt.forged("insurer", keys=attack(attempt, attempt.request("insurer").keys)), match)


def test_a_key_of_an_earlier_round_is_refused():
    """A silo whose machine starts from a copy, or that lends its keys, has one key in two rounds."""
    seen: dict[str, set[bytes]] = {name: set() for name in NAMES}
    first = Attempt(seen=seen)
    first.play()
    used = msgspec.msgpack.decode(first.answers["advertise"]["shop"], type=messages.Advertisement).keys
    attempt = Attempt(seen=seen, round_number=8).until("share")
    again = with_part(
        attempt.request("bank").keys, "shop", lambda own: signed_keys(attempt.terms, "shop", fresh_key(), used.mask_key)
    )

    with pytest.raises(
        ProtocolError, match="round 8, attempt 0: the keys of silo shop hold a key of an earlier attempt"
    ):
        attempt.ask("bank", "share", attempt.forged("bank", keys=again))


MASK: list[tuple[Callable[[Attempt, tuple[messages.Box, ...]], tuple[messages.Box, ...]], str]] = [
    (lambda at, sent: sent[:1], "2 of 5 silos dealt shares; expected at least the threshold, 3"),
    (lambda at, sent: (*sent, sent[0]), "silo bank is in the list of silos that dealt twice"),
    (lambda at, sent: (*sent, messages.Box("insurer", sent[0].box)), "silo insurer .* none of those that may be"),
    (lambda at, sent: (*sent, messages.Box("union", sent[0].box)), "silo union .* none of those that may be"),
    *(
        (
            lambda at, sent, place=place: with_part(
                sent, "shop", lambda own: messages.Box("shop", changed(own.box, place))
            ),
            "shares of silo shop are not what it encrypted for this silo",
        )
        for place in (0, 11, 12, 50, -1)
    ),
    (  # one silo's box as another's
        lambda at, sent: with_part(sent, "shop", lambda own: messages.Box("shop", sent[0].box)),
        "shares of silo shop are not what it encrypted for this silo",
    ),
    (  # the box for another silo
        lambda at, sent: with_part(
            sent, "shop", lambda own: next(box for box in at.request("bank").boxes if box.silo == "shop")
        ),
        "shares of silo shop are not what it encrypted for this silo",
    ),
]


@pytest.mark.parametrize(("attack", "match"), MASK)
def test_shares_that_are_not_what_was_dealt(attack, match):
    attempt = Attempt().until("mask")

    refused(
        attempt, "insurer", attempt.forged("insurer", boxes=attack(attempt, attempt.request("insurer").boxes)), match
    )


def test_the_silos_own_box_is_not_taken_for_the_others():
    """A box reflected to its sender: the key is that of the other direction."""
    attempt = Attempt().until("mask")
    sent = msgspec.msgpack.decode(attempt.answers["share"]["insurer"], type=messages.Shares)
    own = next(box.box for box in sent.boxes if box.silo == "shop")
    reflected = with_part(attempt.request("insurer").boxes, "shop", lambda box: messages.Box("shop", own))

    refused(
        attempt, "insurer", attempt.forged("insurer", boxes=reflected), "shares of silo shop are not what it encrypted"
    )


def test_a_dealer_outside_those_that_advertised_is_refused():
    """The shop is in the roster, and was not in the list of keys."""
    attempt = Attempt().until("mask", advertise=[name for name in NAMES if name != "shop"])
    boxes = attempt.request("insurer").boxes

    refused(
        attempt,
        "insurer",
        attempt.forged("insurer", boxes=(*boxes, messages.Box("shop", boxes[0].box))),
        r"silo shop is in the list of silos that dealt, and is none of those that may be: bank, clinic, telco",
    )


@pytest.mark.parametrize(
    ("survivors", "match"),
    [
        (("bank", "clinic", "shop"), "leaves this silo out, although it lives and has sent its report"),
        (("bank", "insurer"), "2 of 5 silos sent their report; expected at least the threshold, 3"),
        (("bank", "insurer", "shop", "bank"), "silo bank is in the list of survivors twice"),
        (("bank", "insurer", "union"), "silo union is in the list of survivors, and is none of those that may be"),
        (("bank", "insurer", "telco"), "silo telco is in the list of survivors, and is none of those that may be"),
        ((), "leaves this silo out"),
    ],
)
def test_a_list_of_survivors_that_cannot_be_right(survivors, match):
    """The telco advertised keys and never dealt."""
    attempt = Attempt().until("consistency", share=NAMES[:4])

    refused(attempt, "insurer", attempt.forged("insurer", survivors=survivors), match)


LIVING, GONE = ("bank", "clinic", "insurer"), ("shop", "telco")


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"dropped": (*GONE, "bank")}, "both kinds of share are asked for of silo bank"),
        ({"survivors": (*LIVING, "shop")}, "both kinds of share are asked for of silo shop"),
        (
            {"survivors": ("bank", "clinic"), "dropped": (*GONE, "insurer")},
            "shares of this silo's own key are asked for, as if it had dropped out; it lives",
        ),
        ({"survivors": (*LIVING, "shop"), "dropped": ("telco",)}, "another list of survivors than this silo signed"),
        ({"survivors": ("clinic", "insurer"), "dropped": (*GONE, "bank")}, "another list of survivors than this silo"),
        ({"dropped": ("shop",)}, "dropped silos are not those that dealt and did not survive; expected 2"),
        ({"dropped": ("shop", "shop")}, "silo shop is in the list of dropped silos twice"),
        ({"survivors": ("bank", *LIVING)}, "silo bank is in the list of survivors twice"),
        ({"dropped": (*GONE, "union")}, "silo union is in the list of dropped silos, and is none"),
    ],
)
def test_shares_that_the_signed_list_does_not_give(fields, match):
    attempt = Attempt().until("unmask", mask=LIVING)

    refused(attempt, "insurer", attempt.forged("insurer", **fields), match)


@pytest.mark.parametrize(
    ("attack", "match"),
    [
        (lambda sent: sent[:2], "2 of 5 silos signed the list of survivors; expected at least the threshold, 3"),
        (lambda sent: (sent[0], sent[0], sent[1]), "silo bank is in the list of signatures twice"),
        (
            lambda sent: (*sent, messages.Signature("shop", sent[0].signature)),
            "silo shop is in the list of signatures, and",
        ),
        (
            lambda sent: with_part(sent, "bank", lambda own: messages.Signature("bank", changed(own.signature))),
            "silo bank did not sign the list of survivors that this silo signed",
        ),
        (
            lambda sent: with_part(sent, "bank", lambda own: messages.Signature("bank", sent[1].signature)),
            "silo bank did not sign the list of survivors that this silo signed",
        ),
    ],
)
def test_signatures_that_do_not_stand_behind_the_list(attack, match):
    attempt = Attempt().until("unmask", mask=LIVING)

    refused(
        attempt, "insurer", attempt.forged("insurer", signatures=attack(attempt.request("insurer").signatures)), match
    )


@pytest.mark.parametrize("stage", STAGES[1:])
@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"round_number": 6}, "belongs to round 6; expected round 7. It is stale"),
        ({"attempt": 1}, "belongs to attempt 1; expected attempt 0"),
        ({"session": "other\nrun"}, r"belongs to session other\?run; expected session consortium/run-1"),
        ({"terms": bytes(32)}, "the other side has another roster or threshold"),
        ({"version": 2}, "speaks version 2 of the secure sum's protocol, this side version 1; .* same release"),
    ],
)
def test_a_request_of_another_attempt_or_version(stage, fields, match):
    attempt = Attempt().until(stage)

    refused(attempt, "bank", attempt.forged("bank", **fields), match)


def test_a_real_request_of_an_earlier_attempt_is_stale():
    earlier = Attempt().until("share")
    attempt = Attempt(attempt=1).until("share")

    with pytest.raises(ProtocolError, match="attempt 1: request of the server: the message belongs to attempt 0"):
        attempt.ask("bank", "share", earlier.requests["bank"])


def test_a_refusal_is_an_error_of_the_project():
    """Its exit code is that of a guarantee that cannot be given."""
    assert issubclass(ProtocolError, PrivacyError)
    assert ProtocolError.exit_code == PrivacyError.exit_code == 5
