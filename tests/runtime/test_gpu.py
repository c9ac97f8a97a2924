"""Clients' work on a GPU: where TensorFlow would place it, and that a repeated round has the same sum.

No GPU is needed. Placement is TensorFlow's own, beside a GPU that cannot compute (`fake_gpu.c`); what deterministic
operations change is computed on a CPU that stands for a GPU.
"""

import contextlib
import json
import re
import shutil
import subprocess
import sys
import textwrap
from collections import Counter
from typing import Any

import numpy as np
import pytest
from builders import TESTS, cases, environment
from builders.plans import discretization
from builders.tiny import Row, prepared, quiet, trained_weights

from tff_pipeline.errors import TrainingError

CASES = ("head", "full", "lora", "distributed", "adaptive")
REFUSED = {"SoftmaxCrossEntropyWithLogits", "SparseSoftmaxCrossEntropyWithLogits"}

# Makes a runtime without initializing its variables, which would run kernels, and reads what TensorFlow logs about it.
_PLACED = """
    import json, os, sys
    import tensorflow as tf
    from tensorflow.python.framework import load_library
    load_library.load_pluggable_device_library(sys.argv[1])
    from builders import cases
    from tff_pipeline.runtime import graphs
    from tff_pipeline.runtime.determinism import deterministic_operations
    from tff_pipeline.runtime.local import LocalRuntime, choose_devices
    from tff_pipeline.runtime.scripted import ScriptedRuntime

    options, make = graphs.v1.ConfigProto, graphs.SessionGraph.__init__
    logged, seen = {}, []

    def made(self, computation, **kwargs):
        os.ftruncate(2, 0)
        graphs.v1.ConfigProto = lambda **given: options(log_device_placement=True, **given)
        make(self, computation, **kwargs)
        graphs.v1.ConfigProto = options
        if kwargs.get("device", "").startswith("GPU"):
            with open("/proc/self/fd/2", errors="replace") as file:
                seen.append(file.read())

    graphs.SessionGraph.__init__ = made
    graphs.SessionGraph.reset_only = lambda self, variables: None
    graphs.SessionGraph.note_placement = lambda self: None
    makes = {
        "head": cases.head_case,
        "full": cases.full_case,
        "lora": cases.lora_case,
        "distributed": lambda: cases.head_case(cases.DISTRIBUTED),
        "adaptive": lambda: cases.head_case(cases.adaptive_plan()),
    }
    os.dup2(os.open(sys.argv[2], os.O_RDWR | os.O_CREAT | os.O_APPEND), 2)
    devices = choose_devices("auto")
    for name in sys.argv[3:]:
        with deterministic_operations(devices):
            with tf.device("CPU:0"):
                case = makes[name]()
            runtime = ScriptedRuntime(LocalRuntime, case.compiled, case.silos).runtime
            graphs_of_server = runtime.server._prepare, runtime.server._update
            server = [device.name for graph in graphs_of_server for device in graph._session.list_devices()]
        logged[name] = {"devices": runtime.devices, "server": server, "work": seen.pop()}
    print(json.dumps(logged))
"""


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By case: the devices, those that the server's sessions see, and how many operations of each type TensorFlow placed where."""
    compiler = shutil.which("cc")
    if not compiler:
        pytest.skip("no C compiler to make the plug-in with")
    import tensorflow as tf

    folder = tmp_path_factory.mktemp("gpu")
    plugin = folder / "fake_gpu.so"
    include = f"-I{tf.sysconfig.get_include()}"
    subprocess.run(
        [compiler, "-shared", "-fPIC", include, str(TESTS / "builders" / "fake_gpu.c"), "-o", str(plugin)], check=True
    )
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_PLACED), str(plugin), str(folder / "log"), *CASES],
        capture_output=True,
        text=True,
        check=False,
        env=environment(TF_CPP_MIN_LOG_LEVEL="0"),
    )
    assert done.returncode == 0, done.stderr[-2000:] + (folder / "log").read_text(errors="replace")[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for case in found.values():
        lines = re.findall(r"placer\.cc:\d+\] .*: \((\w+)\): \S*device:(\w+:\d+)", case.pop("work"))
        case["work"] = {
            device: dict(Counter(kind for kind, other in lines if other == device)) for device in dict(lines).values()
        }
    return found


@pytest.mark.parametrize("case", CASES)
def test_beside_a_gpu_every_arithmetic_operation_has_a_kernel_on_it(placed, case):
    from tff_pipeline.runtime.base import off_device

    work = placed[case]["work"]
    assert placed[case]["devices"] == ["GPU:0"]
    assert not off_device(work, ["GPU:0"])
    assert work["GPU:0"]["MatMul"] >= 2
    # What clips and quantizes is there too, so that one vector a client comes back from the GPU.
    assert {"Cast", "Mul"} <= set(work["GPU:0"])
    assert ("EuclideanNorm" in work["GPU:0"]) == (case != "distributed")


@pytest.mark.parametrize("case", CASES)
def test_beside_a_gpu_the_input_pipeline_is_on_the_cpu(placed, case):
    """An iterator on a GPU would hand out addresses of the host's memory as if they were the GPU's."""
    work = placed[case]["work"]
    parts = ("Dataset", "Iterator", "Optional", "ParseExample", "ReadFile")
    assert sum(any(part in kind for part in parts) for kind in work["CPU:0"]) >= 6
    assert not [kind for kind in work["GPU:0"] if any(part in kind for part in parts)]


@pytest.mark.parametrize("case", CASES)
def test_beside_a_gpu_the_server_works_on_the_cpu(placed, case):
    assert placed[case]["server"]
    assert not [name for name in placed[case]["server"] if "GPU" in name]


@pytest.mark.parametrize("case", CASES)
def test_no_operation_on_the_gpu_fails_where_operations_are_deterministic(placed, case):
    assert not REFUSED & set(placed[case]["work"]["GPU:0"])


def test_nothing_that_bounds_an_update_is_computed_in_tf32():
    """Tensor cores round float32 factors of matrix products to 11 bits: a norm or a rotation by them would break the bound."""
    import tensorflow as tf

    from tff_pipeline.aggregators.distributed_discrete_gaussian import encode
    from tff_pipeline.aggregators.quantized_sum import clipped_in_steps, norm_at_least

    made = discretization(cases.DISTRIBUTED)
    with tf.Graph().as_default() as graph:
        update = tf.compat.v1.placeholder(tf.float32, [made.dimension])
        clipped_in_steps([update], norm=norm_at_least([update]), clip=tf.constant(1.0, tf.float64), levels=2**20)
        assert not [op.type for op in graph.get_operations() if "MatMul" in op.type or "Einsum" in op.type]
        encode([update], tf.constant([1, 2], tf.int64), made)
    products = [op for op in graph.get_operations() if "MatMul" in op.type or "Einsum" in op.type]
    assert {tensor.dtype for op in products for tensor in op.inputs} == {tf.float64}


# -- deterministic operations


def enabled() -> bool:
    from tensorflow.python.framework import config

    return config.is_op_determinism_enabled()


def test_operations_are_deterministic_in_the_block_and_only_with_a_gpu():
    from tff_pipeline.runtime.determinism import deterministic_operations

    with deterministic_operations(["CPU:0"]):
        assert not enabled()
    with deterministic_operations(["GPU:0", "GPU:1"]), deterministic_operations(["GPU:1"]):
        assert enabled()
    assert not enabled()
    with pytest.raises(ZeroDivisionError), deterministic_operations(["GPU:0"]):
        raise ZeroDivisionError
    assert not enabled()


def test_the_last_of_two_blocks_that_overlap_switches_it_off():
    from tff_pipeline.runtime.determinism import deterministic_operations

    first, second = contextlib.ExitStack(), contextlib.ExitStack()
    first.enter_context(deterministic_operations(["GPU:0"]))
    second.enter_context(deterministic_operations(["GPU:0"]))
    first.close()
    assert enabled()
    second.close()
    assert not enabled()


def test_what_the_user_switched_on_stays_on():
    import tensorflow as tf
    from tensorflow.python.framework import config

    from tff_pipeline.runtime.determinism import deterministic_operations

    tf.config.experimental.enable_op_determinism()
    try:
        with deterministic_operations(["GPU:0"]):
            assert enabled()
        assert enabled()
    finally:
        config.disable_op_determinism()


def test_devices_of_different_kinds_are_refused(monkeypatch):
    """Which of them works on a client depends on which is free, and their arithmetic differs in the last bits."""
    import tensorflow as tf

    from tff_pipeline.runtime.determinism import deterministic_operations, require_deterministic

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["A", "A", "B"])
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda device: {"device_name": f"Model {device}"})
    require_deterministic({"MatMul"}, ["CPU:1", "CPU:2"])
    with deterministic_operations(["GPU:0"]):
        require_deterministic({"MatMul"}, ["GPU:0", "GPU:1"])
        for devices, kinds in ((["GPU:0", "GPU:2"], "Model A, Model B"), (["CPU:0", "GPU:0"], "CPU, Model A")):
            with pytest.raises(TrainingError, match=rf"different kinds \({kinds}\); expected one kind"):
                require_deterministic({"MatMul"}, devices)


