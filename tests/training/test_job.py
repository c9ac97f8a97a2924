"""The training stage on tiny prepared silos: what it computes, and what it does when something is off."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from builders.tiny import PRIVATE, Row, configured, prepare_all, prepared, quiet, trained_weights

from tff_pipeline.artifacts import Workdir, is_complete, read_json
from tff_pipeline.config import Config
from tff_pipeline.errors import ArtifactError, PrivacyError, TrainingError
from tff_pipeline.training.job import job
from tff_pipeline.training.run import train

BANK: list[Row] = [
    ("a", "lost my card", "card"),
    ("a", "card", "card"),
    ("a", "the card is lost", "card"),
    ("b", "send money", "money"),
]
SHOP: list[Row] = [
    ("c", "where is my parcel", "parcel"),
    ("d", "money to anna", "money"),
    ("d", "send the money", "money"),
]
ROWS = {"bank": BANK, "shop": SHOP}
EVERYBODY = ("training.clients_per_round=4", "training.rounds=1")


def expected_head(config: Config, *, by_examples: bool, of_silos: bool = False) -> list[np.ndarray]:
    """One round of federated averaging with everybody (or every silo) in it, one local step each, in plain numpy."""
    import tensorflow as tf

    from tff_pipeline.model.network import base_network

    work = job(config)
    network = base_network(
        config.model, work.tokenizer, labels=len(work.labels), task="sequence_classification", seed=config.pipeline.seed
    )
    total, weights = [np.zeros((network.hidden_size, len(work.labels))), np.zeros(len(work.labels))], 0.0
    clients = [[row for rows in ROWS.values() for row in rows if row[0] == client] for client in "abcd"]
    for own in ROWS.values() if of_silos else clients:
        tokens, lengths = work.tokenizer.encode([text for _, text, _ in own])
        batch = tf.RaggedTensor.from_row_lengths(tokens, lengths).to_tensor(network.pad_id)
        features = network.features(batch).numpy().astype(np.float64)
        labels = [work.labels.index(label) for _, _, label in own]
        # The head starts at zero, so every label has the same probability.
        gap = np.full((len(own), len(work.labels)), 1 / len(work.labels))
        gap[np.arange(len(own)), labels] -= 1
        weight = len(own) if by_examples else 1
        weights += weight
        total[0] -= weight * config.training.client_learning_rate * features.T @ gap / len(own)
        total[1] -= weight * config.training.client_learning_rate * gap.mean(axis=0)
    return [part / weights for part in total]


@pytest.mark.parametrize("by_examples", [False, True], ids=["uniform", "examples"])
def test_one_round_is_federated_averaging(tmp_path, by_examples):
    """Clients of 3, 1, 1 and 2 texts: the update is the mean of the clients' steps, or the mean weighted by examples."""
    weighting = "examples" if by_examples else "uniform"
    config = prepared(tmp_path, ROWS, changes=[*EVERYBODY, f"training.weighting={weighting}"])

    run = train(config, progress=quiet())

    for ours, expected in zip(trained_weights(run), expected_head(config, by_examples=by_examples), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert read_json(run / "run.json")["labels"] == ["card", "money", "parcel"]
    assert read_json(run / "run.json")["guarantee"]["epsilon"] is None
    assert '"event":{"kind":"none"}' in Workdir(config.workdir).ledger("tiny").read_text()


@pytest.mark.parametrize("by_examples", [False, True], ids=["uniform", "examples"])
def test_a_silo_may_be_one_client(tmp_path, by_examples):
    """Silos of 4 and 3 texts, each trained on as a whole in one step: the mean of two updates."""
    changes = ["privacy.unit=silo", "training.clients_per_round=2", "training.rounds=1"]
    changes.append(f"training.weighting={'examples' if by_examples else 'uniform'}")
    config = prepared(tmp_path, ROWS, changes=changes)

    run = train(config, progress=quiet())

    expected = expected_head(config, by_examples=by_examples, of_silos=True)
    for ours, theirs in zip(trained_weights(run), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert read_json(run / "run.json")["plan"]["clients"] == 2
    # Clients cannot be told how many silos there are.
    with pytest.raises(PrivacyError, match=r"clients_per_round is 3, the population has 2 silos"):
        train(configured_again(config, [*changes, "training.clients_per_round=3"]), progress=quiet())


def test_fedprox_pulls_local_steps_towards_the_start(tmp_path):
    """Li et al. 2020: with several local steps, a proximal term makes the update shorter."""
    config = prepared(tmp_path, ROWS, changes=EVERYBODY)
    small_steps = [*EVERYBODY, "training.local_epochs=4", "training.client_learning_rate=0.02"]
    lengths = []
    for changes in ([], ["training.algorithm=fedprox", "training.proximal_strength=10.0"]):
        run = train(configured_again(config, [*small_steps, *changes]), progress=quiet())
        lengths.append(np.sqrt(sum(float((part**2).sum()) for part in trained_weights(run))))
    assert 0 < lengths[1] < 0.9 * lengths[0]


def test_why_tffs_own_fedprox_is_not_used():
    """TFF 0.87 pushes the weights away from the start. When this fails, learning.Proximal can go."""
    import tensorflow as tf
    import tensorflow_federated as tff
    from tensorflow_federated.python.learning import loop_builder
    from tensorflow_federated.python.learning.templates import proximal_client_work

    from tff_pipeline.model.learner import FeatureLearner

    start = tff.learning.models.ModelWeights(trainable=[tf.zeros([4, 2]), tf.zeros([2])], non_trainable=[])
    batches = tf.data.Dataset.from_tensors((tf.ones([2, 4]), tf.zeros([2], tf.int32))).repeat(4)
    lengths = []
    for strength in (0.0, 10.0):
        update = proximal_client_work.build_model_delta_update_with_tff_optimizer(
            lambda: FeatureLearner(hidden_size=4, labels=2),
            weighting=tff.learning.ClientWeighting.UNIFORM,
            delta_l2_regularizer=strength,
            loop_implementation=loop_builder.LoopImplementation.DATASET_ITERATOR,
        )
        result, _ = update(tff.learning.optimizers.build_sgdm(0.02), start, batches)
        lengths.append(float(tf.linalg.global_norm(result.update)))
    assert lengths[1] > lengths[0]


@pytest.mark.parametrize("proximal", [False, True])
def test_a_gradient_of_some_rows_moves_what_the_same_one_made_dense_moves(proximal):
    """Of a table of words only the rows of a client's words have a gradient, some of them several times."""
    import tensorflow as tf
    import tensorflow_federated as tff

    from tff_pipeline.learning.process import Proximal, SparseSgd

    random = np.random.default_rng(4)
    table, bias = (tf.constant(random.normal(size=shape), tf.float32) for shape in ((7, 3), (3,)))
    rows = tf.IndexedSlices(tf.constant(random.normal(size=(4, 3)), tf.float32), tf.constant([5, 0, 5, 2]), [7, 3])
    moved = []
    for optimizer in (SparseSgd(0.3), tff.learning.optimizers.build_sgdm(0.3)):
        chosen = Proximal(optimizer, 0.5) if proximal else optimizer
        state = chosen.initialize((table, bias))
        weights = (table, bias)
        for _ in range(2):
            state, weights = chosen.next(state, weights, (rows, bias))
        moved.append(weights)
    for one, other in zip(*moved, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    if not proximal:
        twice = 2 * 0.3 * (rows.values[0] + rows.values[2])
        np.testing.assert_allclose(moved[0][0][5], table[5] - twice, atol=1e-6)
    np.testing.assert_array_equal(moved[0][0][1], table[1])


def configured_again(config: Config, changes: Sequence[str]) -> Config:
    from tff_pipeline.config import load

    return load(config.path, changes)


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_state(tmp_path, monkeypatch):
    """From the second round on, every client's numbers are broken: a fault planted where data enters the graph."""
    from tff_pipeline.runtime.clients import FeatureClients

    config = prepared(tmp_path, ROWS, changes=["training.rounds=3"])
    sound, fed = FeatureClients.feed, []

    def broken_later(clients, row):
        features, labels = sound(clients, row)
        fed.append(row)
        return (features if len(fed) <= 4 else features * np.nan), labels

    with monkeypatch.context() as patched:
        patched.setattr(FeatureClients, "feed", broken_later)
        with pytest.raises(
            TrainingError,
            match=r"round 2: none of the 4 clients' updates was finite .* The state after round 1 is kept in .*client_learning_rate",
        ):
            train(config, progress=quiet())
    run = job(config).folder
    assert not is_complete(run)
    assert [path.name for path in (run / "states").iterdir()] == ["round-00001"]

    # With sound numbers the same command goes on from there.
    assert is_complete(train(config, progress=quiet()))


def test_a_program_that_trained_ends_without_a_word(tmp_path):
    """TFF's default executor is dropped while it still can end: no complaint follows the last event."""
    config = prepared(tmp_path, ROWS, changes=EVERYBODY)
    # With two optimizers of our own, one in the other.
    proximal = ("training.algorithm=fedprox", "training.proximal_strength=0.1")
    changes = [part for change in (*EVERYBODY, *proximal) for part in ("--set", change)]
    ended = subprocess.run(
        [sys.executable, "-m", "tff_pipeline", "train", "--config", config.path, *changes, "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    events = [json.loads(line) for line in ended.stderr.splitlines()]
    assert events[-1]["message"].endswith("is finished")


def test_a_silo_without_training_clients_takes_no_part(tmp_path):
    config = prepared(
        tmp_path,
        {**ROWS, "idle": []},
        held_out={"idle": [("x", "lost my card", "card")]},
        changes=["training.rounds=1"],
    )
    run = train(config, progress=quiet())
    assert read_json(run / "run.json")["snapshots"]["idle"]["clients"] == 0
    assert is_complete(run)


def test_rounds_nobody_is_sampled_for_are_charged_and_noised(tmp_path):
    """A cohort of 0.001 clients is expected, so nobody comes; the weights still move, by the noise alone."""
    config = prepared(tmp_path, ROWS, changes=["training.clients_per_round=0.001", *PRIVATE])

    run = train(config, progress=quiet())

    assert len(Workdir(config.workdir).ledger("tiny").read_text().splitlines()) == 2
    kernel, _ = trained_weights(run)
    # Two rounds of noise, each divided by the expected cohort, server learning rate 1.
    assert 0.7 < kernel.std() / (np.sqrt(2) * 1000) < 1.3


def test_a_budget_that_does_not_suffice_stops_the_run_before_it_starts(tmp_path):
    config = prepared(tmp_path, ROWS, changes=[*PRIVATE, "privacy.budget_epsilon=0.1"])
    with pytest.raises(PrivacyError, match=r"over privacy.budget_epsilon 0\.1 .*rounds left at these settings: 0"):
        train(config, progress=quiet())
    assert not Workdir(config.workdir).ledger("tiny").exists()


def test_more_clients_a_round_than_there_are_is_said(tmp_path):
    config = prepared(tmp_path, ROWS, changes=["training.clients_per_round=5"])
    with pytest.raises(PrivacyError, match="clients_per_round is 5, the population has 4 training clients"):
        train(config, progress=quiet())


def test_one_label_is_nothing_to_tell_apart(tmp_path):
    config = prepared(tmp_path, {"bank": BANK[:3]})
    with pytest.raises(ArtifactError, match="hold 1 different label"):
        train(config, progress=quiet())


def test_a_snapshot_of_another_tokenizer_is_refused(tmp_path):
    config = prepared(tmp_path, ROWS)
    (tmp_path / "vocab.txt").write_text((tmp_path / "vocab.txt").read_text() + "brandnew\n")
    with pytest.raises(ArtifactError, match=r"was prepared with tokenizer .*prepare"):
        train(config, progress=quiet())


def test_moving_the_folder_does_not_make_another_run(tmp_path):
    config = prepared(tmp_path / "here" if (tmp_path / "here").mkdir() is None else tmp_path, ROWS)
    before = job(config).id
    (tmp_path / "here").rename(tmp_path / "there")
    from tff_pipeline.config import load

    assert job(load(tmp_path / "there" / "config.toml")).id == before


SENTENCES = {
    "north": "Anna\tB-PER\nlives\tO\nin\tO\nParis\tB-LOC\n\nmy\tO\ncard\tO\n\nAnna\tB-PER\nis\tO\nlost\tO\n",
    "south": "the\tO\nparcel\tO\nis\tO\nin\tO\nParis\tB-LOC\n\nsend\tO\nmoney\tO\nto\tO\nAnna\tB-PER\n",
}


@pytest.mark.parametrize("trainable", ["head", "full"])
def test_entities_are_learnt_through_the_whole_pipeline(tmp_path: Path, trainable: str):
    """Token classification from CoNLL files to answers: on a handful of sentences it has to find every entity."""
    from tff_pipeline.evaluation.evaluate import evaluate
    from tff_pipeline.export.build import export
    from tff_pipeline.export.exported_model import ExportedModel

    tables = ""
    for name, text in SENTENCES.items():
        (tmp_path / f"{name}.conll").write_text(text)
        tables += f'[[silos]]\nname = "{name}"\nformat = "conll"\ninput = {{ train = "{name}.conll", test = "{name}-test.conll" }}\n'
        (tmp_path / f"{name}-test.conll").write_text(text + "\n")  # the very same file in two splits is refused
    rate = "5.0" if trainable == "head" else "0.3"
    changes = [
        "training.rounds=30",
        "training.local_epochs=2",
        "training.clients_per_round=5",
        f"training.client_learning_rate={rate}",
        f"model.trainable={trainable}",
    ]
    config = configured(tmp_path, tables, task='[task]\nkind = "token_classification"', changes=changes)
    prepare_all(config)

    run = train(config, progress=quiet())
    scores = evaluate(run, progress=quiet())
    answer = ExportedModel(export(run, tmp_path / "models", progress=quiet())).ask(["Anna lives in Paris"])

    assert scores["overall"]["accuracy"] == 1.0
    assert scores["overall"]["entity_f1"] == 1.0
    assert [token["label"] for token in answer[0]["tokens"]] == ["B-PER", "O", "O", "B-LOC"]
