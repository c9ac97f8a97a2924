"""Reads the configuration: the file, the changes by `--set`, paths made absolute, and the labels it lists."""

import argparse
import os
import tomllib
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from tff_pipeline.config.conversion import convert
from tff_pipeline.config.schema import Config
from tff_pipeline.config.validation import check
from tff_pipeline.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--config, --set and --json, which every command takes."""
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="the configuration, a TOML file; configs/README.md explains every key",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one key, as in training.rounds=5, or leave it out, as in privacy.delta=; may be given several times",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads `path`, applies `--set` overrides ("section.key=value", value in TOML or a bare word), checks everything.

    Raises:
      ConfigError: naming the file and key, what was found, what was expected and what to do.
    """
    path = Path(path)
    tables = read_tables(path)
    for override in overrides:
        _override(tables, override)
    config = convert(tables, path)
    check(config)
    return _with_absolute_paths(config, path.resolve().parent)


def assemble(path: str | Path, *, own: Mapping[str, Any] | None, workdir: Path, runtime: Mapping[str, Any]) -> Config:
    """The configuration of one party of a consortium: the process that all have agreed on, and what is this party's alone.

    Args:
      path: of the process's file: a configuration without a work directory and runtime, whose key `silos` lists names.
      own: a silo's own table, with absolute paths; None for the coordinator.
      workdir: the party's.
      runtime: the party's [runtime] section.

    Raises:
      ConfigError: as of `load`; and if the file says what is each party's own, or does not name this silo.
    """
    path = Path(path)
    tables = read_tables(path)
    for key, where in (("runtime", tables), ("workdir", tables.get("pipeline", {}))):
        if key in where:
            raise ConfigError(
                f"{path}: has {key}; expected none in a process that several parties agree on, since each party's own file says it. Remove it here."
            )
    names = tables.get("silos")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(set(names)) < 2:
        raise ConfigError(
            f'{path}: silos is not a list of at least two names; expected the silos that agree on the process, as in silos = ["bank", "shop"].'
        )
    if own is not None and own["name"] not in names:
        raise ConfigError(
            f"{path}: silos are {', '.join(names)}; expected {own['name']!r} among them, the silo whose file this process is named in."
        )
    # Of a silo that is elsewhere there is the name; nothing reads its input.
    silos = [
        dict(own) if own is not None and name == own["name"] else {"name": name, "input": (), "format": "csv"}
        for name in names
    ]
    pipeline = {**tables.get("pipeline", {}), "workdir": str(workdir.resolve())}
    config = convert({**tables, "silos": silos, "runtime": dict(runtime), "pipeline": pipeline}, path)
    check(config)
    return _with_absolute_paths(config, path.resolve().parent)


def known_labels(config: Config) -> tuple[str, ...] | None:
    """The labels the configuration lists (in place or in a file, one a line), or None for "auto".

    Labels are stripped, and composed as Unicode's NFC has them, as prepare does with those of the rows.

    Raises:
      ConfigError: if the file cannot be read, or a label is empty or listed twice.
    """
    labels = config.task.labels
    if labels == "auto":
        return None
    if isinstance(labels, str):
        try:
            lines = Path(labels).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f'{config.path}: task.labels names {labels!r}, which cannot be read ({type(error).__name__}); expected "auto", a list, or a file with one label a line.'
            ) from None
        labels = [line for line in lines if line.strip()]
    labels = tuple(unicodedata.normalize("NFC", label.strip()) for label in labels)
    if not labels or len(set(labels)) != len(labels) or not all(labels):
        raise ConfigError(
            f"{config.path}: task.labels holds {len(labels)} labels, {len(set(labels))} of them different; expected at least one, none empty, none twice."
        )
    return labels


def read_tables(path: Path) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
      ConfigError: if it cannot be read.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file. --config takes a TOML file; configs/quickstart.toml is one to start from."
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror or type(error).__name__}). Check that it is a file and that this account may read it."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}.") from None


def _override(tables: dict[str, Any], override: str) -> None:
    """Changes the key that `override` names, or removes it where no value follows the equals sign."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override!r}: expected section.key=value, as in --set training.rounds=5.")
    *parents, last = key.strip().split(".")
    parent: Any = tables
    for name in parents:
        parent = _child(parent, name, override)
    if not isinstance(parent, dict):
        raise ConfigError(f"--set {override!r}: expected an index and a key, as in silos.0.input.")
    if text.strip():
        parent[last] = _value(text)
    else:
        parent.pop(last, None)


def _child(parent: dict[str, Any] | list[Any], name: str, override: str) -> dict[str, Any] | list[Any]:
    """The table or list called `name` in `parent`; a table that is missing is made."""
    if isinstance(parent, list):
        if not name.isdecimal() or int(name) >= len(parent):
            raise ConfigError(f"--set {override!r}: {name!r} is not an index below {len(parent)}, as in silos.0.input.")
        child = parent[int(name)]
    else:
        child = parent.setdefault(name, {})
    if not isinstance(child, dict | list):
        raise ConfigError(f"--set {override!r}: {name!r} is a value, not a section.")
    return child


def _value(text: str) -> Any:
    """`text` as TOML; as it is where that is not TOML, so that paths need no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()


def _with_absolute_paths(config: Config, base: Path) -> Config:
    """`config` with its paths relative to `base` made absolute; addresses with a scheme (gs://, s3://) stay as they are."""

    def absolute(path: str) -> str:
        return path if not path or "://" in path else os.path.normpath(base / Path(path).expanduser())

    def absolute_globs(globs: str | tuple[str, ...]) -> str | tuple[str, ...]:
        return absolute(globs) if isinstance(globs, str) else tuple(map(absolute, globs))

    silos = []
    for silo in config.silos:
        if isinstance(silo.input, dict):
            inputs = {split: absolute_globs(globs) for split, globs in silo.input.items()}
        else:
            inputs = absolute_globs(silo.input)
        silos.append(replace(silo, input=inputs))
    labels, checkpoint = config.task.labels, config.model.checkpoint
    if isinstance(labels, str) and labels != "auto":
        labels = absolute(labels)
    if checkpoint.startswith(("./", "../", "/", "~")) or (base / checkpoint).is_dir():
        checkpoint = absolute(checkpoint)
    return replace(
        config,
        path=str(Path(config.path).resolve()),
        pipeline=replace(config.pipeline, workdir=absolute(config.pipeline.workdir)),
        task=replace(config.task, labels=labels),
        silos=tuple(silos),
        model=replace(config.model, checkpoint=checkpoint, vocabulary=absolute(config.model.vocabulary)),
        export=replace(config.export, base_path=absolute(config.export.base_path)),
        gates=replace(config.gates, texts=absolute(config.gates.texts)),
    )
