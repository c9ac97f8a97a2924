"""The `tff-pipeline` command: finds the stage that is asked for, imports only that, and turns errors into exit codes.

Stages that this package must not import (preparation, serving) are found by their entry points, in the group
"tff_pipeline.commands".
"""

import atexit
import gc
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from importlib import metadata

from tff_pipeline import __version__
from tff_pipeline.errors import PipelineError
from tff_pipeline.progress import Progress, silence_libraries

_COMMANDS = {
    "run": (
        "tff_pipeline.commands.run:main",
        "all of it: prepare, train, evaluate, export; goes on where an earlier run stopped",
    ),
    "prepare": ("", "raw text of the silos to snapshots (Beam; runner options after --)"),
    "train": ("tff_pipeline.commands.train:main", "snapshots to a trained run"),
    "evaluate": ("tff_pipeline.commands.evaluate:main", "accuracy and F1 of a run, overall, by silo and by group"),
    "export": (
        "tff_pipeline.commands.export:main",
        "a run to a verified version directory that TensorFlow Serving loads",
    ),
    "publish": (
        "",
        "a version directory to the serving base path, in one rename (an object store: saved_model.pb last)",
    ),
    "list": ("", "the versions of a model, and which are served"),
    "canary": ("", "load a published version beside the stable one, for those who ask for it"),
    "promote": ("", "make the canary, or another published version, the stable one"),
    "rollback": ("", "drop the canary, or go back to the version before"),
    "serve": ("", "a local model server, REST and gRPC, to try a version out"),
    "predict": ("tff_pipeline.commands.predict:main", "ask an exported model"),
    "privacy": (
        "tff_pipeline.commands.privacy:main",
        "the guarantee in sentences, and what a population has been charged",
    ),
    "ledger": (
        "tff_pipeline.commands.ledger:main",
        "what a population and its silos have been charged: show, verify, budget, anchor; and who joined or left",
    ),
    "audit": ("tff_pipeline.commands.audit:main", "attack a trained run's mechanism, and compare with what it claims"),
    "abandon": (
        "tff_pipeline.commands.abandon:main",
        "list unfinished runs, or remove the keys of some: they draw anew",
    ),
    "provision": (
        "tff_pipeline.commands.provision:main",
        "a consortium of companies: its authority, certificates, and the list of who belongs to it",
    ),
    "coordinator": (
        "tff_pipeline.commands.coordinator:main",
        "one run of a consortium: train with silos that are elsewhere",
    ),
    "silo": (
        "tff_pipeline.commands.silo:main",
        "one silo of a consortium: take part in runs; approve what it computes; what it has done",
    ),
    "doctor": ("tff_pipeline.commands.doctor:main", "is this machine fit: versions, devices, disk, inputs"),
}
_EXIT_CODES = "0 done; 1 other failure; 2 configuration or usage; 3 a silo's input; 4 an artifact of an earlier stage; 5 privacy; 6 training; 7 export; 8 a gate before publishing; 130 interrupted"
_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    if argv is None and sys.argv[1:2] == ["prepare"]:
        # The end of a program frees all of its memory. Before that Python would search it for garbage, with all of
        # TensorFlow in it, for most of a second. Only here: where TFF runs, that search is what ends its executor.
        atexit.register(gc.freeze)
    try:
        code = _main(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader of our output has gone, as `head` does. Python would report it again when it flushes on exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _main(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"tff-pipeline {__version__}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in _COMMANDS:
        import difflib

        near = difflib.get_close_matches(name, _COMMANDS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        print(f"tff-pipeline: there is no command {name!r}.{hint} `tff-pipeline --help` lists them.", file=sys.stderr)
        return 2
    silence_libraries()
    progress = Progress()
    try:
        return command(name)(rest)
    except PipelineError as error:
        if progress.interactive:
            print(f"tff-pipeline {name}: {error}", file=sys.stderr)
        else:
            progress.event("error", str(error), command=name, kind=type(error).__name__, exit_code=error.exit_code)
        return error.exit_code
    except KeyboardInterrupt:
        progress.event("interrupted", "nothing is lost; the same command goes on where this one stopped", command=name)
        return _INTERRUPTED


def command(name: str) -> Callable[[Sequence[str]], int]:
    """The function of a command; importing it is what takes time.

    Raises:
      PipelineError: if it is one of another package that is not installed.
    """
    target, _ = _COMMANDS[name]
    if target:
        module, _, function = target.partition(":")
        return getattr(importlib.import_module(module), function)
    for point in metadata.entry_points(group="tff_pipeline.commands"):
        if point.name == name:
            return point.load()
    raise PipelineError(
        f"the command {name!r} is not installed (no entry point of that name in the group tff_pipeline.commands); expected this project to be installed. Run `make setup`."
    )


def _help() -> str:
    width = max(map(len, _COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in _COMMANDS.items())
    return f"""usage: tff-pipeline COMMAND --config FILE [--set KEY=VALUE ...] [--json]

Organizations that may not share their text train one BERT together.

commands:
{lines}

`tff-pipeline COMMAND --help` explains one of them. The main job is

  tff-pipeline run --config configs/quickstart.toml

Progress goes to standard error: bars on a terminal, one JSON line per event elsewhere. Results go to standard output.
exit codes: {_EXIT_CODES}"""
