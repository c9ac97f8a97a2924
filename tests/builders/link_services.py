"""A silo's service for the tests of links: what it does, the stage's name says. Run as a program, it is a silo over FLARE."""

import json
import os
import sys
import time
from pathlib import Path

from tff_pipeline.errors import Refused

PUBLIC, PRIVATE, TEXT = "the budget of this silo is spent", "ledger of the cards department", "customer 4711 said hello"
LARGE = 40_000_000


class Probe:
    """Echoes, refuses, fails, waits and dies on request."""

    def __init__(self, name: str):
        self.name = name
        self.asked: list[tuple[str, int, bytes]] = []

    def answer(self, stage: str, round_number: int, request: bytes | memoryview) -> bytes:
        self.asked.append((stage, round_number, bytes(request[:100])))
        if stage == "large":
            return round_number.to_bytes(4, "big") * (LARGE // 4)
        if stage == "length":
            return f"{len(request)} {bytes(request[-3:])!r}".encode()
        if stage == "refuse":
            raise Refused(PUBLIC, private=PRIVATE)
        if stage == "fail":
            raise ValueError(TEXT)
        if stage == "wait":
            time.sleep(float(bytes(request)))
        if stage == "die":
            os._exit(9)
        return f"{self.name} {stage} {round_number} ".encode() + bytes(request)


def main() -> None:
    """A silo until its standard input ends. Arguments: its site's folder, its log, and the name it claims if not its own."""
    from tff_pipeline.runtime.network.flare_silo import FlareSilo
    from tff_pipeline.runtime.network.site import read_silo

    site, log = read_silo(Path(sys.argv[1])), Path(sys.argv[2])

    def report(event: str, **fields: object) -> None:
        with log.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"event": event, **fields}) + "\n")

    name = sys.argv[3] if len(sys.argv) > 3 else site.name
    with FlareSilo(name, site.coordinator, site.coordinator_name, site.credentials, Probe(site.name), report=report):
        sys.stdin.read()


if __name__ == "__main__":
    main()
