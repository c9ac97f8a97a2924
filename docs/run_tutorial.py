"""Runs the commands of docs/tutorial.md in order, and compares what they print with what the page says they print.

    python docs/run_tutorial.py [--page docs/tutorial.md]

A block ```sh is run, all of them in one shell that starts in the root of the repository. A block ```text after it is what
it prints on standard output. A block ```toml with a title is written to the file of that name first, beside the
tutorial's data. Words are compared; numbers, ids, times and the frames of tables are not, since noise and sampling come
from the operating system. In a block ```text `...` stands for any text of a line, and a line `...` for any lines.

Exit code: 0, or 1 with the first block that differs.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "workdir" / "tutorial"
TIMEOUT_S = 1800

_FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_ID = re.compile(r"\b[0-9a-f]{16}\b")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*(?:e[+-]?\d+)?")
_FRAME = re.compile(r"[\u2500-\u257f]+")


@dataclass(frozen=True)
class Step:
    """Commands of the page, and what it says they print (None where it says nothing)."""

    line: int
    commands: str
    printed: str | None


def steps(page: str) -> Iterator[Step]:
    """Yields the page's commands in order; writes the files that the page shows."""
    blocks = list(_FENCE.finditer(page))
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        language, title, content = block.groups()
        line = page.count("\n", 0, block.start()) + 1
        if language == "toml" and title:
            FOLDER.mkdir(parents=True, exist_ok=True)
            (FOLDER / title).write_text(content, encoding="utf-8")
        elif language == "sh":
            printed = following[3] if following and following[1] == "text" else None
            yield Step(line, content, printed)


def shape(line: str) -> str:
    """What of a line is compared."""
    line = _FRAME.sub(" ", line)
    for what, name in ((_TIME, "TIME"), (_ID, "ID"), (_NUMBER, "#")):
        line = what.sub(name, line)
    return " ".join(line.split())


def pattern(printed: str) -> re.Pattern[str]:
    """Matches the shapes of all outputs that agree with what the page shows."""
    lines = []
    for line in printed.splitlines():
        if line.strip() == "...":
            lines.append(r"(?:[^\n]*\n)*?")
        elif said := shape(line):
            lines.append(".*?".join(re.escape(part) for part in said.split("...")) + r"\n")
    return re.compile("".join(lines))


def agrees(printed: str, output: str) -> bool:
    """Whether an output has the shape that the page shows."""
    shapes = [said for line in output.splitlines() if (said := shape(line))]
    return pattern(printed).fullmatch("".join(f"{said}\n" for said in shapes)) is not None


def run(found: Sequence[Step]) -> list[str]:
    """Runs all commands in one shell; returns the standard output of each step."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / str(number) for number in range(len(found))]
        script = ["set -e"]
        for step, output in zip(found, outputs, strict=True):
            script += [f"echo 'docs/tutorial.md:{step.line}' >&2", f"{{\n{step.commands}\n}} > {output}"]
        path = [str(Path(sys.executable).parent), os.environ["PATH"]]
        if shutil.which("curl") is None:
            path.append(str(curl_stand_in(Path(folder))))
        environment = os.environ | {
            "PATH": os.pathsep.join(path),
            "COLUMNS": "100",
        }
        finished = subprocess.run(
            ["bash", "-c", "\n".join(script)],
            check=False,
            cwd=ROOT,
            env=environment,
            timeout=TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
        printed = [output.read_text(encoding="utf-8") if output.exists() else "" for output in outputs]
        if finished.returncode != 0:
            ran = sum(output.exists() for output in outputs)
            step = found[max(ran - 1, 0)]
            sys.exit(
                f"docs/tutorial.md:{step.line}: exit code {finished.returncode} of\n{step.commands}\n{printed[ran - 1]}"
            )
        return printed


def curl_stand_in(folder: Path) -> Path:
    """A folder with a command `curl` for a machine without it: what this page uses of curl, by this program."""
    program = folder / "bin" / "curl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve()}" --as-curl "$@"\n')
    program.chmod(0o755)
    return program.parent


def curl(arguments: Sequence[str]) -> int:
    """Asks a URL, and prints the answer; with --retry again after --retry-delay seconds, while nobody answers."""
    parser = argparse.ArgumentParser(prog="curl")
    for flag in ("--silent", "--fail", "--retry-all-errors"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--retry", type=int, default=0)
    parser.add_argument("--retry-delay", type=float, default=1)
    parser.add_argument("-d", dest="data")
    parser.add_argument("url")
    asked = parser.parse_args(arguments)
    body = None if asked.data is None else asked.data.encode()
    for attempt in range(asked.retry + 1):
        try:
            with urllib.request.urlopen(asked.url, body) as answer:
                print(answer.read().decode(), end="")
                return 0
        except urllib.error.HTTPError as error:
            if not asked.fail:
                print(error.read().decode(), end="")
                return 0
        except OSError:
            pass  # nobody listens yet
        if attempt < asked.retry:
            time.sleep(asked.retry_delay)
    return 22


def main(argv: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["--as-curl"]:
        return curl(arguments[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "tutorial.md")
    page = parser.parse_args(arguments).page.read_text(encoding="utf-8")
    shutil.rmtree(FOLDER, ignore_errors=True)
    found = list(steps(page))
    for step, output in zip(found, run(found), strict=True):
        if step.printed is not None and not agrees(step.printed, output):
            print(
                f"docs/tutorial.md:{step.line}: the page says that\n\n{step.commands}\nprints\n\n{step.printed}\n"
                f"and it printed\n\n{output}\nNumbers, ids and times may differ; words may not.",
                file=sys.stderr,
            )
            return 1
    print(f"docs/tutorial.md: {len(found)} steps ran and printed what the page shows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
