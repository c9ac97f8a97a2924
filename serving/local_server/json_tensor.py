"""Turns JSON requests into tensors, with the server's rules and messages (tensorflow_serving/util/json_tensor.cc).

Strings are bytes to the server: bytes of a request that are no UTF-8 reach the model unchanged. Here they pass through
Python's JSON parser as surrogates ("surrogateescape").
"""

import base64
import binascii
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from serving.local_server import json_writer
from serving.local_server.json_writer import COLUMN, ROW
from serving.model_server.status import ServingError, invalid

_INTEGER_BOUNDS = {
    **dict.fromkeys(("int32", "int16", "int8", "uint8"), (-(2**31), 2**31 - 1)),
    "int64": (-(2**63), 2**63 - 1),
    "uint32": (0, 2**32 - 1),
    "uint64": (0, 2**64 - 1),
}
# Messages of Python's parser, and rapidjson's for the same error.
_PARSE_ERRORS = {
    "Expecting value": "Invalid value.",
    "Extra data": "The document root must not be followed by other values.",
    "Expecting property name enclosed in double quotes": "Missing a name for object member.",
    "Expecting ':' delimiter": "Missing a colon after a name of object member.",
    "Unterminated string starting at": "Missing a closing quotation mark in string.",
    "Invalid \\escape": "Invalid escape character in string.",
    "Invalid \\uXXXX escape": "Incorrect hex digit after \\u escape in string.",
    "Invalid control character at": "Invalid encoding in string.",
}


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object in the body of a request.

    Raises:
      ServingError: if the body is none, with the byte offset of the error.
    """
    if not body.strip(b" \t\r\n"):
        raise invalid("JSON Parse error: The document is empty")
    text = body.decode(errors="surrogateescape")
    try:
        document = json.loads(text, object_pairs_hook=_first_members)
        if b"\\u" in body:
            _check_surrogates(body)
    except json.JSONDecodeError as error:
        offset = len(text[: error.pos].encode(errors="surrogateescape"))
        raise invalid(f"JSON Parse error: {_parse_error(error, text)} at offset: {offset}") from None
    except RecursionError:
        raise invalid("JSON Parse error: Terminate parsing due to nesting that is too deep.") from None
    except ValueError:  # an integer of more than 4,300 digits
        raise invalid("JSON Parse error: Number too big to be stored in double.") from None
    if not isinstance(document, dict):
        raise _format_error(document, "Is not object")
    return document


def _first_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; of members with the same name the first counts."""
    members = dict(pairs)
    return members if len(members) == len(pairs) else dict(reversed(pairs))


