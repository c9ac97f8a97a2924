"""A digest of what a learning process computes: by it a silo knows again what it has approved.

The digest covers every operation of the graphs that silos and server run, and of the one that makes the first state, with its attributes, its constants and what
it is fed from. It does not cover names, which TensorFlow and Keras count up within a process, so that the same process has the
same digest wherever it is built with the same versions.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from tensorflow.core.framework import types_pb2

from tff_pipeline.learning.process import Compiled
from tff_pipeline.runtime.graphs import graph_of

_PARTS = ("prepare", "work", "update")


def graph_digest(compiled: Compiled) -> str:
    """A SHA-256, 64 hex digits, of the graphs, the slots that clients send, and what the state holds."""
    digest = hashlib.sha256(b"tff-pipeline process\0")
    for part in _PARTS:
        digest.update(_digest_of_graph(getattr(compiled.form, part)).encode())
    # The state that a run begins with: TFF keeps both optimizers' learning rates there, and broadcasts the clients'.
    digest.update(_digest_of_graph(compiled.initialize).encode())
    for slot in compiled.slots:
        digest.update(f"{slot.dtype.str}{slot.shape}\0".encode())
    digest.update(f"{compiled.noised_slots}{compiled.shapes}{compiled.layout.names}".encode())
    return digest.hexdigest()


def _digest_of_graph(computation: Any) -> str:
    graph, fed, fetched = graph_of(computation)
    functions = {function.signature.name: function for function in graph.library.function}
    index = {node.name: f"operation {position}" for position, node in enumerate(graph.node)}
    ends = [_source(name, index) for name in (*fed, "", *fetched)]
    return "\0".join([_digest_of_nodes(graph.node, (), functions, {}), *ends])


def _digest_of_nodes(
    nodes: Iterable[Any], arguments: Iterable[str], functions: Mapping[str, Any], known: dict[str, str]
) -> str:
    """Of operations in their order; an operation is named by its index, an argument of the function by its own."""
    nodes = list(nodes)
    index = {name: f"argument {position}" for position, name in enumerate(arguments)}
    index |= {node.name: f"operation {position}" for position, node in enumerate(nodes)}
    digest = hashlib.sha256()
    for node in nodes:
        digest.update(f"\n{node.op}\0".encode())
        if node.op in functions:
            digest.update(_digest_of_function(node.op, functions, known).encode())
        for source in node.input:
            digest.update(f"{_source(source, index)}\0".encode())
        # Text in a graph is for people, or names a file of this machine.
        text = node.op == "Const" and node.attr["dtype"].type == types_pb2.DT_STRING
        for name in sorted(node.attr) if not text else ():
            digest.update(f"{name}=".encode() + _attribute(node.attr[name], index, functions, known) + b"\0")
    return digest.hexdigest()


def _source(source: str, index: Mapping[str, str]) -> str:
    """What an operation is fed from, such as "^name", "name" or "name:output:0"."""
    control = "^" if source.startswith("^") else ""
    name, colon, output = source.removeprefix("^").partition(":")
    return f"{control}{index.get(name, name)}{colon}{output}"


def _attribute(value: Any, index: Mapping[str, str], functions: Mapping[str, Any], known: dict[str, str]) -> bytes:
    kind = value.WhichOneof("value")
    if kind == "func":
        return _digest_of_function(value.func.name, functions, known).encode()
    if kind == "s":
        return _text(value.s, index)
    if kind == "list" and value.list.s:
        return b",".join(_text(part, index) for part in value.list.s)
    if kind == "list" and value.list.func:
        return b",".join(_digest_of_function(part.name, functions, known).encode() for part in value.list.func)
    return value.SerializeToString(deterministic=True)


def _text(value: bytes, index: Mapping[str, str]) -> bytes:
    """A string of an attribute; a name of the graph by its index, and nothing for one that TensorFlow counted up."""
    name = value.decode(errors="replace").removeprefix("loc:@")
    if name in index:
        return index[name].encode()
    return b"" if name[-1:].isdigit() else value


def _digest_of_function(name: str, functions: Mapping[str, Any], known: dict[str, str]) -> str:
    if name not in functions:
        return name
    if name not in known:
        known[name] = "recursive"
        function = functions[name]
        arguments = [argument.name for argument in function.signature.input_arg]
        index = {argument: f"argument {position}" for position, argument in enumerate(arguments)}
        index |= {node.name: f"operation {position}" for position, node in enumerate(function.node_def)}
        body = _digest_of_nodes(function.node_def, arguments, functions, known)
        results = [_source(function.ret[argument.name], index) for argument in function.signature.output_arg]
        known[name] = hashlib.sha256("\0".join([body, *results]).encode()).hexdigest()
    return known[name]
