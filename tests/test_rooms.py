"""The arrows of docs/design.md, "Rooms": who may import whom. Imports inside functions count too."""

import ast
import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest
from builders import ROOT, TESTS

from tff_pipeline import cli

ROOMS = ("tff_pipeline", "beam_jobs", "serving")
GROUND_FLOOR = {
    f"tff_pipeline.{name}"
    for name in ("errors", "config", "artifacts", "data.tokenization", "data.records", "progress", "rounding")
}

# Who alone may import a heavy or delicate package: modules, or rooms with everything in them.
ONLY_IN = {
    "apache_beam": ("beam_jobs",),
    "tensorflow_federated": (
        "tff_pipeline.model",
        "tff_pipeline.aggregators",
        "tff_pipeline.learning.process",
        "tff_pipeline.runtime",
    ),
    "tensorflow_privacy": ("tff_pipeline.aggregators",),
    "dp_accounting": ("tff_pipeline.privacy",),
    "transformers": ("tff_pipeline.model",),
}


def imports(source: str) -> Iterator[str]:
    """The dotted names of everything that a module's source imports; of `from a import b`, a.b and so also a."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports here are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules() -> dict[str, set[str]]:
    """Every module of the project with the dotted names it imports."""
    found = {}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = set(imports(path.read_text(encoding="utf-8")))
    return found


MODULES = modules()


def inside(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def breaches(importers: str, allowed: set[str]) -> list[str]:
    """What modules of one room import from the project beyond `allowed` and themselves."""
    return [
        f"{module} imports {name}"
        for module, names in MODULES.items()
        if inside(module, importers)
        for name in names
        if inside(name, *ROOMS) and not inside(name, importers, *allowed) and name != "tff_pipeline.__version__"
    ]


def test_imports_are_found_wherever_they_stand():
    source = "import a.b\ndef f():\n    from c import d as e\n    if True:\n        import f as g, h\n"

    assert set(imports(source)) == {"a.b", "c.d", "f", "h"}


def test_the_rooms_are_there():
    """So that the tests below do not pass on nothing."""
    assert set(MODULES) > GROUND_FLOOR
    assert {module.split(".")[0] for module in MODULES} == set(ROOMS)


@pytest.mark.parametrize("room", ["beam_jobs", "serving"])
def test_stages_of_their_own_stand_on_the_ground_floor_only(room):
    """And so not on each other."""
    assert breaches(room, {f"{name}" for name in GROUND_FLOOR}) == []


def test_the_package_knows_neither_of_them():
    assert breaches("tff_pipeline", set()) == []


def test_the_ground_floor_stands_on_itself():
    assert [breach for module in GROUND_FLOOR for breach in breaches(module, GROUND_FLOOR)] == []


@pytest.mark.parametrize("package", ONLY_IN)
def test_packages_are_imported_only_where_they_belong(package):
    importers = {module for module, names in MODULES.items() if any(inside(name, package) for name in names)}

    assert importers, f"nobody imports {package}"
    assert {module for module in importers if not inside(module, *ONLY_IN[package])} == set()


def test_no_test_imports_a_test():
    """What several tests need lies in tests/builders, which needs none of them."""
    names = {path: set(imports(path.read_text(encoding="utf-8"))) for path in sorted(TESTS.rglob("*.py"))}

    assert len(names) > 60
    modules = {path.stem for path in names if path.stem.startswith(("test_", "conftest"))}
    assert [(str(path), name) for path in names for name in names[path] if modules & set(name.split("."))] == []


def test_the_secure_sum_protocol_knows_no_tensorflow():
    assert breaches("tff_pipeline.secagg", {"tff_pipeline.errors"}) == []
    names = {
        name.split(".")[0]
        for module, found in MODULES.items()
        if inside(module, "tff_pipeline.secagg")
        for name in found
    }
    assert not {name for name in names if name.startswith(("tensorflow", "tf_keras", "transformers"))}


def test_an_exported_model_is_verified_without_this_project():
    """What a model server has is TensorFlow, and no more."""
    assert breaches("tff_pipeline.export.verification", set()) == []


def test_the_command_line_starts_without_anything_heavy():
    """`tff-pipeline --help` answers at once: heavy imports happen where they are needed."""
    heavy = ("tensorflow", "tensorflow_federated", "apache_beam", "transformers", "dp_accounting", "numpy", "rich")
    program = f"import sys, tff_pipeline.cli as cli; cli.main(['--help']); print([name for name in {heavy!r} if name in sys.modules])"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)

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
