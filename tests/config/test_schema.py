"""The types of the keys, and that configs/README.md explains every one of them."""

import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec

from tff_pipeline.config import Config
from tff_pipeline.config.schema import description


def sections() -> dict[str, type]:
    """Section name to its type, as the schema has them."""
    types: dict[str, type] = {}
    for field in msgspec.structs.fields(Config):
        kind: Any = get_args(field.type)[0] if get_origin(field.type) is tuple else field.type
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            types[field.name] = kind
    return types


def bounds(kind: Any) -> list[msgspec.Meta]:
    """All bounds in the type of a key, of its elements too."""
    own = [meta for meta in getattr(kind, "__metadata__", ()) if isinstance(meta, msgspec.Meta)]
    return own + [meta for inner in get_args(kind) for meta in bounds(inner)]


def test_every_bound_says_in_words_what_was_expected():
    bounded = [
        (section.__name__, field.name, field.type)
        for section in sections().values()
        for field in msgspec.structs.fields(section)
        if bounds(field.type)
    ]

    assert len(bounded) > 30
    assert [(section, key) for section, key, kind in bounded if not description(kind)] == []


def test_every_default_is_within_its_bounds():
    """msgspec checks what it reads, and not what it fills in."""
    for section in sections().values():
        defaults = {
            field.name: msgspec.to_builtins(value)
            for field in msgspec.structs.fields(section)
            if (value := field.default) is not msgspec.NODEFAULT
        }
        kinds = {field.name: field.type for field in msgspec.structs.fields(section)}
        for name, value in defaults.items():
            msgspec.convert(value, kinds[name])


# -- configs/README.md ---------------------------------------------------------------------------------------------------


def documented(root: Path) -> dict[str, dict[str, list[str]]]:
    """Section to key to the other cells of its row, as configs/README.md has them."""
    rows: dict[str, dict[str, list[str]]] = {}
    section = ""
    for line in (root / "configs" / "README.md").read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"## `\[+(\w+)\]+`", line):
            section = match[1]
            rows[section] = {}
        elif section and (match := re.match(r"\| `(\w+)` \|", line)):
            rows[section][match[1]] = [cell.strip() for cell in line.strip("|").split(" | ")][1:]
    return rows


def as_toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {as_toml(item)}" for key, item in value.items()) + " }"
    return str(value)


def default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "required"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()  # type: ignore[operator]
    return "none" if value is None else f"`{as_toml(value)}`"


def test_the_readme_explains_every_key_and_no_other(root):
    assert {name: list(rows) for name, rows in documented(root).items()} == {
        name: [field.name for field in msgspec.structs.fields(kind)] for name, kind in sections().items()
    }


def test_the_readme_gives_the_true_defaults(root):
    rows = documented(root)

    for name, kind in sections().items():
        for field in msgspec.structs.fields(kind):
            assert rows[name][field.name][0] == default(field), f"{name}.{field.name}"


def test_the_readme_gives_the_allowed_values_and_says_what_changes_the_guarantee(root):
    rows = documented(root)

    for name, kind in sections().items():
        for field in msgspec.structs.fields(kind):
            _, meaning, guarantee = rows[name][field.name]
            for value in get_args(field.type) if get_origin(field.type) is Literal else ():
                assert as_toml(value) in rows[name][field.name][0] + meaning, (
                    f"{name}.{field.name} does not mention {value}"
                )
            assert guarantee
