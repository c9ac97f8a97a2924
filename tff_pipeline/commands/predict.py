"""`tff-pipeline predict`: asks an exported model about texts from arguments, a file or standard input, an answer a line.

Answers come as soon as lines do, so that it can stand at the end of a pipe.
"""

import argparse
import json
import os
import queue
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from tff_pipeline import config as configuration
from tff_pipeline.artifacts import model_base, newest_version
from tff_pipeline.errors import InputError
from tff_pipeline.export.exported_model import ExportedModel

BATCH_SIZE = 64
EXPLAIN_BATCH_SIZE = 8  # an explanation takes about a hundred predictions, and more memory than one


def main(argv: Sequence[str] | None = None) -> int:
    """`tff-pipeline predict`: a line `label <tab> score <tab> text` for each text, or with --json an object.

    With --explain the text is shown in pieces, each with how much of the score it made.
    """
    parser = argparse.ArgumentParser(
        prog="tff-pipeline predict",
        description="Asks an exported model; without TEXT and --file it reads lines from standard input.",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--config", metavar="FILE", help="ask the newest version of this configuration's model")
    which.add_argument("--model", metavar="DIR", type=Path, help="ask this version, or the newest in this base path")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="overrides", help="override a key of --config"
    )
    parser.add_argument("--file", metavar="FILE", type=Path, help="a file with a text a line")
    parser.add_argument("--json", action="store_true", help="print a JSON object a line, with the three best labels")
    parser.add_argument(
        "--explain",
        action="store_true",
        help="show how much each piece of a text made of its label's score; takes about a hundred predictions",
    )
    parser.add_argument("--label", default="", help="explain this label instead of the predicted one")
    parser.add_argument("text", metavar="TEXT", nargs="*")
    arguments = parser.parse_args(argv)
    if arguments.label and not arguments.explain:
        parser.error("--label goes with --explain")
    if arguments.text and arguments.file:
        parser.error("give TEXT or --file, not both")
    base = arguments.model or model_base(configuration.load(arguments.config, arguments.overrides))
    model = ExportedModel(newest_version(base))
    try:
        for batch in _batches(arguments):
            for text, answer in zip(batch, _answers(model, batch, arguments), strict=True):
                print(_line(text.decode(errors="replace"), answer, as_json=arguments.json), flush=arguments.explain)
            sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough, as in `predict ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the flush at exit does not fail
    return 0


def _answers(model: ExportedModel, texts: Sequence[bytes], arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    if not arguments.explain:
        yield from model.ask(texts)
        return
    for start in range(0, len(texts), EXPLAIN_BATCH_SIZE):
        yield from model.explain(texts[start : start + EXPLAIN_BATCH_SIZE], label=arguments.label)


def _batches(arguments: argparse.Namespace) -> Iterable[list[bytes]]:
    if arguments.text:
        # An argument that is not UTF-8 arrives with surrogates; the model is given the bytes that were typed.
        texts = [text.encode(errors="surrogateescape") for text in arguments.text]
        return (texts[start : start + BATCH_SIZE] for start in range(0, len(texts), BATCH_SIZE))
    if arguments.file is None:
        return lines(sys.stdin.buffer)
    try:
        return lines(arguments.file.open("rb"))
    except OSError as error:
        raise InputError(
            f"{arguments.file}: cannot be read ({error.strerror}); expected a file with a text a line."
        ) from None


def _line(text: str, answer: dict[str, Any], *, as_json: bool) -> str:
    if as_json:
        return json.dumps({"text": text, **answer}, ensure_ascii=False)
    if "tokens" in answer:
        return " ".join(f"{word['token']}/{word['label'] or '?'}" for word in answer["tokens"])
    if "pieces" in answer:
        text = " ".join(f"{piece['text']}({piece['attribution']:+.3f})" for piece in answer["pieces"])
    return f"{answer['label']}\t{answer['score']:.3f}\t{text}"


def lines(file: IO[bytes]) -> Iterator[list[bytes]]:
    """The lines of a stream without their ends, in batches of what has arrived: one line does not wait for the next."""
    arrived: queue.Queue[bytes | None] = queue.Queue(maxsize=4 * BATCH_SIZE)
    failures: list[OSError] = []

    def read() -> None:
        try:
            for line in file:
                arrived.put(line.rstrip(b"\r\n"))
        except OSError as error:
            failures.append(error)
        arrived.put(None)

    threading.Thread(target=read, daemon=True).start()
    line = arrived.get()
    while line is not None:
        batch = [line]
        # Takes what has arrived, and waits only when there is nothing to answer.
        while len(batch) < BATCH_SIZE and arrived.qsize() and (line := arrived.get()) is not None:
            batch.append(line)
        yield batch
        line = arrived.get() if line is not None else None
    if failures:
        raise InputError(f"the texts could not be read to their end ({failures[0].strerror}).")
