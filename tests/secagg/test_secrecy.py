"""What the server sees, alone and with t - 1 silos that show it everything they have: the sum, and besides it noise."""

import itertools

import msgspec
import numpy as np
import pytest
from builders.secagg import NAMES, Attempt, plain_sum
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from scipy import stats

from tff_pipeline.secagg import keys, messages, shamir
from tff_pipeline.secagg.client import Client
from tff_pipeline.secagg.keys import Peer
from tff_pipeline.secagg.masks import add_mask, add_up, keystream

LENGTH = 20_000
CURIOUS = ("insurer", "shop")  # t - 1 silos that collude with the server
HONEST = ("bank", "clinic", "telco")


def uniform(values: np.ndarray) -> bool:
    """A chi-square test on the bytes; keys are random, so that a sound value fails once in 10**6 times by chance."""
    return stats.chisquare(np.bincount(values.view(np.uint8), minlength=256)).pvalue > 1e-6


def large_values(dtype: str = "uint32") -> dict[str, list[np.ndarray]]:
    return {name: [np.full(LENGTH, 10**place, dtype)] for place, name in enumerate(NAMES)}


def played(dtype: str = "uint32", **answering: tuple[str, ...]) -> Attempt:
    """An attempt in which every silo's sum is constant: anything that is left of it stands out."""
    attempt = Attempt(values=large_values(dtype))
    attempt.play(**answering)
    return attempt


def report(attempt: Attempt, name: str) -> np.ndarray:
    slot = msgspec.msgpack.decode(attempt.answers["mask"][name], type=messages.Masked).slots[0]
    return np.frombuffer(slot.words, slot.dtype).copy()


def pair_key(attempt: Attempt, private: X25519PrivateKey, own: str, other: str) -> bytes:
    """The key of a pair's mask, from one side's private key and what the server relays."""
    sides = [Peer(side, attempt.server._keys[side].mask_key) for side in (own, other)]
    return keys.pair_mask_key(attempt.terms, private, *sides)


def stripped(attempt: Attempt, name: str, colluding: tuple[str, ...] = ()) -> np.ndarray:
    """A silo's report without all masks that the server and the colluding silos can compute."""
    left = report(attempt, name)
    seed = attempt.server._seed(name, "test")
    add_mask([left], keystream(keys.self_mask_key(attempt.terms, name, seed)), subtract=True)
    privates = {dropped: attempt.server._mask_key(dropped, "test") for dropped in attempt.server._dropped}
    privates |= {silo: attempt.clients[silo]._mask_private for silo in colluding}
    for peer, private in privates.items():
        add_mask([left], keystream(pair_key(attempt, private, peer, name)), subtract=name < peer)
    return left


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "uint64"])
def test_every_report_is_uniform(dtype):
    attempt = played(dtype)

    for name in NAMES:
        assert uniform(report(attempt, name))


def test_reports_are_independent_of_each_other():
    """Differences and sums of pairs are uniform too."""
    attempt = played()

    for one, other in itertools.combinations(NAMES, 2):
        assert uniform(report(attempt, one) - report(attempt, other))
        assert uniform(report(attempt, one) + report(attempt, other))


def test_of_no_smaller_group_is_there_a_sum():
    """The server removes all it can from the reports of every group of survivors; the telco has dropped out."""
    attempt = played(mask=NAMES[:4])
    left = {name: stripped(attempt, name) for name in NAMES[:4]}

    for size in (1, 2, 3):
        for group in itertools.combinations(NAMES[:4], size):
            assert uniform(add_up([[left[name].copy()] for name in group])[0]), group
    everybody = add_up([[left[name].copy()] for name in NAMES[:4]])[0]
    np.testing.assert_array_equal(everybody, plain_sum(attempt.values, NAMES[:4])[0])


def test_with_t_minus_1_silos_the_server_learns_the_sum_of_the_others():
    """It removes the colluding silos' masks as well. Of one or two of the honest three there is nothing, of all three the sum, as
    must be: the colluding silos know their own."""
    attempt = played()
    left = {name: stripped(attempt, name, CURIOUS) for name in HONEST}

    for size in (1, 2):
        for group in itertools.combinations(HONEST, size):
            assert uniform(add_up([[left[name].copy()] for name in group])[0]), group
    everybody = add_up([[left[name].copy()] for name in HONEST])[0]
    np.testing.assert_array_equal(everybody, plain_sum(attempt.values, HONEST)[0])


