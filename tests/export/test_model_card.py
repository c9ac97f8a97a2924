"""The model card: what it says, that it comes from the manifest alone, and the numbers behind it."""

import subprocess

import numpy as np
import pytest
from builders.serving_fixtures import SILOS, exported

from tff_pipeline.artifacts import read_json, read_manifest
from tff_pipeline.evaluation.answers import Answers
from tff_pipeline.evaluation.evaluate import evaluation_file
from tff_pipeline.evaluation.metrics import accuracy_interval
from tff_pipeline.export.manifest import code
from tff_pipeline.export.model_card import card


@pytest.fixture(scope="module")
def manifest():
    return read_manifest(exported()[1])


def test_it_is_made_from_the_manifest_alone(manifest):
    assert (exported()[1] / "MODEL_CARD.md").read_text() == card(manifest)


def test_it_says_what_a_reader_asks(manifest):
    text = card(manifest)
    for heading in ("Intended use", "Data", "How good it is", "Privacy", "Limits", "How to make it again"):
        assert f"\n## {heading}\n" in text
    assert "- A guarantee in a sentence." in text
    assert "`card`, `fees`, `other`" in text
    overall = read_json(evaluation_file(exported()[0]))["overall"]
    assert f"| accuracy | {overall['accuracy']:.3f} |" in text
    assert "6 of them" not in text
    assert f"{overall['clients']} of them" in text
    assert "Over 2 silos accuracy is" in text, "the third has no held-out client"
    assert "| 3 |" in text, "but all three are counted"


def test_no_silo_is_named(manifest):
    assert not [silo for silo in SILOS if silo in card(manifest)]


def test_what_is_withheld_is_left_out(manifest):
    evaluation = dict.fromkeys(manifest["evaluation"]) | {"split": "test", "clients": 5, "examples": 8}
    text = card({**manifest, "evaluation": evaluation})
    assert "withheld or not measured" in text
    assert "| accuracy |" not in text
    assert "confidence" not in text
    assert "It was not evaluated" in card({**manifest, "evaluation": None})


def test_names_of_others_are_no_markup(manifest):
    text = card({**manifest, "labels": ["a|b", "c`d\n# e"]})
    assert "`a/b`, `c'd # e`" in text


def test_it_says_where_there_is_no_privacy(manifest):
    assert "trained without differential privacy" in card({**manifest, "mechanism": "none"})
    assert "trained without differential privacy" not in card(manifest)


def test_the_commit_of_a_checkout_and_none_without_git(manifest, monkeypatch):
    exported_by = manifest["code"]
    if exported_by["commit"] is not None:  # the tests may run from an archive
        assert len(exported_by["commit"]) == 40

    def missing(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", missing)
    assert code() == {"version": exported_by["version"], "commit": None, "changed": None}


def answers(right, clients):
    truth = np.ones(len(right), np.int64)
    zeros = np.zeros(len(right))
    return Answers(truth, np.array(right, np.int64), zeros, zeros, zeros, np.arange(len(right)), np.array(clients))


def wilson(share, number, z=1.959964):
    """Solves |p - share| = z sqrt(p (1 - p) / n) for p: another way to the same interval."""
    return sorted(np.roots([1 + z * z / number, -2 * share - z * z / number, share * share]).real.tolist())


def test_interval_of_independent_clients():
    """80 of 100 clients with one text each: Wilson's interval for 80 of 99 effective texts (n - 1: the sample's variance)."""
    found = accuracy_interval(answers([1] * 80 + [0] * 20, np.arange(100)))
    np.testing.assert_allclose(found, wilson(0.8, 99), atol=1e-9)


def test_texts_of_one_client_count_as_one_where_they_agree():
    """Ten equal texts of each of 100 clients say no more than one."""
    found = accuracy_interval(answers(np.repeat([1] * 80 + [0] * 20, 10), np.repeat(np.arange(100), 10)))
    np.testing.assert_allclose(found, wilson(0.8, 99), atol=1e-9)


def test_interval_without_differences():
    assert accuracy_interval(answers([1] * 20, np.repeat(np.arange(10), 2))) == pytest.approx(wilson(1.0, 10))
    assert accuracy_interval(answers([1, 0], [3, 3])) is None


def test_training_metrics_are_there_where_they_are_released_and_named_as_not_covered(manifest):
    assert "last round of training" not in card(manifest)
    released = card({**manifest, "training_metrics": {"loss": 0.5, "accuracy": 0.875, "clients": 12.0}})
    assert "In the last round of training (loss 0.5, accuracy 0.875, clients 12)" in released
    assert "the privacy guarantee does not cover them" in released
    noised = card({**manifest, "training_metrics": {"released_accuracy": 0.75}})
    assert "was 0.75 in the mean: with noise" in noised
    assert "does not cover them" not in noised
