"""What every link promises: `Link` in tff_pipeline/runtime/network/link.py, sentence by sentence, on each implementation."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import pytest
from builders import environment
from builders.consortium import free_port, provision
from builders.link_services import LARGE, PRIVATE, PUBLIC, TEXT, Probe

from tff_pipeline.runtime.network.link import FAILED, Answer, Link, Lost, Outcome, Refusal
from tff_pipeline.runtime.network.loopback import Kill, LoopbackLink
from tff_pipeline.runtime.network.site import read_coordinator

SILOS = ("bank", "insurer", "shop")


class Consortium(Protocol):
    """Three silos behind a link, and what may happen to them."""

    link: Link

    def kill(self, silo: str) -> None: ...

    def restart(self, silo: str) -> None: ...

    def hang(self, silo: str) -> None: ...

    def resume(self, silo: str) -> None: ...

    def log(self, silo: str) -> str: ...


class LoopbackConsortium:
    def __init__(self) -> None:
        self._logs = ""
        dies = (Kill("shop", "die", 5),)
        makers = {name: lambda name=name: Probe(name) for name in SILOS}
        self.link = LoopbackLink(makers, kills=dies, report=self._report)
        self.kill, self.restart = self.link.kill, self.link.restart

    def _report(self, event: str, **fields: object) -> None:
        self._logs += f"{event} {fields}\n"

    def hang(self, silo: str) -> None:
        self.link.slow(silo)

    def resume(self, silo: str) -> None:
        self.link.slow(silo, False)

    def log(self, silo: str) -> str:
        return self._logs


class FlareConsortium:
    """Each silo is a process; the coordinator is this one. All connections are mutual TLS on this machine."""

    def __init__(self, folder: Path) -> None:
        from tff_pipeline.runtime.network.flare import FlareLink

        self._folder, port = folder, free_port()
        provision(folder, SILOS, port)
        site = read_coordinator(folder / "coordinator")
        self.events: list[tuple[str, dict[str, object]]] = []
        report = lambda event, **fields: self.events.append((event, fields))  # noqa: E731
        self.link = FlareLink(port, site.credentials, site.roster.admits, report=report, loopback_only=True)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        for silo in SILOS:
            self.restart(silo)

    def kill(self, silo: str) -> None:
        self.processes[silo].kill()

    def restart(self, silo: str) -> None:
        if silo in self.processes:
            self._end(silo)
        command = [
            sys.executable,
            "-m",
            "builders.link_services",
            str(self._folder / "silos" / silo),
            str(self._log(silo)),
        ]
        self.processes[silo] = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment())

    def hang(self, silo: str) -> None:
        self.processes[silo].send_signal(signal.SIGSTOP)

    def resume(self, silo: str) -> None:
        self.processes[silo].send_signal(signal.SIGCONT)

    def log(self, silo: str) -> str:
        return self._log(silo).read_text(encoding="utf-8")

    def close(self) -> None:
        self.link.close()
        for silo in SILOS:
            self._end(silo)

    def _log(self, silo: str) -> Path:
        return self._folder / f"{silo}.log"

    def _end(self, silo: str) -> None:
        process = self.processes[silo]
        process.send_signal(signal.SIGCONT)
        process.stdin.close()  # which ends it
        process.wait(timeout=30)


@pytest.fixture(scope="module", params=["loopback", "flare"])
def consortium(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    if request.param == "loopback":
        yield LoopbackConsortium()
        return
    consortium = FlareConsortium(tmp_path_factory.mktemp("consortium"))
    try:
        yield consortium
    finally:
        consortium.close()


@pytest.fixture(autouse=True)
def _everybody_is_there(consortium: Consortium) -> None:
    wait_for(consortium, set(SILOS))


def wait_for(consortium: Consortium, silos: set[str], timeout_s: float = 30) -> None:
    end = time.monotonic() + timeout_s
    while consortium.link.silos() != silos:
        assert time.monotonic() < end, f"{consortium.link.silos()} are there, not {silos}"


def ask(
    consortium: Consortium, stage: str, request: bytes = b"", *, deadline_s: float = 20, silos=SILOS, round_number=5
) -> dict[str, Outcome]:
    pairs = list(consortium.link.ask(stage, round_number, dict.fromkeys(silos, request), deadline_s))
    outcomes = dict(pairs)
    assert len(pairs) == len(outcomes) == len(silos), "each silo once"
    return outcomes


def contents(outcomes: Mapping[str, Outcome]) -> dict[str, bytes]:
    return {name: bytes(outcome.content) for name, outcome in outcomes.items() if isinstance(outcome, Answer)}


def test_every_silo_answers_what_it_was_asked(consortium):
    requests = {"bank": b"money", "insurer": bytes(range(256)), "shop": b""}

    outcomes = dict(consortium.link.ask("echo", 3, requests, 20))

    assert contents(outcomes) == {
        "bank": b"bank echo 3 money",
        "insurer": b"insurer echo 3 " + bytes(range(256)),
        "shop": b"shop echo 3 ",
    }


def test_only_the_silos_that_are_asked_answer(consortium):
    assert contents(ask(consortium, "echo", silos=("shop",))) == {"shop": b"shop echo 5 "}
    assert dict(consortium.link.ask("echo", 5, {}, 20)) == {}


def test_a_refusal_comes_with_its_public_reason_and_without_the_private_one(consortium):
    assert ask(consortium, "refuse") == dict.fromkeys(SILOS, Refusal(PUBLIC))
    assert PRIVATE in consortium.log("bank")


def test_what_a_silo_raises_is_a_refusal_without_its_text(consortium):
    """Not even the silo's own log has the text: it may be a customer's. It has the kind, and where."""
    assert ask(consortium, "fail") == dict.fromkeys(SILOS, Refusal(FAILED))
    assert "ValueError" in consortium.log("bank")
    assert "link_services.py:" in consortium.log("bank")
    assert TEXT not in consortium.log("bank")


def test_large_messages_arrive_whole_in_both_directions(consortium):
    assert contents(ask(consortium, "length", bytes(LARGE) + b"end")) == dict.fromkeys(SILOS, b"40000003 b'end'")

    for _, outcome in consortium.link.ask("large", 7, dict.fromkeys(SILOS, b""), 30):
        assert isinstance(outcome, Answer)
        assert outcome.content == b"\0\0\0\7" * (LARGE // 4)


def test_who_stops_listening_can_ask_again(consortium):
    """Answers that nobody took are not given to the next question."""
    answers = iter(consortium.link.ask("large", 1, dict.fromkeys(SILOS, b""), 20))
    next(answers)
    del answers

    assert contents(ask(consortium, "echo", round_number=2)) == {name: f"{name} echo 2 ".encode() for name in SILOS}


def test_a_silo_that_dies_at_work_is_lost_at_once_and_the_others_are_not(consortium):
    began = time.monotonic()
    outcomes = dict(consortium.link.ask("die", 5, {"shop": b""}, 20)) | ask(consortium, "echo", silos=SILOS[:2])

    assert outcomes["shop"] == Lost("closed")
    assert set(contents(outcomes)) == {"bank", "insurer"}
    assert time.monotonic() - began < 3  # far from the deadline, on a machine that is busy
    assert consortium.link.silos() == {"bank", "insurer"}
    consortium.restart("shop")


def test_a_silo_that_was_killed_is_lost_until_it_returns(consortium):
    consortium.kill("bank")
    began = time.monotonic()
    outcomes = ask(consortium, "echo")
    assert isinstance(outcomes["bank"], Lost)
    assert set(contents(outcomes)) == {"insurer", "shop"}
    assert time.monotonic() - began < 3

    consortium.restart("bank")
    wait_for(consortium, set(SILOS))
    assert set(contents(ask(consortium, "echo"))) == set(SILOS)


def test_a_silo_that_hangs_is_late_at_the_deadline_and_is_asked_again_later(consortium):
    consortium.hang("insurer")
    outcomes = ask(consortium, "echo", deadline_s=1)
    assert outcomes["insurer"] == Lost("late")
    assert set(contents(outcomes)) == {"bank", "shop"}
    assert consortium.link.silos() == {"bank", "shop"}

    consortium.resume("insurer")
    wait_for(consortium, set(SILOS))
    assert contents(ask(consortium, "echo", b"again"))["insurer"] == b"insurer echo 5 again"
