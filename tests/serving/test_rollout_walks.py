"""No dead ends: every command goes on from whatever another that was stopped has left, and any whole version can serve."""

import contextlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from builders import TESTS, environment
from builders.publish_races import make_version
from builders.rollout_walks import Server

from serving import lock
from serving.commands.publish import main as publish_main
from serving.commands.rollout import canary_main, promote_main, rollback_main
from serving.rollout import Rollout, Served, followers, servers
from tff_pipeline.artifacts import version_numbers
from tff_pipeline.errors import ArtifactError, ConfigError, PipelineError
from tff_pipeline.progress import Progress

QUIET = Progress(interactive=False)
WALKS, STEPS = 16, 25


def test_random_walks():
    """Commands, kills before any call that changes the disk, and servers that load, fail, hang or cannot be reached.

    Seeds 1 to 16, which a failure prints with the commands that led there; how processes meet the clock is not seeded.
    """
    script = TESTS / "builders" / "rollout_walks.py"
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as ending:
        walking = [
            ending.enter_context(
                subprocess.Popen(
                    [
                        sys.executable,
                        str(script),
                        f"{folder}/{first}",
                        str(first),
                        str(first + WALKS // 2 - 1),
                        str(STEPS),
                    ],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env=environment(),
                )
            )
            for first in (1, 1 + WALKS // 2)
        ]
        for walk in walking:
            out, err = walk.communicate()
            assert walk.returncode == 0, err[-5000:]
            assert json.loads(out) == {"walks": WALKS // 2}


class Place:
    """Versions 1 to 4, of which 1 and 2 are published; a models.config; and a server that follows it."""

    def __init__(self, folder: Path):
        self.made, self.base, self.file = folder / "made", folder / "served" / "desk", folder / "models.config"
        for number in (1, 2, 3, 4):
            make_version(self.made, number)
        self.file.write_text(
            f'model_config_list {{ config {{ name: "desk" base_path: "{self.base}" model_platform: "tensorflow" }} }}\n'
        )
        for number in (1, 2):
            self.publish(number)
        self.server = Server()
        self.server.start(self.file)

    def publish(self, number, *more):
        return publish_main(["--model", str(self.made / str(number)), "--to", str(self.base), *more])

    def rollout(self, *, servers=True, wait_s=20.0):
        addresses = [self.server.address] if servers else []
        return Rollout(self.file, "desk", servers=addresses, timeout_s=wait_s, progress=QUIET)

    def served(self):
        self.server.settle()
        assert self.server.violations == []
        return self.rollout().served()

    def labels(self):
        labels = dict(self.served().labels)
        assert self.server.labels == labels
        assert self.server.loaded == set(labels.values())
        return labels

    def stop_after(self, step, monkeypatch, change):
        """Runs a change whose process ends, as if it were killed, when it has written this step."""
        wrote = Rollout._step

        def writing(self, name, served):
            wrote(self, name, served)
            if name == step:
                raise Stopped

        with monkeypatch.context() as patched:
            patched.setattr(Rollout, "_step", writing)
            patched.setattr(Rollout, "_undone_on_failure", _never_undone)
            with pytest.raises(Stopped):
                change()


class Stopped(BaseException):
    pass


def _never_undone(self):
    return contextlib.nullcontext()


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(servers, "_POLL_S", 0.005)
    return Place(tmp_path)


def test_what_was_published_without_canary_can_be_one(place):
    place.rollout().canary(1)
    assert place.labels() == {"stable": 2, "canary": 1}
    assert place.rollout().canary(1).labels == {"stable": 2, "canary": 1}, "and again"


def test_what_was_rolled_back_can_be_canary_and_stable_again(place):
    place.rollout().canary(1)
    place.rollout().rollback()
    assert place.labels() == {"stable": 2}
    place.rollout().canary(1)
    place.rollout().promote()
    assert place.labels() == {"stable": 1, "previous": 2}
    place.rollout().rollback()
    assert place.labels() == {"stable": 2}
    place.rollout().promote(1)
    assert place.labels() == {"stable": 1, "previous": 2}


def test_what_the_servers_did_not_load_in_time_can_be_tried_again(place):
    place.rollout().pin()
    place.server.broken = {1}
    with pytest.raises(
        PipelineError, match=r"version 1 to be AVAILABLE of desk; it says 'END' \(no graph\)\. .* as it was"
    ):
        place.rollout().canary(1)
    assert place.rollout().served() == Served(place.base, (2,), {"stable": 2})
    place.server.broken = set()
    place.rollout().canary(1)
    assert place.labels() == {"stable": 2, "canary": 1}


def test_a_version_that_could_not_be_loaded_and_whose_command_was_killed_is_loaded_again(place, monkeypatch):
    """The server tries again only after it has followed a file that does not name the version."""
    place.rollout().pin()
    place.server.broken = {1}
    place.stop_after("load", monkeypatch, lambda: place.rollout().canary(1))
    place.server.settle()
    place.server.broken = set()
    place.rollout().promote(1)
    assert place.labels() == {"stable": 1, "previous": 2}


@pytest.mark.parametrize("step", ["load", "label"])
@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (lambda place: place.rollout().canary(1), {"stable": 2, "canary": 1}),
        (lambda place: place.rollout().promote(1), {"stable": 1, "previous": 2}),
        (lambda place: place.publish(3, *place_arguments(place)), {"stable": 2, "canary": 3}),
        (lambda place: place.rollout().rollback(1), {"stable": 2}),
    ],
    ids=["canary", "promote", "publish", "rollback"],
)
def test_killed_between_load_and_label_every_command_goes_on(place, monkeypatch, step, command, expected):
    """`canary 1` was killed after it wrote this step."""
    place.rollout().pin()
    place.stop_after(step, monkeypatch, lambda: place.rollout().canary(1))
    command(place)
    assert place.labels() == expected
    assert place.served().unfinished is None


def place_arguments(place):
    return ["--canary", "--models-config", str(place.file), "--server", place.server.address, "--wait-s", "20"]


def test_rollback_takes_back_a_canary_that_was_loaded_and_has_no_label(place, monkeypatch):
    place.rollout().promote(1)
    place.publish(3)
    place.stop_after("load", monkeypatch, lambda: place.rollout().canary(3))
    place.rollout().rollback()
    assert place.labels() == {"stable": 1, "previous": 2}, "and not one version further back"


@pytest.mark.parametrize("command", ["promote", "rollback"])
def test_a_command_without_a_version_that_was_killed_is_finished_and_not_done_twice(place, monkeypatch, command):
    place.rollout().promote(1)
    place.publish(3)
    place.rollout().canary(3)
    expected = {"promote": {"stable": 3, "previous": 1}, "rollback": {"stable": 1, "previous": 2}}[command]
    place.stop_after("label", monkeypatch, getattr(place.rollout(), command))
    assert place.rollout().served().unfinished is not None
    getattr(place.rollout(), command)()
    assert place.labels() == expected


def test_rollback_of_a_version_can_be_run_twice(place):
    place.rollout().promote(1)
    for _ in range(2):
        place.rollout().rollback(1)
        assert place.labels() == {"stable": 2}


def test_publish_with_canary_can_be_run_twice(place):
    for _ in range(2):
        assert place.publish(3, *place_arguments(place)) == 0
        assert place.labels() == {"stable": 2, "canary": 3}


def test_what_serves_is_what_the_server_says_and_not_the_newest_that_it_could_not_load(place):
    place.server.broken = {3}
    place.publish(3)
    place.server.settle()
    assert place.server.loaded == {2}
    place.rollout().canary(1)
    assert place.labels() == {"stable": 2, "canary": 1}


def test_without_a_server_only_labels_of_loaded_versions_are_moved(place):
    """The server would refuse the whole file, again and again."""
    with pytest.raises(ConfigError, match=r"version 1 is not loaded, .* expected --server"):
        place.rollout(servers=False).promote(1)
    place.rollout().canary(1)
    assert place.rollout(servers=False).promote().labels == {"stable": 1, "previous": 2}


def test_errors_say_what_can_be_done(place):
    place.rollout().pin()
    for change in (place.rollout().promote, place.rollout().rollback):
        with pytest.raises(
            ArtifactError, match=r"It serves 2 \(stable\)\. .* takes any version that is published: 1, 2\."
        ):
            change()
    with pytest.raises(ArtifactError, match=r"desk/9: is not published; expected one of the versions there \(1, 2\)"):
        place.rollout().canary(9)
    (place.base / "1" / "saved_model.pb").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"1/saved_model\.pb: has changed"):
        place.rollout().promote(1)


