"""A computation of the compiled form as a TensorFlow graph in a session of its own.

TFF's MapReduceForm gives each of its parts as one GraphDef with named parameters and results. Values that stay the same
over many calls are held as variables of the session; the rest is fed. A client's dataset is a variant tensor, made in
the same graph from what is fed for the client.
"""

import collections
import itertools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
from tensorflow.core.protobuf import config_pb2

v1 = tf.compat.v1


class SessionGraph:
    """One computation, ready to be called many times. Close it when it is done with.

    Args:
      computation: a TFF computation that is plain TensorFlow.
      held: hold the tensor parameters as variables, set by `hold`, instead of feeding them.
      specs: what `feed` will be for a computation that takes a dataset.
      batches: makes the dataset from placeholders of those specs.
      device: where operations go that can go there, such as "GPU:0". (TensorFlow's own choice would be a GPU that is there,
        asked for or not.)
      inline: run operations one after the other in the thread that calls, for callers that work side by side. (How many
        threads an operation takes is the process's setting; TensorFlow's sessions have one pool together.)
      skipped: indices of results that are not wanted; None is given for them.
    """

    def __init__(
        self,
        computation: Any,
        *,
        held: bool = False,
        specs: Sequence[tf.TensorSpec] = (),
        batches: Callable[[Sequence[tf.Tensor]], tf.data.Dataset] | None = None,
        device: str = "CPU:0",
        inline: bool = False,
        skipped: Collection[int] = (),
    ):
        proto, graph_def = _unpacked(computation)
        parameters = _leaves(proto.parameter) if proto.HasField("parameter") else []
        tensors = [name for kind, name in parameters if kind == "tensor"]
        datasets = [name for kind, name in parameters if kind == "sequence"]
        with tf.Graph().as_default() as graph, tf.device(device):
            input_map: dict[str, tf.Tensor] = {}
            self._fed = [v1.placeholder(spec.dtype, spec.shape) for spec in specs]
            if datasets:
                if batches is None:
                    raise ValueError("the computation takes a dataset; expected `batches`, which makes it.")
                with tf.device("CPU:0"):
                    input_map |= {name: tf.data.experimental.to_variant(batches(self._fed)) for name in datasets}
            self._held: list[tuple[tf.Tensor, tf.Operation]] = []
            if held:
                input_map |= {name: self._variable(graph_def, name) for name in tensors}
            v1.import_graph_def(graph_def, input_map=input_map, name="")
            fed_parameters = [] if held else [graph.get_tensor_by_name(name) for name in tensors]
            results = [name for _, name in _leaves(proto.result)]
            self._indices = range(len(results))
            self._fetched = [index for index in self._indices if index not in skipped]
            self._results = [graph.get_tensor_by_name(results[index]) for index in self._fetched]
            self._initialize = graph.get_operation_by_name(proto.initialize_op) if proto.initialize_op else None
        # What nothing depends on is not fed: of a round's state, what is broadcast is a fifth. Feeding copies.
        used = _ancestors([result.op for result in self._results] + [op for op in [self._initialize] if op])
        self._used = [tensor.op in used for tensor in fed_parameters]
        self._feeds = [*itertools.compress(fed_parameters, self._used), *self._fed]
        self._graph = graph
        # Operations without a kernel for the device (strings, input pipelines) go to the CPU; `placement` tells which.
        options = v1.ConfigProto(inter_op_parallelism_threads=-1 if inline else 0, allow_soft_placement=True)
        if device.startswith("CPU:"):
            options.device_count["CPU"] = int(device.removeprefix("CPU:")) + 1
            options.device_count["GPU"] = 0  # the session leaves them and their memory alone
        options.gpu_options.allow_growth = True
        self._session = v1.Session(graph=graph, config=options)
        # Prepared, a call takes a millisecond less of Python than `Session.run`, which for a small client is a third of it.
        self._run = self._callable(self._feeds, self._results)
        places, assignments = [place for place, _ in self._held], [assign for _, assign in self._held]
        self._hold = self._callable(places, [], assignments) if held else None
        self._reset: Callable[..., Any] | None = None
        self.placement: dict[str, dict[str, int]] | None = None

    def note_placement(self) -> None:
        """Has the next call fill `placement`: by device ("GPU:0"), how many operations of each type ran there."""
        self.placement = {}

    def hold(self, values: Sequence[np.ndarray]) -> None:
        """Sets the parameters of a graph that holds them. The arrays must not change until others are held: they may be used where they lie."""
        if self._hold is None:
            raise ValueError("the graph is fed its parameters; expected one that holds them (held=True).")
        self._hold(*map(np.asarray, values))

    def reset_only(self, variables: Sequence[str]) -> None:
        """From now on, only variables with these last names start anew on each call.

        For a computation that overwrites its other variables before it reads them, as TFF's client work does with the
        weights: filling millions of them with zeros for each client would be for nothing.
        """
        if self._initialize is None:
            raise ValueError("the computation has no variables; expected one that starts them anew on each call.")
        self._session.run(self._initialize)
        starts = [
            op for op in self._graph.get_operations() if op.type == "AssignVariableOp" and op.name.endswith("/Assign")
        ]
        chosen = [op for op in starts if op.name.split("/")[-2] in variables]
        if len(chosen) != len(variables):
            names = ", ".join(op.name for op in chosen) or "none"
            raise ValueError(
                f"the computation has {len(chosen)} variables with the names {', '.join(variables)} ({names}); expected one of each."
            )
        self._reset = self._callable([], [], chosen)

    def __call__(self, parameters: Sequence[Any] = (), fed: Sequence[Any] = ()) -> list[Any]:
        """Runs the computation once."""
        wanted = [value for used, value in zip(self._used, parameters, strict=True) if used]
        given = zip(self._feeds, [*wanted, *fed], strict=True)
        # As `Session.run` does: strings are arrays of objects.
        values = [np.asarray(value, tensor.dtype.as_numpy_dtype) for tensor, value in given]
        if self._reset is not None:
            self._reset()
        elif self._initialize is not None:
            self._session.run(self._initialize, self._feed(values))
        if self.placement == {}:
            options, seen = v1.RunOptions(output_partition_graphs=True), v1.RunMetadata()
            results = self._session.run(self._results, self._feed(values), options, seen)
            self.placement = _placement(seen)
        else:
            results = self._run(*values)
        fetched = dict(zip(self._fetched, results, strict=True))
        # A string scalar comes out as bytes.
        return [np.asarray(fetched[index]) if index in fetched else None for index in self._indices]

    def close(self) -> None:
        self._session.close()

    def _feed(self, values: Sequence[np.ndarray]) -> dict[tf.Tensor, np.ndarray]:
        return dict(zip(self._feeds, values, strict=True))

    def _callable(
        self, feeds: Sequence[tf.Tensor], results: Sequence[tf.Tensor], targets: Sequence[tf.Operation] = ()
    ) -> Callable[..., list[Any]]:
        """A call of the session, prepared once: takes an array for each of `feeds`, gives one for each of `results`."""
        options = config_pb2.CallableOptions(
            feed=[tensor.name for tensor in feeds],
            fetch=[tensor.name for tensor in results],
            target=[operation.name for operation in targets],
        )
        return self._session._make_callable_from_options(options)

    def _variable(self, graph_def: v1.GraphDef, name: str) -> tf.Tensor:
        node = next(node for node in graph_def.node if node.name == name.split(":")[0])
        dtype, shape = tf.as_dtype(node.attr["dtype"].type), tf.TensorShape(node.attr["shape"].shape)
        variable = v1.get_variable(
            f"held_{len(self._held)}",
            shape=shape,
            dtype=dtype,
            # Never run, but the default draws random numbers, which TensorFlow refuses where operations are deterministic.
            initializer=v1.zeros_initializer(),
            use_resource=True,
            trainable=False,
        )
        place = v1.placeholder(dtype, shape)
        self._held.append((place, variable.assign(place).op))
        return variable.read_value()


