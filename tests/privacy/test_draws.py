"""What a run draws: bound to every key and to what it starts from; and what a silo remembers having reported."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from builders.plans import plan as a_plan

from tff_pipeline.errors import ArtifactError, PrivacyError
from tff_pipeline.privacy import randomness
from tff_pipeline.privacy.draws import Draws
from tff_pipeline.privacy.keys import PartyKey
from tff_pipeline.privacy.mechanisms import DistributedDiscreteGaussian, NoisedMetrics, Tree
from tff_pipeline.privacy.round import digest_of
from tff_pipeline.privacy.server_draws import ServerDraws
from tff_pipeline.privacy.silo_draws import SiloDraws

GAUSSIAN = a_plan(clients=1000, sampling_probability=0.5, expected_cohort=500.0, metrics=NoisedMetrics(stddev=10.0))
DISTRIBUTED = a_plan(
    DistributedDiscreteGaussian, clients=1000, sampling_probability=0.5, expected_cohort=500.0, silos=2
)
TREE = a_plan(Tree, clients=1000, sampling_probability=0.125, expected_cohort=125.0, rounds_per_tree=8)
STARTS = ("a" * 64, "b" * 64, "c" * 64)


def keys(folder: Path) -> dict[str, PartyKey]:
    return {name: PartyKey(folder / f"{name}.key") for name in ("server", "bank", "shop")}


def draws(folder: Path, plan=GAUSSIAN, origin: str = "origin") -> Draws:
    made = keys(folder)
    server = ServerDraws(plan, made.pop("server"))
    return Draws(server, {silo: SiloDraws(silo, plan, key) for silo, key in made.items()}, origin)


def drawn(made: Draws, starts: Sequence[str] = STARTS) -> dict[str, bytes]:
    """Everything that is drawn in a round, by name."""
    at, plan = made.round(starts), made.plan
    parts = {f"cohort of {silo}": own.cohort(at, 1000) for silo, own in made.silos.items()}
    if plan.mechanism.silos_add_noise:
        parts |= {f"share of {silo}": own.noise_share(at) for silo, own in made.silos.items()}
        parts["rotation"] = made.server.rotation(at)
    else:
        parts["noise"] = made.server.noise(at, [(3,)])[0]
        parts["metrics noise"] = np.array(made.server.metrics_noise(at))
    return {name: part.tobytes() for name, part in parts.items()}


@pytest.mark.parametrize("plan", [GAUSSIAN, DISTRIBUTED], ids=["gaussian", "distributed"])
def test_whatever_is_lost_or_changed_everything_is_drawn_anew(tmp_path, plan):
    """By everybody: no cohort and no noise of the old draw comes back. The same files draw the same again."""
    before = drawn(draws(tmp_path, plan))
    assert drawn(draws(tmp_path, plan)) == before

    changed = [
        drawn(draws(tmp_path, plan, origin="another")),
        drawn(draws(tmp_path, plan), (*STARTS[:-1], "d" * 64)),
        drawn(draws(tmp_path, plan), STARTS[:-1]),
    ]
    names = {draws(tmp_path, plan).name}
    for party in ("server", "bank", "shop"):
        (tmp_path / f"{party}.key").unlink()
        changed.append(drawn(draws(tmp_path, plan)))
        names.add(draws(tmp_path, plan).name)
    seen = [before, *changed]
    assert len(names) == 4
    for name in before:
        assert len({one[name] for one in seen}) == len(seen), name


def test_a_clients_turn_is_the_same_in_all_rounds_of_a_tree(tmp_path):
    """Whatever the rounds start from: at most one turn in a tree holds for a run that starts a round from something else too."""
    made = draws(tmp_path, TREE)
    turns = [made.silos["bank"].cohort(made.round([f"{number}"] * (number + 1)), 1000) for number in range(8)]
    other = [made.silos["bank"].cohort(made.round([f"other {number}"] * (number + 1)), 1000) for number in range(8)]
    for one, two in zip(turns, other, strict=True):
        np.testing.assert_array_equal(one, two)
    assert len(np.concatenate(turns)) == len(np.unique(np.concatenate(turns)))


def test_a_node_of_a_tree_has_noise_of_its_own_for_every_sum(tmp_path):
    """Two ways to run round 4 of a tree, from the same three rounds: what they add has no noise in common.

    The node of rounds 1 to 4 is drawn for what round 4 starts from; the nodes of rounds 3, and 1 to 2, are taken away by both.
    """
    made = draws(tmp_path, TREE)
    shapes = [(20_000,)]

    def noise(*starts):
        return made.server.noise(made.round(starts), shapes)[0]

    one, other = (noise(*STARTS, last) for last in ("d" * 64, "e" * 64))
    taken_away = sum(noise(*STARTS[: number + 1]) for number in range(3))
    nodes = [one + taken_away, other + taken_away]
    # 20,000 numbers: independent ones correlate by less than 0.04 but for one time in 10^8.
    assert abs(np.corrcoef(*nodes)[0, 1]) < 0.04
    for node in nodes:
        assert node.std() == pytest.approx(TREE.noise_stddev, rel=0.04)
    np.testing.assert_array_equal(noise(*STARTS, "d" * 64), one)


def test_secrets_are_the_operating_systems_or_follow_from_a_seed(tmp_path):
    fresh = [PartyKey(tmp_path / name).secret for name in ("one", "other")]
    assert fresh[0] != fresh[1]
    assert len(fresh[0]) == 32
    seeded = [PartyKey(tmp_path / f"seeded{n}", lambda: randomness.seeded_secret(3, "bank")).secret for n in range(2)]
    assert seeded[0] == seeded[1]
    assert (tmp_path / "one").stat().st_mode & 0o777 == 0o600


def test_a_commitment_names_a_secret_and_does_not_tell_it(tmp_path):
    key = PartyKey(tmp_path / "key")
    assert key.commitment == PartyKey(tmp_path / "key").commitment
    assert key.commitment != PartyKey(tmp_path / "other").commitment
    assert key.secret.hex() not in key.commitment


# -- what a silo remembers


SUMS = [np.arange(8, dtype=np.uint32), np.array(3, np.uint64)]


def record(key: PartyKey, name: str, sums: Sequence[np.ndarray]) -> None:
    key.record(name, sums, where="silo bank: round 1")


def test_only_the_very_same_report_may_be_repeated_however_old(tmp_path):
    path = tmp_path / "bank.key"
    for number in range(50):
        record(PartyKey(path), f"round {number}", SUMS)
    for part in range(2):
        other = [array + (index == part) for index, array in enumerate(SUMS)]
        for number in (0, 20, 49):
            with pytest.raises(PrivacyError, match=r"silo bank: round 1 is repeated, .* Nothing was sent"):
                record(PartyKey(path), f"round {number}", other)
            record(PartyKey(path), f"round {number}", SUMS)
    for other in ([SUMS[0].astype(np.uint64), SUMS[1]], [SUMS[0].reshape(2, 4), SUMS[1]], SUMS[:1]):
        with pytest.raises(PrivacyError, match="is repeated"):
            record(PartyKey(path), "round 0", other)
    assert len(path.read_text().splitlines()) == 51


def test_what_is_remembered_tells_nothing_of_the_sum_to_who_lacks_the_secret(tmp_path):
    """Two silos that report the same write different digests."""
    for name in ("bank", "shop"):
        record(PartyKey(tmp_path / name), "round", SUMS)
    one, other = ((tmp_path / name).read_text().splitlines()[1] for name in ("bank", "shop"))
    assert one != other
    assert json.loads(one)["round"] == json.loads(other)["round"]


def test_a_kill_at_any_byte_of_a_record_loses_only_a_report_that_never_left(tmp_path):
    path = tmp_path / "bank.key"
    record(PartyKey(path), "round 0", SUMS)
    before = path.read_bytes()
    record(PartyKey(path), "round 1", SUMS)
    whole = path.read_bytes()
    for cut in range(len(before), len(whole)):
        path.write_bytes(whole[:cut])
        key = PartyKey(path)
        assert key.knows("round 0")
        assert not key.knows("round 1")
        record(key, "round 1", SUMS)
        assert path.read_bytes() == whole


def test_a_report_is_not_forgotten_where_the_round_was_begun_again(tmp_path):
    path = tmp_path / "bank.key"
    record(PartyKey(path), "round", SUMS)
    with path.open("a") as file:
        file.write('{"round": "round"}\n')
    with pytest.raises(PrivacyError, match="is repeated"):
        record(PartyKey(path), "round", [SUMS[0] + 1, SUMS[1]])


def test_a_round_that_was_begun_is_known_and_may_still_be_reported_once(tmp_path):
    path = tmp_path / "bank.key"
    for _ in range(2):
        PartyKey(path).begin("round", where="silo bank: round 1")
    assert PartyKey(path).knows("round")
    record(PartyKey(path), "round", SUMS)
    PartyKey(path).begin("round", where="silo bank: round 1")
    assert len(path.read_text().splitlines()) == 3
    with pytest.raises(PrivacyError, match="is repeated"):
        record(PartyKey(path), "round", [SUMS[0] + 1, SUMS[1]])


def test_a_key_that_is_damaged_is_refused_and_one_that_was_removed_is_not_made_again_by_a_record(tmp_path):
    path = tmp_path / "bank.key"
    key = PartyKey(path)
    path.unlink()
    with pytest.raises(PrivacyError, match=r"was removed while the run was under way.* Nothing was sent"):
        record(key, "round", SUMS)
    assert not path.exists()
    for content in (b"\n", b"not a key\n", b'{"secret": "00"}\n', b'{"secret": 3}\n', b"0123456789abcdef" * 2):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match=r"is not a key as this version writes it.*tff-pipeline abandon"):
            PartyKey(path)
        assert path.read_bytes() == content


def test_a_digest_is_of_types_shapes_bytes_and_order():
    arrays = [np.arange(6, dtype=np.float32), np.array(1.0), np.array([b"ab"], object)]
    same = [arrays[0].copy(), np.array(1.0), np.array([b"ab"])]
    assert digest_of(arrays, "x") == digest_of(same, "x")
    others = [
        digest_of(arrays, "y"),
        digest_of(arrays[::-1], "x"),
        digest_of([arrays[0].reshape(2, 3), *arrays[1:]], "x"),
        digest_of([arrays[0].view(np.int32), *arrays[1:]], "x"),
        digest_of([np.nextafter(arrays[0], 9), *arrays[1:]], "x"),
        digest_of(arrays[:2], "x"),
    ]
    assert len({digest_of(arrays, "x"), *others}) == 7
