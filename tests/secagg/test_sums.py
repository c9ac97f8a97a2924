"""What the protocol gives: the sum over the survivors, in each ring, whoever drops out and whenever; or nothing."""

import itertools
import random
import tracemalloc

import numpy as np
import pytest
from builders.secagg import NAMES, Attempt, plain_sum, small_values

from tff_pipeline.errors import PrivacyError, ProtocolError
from tff_pipeline.secagg.terms import STAGES


def test_the_sum_of_all_silos():
    """1 + 10 + 100 + 1000 + 10000, and 5 * (2**16 - 1) = -5 modulo 2**16."""
    sums = Attempt().play()

    assert sums.survivors == NAMES
    np.testing.assert_array_equal(sums.values[0], np.full(3, 11111, np.uint32))
    assert sums.values[1].dtype == np.uint16
    assert sums.values[1].shape == ()
    assert int(sums.values[1]) == 2**16 - 5


@pytest.mark.parametrize(
    ("answering", "survivors"),
    [
        ({"advertise": NAMES[1:]}, NAMES[1:]),
        ({"share": NAMES[:4]}, NAMES[:4]),
        ({"mask": ("bank", "insurer", "telco")}, ("bank", "insurer", "telco")),
        ({"consistency": NAMES[:3]}, NAMES),
        ({"unmask": NAMES[2:]}, NAMES),
        (
            {"advertise": NAMES[:4], "mask": NAMES[:3], "consistency": NAMES[2::-1], "unmask": NAMES[:3]},
            NAMES[:3],
        ),
    ],
)
def test_who_drops_out_before_the_report_is_not_in_the_sum_and_who_drops_out_after_is(answering, survivors):
    attempt = Attempt()

    sums = attempt.play(**answering)

    assert sums.survivors == survivors
    for value, expected in zip(sums.values, plain_sum(attempt.values, survivors), strict=True):
        np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize("stage", STAGES)
def test_with_fewer_than_the_threshold_there_is_nothing(stage):
    attempt = Attempt().until(stage)

    with pytest.raises(
        ProtocolError,
        match=rf"round 7, attempt 0: 2 of 5 silos answered stage '{stage}'; expected at least the threshold, 3\. .*without a sum",
    ):
        attempt.stage(NAMES[:2])
    with pytest.raises(ProtocolError, match=r"stage '\w+' is not over; expected all five before there is a sum"):
        attempt.server.result()


