"""The server's state by name: exact paths, nothing changed in place, and what a round is given is never kept."""

import numpy as np
import pytest

from tff_pipeline.learning.state import ServerState, StateLayout

QUERY = "aggregator/query_state/numerator_state"
NAMES = (
    "global_model_weights/trainable/0",
    "global_model_weights/trainable/1",
    "client_work/learning_rate",
    f"{QUERY}/supplied_noise/0",
    f"{QUERY}/supplied_noise/1",
    f"{QUERY}/supplied_noise/2",
    f"{QUERY}/clip",
    "finalizer/accumulator/0",
)


def state(names=NAMES) -> ServerState:
    return ServerState(StateLayout.of(names), tuple(np.array(float(index)) for index in range(len(names))))


def test_tensors_are_found_by_their_whole_path():
    layout = StateLayout.of(NAMES)

    assert (layout.weights, layout.noise, layout.clip) == ((0, 1), (3, 4, 5), 6)
    assert (layout.rotation, layout.noise_shares) == (None, None)
    assert StateLayout.of(["aggregator/public_rotation", "aggregator/silo_noise"]).supplied == {0, 1}


@pytest.mark.parametrize(
    "name",
    [
        "finalizer/global_model_weights/trainable/0",
        "global_model_weights/trainable_not/0",
        "client_work/supplied_noise/0",
        "finalizer/clip",
        "aggregator/inner/public_rotation",
        "finalizer/silo_noise",
    ],
)
def test_a_path_that_only_contains_such_a_name_is_something_else(name):
    layout = StateLayout.of([name])

    assert (layout.weights, layout.noise, layout.clip, layout.rotation, layout.noise_shares) == (
        (),
        (),
        None,
        None,
        None,
    )
    assert layout.kept == (0,)


def test_what_a_round_is_given_is_not_kept():
    before = state()

    assert before.layout.kept_names == (*NAMES[:3], NAMES[6], NAMES[7])
    assert [float(array) for array in before.kept] == [0, 1, 2, 6, 7]
    restored = state().with_noise([np.array(9.0)] * 3).with_kept([np.array(float(n)) for n in (10, 11, 12, 16, 17)])
    assert [float(array) for array in restored.arrays] == [10, 11, 12, 9, 9, 9, 16, 17]


def test_a_state_is_a_value():
    before = state()

    after = before.with_weights([np.array(5.0), np.array(6.0)]).with_clip(0.5)

    assert [float(weight) for weight in after.weights] == [5, 6]
    assert (after.clip, before.clip) == (0.5, 6.0)
    assert [float(weight) for weight in before.weights] == [0, 1]


def test_noise_for_another_number_of_tensors_is_refused():
    with pytest.raises(ValueError, match="shorter"):
        state().with_noise([np.zeros(())] * 2)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda made: made.with_rotation(np.zeros(2, np.int64)), "a rotation"),
        (lambda made: made.with_noise_shares(np.zeros(2, np.int64)), "noise of the silos"),
        (lambda made: state(NAMES[:3]).with_clip(1.0), "an adaptive clip"),
    ],
)
def test_a_part_that_the_process_does_not_have_is_refused_by_name(change, part):
    with pytest.raises(ValueError, match=f"built without {part}"):
        change(state())
