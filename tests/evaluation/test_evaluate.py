"""Metrics against hand-computed values, and a run's evaluation against asking the model one text at a time."""

import json

import numpy as np
import pytest
from builders.serving_fixtures import LABELS, SILOS, TAGGED_SILOS, TAGS, config, make_run, write_config

from tff_pipeline.commands.evaluate import main
from tff_pipeline.errors import ArtifactError
from tff_pipeline.evaluation import metrics
from tff_pipeline.evaluation.answers import Answers
from tff_pipeline.evaluation.evaluate import evaluate
from tff_pipeline.evaluation.metrics import (
    calibration_error,
    describe,
    entities,
    entity_scores,
    label_scores,
    macro_f1,
    summarise,
)
from tff_pipeline.evaluation.tables import print_tables
from tff_pipeline.progress import Progress


def answers(truth, predicted, *, confidence=None, groups=None, examples=None, clients=None):
    count = len(truth)
    confidence = np.full(count, 0.5, np.float32) if confidence is None else np.array(confidence, np.float32)
    given = {"groups": groups, "examples": examples, "clients": clients}
    rest = {name: np.array(range(count) if value is None else value, np.int64) for name, value in given.items()}
    return Answers(np.array(truth, np.int64), np.array(predicted, np.int64), confidence, -np.log(confidence), **rest)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("workdir"))


@pytest.fixture(scope="module")
def result(run):
    return evaluate(run, progress=Progress(interactive=False))


# -- the numbers -------------------------------------------------------------------------------------------------------


def test_hand_computed_numbers():
    """Truth a a a b, prediction a a b c.

    Accuracy 2/4. a: precision 2/2, recall 2/3, F1 0.8; b: 0 of 1 right, F1 0; c does not occur in the truth, so the
    macro-F1 is (0.8 + 0) / 2. The majority answer a is right 3 times of 4. Loss: -log 0.5.
    """
    numbers = describe(answers([0, 0, 0, 1], [0, 0, 1, 2], clients=[0, 0, 1, 1]))

    assert (numbers["examples"], numbers["clients"]) == (4, 2)
    assert numbers["accuracy"] == 0.5
    assert numbers["macro_f1"] == pytest.approx(0.4)
    assert numbers["majority_accuracy"] == 0.75
    assert numbers["loss"] == pytest.approx(np.log(2))


def test_macro_f1_is_over_labels_of_the_truth():
    assert macro_f1(np.array([5, 5]), np.array([5, 5])) == 1.0
    assert macro_f1(np.array([5, 7]), np.array([5, 5])) == pytest.approx((2 / 3 + 0) / 2)


def test_scores_are_those_of_scikit_learn():
    """Seed 3: 400 examples of 7 labels, the last of them never true and never predicted."""
    from sklearn.metrics import f1_score, precision_recall_fscore_support

    random = np.random.default_rng(3)
    truth, predicted = random.integers(0, 6, 400), random.integers(0, 6, 400)
    expected = precision_recall_fscore_support(truth, predicted, labels=range(7), zero_division=0)
    found = label_scores(truth, predicted, 7)
    for name, column in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        np.testing.assert_allclose([score[name] for score in found], column)
    assert macro_f1(truth, predicted) == pytest.approx(f1_score(truth, predicted, average="macro"))


def test_calibration_error_by_hand():
    """Confidence 0.9 and right once of twice: |0.9 - 0.5|; confidence 0.3 and never right: 0.3. Half the rows each."""
    found = calibration_error(np.array([0.9, 0.9, 0.3, 0.3]), np.array([True, False, False, False]))

    assert found == pytest.approx((0.4 + 0.3) / 2)
    assert calibration_error(np.array([1.0, 1.0]), np.array([True, True])) == 0.0


def test_labels_and_confusion_by_hand():
    found = summarise(
        {"a": answers([0, 0, 1], [0, 1, 1], groups=[0, 0, 0])}, {"a": [""]}, ("x", "y", "z"), "sequence_classification"
    )

    assert found["confusion"]["matrix"] == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert found["labels"]["x"] == {
        "precision": 1.0,
        "recall": 0.5,
        "f1": pytest.approx(2 / 3),
        "support": 2,
        "predicted": 1,
    }
    assert found["labels"]["z"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0, "predicted": 0}
    assert found["groups"] == {}