def test_a_file_that_someone_else_has_changed_is_left_as_it_is(place):
    following = place.rollout()
    following.pin()
    with following.locked():
        text = place.file.read_text().replace('"tensorflow"', '"tensorflow" logging_config { }')
        place.file.write_text(text)
        with pytest.raises(PipelineError, match="was changed by something else while this command was at work"):
            following.promote(1)
    assert place.file.read_text() == text


def test_another_models_change_meanwhile_is_kept(place):
    """Also where this model's part is put back."""
    other = 'config { name: "other" base_path: "/o" model_platform: "tensorflow" }'
    place.rollout().pin()
    place.server.mode = "slow"

    following = place.rollout(wait_s=0.0)
    wrote = following._step

    def writing(step, served):
        wrote(step, served)
        place.file.write_text(place.file.read_text().replace("model_config_list {", f"model_config_list {{ {other}"))

    following._step = writing
    with pytest.raises(PipelineError, match="waited for version 1"):
        following.canary(1)
    assert 'name: "other"' in place.file.read_text()
    assert following.served().labels == {"stable": 2}


def test_stray_files_are_cleared_and_others_stay(place):
    (place.base / ".publishing-7-dead").mkdir()
    (place.base / ".removing-1").mkdir()
    place.file.with_name(".writing-models.config-dead").touch()
    others = [place.file.with_name(name) for name in ("models.config.bak", ".models.config.swp", ".writing-other-dead")]
    for path in others:
        path.touch()
    place.rollout().pin()
    assert sorted(path.name for path in place.base.iterdir()) == [lock.FOLDER, "1", "2"]
    assert not place.file.with_name(".writing-models.config-dead").exists()
    assert all(path.exists() for path in others)


