"""Attacks by a server that breaks the protocol, alone or with a silo: what it tries, and where that ends."""

import itertools
import threading
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
import pytest
from builders.secagg import IDENTITIES, NAMES, REQUESTS, Attempt, forge
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tff_pipeline.errors import ProtocolError
from tff_pipeline.secagg import identity, keys, messages, shamir
from tff_pipeline.secagg.journal import MemoryJournal
from tff_pipeline.secagg.keys import Peer
from tff_pipeline.secagg.masks import add_mask, keystream

WITHOUT_BANK = NAMES[1:]


def signatures_of(attempt: Attempt, told: dict[str, Sequence[str]]) -> dict[str, messages.Signature]:
    """Tells every silo a list of survivors; what they sign."""
    signed = {}
    for name, survivors in told.items():
        answer = attempt.ask(name, "consistency", attempt.forged(name, survivors=tuple(survivors)))
        signature = msgspec.msgpack.decode(answer, type=messages.Agreement).signature
        signed[name] = messages.Signature(name, signature)
    return signed


def shares_for(
    attempt: Attempt, silos: Iterable[str], survivors: Sequence[str], signed: Iterable[messages.Signature]
) -> list[messages.Revealed]:
    """What these silos reveal when they are asked for the shares of this list with these signatures."""
    request = messages.encode(
        messages.Agreements(
            **messages.header(attempt.terms),
            survivors=tuple(survivors),
            dropped=tuple(name for name in NAMES if name not in survivors),
            signatures=tuple(signed),
        )
    )
    revealed, refusals = [], []
    for name in silos:
        try:
            revealed.append(msgspec.msgpack.decode(attempt.ask(name, "unmask", request), type=messages.Revealed))
        except ProtocolError as error:
            refusals.append(str(error))
    assert all(" signed the list of survivors; expected at least the threshold" in refusal for refusal in refusals)
    return revealed


@pytest.mark.parametrize(
    "told_without", [set(chosen) for size in range(5) for chosen in itertools.combinations(NAMES[1:], size)]
)
def test_two_lists_of_survivors_never_both_reach_the_threshold(told_without):
    """The bank is alive to some and dropped to others: with both kinds of its shares the server could read its report.

    All sixteen ways to tell the other four.
    """
    attempt = Attempt().until("consistency")
    told = {name: WITHOUT_BANK if name in told_without else NAMES for name in NAMES}
    signed = signatures_of(attempt, told)

    revealed = {}
    for survivors in (NAMES, WITHOUT_BANK):
        silos = [name for name in NAMES if told[name] == survivors]
        revealed[survivors] = shares_for(attempt, silos, survivors, [signed[name] for name in silos])

    of_seed = [share for answer in revealed[NAMES] for share in answer.seeds if share.silo == "bank"]
    of_key = [share for answer in revealed[WITHOUT_BANK] for share in answer.mask_keys if share.silo == "bank"]
    assert (len(of_seed) >= 3, len(of_key) >= 3) in ((True, False), (False, True))
    assert 0 in (len(of_seed), len(of_key))


def test_signatures_under_both_lists_together_are_refused():
    """Whoever is shown a signature under the other list sees the lie."""
    attempt = Attempt().until("consistency")
    told = dict(zip(NAMES, (NAMES, NAMES, NAMES, WITHOUT_BANK, WITHOUT_BANK), strict=True))
    signed = signatures_of(attempt, told)

    for name, survivors in (("bank", NAMES), ("shop", WITHOUT_BANK)):
        forged = messages.encode(
            messages.Agreements(
                **messages.header(attempt.terms),
                survivors=tuple(survivors),
                dropped=tuple(set(NAMES) - set(survivors)),
                signatures=tuple(signed[silo] for silo in NAMES if silo in survivors),
            )
        )
        with pytest.raises(ProtocolError, match="did not sign the list of survivors that this silo signed"):
            attempt.ask(name, "unmask", forged)


def read_report(attempt: Attempt, name: str, seed: bytes, private: X25519PrivateKey) -> np.ndarray:
    """A silo's first array, by whoever has both of its secrets and its report."""
    report = msgspec.msgpack.decode(attempt.answers["mask"][name], type=messages.Masked)
    vectors = [np.frombuffer(slot.words, slot.dtype).copy() for slot in report.slots]
    add_mask(vectors, keystream(keys.self_mask_key(attempt.terms, name, seed)), subtract=True)
    for peer in attempt.server._shares:
        if peer != name:
            own, other = (Peer(side, attempt.server._keys[side].mask_key) for side in (name, peer))
            key = keys.pair_mask_key(attempt.terms, private, own, other)
            add_mask(vectors, keystream(key), subtract=name < peer)
    return vectors[0]