def _check_surrogates(body: bytes) -> None:
    """Refuses an escaped half of a surrogate pair, which has no UTF-8; bytes that do not decode are accepted."""
    try:
        json.dumps(json.loads(body.decode(errors="replace")), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise invalid("JSON Parse error: The surrogate pair in string is invalid.") from None


def _parse_error(error: json.JSONDecodeError, text: str) -> str:
    if error.msg == "Expecting ',' delimiter":
        opened = _innermost(text, error.pos)
        return (
            "Missing a comma or ] after an array element."
            if opened == "["
            else "Missing a comma or } after an object member."
        )
    return next((message for start, message in _PARSE_ERRORS.items() if error.msg.startswith(start)), "Invalid value.")


def _innermost(text: str, end: int) -> str:
    """The bracket that is open at position `end` of JSON that is well-formed up to that position."""
    opened, quoted, position = [], False, 0
    while position < end:
        character = text[position]
        if quoted:
            position += character == "\\"
            quoted = character != '"'
        elif character == '"':
            quoted = True
        elif character in "[{":
            opened.append(character)
        elif character in "]}" and opened:
            opened.pop()
        position += 1
    return opened[-1] if opened else ""


def signature_name(document: Mapping[str, Any]) -> str:
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(
            f"JSON Value: {json_writer.value(document)} not formatted correctly. 'signature_name' key must be a string value."
        )
    return name


# -- predict -----------------------------------------------------------------------------------------------------------


def predict_inputs(document: Mapping[str, Any], types: Mapping[str, str]) -> tuple[dict[str, np.ndarray], str]:
    """The inputs of a predict request, by name, and the format its answer has: ROW or COLUMN.

    Args:
      document: the request.
      types: TensorFlow's type names of the signature's inputs.
    """
    if "instances" in document:
        instances = document["instances"]
        if "inputs" in document:
            raise _format_error(
                document, "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist "
            )
        if not isinstance(instances, list):
            raise _format_error(document, "Excepting 'instances' to be an list/array")
        if not instances:
            raise _format_error(document, "No values in 'instances' array")
        return _from_instances(instances, types), ROW
    if "inputs" in document:
        return _from_columns(document["inputs"], types), COLUMN
    raise invalid("Missing 'inputs' or 'instances' key")


def _from_instances(instances: list[Any], types: Mapping[str, str]) -> dict[str, np.ndarray]:
    if not isinstance(instances[0], dict) and len(types) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per tensorinfo_map"
        )
    objects = _is_object(instances[0])
    collected = {name: _Rows(type_) for name, type_ in types.items()}
    only = next(iter(types))
    for index, item in enumerate(instances):
        if _is_object(item) != objects:
            raise invalid(
                f"Expecting object but got list at item {index} of input list"
                if objects
                else f"Expecting value/list but got object at item {index} of input list"
            )
        for name, value in item.items() if objects else ((only, item),):
            key = f" key: {name}" if objects else ""
            try:
                if name not in collected:
                    raise invalid(f"JSON object: does not have named input: {name}")
                collected[name].add(value)
            except ServingError as error:
                raise invalid(f"Failed to process element: {index}{key} of 'instances' list. Error: {error}") from None
        if objects and set(item) != set(types):
            raise invalid(
                f"Failed to process element: {index} of 'instances' list. JSON object: {json_writer.value(item)} keys must be equal to: {','.join(sorted(types))}"
            )
    return {name: rows.array() for name, rows in collected.items()}


class _Rows:
    """The values of one input, one per instance, which must all have the shape of the first."""

    def __init__(self, type_: str):
        self._type, self._values = type_, []
        self._shape: list[int] | None = None
        self._size = self._count = 0

    def add(self, value: Any) -> None:
        shape, before = _shape(value), len(self._values)
        _fill(value, 0, shape, self._type, self._values)
        size = len(self._values) - before
        if self._shape is None:
            self._shape, self._size = shape, size
        elif size != self._size:
            raise invalid(f"Expecting tensor size: {self._size} but got: {size}")
        elif shape != self._shape:
            raise invalid(f"Expecting shape {_brackets(self._shape)} but got: {_brackets(shape)}")
        self._count += 1

    def array(self) -> np.ndarray:
        return _array(self._values, [self._count, *(self._shape or [])], self._type)


def _from_columns(value: Any, types: Mapping[str, str]) -> dict[str, np.ndarray]:
    if not _is_object(value):
        if len(types) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per tensorinfo_map"
            )
        value = {next(iter(types)): value}
    columns = {}
    for name, type_ in sorted(types.items()):
        if name not in value:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
        shape, values = _shape(value[name]), []
        _fill(value[name], 0, shape, type_, values)
        columns[name] = _array(values, shape, type_)
    return columns


def _array(values: list[Any], shape: list[int], type_: str) -> np.ndarray:
    array = np.empty(len(values), object) if type_ == "string" else np.array(values, type_)
    if type_ == "string":
        array[:] = values
    return array.reshape(shape)


