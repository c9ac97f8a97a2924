"""`tff-pipeline run`: every stage in order. Each finds what it finished before and does not do it again.

Stages hand over files, so this is only their order, and a summary of what the last one left.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tff_pipeline import config as configuration
from tff_pipeline.artifacts import Workdir, model_base, read_json
from tff_pipeline.config import Config
from tff_pipeline.progress import Progress


def main(argv: Sequence[str] | None = None) -> int:
    """`tff-pipeline run`."""
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
    """All stages; see the module. Returns what `--json` prints."""
    from tff_pipeline.cli import command

    changes = [part for override in overrides for part in ("--set", override)]
    _quietly(command("prepare"), ["--config", config.path, *changes])
    # The stages below import TensorFlow; what is above need not wait for it.
    from tff_pipeline.commands import predict as prediction
    from tff_pipeline.evaluation import evaluate as evaluation
    from tff_pipeline.export import build as export
    from tff_pipeline.training import job as training

    folder = training.train(config, progress=progress)
    file = evaluation.evaluation_file(folder)
    evaluated = read_json(file) if file.exists() else evaluation.evaluate(folder, progress=progress)
    version = export.export(folder, model_base(config), settings=config.export, progress=progress)
    texts = [*config.export.examples, *ask]
    facts = read_json(folder / "run.json")
    return {
        "run": folder.name,
        "guarantee": facts["guarantee"],
        "plan": facts["plan"],
        "rounds": facts["rounds"],
        "evaluation": {key: evaluated[key] for key in ("split", "overall", "silos", "groups")},
        "answers": [
            {"text": text, **answer} for text, answer in zip(texts, prediction.Model(version).ask(texts), strict=True)
        ]
        if texts
        else [],
        "paths": {
            "run": str(folder),
            "evaluation": str(file),
            "rounds": str(folder / "rounds.csv"),
            "tensorboard": str(folder / "tensorboard"),
            "ledger": str(Workdir(config.workdir).ledger(config.population)),
            "model": str(version),
            "snapshots": {silo: one["path"] for silo, one in facts["snapshots"].items()},
        },
    }


def _quietly(stage: Any, arguments: Sequence[str]) -> None:
    """Runs a command whose results on standard output are not ours."""
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()):
        stage(arguments)


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    # Texts, labels and silos are other people's words: no markup in them is ours.
    console = Console(
        file=sys.stdout, width=None if sys.stdout.isatty() else 120, markup=False, emoji=False, highlight=False
    )
    if result["answers"]:
        answers = Table("text", "label", "score", title="The exported model answers", title_justify="left")
        for answer in result["answers"]:
            answers.add_row(*_answer_row(answer))
        console.print(answers)
    scores = Table(
        "",
        "clients",
        "examples",
        "accuracy",
        "macro-F1",
        "majority class",
        title=f"Held-out clients ({result['evaluation']['split']})",
        title_justify="left",
    )
    parts = {"overall": result["evaluation"]["overall"], **result["evaluation"]["silos"]}
    for name, part in parts.items():
        numbers = [part.get(key) for key in ("accuracy", "macro_f1", "majority_accuracy")]
        scores.add_row(
            name,
            str(part.get("clients", 0)),
            str(part.get("examples", 0)),
            *("-" if number is None else f"{number:.3f}" for number in numbers),
        )
    console.print(scores)
    for sentence in result["guarantee"]["statement"]:
        console.print(f"* {sentence}", soft_wrap=True)
    console.print("\nWhere everything lies")
    for name, path in result["paths"].items():
        if isinstance(path, dict):
            for silo, inner in path.items():
                console.print(f"  {name} {silo}: {_shown(inner)}", soft_wrap=True)
        else:
            console.print(f"  {name}: {_shown(path)}", soft_wrap=True)


def _answer_row(answer: dict[str, Any]) -> tuple[str, str, str]:
    if "tokens" in answer:  # token classification: one label a word
        return answer["text"], " ".join(str(token["label"]) for token in answer["tokens"]), ""
    return answer["text"], answer["label"], f"{answer['score']:.3f}"


def _shown(path: str) -> str:
    """Relative to where the command was given, where that is shorter."""
    try:
        return str(Path(path).resolve().relative_to(Path.cwd()))
    except ValueError:
        return path