@pytest.mark.parametrize(("threshold", "succeeds"), [(3, True), (4, False)])
def test_a_silo_that_signs_both_lists_needs_a_higher_threshold(threshold, succeeds):
    """The telco colludes: it signs what the server likes and gives away all it holds. Three of five are then not enough, which is what
    `colluding` is for: 2t > n + colluding refuses 3 and allows 4."""
    attempt = Attempt(threshold=threshold).until("consistency")
    held = {name: attempt.clients["telco"]._held[name] for name in NAMES}
    told = {"bank": NAMES, "clinic": NAMES, "insurer": WITHOUT_BANK, "shop": WITHOUT_BANK}
    signed = signatures_of(attempt, told)
    seeds, mask_keys = ({attempt.terms.index("telco"): held["bank"][kind]} for kind in (1, 0))
    for survivors in (NAMES, WITHOUT_BANK):
        silos = [name for name in told if told[name] == survivors]
        content = keys.agreement(attempt.terms, "telco", attempt.server._keys, NAMES, survivors)
        both = messages.Signature("telco", identity.sign(IDENTITIES["telco"], content))
        for answer in shares_for(attempt, silos, survivors, [*(signed[name] for name in silos), both]):
            for shares, revealed in ((seeds, answer.seeds), (mask_keys, answer.mask_keys)):
                shares.update(
                    (attempt.terms.index(answer.silo), part.share) for part in revealed if part.silo == "bank"
                )

    assert (len(seeds), len(mask_keys)) == ((3, 3) if succeeds else (1, 1))
    seed, secret = shamir.combine(seeds, threshold), shamir.combine(mask_keys, threshold)
    assert (seed is not None and secret is not None) == succeeds
    if seed is not None and secret is not None:
        report = read_report(attempt, "bank", seed, X25519PrivateKey.from_private_bytes(secret))
        np.testing.assert_array_equal(report, attempt.values["bank"][0])


@pytest.mark.parametrize("stage", ["share", "mask"])
def test_different_keys_or_dealers_told_to_two_silos_are_seen_before_anything_is_revealed(stage):
    """The telco is hidden from two silos: their signatures are under other lists of keys or dealers."""
    attempt = Attempt().until(stage)
    field = "keys" if stage == "share" else "boxes"
    for name in ("bank", "clinic"):
        shown = tuple(part for part in getattr(attempt.request(name), field) if part.silo != "telco")
        attempt.requests[name] = forge(attempt.requests[name], REQUESTS[stage], **{field: shown})
    if stage == "share":
        # A server that hides its lie also gives out the boxes that fit.
        answers = {name: attempt.ask(name, "share") for name in NAMES[:4]}
        dealt = {name: msgspec.msgpack.decode(answer, type=messages.Shares).boxes for name, answer in answers.items()}
        for name in NAMES[:4]:
            boxes = tuple(
                messages.Box(dealer, box.box) for dealer in dealt for box in dealt[dealer] if box.silo == name
            )
            attempt.requests[name] = messages.encode(
                messages.RoutedShares(**messages.header(attempt.terms), boxes=boxes)
            )
    for name in NAMES[:4]:
        attempt.ask(name, "mask")
    signed = {}
    for name in NAMES[:4]:
        request = messages.encode(messages.Survivors(**messages.header(attempt.terms), survivors=NAMES[:4]))
        answer = msgspec.msgpack.decode(attempt.ask(name, "consistency", request), type=messages.Agreement)
        signed[name] = messages.Signature(name, answer.signature)

    for name in NAMES[:4]:
        request = messages.encode(
            messages.Agreements(
                **messages.header(attempt.terms),
                survivors=NAMES[:4],
                dropped=("telco",) if name in ("insurer", "shop") and stage == "mask" else (),
                signatures=tuple(signed.values()),
            )
        )
        with pytest.raises(ProtocolError, match=r"did not sign the list .* with the same keys and dealers before it"):
            attempt.ask(name, "unmask", request)


