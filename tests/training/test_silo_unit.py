"""`privacy.unit = "silo"`: a silo is what a round samples, trains on and clips as a whole."""

import csv
import dataclasses
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from builders.plans import discretization
from builders.plans import plan as a_plan
from builders.tiny import Row, prepared, quiet
from scipy import optimize, special

from tff_pipeline.config import load
from tff_pipeline.data.snapshots import load_snapshot
from tff_pipeline.errors import ArtifactError, ConfigError, PrivacyError
from tff_pipeline.privacy import accounting
from tff_pipeline.privacy.mechanisms import DistributedDiscreteGaussian, Gaussian, Tree
from tff_pipeline.privacy.round import Round
from tff_pipeline.privacy.silo_draws import SiloDraws
from tff_pipeline.privacy.statement import sentences

BANK: list[Row] = [
    (f"c{number % 5}", text, label)
    for number, (text, label) in enumerate(
        [("lost my card", "card"), ("card", "card"), ("the card is lost", "card"), ("send money", "money")] * 5
    )
]
SHOP: list[Row] = [
    ("d", "where is my parcel", "parcel"),
    ("e", "money to anna", "money"),
    ("e", "send the money", "money"),
]
ROWS = {"bank": BANK, "shop": SHOP}
GAUSSIAN = [
    "privacy.unit=silo",
    "training.clients_per_round=2",
    "training.rounds=2",
    "privacy.mechanism=gaussian",
    "privacy.clip_norm=1.0",
    "privacy.noise_multiplier=2.0",
    "privacy.delta=1e-3",
]


def analytic(noise_multiplier: float, rounds: int, delta: float) -> float:
    """Balle and Wang 2018, theorem 8, of the sum of so many Gaussian mechanisms."""
    mu = math.sqrt(rounds) / noise_multiplier

    def spent(epsilon: float) -> float:
        return special.ndtr(mu / 2 - epsilon / mu) - math.exp(epsilon) * special.ndtr(-mu / 2 - epsilon / mu) - delta

    return float(optimize.brentq(spent, 0, 100))


@pytest.mark.parametrize(
    ("mechanism", "changes"),
    [(Gaussian, {}), (Tree, {"rounds_per_tree": 1}), (DistributedDiscreteGaussian, {"silos": 10})],
    ids=["gaussian", "tree", "distributed"],
)
def test_a_client_is_protected_as_one_whose_silo_may_change_its_mind(mechanism, changes):
    """Another update in place of a silo's moves the sum by twice the clip; its sampling counts for nothing."""
    made = a_plan(
        mechanism,
        unit="silo",
        clients=10,
        expected_cohort=5.0,
        sampling_probability=0.5,
        rounds=4,
        noise_multiplier=6.0,
        **changes,
    )
    z = made.noise_multiplier
    if made.mechanism.silos_add_noise:
        integers = discretization(made)
        z = math.sqrt(integers.honest_silos * 4.0**integers.log2_scale - 4) / math.sqrt(integers.sensitivity_squared)
    assert made.client_epsilon == pytest.approx(analytic(z / 2, 4, made.delta), rel=1e-3)
    assert made.client_epsilon >= analytic(z / 2, 4, made.delta)
    assert made.epsilon() < made.client_epsilon
    # For the silo it is what it would be for clients.
    assert made.epsilon() == dataclasses.replace(made, unit="client").epsilon()


def test_what_was_charged_for_clients_protects_no_silo():
    event = a_plan().round_event
    assert math.isinf(accounting.epsilon([(event, 1)], 1e-3, unit="silo"))
    assert math.isfinite(accounting.epsilon([(event, 1), (a_plan(unit="silo").round_event, 1)], 1e-3))
    with pytest.raises(PrivacyError, match="unit 'country' cannot be accounted for"):
        accounting.epsilon([({**event, "unit": "country"}, 1)], 1e-3)


