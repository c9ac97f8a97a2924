"""Two silos of four clients and a compiled process over them: what a round in any runtime needs."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from builders.plans import changed
from tff_pipeline.config import TrainingSection
from tff_pipeline.data import records
from tff_pipeline.privacy.mechanisms import AdaptiveGaussian, DistributedDiscreteGaussian, Gaussian, Mechanism
from tff_pipeline.privacy.plan import PrivacyPlan

HIDDEN, LABELS = 16, 3
COHORT = {"bank": [0, 2], "shop": [1, 3]}
LABEL_MAP = np.array([2, 0, 1])  # the silos' own order of labels to the global one
# A unit is a quantization step. Float32 sums in another order move a coordinate by a few parts in ten million of the
# clip; four clients together stay under this many units (4 were seen).
UNITS = 10
_PLAN = PrivacyPlan(
    # So little noise that the rounding step is fine enough to compare weights without noise.
    mechanism=Gaussian(clip_norm=0.5, noise_multiplier=2.0**-10),
    unit="client",
    clients=100,
    expected_cohort=4.0,
    sampling_probability=0.04,
    rounds=3,
    delta=1e-3,
    dimension=HIDDEN * LABELS + LABELS,
    max_examples_per_client=20,
    local_epochs=1,
)


def plan(mechanism: type[Mechanism] = Gaussian, **numbers: Any) -> PrivacyPlan:
    return changed(_PLAN, mechanism, **numbers)


DISTRIBUTED = plan(DistributedDiscreteGaussian, noise_multiplier=1.0, silos=2, tolerated_silos=1, rounds=3)


def adaptive_plan(**numbers: Any) -> PrivacyPlan:
    usual = {"noise_multiplier": 1.0, "expected_cohort": 40.0, "quantile": 0.5, "count_stddev": 2.0}
    return plan(AdaptiveGaussian, **{**usual, **numbers})


class Recorded:
    """Clients whose records are made up on the spot: client r has r + 1 texts of 3 to 19 tokens."""

    def __init__(self, clients: int):
        self._clients = clients

    def __len__(self) -> int:
        return self._clients

    def read(self, row: int) -> bytes:
        random = np.random.default_rng(row)
        lengths = random.integers(3, 20, row + 1)
        tokens, labels = random.integers(5, 1000, lengths.sum()), random.integers(0, LABELS, row + 1)
        return records.encode_client("c", tokens, lengths, labels, np.zeros(row + 1))


@dataclasses.dataclass(frozen=True)
class Case:
    compiled: Any
    silos: Sequence[Any]
    weights: Sequence[np.ndarray]


def head_case(made: PrivacyPlan | None = None, names: Sequence[str] = tuple(COHORT)) -> Case:
    from tff_pipeline.learning import process as learning
    from tff_pipeline.model.learner import FeatureLearner
    from tff_pipeline.runtime.clients import FeatureClients

    random = np.random.default_rng(0)
    shapes = [(HIDDEN, LABELS), (LABELS,)]
    random_weights = [(random.normal(size=shape) * 0.05).astype(np.float32) for shape in shapes]
    # Unequal on purpose: one example, several batches, an odd last batch.
    starts = np.cumsum([0, 3, 1, 20, 7])
    silos = []
    for name in names:
        features = random.normal(size=(31, HIDDEN)).astype(np.float32)
        silos.append(
            FeatureClients(
                name, features, random.integers(0, LABELS, 31).astype(np.int32), starts, batch_size=8, epochs=2
            )
        )
    training = TrainingSection(rounds=3, clients_per_round=4.0)
    compiled = learning.build(
        lambda: FeatureLearner(hidden_size=HIDDEN, labels=LABELS), training, made or plan(), shapes
    )
    return Case(compiled, silos, random_weights)


def lora_case() -> Case:
    """Adapters and head are trained; the rest of a random BERT is read from files."""
    import tempfile

    from tff_pipeline.model.adapters import Adapters

    return text_case(
        Adapters(rank=2, alpha=4.0, targets=("query", "value", "output")), Path(tempfile.mkdtemp()) / "frozen"
    )


def full_case() -> Case:
    return text_case(None, None)


def text_case(adapters: Any, frozen: Path | None, trainable: str = "") -> Case:
    """All weights, or with files for the frozen ones the adapters and the head, or what `trainable` says."""
    from tff_pipeline.learning import process as learning
    from tff_pipeline.model.learner import TextLearner, freeze
    from tff_pipeline.runtime.clients import TextClients

    network, base = small_bert(adapters)
    trainable = trainable or ("lora" if frozen else "full")
    if frozen:
        freeze(network, base, trainable=trainable, directory=frozen)
    weights = base[-len(network().trained_variables(trainable)) :]
    if adapters:
        # Adapters that have learnt something: a B of zero would leave A without a gradient.
        weights[:-2] = [
            np.random.default_rng(7).normal(size=weight.shape).astype(np.float32) for weight in weights[:-2]
        ]
    shapes = [weight.shape for weight in weights]
    silos = [
        TextClients(name, Recorded(4), LABEL_MAP, pad_id=0, batch_size=2, epochs=1, token_labels=False)  # type: ignore[arg-type]
        for name in COHORT
    ]
    compiled = learning.build(
        lambda: TextLearner(network, trainable=trainable, frozen=frozen),
        TrainingSection(rounds=3, clients_per_round=4.0),
        plan(),
        shapes,
    )
    return Case(compiled, silos, weights)


def small_bert(adapters: Any = None) -> tuple[Any, list[np.ndarray]]:
    """What makes the network, and weights for it."""
    import tf_keras
    from transformers import BertConfig

    from tff_pipeline.model.network import Network

    sizes = {
        "vocab_size": 1000,
        "hidden_size": HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}

    def network() -> Network:
        config = BertConfig(**sizes, **dropout)
        return Network(config, labels=LABELS, task="sequence_classification", pooling="mean", adapters=adapters)

    tf_keras.utils.set_random_seed(3)
    # As transformers draws them (with gammas of 1, without which attention would be uniform and learn nothing), and a
    # head that is not zero, so that gradients reach the encoder.
    base = [variable.numpy() for variable in network().variables]
    base[-2] = np.random.default_rng(1).normal(size=base[-2].shape).astype(np.float32) * 0.3
    return network, base


def started(case: Case, runtime: Any) -> list[np.ndarray]:

    return runtime.initial_state().with_weights(case.weights)
