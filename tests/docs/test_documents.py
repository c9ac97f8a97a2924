"""What the documents tell a reader to type exists: commands, modules, targets of make, configuration files and keys."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tff_pipeline import cli

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *(ROOT / "docs").glob("*.md")])


def code(document: Path) -> str:
    """The document's blocks and spans of code, a line each."""
    text = document.read_text(encoding="utf-8")
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    return "\n".join([*blocks, *spans])


def named(pattern: str) -> Iterator[tuple[str, str]]:
    """Everything that a pattern finds in code, with the document that has it."""
    for document in DOCUMENTS:
        for name in re.findall(pattern, code(document), re.MULTILINE):
            yield document.relative_to(ROOT).as_posix(), name


def test_the_documents_are_found():
    assert {"README.md", "CHANGELOG.md"} < {document.name for document in DOCUMENTS}
    assert len(DOCUMENTS) > 15


def test_every_command_is_one_of_the_command_line(capsys):
    cli.main(["--help"])
    known = set(re.findall(r"^  (\w+)  ", capsys.readouterr().out, re.MULTILINE))

    found = list(named(r"\btff-pipeline ([a-z]\w*)"))
    assert len(found) > 50
    assert [(document, name) for document, name in found if name not in known] == []


def test_every_module_that_is_run_is_there():
    found = list(named(r"\bpython -m ((?:benchmarks|examples|serving|tff_pipeline|beam_jobs)[\w.]*)"))

    assert len(found) > 20
    for document, name in found:
        path = ROOT / name.rstrip(".").replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), f"{document}: python -m {name}"


def test_every_target_of_make_is_in_the_makefile():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))

    found = list(named(r"^make ([a-z][\w-]*)"))
    assert len(found) > 10
    assert [(document, name) for document, name in found if name not in targets] == []


def test_every_configuration_file_is_there():
    found = list(named(r"\bconfigs/[\w.]+\.toml"))

    assert len(found) > 10
    assert [(document, name) for document, name in found if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(
    "pattern", [r"--set ([a-z_]+\.[a-z_]+)=", r"^((?:privacy|prepare|export|training)\.[a-z_]+)\b"]
)
def test_every_key_is_explained_in_the_readme_of_the_configuration(pattern):
    keys, section = set(), ""
    for line in (ROOT / "configs" / "README.md").read_text(encoding="utf-8").splitlines():
        if heading := re.fullmatch(r"## `\[+(\w+)\]+`", line):
            section = heading[1]
        elif row := re.match(r"\| `(\w+)` \|", line):
            keys.add(f"{section}.{row[1]}")

    found = list(named(pattern))
    assert len(found) > 5
    assert [(document, key) for document, key in found if key not in keys] == []
