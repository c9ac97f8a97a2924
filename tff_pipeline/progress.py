"""What a person or a scheduler sees while a stage works: a bar on a terminal, one JSON line per event elsewhere.

Everything goes to standard error; standard output belongs to results. No event carries a silo's text.
"""

import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console


def silence_libraries() -> None:
    """Keeps the start-up noise of TensorFlow, transformers and their imports off the terminal. Call before importing them.

    Errors still show; TF_CPP_MIN_LOG_LEVEL in the environment wins.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    # transformers' embedding layer drops the result of an assertion in every graph that it is built into, and TensorFlow
    # reports each of them in twenty lines.
    logging.getLogger("tensorflow").addFilter(lambda record: "Object was never used" not in str(record.msg))


class Progress:
    """Events and bars of one command."""

    def __init__(self, stream: TextIO | None = None, *, interactive: bool | None = None):
        self._stream = stream or sys.stderr
        self.interactive = self._stream.isatty() if interactive is None else interactive
        self._console: Console | None = None

    def event(self, event: str, message: str = "", /, **fields: Any) -> None:
        """Reports that `event` happened. A terminal shows `message` (or the fields); a scheduler gets a JSON line."""
        if self.interactive:
            text = message or "  ".join(f"{key} {_short(value)}" for key, value in fields.items())
            self._terminal().print(f"[bold cyan]{event}[/]  {text}", highlight=False)
        else:
            line = {
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "event": event,
                **({"message": message} if message else {}),
                **fields,
            }
            print(json.dumps(line, default=float), file=self._stream, flush=True)

    @contextmanager
    def bar(self, event: str, total: float | None) -> "Iterator[Bar]":
        """A bar for `total` steps. Each `advance` shows its fields, where there is no terminal as a JSON line."""
        if not self.interactive:
            yield Bar(lambda steps, fields: self.event(event, **fields) if fields else None)
            return
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("[bold cyan]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[shown]}"),
        )
        with RichProgress(*columns, console=self._terminal()) as rich:
            task = rich.add_task(event, total=total, shown="")

            def show(steps: float, fields: dict[str, Any]) -> None:
                rich.advance(task, steps)
                if fields:
                    rich.update(task, shown="  ".join(f"{key} {_short(value)}" for key, value in fields.items()))

            yield Bar(show)

    def _terminal(self) -> "Console":
        if self._console is None:
            from rich.console import Console

            self._console = Console(file=self._stream, force_terminal=True)
        return self._console


class Bar:
    """A running bar; see `Progress.bar`."""

    def __init__(self, show: Callable[[float, dict[str, Any]], None]):
        self._show = show

    def advance(self, steps: float = 1, **fields: Any) -> None:
        self._show(steps, fields)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
