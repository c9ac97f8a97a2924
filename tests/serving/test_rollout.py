"""Gates, canary, promotion, rollback, retention and the list: on versions like exported ones, and a local model server that follows."""

import contextlib
import json
import shutil
import threading
from pathlib import Path

import pytest
import tensorflow as tf
from builders.serving_fixtures import exported, write_config
from builders.serving_models import fetch

from serving.base_path.folder import retain
from serving.client import RestClient, ServerError
from serving.commands import list as list_command
from serving.commands.publish import main as publish_main
from serving.commands.rollout import promote_main, rollback_main
from serving.local_server.manager import Loading
from serving.local_server.server import ConfigFile, LocalModelServer, Options, follow
from serving.lock import LockedError
from serving.model_server.models_config import parse
from serving.publishing import gates
from serving.rollout import Rollout, Served
from tff_pipeline import cli
from tff_pipeline.artifacts import COMPLETE, MANIFEST, read_manifest, seal, version_numbers
from tff_pipeline.config import GatesSection
from tff_pipeline.errors import ArtifactError, ConfigError, GateError, PipelineError
from tff_pipeline.progress import Progress
from tff_pipeline.training.store import config_of

QUIET = Progress(interactive=False)


def numbered(folder: Path, number: int, *, damaged: bool = False, **evaluation) -> Path:
    """A version like the exported one, whole, under another number; `damaged` before it was sealed."""
    path = shutil.copytree(exported()[1], folder / str(number))
    manifest = read_manifest(path)
    (path / MANIFEST).unlink()
    (path / COMPLETE).unlink()
    if damaged:
        (path / "saved_model.pb").write_bytes(b"no graph")
    seal(path, {**manifest, "version": number, "evaluation": {**manifest["evaluation"], **evaluation}})
    return path


@pytest.fixture
def place(tmp_path):
    """made/ with versions 1 to 3, served/desk, and a models.config that serves the newest."""
    for number in (1, 2, 3):
        numbered(tmp_path / "made", number)
    shutil.copytree(tmp_path / "made" / "1", tmp_path / "served" / "desk" / "1")
    (tmp_path / "models.config").write_text(
        f'model_config_list {{ config {{ name: "desk" base_path: "{tmp_path}/served/desk" model_platform: "tensorflow" }} }}\n'
    )
    return tmp_path


@contextlib.contextmanager
def following(file: Path):
    """A local model server that follows a models.config; yields its REST address."""
    config = ConfigFile.read(file)
    options = Options(port=0, rest_port=0, loading=Loading(poll_s=0.05, retries=0))
    with LocalModelServer(config.models(), options) as server:
        stop = threading.Event()

        def watch():
            now = config
            while not stop.wait(0.05):
                now = follow(now, server, QUIET)

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            yield f"http://127.0.0.1:{server.rest_port}"
        finally:
            stop.set()
            watching.join()


def publish(place, number, *more):
    return publish_main(["--model", str(place / "made" / str(number)), "--to", str(place / "served" / "desk"), *more])


def canary(place, number, address):
    return publish(
        place,
        number,
        "--canary",
        "--models-config",
        str(place / "models.config"),
        "--server",
        address,
        "--wait-s",
        "20",
    )


def labels(place):
    return Rollout(place / "models.config", "desk", progress=QUIET).served().labels


def answering(address, label):
    with RestClient(address, "desk", label=label) as client:
        return client.answering_version()


# -- canary, promotion, rollback ---------------------------------------------------------------------------------------


def test_a_version_on_its_way_to_production_and_back(place, capsys):
    """Canary, promote, rollback, canary, rollback; a client that asks all the time is always answered."""
    change = ["--name", "desk", "--models-config", str(place / "models.config"), "--wait-s", "20"]
    with following(place / "models.config") as address:
        failures, stop, asked = [], threading.Event(), []

        def ask():
            with RestClient(address, "desk", timeout_s=10) as client:
                while not stop.wait(0.02):
                    try:
                        asked.append(client.predict(["my card"]))
                    except ServerError as error:
                        failures.append(str(error))

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            assert canary(place, 2, address) == 0
            assert labels(place) == {"stable": 1, "canary": 2}
            assert (answering(address, "stable"), answering(address, "canary")) == (1, 2)

            assert promote_main([*change, "--server", address]) == 0
            assert labels(place) == {"stable": 2, "previous": 1}
            assert answering(address, "stable") == 2

            assert rollback_main([*change, "--server", address]) == 0
            assert labels(place) == {"stable": 1}
            assert answering(address, "stable") == 1

            assert canary(place, 3, address) == 0
            assert labels(place) == {"stable": 1, "canary": 3}
            assert rollback_main([*change, "--server", address, "--json"]) == 0
            assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"versions": [1], "labels": {"stable": 1}}
        finally:
            stop.set()
            asking.join(20)
    assert failures == []
    assert len(asked) > 10