def test_groups_of_one_name_are_one_across_silos():
    """Silo a calls "app" 1, silo b calls it 0: right 1 of 1 and 0 of 1."""
    silos = {"a": answers([0, 0], [0, 1], groups=[1, 0]), "b": answers([0], [1], groups=[0])}
    found = summarise(silos, {"a": ["phone", "app"], "b": ["app", "desk"]}, ("x", "y"), "sequence_classification")

    assert {name: (part["examples"], part["clients"], part["accuracy"]) for name, part in found["groups"].items()} == {
        "app": (2, 2, 0.5),
        "phone": (1, 1, 0.0),
        "desk": (0, 0, None),
    }
    assert found["overall"]["clients"] == 3


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O O", []),
        ("B-A I-A O B-B", [(0, 2, "A"), (3, 4, "B")]),
        ("B-A B-A", [(0, 1, "A"), (1, 2, "A")]),
        ("B-A I-B I-A", [(0, 1, "A")]),
        ("O I-A I-A", []),
        ("I-A B-A I-A", [(1, 3, "A")]),
        ("B-A-B I-A-B", [(0, 2, "A-B")]),
        ("", []),
    ],
)
def test_strict_iob2_entities(tags, expected):
    assert entities(tags.split()) == set(expected)


def test_entity_scores_by_hand():
    """Two A and one B in the truth; one A and one wrong C found: micro P 1/2, R 1/3; macro F1 over A (2/3) and B (0)."""
    truth = [["B-A", "I-A", "O", "B-A"], ["B-B", "I-B"]]
    predicted = [["B-A", "I-A", "O", "O"], ["B-C", "I-B"]]
    found = entity_scores(truth, predicted)

    assert found["micro"] == {
        "precision": 0.5,
        "recall": pytest.approx(1 / 3),
        "f1": pytest.approx(0.4),
        "support": 3,
        "predicted": 2,
    }
    assert found["types"]["A"]["f1"] == pytest.approx(2 / 3)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 0) / 2)


def test_an_entity_does_not_reach_into_the_next_sentence():
    """B-A | I-A in two sentences is one entity of one word, not one of two."""
    tags = ("B-A", "I-A", "O")
    whole = answers([0, 1], [0, 1], examples=[0, 1])

    assert describe(whole, tags)["entity_f1"] == 1.0
    assert entity_scores(*metrics._tag_sequences(whole, tags))["micro"]["support"] == 1


# -- a run -------------------------------------------------------------------------------------------------------------


def test_numbers_of_a_run_are_those_of_asking_one_text_at_a_time(run, result):
    from tff_pipeline.training.store import load_trained

    trained = load_trained(run)
    for silo, data in SILOS.items():
        right, losses = [], []
        for text, label, _ in (example for client in data.splits["test"] for example in client):
            logits = trained.network(trained.tokenizer.encode([text])[0][np.newaxis]).numpy()[0].astype(np.float64)
            right.append(LABELS[logits.argmax()] == label)
            losses.append(np.log(np.exp(logits).sum()) - logits[LABELS.index(label)])
        found = result["silos"][silo]
        assert found["examples"] == len(right)
        if right:
            assert found["accuracy"] == pytest.approx(np.mean(right))
            assert found["loss"] == pytest.approx(np.mean(losses), abs=1e-4)
    parts = [part for part in result["silos"].values() if part["examples"]]
    assert result["overall"]["accuracy"] == pytest.approx(
        sum(part["accuracy"] * part["examples"] for part in parts) / 9
    )


def test_result_says_what_it_was_made_from(run, result):
    assert (result["run"], result["split"]) == (run.name, "test")
    assert result["snapshots"] == {"bank": "0001", "clinic": "0001", "insurer": "0001"}
    assert json.loads((run / "evaluation.json").read_text()) == result
    assert (result["overall"]["clients"], result["overall"]["examples"]) == (5, 9)
    assert set(result["groups"]) == {"app", "phone"}
    assert np.array(result["confusion"]["matrix"]).sum() == 9


def test_a_silo_without_test_clients_is_an_entry_without_numbers(result):
    assert result["silos"]["insurer"] == {
        "examples": 0,
        "clients": 0,
        "accuracy": None,
        "macro_f1": None,
        "majority_accuracy": None,
        "loss": None,
        "calibration_error": None,
    }


def test_an_empty_split_is_an_answer(run, capsys):
    """And a split other than test is written beside the held-out numbers, not over them."""
    before = (run / "evaluation.json").read_bytes() if (run / "evaluation.json").exists() else None
    assert main(["--run", str(run), "--split", "validation"]) == 0

    assert "No client of any silo is in the split 'validation'" in capsys.readouterr().out
    written = json.loads((run / "evaluation-validation.json").read_text())
    assert (written["overall"]["examples"], written["overall"]["accuracy"]) == (0, None)
    assert ((run / "evaluation.json").read_bytes() if (run / "evaluation.json").exists() else None) == before


