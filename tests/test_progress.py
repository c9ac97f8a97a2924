"""What is shown while a stage works: one JSON line per event, or words and a bar on a terminal."""

import io
import json
import logging
import subprocess
import sys

import numpy as np

from tff_pipeline.progress import Progress, silence_libraries


def lines(stream: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_without_a_terminal_every_event_is_a_json_line():
    stream = io.StringIO()
    Progress(stream).event("train", "round done", round=3, loss=np.float32(0.5), epsilon=None)

    (line,) = lines(stream)
    assert line.pop("time").endswith("Z")
    assert line == {"event": "train", "message": "round done", "round": 3, "loss": 0.5, "epsilon": None}


def test_without_a_terminal_a_bar_is_a_line_for_each_step_that_says_something():
    stream = io.StringIO()
    with Progress(stream).bar("train", 3) as bar:
        bar.advance(round=1)
        bar.advance()
        bar.advance(round=2)

    assert [(line["event"], line["round"]) for line in lines(stream)] == [("train", 1), ("train", 2)]


def test_a_message_with_line_breaks_is_still_one_line():
    stream = io.StringIO()
    Progress(stream).event("train", "a\nb")

    assert stream.getvalue().count("\n") == 1
    assert lines(stream)[0]["message"] == "a\nb"


def test_a_terminal_shows_the_message_or_the_fields():
    stream = io.StringIO()
    progress = Progress(stream, interactive=True)
    progress.event("train", "a message", hidden=1)
    progress.event("train", loss=0.123456)

    assert "a message" in stream.getvalue()
    assert "hidden" not in stream.getvalue()
    assert "loss 0.1235" in stream.getvalue()


def test_a_terminal_shows_a_bar_with_the_latest_fields():
    stream = io.StringIO()
    with Progress(stream, interactive=True).bar("train", 2) as bar:
        bar.advance(round=1)
        bar.advance(round=2)

    assert "2/2" in stream.getvalue()
    assert "round 2" in stream.getvalue()


def test_events_go_to_standard_error(capsys):
    """Standard output belongs to results."""
    Progress().event("train", "hello")

    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err)["message"] == "hello"


def test_silencing_drops_one_known_message_and_keeps_the_others(caplog):
    silence_libraries()
    logger = logging.getLogger("tensorflow")
    logger.addHandler(caplog.handler)
    try:
        logger.error("Object was never used (type ...)")
        logger.error("something that matters")
    finally:
        logger.removeHandler(caplog.handler)

    assert "never used" not in caplog.text
    assert "something that matters" in caplog.text


def test_importing_tensorflow_and_transformers_says_nothing():
    program = "from tff_pipeline.progress import silence_libraries; silence_libraries(); import tensorflow, tensorflow_text; from transformers import TFBertModel"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout + done.stderr == ""
