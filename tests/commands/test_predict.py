"""Asking a version: where texts come from, what an answer looks like, and what is refused."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading

import pytest
from builders.serving_fixtures import LABELS, config, exported, write_config

from tff_pipeline.commands.predict import lines, main
from tff_pipeline.errors import ArtifactError, InputError
from tff_pipeline.export.exported_model import ExportedModel
from tff_pipeline.training.store import config_of


@pytest.fixture(scope="module")
def version():
    return exported()[1]


class Standard:
    """Standard input with these bytes."""

    def __init__(self, data):
        self.buffer = io.BytesIO(data)


def test_texts_from_arguments(version, capsys):
    """One line a text, in order: label, score, text. The newest version of a base path is asked."""
    assert main(["--model", str(version.parent), "my card is lost", "why the fee"]) == 0

    answers = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [text for *_, text in answers] == ["my card is lost", "why the fee"]
    assert all(label in LABELS and 0 < float(score) <= 1 for label, score, _ in answers)


def test_json_has_the_three_best(version, capsys):
    main(["--model", str(version), "--json", "my card is lost"])
    answer = json.loads(capsys.readouterr().out)

    assert set(answer) == {"text", "label", "score", "top"}
    assert sorted(each["label"] for each in answer["top"]) == sorted(LABELS)
    assert answer["top"][0] == {"label": answer["label"], "score": answer["score"]}
    assert sum(each["score"] for each in answer["top"]) == pytest.approx(1, abs=1e-5)


def test_files_and_standard_input_keep_their_lines(version, tmp_path, capsys, monkeypatch):
    """Empty lines and bytes that are not UTF-8 too: an answer for every line, so that columns can be pasted."""
    given = b"my card\r\n\n\xff\xfe fee\n" + "我的卡".encode()
    expected = ["my card", "", "\ufffd\ufffd fee", "我的卡"]
    (tmp_path / "texts.txt").write_bytes(given)
    monkeypatch.setattr(sys, "stdin", Standard(given))

    for arguments in (["--file", str(tmp_path / "texts.txt")], []):
        main(["--model", str(version), "--json", *arguments])
        assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == expected


def test_many_lines_are_answered_like_single_ones(version, tmp_path, capsys):
    """150 lines: more than two batches, with short beside long."""
    texts = [f"{'my fee ' * (number % 9)}card {number}" for number in range(150)]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    main(["--model", str(version), "--json", "--file", str(tmp_path / "texts.txt")])
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    assert [answer["text"] for answer in answers] == texts
    model = ExportedModel(version)
    for index in (0, 77, 149):
        assert answers[index]["score"] == pytest.approx(model.ask([texts[index]])[0]["score"], abs=1e-5)


def test_a_line_does_not_wait_for_the_next():
    """A slow stream: the first line is there before the second is written."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stream:
        os.write(writing, b"first\n")
        batches = lines(stream)
        assert next(batches) == [b"first"]
        os.write(writing, b"second\n")
        assert next(batches) == [b"second"]
        os.close(writing)
        assert list(batches) == []


def test_lines_come_in_order_and_once():
    texts = [f"{number}".encode() for number in range(1000)]
    before = threading.active_count()  # other tests of this process may have some
    batches = list(lines(io.BytesIO(b"\n".join(texts))))

    assert [line for batch in batches for line in batch] == texts
    assert max(map(len, batches)) <= 64
    assert threading.active_count() - before < 50


def test_words(capsys):
    _, version = exported("token_classification")
    main(["--model", str(version), "anna lost", "fee " * 25])
    first, second = capsys.readouterr().out.splitlines()

    assert [word.split("/")[0] for word in first.split()] == ["anna", "lost"]
    assert second.split()[22:] == ["fee/?"] * 3, "24 ids are [CLS], 22 words and [SEP]"
    assert [word["label"] for word in ExportedModel(version).ask(["fee " * 25])[0]["tokens"]][22:] == [None] * 3


def test_no_version_yet(tmp_path, capsys):
    file = write_config(config(tmp_path), tmp_path / "config.toml")
    with pytest.raises(ArtifactError, match=r"models/desk: is not there.*tff-pipeline export"):
        main(["--config", str(file), "text"])
    (tmp_path / "models" / "desk" / ".staging-1-x").mkdir(parents=True)
    (tmp_path / "models" / "desk" / "1").mkdir()
    with pytest.raises(ArtifactError, match="holds no complete version"):
        main(["--config", str(file), "text"])


def test_an_altered_version_is_not_asked(version, tmp_path):
    altered = shutil.copytree(version, tmp_path / "1")
    with (altered / "variables" / "variables.data-00000-of-00001").open("r+b") as file:
        file.write(b"\1")
    with pytest.raises(ArtifactError, match=r"variables\.data-00000-of-00001: has changed"):
        main(["--model", str(altered), "text"])


def test_a_file_that_is_not_there(version, tmp_path):
    with pytest.raises(InputError, match=r"nothing\.txt: cannot be read \(No such file or directory\)"):
        main(["--model", str(version), "--file", str(tmp_path / "nothing.txt")])
    with pytest.raises(InputError, match="cannot be read"):
        main(["--model", str(version), "--file", str(tmp_path)])


def test_it_needs_neither_transformers_nor_tff_and_survives_head(tmp_path):
    """In a process of its own, into a pipe that is closed after one line."""
    run, _ = exported()
    file = write_config(config_of(run), tmp_path / "config.toml")
    code = (
        "import sys; from tff_pipeline.progress import silence_libraries; silence_libraries()\n"
        "from tff_pipeline.commands.predict import main\n"
        f"code = main(['--config', {str(file)!r}, *['text'] * 20_000])\n"
        "print(sorted({'transformers', 'tensorflow_federated', 'tf_keras', 'sklearn'} & set(sys.modules)), file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline().endswith("\ttext\n")
        child.stdout.close()
        assert child.stderr.read().splitlines()[-1] == "[]"
    assert child.returncode == 0


def test_an_explanation_is_a_line(version, capsys):
    """The text in pieces, each with its part of the score; or of a label one names."""
    assert main(["--model", str(version), "--explain", "my card is lost", ""]) == 0
    first, empty = capsys.readouterr().out.splitlines()
    label, score, pieces = first.split("\t")
    assert re.fullmatch(r"my\([+-]\d\.\d{3}\) card\([+-]\d\.\d{3}\) is\([+-]\d\.\d{3}\) lost\([+-]\d\.\d{3}\)", pieces)
    predicted = ExportedModel(version).ask(["my card is lost"])[0]
    assert (label, score) == (predicted["label"], f"{predicted['score']:.3f}")
    assert empty.split("\t")[2] == ""

    other = next(each for each in LABELS if each != label)
    main(["--model", str(version), "--explain", "--label", other, "--json", "my card is lost"])
    answer = json.loads(capsys.readouterr().out)
    assert answer["label"] == other
    total = sum(piece["attribution"] for piece in answer["pieces"])
    assert total == pytest.approx(answer["score"] - answer["baseline_score"] + answer["gap"], abs=1e-5)
    with pytest.raises(InputError, match=r"--label is 'none'; expected one of card, fees, other"):
        main(["--model", str(version), "--explain", "--label", "none", "text"])


def test_words_are_not_explained():
    _, version = exported("token_classification")
    with pytest.raises(ArtifactError, match="has no signature `explain`; expected one of a sequence classification"):
        main(["--model", str(version), "--explain", "anna lost"])