def test_work_that_cannot_be_repeated_on_a_gpu_is_refused_before_a_round():
    from tff_pipeline.runtime.determinism import deterministic_operations, require_deterministic

    require_deterministic(REFUSED, ["CPU:0"])
    with pytest.raises(
        TrainingError, match=r"on GPU:0 and TensorFlow's operations are not deterministic.*No round was"
    ):
        require_deterministic({"MatMul"}, ["GPU:0"])
    with deterministic_operations(["GPU:0"]):
        require_deterministic({"MatMul"}, ["GPU:0"])
        with pytest.raises(TrainingError, match=r"without a deterministic kernel on GPU:0 \(SparseSoftmaxCross"):
            require_deterministic({"MatMul", "SparseSoftmaxCrossEntropyWithLogits"}, ["GPU:0"])


@pytest.mark.parametrize("make", ["head_case", "full_case"])
def test_deterministic_work_is_the_same_work(monkeypatch, make):
    """The other cross-entropy moves a sum by float32's rounding, and two sessions give the same integers."""
    from tff_pipeline.runtime.determinism import deterministic_operations
    from tff_pipeline.runtime.graphs import operation_types
    from tff_pipeline.runtime.local import LocalRuntime
    from tff_pipeline.runtime.scripted import ScriptedRuntime

    def sums(case: Any) -> list[np.ndarray]:
        with ScriptedRuntime(LocalRuntime, case.compiled, case.silos, devices="CPU") as runtime:
            return runtime.secure_sums(cases.started(case, runtime), cases.COHORT)

    usual = getattr(cases, make)()
    assert operation_types(usual.compiled.form.work) & REFUSED
    expected = sums(usual)
    with deterministic_operations(["GPU:0"]):
        case = getattr(cases, make)()
        monkeypatch.setattr("tff_pipeline.runtime.determinism._any_gpu", lambda devices: True)
        with pytest.raises(TrainingError, match="without a deterministic kernel"):
            sums(usual)
        once, again = sums(case), sums(case)
    for one, other, before in zip(once, again, expected, strict=True):
        np.testing.assert_array_equal(one, other)
        assert np.abs(one.astype(np.int64) - before.astype(np.int64)).max() <= cases.UNITS