def test_the_statement_speaks_of_silos_and_says_what_it_costs():
    made = a_plan(
        unit="silo", clients=3, expected_cohort=3.0, sampling_probability=1.0, noise_multiplier=5.0, dimension=10_000
    )
    said = sentences(made, seeded=False)

    assert said[0].startswith("Guarantee")
    assert "private for the silo. Adding one silo, with all its clients and texts," in said[0]
    assert "every one of 3 silos takes part with probability 1, independently" in said[1]
    (cost,) = [sentence for sentence in said if sentence.startswith("Cost")]
    # The noise is 5 on each of 10,000 coordinates, of a sum that is divided by 3: 500 / 3 of a clip.
    assert "is about 167 times as long as the clip" in cost
    (who,) = [sentence for sentence in said if sentence.startswith("Who")]
    assert "that the silo takes part in the run is public" in who


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Any:
    return prepared(tmp_path_factory.mktemp("silo"), ROWS, changes=GAUSSIAN)


def silo_texts(config: Any, silo: str, **options: Any) -> Any:
    from tff_pipeline.runtime.clients import TextSilo
    from tff_pipeline.training.job import job

    work = job(config)
    snapshot = load_snapshot_of(config, silo)
    given = {"pad_id": work.tokenizer.pad_id, "batch_size": 3, "epochs": 1, "token_labels": False} | options
    return TextSilo(silo, snapshot.shards("train"), snapshot.label_map(work.labels), **given)


def load_snapshot_of(config: Any, silo: str) -> Any:
    from tff_pipeline.artifacts import Workdir

    return load_snapshot(Workdir(config.workdir), silo)


def examples_of(batches: Any) -> list[tuple[tuple[int, ...], int]]:
    return [
        (tuple(int(token) for token in row if token), int(label))
        for tokens, labels in batches
        for row, label in zip(np.asarray(tokens), np.asarray(labels), strict=True)
    ]


def test_a_silos_turn_goes_through_every_text_once_an_epoch(config):
    import tensorflow as tf

    from tff_pipeline.runtime.clients import TextClients

    silo = silo_texts(config, "bank")
    fed = [tf.constant(value, spec.dtype) for value, spec in zip(silo.feed(0), silo.specs(), strict=True)]
    once, again = examples_of(silo.batches(fed)), examples_of(silo.batches(fed))

    snapshot = load_snapshot_of(config, "bank")
    options = {"pad_id": 0, "batch_size": 3, "epochs": 1, "token_labels": False}
    by_client = []
    with snapshot.reader("train") as reader:
        clients = TextClients("bank", reader, np.asarray(silo.feed(0)[1]), **options)
        for row in range(len(clients)):
            own = [
                tf.constant(value, spec.dtype) for value, spec in zip(clients.feed(row), clients.specs(), strict=True)
            ]
            by_client += examples_of(clients.batches(own))
    assert len(silo) == 1
    assert Counter(once) == Counter(by_client)
    assert len(once) == 20
    # Mixed, and in the same order whenever it is done again.
    assert once != by_client
    assert once == again
    twice = silo_texts(config, "bank", epochs=2)
    assert examples_of(twice.batches(fed)) == once + once


def test_a_silos_texts_are_the_same_in_a_session(config):
    """The local runtime iterates in a graph, TFF's executor eagerly."""
    import tensorflow as tf

    silo = silo_texts(config, "bank")
    with tf.Graph().as_default():
        fed = [tf.compat.v1.placeholder(spec.dtype, spec.shape) for spec in silo.specs()]
        iterator = tf.compat.v1.data.make_initializable_iterator(silo.batches(fed))
        following, found = iterator.get_next(), []
        with tf.compat.v1.Session() as session:
            for _ in range(2):
                session.run(iterator.initializer, dict(zip(fed, silo.feed(0), strict=True)))
                found.append([session.run(following) for _ in range(7)])
    fed = [tf.constant(value, spec.dtype) for value, spec in zip(silo.feed(0), silo.specs(), strict=True)]
    assert examples_of(found[0]) == examples_of(found[1]) == examples_of(silo.batches(fed))


def test_a_damaged_file_is_named_before_training(config, tmp_path):
    own = prepared(tmp_path, ROWS, changes=GAUSSIAN)
    (shard, *_) = load_snapshot_of(own, "shop").shards("train")
    content = bytearray(shard.read_bytes())
    content[20] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"train-00000-of-00001.tfrecord: has changed"):
        load_snapshot_of(own, "shop").shards("train")


