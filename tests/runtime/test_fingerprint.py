"""A process's digest is the same wherever it is built, and another where anything of what it computes is another."""

import subprocess
import sys
import textwrap

import pytest
from builders import environment
from builders.cases import HIDDEN, LABELS, adaptive_plan, plan

from tff_pipeline.config import TrainingSection


def digest(made=None, *, hidden=HIDDEN, labels=LABELS, **training):
    """Of a head over features; built now, whatever was built before."""
    from tff_pipeline.learning import process as learning
    from tff_pipeline.model.learner import FeatureLearner
    from tff_pipeline.runtime.fingerprint import graph_digest

    build = getattr(learning.build, "__wrapped__", learning.build)
    numbers = TrainingSection(**{"rounds": 3, "clients_per_round": 4.0, **training})
    shapes = [(hidden, labels), (labels,)]
    made = made or plan(dimension=hidden * labels + labels)
    return graph_digest(build(lambda: FeatureLearner(hidden_size=hidden, labels=labels), numbers, made, shapes))


@pytest.fixture(scope="module")
def usual():
    return digest()


def test_two_builds_of_one_process_have_one_digest(usual):
    assert digest() == usual
    assert len(usual) == 64


_ELSEWHERE = """
    from tff_pipeline.progress import silence_libraries
    silence_libraries()
    import importlib.util, sys
    spec = importlib.util.spec_from_file_location("own", sys.argv[1])
    own = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(own)
    own.digest(labels=5)  # so that what TensorFlow counts up is elsewhere
    print(own.digest())
"""


def test_it_is_the_same_in_another_process(usual):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_ELSEWHERE), __file__],
        capture_output=True,
        text=True,
        check=False,
        env={**environment(), "PYTHONHASHSEED": "7"},
    )

    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == usual


@pytest.mark.parametrize(
    "changed",
    [
        lambda: digest(plan(clip_norm=0.25)),
        lambda: digest(client_learning_rate=0.05),
        lambda: digest(server_learning_rate=0.5),
        lambda: digest(hidden=HIDDEN + 1),
        lambda: digest(labels=LABELS + 1),
        lambda: digest(adaptive_plan()),
    ],
    ids=["clip", "client's rate", "server's rate", "layer", "labels", "mechanism"],
)
def test_another_computation_has_another_digest(usual, changed):
    assert changed() != usual


def _of_constant(value):
    import tensorflow as tf

    from tff_pipeline.runtime import fingerprint

    with tf.Graph().as_default() as graph:
        tf.constant(value)
    return fingerprint._digest_of_nodes(graph.as_graph_def().node, (), {}, {})


def test_text_does_not_count_and_numbers_do():
    """Text in a graph is for people, or names a file of this machine."""
    assert _of_constant("/one/folder") == _of_constant("/another/folder")
    assert _of_constant(0.5) != _of_constant(0.25)
