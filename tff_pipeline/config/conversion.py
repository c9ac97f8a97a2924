"""TOML's tables become the types of schema.py. What msgspec refuses is explained in sentences of our own.

msgspec names the key and the bound. The person who has to mend the file also needs the value that was found, which the
tables have, and what the key is for, which the schema has.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec

from tff_pipeline.config.schema import Config, description
from tff_pipeline.errors import ConfigError

_README = "configs/README.md explains every key."
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
}


def convert(tables: Mapping[str, Any], path: Path) -> Config:
    """The configuration that `tables`, the content of the file `path`, describe. Types and bounds of single keys are checked.

    Raises:
      ConfigError: naming the file and key, what was found and what was expected.
    """
    if "path" in tables:  # a field of Config, and no key of the file
        raise ConfigError(f"{path}: {_unknown('path', '')} {_README}")
    try:
        return msgspec.convert({**tables, "path": str(path)}, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {_sentence(str(error), tables)} {_README}") from None


def _sentence(message: str, tables: Mapping[str, Any]) -> str:
    """msgspec's message ("Expected `int` >= 1 - at `$.training.rounds`") with what was found and what was expected."""
    located = re.fullmatch(r"(.*) - at `\$\.?([^`]*)`", message, re.DOTALL)
    problem, where = located.groups() if located else (message, "")
    if match := re.search(r"unknown field `(.*)`", problem):
        return _unknown(match[1], where)
    if match := re.search(r"missing required field `(.*)`", problem):
        return _missing(match[1], where)
    *_, (key, value, kind) = _steps(where, tables)
    if match := re.fullmatch(r"Expected `(.*)`, got `.*`", problem):
        types = _either([_TYPES.get(name, name) for name in match[1].split(" | ") if name != "null"])
        if "[...]" in where:  # msgspec does not say under which key of the table
            return f"{key} is {value!r}; expected {types} for each of its keys."
        return f"{key} is {_shown(value)}; expected {types}."
    if problem.startswith("Invalid enum value") and not description(kind):
        return f"{key} is {value!r}; expected {_values(kind)}."
    # A bound, perhaps of an element: its words are those of the whole list.
    key, value, kind = next(step for step in reversed(list(_steps(where, tables))) if description(step[2]))
    return f"{key} is {value!r}; expected {description(kind)}."


def _unknown(key: str, where: str) -> str:
    section = _section(where)
    known = [field.name for field in msgspec.structs.fields(section) if field.name != "path"]
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"Did you mean `{near[0]}`?" if near else f"Known keys there: {', '.join(known)}."
    return f"there is no key `{key}`{f' in [{where}]' if where else ''}. {hint}"


def _missing(key: str, where: str) -> str:
    kind = next(field.type for field in msgspec.structs.fields(_section(where)) if field.name == key)
    if not where:
        return f"the section [{key}] is missing; expected it, since not all of its keys have a default."
    words = description(kind) or _values(kind)
    return f"{where}.{key} is missing, and has no default; expected {words}."


def _steps(where: str, tables: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """The way to `where` ("silos[0].format"): the key, value and type of each step. Stops at a table that has no type."""
    key: str = ""
    value: Any = tables
    kind: Any = Config
    for name, index in re.findall(r"(\w+)|\[([^]]*)\]", where):
        if name:
            key, value, kind = f"{key}.{name}".lstrip("."), value[name], _field_type(kind, name)
        elif index.isdecimal():
            key, value, kind = f"{key}[{index}]", value[int(index)], _element_type(kind)
        else:
            return
        yield key, value, kind


def _section(where: str) -> type[msgspec.Struct]:
    kind: Any = Config
    for name, _ in re.findall(r"(\w+)|\[([^]]*)\]", where):
        kind = _field_type(kind, name) if name else _element_type(kind)
    return kind


def _field_type(section: Any, name: str) -> Any:
    return next(field.type for field in msgspec.structs.fields(section) if field.name == name)


def _element_type(kind: Any) -> Any:
    """The type of a list's elements, wherever in `kind` the list is."""
    if get_origin(kind) is tuple:
        return get_args(kind)[0]
    return next(filter(None, map(_element_type, get_args(kind))), None)


def _values(kind: Any) -> str:
    """The values that a choice allows, or what a text is."""
    if get_origin(kind) is Literal:
        return _either([f'"{value}"' if isinstance(value, str) else str(value) for value in get_args(kind)])
    return "a text"


def _either(words: list[str]) -> str:
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _shown(value: object) -> str:
    """A value in an error about its type: the content of a table or list would hide what is wrong with it."""
    return "a table" if isinstance(value, dict) else "a list" if isinstance(value, list) else repr(value)
