"""What starting the command line imports. Who may import whom at all, [tool.importlinter] in pyproject.toml says."""

import ast
import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tff_pipeline import cli

TESTS = Path(__file__).resolve().parent


def test_the_command_line_starts_without_anything_heavy(root):
    """`tff-pipeline --help` answers at once: heavy imports happen where they are needed."""
    heavy = (
        "tensorflow",
        "tensorflow_federated",
        "apache_beam",
        "transformers",
        "dp_accounting",
        "numpy",
        "rich",
        "nvflare",
    )
    program = f"import sys, tff_pipeline.cli as cli; cli.main(['--help']); print([name for name in {heavy!r} if name in sys.modules])"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root)

    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stderr == ""


def test_prepare_does_not_search_through_what_it_leaves_behind(monkeypatch):
    """With TensorFlow in it that took most of a second. Who calls `main` as a function keeps its collector as it was."""
    at_exit = []
    monkeypatch.setattr(cli.atexit, "register", at_exit.append)

    monkeypatch.setattr(cli, "command", lambda name: lambda rest: 0)
    cli.main(["prepare"])
    for name in ("run", "train", "--version"):  # TFF's executor is ended by that search
        monkeypatch.setattr(sys, "argv", ["tff-pipeline", name])
        cli.main()
    assert at_exit == []
    monkeypatch.setattr(sys, "argv", ["tff-pipeline", "prepare"])
    cli.main()
    assert at_exit == [gc.freeze]


def imports(source: str) -> Iterator[str]:
    """The dotted names of everything that a module's source imports; of `from a import b`, a.b and so also a."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports here are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_test_imports_a_test():
    """What several tests need lies in tests/builders, which needs none of them."""
    names = {path: set(imports(path.read_text(encoding="utf-8"))) for path in sorted(TESTS.rglob("*.py"))}

    assert len(names) > 60
    modules = {path.stem for path in names if path.stem.startswith(("test_", "conftest"))}
    assert [(str(path), name) for path in names for name in names[path] if modules & set(name.split("."))] == []


def test_the_help_of_a_command_does_not_wait_for_tensorflow(root):
    """All of them in one process: what one imported stays. Preparation is described by Beam's own options too."""
    program = """
import sys
from tff_pipeline import cli
for name in cli._COMMANDS:
    try:
        cli.main([name, "--help"])
    except SystemExit as ended:
        assert ended.code == 0, name
    heavy = {"tensorflow", "tensorflow_federated", "transformers", "nvflare"} & set(sys.modules)
    assert not heavy, (name, heavy)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=root)

    assert done.returncode == 0, done.stderr[-1000:]
    assert done.stdout.count("usage: tff-pipeline ") == len(cli._COMMANDS)