def test_the_first_version_of_all_becomes_the_stable_one(place):
    with following(place / "models.config") as address:
        following_it = Rollout(place / "models.config", "desk", servers=[address], timeout_s=20, progress=QUIET)
        assert following_it.canary(1) == Served(place / "served" / "desk", (1,), {"stable": 1})
        assert following_it.canary(1).labels == {"stable": 1}, "it stays that, and is no canary of itself"


def test_a_canary_that_does_not_load_is_taken_back(place, capsys):
    """The configuration is what it was; the stable version goes on."""
    numbered(place / "made", 4, damaged=True)
    with following(place / "models.config") as address:
        with pytest.raises(PipelineError, match=r"waited for version 4 to be AVAILABLE of desk; it says 'END'"):
            canary(place, 4, address)
        assert labels(place) == {"stable": 1}
        assert fetch(f"{address}/v1/models/desk/labels/stable:predict", '{"instances": ["a"]}')[0] == 200


def test_nothing_to_promote_and_nothing_to_go_back_to(place):
    following_it = Rollout(place / "models.config", "desk", progress=QUIET)
    with pytest.raises(ArtifactError, match=r"desk has no canary; expected one to promote"):
        following_it.promote()
    with pytest.raises(ArtifactError, match="nothing to go back to"):
        following_it.rollback()
    with pytest.raises(ConfigError, match="names no model 'other'"):
        Rollout(place / "models.config", "other", progress=QUIET).promote()
    with pytest.raises(ConfigError, match="cannot be read"):
        Rollout(place / "nothing", "desk", progress=QUIET).promote()


def test_other_models_in_the_file_stay(place):
    file = place / "models.config"
    other = 'config { name: "other" base_path: "/o" model_platform: "tensorflow" version_labels { key: "x" value: 7 } }'
    file.write_text(file.read_text().rstrip("} \n") + f" }} {other} }}")
    before = parse(file.read_text())[1]
    Rollout(file, "desk", progress=QUIET).pin()
    desk, after = parse(file.read_text())
    assert after == before
    assert (desk.policy.versions, desk.labels) == ((1,), {"stable": 1})
    assert "--allow_version_labels_for_unavailable_models=true" in file.read_text()


def test_one_rollout_at_a_time(place):
    following_it = Rollout(place / "models.config", "desk", progress=QUIET)
    other = Rollout(place / "models.config", "desk", lock_wait_s=0.1, progress=QUIET)
    with (
        following_it.locked(),
        pytest.raises(LockedError, match="served/desk: another command is changing it: `a roll"),
    ):
        other.pin()
    other.pin()
    assert labels(place) == {"stable": 1}


def test_a_canary_needs_a_server_to_wait_for(place, capsys):
    with pytest.raises(SystemExit):
        publish(place, 2, "--canary", "--models-config", str(place / "models.config"))
    assert "--canary needs --models-config, and --server" in capsys.readouterr().err


# -- gates -------------------------------------------------------------------------------------------------------------


def manifest(version, accuracy, worst=0.5, data="a"):
    return {"version": version, "evaluation": {"accuracy": accuracy, "worst_silo_accuracy": worst, "data": data}}


@pytest.mark.parametrize(
    ("candidate", "serving", "asked", "message"),
    [
        (manifest(2, 0.69), None, {"min_accuracy": 0.7}, r"version 2: accuracy is 0\.6900; expected at least 0\.7"),
        (
            manifest(2, 0.80),
            manifest(1, 0.90),
            {"max_drop": 0.05},
            r"0\.8000; expected at most 0\.05 under the 0\.9000 of version 1",
        ),
        (
            manifest(2, 0.90, 0.3),
            manifest(1, 0.80, 0.6),
            {"max_worst_silo_drop": 0.1},
            r"worst silo accuracy is 0\.3000",
        ),
        (manifest(2, 0.90), manifest(1, 0.80, data="b"), {"max_drop": 0.1}, "evaluated on other data than version 1"),
        ({"version": 2, "evaluation": None}, None, {"min_accuracy": 0.1}, "has no accuracy in its manifest"),
    ],
)
def test_gates_that_fail_say_which_number(candidate, serving, asked, message):
    with pytest.raises(GateError, match=message):
        gates.check(candidate, serving, GatesSection(**asked))


def test_gates_that_are_passed():
    """At the limit is not beyond it; nothing serves: nothing can drop; other data where that is allowed."""
    asked = GatesSection(min_accuracy=0.75, max_drop=0.25, max_worst_silo_drop=0.0)
    assert len(gates.check(manifest(2, 0.75), manifest(1, 1.0), asked)) == 3
    assert len(gates.check(manifest(1, 0.75), None, asked)) == 1
    loose = GatesSection(max_drop=0.1, other_data="compare")
    assert len(gates.check(manifest(2, 0.8), manifest(1, 0.8, data="b"), loose)) == 1
    assert gates.check(manifest(1, 0.1), None, GatesSection()) == []


