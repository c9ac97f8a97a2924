"""The learning process: TFF's own federated averaging (McMahan et al. 2017, algorithm 1) over our model and aggregator.

What comes out is an ordinary `tff.learning.templates.LearningProcess`, which also runs under TFF's own context. It is
checked here, once, for what it sends to the server.
"""

import atexit
import collections
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff
from tensorflow_federated.python.core.impl.context_stack import runtime_error_context
from tensorflow_federated.python.learning import loop_builder

from tff_pipeline.aggregators.distributed_discrete_gaussian import SHARES
from tff_pipeline.aggregators.factory import aggregator_for, weighted_aggregator_for
from tff_pipeline.config import TrainingSection
from tff_pipeline.errors import InsecureProcessError
from tff_pipeline.privacy.plan import PrivacyPlan

# DATASET_REDUCE, TFF's default, took two to three times as long when both were measured (TFF 0.87) and ignores tf.device.
_LOOP = loop_builder.LoopImplementation.DATASET_ITERATOR


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A process in the two forms the runtimes need. `shapes` are those of the trained weights."""

    process: tff.learning.templates.LearningProcess
    form: tff.backends.mapreduce.MapReduceForm
    initialize: Any
    shapes: tuple[tuple[int, ...], ...]
    state_names: tuple[str, ...]
    metric_names: tuple[str, ...]


def build(
    model_fn: Callable[[], tff.learning.models.VariableModel],
    training: TrainingSection,
    plan: PrivacyPlan,
    shapes: Sequence[Sequence[int]],
    *,
    largest_weight: float | None = None,
) -> Compiled:
    """Builds and compiles the process.

    Args:
      model_fn: makes the model, from scratch, in whatever graph is current.
      training: optimizers and algorithm.
      plan: clip, range, noise and denominator.
      shapes: of the model's trainable variables, in order.
      largest_weight: where clients are weighted by examples, what no client's number of instances in a round is above; from
        the plan, for texts, where it is None.

    Raises:
      InsecureProcessError: if anything would travel to the server outside the secure sum.
    """
    optimizers: dict[str, Any] = {
        "client_optimizer_fn": _optimizer(training.client_optimizer, training.client_learning_rate, 0.0)
    }
    optimizers["server_optimizer_fn"] = _optimizer(
        training.server_optimizer, training.server_learning_rate, training.server_momentum
    )
    algorithms: Any = tff.learning.algorithms
    if training.algorithm == "fedprox":
        assert training.proximal_strength is not None
        optimizers["client_optimizer_fn"] = Proximal(optimizers["client_optimizer_fn"], training.proximal_strength)
    weighted = training.weighting == "examples"
    build_process = algorithms.build_weighted_fed_avg if weighted else algorithms.build_unweighted_fed_avg
    if weighted:
        most = largest_weight or plan.max_examples_per_client * training.local_epochs
        aggregator: Any = weighted_aggregator_for(plan, largest_weight=most)
    else:
        aggregator = aggregator_for(plan, shapes)
    _let_tff_end_in_order()
    process = build_process(
        model_fn,
        **optimizers,
        model_aggregator=aggregator,
        # Where the silos add the noise, the server must see nothing without it: a cohort's size would undo its sampling.
        metrics_aggregator=_no_metrics if plan.integers else tff.learning.metrics.secure_sum_then_finalize,
        loop_implementation=_LOOP,
    )
    return compile_process(process, shapes)


@functools.cache
def _let_tff_end_in_order() -> None:
    """Has the program, at its end, drop the executor that TFF keeps by default and that nothing here uses.

    Otherwise it may outlast the modules that it needs to end (an optimizer of our own is enough), and complains about them.
    """
    nothing: Any = runtime_error_context.RuntimeErrorContext()
    atexit.register(tff.framework.set_default_context, nothing)


def compile_process(process: tff.learning.templates.LearningProcess, shapes: Sequence[Sequence[int]]) -> Compiled:
    """Compiles a process to TFF's MapReduceForm, refusing one that leaks.

    Raises:
      InsecureProcessError: if anything would travel to the server outside the secure sum; or beside the one sum that has
        noise, where the silos add the noise and the server is trusted with nothing else.
    """
    next_computation: Any = process.next
    try:
        tff.test.assert_not_contains_unsecure_aggregation(next_computation)
    except AssertionError as error:
        raise InsecureProcessError(
            f"the learning process sums something in the clear ({str(error).splitlines()[0]}); expected secure sums only. Nothing was run."
        ) from error
    form = tff.backends.mapreduce.get_map_reduce_form_for_computation(next_computation)
    sent: Any = form.work.type_signature.result
    plain = sent[0]
    if _leaf_names(plain):
        raise InsecureProcessError(
            f"the compiled process sends {plain.compact_representation()} to the server outside the secure sum; expected nothing. Nothing was run."
        )
    result: Any = form.update.type_signature.result
    state_names = tuple(_leaf_names(result[0]))
    if any(SHARES in name for name in state_names):
        _require_nothing_beside_the_noised_sum(sent)
    initialize: Any = process.initialize
    return Compiled(
        process=process,
        form=form,
        initialize=tff.backends.mapreduce.get_state_initialization_computation(initialize),
        shapes=tuple(tuple(shape) for shape in shapes),
        state_names=state_names,
        metric_names=tuple(_leaf_names(result[1])),
    )


def _require_nothing_beside_the_noised_sum(sent: Any) -> None:
    """For what a client sends: (plain, two kinds of exact sums, modular sums). Only one modular sum is given noise."""
    _, *exact, modular = sent
    without_noise, modular_sums = sum(len(_leaf_names(part)) for part in exact), len(_leaf_names(modular))
    if without_noise or modular_sums != 1:
        raise InsecureProcessError(
            f"the compiled process sends {without_noise} sums without noise and {modular_sums} sums modulo a power of two; expected one sum, the one that the silos add "
            "their noise to, since the server is not trusted with any other. Nothing was run."
        )


def _no_metrics(_: Any) -> Callable[[Any], Any]:
    """A metrics aggregator for TFF that has the clients send nothing."""
    intrinsics: Any = tff
    return lambda unfinalized: intrinsics.federated_value((), tff.SERVER)


class Proximal(tff.learning.optimizers.Optimizer):
    """A client's optimizer with FedProx's pull towards where the client started (Li et al. 2020, equation 2).

    Adds strength * (w - w_start) to the gradient. `tff.learning.algorithms.build_*_fed_prox` is not used: in TFF 0.87 it
    adds strength * (w_start - w), which pushes the weights away (tests/test_training.py measures both).
    """

    def __init__(self, inner: Any, strength: float):
        self._inner, self._strength = inner, strength

    def initialize(self, specs: Any) -> Any:
        start = tf.nest.map_structure(lambda spec: tf.zeros(spec.shape, spec.dtype), specs)
        return collections.OrderedDict(inner=self._inner.initialize(specs), start=start, started=tf.constant(False))

    def next(self, state: Any, weights: Any, gradients: Any) -> Any:
        # The weights of the first step are where the client started; before that they are not known here.
        start = tf.nest.map_structure(lambda kept, now: tf.where(state["started"], kept, now), state["start"], weights)
        pulled = tf.nest.map_structure(lambda g, w, s: g + self._strength * (w - s), gradients, weights, start)
        inner, updated = self._inner.next(state["inner"], weights, pulled)
        return collections.OrderedDict(inner=inner, start=start, started=tf.constant(True)), updated

    def get_hparams(self, state: Any) -> Any:
        return self._inner.get_hparams(state["inner"])

    def set_hparams(self, state: Any, hparams: Any) -> Any:
        return collections.OrderedDict(state, inner=self._inner.set_hparams(state["inner"], hparams))


class SparseSgd(tff.learning.optimizers.Optimizer):
    """TFF's gradient descent without momentum, but for weights of which only some rows have a gradient: an embedding's.

    TFF's makes such a gradient as large as the table, for a few words of a client. Here the other rows are left alone.
    """

    def __init__(self, learning_rate: float):
        self._dense = tff.learning.optimizers.build_sgdm(learning_rate)

    def initialize(self, specs: Any) -> Any:
        return self._dense.initialize(specs)

    def next(self, state: Any, weights: Any, gradients: Any) -> Any:
        rate = state[tff.learning.optimizers.LEARNING_RATE_KEY]

        def descended(weight: tf.Tensor, gradient: Any) -> tf.Tensor:
            if isinstance(gradient, tf.IndexedSlices):
                rows = gradient.indices[:, tf.newaxis]
                return tf.tensor_scatter_nd_sub(weight, rows, rate * gradient.values)
            return self._dense.next(state, weight, gradient)[1]

        return state, tf.nest.map_structure(descended, weights, gradients)

    def get_hparams(self, state: Any) -> Any:
        return self._dense.get_hparams(state)

    def set_hparams(self, state: Any, hparams: Any) -> Any:
        return self._dense.set_hparams(state, hparams)


def _optimizer(kind: str, learning_rate: float, momentum: float) -> Any:
    if kind == "adam":
        return tff.learning.optimizers.build_adam(learning_rate)
    if not momentum:
        return SparseSgd(learning_rate)
    return tff.learning.optimizers.build_sgdm(learning_rate, momentum=momentum or None)


def _leaf_names(kind: tff.types.Type, prefix: str = "") -> list[str]:
    """The paths of a type's tensors, in the order in which TFF flattens them."""
    if isinstance(kind, tff.types.StructType):
        parts = tff.structure.to_elements(kind)
        return [
            leaf for index, (name, part) in enumerate(parts) for leaf in _leaf_names(part, f"{prefix}/{name or index}")
        ]
    return [prefix.removeprefix("/")]