@pytest.mark.parametrize("trainable", ["head", "lora", "full"])
def test_training_is_deterministic_from_building_to_the_last_round(tmp_path, monkeypatch, trainable):
    """Operations are from before the process is built until the last round, and not after it; a round's sums can be repeated."""
    from tff_pipeline.runtime.local import LocalRuntime
    from tff_pipeline.training import run as training

    rows: dict[str, list[Row]] = {
        "bank": [("a", "lost my card", "card"), ("b", "send money", "money")],
        "shop": [("c", "where is my parcel", "parcel"), ("d", "send the money", "money")],
    }
    config = prepared(tmp_path, rows, changes=[f"model.trainable={trainable}"])
    run_round, sums = LocalRuntime.run_round, []

    def twice(self: LocalRuntime, state: Any, at: Any, **options: Any) -> Any:
        assert enabled()
        cohorts = {silo.name: silo._draws.cohort(at, len(silo._clients)) for silo in self.silos}
        sums.append([self.secure_sums(state, at, cohorts) for _ in range(2)])
        return run_round(self, state, at, **options)

    monkeypatch.setattr(LocalRuntime, "run_round", twice)
    monkeypatch.setattr("tff_pipeline.runtime.determinism._any_gpu", lambda devices: True)  # the CPU stands for one
    run = training.train(config, progress=quiet())

    assert not enabled()
    assert len(sums) == 2
    for once, again in sums:
        for one, other in zip(once, again, strict=True):
            np.testing.assert_array_equal(one, other)
    assert all(np.isfinite(weights).all() for weights in trained_weights(run))
