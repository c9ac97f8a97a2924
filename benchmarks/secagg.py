"""What the secure sum's protocol costs: processor seconds of a silo and of the server, bytes on the wire, the server's memory.

`python -m benchmarks.secagg` plays one round of 10 silos with 10 million uint32 each, all parties in one process on one core,
through the bytes they would send. One silo drops out before it reports (`--dropped`), so that the server has masks to remove
that did not cancel. Seconds are each party's own processor time, without the network. The server's peak is counted in vectors of one
report, with the report that it is taking.
"""

import argparse
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tff_pipeline.secagg import identity
from tff_pipeline.secagg.client import Client
from tff_pipeline.secagg.journal import MemoryJournal
from tff_pipeline.secagg.server import Server, Slot

T = TypeVar("T")
P = ParamSpec("P")


class Costs:
    """Processor seconds and bytes of each party."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.sent: dict[str, int] = {}
        self.server_vectors = 0.0

    def of(self, party: str, work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        started = time.process_time()
        result = work(*arguments, **options)
        self.seconds[party] = self.seconds.get(party, 0.0) + time.process_time() - started
        return result

    def sends(self, party: str, message: bytes) -> bytes:
        self.sent[party] = self.sent.get(party, 0) + len(message)
        return message

    @contextmanager
    def peak(self, nbytes: int, held: int) -> Iterator[None]:
        """Counts what the server allocates in the block, beside the `held` bytes that it was given."""
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        yield
        self.server_vectors = max(self.server_vectors, (tracemalloc.get_traced_memory()[1] - before + held) / nbytes)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--silos", type=int, default=10)
    parser.add_argument("--words", type=int, default=10_000_000, help="of uint32, in a silo's report")
    parser.add_argument("--dropped", type=int, default=1, help="silos that deal shares and do not report")
    parser.add_argument(
        "--memory", action="store_true", help="the server's peak instead of seconds, which it falsifies"
    )
    options = parser.parse_args(argv)

    costs = play(options.silos, options.words, options.dropped, memory=options.memory)
    nbytes = 4 * options.words
    print(f"{options.silos} silos, {options.words:,} words of uint32, {options.dropped} dropped out before reporting")
    print("| of | measured | aim |")
    print("| --- | --- | --- |")
    if options.memory:
        print(f"| server's peak, vectors | {costs.server_vectors:.2f} | at most 2.5 |")
        return 0
    silos = [seconds for name, seconds in costs.seconds.items() if name != "server"]
    reporting = [sent for sent in costs.sent.values() if sent > nbytes]
    print(f"| a silo, s, most | {max(silos):.2f} | below 5 |")
    print(f"| server, s | {costs.seconds['server']:.2f} | |")
    print(
        f"| a silo's bytes in both directions over its payload, most | {max(reporting) / nbytes:.5f} | at most 1.05 |"
    )
    return 0


def play(silos: int, words: int, dropped: int, *, memory: bool) -> Costs:
    """One round; the reports are random, made before each is masked."""
    costs, names = Costs(), [f"silo-{number:03}" for number in range(silos)]
    identities = {name: Ed25519PrivateKey.generate() for name in names}
    roster = {name: identity.public_bytes(private) for name, private in identities.items()}
    if memory:
        tracemalloc.start()
    clients = {
        name: costs.of(
            name,
            Client,
            name=name,
            identity_key=identities[name],
            roster=roster,
            journal=MemoryJournal(),
            seen=set(),
            threshold=silos // 2 + 1,
            session="benchmark",
            round_number=1,
            attempt=0,
        )
        for name in names
    }
    server = Server(
        roster=roster,
        slots=[Slot((words,), np.dtype(np.uint32))],
        threshold=silos // 2 + 1,
        session="benchmark",
        round_number=1,
        attempt=0,
    )
    total, requests = np.zeros(words, np.uint32), dict.fromkeys(names, b"")
    while not server.done:
        stage = server.stage
        for name in names[dropped:] if stage == "mask" else list(requests):
            values = (
                [np.random.default_rng(int(name[-3:])).integers(0, 2**32, words, np.uint32)] if stage == "mask" else []
            )
            if values:
                np.add(total, values[0], out=total)
            answer = costs.of(name, ask, clients[name], stage, costs.sends(name, requests[name]), values)
            values.clear()
            costs.sends(name, answer)
            with costs.peak(4 * words, 4 * words + len(answer)):
                costs.of("server", server.take, name, answer)
        with costs.peak(4 * words, 4 * words):
            requests = costs.of("server", server.finish)
    if not np.array_equal(server.result().values[0], total):
        raise SystemExit("the sum is wrong")
    return costs


def ask(client: Client, stage: str, request: bytes, values: Sequence[np.ndarray]) -> bytes:
    """A silo's answer to a stage."""
    match stage:
        case "advertise":
            return client.advertise()
        case "share":
            return client.share_keys(request)
        case "mask":
            return client.mask(request, values)
        case "consistency":
            return client.consistency(request)
    return client.unmask(request)


if __name__ == "__main__":
    raise SystemExit(main())
