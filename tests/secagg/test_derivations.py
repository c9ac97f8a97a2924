"""Known answers: every derivation of the protocol against code of this file that shares none with it.

HKDF is written out with the standard library's hmac (RFC 5869, sections 2.2 and 2.3), canonical bytes by hand; the keystream is
RFC 8439's.
"""

import hashlib
import hmac
import itertools

import msgspec
import numpy as np
import pytest
from builders.secagg import IDENTITIES, NAMES, Attempt, roster
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from scipy import stats

from tff_pipeline.secagg import identity, keys, messages, shamir
from tff_pipeline.secagg.canonical import canonical
from tff_pipeline.secagg.keys import Peer
from tff_pipeline.secagg.masks import add_mask, keystream
from tff_pipeline.secagg.terms import Terms

TERMS = Terms("consortium/run-1", 7, 2, 3, roster())
ONE, OTHER = (X25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2))
BANK, SHOP = (Peer(name, keys.public_bytes(key)) for name, key in (("bank", ONE), ("shop", OTHER)))
# RFC 8439, appendix A.1, test vectors 1 and 2: key and nonce of zeros, blocks 0 and 1.
ZERO_STREAM = bytes.fromhex(
    "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
    "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f"
)


def listed(*parts: str | int | bytes) -> bytes:
    """Each part as its kind, its length in 8 bytes and its content."""
    kinds = {str: b"s", int: b"i", bytes: b"b"}
    contents = [part if isinstance(part, bytes) else str(part).encode() for part in parts]
    return b"".join(
        kinds[type(part)] + len(content).to_bytes(8, "big") + content
        for part, content in zip(parts, contents, strict=True)
    )


