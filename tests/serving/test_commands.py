"""The commands that `pyproject.toml` declares: each can be imported, and explains itself."""

import importlib
import tomllib

import pytest

COMMANDS = ("publish", "list", "canary", "promote", "rollback", "serve")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_declared_command_explains_itself(name, root, capsys):
    """Read from the file, not from what is installed, which may be older."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, function = project["entry-points"]["tff_pipeline.commands"][name].partition(":")
    with pytest.raises(SystemExit) as ended:
        getattr(importlib.import_module(module), function)(["--help"])
    assert ended.value.code == 0
    assert f"tff-pipeline {name}" in capsys.readouterr().out
