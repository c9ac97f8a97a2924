"""The learning process: TFF's own federated averaging (McMahan et al. 2017, algorithm 1) over our model and aggregator.

What comes out is an ordinary `tff.learning.templates.LearningProcess`, which also runs under TFF's own context. It is
checked here, once, for what it sends to the server.
"""

import atexit
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow_federated as tff
from tensorflow_federated.python.core.impl.context_stack import runtime_error_context
from tensorflow_federated.python.learning import loop_builder

from tff_pipeline.aggregators.factory import aggregator_for, weighted_aggregator_for
from tff_pipeline.config import TrainingSection
from tff_pipeline.errors import ConfigError, InsecureProcessError
from tff_pipeline.learning.optimizers import Proximal, SparseSgd
from tff_pipeline.learning.state import StateLayout
from tff_pipeline.privacy.plan import PrivacyPlan

# DATASET_REDUCE, TFF's default, took two to three times as long when both were measured (TFF 0.87) and ignores tf.device.
_LOOP = loop_builder.LoopImplementation.DATASET_ITERATOR


@dataclasses.dataclass(frozen=True)
class Slot:
    """One tensor that a client sends into a secure sum."""

    dtype: np.dtype
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A process in the two forms that the runtimes need.

    Attributes:
      process: the process as TFF's executor takes it.
      form: the same, apart into what the server and what clients do.
      initialize: gives the state before the first round.
      shapes: of the trained weights.
      layout: what each tensor of the state is.
      slots: what a client sends, in order.
      noised_slots: indices of the slots whose sum must not leave a silo without a noise share.
      metric_names: TFF's path of every metric.
    """

    process: tff.learning.templates.LearningProcess
    form: tff.backends.mapreduce.MapReduceForm
    initialize: Any
    shapes: tuple[tuple[int, ...], ...]
    layout: StateLayout
    slots: tuple[Slot, ...]
    noised_slots: tuple[int, ...]
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
        if training.proximal_strength is None:
            raise ConfigError(
                'training.algorithm is "fedprox" and training.proximal_strength is not set; expected a number above 0.'
            )
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
        metrics_aggregator=_no_metrics
        if plan.mechanism.silos_add_noise
        else tff.learning.metrics.secure_sum_then_finalize,
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
    layout, slots = StateLayout.of(_leaf_names(result[0])), _slots(sent)
    noised: tuple[int, ...] = ()
    if layout.noise_shares is not None:
        _require_nothing_beside_the_noised_sum(sent)
        noised = (len(slots) - 1,)  # a modular sum comes last
    initialize: Any = process.initialize
    return Compiled(
        process=process,
        form=form,
        initialize=tff.backends.mapreduce.get_state_initialization_computation(initialize),
        shapes=tuple(tuple(shape) for shape in shapes),
        layout=layout,
        slots=slots,
        noised_slots=noised,
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


def _slots(kind: Any) -> tuple[Slot, ...]:
    """dtype and shape of a TFF type's tensors, in TFF's order."""
    if isinstance(kind, tff.types.StructType):
        return tuple(slot for _, part in tff.structure.to_elements(kind) for slot in _slots(part))
    return (Slot(np.dtype(kind.dtype), tuple(kind.shape)),)
