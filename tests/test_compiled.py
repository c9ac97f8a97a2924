"""What tests share within a session is made anew wherever it could differ."""

import functools
from typing import Any

import pytest
from builders import compiled
from builders.plans import plan

from tff_pipeline.aggregators import dp_sum
from tff_pipeline.aggregators import quantized_sum as quantized
from tff_pipeline.learning import process
from tff_pipeline.model.learner import FeatureLearner


@pytest.fixture
def build() -> Any:
    """Stands for `learning.build`, of the same module, and returns another object each time."""
    return compiled._once(functools.wraps(process.build)(lambda *_, **__: object()))


def model(hidden_size: int) -> Any:
    return lambda: FeatureLearner(hidden_size=hidden_size, labels=3)


def test_equal_arguments_are_one_process(build):
    assert build(model(4), plan()) is build(model(4), plan())
    assert build(functools.partial(FeatureLearner, labels=3)) is build(functools.partial(FeatureLearner, labels=3))


def test_every_argument_counts(build):
    """What the model's function closes over, the plan, an option; and two functions of the same numbers."""
    made = [
        build(model(4), plan()),
        build(model(5), plan()),
        build(model(4), plan(rounds=21)),
        build(model(4), plan(), largest_weight=2.0),
        build(lambda: FeatureLearner(hidden_size=4, labels=3), plan()),
    ]

    assert len(set(made)) == len(made)


def test_what_has_no_content_to_compare_is_made_anew(build):
    assert build(object()) is not build(object())


@pytest.mark.parametrize(
    ("owner", "name"), [(dp_sum, "norm_at_least"), (quantized, "clipped_in_steps"), (FeatureLearner, "forward_pass")]
)
def test_a_fault_planted_in_what_is_compiled_is_made_anew(build, monkeypatch, owner, name):
    sound = build(model(4), plan())
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, lambda *_: None)
        faulty = build(model(4), plan())

    assert faulty is not sound
    assert build(model(4), plan()) is sound


def test_deterministic_operations_are_another_process(build):
    from tff_pipeline.runtime.determinism import deterministic_operations

    usual = build(model(4), plan())
    with deterministic_operations(["GPU:0"]):
        assert build(model(4), plan()) is not usual
