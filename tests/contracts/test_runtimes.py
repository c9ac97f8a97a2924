"""The contract of every runtime: the same integers out of every secure slot, and so the same weights, as TFF's executor."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import environment, runtimes
from builders.cases import (
    COHORT,
    HIDDEN,
    LABEL_MAP,
    LABELS,
    UNITS,
    Case,
    Recorded,
    full_case,
    head_case,
    lora_case,
    plan,
    small_bert,
    started,
    text_case,
)

from tff_pipeline.config import TrainingSection
from tff_pipeline.data import records
from tff_pipeline.errors import InsecureProcessError, TrainingError
from tff_pipeline.privacy.mechanisms import Tree


@pytest.fixture(scope="module", params=[head_case, full_case, lora_case], ids=["head", "full", "lora"])
def case(request: pytest.FixtureRequest) -> Case:
    return request.param()


@pytest.fixture(scope="module")
def head() -> Case:
    return head_case()


@pytest.fixture(scope="module")
def local(case: Case) -> Iterator[Any]:
    with runtimes.local(case) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def reference(case: Case) -> Iterator[Any]:
    with runtimes.reference(case) as runtime:
        yield runtime


def silent(case: Case) -> list[np.ndarray]:
    return [np.zeros(shape) for shape in case.compiled.shapes]


def rounds(case: Case, runtime: Any, state: list[np.ndarray], count: int, cohorts: Any = COHORT) -> Any:

    for _ in range(count):
        # Rounds of one runtime have to differ in their numbers: two reports under one mask are refused.
        result = runtime.run_round(state.with_noise(silent(case)), cohorts, round_number=rounds.next)
        rounds.next += 1
        state = result.state
    return result


rounds.next = 0  # type: ignore[attr-defined]


def test_initial_states_agree(case, local, reference):
    for ours, theirs in zip(local.initial_state().arrays, reference.initial_state().arrays, strict=True):
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
    moved = [np.abs(one.astype(np.int64) - 4 * made.quantization.largest_summand).max() for one in ours if one.size > 1]
    assert max(moved) > 0.1 * made.quantization.levels


def test_three_rounds_end_in_the_oracles_weights(case, local, reference):

    ours = rounds(case, local, started(case, local), 3)
    theirs = rounds(case, reference, started(case, reference), 3)

    for one, other, before in zip(ours.state.weights, theirs.state.weights, case.weights, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)
        # A key's bias adds the same to every score of a query: softmax does not see it.
        assert not np.array_equal(one, before) or one.ndim == 1
    assert ours.metrics["loss"] == pytest.approx(theirs.metrics["loss"], abs=1e-5)
    assert ours.metrics["instances"] == theirs.metrics["instances"]
    assert ours.metrics["finite_clients"] == theirs.metrics["finite_clients"] == 4


def test_a_round_with_nobody_changes_nothing_without_noise(case, local, reference):

    for runtime in (local, reference):
        result = rounds(case, runtime, started(case, runtime), 1, cohorts={})
        for after, before in zip(result.state.weights, case.weights, strict=True):
            np.testing.assert_array_equal(after, before)
        assert result.metrics["instances"] == 0


def test_supplied_noise_is_what_reaches_the_weights(case, local, reference):
    """Nobody takes part, so the update is the noise, rounded to the rounding step and divided by the expected cohort of 4."""

    random = np.random.default_rng(2)
    noise = [random.normal(size=shape) for shape in case.compiled.shapes]
    step = plan().rounding_step
    for runtime in (local, reference):
        result = runtime.run_round(started(case, runtime).with_noise(noise), {}, round_number=1000)
        for after, before, added in zip(result.state.weights, case.weights, noise, strict=True):
            expected = before - np.round(added / step) * step / 4
            np.testing.assert_allclose(after, expected, atol=1e-6)


def test_a_round_whose_noise_was_forgotten_releases_nothing(case, local, reference):

    for runtime in (local, reference):
        result = runtime.run_round(started(case, runtime), COHORT, round_number=2000)
        assert result.metrics["update_non_finite"] == 1
        for after, before in zip(result.state.weights, case.weights, strict=True):
            np.testing.assert_array_equal(after, before)


def test_a_round_leaves_what_it_was_given_as_it_was(case, local):
    """TensorFlow may work on arrays where they lie: the state of a round, which is kept, is not written to."""

    # What a round gave lies as TensorFlow likes it.
    state = rounds(case, local, started(case, local), 1).state.with_noise(silent(case))
    before = [np.array(part) for part in state.arrays]
    for _ in range(2):
        rounds(case, local, state, 1)
    for one, other in zip(state.arrays, before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_noise_is_used_once(case, local):
    """After a round the state holds NaN again where the noise was."""
    state = rounds(case, local, started(case, local), 1).state
    assert state.layout.noise
    assert all(np.isnan(state.arrays[index]).all() for index in state.layout.noise)


def test_sums_of_32_bits_are_those_of_64(head):
    """A population for which 31 bits would be too coarse is summed in 64; both give the same weights, to a few steps."""
    from tff_pipeline.runtime.local import LocalRuntime
    from tff_pipeline.runtime.scripted import ScriptedRuntime

    many = plan(Tree, rounds_per_tree=2, clients=10**8)
    assert many.quantization.levels > 2**25
    results = []
    for made in (head, head_case(many)):
        with ScriptedRuntime(LocalRuntime, made.compiled, made.silos) as runtime:
            results.append(rounds(made, runtime, started(made, runtime), 1))
    narrow, wide = (result.bytes_up for result in results)
    assert wide - narrow == 4 * plan().dimension
    for one, other in zip(*(result.state.weights for result in results), strict=True):
        np.testing.assert_allclose(one, other, atol=10 * plan().quantization.step)


def test_a_cohort_larger_than_its_sum_has_room_for_releases_nothing():
    from tff_pipeline.runtime.local import LocalRuntime
    from tff_pipeline.runtime.scripted import ScriptedRuntime

    made = head_case(plan(Tree, rounds_per_tree=2, clients=3))
    with ScriptedRuntime(LocalRuntime, made.compiled, made.silos) as runtime:
        result = rounds(made, runtime, started(made, runtime), 1)
    assert result.metrics["update_non_finite"] == 1
    for after, before in zip(result.state.weights, made.weights, strict=True):
        np.testing.assert_array_equal(after, before)


def test_one_client_moves_the_sum_by_at_most_the_sensitivity(case, local):
    """Before the noise, in L2 over all coordinates: what the plan states, for every client of every silo."""
    state = started(case, local)
    step = plan().quantization.step
    shapes = [tuple(shape) for shape in case.compiled.shapes]
    base = local.secure_sums(state, COHORT)
    slots = [place for place, total in enumerate(base) if total.shape in shapes and total.size > 1]
    largest = 0.0
    for silo, other in (("bank", 1), ("bank", 3), ("shop", 0), ("shop", 2)):
        more = local.secure_sums(state, {**COHORT, silo: sorted([*COHORT[silo], other])})
        zero = plan().quantization.largest_summand  # one client's
        moved = [(more[place].astype(np.int64) - base[place].astype(np.int64) - zero) * step for place in slots]
        largest = max(largest, float(np.sqrt(sum((part**2).sum() for part in moved))))
    assert largest <= plan().sensitivity
    assert largest > 0.05


def test_clients_in_parallel_give_the_same_integers(head):
    from tff_pipeline.runtime.local import LocalRuntime
    from tff_pipeline.runtime.scripted import ScriptedRuntime

    totals = []
    for workers in (1, 3):
        with ScriptedRuntime(LocalRuntime, head.compiled, head.silos, clients_in_parallel=workers) as runtime:
            totals.append(runtime.secure_sums(started(head, runtime), {"bank": [0, 1, 2, 3], "shop": [0, 1, 2, 3]}))
    for one, other in zip(*totals, strict=True):
        np.testing.assert_array_equal(one, other)


def test_features_computed_once_train_the_head_that_the_encoder_in_the_graph_would(tmp_path):
    """`trainable = "head"` never runs the encoder in a round: the weights are those of running it there, to float tolerance."""
    import tensorflow as tf

    from tff_pipeline.learning import process as learning
    from tff_pipeline.model.learner import FeatureLearner
    from tff_pipeline.runtime.clients import FeatureClients
    from tff_pipeline.runtime.local import LocalRuntime
    from tff_pipeline.runtime.scripted import ScriptedRuntime

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
        with ScriptedRuntime(LocalRuntime, case.compiled, case.silos) as runtime:
            ended.append(rounds(case, runtime, started(case, runtime), 3).state.weights)
    for once, within in zip(*ended, strict=True):
        np.testing.assert_allclose(once, within, atol=2e-5)
    assert np.abs(ended[0][0] - base[-2]).max() > 0.01, "it has learnt something"


def test_two_hundred_rounds_take_no_more_memory_than_fifty(head):
    """Less than 1 MB a round, of all that the process holds; and cohorts of any size are worked off client by client."""
    from tff_pipeline.runtime.local import LocalRuntime
    from tff_pipeline.runtime.scripted import ScriptedRuntime

    noise = [np.zeros(shape) for shape in head.compiled.shapes]
    everybody = {"bank": [0, 1, 2, 3], "shop": [0, 1, 2, 3]}
    with ScriptedRuntime(LocalRuntime, head.compiled, head.silos) as runtime:
        state, sizes = started(head, runtime), []
        for number in range(200):
            state = runtime.run_round(state.with_noise(noise), everybody, round_number=number).state
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
    from builders import cases
    from tff_pipeline.runtime.local import LocalRuntime
    from tff_pipeline.runtime.scripted import ScriptedRuntime
    case = cases.head_case()
    found = {}
    for devices in (["CPU:0"], ["CPU:1", "CPU:2"]):
        with ScriptedRuntime(
            LocalRuntime, case.compiled, case.silos, devices=devices, clients_in_parallel=1
        ) as runtime:
            state = cases.started(case, runtime)
            for _ in range(3):  # until both have had a client
                sums = runtime.secure_sums(state, {"bank": [0, 1, 2, 3], "shop": [0, 1, 2, 3]})
            found[devices[0]] = {"placement": runtime.placement(), "sums": [part.tolist() for part in sums]}
    print(json.dumps(found))
"""


def test_every_device_works_and_nothing_of_the_model_runs_elsewhere():
    """Three logical CPUs stand for a CPU and two GPUs; a process has its devices for life, so this one is its own."""
    from tff_pipeline.runtime.base import off_device

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_ON_TWO_DEVICES)],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
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

    from tff_pipeline.aggregators.factory import aggregator_for
    from tff_pipeline.learning import process as learning
    from tff_pipeline.model.learner import FeatureLearner

    shapes = [(HIDDEN, LABELS), (LABELS,)]
    secure: dict[str, Any] = {
        "model_aggregator": aggregator_for(plan(), shapes),
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
