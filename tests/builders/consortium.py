"""A consortium on this machine, as `tff-pipeline provision create --all-here` makes it."""

import functools
import itertools
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

from tff_pipeline.commands import provision as command


@functools.cache
def _key_pairs() -> list[tuple[RSAPrivateKey, RSAPublicKey]]:
    return [(key := rsa.generate_private_key(65537, 2048), key.public_key()) for _ in range(9)]


def key_pairs() -> Callable[[], tuple[RSAPrivateKey, RSAPublicKey]]:
    """In place of FLARE's generate_keys, which takes most of such a test's time: nine different pairs, over and over."""
    pairs = itertools.cycle(_key_pairs())
    return lambda: next(pairs)


def free_port() -> int:
    """A port on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def definition(folder: Path, silos: Sequence[str], port: int = 8002, threshold: int | None = None) -> Path:
    """The consortium's TOML file."""
    lines = [
        'name = "text"',
        f"threshold = {len(silos) // 2 + 1 if threshold is None else threshold}",
        "[coordinator]",
        'host = "localhost"',
        f"port = {port}",
        'organization = "Coordinating Company"',
        *(line for silo in silos for line in ("[[silos]]", f'name = "{silo}"', f'organization = "{silo} company"')),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "consortium.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def provision(folder: Path, silos: Sequence[str], port: int) -> None:
    """Makes authority/, coordinator/ and silos/ in the folder."""
    path = definition(folder, silos, port)
    assert command.main(["create", "--consortium", str(path), "--out", str(folder), "--all-here"]) == 0