def random_case(seed: int) -> tuple[Attempt, dict[str, list[str]]]:
    """A roster of 2 to 6 silos, a threshold above half, vectors in all rings, and who answers each stage."""
    choose, numbers = random.Random(seed), np.random.default_rng(seed)
    names = (*NAMES, "union")[: choose.randint(2, 6)]
    shapes = [choose.choice([(), (1,), (2, 3), (0,), (5,)]) for _ in range(3)]
    values = {
        name: [
            numbers.integers(0, 2 ** (8 * np.dtype(dtype).itemsize), shape, np.uint64, endpoint=False).astype(dtype)
            if dtype != np.uint64
            else numbers.integers(0, 2**64 - 1, shape, np.uint64, endpoint=True)
            for shape, dtype in zip(shapes, (np.uint16, np.uint32, np.uint64), strict=True)
        ]
        for name in names
    }
    attempt = Attempt(names, threshold=choose.randint(len(names) // 2 + 1, len(names)), values=values)
    answering, left = {}, list(names)
    for stage in STAGES:
        left = [name for name in left if choose.random() > 0.08]
        choose.shuffle(left)
        answering[stage] = list(left)
    return attempt, answering


def test_whoever_drops_out_the_sum_is_that_of_the_survivors_or_there_is_none():
    """200 seeded cases; in some the fifth part ends without a sum, by the threshold and by nothing else."""
    ended = 0
    for seed in range(200):
        attempt, answering = random_case(seed)
        enough = all(len(answering[stage]) >= attempt.terms.threshold for stage in STAGES)
        if not enough:
            ended += 1
            with pytest.raises(ProtocolError, match="expected at least the threshold"):
                attempt.play(**answering)
            continue
        sums = attempt.play(**answering)
        assert sums.survivors == tuple(sorted(answering["mask"])), seed
        for value, expected in zip(sums.values, plain_sum(attempt.values, sums.survivors), strict=True):
            assert value.dtype == expected.dtype
            np.testing.assert_array_equal(value, expected, err_msg=str(seed))
    assert 20 < ended < 180


@pytest.mark.parametrize("quorum", itertools.combinations(NAMES[:4], 3))
def test_every_quorum_of_the_last_stage_gives_the_same_sum(quorum):
    """Any t shares give each secret: those of the survivors' seeds, and of the key of the silo that dropped out."""
    sums = Attempt().play(mask=NAMES[:4], unmask=quorum)

    np.testing.assert_array_equal(sums.values[0], np.full(3, 1111, np.uint32))


def test_vectors_longer_than_a_piece_and_in_any_order_of_memory():
    """Masks are expanded in pieces of 256 KiB; a transposed view is summed by position."""
    numbers = np.random.default_rng(0)
    values = {
        name: [
            numbers.integers(0, 2**32, (300, 701), np.uint32).T,
            numbers.integers(0, 2**16, 131_073, np.uint16),
            numbers.integers(0, 2**63, 3, np.uint64),
        ]
        for name in NAMES
    }
    given = {name: [value.copy() for value in own] for name, own in values.items()}

    sums = Attempt(values=values).play(mask=NAMES[1:])

    for index, value in enumerate(sums.values):
        expected = sum((values[name][index] for name in NAMES[2:]), start=values[NAMES[1]][index].copy())
        np.testing.assert_array_equal(value, expected)
    for name in NAMES:  # the caller's arrays are left alone
        for own, copy in zip(values[name], given[name], strict=True):
            np.testing.assert_array_equal(own, copy)


def test_noise_shares_are_added_before_the_masks():
    """Five times -2 and 3 on slot 0; slot 1 leaves without noise."""
    noise = {0: np.array([-2, 3, 0], np.int64)}

    sums = Attempt(noised=[0], noise=noise).play()

    np.testing.assert_array_equal(sums.values[0], [11111 - 10, 11111 + 15, 11111])
    assert int(sums.values[1]) == 2**16 - 5


@pytest.mark.parametrize(
    "noise",
    [
        {},
        {1: np.zeros((), np.int64)},
        {0: np.zeros(2, np.int64)},
        {0: np.zeros(3, np.int64), 1: np.zeros((), np.int64)},
    ],
)
def test_a_slot_that_needs_noise_is_not_masked_without(noise):
    attempt = Attempt(noised=[0], noise=noise).until("mask")

    with pytest.raises(
        PrivacyError, match=r"silo bank: round 7, attempt 0 came with noise for .* must not leave without"
    ):
        attempt.ask("bank", "mask")
    with pytest.raises(ProtocolError, match="after this silo had refused another"):
        attempt.ask("bank", "mask")


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.uint8])
def test_only_the_rings_of_the_protocol_are_masked(dtype):
    attempt = Attempt().until("mask")
    attempt.values = {name: [np.zeros(3, dtype), np.zeros((), np.uint16)] for name in NAMES}

    with pytest.raises(PrivacyError, match=rf"{np.dtype(dtype).name}; expected u.*Nothing was sent"):
        attempt.ask("bank", "mask")


def test_two_silos_make_a_round():
    """The smallest roster: both have to stay."""
    values = small_values(NAMES[:2])

    sums = Attempt(NAMES[:2], threshold=2, values=values).play()

    np.testing.assert_array_equal(sums.values[0], np.full(3, 11, np.uint32))


def test_the_server_holds_one_vector_beside_the_report_it_takes():
    """Reports of 4 MB, one silo dropped out: neither taking a report nor removing masks allocates a tenth of one."""
    values = {name: [np.ones(1_000_000, np.uint32)] for name in NAMES}
    attempt = Attempt(values=values).until("mask")
    reports = {name: attempt.ask(name, "mask") for name in NAMES[1:]}
    peaks = []

    tracemalloc.start()
    for name, report in reports.items():
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        attempt.server.take(name, report)
        peaks.append(tracemalloc.get_traced_memory()[1] - before)
    attempt.requests = attempt.server.finish()
    attempt.until("unmask")
    for name in attempt.requests:
        attempt.server.take(name, attempt.ask(name, "unmask"))
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    attempt.server.finish()
    peaks.append(tracemalloc.get_traced_memory()[1] - before)
    tracemalloc.stop()

    assert max(peaks) < 400_000
    assert (attempt.server.result().values[0] == 4).all()


def test_a_silo_never_holds_a_mask_as_a_whole():
    """It holds its masked copy, and the message that it is put into."""
    attempt = Attempt(values={name: [np.ones(1_000_000, np.uint32)] for name in NAMES}).until("mask")

    tracemalloc.start()
    masked = attempt.ask("bank", "mask")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert len(masked) < 4_000_500
    assert peak < 2.9 * 4_000_000