def test_every_other_input_with_the_same_sum_explains_what_they_see():
    """The simulation: honest silos with other inputs (the bank's and the clinic's exchanged, one with all of the sum, random ones).

    What is seen of the honest silos is x + m, where the masks m among them are uniform and sum to zero. For each other input
    there is exactly one choice of masks with the same view; it sums to zero as well, and is uniform as well.
    """
    attempt = played()
    view = {name: stripped(attempt, name, CURIOUS) for name in HONEST}
    given = {name: attempt.values[name][0] for name in HONEST}
    total, zero = sum(given.values(), start=np.zeros(LENGTH, np.uint32)), np.zeros(LENGTH, np.uint32)
    random = np.random.default_rng(3).integers(0, 2**32, (2, LENGTH), np.uint32)
    for bank, clinic in (
        (given["clinic"], given["bank"]),
        (total, zero),
        (zero, zero),
        (random[0], random[1]),
    ):
        other = {"bank": bank, "clinic": clinic, "telco": total - bank - clinic}
        masks = {name: view[name] - other[name] for name in HONEST}

        assert not add_up([[mask.copy()] for mask in masks.values()])[0].any()
        assert all(uniform(mask) for mask in masks.values())


def held(attempt: Attempt, name: str, kind: int) -> dict[int, bytes]:
    """The shares of a silo's key (kind 0) or seed (1) that the colluding silos hold."""
    return {attempt.terms.index(silo): attempt.clients[silo]._held[name][kind] for silo in CURIOUS}


def secret(client: Client, kind: int) -> bytes:
    return client._seed if kind else client._mask_private.private_bytes_raw()


@pytest.mark.parametrize("kind", [0, 1])
def test_t_minus_1_shares_say_nothing_of_a_secret(kind):
    """The colluding silos' shares of the bank's key and seed: a third share makes any secret of them, 0 and 2**256 - 1 too."""
    attempt = Attempt().until("consistency")
    shares, client = held(attempt, "bank", kind), attempt.clients["bank"]

    assert shamir.combine(shares, 3) is None
    assert shamir.combine(shares, 2) != secret(client, kind)
    mine = attempt.terms.index("bank")
    for wanted in (0, 1, 2**256 - 1, int.from_bytes(secret(client, kind), "big")):
        third = at({0: wanted} | {index: int.from_bytes(share, "big") for index, share in shares.items()}, mine)
        made = shamir.combine(shares | {mine: third.to_bytes(33, "big")}, 3)
        assert made == wanted.to_bytes(32, "big")


def at(points: dict[int, int], where: int) -> int:
    """The value at `where` of the polynomial through the points, by Lagrange's formula."""
    total = 0
    for x, y in points.items():
        for other in points:
            if other != x:
                y = y * (where - other) * pow(x - other, -1, shamir.PRIME) % shamir.PRIME
        total += y
    return total % shamir.PRIME


def test_the_seed_that_the_colluders_guess_is_seen_to_be_wrong_and_leaves_the_report_uniform():
    """Their two shares with a third that they make up: not the seed of the commitment, and not a mask that was added."""
    attempt = Attempt(values=large_values()).until("consistency")
    client = attempt.clients["bank"]
    guess = shamir.combine(held(attempt, "bank", 1) | {attempt.terms.index("bank"): bytes(33)}, 3) or bytes(32)
    sent = msgspec.msgpack.decode(attempt.answers["share"]["bank"], type=messages.Shares)

    assert keys.commitment(attempt.terms, "bank", guess) != sent.commitment
    assert keys.commitment(attempt.terms, "bank", client._seed) == sent.commitment
    left = report(attempt, "bank")
    add_mask([left], keystream(keys.self_mask_key(attempt.terms, "bank", guess)), subtract=True)
    for peer in CURIOUS:
        key = pair_key(attempt, attempt.clients[peer]._mask_private, peer, "bank")
        add_mask([left], keystream(key), subtract=True)  # the bank's name is the first: it added all of them
    assert uniform(left)


def test_boxes_hide_shares_from_the_server():
    """No share that was dealt is among the bytes of any message before the last stage."""
    attempt = Attempt().until("unmask", mask=NAMES[:4])
    sent = b"".join(answer for stage in attempt.answers.values() for answer in stage.values())

    for client in attempt.clients.values():
        assert client._seed not in sent
        assert client._mask_private.private_bytes_raw() not in sent
        for shares in client._held.values():
            assert not any(share in sent or share[1:] in sent for share in shares)


def test_only_what_was_asked_for_is_revealed():
    """Seeds of survivors, keys of the dropped: no silo's both."""
    attempt = played(mask=NAMES[:4])

    for answer in attempt.server._revealed.values():
        assert [share.silo for share in answer.seeds] == list(NAMES[:4])
        assert [share.silo for share in answer.mask_keys] == ["telco"]


def test_two_attempts_share_no_secret():
    """The same sums in two attempts: other keys, other seeds, and reports whose difference is uniform."""
    one, other = played(), played()

    for name in NAMES:
        assert one.clients[name]._seed != other.clients[name]._seed
        assert one.server._keys[name].share_key != other.server._keys[name].share_key
        assert one.server._keys[name].mask_key != other.server._keys[name].mask_key
        assert uniform(report(one, name) - report(other, name))
