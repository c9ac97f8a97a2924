"""`tff-pipeline run`: every stage in order. A stage that has finished before is not done again.

Stages hand over files, so this module holds only their order, and a summary of what they wrote.
"""

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tff_pipeline import config as configuration
from tff_pipeline.artifacts import Workdir, model_base, read_json
from tff_pipeline.config import Config
from tff_pipeline.progress import Progress

if TYPE_CHECKING:
    from rich.table import Table


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a summary, or with --json what `run` returns."""
    parser = argparse.ArgumentParser(
        prog="tff-pipeline run",
        description="Prepare every silo, train, evaluate, export, and ask the exported model. Killed at any moment, the same command goes on.",
    )
    configuration.add_arguments(parser)
    parser.add_argument(
        "--ask",
        action="append",
        default=[],
        metavar="TEXT",
        help="a text to ask the exported model at the end, besides those in export.examples; may be given several times",
    )
    arguments = parser.parse_args(argv)
    config = configuration.load(arguments.config, arguments.set)
    progress = Progress()
    result = run(config, overrides=arguments.set, ask=arguments.ask, progress=progress)
    if arguments.json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        _print(result)
    return 0


def run(config: Config, *, overrides: Sequence[str], ask: Sequence[str], progress: Progress) -> dict[str, Any]:
    """Runs all stages, and asks the exported model.

    Args:
      config: the configuration.
      overrides: the --set options that it was loaded with, since `prepare` loads it again.
      ask: texts to ask the exported model, besides those in export.examples.
      progress: where events go.

    Returns:
      What --json prints: run, guarantee, plan, rounds, evaluation, answers and the paths of all that was written.
    """
    from tff_pipeline.cli import command

    changes = [part for override in overrides for part in ("--set", override)]
    _quietly(command("prepare"), ["--config", config.path, *changes])
    # The stages below import TensorFlow; what is above need not wait for it.
    from tff_pipeline.evaluation.evaluate import evaluate, evaluation_file
    from tff_pipeline.export.build import export
    from tff_pipeline.training.run import train

    folder = train(config, progress=progress)
    file = evaluation_file(folder)
    evaluated = read_json(file) if file.exists() else evaluate(folder, progress=progress)
    version = export(folder, model_base(config), settings=config.export, progress=progress)
    facts = read_json(folder / "run.json")
    return {
        "run": folder.name,
        "guarantee": facts["guarantee"],
        "plan": facts["plan"],
        "rounds": facts["rounds"],
        "evaluation": {key: evaluated[key] for key in ("split", "overall", "silos", "groups")},
        "answers": _answers(version, [*config.export.examples, *ask]),
        "paths": {
            "run": str(folder),
            "evaluation": str(file),
            "rounds": str(folder / "rounds.csv"),
            "tensorboard": str(folder / "tensorboard"),
            "ledger": str(Workdir(config.workdir).ledger(config.population)),
            "model": str(version),
            "snapshots": {silo: snapshot["path"] for silo, snapshot in facts["snapshots"].items()},
        },
    }


def _quietly(stage: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> None:
    """Runs a command without what it prints on standard output, which belongs to this command's result."""
    with contextlib.redirect_stdout(io.StringIO()):
        stage(arguments)


def _answers(version: Path, texts: Sequence[str]) -> list[dict[str, Any]]:
    from tff_pipeline.export.exported_model import ExportedModel

    if not texts:
        return []
    return [{"text": text, **answer} for text, answer in zip(texts, ExportedModel(version).ask(texts), strict=True)]


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console

    # Texts, labels and silos are other people's words: no markup in them is ours.
    console = Console(
        file=sys.stdout, width=None if sys.stdout.isatty() else 120, markup=False, emoji=False, highlight=False
    )
    if result["answers"]:
        console.print(_answers_table(result["answers"]))
    console.print(_scores_table(result["evaluation"]))
    for sentence in result["guarantee"]["statement"]:
        console.print(f"* {sentence}", soft_wrap=True)
    console.print("\nWhere everything lies")
    for name, path in result["paths"].items():
        if isinstance(path, dict):
            for silo, silo_path in path.items():
                console.print(f"  {name} {silo}: {_shown(silo_path)}", soft_wrap=True)
        else:
            console.print(f"  {name}: {_shown(path)}", soft_wrap=True)


def _answers_table(answers: Sequence[dict[str, Any]]) -> "Table":
    from rich.table import Table

    table = Table("text", "label", "score", title="The exported model answers", title_justify="left")
    for answer in answers:
        if "tokens" in answer:  # token classification: a label for each word
            table.add_row(answer["text"], " ".join(str(token["label"]) for token in answer["tokens"]), "")
        else:
            table.add_row(answer["text"], answer["label"], f"{answer['score']:.3f}")
    return table


def _scores_table(evaluation: dict[str, Any]) -> "Table":
    from rich.table import Table

    columns = ("clients", "examples", "accuracy", "macro-F1", "majority class")
    table = Table("", *columns, title=f"Held-out clients ({evaluation['split']})", title_justify="left")
    for name, part in {"overall": evaluation["overall"], **evaluation["silos"]}.items():
        scores = [part.get(key) for key in ("accuracy", "macro_f1", "majority_accuracy")]
        shown = ["-" if score is None else f"{score:.3f}" for score in scores]
        table.add_row(name, str(part.get("clients", 0)), str(part.get("examples", 0)), *shown)
    return table


def _shown(path: str) -> str:
    """Relative to where the command was given, where that is shorter."""
    try:
        return str(Path(path).resolve().relative_to(Path.cwd()))
    except ValueError:
        return path
