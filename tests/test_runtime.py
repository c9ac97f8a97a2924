"""The contract of every runtime: the same integers out of every secure slot, and so the same weights, as TFF's executor."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tff_pipeline.config import TrainingSection
from tff_pipeline.data import records
from tff_pipeline.errors import InsecureProcessError, TrainingError
from tff_pipeline.privacy.plan import PrivacyPlan

HIDDEN, LABELS = 16, 3
COHORT = {"bank": [0, 2], "shop": [1, 3]}
LABEL_MAP = np.array([2, 0, 1])  # the silos' own order of labels to the global one
# A unit is clip / quanta. Float32 sums in another order move a coordinate by a few parts in ten million of the
# clip; four clients together stay under this many units (4 were seen).
UNITS = 10


def plan(**changes: Any) -> PrivacyPlan:
    made = PrivacyPlan(
        mechanism="gaussian",
        unit="client",
        clients=100,
        expected_cohort=4.0,
        sampling_probability=0.04,
        rounds=3,
        clip_norm=0.5,
        value_range=0.5,
        noise_multiplier=2.0**-10,  # so that the grain is fine enough to compare weights without noise
        delta=1e-3,
        dimension=HIDDEN * LABELS + LABELS,
        max_examples_per_client=20,
        local_epochs=1,
    )
    return dataclasses.replace(made, **changes)


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


def head_case(made: PrivacyPlan | None = None) -> Case:
    from tff_pipeline.learning import process as learning
    from tff_pipeline.model.learner import FeatureLearner
    from tff_pipeline.runtime.clients import FeatureClients

    random = np.random.default_rng(0)
    shapes = [(HIDDEN, LABELS), (LABELS,)]
    random_weights = [(random.normal(size=shape) * 0.05).astype(np.float32) for shape in shapes]
    # Unequal on purpose: one example, several batches, an odd last batch.
    starts = np.cumsum([0, 3, 1, 20, 7])
    silos = []
    for name in COHORT:
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


@pytest.fixture(scope="module", params=[head_case, full_case, lora_case], ids=["head", "full", "lora"])
def case(request: pytest.FixtureRequest) -> Case:
    return request.param()


@pytest.fixture(scope="module")
def head() -> Case:
    return head_case()


@pytest.fixture(scope="module")
def local(case: Case) -> Iterator[Any]:
    from tff_pipeline.runtime.local import LocalRuntime

    with LocalRuntime(case.compiled, case.silos, session="test") as runtime:
        yield runtime


@pytest.fixture(scope="module")
def reference(case: Case) -> Iterator[Any]:
    from tff_pipeline.runtime.reference import ReferenceRuntime

    with ReferenceRuntime(case.compiled, case.silos) as runtime:
        yield runtime


def started(case: Case, runtime: Any) -> list[np.ndarray]:
    from tff_pipeline.runtime.base import with_weights

    return with_weights(case.compiled, runtime.initial_state(), case.weights)


def silent(case: Case) -> list[np.ndarray]:
    return [np.zeros(shape) for shape in case.compiled.shapes]


def rounds(case: Case, runtime: Any, state: list[np.ndarray], count: int, cohorts: Any = COHORT) -> Any:
    from tff_pipeline.runtime.base import with_noise

    for _ in range(count):
        # Rounds of one runtime have to differ in their numbers: two reports under one mask are refused.
        result = runtime.run_round(with_noise(case.compiled, state, silent(case)), cohorts, round_number=rounds.next)
        rounds.next += 1
        state = result.state
    return result


rounds.next = 0  # type: ignore[attr-defined]


def test_initial_states_agree(case, local, reference):
    for ours, theirs in zip(local.initial_state(), reference.initial_state(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_every_secure_slot_gives_the_oracles_integers(case, local, reference):
    state = started(case, local)
    ours, theirs = local.secure_sums(state, COHORT), reference.secure_sums(state, COHORT)

    differences = [
        int(np.abs(one.astype(np.int64) - other.astype(np.int64)).max())
        for one, other in zip(ours, theirs, strict=True)
    ]
    assert max(differences) <= UNITS
    # It is not that everything is zero: some coordinate is moved by a fortieth of what the four clients may move it by.
    made = plan()
    moved = [np.abs(one.astype(np.int64) - 4 * made.largest_whole_number).max() for one in ours if one.size > 1]
    assert max(moved) > 0.1 * made.quanta


def test_three_rounds_end_in_the_oracles_weights(case, local, reference):
    from tff_pipeline.runtime.base import weights_of

    ours = rounds(case, local, started(case, local), 3)
    theirs = rounds(case, reference, started(case, reference), 3)

    for one, other, before in zip(
        weights_of(case.compiled, ours.state), weights_of(case.compiled, theirs.state), case.weights, strict=True
    ):
        np.testing.assert_allclose(one, other, atol=2e-6)
        # A key's bias adds the same to every score of a query: softmax does not see it.
        assert not np.array_equal(one, before) or one.ndim == 1
    assert ours.metrics["loss"] == pytest.approx(theirs.metrics["loss"], abs=1e-5)
    assert ours.metrics["instances"] == theirs.metrics["instances"]
    assert ours.metrics["finite_clients"] == theirs.metrics["finite_clients"] == 4


def test_a_round_with_nobody_changes_nothing_without_noise(case, local, reference):
    from tff_pipeline.runtime.base import weights_of

    for runtime in (local, reference):
        result = rounds(case, runtime, started(case, runtime), 1, cohorts={})
        for after, before in zip(weights_of(case.compiled, result.state), case.weights, strict=True):
            np.testing.assert_array_equal(after, before)
        assert result.metrics["instances"] == 0


def test_supplied_noise_is_what_reaches_the_weights(case, local, reference):
    """Nobody takes part, so the update is the noise, rounded to the grain and divided by the expected cohort of 4."""
    from tff_pipeline.runtime.base import weights_of, with_noise

    random = np.random.default_rng(2)
    noise = [random.normal(size=shape) for shape in case.compiled.shapes]
    grain = plan().grain
    for runtime in (local, reference):
        result = runtime.run_round(with_noise(case.compiled, started(case, runtime), noise), {}, round_number=1000)
        for after, before, added in zip(weights_of(case.compiled, result.state), case.weights, noise, strict=True):
            expected = before - np.round(added / grain) * grain / 4
            np.testing.assert_allclose(after, expected, atol=1e-6)


def test_a_round_whose_noise_was_forgotten_releases_nothing(case, local, reference):
    from tff_pipeline.runtime.base import weights_of

    for runtime in (local, reference):
        result = runtime.run_round(started(case, runtime), COHORT, round_number=2000)
        assert result.metrics["update_non_finite"] == 1
        for after, before in zip(weights_of(case.compiled, result.state), case.weights, strict=True):
            np.testing.assert_array_equal(after, before)


def test_a_round_leaves_what_it_was_given_as_it_was(case, local):
    """TensorFlow may work on arrays where they lie: the state of a round, which is kept, is not written to."""
    from tff_pipeline.runtime.base import with_noise

    # What a round gave lies as TensorFlow likes it.
    state = with_noise(case.compiled, rounds(case, local, started(case, local), 1).state, silent(case))
    before = [np.array(part) for part in state]
    for _ in range(2):
        rounds(case, local, state, 1)
    for one, other in zip(state, before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_noise_is_used_once(case, local):
    """After a round the state holds NaN again where the noise was."""
    from tff_pipeline.runtime.base import noise_places

    state = rounds(case, local, started(case, local), 1).state
    assert all(np.isnan(state[place]).all() for place in noise_places(case.compiled))


def test_sums_of_32_bits_are_those_of_64(head):
    """A population for which 31 bits would be too coarse is summed in 64; both give the same weights, to a few quanta."""
    from tff_pipeline.runtime.base import weights_of
    from tff_pipeline.runtime.local import LocalRuntime

    many = plan(mechanism="tree", rounds_per_tree=2, clients=10**8)
    assert many.quanta > 2**25
    results = []
    for made in (head, head_case(many)):
        with LocalRuntime(made.compiled, made.silos) as runtime:
            results.append(rounds(made, runtime, started(made, runtime), 1))
    narrow, wide = (result.bytes_up for result in results)
    assert wide - narrow == 4 * plan().dimension
    for one, other in zip(*(weights_of(head.compiled, result.state) for result in results), strict=True):
        np.testing.assert_allclose(one, other, atol=10 * plan().value_range / plan().quanta)


def test_a_cohort_larger_than_its_sum_has_room_for_releases_nothing():
    from tff_pipeline.runtime.base import weights_of
    from tff_pipeline.runtime.local import LocalRuntime

    made = head_case(plan(mechanism="tree", rounds_per_tree=2, clients=3))
    with LocalRuntime(made.compiled, made.silos) as runtime:
        result = rounds(made, runtime, started(made, runtime), 1)
    assert result.metrics["update_non_finite"] == 1
    for after, before in zip(weights_of(made.compiled, result.state), made.weights, strict=True):
        np.testing.assert_array_equal(after, before)


def test_one_client_moves_the_sum_by_at_most_the_sensitivity(case, local):
    """Before the noise, in L2 over all coordinates: what the plan states, for every client of every silo."""
    state = started(case, local)
    step = plan().value_range / plan().quanta
    shapes = [tuple(shape) for shape in case.compiled.shapes]
    base = local.secure_sums(state, COHORT)
    slots = [place for place, total in enumerate(base) if total.shape in shapes and total.size > 1]
    largest = 0.0
    for silo, other in (("bank", 1), ("bank", 3), ("shop", 0), ("shop", 2)):
        more = local.secure_sums(state, {**COHORT, silo: sorted([*COHORT[silo], other])})
        zero = plan().largest_whole_number  # one client's
        moved = [(more[place].astype(np.int64) - base[place].astype(np.int64) - zero) * step for place in slots]
        largest = max(largest, float(np.sqrt(sum((part**2).sum() for part in moved))))
    assert largest <= plan().sensitivity
    assert largest > 0.05


def test_clients_in_parallel_give_the_same_integers(head):
    from tff_pipeline.runtime.local import LocalRuntime

    totals = []
    for workers in (1, 3):
        with LocalRuntime(head.compiled, head.silos, clients_in_parallel=workers) as runtime:
            totals.append(runtime.secure_sums(started(head, runtime), {"bank": [0, 1, 2, 3], "shop": [0, 1, 2, 3]}))
    for one, other in zip(*totals, strict=True):
        np.testing.assert_array_equal(one, other)


def test_features_computed_once_train_the_head_that_the_encoder_in_the_graph_would(tmp_path):
    """`trainable = "head"` never runs the encoder in a round: the weights are those of running it there, to float tolerance."""
    import tensorflow as tf

    from tff_pipeline.learning import process as learning
    from tff_pipeline.model.learner import FeatureLearner
    from tff_pipeline.runtime.base import weights_of
    from tff_pipeline.runtime.clients import FeatureClients
    from tff_pipeline.runtime.local import LocalRuntime

    network, base = small_bert()
    encoder = network()
    encoder.set_weights(base)
    features, labels, starts = [], [], [0]
    for row in range(4):
        arrays = records.decode_client(Recorded(4).read(row))
        tokens = tf.RaggedTensor.from_row_lengths(arrays[records.TOKENS].astype(np.int32), arrays[records.LENGTHS])  # pyrefly: ignore[missing-attribute]
        features.append(encoder.features(tokens.to_tensor(0)).numpy())
        labels.append(LABEL_MAP[arrays[records.LABELS]].astype(np.int32))
        starts.append(starts[-1] + len(labels[-1]))
    silos = [
        FeatureClients(name, np.concatenate(features), np.concatenate(labels), np.array(starts), batch_size=2, epochs=1)
        for name in COHORT
    ]
    shapes = [weight.shape for weight in base[-2:]]
    compiled = learning.build(
        lambda: FeatureLearner(hidden_size=HIDDEN, labels=LABELS),
        TrainingSection(rounds=3, clients_per_round=4.0),
        plan(),
        shapes,
    )
    ended = []
    for case in (Case(compiled, silos, base[-2:]), text_case(None, tmp_path / "frozen", trainable="head")):
        with LocalRuntime(case.compiled, case.silos) as runtime:
            ended.append(weights_of(case.compiled, rounds(case, runtime, started(case, runtime), 3).state))
    for once, within in zip(*ended, strict=True):
        np.testing.assert_allclose(once, within, atol=2e-5)
    assert np.abs(ended[0][0] - base[-2]).max() > 0.01, "it has learnt something"


def test_two_hundred_rounds_take_no_more_memory_than_fifty(head):
    """Less than 1 MB a round, of all that the process holds; and cohorts of any size are worked off client by client."""
    from tff_pipeline.runtime.base import with_noise
    from tff_pipeline.runtime.local import LocalRuntime

    noise = [np.zeros(shape) for shape in head.compiled.shapes]
    everybody = {"bank": [0, 1, 2, 3], "shop": [0, 1, 2, 3]}
    with LocalRuntime(head.compiled, head.silos) as runtime:
        state, sizes = started(head, runtime), []
        for number in range(200):
            state = runtime.run_round(with_noise(head.compiled, state, noise), everybody, round_number=number).state
            sizes.append(_resident_bytes())
    assert sizes[-1] - sizes[50] < 150 * 1e6 / 3, (sizes[50], sizes[-1])


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_a_device_that_is_not_there_is_named_with_those_that_are():
    from tff_pipeline.runtime.local import choose_devices

    assert choose_devices("CPU") == ["CPU:0"]
    with pytest.raises(TrainingError, match=r"asks for GPU:7, which TensorFlow does not see; expected some of .*CPU:0"):
        choose_devices(["GPU:7"])


_ON_TWO_DEVICES = """
    import json, sys
    from tff_pipeline.progress import silence_libraries
    silence_libraries()
    import tensorflow as tf
    processor = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(processor, 3 * [tf.config.LogicalDeviceConfiguration()])
    import test_runtime
    from tff_pipeline.runtime.local import LocalRuntime
    case = test_runtime.head_case()
    found = {}
    for devices in (["CPU:0"], ["CPU:1", "CPU:2"]):
        with LocalRuntime(case.compiled, case.silos, devices=devices, clients_in_parallel=1) as runtime:
            state = test_runtime.started(case, runtime)
            for _ in range(3):  # until both have had a client
                sums = runtime.secure_sums(state, {"bank": [0, 1, 2, 3], "shop": [0, 1, 2, 3]})
            found[devices[0]] = {"placement": runtime.placement(), "sums": [part.tolist() for part in sums]}
    print(json.dumps(found))