def hkdf(secret: bytes, info: bytes) -> bytes:
    """32 bytes: one block."""
    extracted = hmac.digest(bytes(32), secret, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


def terms_digest() -> bytes:
    members = [part for name in sorted(NAMES) for part in (name, roster()[name])]
    return hashlib.sha256(listed("tff-pipeline secagg terms", 1, "consortium/run-1", 7, 2, 3, *members)).digest()


def shared() -> bytes:
    return ONE.exchange(X25519PublicKey.from_public_bytes(SHOP.public_key))


def test_canonical_bytes():
    assert canonical("a", 12, b"\xff") == (
        b"s\0\0\0\0\0\0\0\x01a" + b"i\0\0\0\0\0\0\0\x0212" + b"b\0\0\0\0\0\0\0\x01\xff"
    )


def test_different_lists_have_different_bytes():
    """Where a part ends and what it is cannot be moved."""
    lists = [("a", "bc"), ("ab", "c"), ("abc",), ("a", b"bc"), ("a", "b", "c"), ("a", "bc", ""), ("1", 2), ("1", "2")]

    assert len({canonical(*parts) for parts in lists}) == len(lists)


def test_the_digest_of_the_terms():
    assert TERMS.digest == terms_digest()


def test_the_key_of_a_pairs_mask_is_the_same_from_both_sides():
    expected = hkdf(
        shared(),
        listed("tff-pipeline secagg pair mask", terms_digest(), "bank", "shop", BANK.public_key, SHOP.public_key),
    )

    assert keys.pair_mask_key(TERMS, ONE, BANK, SHOP) == expected
    assert keys.pair_mask_key(TERMS, OTHER, SHOP, BANK) == expected


def test_the_key_of_a_self_mask():
    assert keys.self_mask_key(TERMS, "bank", b"b" * 32) == hkdf(
        b"b" * 32, listed("tff-pipeline secagg self mask", terms_digest(), "bank")
    )


def test_the_commitment_to_a_seed():
    assert keys.commitment(TERMS, "bank", b"b" * 32) == hkdf(
        b"b" * 32, listed("tff-pipeline secagg seed commitment", terms_digest(), "bank")
    )


def test_a_box_is_aes_gcm_under_the_key_of_its_direction():
    shares = bytes(range(66))
    box = keys.seal(TERMS, ONE, BANK, SHOP, shares)
    key = hkdf(
        shared(), listed("tff-pipeline secagg shares", terms_digest(), "bank", "shop", BANK.public_key, SHOP.public_key)
    )
    bound = listed("tff-pipeline secagg shares", terms_digest(), 7, 2, "bank", "shop")

    assert len(box) == 12 + 66 + 16
    assert AESGCM(key).decrypt(box[:12], box[12:], bound) == shares
    assert keys.unseal(TERMS, OTHER, BANK, SHOP, box) == (shares[:33], shares[33:])
    assert keys.seal(TERMS, ONE, BANK, SHOP, shares)[:12] != box[:12]


def test_what_a_silo_signs_about_its_keys():
    expected = listed("tff-pipeline secagg advertisement", terms_digest(), "bank", b"c" * 32, b"s" * 32)

    assert keys.advertisement(TERMS, "bank", b"c" * 32, b"s" * 32) == expected


def test_what_a_silo_signs_about_the_survivors():
    """Not only U3, as in the paper: also the keys of U1, and U2."""
    advertised = {
        name: messages.Keys(name, name[:1].encode() * 32, name[:1].upper().encode() * 32, b"") for name in NAMES[2::-1]
    }
    parts = [part for name in NAMES[:3] for part in (name, name[:1].encode() * 32, name[:1].upper().encode() * 32)]
    expected = listed(
        "tff-pipeline secagg agreement",
        terms_digest(),
        "bank",
        hashlib.sha256(listed("tff-pipeline secagg advertised", *parts)).digest(),
        hashlib.sha256(listed("tff-pipeline secagg dealt", "bank", "clinic")).digest(),
        hashlib.sha256(listed("tff-pipeline secagg survivors", "bank")).digest(),
    )

    assert keys.agreement(TERMS, "bank", advertised, ["clinic", "bank"], ["bank"]) == expected


def test_no_two_derivations_give_the_same_key():
    """Purposes, directions, silos and everything in the terms: each changes the key."""
    others = [
        Terms("other", 7, 2, 3, roster()),
        Terms("consortium/run-1", 8, 2, 3, roster()),
        Terms("consortium/run-1", 7, 3, 3, roster()),
        Terms("consortium/run-1", 7, 2, 4, roster()),
        Terms("consortium/run-1", 7, 2, 3, roster(NAMES[:4])),
        Terms("consortium/run-1", 7, 2, 3, roster() | {"shop": roster(["union"])["union"]}),
    ]
    derived = [
        key
        for terms in (TERMS, *others)
        for key in (
            keys.pair_mask_key(terms, ONE, BANK, SHOP),
            keys.pair_mask_key(terms, ONE, Peer("clinic", BANK.public_key), SHOP),
            keys.self_mask_key(terms, "bank", shared()),
            keys.self_mask_key(terms, "shop", shared()),
            keys.commitment(terms, "bank", shared()),
            keys._share_key(terms, ONE, SHOP.public_key, BANK, SHOP),
            keys._share_key(terms, ONE, SHOP.public_key, SHOP, BANK),
        )
    ]

    assert len(set(derived)) == len(derived) == 49


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "uint64"])
def test_a_mask_is_the_keystream_of_rfc_8439_in_little_endian(dtype):
    """Over two arrays: the second goes on where the first ends."""
    size = np.dtype(dtype).itemsize
    first, second = np.full(40 // size, 3, dtype), np.full((2, 40 // size), 5, dtype)
    expected = [int.from_bytes(ZERO_STREAM[start : start + size], "little") for start in range(0, 120, size)]

    add_mask([first, second], keystream(bytes(32)))

    words = [*first.tolist(), *second.ravel().tolist()]
    added = [3] * first.size + [5] * second.size
    assert words == [(word + plus) % 2 ** (8 * size) for word, plus in zip(expected, added, strict=True)]
    add_mask([first, second], keystream(bytes(32)), subtract=True)
    assert (set(first.tolist()), set(second.ravel().tolist())) == ({3}, {5})


def test_a_silos_report_is_its_sum_and_every_mask_once():
    """y = x + PRG(b) + PRG(with later names) - PRG(with earlier names), section 4.0.2's equation, from the silos' private keys."""
    attempt = Attempt().until("consistency", share=NAMES[:4])
    name, client = "clinic", attempt.clients["clinic"]
    words = np.concatenate([np.full(3, 10, np.uint32).view(np.uint8), np.array([2**16 - 1], np.uint16).view(np.uint8)])
    masks = [(1, keys.self_mask_key(attempt.terms, name, client._seed))]
    for peer in ("bank", "insurer", "shop"):
        own, other = (Peer(side, keys.public_bytes(attempt.clients[side]._mask_private)) for side in (name, peer))
        key = keys.pair_mask_key(attempt.terms, attempt.clients[peer]._mask_private, other, own)
        masks.append((1 if name < peer else -1, key))
    report = msgspec.msgpack.decode(attempt.answers["mask"][name], type=messages.Masked)

    for slot, dtype, start, value in zip(report.slots, ("<u4", "<u2"), (0, 12), (10, 2**16 - 1), strict=True):
        expected = np.full(len(slot.words) // np.dtype(dtype).itemsize, value, dtype)
        for sign, key in masks:
            stream = keystream(key).update(bytes(14))
            expected += np.array(sign).astype(dtype) * np.frombuffer(stream[start : start + len(slot.words)], dtype)
        np.testing.assert_array_equal(np.frombuffer(slot.words, dtype), expected)
    assert words.nbytes == sum(len(slot.words) for slot in report.slots)


def test_the_field_is_that_of_the_smallest_prime_above_two_to_the_256():
    """Miller-Rabin with 40 fixed bases for the prime; every smaller number above 2**256 fails Fermat's test for 3 (2**256 + 1 passes that for 2)."""
    odd, twos = shamir.PRIME - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in range(2, 42):
        power = pow(base, odd, shamir.PRIME)
        assert power in (1, shamir.PRIME - 1) or any(
            pow(power, 2**step, shamir.PRIME) == shamir.PRIME - 1 for step in range(1, twos)
        )
    assert all(pow(3, number - 1, number) != 1 for number in range(2**256 + 1, shamir.PRIME))


def at_zero(points: dict[int, int]) -> int:
    """Lagrange's formula at 0 (Shamir 1979), by hand."""
    total = 0
    for x, y in points.items():
        for other in points:
            if other != x:
                y = y * -other * pow(x - other, -1, shamir.PRIME) % shamir.PRIME
        total += y
    return total % shamir.PRIME


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32, bytes(range(32))])
def test_any_t_shares_give_the_secret(secret):
    dealt = shamir.deal(secret, shares=5, threshold=3)

    assert sorted(dealt) == [1, 2, 3, 4, 5]
    for chosen in itertools.combinations(dealt, 3):
        shares = {index: dealt[index] for index in chosen}
        assert shamir.combine(shares, 3) == secret
        assert at_zero({index: int.from_bytes(share, "big") for index, share in shares.items()}) == int.from_bytes(
            secret, "big"
        )
    assert shamir.combine({index: dealt[index] for index in (1, 2)}, 3) is None
    assert shamir.combine({index: dealt[index] for index in (1, 2)}, 2) != secret


