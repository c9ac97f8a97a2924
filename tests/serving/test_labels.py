"""The states and steps of a rollout, without a file or a server."""

from pathlib import Path

import pytest

from serving.rollout import labels
from serving.rollout.labels import Move, Served, Unfinished

BASE = Path("/srv/models/desk")


def move(before: Served, after: dict[str, int]) -> Move:
    return Move(before, Unfinished("desk", "promote", after))


@pytest.mark.parametrize(
    ("before", "version", "former", "after"),
    [
        ({"stable": 1, "canary": 2}, 2, 1, {"stable": 2, "previous": 1}),
        ({"stable": 1, "canary": 2}, 3, 1, {"stable": 3, "canary": 2, "previous": 1}),
        ({"stable": 2, "previous": 1}, 1, 2, {"stable": 1, "previous": 2}),
        ({"stable": 2, "previous": 1}, 2, 2, {"stable": 2, "previous": 1}),
        ({}, 1, None, {"stable": 1}),
        ({"stable": 1, "mine": 1}, 2, 1, {"stable": 2, "mine": 1, "previous": 1}),
    ],
)
def test_a_promoted_version_is_stable_and_the_former_one_previous(before, version, former, after):
    """Labels of others stay where they are."""
    assert labels.promoted(before, version, former) == after


def test_a_return_makes_the_previous_version_stable():
    assert labels.returned({"stable": 2, "previous": 1, "mine": 2}) == {"stable": 1, "mine": 2}


def test_labels_of_versions_that_are_gone_are_not_used():
    """But the stable one's is kept: that it is gone must be an error, and not be forgotten."""
    served = Served(BASE, (1, 2, 3), {"stable": 1, "canary": 2, "previous": 3})
    assert served.usable_labels([3]) == {"stable": 1, "previous": 3}


def test_a_move_loads_then_labels_then_drops():
    """From 1 stable, 2 loaded as previous, to 3 stable and 1 previous."""
    way = move(Served(BASE, (1, 2), {"stable": 1, "previous": 2}), {"stable": 3, "previous": 1})
    assert (way.missing, way.new, way.is_in_steps) == ([3], [3], True)
    assert (way.load.versions, way.load.labels) == ((1, 2, 3), {"stable": 1, "previous": 2})
    assert (way.label.versions, way.label.labels) == ((1, 2, 3), {"stable": 3, "previous": 1})
    assert (way.after.versions, way.after.labels) == ((1, 3), {"stable": 3, "previous": 1})
    assert way.load.unfinished == way.label.unfinished == way.unfinished
    assert way.after.unfinished is None


def test_a_move_that_drops_nothing_needs_one_step_after_load():
    assert not move(Served(BASE, (1,), {"stable": 1}), {"stable": 1, "canary": 2}).is_in_steps


def test_a_version_whose_loading_failed_is_taken_out_first():
    """Where the file names no version, the one that serves is named, so that the failed one is not."""
    way = move(Served(BASE), {"stable": 4})
    assert way.unload({4}, serving=2).versions == (2,)
    assert way.unload({4}, serving=2).unfinished == way.unfinished


def test_without_a_stable_label_only_versions_that_lost_theirs_are_dropped():
    """As in a file that was written by hand."""
    way = move(Served(BASE, (1, 2, 3), {"canary": 3}), {})
    assert way.target == {1, 2}
