"""Masks cancel in the sum of all silos, and in nothing less."""

import numpy as np
import pytest
from scipy import stats

from tff_pipeline.errors import PrivacyError
from tff_pipeline.secagg.masking import Party, add_up, introduce


def parties(*names: str, session: str = "run") -> list[Party]:
    made = [Party(name, session) for name in names]
    introduce(made)
    return made


def values(seed: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(0, 2**63, (3, 5)).astype(np.uint64), np.array(seed, np.uint64), np.zeros(7, np.uint64)]


def test_the_sum_of_all_reports_is_the_sum_of_all_values():
    silos = parties("bank", "insurer", "shop")

    total = add_up([silo.mask(values(seed), 1) for seed, silo in enumerate(silos)])

    with np.errstate(over="ignore"):
        for place, one in enumerate(total):
            np.testing.assert_array_equal(one, values(0)[place] + values(1)[place] + values(2)[place])
            assert one.shape == values(0)[place].shape


def test_the_callers_values_are_left_alone():
    given = values(1)
    parties("a", "b")[0].mask(given, 1)
    for one, other in zip(given, values(1), strict=True):
        np.testing.assert_array_equal(one, other)


def test_all_but_one_report_look_uniform():
    """A chi-square test on the bytes of masked zeros; keys are random, so it fails once in 10**6 runs by chance."""
    silos = parties("a", "b", "c", "d")
    zeros = [np.zeros(20_000, np.uint64)]
    partial = add_up([silo.mask(zeros, 1) for silo in silos[:3]])[0]

    counts = np.bincount(partial.view(np.uint8), minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-6


def test_rounds_and_sessions_have_masks_of_their_own():
    zeros = [np.zeros(8, np.uint64)]
    one, other = parties("a", "b")
    assert not np.array_equal(one.mask(zeros, 1)[0], one.mask(zeros, 2)[0])
    np.testing.assert_array_equal(add_up([one.mask(zeros, 3), other.mask(zeros, 3)])[0], zeros[0])
    # Masks of different rounds do not cancel.
    assert add_up([one.mask(zeros, 4), other.mask(zeros, 5)])[0].any()


def test_a_second_report_for_a_round_is_refused():
    silo, _ = parties("a", "b")
    silo.mask(values(0), 7)
    with pytest.raises(PrivacyError, match="silo a: round 7 was masked before"):
        silo.mask(values(1), 7)


def test_a_party_refuses_a_list_without_its_own_key():
    silo, stranger = Party("a", "run"), Party("a", "run")
    with pytest.raises(PrivacyError, match="does not hold the key this silo sent"):
        silo.agree({"a": stranger.public_key})


def test_nothing_is_masked_before_keys_are_exchanged():
    """Without the others' keys there is no mask, and the sum would leave as it is."""
    with pytest.raises(PrivacyError, match=r"silo a: round 1 was to be masked before public keys .*Nothing was sent\."):
        Party("a", "run").mask(values(0), 1)


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_only_unsigned_integers_are_masked(dtype):
    """A mask is uniform in a ring of unsigned integers; there is none that hides a float."""
    silo, _ = parties("a", "b")
    with pytest.raises(PrivacyError, match=rf"round 1 came with sums of {np.dtype(dtype).name}; expected unsigned"):
        silo.mask([np.zeros(2, np.uint64), np.zeros(2, dtype)], 1)
    silo.mask([np.zeros(2, np.uint64)], 1)


def test_a_single_silo_has_nothing_to_hide_in():
    (alone,) = parties("a")
    np.testing.assert_array_equal(alone.mask(values(3), 1)[0], values(3)[0])


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_a_sum_in_a_smaller_ring_tells_nothing_of_a_larger_one(dtype):
    """-1 and 2 are 2**bits - 1 and 2: what is sent is below 2**bits, masks cancel, and the sum is 1, without a carry."""
    silos = parties("a", "b", "c")
    given = [[np.array([-1, 2]).astype(dtype)], [np.array([2, -1]).astype(dtype)], [np.zeros(2, dtype)]]

    sent = [silo.mask(own, 1) for silo, own in zip(silos, given, strict=True)]

    assert all(report[0].dtype == dtype for report in sent)
    np.testing.assert_array_equal(add_up(sent)[0], np.array([1, 1], dtype))
    # Masked zeros of two silos are uniform; fails once in 10**6 runs by chance.
    partial = add_up([silo.mask([np.zeros(40_000, dtype)], 2) for silo in silos[:2]])[0]
    assert stats.chisquare(np.bincount(partial.view(np.uint8), minlength=256)).pvalue > 1e-6


def test_a_sum_that_needs_noise_is_not_masked_without():
    """The party adds the noise itself, and refuses where it is missing, too much or of another shape."""
    one, other = (Party(name, "run", noised=[1]) for name in "ab")
    introduce([one, other])
    sums = [np.zeros(2, np.uint64), np.array([5, 6], np.uint32)]
    noise = np.array([-7, 2], np.int64)

    total = add_up([one.mask(sums, 1, {1: noise}), other.mask(sums, 1, {1: noise})])

    np.testing.assert_array_equal(total[1].view(np.int32), [10 - 14, 12 + 4])
    np.testing.assert_array_equal(total[0], [0, 0])
    for wrong in ({}, {0: noise}, {0: noise, 1: noise}, {1: noise[:1]}):
        with pytest.raises(PrivacyError, match=r"silo a: round 2 .* must not leave without; .*Nothing was sent"):
            one.mask(sums, 2, wrong)
    # A refusal has used up nothing.
    one.mask(sums, 2, {1: noise})
