"""The loopback link's faults: each happens, is what it says, and follows from the seed."""

import pytest
from builders.link_services import Probe

from tff_pipeline.runtime.network.link import FAILED, Answer, Lost, Refusal, public, respond
from tff_pipeline.runtime.network.loopback import Faults, Kill, LoopbackLink


def probes(*names: str) -> dict[str, Probe]:
    return {name: Probe(name) for name in names}


def link(silos: dict[str, Probe], **options) -> LoopbackLink:
    return LoopbackLink({name: lambda name=name: silos[name] for name in silos}, **options)


def rounds(silos: dict[str, Probe], faults: Faults, *, seed: int = 1, count: int = 200):
    """What the coordinator sees of `count` rounds of one stage."""
    asked = link(silos, faults=faults, seed=seed)
    return [dict(asked.ask("echo", number, dict.fromkeys(silos, b"0123456789"), 1)) for number in range(count)]


def test_without_faults_everything_arrives_once():
    silos = probes("bank", "shop")

    seen = rounds(silos, Faults(), count=3)

    assert [outcome.content for outcomes in seen for outcome in outcomes.values()] == [
        f"{name} echo {number} 0123456789".encode() for number in range(3) for name in silos
    ]
    assert [number for _, number, _ in silos["bank"].asked] == [0, 1, 2]


def test_the_same_seed_gives_the_same_faults_and_another_seed_others():
    faults = Faults(lose=0.1, delay=0.1, repeat=0.1, truncate=0.1, forge=0.1, reorder=True)

    assert rounds(probes("bank", "shop"), faults) == rounds(probes("bank", "shop"), faults)
    assert rounds(probes("bank", "shop"), faults) != rounds(probes("bank", "shop"), faults, seed=2)


def test_a_message_is_lost_on_its_way_there_or_back():
    """Each way with probability one half: of 200 rounds 50 answers are expected, of which 28 to 76 has all but 2e-4."""
    silos = probes("bank")

    answers = sum(isinstance(outcomes["bank"], Answer) for outcomes in rounds(silos, Faults(lose=0.5)))

    assert 28 <= answers <= 76
    assert answers < len(silos["bank"].asked) < 200


def test_a_delayed_request_arrives_before_the_next_one():
    silos = probes("bank")

    seen = rounds(silos, Faults(delay=0.5))

    late = [number for number, outcomes in enumerate(seen) if outcomes["bank"] == Lost("late")]
    assert 50 < len(late) < 150
    order = [number for _, number, _ in silos["bank"].asked]
    assert order == sorted(order)
    assert set(late) - set(order) <= {max(late)}  # all but perhaps the last were delivered, later


def test_a_repeated_request_is_answered_twice_and_its_outcome_given_once():
    silos = probes("bank")

    seen = rounds(silos, Faults(repeat=0.5))

    assert all(isinstance(outcomes["bank"], Answer) for outcomes in seen)
    assert 250 < len(silos["bank"].asked) < 350


@pytest.mark.parametrize("faults", [Faults(truncate=0.5), Faults(forge=0.5)])
def test_truncated_and_forged_messages_differ_from_the_genuine_ones(faults):
    silos = probes("bank")

    seen = rounds(silos, faults)

    genuine = [
        outcomes["bank"].content == f"bank echo {number} 0123456789".encode() for number, outcomes in enumerate(seen)
    ]
    assert 20 < sum(genuine) < 100  # a quarter: neither direction was touched
    lengths = {len(outcomes["bank"].content) for outcomes in seen}
    if faults.truncate:
        assert min(lengths) < len("0123456789")
    else:  # one bit is changed, or it is an earlier message in either direction: none is shorter than the request
        assert min(lengths) == len("0123456789")


def test_silos_answer_in_any_order():
    orders = {tuple(outcomes) for outcomes in rounds(probes("bank", "insurer", "shop"), Faults(reorder=True))}

    assert len(orders) == 6


def test_a_silo_dies_before_or_after_its_answer_and_returns_with_nothing_in_memory():
    made = []

    def make() -> Probe:
        made.append(Probe("bank"))
        return made[-1]

    asked = LoopbackLink({"bank": make}, kills=(Kill("bank", "echo", 1), Kill("bank", "echo", 3, "after")))

    assert dict(asked.ask("echo", 1, {"bank": b""}, 1)) == {"bank": Lost("closed")}
    assert made[0].asked == []
    assert dict(asked.ask("echo", 2, {"bank": b""}, 1)) == {"bank": Lost("not connected")}
    asked.restart("bank")
    assert dict(asked.ask("echo", 3, {"bank": b""}, 1)) == {"bank": Lost("closed")}
    assert [number for _, number, _ in made[1].asked] == [3]
    assert asked.silos() == set()


def test_a_public_reason_is_one_printable_line_of_bounded_length():
    assert public("budget\nspent\x1b[31m \t now") == "budget spent [31m now"
    assert len(public("a" * 10_000)) == 400


def test_only_the_kind_and_place_of_an_unexpected_error_are_reported():
    events = []

    outcome = respond(Probe("bank"), "fail", 4, b"", lambda event, **fields: events.append((event, fields)))

    assert outcome == Refusal(FAILED)
    ((event, fields),) = events
    assert (event, fields["stage"], fields["round"], fields["kind"]) == ("failed", "fail", 4, "ValueError")
    assert "4711" not in str(fields)
