"""Writes answers as JSON, character by character as the server's writer (rapidjson's PrettyWriter) does.

A level is indented by four spaces; the values of one prediction stand on one line, which is why the bracket after them is
not on a line of its own. A float32 has six digits where they name it exactly, and otherwise nine.
"""

import base64
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from serving.model_server.status import invalid

ROW, COLUMN = "predictions", "outputs"  # the two formats of a predict request, by the key of their answer


class _Writer:
    """The part of rapidjson's PrettyWriter that is used."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._counts: list[int] = []
        self._arrays: list[bool] = []
        self.single_line = False

    def begin(self, bracket: str) -> None:
        self._prefix()
        self._parts.append(bracket)
        self._counts.append(0)
        self._arrays.append(bracket == "[")

    def end(self) -> None:
        count, is_array = self._counts.pop(), self._arrays.pop()
        if count and not (is_array and self.single_line):
            self._parts.append("\n" + "    " * len(self._counts))
        self._parts.append("]" if is_array else "}")

    def put(self, text: str) -> None:
        """A key or a value, already JSON."""
        self._prefix()
        self._parts.append(text)

    def _prefix(self) -> None:
        if not self._counts:
            return
        count = self._counts[-1]
        self._counts[-1] += 1
        if self._arrays[-1]:
            if self.single_line:
                self._parts.append(", " if count else "")
            else:
                self._parts.append((",\n" if count else "\n") + "    " * len(self._counts))
        elif count % 2:
            self._parts.append(": ")
        else:
            self._parts.append((",\n" if count else "\n") + "    " * len(self._counts))

    def text(self) -> str:
        return "".join(self._parts)


def value(json_value: Any) -> str:
    """Any JSON value, as error messages show it."""
    writer = _Writer()
    _put(writer, json_value)
    return writer.text()


def _put(writer: _Writer, json_value: Any) -> None:
    if isinstance(json_value, dict):
        writer.begin("{")
        for key, member in json_value.items():
            writer.put(_string(key))
            _put(writer, member)
        writer.end()
    elif isinstance(json_value, list):
        writer.begin("[")
        for element in json_value:
            _put(writer, element)
        writer.end()
    elif isinstance(json_value, float):
        writer.put(_float64(json_value))
    else:
        writer.put(_string(json_value) if isinstance(json_value, str) else json.dumps(json_value))


def error(message: str) -> str:
    return value({"error": message})


def predictions(outputs: Mapping[str, np.ndarray], layout: str) -> str:
    """The answer of predict: by rows ("predictions") or by columns ("outputs")."""
    if not outputs:
        raise invalid("Cannot convert empty tensor map to JSON")
    writer = _Writer()
    writer.begin("{")
    writer.put(_string(layout))
    named = len(outputs) > 1
    texts = {name: _texts(name, array) for name, array in outputs.items()}
    if layout == COLUMN:
        if named:
            writer.begin("{")
        for name, array in outputs.items():
            if named:
                writer.put(_string(name))
            _put_array(writer, texts[name], array.shape)
        if named:
            writer.end()
    else:
        _put_rows(writer, outputs, texts, named)
    writer.end()
    return writer.text()


def _put_rows(writer: _Writer, outputs: Mapping[str, np.ndarray], texts: Mapping[str, Any], named: bool) -> None:
    size = _batch_size(outputs)
    writer.begin("[")
    for _ in range(size):
        if named:
            writer.begin("{")
        writer.single_line = True
        for name, array in outputs.items():
            if named:
                writer.put(_string(name))
            _put_array(writer, texts[name], array.shape[1:])
        writer.single_line = False
        if named:
            writer.end()
    writer.end()


def _batch_size(outputs: Mapping[str, np.ndarray]) -> int:
    size = -1
    for name, array in outputs.items():
        if not array.ndim:
            raise invalid(f"Tensor name: {name} has no shape information ")
        if size >= 0 and len(array) != size:
            raise invalid(f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {size}")
        size = len(array)
    return size


def _put_array(writer: _Writer, texts: Any, shape: tuple[int, ...]) -> None:
    if not shape:
        writer.put(next(texts))
        return
    writer.begin("[")
    for _ in range(shape[0]):
        _put_array(writer, texts, shape[1:])
    writer.end()


def _texts(name: str, array: np.ndarray) -> Any:
    """The JSON of an array's values, one after the other."""
    flat = array.ravel()
    if array.dtype == object:
        if name.endswith("_bytes"):
            return (json.dumps({"b64": base64.b64encode(element).decode()}) for element in flat)
        return (_string(element.decode(errors="surrogateescape")) for element in flat)
    if array.dtype == np.float32:
        return map(_float32, flat)
    if array.dtype == np.float64:
        return map(_float64, flat.tolist())
    if array.dtype.kind in "iub":
        return map(json.dumps, flat.tolist())
    raise invalid(f"Failed to write JSON value for tensor type: {cpp_name(array.dtype.name)}")


def cpp_name(type_: str) -> str:
    """The name of a type in TensorFlow's C++, and so in the server's messages."""
    return {"float16": "half", "float32": "float", "float64": "double"}.get(type_, type_)


def classifications(result: Any) -> str:
    """The answer of classify: a list of [label, score] for each example."""
    writer = _Writer()
    writer.begin("{")
    writer.put('"results"')
    writer.begin("[")
    for classification in result.classifications:
        writer.single_line = True
        writer.begin("[")
        for entry in classification.classes:
            writer.begin("[")
            writer.put(_string(entry.label))
            writer.put(_float32(np.float32(entry.score)))
            writer.end()
        writer.end()
        writer.single_line = False
    writer.end()
    writer.end()
    return writer.text()


def regressions(values: Iterable[float]) -> str:
    """The answer of regress."""
    writer = _Writer()
    writer.begin("{")
    writer.put('"results"')
    writer.single_line = True
    writer.begin("[")
    for number in values:
        writer.put(_float32(np.float32(number)))
    writer.end()
    writer.end()
    return writer.text()


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _float32(number: np.float32) -> str:
    if not np.isfinite(number):
        return _special(float(number))
    text = f"{number:g}"
    return _with_point(text if np.float32(text) == number else f"{number:.9g}")


def _float64(number: float) -> str:
    if not math.isfinite(number):
        return _special(number)
    text = f"{number:g}"
    return _with_point(text if float(text) == number else f"{number:.17g}")


def _special(number: float) -> str:
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _with_point(text: str) -> str:
    return text if "." in text or "e" in text else text + ".0"
