"""A party's end of NVIDIA FLARE's network, its cell, and the gate that decides what the network may hand on. No other module
imports FLARE but `certificates`.

A cell sends messages of bytes with a head of short values. The coordinator's cell listens; a silo's dials out, again and
again if need be, and opens no port. FLARE's own server and client processes are not started. They would bring jobs, an
administrator's console with shell commands, a log streamer and an unencrypted port for job processes, and would keep a site from
using them only by its authorization file; in a process that never had them, nothing that the other end sends is code.

FLARE binds a cell's name to the common name of its certificate, by mutual TLS. What it would still do with a message, the
gate refuses before it is looked at: FLARE forwards messages between silos, decodes objects in them (FOBS) before it asks
whether anybody wants them, and takes the sender's word for where a message comes from.

What FLARE documents little (`CoreCell`, `add_incoming_filter`, `set_cell_disconnected_cb`) is used nowhere else.
"""

import logging
from collections.abc import Callable, Mapping
from typing import TypeVar

from nvflare.fuel.f3.cellnet.core_cell import CellAgent, CoreCell
from nvflare.fuel.f3.cellnet.defs import (
    CellChannel,
    CellChannelTopic,
    Encoding,
    MessageHeaderKey,
    MessagePropKey,
    MessageType,
)
from nvflare.fuel.f3.drivers.driver_params import DriverParams
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.stats_pool import StatsPoolManager

from tff_pipeline.runtime.network.link import PART_BYTES, Report, public
from tff_pipeline.runtime.network.site import Credentials

COORDINATOR = "server"  # the name that FLARE gives to the root of a network
_CHANNEL = "tff_pipeline"
_SCHEME = "grpc"
_HEADER = "tff_"
_Kind = TypeVar("_Kind", int, str)

# What is said beside a message's content.
Head = Mapping[str, object]
# Called with the sender, the head and the content.
Handler = Callable[[str, Head, bytes | memoryview], None]


class Cell:
    """One end, from `start` until `close`.

    Args:
      name: COORDINATOR, or the silo's as in its certificate.
      address: host and port to listen on, or to dial.
      admitted: from whom messages are taken; asked for every one.
      report: told when a party connects or is lost, and what the gate drops.
      coordinator: at a silo, the common name of the coordinator's certificate.
      lost: called with the name of a party whose connection has closed.
    """

    def __init__(
        self,
        name: str,
        address: str,
        credentials: Credentials,
        admitted: Callable[[str], bool],
        *,
        report: Report,
        coordinator: str = "",
        lost: Callable[[str], None] = lambda name: None,
    ):
        _quiet_log()
        certificate, key = (
            (DriverParams.SERVER_CERT, DriverParams.SERVER_KEY)
            if name == COORDINATOR
            else (DriverParams.CLIENT_CERT, DriverParams.CLIENT_KEY)
        )
        pools = set(StatsPoolManager.pools)
        self._core = CoreCell(
            fqcn=name,
            root_url=f"{_SCHEME}://{address}",
            secure=True,
            credentials={
                certificate.value: str(credentials.certificate),
                key.value: str(credentials.key),
                DriverParams.CA_CERT.value: str(credentials.authority),
            },
            create_internal_listener=False,
            auth_identity_map={COORDINATOR: coordinator} if coordinator else {},
        )
        self._pools = set(StatsPoolManager.pools) - pools
        self._core.add_incoming_filter("*", "*", Gate(name, admitted, report).refuse)
        self._core.set_cell_connected_cb(lambda agent: report("connected", party=agent.get_fqcn()))

        def disconnected(agent: CellAgent) -> None:
            lost(agent.get_fqcn())
            report("disconnected", party=agent.get_fqcn())

        self._core.set_cell_disconnected_cb(disconnected)

    def on(self, topic: str, handler: Handler) -> None:
        """Messages of this topic go to `handler`, which runs in a thread of FLARE's and must not raise: FLARE logs the text."""

        def received(message: Message) -> None:
            head = {
                key.removeprefix(_HEADER): value
                for key, value in (message.headers or {}).items()
                if key.startswith(_HEADER)
            }
            content = message.payload
            handler(
                str(message.get_header(MessageHeaderKey.ORIGIN)),
                head,
                content if isinstance(content, bytes | memoryview) else b"",
            )

        self._core.register_request_cb(_CHANNEL, topic, received)

    def start(self) -> None:
        """Begins to listen, or to dial."""
        self._core.start()

    def connected(self) -> list[str]:
        """The names of those at the other ends."""
        return list(self._core.agents)

    def send(self, target: str, topic: str, head: Head, content: bytes | memoryview) -> bool:
        """Whether the message left."""
        message = Message({_HEADER + key: value for key, value in head.items()}, content)
        return not self._core.fire_and_forget(_CHANNEL, topic, target, message, optional=True).get(target)

    def close(self) -> None:
        """Closes the connections. FLARE never forgets a cell, and makes none of the same name: it is made to."""
        self._core.stop()
        CoreCell.ALL_CELLS.pop(self._core.get_fqcn(), None)
        for pool in self._pools:
            StatsPoolManager.pools.pop(pool, None)


class Gate:
    """Lets through what this module sends, and FLARE's goodbyes; everything else is dropped before it is decoded.

    Args:
      name: of this cell.
      admitted: from whom messages are taken.
      report: told what was dropped: of which kind, and from whom.
    """

    def __init__(self, name: str, admitted: Callable[[str], bool], report: Report):
        self._name, self._admitted, self._report = name, admitted, report

    def refuse(self, message: Message) -> Message | None:
        """As FLARE calls an incoming filter: None to let the message through, a message to drop it."""
        why = self._fault(message)
        if why is None:
            return None
        endpoint = message.get_prop(MessagePropKey.ENDPOINT)
        self._report("dropped", sender=public(str(endpoint.name if endpoint else "unknown")), why=why)
        return Message()

    def _fault(self, message: Message) -> str | None:
        header = message.get_header
        endpoint = message.get_prop(MessagePropKey.ENDPOINT)
        sender = endpoint.name if endpoint else None
        if header(MessageHeaderKey.DESTINATION) != self._name:
            return "it is for another party"
        if sender is None or header(MessageHeaderKey.ORIGIN) != sender:
            return "its origin is not the party that sent it"
        if not self._admitted(sender):
            return "its sender is not admitted"
        channel, topic = header(MessageHeaderKey.CHANNEL), header(MessageHeaderKey.TOPIC)
        if channel == CellChannel.CELLNET and topic == CellChannelTopic.Bye:
            message.payload = None  # a goodbye says nothing more
            return None
        if channel != _CHANNEL or header(MessageHeaderKey.MSG_TYPE) != MessageType.REQ:
            return "it is on another channel"
        if header(MessageHeaderKey.PAYLOAD_ENCODING) != Encoding.BYTES or header(MessageHeaderKey.SECURE):
            return "it holds objects, not bytes"
        if message.payload is not None and len(message.payload) > PART_BYTES:
            return "it is larger than a part"
        return None


def value(head: Head, key: str, kind: type[_Kind]) -> _Kind | None:
    """A value of a head; None if it is missing or of another type, since the other end need not be honest."""
    content = head.get(key)
    return content if type(content) is kind else None


def _quiet_log() -> None:
    """FLARE's warnings are about what its own programs would do; what matters here is reported."""
    log = logging.getLogger("nvflare")
    if log.level == logging.NOTSET:
        log.setLevel(logging.ERROR)
