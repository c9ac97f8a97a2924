"""Compiled processes, base networks and epsilons, made once a session: most tests need them, and few are about them.

`share` puts a cache before each of `learning.build`, `base_network` and `accounting.epsilon`. They are functions of their arguments, of
the code that they run and of whether operations are deterministic. All of that is in the key, the code as the functions
and constants that its modules hold now: where a test plants a fault in them, the process is built anew. So it is where
an argument has no content to compare, such as weights in a folder of the run or a seed that is drawn.
"""

import dataclasses
import functools
import json
import sys
import types
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any

import msgspec

_PLAIN = (type(None), bool, int, float, complex, str, bytes)


_BENEATH = tuple(f"tff_pipeline.{room}." for room in ("learning", "aggregators", "model", "privacy"))


class _Unknown(Exception):
    """An argument that cannot be compared by its content."""


def share() -> None:
    """Installs the caches, for as long as the process lives. Repeating it changes nothing."""
    from tff_pipeline.learning import process
    from tff_pipeline.model import network
    from tff_pipeline.privacy import accounting

    if not hasattr(process.build, "__wrapped__"):
        process.build = _once(process.build)
        accounting.epsilon = _once(accounting.epsilon)
        network.base_network = _network_once(network.base_network)


def share_if_imported() -> None:
    """`share`, unless TensorFlow Federated would have to be imported for it."""
    if "tff_pipeline.learning.process" in sys.modules:
        share()


def _once(make: Callable[..., Any]) -> Callable[..., Any]:
    kept: dict[Hashable, Any] = {}

    @functools.wraps(make)
    def once(*arguments: Any, **options: Any) -> Any:
        # Also what its modules call: the code of all rooms that it stands on.
        modules = {make.__module__, *(name for name in sys.modules if name.startswith(_BENEATH))}
        try:
            # Events may come as a generator, which can be read once.
            arguments = tuple(list(value) if isinstance(value, Iterator) else value for value in arguments)
            given = _content(arguments, modules), _content(options, modules)
            key = given, _code(modules), _deterministic()
        except _Unknown:
            return make(*arguments, **options)
        if key not in kept:
            kept[key] = make(*arguments, **options)
        return kept[key]

    return once


def _network_once(make: Callable[..., Any]) -> Callable[..., Any]:
    """A network that was made before, with what it was traced to, and with the weights that a new one would have."""

    @functools.wraps(make)
    def weights(*arguments: Any, **options: Any) -> list[Any]:
        return [variable.numpy() for variable in make(*arguments, **options).variables]

    kept, drawn = _once(make), _once(weights)

    @functools.wraps(make)
    def once(model: Any, *arguments: Any, seed: int | None, **options: Any) -> Any:
        if model.checkpoint != "random":
            return make(model, *arguments, seed=seed, **options)
        network = kept(model, *arguments, seed=0, **options)
        if _made_for_graphs(network):
            make(model, *arguments, seed=0, **options)
        draw = weights if seed is None else drawn
        network.set_weights(draw(model, *arguments, seed=seed, **options))
        return network

    return once


def _made_for_graphs(network: Any) -> bool:
    """Whether Keras has made its classes into those for graphs meanwhile, as it does where a layer is made in a graph.

    It does so to the class, and so to layers that were made before; a layer that is made outside of a graph takes it back.
    """
    from tf_keras.src.engine import base_layer_v1

    return isinstance(network.transformer.bert, base_layer_v1.Layer)


def _content(value: Any, modules: set[str]) -> Hashable:
    """What `value` is equal by; the modules whose code it runs are added to `modules`."""
    kind = type(value)
    if isinstance(value, _PLAIN):
        return kind, value
    if isinstance(value, type):
        modules.add(value.__module__)
        return value
    if isinstance(value, types.FunctionType):
        return _function(value, modules)
    if isinstance(value, functools.partial):
        return functools.partial, _content((value.func, value.args, value.keywords), modules)
    if isinstance(value, list | tuple):
        return kind, tuple(_content(part, modules) for part in value)
    if isinstance(value, dict):
        return kind, tuple(sorted((name, _content(part, modules)) for name, part in value.items()))
    if kind.__module__.startswith("tff_pipeline."):
        modules.add(kind.__module__)
        return _own(value, modules)
    raise _Unknown(kind.__name__)


def _function(function: types.FunctionType, modules: set[str]) -> Hashable:
    """Its code and everything it refers to: what it closes over, its defaults and the globals that it names."""
    modules.add(function.__module__)
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    names = [name for name in function.__code__.co_names if name in function.__globals__]
    values = [function.__globals__[name] for name in names]
    modules.update(value.__module__ for value in values if isinstance(value, type | types.FunctionType))
    told = [_identity(value) for value in values]
    return function.__code__, _content((cells, function.__defaults__, function.__kwdefaults__), modules), tuple(told)


def _own(value: Any, modules: set[str]) -> Hashable:
    """Values of the project's own types. Of a configuration, what a model is made from; the vocabulary by its content."""
    from tff_pipeline.config import Config, ModelSection
    from tff_pipeline.data.tokenization import Tokenizer

    if isinstance(value, Config):
        tokens = Tokenizer.from_config(value.model, value.prepare.max_length).fingerprint
        return Config, _content(value.model, modules), value.task.kind, tokens
    if isinstance(value, ModelSection):
        return ModelSection, msgspec.structs.replace(value, vocabulary=None)  # beside it a tokenizer is given
    if isinstance(value, Tokenizer):
        return Tokenizer, value.fingerprint
    if type(value).__name__ in ("Job", "SiloJob"):
        return "Job", _content((value.config, value.labels, value.tokenizer), modules)
    if type(value).__name__ == "Network":
        encoder = json.loads(value.transformer.config.to_json_string())
        return type(value), json.dumps(encoder, sort_keys=True), value.labels, value.task, value.pooling
    frozen = dataclasses.is_dataclass(value) and type(value).__dataclass_params__.frozen  # type: ignore[attr-defined]
    if frozen or isinstance(value, msgspec.Struct):
        fields = dataclasses.fields(value) if frozen else msgspec.structs.fields(value)
        return type(value), tuple(_content(getattr(value, field.name), modules) for field in fields)
    raise _Unknown(type(value).__name__)


def _code(modules: set[str]) -> Hashable:
    """The functions, classes and constants that these modules of the project hold now, and those that they lead to."""
    seen: set[str] = set()
    held: list[Hashable] = []
    waiting = sorted(modules)
    while waiting:
        name = waiting.pop()
        if name in seen or not name.startswith("tff_pipeline.") or name not in sys.modules:
            continue
        seen.add(name)
        for label, value in sorted(vars(sys.modules[name]).items()):
            if label.startswith("__"):
                continue
            held.append((name, label, _identity(value)))
            if isinstance(value, types.ModuleType):
                waiting.append(value.__name__)
            elif isinstance(value, type):
                waiting.append(value.__module__)
                held += [(label, part, _identity(content)) for part, content in vars(value).items() if part[:2] != "__"]
            elif callable(value):
                waiting.append(getattr(value, "__module__", None) or "")
    return tuple(held)


class _Same:
    """Equal to itself alone; keeps what it holds alive, so that its identity is not given to another."""

    def __init__(self, value: Any):
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._value is other._value

    def __hash__(self) -> int:
        return id(self._value)


def _identity(value: Any) -> Hashable:
    return (type(value), value) if isinstance(value, (*_PLAIN, Path)) else _Same(value)


def _deterministic() -> bool:
    config = sys.modules.get("tensorflow.python.framework.config")
    return bool(config and config.is_op_determinism_enabled())
