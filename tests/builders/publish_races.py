"""Races between publishers, some of which are killed: what serving/test_publish.py runs in a process without TensorFlow.

    python tests/builders/publish_races.py FOLDER RACES SEED

In each race two or three processes publish into one base path at once: the same version or different ones, by `publish`,
or as the command with `--keep`. Most races kill one or two of them with SIGKILL at a random moment. Afterwards every
folder with a number must be whole, and whoever returned success must have its version there. Prints JSON: the counts.
"""

import contextlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from serving.base_path.folder import publish
from serving.commands.publish import main
from tff_pipeline.artifacts import read_manifest, staged, version_numbers

FILES = ("saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001")
LOST, REFUSED = 3, 4


def make_version(folder: Path, number: int) -> Path:
    with staged(folder / str(number), lambda: {"kind": "model", "name": "desk", "version": number}) as aside:
        (aside / "variables").mkdir()
        for name in FILES:
            (aside / name).write_bytes(b"%d" % number * 20_000)
    return folder / str(number)


def publisher(version: Path, base: Path, start: int, *, keep: bool) -> int:
    """A process that publishes as soon as `start` can be read; its exit code says what came of it."""
    child = os.fork()
    if child:
        return child
    code = LOST
    try:
        os.read(start, 1)
        sys.stderr = sys.stdout = open(os.devnull, "w")  # noqa: SIM115  this process ends with it
        if keep:
            main(["--model", str(version), "--to", str(base), "--keep", "2"])
        else:
            publish(version, base)
        code = 0
    except Exception:
        code = REFUSED
    finally:
        os._exit(code)


def race(chance: random.Random, versions: list[Path], base: Path) -> dict[str, int]:
    """One race; returns what was wrong with it, and how it went."""
    entered = [chance.choice(versions) for _ in range(chance.choice((2, 2, 3)))]
    keep = chance.random() < 0.2
    reading, writing = os.pipe()
    children = {publisher(version, base, reading, keep=keep): version for version in entered}
    os.write(writing, b"x" * len(children))
    doomed = chance.sample(list(children), chance.choice((0, 1, 1, 2)))
    for child in doomed:
        time.sleep(chance.uniform(0.0, 0.012))
        os.kill(child, signal.SIGKILL)
    codes = {child: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children}
    os.close(reading)
    os.close(writing)

    found = version_numbers(base) if base.exists() else []
    broken = 0
    for number in found:
        with contextlib.suppress(Exception):
            read_manifest(base / str(number), check_files=True)
            continue
        broken += 1
    done = [int(children[child].name) for child, code in codes.items() if code == 0]
    # `--keep 2` of one may remove what another has published, but never the newest of all.
    missing = sum(number not in found for number in done if not keep or number == max(*found, *done, 0))
    failed = sum(code not in (0, -signal.SIGKILL) for code in codes.values())
    killed = sum(code == -signal.SIGKILL for code in codes.values())
    return {"broken": broken, "missing": missing, "failed": failed, "killed": killed, "published": len(done)}


def run(folder: Path, races: int, seed: int) -> dict[str, int]:
    chance, counts = random.Random(seed), {"races": races, "seed": seed}
    versions = [make_version(folder / "made", number) for number in (1, 2, 3)]
    for number in range(races):
        # Some races go on in the base path of the one before, with what the killed have left there.
        base = folder / "served" / str(number // 3)
        for name, count in race(chance, versions, base).items():
            counts[name] = counts.get(name, 0) + count
    return counts


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