def test_the_shares_of_any_t_minus_1_are_uniform_whatever_the_secret():
    """Shares 1 and 2 of three needed, and their difference, in 16 classes, for the smallest and the largest secret; keys are
    random, so it fails once in 10**5 runs by chance (six tests at 1.6e-6)."""
    for secret in (bytes(32), b"\xff" * 32):
        dealt = [shamir.deal(secret, shares=5, threshold=3) for _ in range(800)]
        first, second = ([int.from_bytes(shares[index], "big") for shares in dealt] for index in (1, 2))
        differences = [(one - other) % shamir.PRIME for one, other in zip(first, second, strict=True)]
        for numbers in (first, second, differences):
            counts = np.bincount([number * 16 // shamir.PRIME for number in numbers], minlength=16)
            assert stats.chisquare(counts).pvalue > 1.6e-6


def test_what_is_no_share_is_none():
    assert shamir.valid((shamir.PRIME - 1).to_bytes(33, "big"))
    assert not shamir.valid(shamir.PRIME.to_bytes(33, "big"))
    assert not shamir.valid(bytes(32))
    beyond = (2**256).to_bytes(33, "big")  # a constant polynomial: of the field, and of no 32 bytes
    assert shamir.combine(dict.fromkeys((1, 2, 3), beyond), 3) is None


def test_a_signature_is_ed25519_of_the_content():
    signature = identity.sign(IDENTITIES["bank"], b"content")

    IDENTITIES["bank"].public_key().verify(signature, b"content")
    assert identity.verify(roster()["bank"], b"content", signature)
    assert not identity.verify(roster()["shop"], b"content", signature)
    assert not identity.verify(roster()["bank"], b"contents", signature)
    assert not identity.verify(bytes(31), b"content", signature)