def test_scores_on_training_clients_come_with_a_warning_and_are_kept_nowhere(run, capsys):
    def files() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in run.rglob("*") if path.is_file()}

    before = files()
    assert main(["--run", str(run), "--split", "train", "--json"]) == 0

    out, err = capsys.readouterr()
    (warning,) = [event for event in map(json.loads, err.splitlines()) if event["event"] == "warning"]
    assert "no differential privacy guarantee covers them" in warning["message"]
    printed = json.loads(out)
    assert printed["split"] == "train"
    assert printed["overall"]["examples"] > 0
    assert printed["warning"] == warning["message"], "what is passed on in JSON says it too"
    assert files() == before
    # Held-out clients need no warning.
    assert main(["--run", str(run), "--json"]) == 0
    out, err = capsys.readouterr()
    assert "warning" not in json.loads(out)
    assert "warning" not in err


def test_token_classification(tmp_path):
    """Tokens are counted by their words: 9 words in 3 sentences, 3 entities in the truth."""
    run = make_run(tmp_path, task="token_classification")
    found = evaluate(run, progress=Progress(interactive=False))

    assert (found["overall"]["tokens"], found["overall"]["examples"], found["overall"]["clients"]) == (9, 3, 2)
    assert found["entities"]["micro"]["support"] == 3
    words = [tag for client in TAGGED_SILOS["paper"].splits["test"] for _, tags, _ in client for tag in tags.split()]
    assert {tag: found["labels"][tag]["support"] for tag in TAGS} == {tag: words.count(tag) for tag in TAGS}
    print_tables(found)


# -- the command -------------------------------------------------------------------------------------------------------


def test_command_prints_json_or_a_table(run, tmp_path, capsys):
    file = write_config(config(run.parent.parent), tmp_path / "config.toml")
    assert main(["--config", str(file), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["overall"]["examples"] == 9
    assert '"event": "evaluate"' in err

    assert main(["--run", str(run)]) == 0
    out = capsys.readouterr().out
    assert "silo clinic" in out
    assert "macro-F1" in out
    assert "truth in rows" in out


def test_no_text_reaches_the_output(run, capsys):
    main(["--run", str(run), "--json"])
    shown = "".join(capsys.readouterr()) + (run / "evaluation.json").read_text()

    assert not [
        text
        for data in SILOS.values()
        for client in data.splits["test"]
        for text, *_ in client
        if len(text) > 8 and text in shown
    ]


def test_no_run_of_that_name(run, tmp_path):
    configuration = write_config(config(run.parent.parent), tmp_path / "config.toml")
    with pytest.raises(ArtifactError, match=r"no run of the pipeline 'other'.*tff-pipeline train"):
        main(["--config", str(configuration), "--set", "pipeline.name=other"])


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("trained", "training has not finished here"),
        ("snapshots", r"not complete .*COMPLETE"),
        ("run.json", "no such file"),
    ],
)
def test_what_is_missing_is_named(tmp_path, broken, words):
    run = make_run(tmp_path)
    if broken == "snapshots":
        (tmp_path / "silos" / "bank" / "snapshots" / "0001" / "COMPLETE").unlink()
    elif broken == "trained":
        (run / "trained" / "COMPLETE").unlink()
    else:
        (run / broken).unlink()
    with pytest.raises(ArtifactError, match=words):
        evaluate(run, progress=Progress(interactive=False))


def test_a_result_that_cannot_be_written_is_named(tmp_path):
    run = make_run(tmp_path)
    (run / "evaluation.json" / "in the way").mkdir(parents=True)
    with pytest.raises(
        ArtifactError, match=r"evaluation\.json: the evaluation could not be written \(Is a directory\)"
    ):
        evaluate(run, progress=Progress(interactive=False))
    assert [path.name for path in run.glob(".evaluation*")] == []


def test_a_work_directory_may_move(tmp_path):
    run = make_run(tmp_path / "here")
    (tmp_path / "here" / "silos").rename(tmp_path / "silos")
    (tmp_path / "runs").mkdir()
    run.rename(tmp_path / "runs" / run.name)

    assert evaluate(tmp_path / "runs" / run.name, progress=Progress(interactive=False))["overall"]["examples"] == 9