def test_a_report_that_comes_after_its_silo_was_given_up_stays_masked():
    """The server has the telco's key s from its shares, and its late report: the self mask is left on it."""
    attempt = Attempt().until("mask")
    attempt.answers["mask"]["telco"] = attempt.ask("telco", "mask")
    sums = attempt.play(mask=NAMES[:4])
    private = attempt.server._mask_key("telco", "test")

    np.testing.assert_array_equal(sums.values[0], np.full(3, 1111, np.uint32))
    assert keys.public_bytes(private) == attempt.server._keys["telco"].mask_key
    assert all(share.silo != "telco" for answer in attempt.server._revealed.values() for share in answer.seeds)
    guessed = read_report(attempt, "telco", shamir.random_secret(), private)
    assert not np.array_equal(guessed, attempt.values["telco"][0])
    known = read_report(attempt, "telco", attempt.clients["telco"]._seed, private)
    np.testing.assert_array_equal(known, attempt.values["telco"][0])  # nothing but the seed was missing


def journals() -> dict[str, MemoryJournal]:
    return {name: MemoryJournal(f"silo {name}") for name in NAMES}


@pytest.mark.parametrize("revealing", [chosen for size in (3, 4) for chosen in itertools.combinations(NAMES[1:], size)])
def test_a_second_sum_of_the_round_that_would_show_one_report_as_the_difference(revealing):
    """Attempt 0 is unmasked with the bank, attempt 1 is to be without it; whoever revealed agrees to no other list."""
    kept = journals()
    Attempt(journals=kept).play(unmask=revealing)

    attempt = Attempt(attempt=1, journals=kept).until("consistency", mask=WITHOUT_BANK)
    for name in revealing:
        with pytest.raises(
            ProtocolError,
            match=rf"silo {name}: .* revealed shares of this round before, for the survivors bank, clinic, .*go on with the next round",
        ):
            attempt.ask(name, "consistency")
    with pytest.raises(
        ProtocolError, match=r"[01] of 5 silos answered stage 'consistency'; expected at least the threshold"
    ):
        attempt.stage([name for name in WITHOUT_BANK if name not in revealing])


def test_a_round_is_repeated_with_the_same_survivors():
    """What a coordinator does that was killed while it unmasked: the same sum again tells nothing new."""
    kept = journals()
    first = Attempt(journals=kept).play(unmask=NAMES[:3])

    again = Attempt(attempt=1, journals=kept).play()

    np.testing.assert_array_equal(first.values[0], again.values[0])
    after = Attempt(round_number=8, journals=kept).play(mask=NAMES[2:])
    assert after.survivors == NAMES[2:]


def test_an_attempt_before_the_newest_is_not_finished():
    """The server keeps attempt 0 open, and would have two attempts unmasked."""
    kept = journals()
    old = Attempt(journals=kept).until("unmask")
    Attempt(attempt=1, journals=kept).play()

    with pytest.raises(ProtocolError, match=r"silo bank: round 7, attempt 0: is before round 7, attempt 1"):
        old.ask("bank", "unmask")


def test_a_process_that_was_started_again_does_not_answer_the_attempt_again():
    """It has other keys; a second report of the same attempt would let the server choose."""
    kept = journals()
    Attempt(journals=kept).until("consistency")

    restarted = Attempt(journals=kept)
    with pytest.raises(ProtocolError, match="attempt 0: stage 'advertise' was answered before, by this process or one"):
        restarted.ask("bank", "advertise")


def test_signatures_of_an_earlier_attempt_do_not_count():
    earlier = Attempt().until("unmask")
    attempt = Attempt(attempt=1).until("unmask")
    old = earlier.request("bank").signatures

    with pytest.raises(ProtocolError, match="silo bank did not sign the list of survivors"):
        attempt.ask("bank", "unmask", attempt.forged("bank", signatures=old))


def test_two_calls_at_once_get_one_answer():
    """Two reports under the same masks would show their difference."""
    attempt = Attempt().until("mask")
    answers: list[bytes] = []
    refusals: list[str] = []
    start = threading.Barrier(8)

    def ask() -> None:
        start.wait()
        try:
            answers.append(attempt.ask("bank", "mask"))
        except ProtocolError as error:
            refusals.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(answers) == 1
    assert len(refusals) == 7
    assert all("stage 'mask' was asked for a second time" in refusal for refusal in refusals)
