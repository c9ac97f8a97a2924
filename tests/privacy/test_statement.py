"""Every sentence of every statement is true: each one has a test that holds it, or an assumption that docs/privacy.md names.

The table is in `builders.statement_table`. A sentence that it does not have fails, and so does a row of it that no statement
says or that names a test or an assumption which is not there.
"""

import ast
import functools
import itertools
import re
from typing import Any

import pytest
from builders.plans import plan
from builders.statement_table import TABLE

from tff_pipeline.privacy import accounting
from tff_pipeline.privacy.mechanisms import (
    AdaptiveGaussian,
    DistributedDiscreteGaussian,
    NoisedMetrics,
    NoPrivacy,
    Tree,
)
from tff_pipeline.privacy.statement import sentences

SILOS: dict[str, Any] = {
    "unit": "silo", "clients": 6, "expected_cohort": 3.0, "sampling_probability": 0.5, "noise_multiplier": 5.0, "silos": 6,
}  # fmt: skip

ADAPTIVE: dict[str, Any] = {"mechanism": AdaptiveGaussian, "quantile": 0.5, "count_stddev": 9.0}
NOISED: dict[str, Any] = {"metrics": NoisedMetrics(stddev=20.0), "noise_multiplier": 2.0}
NONE: dict[str, Any] = {"mechanism": NoPrivacy, "delta": None}
PLANS = {
    "gaussian": plan(silos=3),
    "one silo": plan(),
    "large delta": plan(silos=3, delta=1e-2),
    "adaptive": plan(silos=3, noise_multiplier=2.0, **ADAPTIVE),
    "noised metrics": plan(silos=3, **NOISED),
    "adaptive, noised metrics": plan(silos=3, **ADAPTIVE, **NOISED),
    "gaussian, silos": plan(**SILOS),
    "tree": plan(Tree, rounds_per_tree=10, silos=3),
    "tree, silos": plan(Tree, rounds_per_tree=2, **SILOS),
    "shares, none tolerated": plan(DistributedDiscreteGaussian, silos=3),
    "shares, one tolerated": plan(DistributedDiscreteGaussian, silos=3, tolerated_silos=1),
    "shares, two tolerated": plan(DistributedDiscreteGaussian, silos=3, tolerated_silos=2),
    "shares of one silo": plan(DistributedDiscreteGaussian),
    "shares, silos, none tolerated": plan(DistributedDiscreteGaussian, **SILOS),
    "shares, silos, one tolerated": plan(DistributedDiscreteGaussian, tolerated_silos=1, **SILOS),
    "shares, silos, two tolerated": plan(DistributedDiscreteGaussian, tolerated_silos=2, **SILOS),
    "none": plan(silos=3, **NONE),
    "none, silos": plan(**{name: value for name, value in SILOS.items() if name != "noise_multiplier"}, **NONE),
}


@functools.cache
def said_by(name: str) -> frozenset[str]:
    """The sentences of every statement that there can be about a plan; which number its epsilon is, does not matter here."""
    made, found = PLANS[name], set()
    metrics = ("noised",) if made.noised_metrics else ("withheld", "released")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(accounting, "epsilon", lambda *_, **__: 3.5)
        for seeded, reference, kind in itertools.product((False, True), (False, True), metrics):
            for paragraph in sentences(made, seeded=seeded, reference=reference, metrics=kind):
                found |= set(re.split(r"(?<=\.) (?=[A-Z])", paragraph))
    return frozenset(found)


def pattern(row: str) -> "re.Pattern[str]":
    number = r"\d+(?:\.\d+)?(?:e[+-]\d+)?"
    return re.compile(re.escape(row).replace(re.escape("#"), number).replace("UNIT", "(?:client|silo)"))


ROWS_OF_TABLE = {row: pattern(row) for row in TABLE}


def rows_for(sentence: str) -> list[str]:
    return [row for row, matches in ROWS_OF_TABLE.items() if matches.fullmatch(sentence)]


@pytest.mark.parametrize("name", PLANS)
def test_every_sentence_is_held_by_a_test_or_names_an_assumption(name):
    assert len(said_by(name)) > 8
    assert not [sentence for sentence in said_by(name) if len(rows_for(sentence)) != 1]


def test_a_sentence_that_nothing_holds_is_found():
    assert rows_for("The server sees nothing at all.") == []
    assert rows_for("The server sees it. It keeps it.") == []


def test_the_table_has_no_row_that_is_never_said():
    said = {sentence for name in PLANS for sentence in said_by(name)}
    assert not [row for row, matches in ROWS_OF_TABLE.items() if not any(map(matches.fullmatch, said))]


def test_every_test_and_every_assumption_of_the_table_is_there(root):
    tests = {
        node.name
        for path in (root / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    _, _, section = (root / "docs" / "privacy.md").read_text(encoding="utf-8").partition("\n## Assumptions by name\n")
    assumptions = set(re.findall(r"^\| ([a-z-]+) \|", section.partition("\n## ")[0], re.MULTILINE)) - {"name", "---"}
    named = {word for words in TABLE.values() for word in words}

    assert not [word for word in named if not word.startswith("assumed: ") and word not in tests]
    assert {word.removeprefix("assumed: ") for word in named if word.startswith("assumed: ")} == assumptions
    assert all(words for words in TABLE.values())


def test_the_cost_falls_as_the_statement_says():
    """Of the noise's length over the clip: half with twice the silos in a round, a fourth with a sixteenth of the weights."""
    made = PLANS["gaussian, silos"]

    def cost(**changes: Any) -> float:
        return plan(**{**SILOS, **changes}).noise_over_clip

    assert cost(expected_cohort=6.0) == pytest.approx(made.noise_over_clip / 2)
    assert cost(dimension=625) == pytest.approx(made.noise_over_clip / 4)
    # A larger epsilon or fewer rounds at the same epsilon take less noise, and that makes it shorter.
    assert cost(noise_multiplier=2.5) == pytest.approx(made.noise_over_clip / 2)


def test_delta_is_said_as_it_is(monkeypatch):
    monkeypatch.setattr(accounting, "epsilon", lambda *_, **__: 3.5)  # which takes seconds, and does not matter here
    assert ", 1.234567891e-05)-differentially" in sentences(plan(delta=1.234567891e-5), seeded=False)[0]