"""


def test_every_device_works_and_nothing_of_the_model_runs_elsewhere():
    """Three logical CPUs stand for a CPU and two GPUs; a process has its devices for life, so this one is its own."""
    from tff_pipeline.runtime.base import off_device

    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_ON_TWO_DEVICES)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    one, two = found["CPU:0"], found["CPU:1"]
    assert two["sums"] == one["sums"]
    assert not off_device(two["placement"], ["CPU:1", "CPU:2"])
    assert off_device(two["placement"], ["CPU:1"]), "CPU:2 has worked"
    assert off_device(two["placement"], ["CPU:2"]), "CPU:1 has worked"
    # The bodies of functions (the training loop) went there too.
    for device in ("CPU:1", "CPU:2"):
        assert sum("MatMul" in kind for kind in two["placement"][device])


@pytest.mark.parametrize("leak", ["model", "metrics"])
def test_a_process_that_sums_in_the_clear_is_refused(leak):
    import tensorflow_federated as tff

    from tff_pipeline.aggregators import dp_sum as aggregation
    from tff_pipeline.learning import process as learning
    from tff_pipeline.model.learner import FeatureLearner

    shapes = [(HIDDEN, LABELS), (LABELS,)]
    secure: dict[str, Any] = {
        "model_aggregator": aggregation.unweighted(plan(), shapes),
        "metrics_aggregator": tff.learning.metrics.secure_sum_then_finalize,
    }
    secure.pop(f"{leak}_aggregator")
    process = tff.learning.algorithms.build_unweighted_fed_avg(
        lambda: FeatureLearner(hidden_size=HIDDEN, labels=LABELS),
        client_optimizer_fn=tff.learning.optimizers.build_sgdm(0.1),
        server_optimizer_fn=tff.learning.optimizers.build_sgdm(1.0),
        **secure,
    )
    with pytest.raises(InsecureProcessError, match="Nothing was run"):
        learning.compile_process(process, shapes)


_ORPHAN = """
    import time
    from tff_pipeline.progress import silence_libraries
    silence_libraries()
    from tff_pipeline.runtime import reference
    process, _ = reference._start_worker()
    print(process.pid, flush=True)
    time.sleep(600)
"""


def test_tffs_worker_dies_with_the_process_that_started_it():
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_ORPHAN)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert Path(f"/proc/{worker}").exists()
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        deadline = time.monotonic() + 10
        while _running(worker) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not _running(worker)
    finally:
        parent.kill()


def _running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