def _shape(value: Any) -> list[int]:
    """The shape of a nested list, by the first element of every list."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return shape


def _fill(value: Any, level: int, shape: list[int], type_: str, values: list[Any]) -> None:
    """Appends all values of a nested list, which must have `shape`."""
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid(
                f"JSON Value: {json_writer.value(value)} found at incorrect level: {level + 1} in the JSON DOM. Expected at level: {len(shape)}"
            )
        values.append(_value(value, type_))
        return
    if level >= len(shape):
        raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}"
        )
    for element in value:
        _fill(element, level + 1, shape, type_, values)


def _value(value: Any, type_: str) -> Any:
    if isinstance(value, dict):
        if type_ != "string":
            raise _type_error(value, type_)
        return _decoded(value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if type_ in ("float32", "float64"):
        if not number:
            raise _type_error(value, type_)
        return _floating(value, type_)
    if type_ in _INTEGER_BOUNDS:
        low, high = _INTEGER_BOUNDS[type_]
        if not number or isinstance(value, float) or not low <= value <= high:
            raise _type_error(value, type_)
        return value
    if type_ == "string":
        if not isinstance(value, str):
            raise _type_error(value, type_)
        return value.encode(errors="surrogateescape")
    if type_ == "bool":
        if not isinstance(value, bool):
            raise _type_error(value, type_)
        return value
    raise ServingError(
        "UNIMPLEMENTED", f"Conversion of JSON Value: {json_writer.value(value)} to type: {json_writer.cpp_name(type_)}"
    )


def _floating(value: int | float, type_: str) -> float:
    """A number as a float; refused where an integer would lose digits, or where it is too large."""
    digits, largest = (24, float(np.finfo(np.float32).max)) if type_ == "float32" else (53, math.inf)
    too_large = abs(value) >= 2**digits if isinstance(value, int) and abs(value) < 2**64 else abs(value) > largest
    if too_large and not (isinstance(value, float) and math.isinf(value)):
        raise invalid(
            f"Cannot convert JSON value: {json_writer.value(value)} to {'float' if type_ == 'float32' else 'double'} without loss of precision."
        )
    return float(value)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and not _is_base64(value)


def _is_base64(value: Mapping[str, Any]) -> bool:
    return len(value) == 1 and isinstance(value.get("b64"), str)


def _decoded(value: Mapping[str, Any]) -> bytes:
    if not _is_base64(value):
        raise invalid(f"JSON Value: {json_writer.value(value)} not formatted correctly for base64 data")
    encoded = "".join(value["b64"].split()).rstrip("=")
    try:
        return base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise invalid("Unable to base64 decode") from None


def _type_error(value: Any, type_: str) -> ServingError:
    return invalid(
        f"JSON Value: {json_writer.value(value)} Type: {_kind(value)} is not of expected type: {json_writer.cpp_name(type_)}"
    )


def _format_error(value: Any, reason: str) -> ServingError:
    return invalid(f"JSON Value: {json_writer.value(value)} {reason}")


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "Null", False: "False", True: "True"}[value]
    return {dict: "Object", list: "Array", str: "String"}.get(type(value), "Number")


def _brackets(shape: list[int]) -> str:
    return f"[{','.join(map(str, shape))}]"


# -- classify and regress ----------------------------------------------------------------------------------------------


def fill_examples(document: Mapping[str, Any], given: Any) -> None:
    """Fills an Input message from a classify or regress request."""
    target = given.example_list
    if "context" in document:
        target = given.example_list_with_context
        target.context.SetInParent()
        _fill_example(document["context"], target.context)
    if "examples" not in document:
        raise _format_error(document, "When method is classify, key 'examples' is expected and was not found")
    examples = document["examples"]
    if not isinstance(examples, list):
        raise _format_error(document, "Expecting 'examples' value to be an list/array")
    if not examples:
        raise _format_error(document, "'examples' value is an empty array")
    for example in examples:
        _fill_example(example, target.examples.add())


def _fill_example(value: Any, example: Any) -> None:
    if not isinstance(value, dict):
        raise invalid(f"Example must be JSON object but got JSON {_kind(value)}")
    for name, content in value.items():
        feature = example.features.feature[name]
        for element in content if isinstance(content, list) else [content]:
            _add_to_feature(element, name, feature)


def _add_to_feature(value: Any, name: str, feature: Any) -> None:
    if value is None or isinstance(value, list) or (isinstance(value, dict) and not _is_base64(value)):
        raise invalid(f"Feature: {name} has element with unexpected JSON type: {_kind(value)}")
    kind, converted = "int64", value
    if isinstance(value, dict | str):
        kind = "bytes"
        converted = _decoded(value) if isinstance(value, dict) else value.encode(errors="surrogateescape")
    elif isinstance(value, float):
        kind, converted = "float", _floating(value, "float32")
    elif not isinstance(value, bool) and value >= 2**63:
        raise invalid(f"Feature: {name} has uint64 element. Only int64 is supported.")
    set_before = feature.WhichOneof("kind")
    if set_before not in (None, f"{kind}_list"):
        raise invalid(f"Unexpected element type in feature: {name} expecting type: {set_before.removesuffix('_list')}")
    getattr(feature, f"{kind}_list").value.append(converted)
