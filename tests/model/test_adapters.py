"""Low-rank adapters: they start as nothing, are trained alone, and merge into the checkpoint's own weights."""

import numpy as np
import pytest
from builders.tiny import prepared, quiet

from tff_pipeline.artifacts import is_complete
from tff_pipeline.model.adapters import Adapters
from tff_pipeline.training.run import train
from tff_pipeline.training.store import load_arrays, load_trained

LABELS, HIDDEN = 3, 16


@pytest.fixture
def networks():
    """The same random BERT without and with adapters, and some token ids."""
    import tf_keras
    from transformers import BertConfig

    from tff_pipeline.model.network import Network

    def network(adapters: Adapters | None) -> Network:
        tf_keras.utils.set_random_seed(1)
        sizes = {"vocab_size": 50, "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = BertConfig(**sizes, intermediate_size=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        return Network(config, labels=LABELS, task="sequence_classification", pooling="mean", adapters=adapters)

    adapted = network(Adapters(rank=4, alpha=8.0, targets=("query", "key", "value", "output")))
    return network(None), adapted, np.array([[2, 7, 8, 3], [2, 9, 3, 0]], np.int32)


def test_untrained_adapters_change_nothing(networks):
    plain, adapted, tokens = networks
    np.testing.assert_array_equal(plain(tokens), adapted(tokens))


def test_only_adapters_and_head_are_trained(networks):
    _, adapted, _ = networks
    shapes = [tuple(variable.shape) for variable in adapted.trained_variables("lora")]
    assert shapes == [(HIDDEN, 4), (4, HIDDEN)] * 8 + [(HIDDEN, LABELS), (LABELS,)]
    assert adapted.variables[-len(shapes) :] == adapted.trained_variables("lora")


def test_merged_weights_give_the_adapters_outputs(networks):
    plain, adapted, tokens = networks
    random = np.random.default_rng(2)
    for variable in adapted.adapter_variables:
        variable.assign(random.normal(size=variable.shape) * 0.3)
    merged = adapted.merged()

    assert not merged.adapter_variables
    np.testing.assert_allclose(merged(tokens), adapted(tokens), atol=1e-5)
    assert np.abs(adapted(tokens) - plain(tokens)).max() > 1e-3


ROWS = {
    "bank": [("a", "lost my card", "card"), ("a", "card", "card"), ("b", "send money", "money")],
    "shop": [("c", "where is my parcel", "parcel"), ("d", "money to anna", "money"), ("d", "send the money", "money")],
}


def test_a_run_with_adapters_sends_little_and_exports_like_any_other(tmp_path):
    from tff_pipeline.evaluation.evaluate import evaluate
    from tff_pipeline.export.build import export
    from tff_pipeline.export.exported_model import ExportedModel

    changes = [
        "model.trainable=lora",
        "model.lora_rank=2",
        "training.rounds=25",
        "training.local_epochs=2",
        "training.client_learning_rate=0.3",
    ]
    config = prepared(
        tmp_path,
        ROWS,
        held_out={"bank": [("z", "lost my card", "card"), ("y", "send money", "money")]},
        changes=changes,
    )

    run = train(config, progress=quiet())

    base, _ = load_arrays(run / "base", kind="weights")
    trained, _ = load_arrays(run / "trained", kind="weights")
    assert len(trained) == 2 * 2 * 2 + 2
    assert any(
        np.abs(after - before).max() > 1e-3
        for after, before in zip(trained[:-2], base[-len(trained) : -2], strict=True)
    )
    last = (run / "rounds.csv").read_text().splitlines()[-1].split(",")
    down, up = int(last[-2]), int(last[-1])
    coordinates = sum(array.size for array in trained)
    assert 4 * coordinates <= down <= 4 * coordinates + 200
    assert 8 * coordinates <= up <= 8 * coordinates + 400
    assert not (run / "frozen").exists()

    assert is_complete(run)
    assert evaluate(run, progress=quiet())["overall"]["accuracy"] == 1.0
    model = load_trained(run)
    version = export(run, tmp_path / "models", progress=quiet())
    (answer,) = ExportedModel(version).ask(["where is my parcel"])
    assert answer["label"] == "parcel"
    assert not model.network.adapter_variables
