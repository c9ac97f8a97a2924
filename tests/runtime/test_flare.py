"""FLARE's network as this project uses it: who is let in, what is dropped, and that nothing outlives its end.

What every link promises is in tests/contracts/test_links.py.
"""

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import environment
from builders.consortium import free_port, provision
from nvflare.fuel.f3.cellnet.defs import Encoding, MessageHeaderKey, MessagePropKey, MessageType
from nvflare.fuel.f3.endpoint import Endpoint
from nvflare.fuel.f3.message import Message

from tff_pipeline.runtime.network import flare
from tff_pipeline.runtime.network.cell import Gate
from tff_pipeline.runtime.network.flare import FlareLink
from tff_pipeline.runtime.network.link import Answer, Lost, Refusal
from tff_pipeline.runtime.network.site import read_coordinator


class Parties:
    """A coordinator that can be stopped and started, and silos that are processes."""

    def __init__(self, folder: Path):
        self.folder, self.port = folder, free_port()
        provision(folder, ("bank", "shop"), self.port)
        self.site = read_coordinator(folder / "coordinator")
        self.revoked: set[str] = set()
        self.events: list[tuple[str, dict[str, object]]] = []
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def coordinate(self) -> FlareLink:
        return FlareLink(
            self.port,
            self.site.credentials,
            lambda name: self.site.roster.admits(name) and name not in self.revoked,
            report=lambda event, **fields: self.events.append((event, fields)),
            loopback_only=True,
        )

    def start(self, silo: str, *claimed: str) -> None:
        command = [
            sys.executable,
            "-m",
            "builders.link_services",
            self.folder / "silos" / silo,
            self.log(silo),
            *claimed,
        ]
        self.processes[silo] = subprocess.Popen([*map(str, command)], stdin=subprocess.PIPE, env=environment())

    def log(self, silo: str) -> Path:
        return self.folder / f"{silo}.log"

    def end(self) -> list[int]:
        for process in self.processes.values():
            process.stdin.close()
        return [process.wait(timeout=30) for process in self.processes.values()]


@pytest.fixture(scope="module")
def parties(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parties]:
    parties = Parties(tmp_path_factory.mktemp("parties"))
    parties.start("bank")
    parties.start("shop", "bank")
    try:
        yield parties
    finally:
        assert parties.end() == [0, 0]


def wait_for(link: FlareLink, silos: set[str]) -> None:
    end = time.monotonic() + 40
    while link.silos() != silos:
        assert time.monotonic() < end, link.silos()


def echo(link: FlareLink, silo: str):
    return dict(link.ask("echo", 1, {silo: b""}, 10))[silo]


def test_who_is_let_in(parties, monkeypatch, caplog):
    """One story, since every process of it takes seconds to start."""
    caplog.set_level(logging.ERROR, "nvflare")
    with parties.coordinate() as link:
        wait_for(link, {"bank"})
        assert echo(link, "bank") == Answer(b"bank echo 1 ")
        # the shop claims the bank's name: with its own certificate it is nobody
        assert echo(link, "shop") == Lost("not connected")
        end = time.monotonic() + 40
        while "authenticated as 'shop' but claimed endpoint 'bank'" not in caplog.text:
            assert time.monotonic() < end
            time.sleep(0.1)
        assert echo(link, "bank") == Answer(b"bank echo 1 ")

        parties.revoked.add("bank")
        assert link.silos() == set()
        assert echo(link, "bank") == Lost("not connected")
        parties.revoked.clear()
        assert echo(link, "bank") == Answer(b"bank echo 1 ")

        monkeypatch.setattr(flare, "LINK_VERSION", 99)
        assert echo(link, "bank") == Refusal(
            "the coordinator speaks version 99 of the link, this silo version 1; expected the same. Upgrade the older one."
        )
        assert link.silos() == set()
        assert ("another version", {"silo": "bank", "theirs": 1, "ours": 99}) in parties.events
        monkeypatch.undo()

    # the coordinator is gone, and is there again at the same port: the silo returns by itself
    with parties.coordinate() as link:
        wait_for(link, {"bank"})
        assert echo(link, "bank") == Answer(b"bank echo 1 ")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ask ")]


def test_a_process_that_never_connects_ends_when_it_is_told(parties):
    """A silo dials for as long as it runs, and no longer."""
    parties.start("shop")  # nobody listens
    time.sleep(1)
    parties.processes["shop"].stdin.close()
    assert parties.processes["shop"].wait(timeout=30) == 0


def message(payload: bytes = b"content", **changes: object) -> Message:
    """A part of a request from the coordinator to the bank."""
    headers: dict[str, object] = {
        MessageHeaderKey.ORIGIN: "server",
        MessageHeaderKey.DESTINATION: "bank",
        MessageHeaderKey.CHANNEL: "tff_pipeline",
        MessageHeaderKey.TOPIC: "part",
        MessageHeaderKey.MSG_TYPE: MessageType.REQ,
        MessageHeaderKey.PAYLOAD_ENCODING: Encoding.BYTES,
    }
    result = Message({**headers, **changes}, payload)
    result.set_prop(MessagePropKey.ENDPOINT, Endpoint("server"))
    return result


def gate(admitted: str, events: list[dict[str, object]]) -> Gate:
    return Gate("bank", lambda name: name == admitted, lambda event, **fields: events.append(fields))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({MessageHeaderKey.DESTINATION: "shop"}, "it is for another party"),
        ({MessageHeaderKey.ORIGIN: "shop"}, "its origin is not the party that sent it"),
        ({MessageHeaderKey.PAYLOAD_ENCODING: Encoding.FOBS}, "it holds objects, not bytes"),
        ({MessageHeaderKey.SECURE: True}, "it holds objects, not bytes"),
        ({MessageHeaderKey.CHANNEL: "admin"}, "it is on another channel"),
        ({MessageHeaderKey.CHANNEL: "sm__STREAM"}, "it is on another channel"),
        ({MessageHeaderKey.CHANNEL: "cellnet.channel", MessageHeaderKey.TOPIC: "bulk"}, "it is on another channel"),
        ({MessageHeaderKey.MSG_TYPE: MessageType.REPLY}, "it is on another channel"),
        ({"payload": bytes(2**20 + 1)}, "it is larger than a part"),
    ],
)
def test_what_the_gate_drops(changes, why):
    """FLARE would forward the first for others, and decode objects in others before it asks whether anybody wants them."""
    events: list[dict[str, object]] = []

    assert gate("server", events).refuse(message()) is None
    assert gate("server", events).refuse(message(**changes)) is not None
    assert events == [{"sender": "server", "why": why}]


def test_the_gate_drops_what_comes_from_others_and_the_content_of_a_goodbye():
    goodbye = {MessageHeaderKey.CHANNEL: "cellnet.channel", MessageHeaderKey.TOPIC: "bye"}
    said = message(**goodbye)

    assert gate("nobody", []).refuse(message()) is not None
    assert gate("nobody", []).refuse(message(**goodbye)) is not None
    assert gate("server", []).refuse(said) is None
    assert said.payload is None
