"""Weights stored smaller: what a version then holds, says of itself and answers."""

import msgspec
import numpy as np
import pytest
import tensorflow as tf
from builders.serving_fixtures import SILOS, exported, request_of

from tff_pipeline.artifacts import read_json, read_manifest
from tff_pipeline.errors import ExportError
from tff_pipeline.evaluation.evaluate import evaluation_file
from tff_pipeline.export import build, verification
from tff_pipeline.export import weight_precision as precision
from tff_pipeline.export.manifest import held_out_evaluation
from tff_pipeline.progress import Progress
from tff_pipeline.training.store import config_of, load_trained

QUIET = Progress(interactive=False)
TEXTS = [text for data in SILOS.values() for client in data.splits["test"] for text, *_ in client]


def settings(kind):
    return msgspec.structs.replace(config_of(exported()[0]).export, weights=kind, explain_steps=3)


@pytest.fixture(scope="module", params=["float16", "int8"])
def smaller(request, tmp_path_factory):
    """The kind, and a verified version that stores its weights so."""
    base = tmp_path_factory.mktemp(request.param)
    return request.param, build.export(exported()[0], base, settings=settings(request.param), progress=QUIET)


def test_it_is_smaller_and_says_what_that_changes(smaller):
    kind, version = smaller
    facts = read_manifest(version)["stored_weights"]
    file = (version / verification.VARIABLES).stat().st_size
    whole = (exported()[1] / verification.VARIABLES).stat().st_size
    assert facts["size_ratio"] == pytest.approx(file / whole, abs=0.05)
    assert facts["size_ratio"] < {"float16": 0.6, "int8": 0.45}[kind], "biases, norms and head stay, and are many here"
    assert f"rounded to {kind}" in read_manifest(version)["verification"]["weights"]
    assert (
        f"Weights are stored as {kind}, {facts['size_ratio']:.0%} of the size"
        in (version / "MODEL_CARD.md").read_text()
    )


def test_the_changes_are_those_of_asking_both(smaller):
    """On the eight held-out texts: one version's served probabilities against the other's."""
    _, version = smaller
    facts, found = read_manifest(version)["stored_weights"], []
    for path in (exported()[1], version):
        signature = tf.saved_model.load(str(path)).signatures["serving_default"]
        found.append(signature(text=tf.constant(TEXTS))["probabilities"].numpy())
    assert facts["examples"] == len(TEXTS)
    assert facts["largest_probability_change"] == pytest.approx(np.abs(found[1] - found[0]).max(), abs=1e-5)
    assert facts["changed_labels"] == (found[0].argmax(axis=1) != found[1].argmax(axis=1)).mean()
    assert 0 < facts["largest_probability_change"] < 0.1
    overall = read_json(evaluation_file(exported()[0]))["overall"]
    assert facts["accuracy_as_float32"] == pytest.approx(overall["accuracy"])
    assert facts["accuracy_difference"] == pytest.approx(facts["accuracy"] - facts["accuracy_as_float32"])


def test_it_holds_the_rounded_weights_and_no_others(smaller):
    kind, version = smaller
    reader = tf.train.load_checkpoint(str(version / "variables" / "variables"))
    types = {}
    for name in reader.get_variable_to_shape_map():
        if name.startswith(("weights/", "scales/")):
            key = name.split("/")[0], str(reader.get_tensor(name).dtype)
            types[key] = types.get(key, 0) + 1
    # Two layers of six matrices each, and three of embeddings, out of 39 variables.
    expected = {("weights", kind): 15, ("weights", "float32"): 24}
    assert types == expected | ({("scales", "float32"): 15} if kind == "int8" else {})


def test_rounding_is_within_half_a_step():
    """int8: every weight within half of its channel's scale, the largest of a channel exactly 127 steps; zeros stay zero."""
    trained = load_trained(exported()[0])
    values = [variable.numpy() for variable in trained.network.variables]
    values[3] = np.zeros_like(values[3])
    for value, each in zip(values, precision.store(trained.network, values, "int8"), strict=True):
        if each.scale is None:
            assert each.value is value
            continue
        assert (np.abs(each.restored - value) <= each.scale * (0.5 + 1e-5)).all()
        channels = np.abs(each.value).max(axis=int(each.scale.shape[0] != 1))
        assert set(channels.tolist()) <= {0, 127}
    half = precision.store(trained.network, values, "float16")
    assert max(np.abs(each.restored - value).max() for each, value in zip(half, values, strict=True)) < 1e-3


def test_other_scales_are_refused(smaller):
    kind, version = smaller
    request = request_of(exported()[0], settings(kind))
    changed = next(
        each for each in request["weights"] if each["key"] == ("scales/2" if kind == "int8" else "weights/2")
    )
    changed["digest"] = "0" * 64
    with pytest.raises(verification.Refused, match=f"{changed['key']}/.* differs from the trained weights"):
        verification.check_weights(version, request["weights"], kind)


def test_the_layers_have_their_variables_back():
    network = load_trained(exported()[0]).network
    before = network(tf.constant([[2, 5, 3]])).numpy()
    stored = precision.store(network, [variable.numpy() for variable in network.variables], "int8")
    with precision.replaced(network, stored):
        assert np.abs(network(tf.constant([[2, 5, 3]])).numpy() - before).max() > 0
    np.testing.assert_array_equal(network(tf.constant([[2, 5, 3]])), before)


def test_another_way_to_store_is_another_version(smaller):
    kind, version = smaller
    assert build.export(exported()[0], version.parent, settings=settings(kind), progress=QUIET) == version
    run = exported()[0]
    for stored_as, finished in (kind, version), ("float32", None):
        settings_, evaluation = settings(stored_as), held_out_evaluation(run)
        assert build._finished_version(run, version.parent, settings_, evaluation) == finished


def test_nobody_to_measure_it_on(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "measure_weight_change", lambda *_, **__: None)
    with pytest.raises(ExportError, match=r'export\.weights is "int8", but no client is held out.*Set prepare\.splits'):
        build.export(exported()[0], tmp_path, settings=settings("int8"), progress=QUIET)
    assert list(tmp_path.iterdir()) == []
