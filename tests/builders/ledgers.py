"""A workdir with ledgers of populations and silos, what is done to its files, and charges that are killed."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from builders.plans import plan as a_plan
from builders.tiny import configured
from tff_pipeline.artifacts import canonical_json
from tff_pipeline.cli import main
from tff_pipeline.config import Config
from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy import charges as account

PLAN = a_plan(rounds=1000)


class Folder:
    """A workdir with ledgers, and configurations on it that differ in their population and their silos."""

    def __init__(self, root: Path):
        self.root, self.workdir = root, root / "workdir"

    def config(self, *silos: str, population: str = "people") -> Config:
        folder = self.root / f"{population}-{'-'.join(silos)}"
        folder.mkdir(parents=True, exist_ok=True)
        tables = "".join(
            f'[[silos]]\nname = "{name}"\ninput = "{name}.csv"\nformat = "csv"\nclient = "client"\n' for name in silos
        )
        changes = (f"pipeline.workdir={self.workdir}", f"privacy.population={population}")
        config = configured(folder, tables, changes=changes)
        path = Path(config.path)
        text = path.read_text().replace('name = "tiny"', f'name = "tiny"\nworkdir = "{self.workdir}"', 1)
        path.write_text(text.replace("[privacy]", f'[privacy]\npopulation = "{population}"', 1))
        return config

    def charge(self, config: Config, rounds: int, *, run: str = "r1", draw: str = "d") -> None:
        charges = account.opened(config, PLAN, run=run, draw=draw)
        for number in range(1, rounds + 1):
            charges.charge(number)

    def silo(self, name: str) -> Path:
        return self.workdir / "silos" / name

    def of_silo(self, name: str) -> list[Path]:
        return [self.silo(name) / "ledger.jsonl", self.silo(name) / "ledger.head.json"]

    def of_population(self, name: str) -> list[Path]:
        return [self.workdir / "ledgers" / f"{name}.jsonl", self.workdir / "ledgers" / f"{name}.head.json"]


def delete(paths: list[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def copied(paths: list[Path]) -> Callable[[], None]:
    """Remembers what the files hold; the function that it returns puts it back."""
    contents = [path.read_bytes() if path.exists() else None for path in paths]

    def restore() -> None:
        for path, content in zip(paths, contents, strict=True):
            if content is None:
                path.unlink(missing_ok=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)

    return restore


def first_format(paths: list[Path]) -> None:
    """Rewrites a ledger as version 0.1 wrote it: without counterparts."""
    lines = [json.loads(text) for text in paths[0].read_text().splitlines()]
    old = [{key: value for key, value in line.items() if key not in NEW_FIELDS} for line in lines]
    paths[0].write_bytes(rechained(paths[0], old))


NEW_FIELDS = ("silos", "counterpart", "members")


def rounds(config: Config) -> list[int]:
    return [len(ledger.entries()) for ledger, _ in account.ledgers(config)]


def refused(folder: Folder, config: Config, capsys: pytest.CaptureFixture[str], words: str) -> None:
    """A run is refused in these words, and `ledger verify` says the same."""
    with pytest.raises(PrivacyError, match=words):
        folder.charge(config, 1, run="next")
    assert main(["ledger", "verify", "--config", config.path]) == PrivacyError.exit_code
    assert re.search(words, json.loads(capsys.readouterr().err.splitlines()[-1])["message"])


def killed(monkeypatch: pytest.MonkeyPatch, config: Config, *, write: int, run: str, draw: str, number: int) -> bool:
    """Charges a round and is killed before the `write`-th file is written. Returns whether it was."""
    from tff_pipeline.privacy import hash_chain, ledger

    class Killed(BaseException):
        pass

    left = write
    atomic = hash_chain.write_atomic

    def count() -> None:
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1

    def counted_write(path: Path, data: bytes) -> None:
        count()
        atomic(path, data)

    def counted_append(self, line):
        count()
        return append(self, line)

    append = ledger.Ledger._append
    charges = account.opened(config, PLAN, run=run, draw=draw)
    with monkeypatch.context() as patch:
        patch.setattr(hash_chain, "write_atomic", counted_write)
        patch.setattr(ledger.Ledger, "_append", counted_append)
        try:
            charges.charge(number)
        except Killed:
            return True
    return False


def rechained(path: Path, lines: list[dict[str, Any]]) -> bytes:
    """Lines with hashes that fit again: what somebody writes who can compute them."""
    from tff_pipeline.privacy.hash_chain import _hash

    previous = "0" * 64
    for line in lines:
        line["previous"] = previous
        previous = line["hash"] = _hash({key: value for key, value in line.items() if key != "hash"})
    path.with_suffix(".head.json").write_bytes(canonical_json({"entries": len(lines), "hash": previous}) + b"\n")
    return b"".join(canonical_json(line) + b"\n" for line in lines)


def identity(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return entry["population"], entry["run"], entry["round"], entry["draw"]