def test_a_run_is_charged_for_silos(config):
    """A whole run: charged for silos, and refused where a budget for silos meets charges for clients."""
    from tff_pipeline.artifacts import Workdir, read_json
    from tff_pipeline.privacy import charges as account
    from tff_pipeline.training.run import train

    run = train(config, progress=quiet())

    made = read_json(run / "run.json")["plan"]
    assert (made["unit"], made["clients"], made["sampling_probability"]) == ("silo", 2, 1.0)
    (population, _), (bank, _), _ = account.ledgers(config)
    assert [entry["event"]["unit"] for entry in population.entries()] == ["silo"] * 2
    assert population.epsilon(1e-3) == bank.epsilon(1e-3) == pytest.approx(analytic(2.0, 2, 1e-3), rel=1e-3)

    of_clients = load(config.path, [*GAUSSIAN, "privacy.unit=client"])
    (same, _), *_ = account.ledgers(of_clients)
    assert same.epsilon(1e-3) == pytest.approx(analytic(1.0, 2, 1e-3), rel=1e-3)
    train(of_clients, progress=quiet())
    budgeted = load(config.path, [*GAUSSIAN, "privacy.budget_epsilon=50", "training.rounds=3"])
    with pytest.raises(PrivacyError, match=r"epsilon inf .*rounds left at these settings: 0"):
        train(budgeted, progress=quiet())
    assert Workdir(config.workdir).ledger("tiny").exists()


def test_the_number_of_silos_is_not_for_the_command_line(config):
    from tff_pipeline.commands.privacy import main

    with pytest.raises(ConfigError, match=r"as many as \[\[silos\]\] tables"):
        main(["--config", str(config.path), "--set", "privacy.unit=silo", "--clients", "9"])


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_a_silos_features_go_with_their_labels_once_an_epoch(tmp_path, batch_size):
    """Clients of 3, 0, 7 and 1 instances; each row of features names its label."""
    import tensorflow as tf

    from tff_pipeline.runtime.clients import FeatureSilo

    numbers = np.arange(11)
    np.save(tmp_path / "features.npy", np.stack([numbers, -numbers], axis=1).astype(np.float32))
    features = np.load(tmp_path / "features.npy", mmap_mode="r")
    starts = np.array([0, 3, 3, 10, 11])
    silo = FeatureSilo("bank", features, numbers.astype(np.int32), starts, batch_size=batch_size, epochs=2)

    fed = [tf.constant(value, spec.dtype) for value, spec in zip(silo.feed(0), silo.specs(), strict=True)]
    batches = [(rows.numpy(), labels.numpy()) for rows, labels in silo.batches(fed)]

    for rows, labels in batches:
        np.testing.assert_array_equal(rows, np.stack([labels, -labels], axis=1))
    order = np.concatenate([labels for _, labels in batches])
    assert sorted(order[:11]) == list(numbers)
    np.testing.assert_array_equal(order[11:], order[:11])
    if batch_size == 3:
        # In turns from as many clients as a batch has room for.
        np.testing.assert_array_equal(order[:6], [0, 3, 1, 10, 4, 2])


@pytest.mark.parametrize("trainable", ["head", "full"])
def test_a_silo_without_text_takes_its_turn_and_adds_nothing(tmp_path, monkeypatch, trainable):
    """In the second round it is drawn alone."""
    from tff_pipeline.training.run import train

    def drawn_here(draws: SiloDraws, at: Round, clients: int) -> np.ndarray:
        return np.arange(clients if (draws.silo == "idle") == (at.number == 1) else 0)

    monkeypatch.setattr(SiloDraws, "cohort", drawn_here)

    changes = [
        "privacy.unit=silo",
        "training.clients_per_round=1.5",
        "training.rounds=6",
        f"model.trainable={trainable}",
    ]
    held_out = {"idle": [("x", "lost my card", "card")]}
    config = prepared(tmp_path, {**ROWS, "idle": []}, held_out=held_out, changes=changes)

    run = train(config, progress=quiet())

    rounds = list(csv.DictReader((run / "rounds.csv").open()))
    drawn = [(int(each["clients"]), int(each["examples"])) for each in rounds]
    assert drawn[1] == (1, 0)
    assert max(examples for _, examples in drawn) > 0