def operation_types(computation: Any) -> frozenset[str]:
    """The types of operations in a computation that is plain TensorFlow, its functions included."""
    _, graph_def = _unpacked(computation)
    in_functions = [node.op for function in graph_def.library.function for node in function.node_def]
    return frozenset([*(node.op for node in graph_def.node), *in_functions])


def rings(form: Any) -> list[np.dtype]:
    """The unsigned dtype in which each secure slot is summed, in the order of `form.work`'s results.

    It is as wide as what is sent: an int32's sum is meant to fit an int32. A slot of a modular sum has the dtype of its
    modulus, 2**16 or 2**32.
    """
    sent: Any = form.work.type_signature.result
    parts: list[list[Any]] = [tff.structure.flatten(part) for part in sent]
    *exact, modular = parts
    dtypes = [np.dtype(f"u{kind.dtype.name}") for part in exact for kind in part]
    if modular:
        graph = SessionGraph(form.secure_modular_sum_modulus)
        try:
            dtypes += [np.dtype({2**16: np.uint16, 2**32: np.uint32}[int(modulus)]) for modulus in graph()]
        finally:
            graph.close()
    return dtypes


def graph_of(computation: Any) -> tuple[v1.GraphDef, list[str], list[str]]:
    """The graph of a computation that is plain TensorFlow, and the names of its parameters and of its results."""
    proto, graph_def = _unpacked(computation)
    parameters = _leaves(proto.parameter) if proto.HasField("parameter") else []
    return graph_def, [name for _, name in parameters], [name for _, name in _leaves(proto.result)]


def _unpacked(computation: Any) -> tuple[Any, v1.GraphDef]:
    """TFF's message for a computation that is plain TensorFlow, and the graph in it."""
    proto = tff.framework.serialize_computation(computation).tensorflow
    graph_def = v1.GraphDef()
    proto.graph_def.Unpack(graph_def)
    return proto, graph_def


def _placement(seen: Any) -> dict[str, dict[str, int]]:
    by_device: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for part in seen.partition_graphs:
        for node in part.node:
            by_device[node.device.rsplit("device:", 1)[-1]][node.op] += 1
    return {device: dict(sorted(counts.items())) for device, counts in sorted(by_device.items())}


def _ancestors(operations: Collection[tf.Operation]) -> set[tf.Operation]:
    """The operations and all that they depend on."""
    ancestors: set[tf.Operation] = set()
    waiting = list(operations)
    while waiting:
        operation = waiting.pop()
        if operation not in ancestors:
            ancestors.add(operation)
            waiting += [*(tensor.op for tensor in operation.inputs), *operation.control_inputs]
    return ancestors


def _leaves(binding: Any) -> list[tuple[str, str]]:
    """("tensor" | "sequence", tensor name) of a TFF binding, in order."""
    kind = binding.WhichOneof("binding")
    if kind == "struct":
        return [leaf for element in binding.struct.element for leaf in _leaves(element)]
    return [(kind, binding.tensor.tensor_name if kind == "tensor" else binding.sequence.variant_tensor_name)]