def labeller(folder, limit, *, by_word=False):
    """A version that calls texts (or words) of more than `limit` bytes long, others short, with the score limit / 100."""

    def texts(text):
        return {
            "label": tf.where(tf.strings.length(text) > limit, "long", "short"),
            "score": tf.fill(tf.shape(text), limit / 100),
        }

    def words(text):
        found = texts(tf.strings.split(text).to_tensor())
        given = tf.strings.split(text).to_tensor() != ""
        return {"labels": found["label"], "scores": found["score"], "mask": tf.cast(given, tf.int32)}

    spec = [tf.TensorSpec([None], tf.string, name="text")]
    function = tf.function(words if by_word else texts, input_signature=spec, autograph=False)
    module = tf.Module()
    module.weight = tf.Variable(0.0)
    tf.saved_model.save(module, str(folder), signatures={"serving_default": function})
    return folder


@pytest.mark.parametrize(("by_word", "counts"), [(False, "1 of 4"), (True, "2 of 6")])
def test_too_many_changed_labels(tmp_path, by_word, counts):
    """One text of four is longer than 5 bytes and not than 8; of the six words two are, as long as `five55`."""
    (tmp_path / "texts").write_text(
        "five55 a b\nlongerthan8\n\nfive55\nx\n" if by_word else "five55\nlongerthan8\n\nb\nx\n"
    )
    old, new = labeller(tmp_path / "1", 5, by_word=by_word), labeller(tmp_path / "2", 8, by_word=by_word)
    share = {"1 of 4": 1 / 4, "2 of 6": 2 / 6}[counts]
    passes = GatesSection(max_changed=share, texts=str(tmp_path / "texts"))
    assert gates.check_changes(new, old, passes) == [f"{counts} labels changed against version 1, scores by up to 0.03"]
    fails = GatesSection(max_changed=share - 0.01, texts=str(tmp_path / "texts"))
    with pytest.raises(
        GateError, match=rf"version 2: proportion of changed labels is {share:.4f}; expected at most .*{counts}"
    ):
        gates.check_changes(new, old, fails)
    assert gates.check_changes(new, None, fails) == gates.check_changes(new, old, GatesSection()) == []
    with pytest.raises(ConfigError, match=r"cannot be read .*gates\.texts names a file"):
        gates.check_changes(new, old, GatesSection(max_changed=0.1, texts=str(tmp_path / "none")))


def test_a_version_that_fails_a_gate_is_not_published(tmp_path, capsys, monkeypatch):
    """Exit code 8; the version stays where it was exported, and nothing appears."""
    monkeypatch.setattr(cli, "command", {"publish": publish_main}.__getitem__)  # whatever is installed
    run, version = exported()
    file = write_config(config_of(run), tmp_path / "config.toml")
    arguments = ["publish", "--config", str(file), "--to", str(tmp_path / "served")]
    assert cli.main([*arguments, "--set", "gates.min_accuracy=1.0"]) == 8
    assert "expected at least 1 (gates.min_accuracy)" in capsys.readouterr().err
    assert not (tmp_path / "served").exists()
    assert version.is_dir()
    assert cli.main([*arguments, "--set", "gates.min_accuracy=0.0"]) == 0
    (tmp_path / "texts").write_text("my card\n")
    same = ["--set", "gates.max_changed=0.0", "--set", f"gates.texts={tmp_path / 'texts'}"]
    assert cli.main([*arguments, *same]) == 0, "passed, and it is there already"
    assert "0 of 1 labels changed against version 1, scores by up to 0" in capsys.readouterr().err


def test_the_manifest_has_what_gates_compare_without_naming_a_silo():
    run, version = exported()
    evaluation = read_manifest(version)["evaluation"]
    silos = json.loads((run / "evaluation.json").read_text())["silos"]
    assert evaluation["worst_silo_accuracy"] == min(
        part["accuracy"] for part in silos.values() if part["accuracy"] is not None
    )
    assert len(evaluation["data"]) == 16


# -- retention and the list --------------------------------------------------------------------------------------------


def test_old_versions_go_and_labelled_ones_stay(tmp_path):
    """And what is not whole is no reason to remove what is."""
    for number in (1, 2, 3, 4, 5, 9):
        (tmp_path / str(number)).mkdir()
        for name in (MANIFEST, COMPLETE) if number != 9 else ():
            (tmp_path / str(number) / name).touch()
    assert retain(tmp_path, 2, needed=[2]) == [1, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".publish", "2", "4", "5", "9"]
    assert retain(tmp_path, 9, needed=[]) == []


def test_publishing_can_remove_what_is_too_old(place):
    assert publish(place, 2, "--keep", "1") == 0
    assert version_numbers(place / "served" / "desk") == [2]


def test_the_list(place, capsys):
    Rollout(place / "models.config", "desk", progress=QUIET).pin()
    (place / "served" / "desk" / "7").mkdir()
    arguments = ["--name", "desk", "--models-config", str(place / "models.config")]
    assert list_command.main(arguments) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("1\tstable\taccuracy 0.")
    assert "epsilon 3.5" in first
    assert second.startswith("7\t-\taccuracy -\tepsilon -\tincomplete")
    assert list_command.main([*arguments, "--json"]) == 0
    assert [row["labels"] for row in json.loads(capsys.readouterr().out)] == [["stable"], []]