def test_keep_asks_every_models_config_that_was_used_with_the_base_path(place):
    """So `publish --keep` without --models-config does not remove the stable version."""
    place.rollout().promote(1)
    place.publish(3)
    place.publish(4, "--keep", "1")
    assert version_numbers(place.base) == [1, 2, 4]
    place.file.unlink()
    with pytest.raises(ConfigError, match=r"names .*models\.config, which followed .* No version was removed"):
        place.publish(4, "--keep", "1")
    assert version_numbers(place.base) == [1, 2, 4]


def test_keep_remembers_a_models_config_that_publish_was_given_without_canary(place):
    place.file.write_text(
        place.file.read_text().replace(
            'model_platform: "tensorflow"',
            'model_platform: "tensorflow" model_version_policy { specific { versions: 1 } } '
            'version_labels { key: "stable" value: 1 }',
        )
    )
    place.publish(3, "--keep", "1", "--models-config", str(place.file))
    assert version_numbers(place.base) == [1, 3]
    place.publish(3, "--keep", "1")
    assert version_numbers(place.base) == [1, 3], "1 is the stable version"


def test_a_models_config_of_another_base_path_is_not_remembered(place, tmp_path):
    other = tmp_path / "elsewhere"
    publish_main(["--model", str(place.made / "1"), "--to", str(other), "--models-config", str(place.file)])
    assert not (other / lock.FOLDER / "models-configs.json").exists()


def test_a_symbolic_link_is_followed_and_its_target_is_what_changes(place, tmp_path):
    """The server may read the target; and a link that were replaced by a file would no longer follow it."""
    target = tmp_path / "etc" / "models.config"
    target.parent.mkdir()
    place.file.rename(target)
    place.file.symlink_to(target)
    place.server.start(target)
    place.rollout().promote(1)
    assert place.labels() == {"stable": 1, "previous": 2}
    assert place.file.is_symlink()
    assert followers.needed(place.base) == {1, 2}
    assert sorted(path.name for path in target.parent.iterdir()) == [".models.config.writing", "models.config"]


def test_a_symbolic_link_to_itself_is_refused(place):
    place.file.unlink()
    place.file.symlink_to(place.file)
    with pytest.raises(ConfigError, match=r"models\.config: cannot be read"):
        place.rollout().promote(1)


def test_keep_leaves_what_was_just_published(place):
    """Also where it is older than what is there."""
    place.publish(3)
    place.publish(4)
    place.publish(1, "--keep", "2")
    assert version_numbers(place.base) == [1, 3, 4]


def test_a_version_that_failed_as_the_newest_of_all_is_loaded_again(place):
    """Where models.config names no version, the server would keep wanting it, and never try again."""
    place.server.broken = {4}
    place.publish(4)
    place.server.settle()
    place.server.broken = set()
    place.rollout().promote(4)
    assert place.labels() == {"stable": 4, "previous": 2}


def test_keep_leaves_what_a_server_has_loaded(place):
    """The newest could not be loaded, and the server goes on with the one before."""
    place.server.broken = {4}
    place.publish(3)
    place.server.settle()
    place.publish(4, "--keep", "1", "--models-config", str(place.file), "--server", place.server.address)
    assert version_numbers(place.base) == [3, 4]


def test_a_base_path_that_is_not_here(place):
    place.file.write_text(place.file.read_text().replace(str(place.base), "/nowhere/desk"))
    with pytest.raises(ConfigError, match="has base_path /nowhere/desk for desk, which is no folder here"):
        place.rollout().promote(1)


@pytest.mark.parametrize("main", [canary_main, promote_main, rollback_main, publish_main])
def test_help_teaches(main, capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "--lock-wait-s" in said
    assert "the same command" in said
    assert "One command at a time changes a base path" in said
