"""Checks an exported model the way a model server will use it, all in this one file, because it runs as a script in a fresh
process that cannot import this project.

    python -I verification.py MODEL_DIRECTORY REQUEST_FILE

Beside the standard library it imports TensorFlow, TensorFlow Text, numpy and the server's messages (tensorflow-serving-api),
so what it can load, a server can. verification_request.py writes the request: golden texts and what the model in memory
answered. The last line of standard output is JSON: {"passed": {check: what it saw}} or {"failed": check, "because":
sentence}. The process ends when its standard input does, so that it never outlives the process that started it.
"""

import base64
import hashlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

TOLERANCE = 1e-5
# Attributions are sums of hundreds of float32 products that cancel, and a gap is the difference of two such sums.
EXPLAIN_TOLERANCE = 1e-4

# What a stock TensorFlow Serving 2.12 to 2.19 links beyond TensorFlow's core: ops_lib of TensorFlow Text 2.12.1. An op
# that newer versions of TensorFlow Text emit (TFText>RoundRobinTrim) loads here and fails there.
SERVED_TEXT_OPS = frozenset(
    """
    CaseFoldUTF8 ConstrainedSequence FastBertNormalize FastWordpieceTokenizeWithOffsets FindSourceOffsets
    MaxSpanningTree NormalizeUTF8 NormalizeUTF8WithOffsetsMap PhraseTokenize RegexSplitWithOffsets RougeL
    SentenceFragments SentenceFragmentsV2 SentencepieceOp SentencepieceTokenizeOp SentencepieceTokenizeWithOffsetsOp
    SentencepieceDetokenizeOp SentencepieceVocabSizeOp SentencepieceIdToStringOp SentencepieceStringToIdOp
    SplitMergeTokenizeWithOffsets TokenizerFromLogits UnicodeScriptTokenizeWithOffsets WhitespaceTokenizeWithOffsets
    WordpieceTokenizeWithOffsets TFText>BoiseTagsToOffsets TFText>OffsetsToBoiseTags TFText>ByteSplitByOffsets
    TFText>ByteSplitWithOffsets TFText>FastSentencepieceTokenize TFText>FastSentencepieceDetokenize
    TFText>FastWordpieceDetokenize TFText>NgramsStringJoin TFText>PhraseDetokenize
    TFText>WhitespaceTokenizeWithOffsetsV2
    """.split()  # noqa: SIM905  a list literal would be one name a line
)
# Registered in Python's TensorFlow, but they call back into a Python that a server does not have.
PYTHON_OPS = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc"})

VARIABLES = "variables/variables.data-00000-of-00001"
WARMUP = "assets.extra/tf_serving_warmup_requests"
GOLDEN = "assets.extra/golden.json"
FILES = ("saved_model.pb", "fingerprint.pb", "variables/variables.index", VARIABLES, WARMUP, GOLDEN)
MOST_WARMUP_RECORDS = 1000  # with one more the server does not load the version

_NOT_WEIGHTS = {"_CHECKPOINTABLE_OBJECT_GRAPH", "save_counter/.ATTRIBUTES/VARIABLE_VALUE"}

Answer = Mapping[str, np.ndarray]
Ask = Callable[[str, Any], Answer]


class Refused(Exception):
    """A check failed; the message says what the model has and what was expected."""


def verify(model: Path, request: Mapping[str, Any]) -> dict[str, str]:
    """Runs every check in order; returns what each of them saw.

    Raises:
      Refused: with the name of the check first.
    """
    golden = Golden(request)
    loaders: dict[str, Ask] = {}

    def session() -> str:
        loaders["v1"] = session_loader(model, request["signatures"])
        return golden.compare(loaders["v1"])

    checks: dict[str, Callable[[], str]] = {
        "files": lambda: check_files(model),
        "operations": lambda: check_operations(model),
        "signatures": lambda: check_signatures(model, request["signatures"]),
        "weights": lambda: check_weights(model, request["weights"], request.get("stored_as", "float32")),
        "answers in a session, as a server asks": session,
        "answers do not depend on the rest of the batch": lambda: golden.compare_batches(loaders["v1"]),
        "warm-up requests": lambda: check_warmup(model, loaders["v1"], request["signatures"]),
        "golden pairs": lambda: check_golden(model, loaders["v1"], request["signatures"]),
        "answers of tf.saved_model.load": lambda: golden.compare(eager_loader(model)),
        "imports": check_imports,
    }
    seen = {}
    for name, check in checks.items():
        try:
            seen[name] = check()
        except Exception as error:
            because = str(error) if isinstance(error, Refused) else f"{type(error).__name__}: {str(error)[:500]}"
            raise Refused(name, because) from error
    return seen


def check_files(model: Path) -> str:
    """Every file is there, and those that have a structure are whole. `check_weights` reads the variables."""
    from tensorflow.core.protobuf import fingerprint_pb2, saved_model_pb2

    for name in FILES:
        # Without variables.index a server reports no error and serves the model without its weights.
        if not (model / name).is_file() or not (model / name).stat().st_size:
            raise Refused(f"{name} is missing or empty")
    for name, kind in (
        ("saved_model.pb", saved_model_pb2.SavedModel),
        ("fingerprint.pb", fingerprint_pb2.FingerprintDef),
    ):
        try:
            kind.FromString((model / name).read_bytes())
        except Exception as error:
            raise Refused(f"{name} is damaged or cut short ({type(error).__name__})") from None
    return ", ".join(sorted(path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()))


def check_operations(model: Path) -> str:
    """Every op is one of TensorFlow's core or of `SERVED_TEXT_OPS`. Must run before TensorFlow Text is imported."""
    from tensorflow.python.framework import op_def_registry

    graph = _meta_graph(model).graph_def
    functions = {function.signature.name for function in graph.library.function}
    used = set()
    for node in _nodes(graph):
        if node.attr["_XlaMustCompile"].b:
            raise Refused(f"node {node.name} must be compiled by XLA, which a server does only if it is configured to")
        used.add(node.op)
    used -= functions
    listed = {operation.name for operation in _meta_graph(model).meta_info_def.stripped_op_list.op}
    unknown = sorted(
        name
        for name in used | listed
        if name in PYTHON_OPS or (name not in SERVED_TEXT_OPS and op_def_registry.get(name) is None)
    )
    if unknown:
        raise Refused(
            f"operation {', '.join(unknown)} is not in a stock model server; expected TensorFlow's core and TensorFlow Text 2.12"
        )
    return f"{len(used)} kinds; of TensorFlow Text: {', '.join(sorted(used & SERVED_TEXT_OPS)) or 'none'}"


def check_signatures(model: Path, expected: Mapping[str, Any]) -> str:
    """Inputs and outputs have the expected names and types, a free batch dimension in front, and nothing that JSON cannot carry."""
    import tensorflow as tf

    signatures = _meta_graph(model).signature_def
    for signature, wanted in expected.items():
        if signature not in signatures:
            raise Refused(f"there is no signature {signature}; the model has {', '.join(sorted(signatures))}")
        for direction in ("inputs", "outputs"):
            tensors = getattr(signatures[signature], direction)
            types = {name: tf.dtypes.as_dtype(info.dtype).name for name, info in tensors.items()}
            if types != wanted[direction]:
                raise Refused(f"{signature} has {direction} {types}; expected {wanted[direction]}")
            for name, info in tensors.items():
                if info.WhichOneof("encoding") != "name":
                    raise Refused(f"{signature}: {name} is not a dense tensor")
                shape = info.tensor_shape
                if shape.unknown_rank or not shape.dim or shape.dim[0].size != -1:
                    raise Refused(f"{signature}: {name} has no free batch dimension in front")
    return ", ".join(sorted(expected))


def check_weights(model: Path, expected: Sequence[Mapping[str, Any]], stored_as: str) -> str:
    """The stored variables are the trained ones, or what rounding makes of them, bit by bit, and no others are stored.

    `expected` has for each its name in the file, the variable's name, and the digest of its value.
    """
    import tensorflow as tf

    try:
        reader = tf.train.load_checkpoint(str(model / "variables" / "variables"))
    except Exception as error:
        raise Refused(f"variables/variables.index is damaged or cut short ({str(error)[:200]})") from None
    stored = set(reader.get_variable_to_shape_map()) - _NOT_WEIGHTS
    keys = [f"{wanted['key']}/.ATTRIBUTES/VARIABLE_VALUE" for wanted in expected]
    if surplus := sorted(stored - set(keys)):
        raise Refused(f"{len(surplus)} variables are no weights of the model, {surplus[0]} first")
    parameters = variables = 0
    for key, wanted in zip(keys, expected, strict=True):
        if key not in stored:
            raise Refused(f"{key} ({wanted['name']}) is missing")
        try:
            value = reader.get_tensor(key)
        except Exception as error:
            raise Refused(f"{VARIABLES} is damaged or cut short at {key} ({str(error)[:200]})") from None
        if key.startswith("weights/"):
            variables, parameters = variables + 1, parameters + value.size
        if not np.isfinite(value).all():
            raise Refused(f"{key} ({wanted['name']}) holds values that are not finite")
        if array_digest(value) != wanted["digest"]:
            raise Refused(f"{key} ({wanted['name']}) differs from the trained weights")
    how = "" if stored_as == "float32" else f" rounded to {stored_as}"
    return f"{variables} variables, {parameters} parameters, equal to the trained ones{how}"


def check_warmup(model: Path, ask: Ask, signatures: Mapping[str, Any]) -> str:
    """A server can replay every warm-up request; one that it cannot replay would keep the version from loading."""
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    try:
        records = list(tf.data.TFRecordDataset(str(model / WARMUP)).as_numpy_iterator())
    except Exception as error:
        raise Refused(f"{WARMUP} is damaged or cut short ({str(error)[:200]})") from None
    if not 0 < len(records) <= MOST_WARMUP_RECORDS:
        raise Refused(f"{WARMUP} holds {len(records)} records; expected 1 to {MOST_WARMUP_RECORDS}")
    asked = set()
    for index, record in enumerate(records):
        log = prediction_log_pb2.PredictionLog.FromString(record)
        kind = log.WhichOneof("log_type")
        if kind not in ("predict_log", "classify_log"):
            raise Refused(f"{WARMUP}, record {index} is a {kind}; expected a predict_log or a classify_log")
        request = getattr(log, kind).request
        asked.add(request.model_spec.signature_name)
        ask(request.model_spec.signature_name, _request_value(request))
    if asked != set(signatures):
        raise Refused(f"{WARMUP} asks {sorted(asked)}; expected every signature, {sorted(signatures)}")
    return f"{len(records)} requests, all answered"


def check_golden(model: Path, ask: Ask, signatures: Mapping[str, Any]) -> str:
    """Every golden request, of both APIs, gets its golden answer."""
    from tensorflow_serving.apis import classification_pb2, predict_pb2

    try:
        golden = json.loads((model / GOLDEN).read_text(encoding="utf-8"))
    except ValueError as error:
        raise Refused(f"{GOLDEN} is damaged or cut short ({error})") from None
    kinds = {
        "predict": (predict_pb2.PredictRequest, predict_pb2.PredictResponse),
        "classify": (classification_pb2.ClassificationRequest, classification_pb2.ClassificationResponse),
    }
    for index, pair in enumerate(golden["pairs"]):
        signature, kind = pair["signature"], kinds[pair["api"]]
        request, response = (
            message.FromString(base64.b64decode(pair["grpc"][name]))
            for message, name in zip(kind, ("request", "response"), strict=True)
        )
        for api, value, wanted in (
            ("gRPC", _request_value(request), _response_rows(response)),
            ("REST", _rest_value(pair["rest"]["request"]), _rest_rows(pair["rest"]["response"])),
        ):
            answer = ask(signature, value)
            size = len(next(iter(value.values()))) if isinstance(value, dict) else len(value)
            rows = [{name: output[row] for name, output in answer.items()} for row in range(size)]
            for row, (outputs, expected) in enumerate(zip(rows, wanted, strict=True)):
                where = f"{GOLDEN}, pair {index} ({signature}) over {api}, row {row}"
                _same(outputs, expected, where, EXPLAIN_TOLERANCE if signature == "explain" else TOLERANCE)
    if {pair["signature"] for pair in golden["pairs"]} != set(signatures):
        raise Refused(f"{GOLDEN} has no pair for some signature; expected one for each of {sorted(signatures)}")
    return f"{len(golden['pairs'])} pairs, over REST and gRPC"


def _request_value(request: Any) -> Any:
    """What a PredictRequest or a ClassificationRequest feeds: an array, or arrays by name where there are several."""
    import tensorflow as tf

    if hasattr(request, "inputs"):
        values = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        return values if len(values) > 1 else next(iter(values.values()))
    return np.array([example.SerializeToString() for example in request.input.example_list.examples], object)


def _response_rows(response: Any) -> list[dict[str, Any]]:
    import tensorflow as tf

    if hasattr(response, "outputs"):
        outputs = {name: tf.make_ndarray(value) for name, value in response.outputs.items()}
        return [
            {name: value[row] for name, value in outputs.items()} for row in range(len(next(iter(outputs.values()))))
        ]
    return [
        {
            "classes": np.array([scored.label.encode() for scored in classification.classes], object),
            "scores": np.array([scored.score for scored in classification.classes]),
        }
        for classification in response.result.classifications
    ]


def _rest_value(request: Mapping[str, Any]) -> Any:
    if "examples" not in request:
        instances = request["instances"]
        if isinstance(instances[0], dict):
            return {name: _encoded([instance[name] for instance in instances]) for name in instances[0]}
        return np.array(instances, object if isinstance(instances[0], str) else np.int32)
    return np.array([_example(example["text"].encode()) for example in request["examples"]], object)


def _rest_rows(response: Mapping[str, Any]) -> list[dict[str, Any]]:
    if "results" in response:
        return [
            {"classes": _encoded([label for label, _ in row]), "scores": np.array([score for _, score in row])}
            for row in response["results"]
        ]
    return [{name: _encoded(value) for name, value in row.items()} for row in response["predictions"]]


def _encoded(value: Any) -> np.ndarray:
    """A value of JSON as an array, its texts as UTF-8."""
    array = np.array(value)
    if array.dtype.kind != "U":
        return array
    texts = [value] if isinstance(value, str) else value
    return np.array([text.encode() for text in texts], object).reshape(array.shape)


def _same(outputs: Mapping[str, Any], expected: Mapping[str, Any], where: str, tolerance: float) -> None:
    if set(outputs) != set(expected):
        raise Refused(f"{where}: has {sorted(outputs)}; expected {sorted(expected)}")
    for name, wanted in expected.items():
        value, wanted = np.asarray(outputs[name]), np.asarray(wanted)
        if value.shape != wanted.shape:
            raise Refused(f"{where}: {name} has shape {value.shape}; expected {wanted.shape}")
        if value.dtype.kind in "OS":
            if value.tolist() != wanted.tolist():
                raise Refused(f"{where}: {name} differs from the golden answer")
        elif value.size and not np.abs(value.astype(float) - wanted.astype(float)).max() <= tolerance:
            raise Refused(f"{where}: {name} differs from the golden answer by more than {tolerance:g}")


def check_imports() -> str:
    foreign = sorted({"tff_pipeline", "transformers", "tensorflow_federated", "tf_keras"} & set(sys.modules))
    if foreign:
        raise Refused(f"{', '.join(foreign)} was imported; expected only TensorFlow and TensorFlow Text")
    return "TensorFlow and TensorFlow Text"


def array_digest(value: np.ndarray) -> str:
    """Identifies an array's values, shape and type."""
    return hashlib.sha256(
        f"{value.dtype.str}{value.shape}".encode() + np.ascontiguousarray(value).tobytes()
    ).hexdigest()


# -- asking ------------------------------------------------------------------------------------------------------------


def session_loader(model: Path, signatures: Mapping[str, Any]) -> Ask:
    """The model in a session, fed and fetched by tensor name, as a model server does."""
    import tensorflow as tf
    import tensorflow_text  # noqa: F401  registers its ops

    session = tf.compat.v1.Session(graph=tf.Graph())
    definitions = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(model)).signature_def

    def ask(signature: str, value: Any) -> Answer:
        definition = definitions[signature]
        fetches = {key: info.name for key, info in definition.outputs.items()}
        feeds = {definition.inputs[name].name: fed for name, fed in _by_name(signatures[signature], value).items()}
        return session.run(fetches, feeds)

    return ask


def eager_loader(model: Path) -> Ask:
    """The model as Python code loads it."""
    import tensorflow as tf
    import tensorflow_text  # noqa: F401  registers its ops

    loaded = tf.saved_model.load(str(model))

    def ask(signature: str, value: Any) -> Answer:
        function = loaded.signatures[signature]
        _, specs = function.structured_input_signature
        inputs = {name: tf.constant(fed, specs[name].dtype) for name, fed in _by_name({"inputs": specs}, value).items()}
        return {key: output.numpy() for key, output in function(**inputs).items()}

    return ask


def _by_name(signature: Mapping[str, Any], value: Any) -> Mapping[str, Any]:
    """What a signature is fed, by the names of its inputs; a bare value goes to its only one."""
    if isinstance(value, Mapping):
        return value
    (name,) = signature["inputs"]
    return {name: value}


class Golden:
    """Golden texts and their ids with known answers. An expected answer is a row of the outputs, without padding."""

    def __init__(self, request: Mapping[str, Any]):
        self._labels = [label.encode() for label in request["labels"]]
        self._pad_id = request["pad_id"]
        self._texts = [base64.b64decode(text) for text in request["texts"]]
        self._tokens = request["tokens"]
        self._expected = request["expected"]
        self._worst = 0.0

    def compare(self, ask: Ask) -> str:
        """Compares the answers to every text alone, and to its ids, with those of the model in memory."""
        self._worst = 0.0
        for index in range(len(self._texts)):
            self._compare(ask, [index])
        return f"{len(self._texts)} texts, as text and as ids, within {self._worst:.1e} of the model in memory"

    def compare_batches(self, ask: Ask) -> str:
        """Compares the answers to batches of short and long texts, in several orders."""
        self._worst = 0.0
        everything = list(range(len(self._texts)))
        batches = [everything, everything[::-1], *(everything[start : start + 3] for start in everything)]
        for batch in batches:
            self._compare(ask, batch)
        return f"{len(batches)} batches, within {self._worst:.1e}"

    def _compare(self, ask: Ask, batch: Sequence[int]) -> None:
        width = max(len(self._tokens[index]) for index in batch)
        ids = np.full([len(batch), width], self._pad_id, np.int32)
        for row, index in enumerate(batch):
            ids[row, : len(self._tokens[index])] = self._tokens[index]
        inputs = {"serving_default": np.array([self._texts[index] for index in batch], object), "tokens": ids}
        if "classify" in self._expected:
            inputs["classify"] = np.array([_example(self._texts[index]) for index in batch], object)
        explained = [index for index in batch if "explain" in self._expected and self._expected["explain"][index]]
        # An explanation costs about a hundred predictions: each text alone, and all in one batch, is enough.
        if explained and len(batch) in (1, len(self._texts)):
            texts = np.array([self._texts[index] for index in explained], object)
            self._compare_explanations(ask, texts, explained)
        for signature, value in inputs.items():
            answer = ask(signature, value)
            for name, output in answer.items():
                if output.ndim < 1 or len(output) != len(batch):
                    raise Refused(f"{signature}: {name} has shape {output.shape} for a batch of {len(batch)}")
            for row, index in enumerate(batch):
                where = f"{signature}, golden text {index} in a batch of {len(batch)}"
                self._compare_row(
                    {name: output[row] for name, output in answer.items()}, self._expected[signature][index], where
                )

    def _compare_explanations(self, ask: Ask, texts: np.ndarray, batch: Sequence[int]) -> None:
        labels = np.array([b""] * len(batch), object)
        answer = ask("explain", {"text": texts, "label": labels})
        for row, index in enumerate(batch):
            where = f"explain, golden text {index} in a batch of {len(batch)}"
            expected, outputs = self._expected["explain"][index], {name: output[row] for name, output in answer.items()}
            count = len(expected["tokens"])
            if not np.array_equal(outputs["mask"], np.arange(len(outputs["mask"])) < count):
                raise Refused(f"{where}: mask is {outputs['mask'].tolist()[:20]}; expected {count} ones, then zeros")
            for name in ("tokens", "starts", "ends"):
                wanted = [value.encode() if isinstance(value, str) else value for value in expected[name]]
                if outputs[name][:count].tolist() != wanted or any(outputs[name][count:]):
                    raise Refused(
                        f"{where}: {name} are {outputs[name].tolist()[:20]}; expected {wanted[:20]}, then nothing"
                    )
            if outputs["label"].decode() != expected["label"]:
                probabilities = np.array(self._expected["serving_default"][index]["probabilities"])
                self._best(outputs["label"], probabilities, f"{where}: label")
                continue  # two labels are equally probable, and each has attributions of its own
            attributions = np.array(expected["attributions"])
            self._near(outputs["attributions"][:count], attributions, f"{where}: attributions", EXPLAIN_TOLERANCE)
            if any(outputs["attributions"][count:]):
                raise Refused(f"{where}: there are attributions where the mask is 0")
            for name in ("score", "baseline_score", "gap"):
                self._near(outputs[name], expected[name], f"{where}: {name}", EXPLAIN_TOLERANCE)

    def _compare_row(self, answer: Answer, expected: Mapping[str, Any], where: str) -> None:
        """`expected` has `probabilities` [C] for a text; or for the words that have an answer [s, C], with all `words`."""
        wanted = np.array(expected["probabilities"], np.float64)
        if "label" in answer:
            self._near(answer["probabilities"], wanted, f"{where}: probabilities")
            self._near(answer["score"], wanted.max(), f"{where}: score")
            self._best(answer["label"], wanted, f"{where}: label")
            return
        if "classes" in answer:
            self._near(answer["scores"], wanted, f"{where}: scores")
            if answer["classes"].tolist() != self._labels:
                raise Refused(f"{where}: classes are {answer['classes'].tolist()}; expected the labels in their order")
            return
        answered = len(wanted)
        if not np.array_equal(answer["mask"], np.arange(len(answer["mask"])) < answered):
            raise Refused(f"{where}: mask is {answer['mask'].tolist()[:20]}; expected {answered} ones, then zeros")
        if any(answer["labels"][answered:]) or any(answer["scores"][answered:]):
            raise Refused(f"{where}: there are labels or scores where the mask is 0")
        for position, row in enumerate(wanted):
            self._near(answer["scores"][position], row.max(), f"{where}, word {position}: score")
            self._best(answer["labels"][position], row, f"{where}, word {position}: label")
        if "tokens" in answer:
            words = [base64.b64decode(word) for word in expected["words"]]
            if answer["tokens"][: len(words)].tolist() != words or any(answer["tokens"][len(words) :]):
                raise Refused(f"{where}: the words differ; expected {len(words)}")

    def _near(self, value: Any, wanted: Any, where: str, tolerance: float = TOLERANCE) -> None:
        value = np.asarray(value, np.float64)
        if value.shape != np.shape(wanted):
            raise Refused(f"{where} has shape {value.shape}; expected {np.shape(wanted)}")
        distance = float(np.abs(value - wanted).max(initial=0))
        if tolerance == TOLERANCE:
            self._worst = max(self._worst, distance)
        if not distance <= tolerance:
            raise Refused(f"{where} differs by {distance:.2g} from the model in memory; expected at most {tolerance:g}")

    def _best(self, label: Any, wanted: np.ndarray, where: str) -> None:
        """The label is the most probable one, or within the tolerance as probable."""
        if label not in self._labels or wanted[self._labels.index(label)] < wanted.max() - TOLERANCE:
            raise Refused(f"{where} is {label!r}; expected {self._labels[int(wanted.argmax())]!r}")


def _example(text: bytes) -> bytes:
    import tensorflow as tf

    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[text]))
    return tf.train.Example(features=tf.train.Features(feature={"text": feature})).SerializeToString()


def _meta_graph(model: Path) -> Any:
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString((model / "saved_model.pb").read_bytes())
    for meta_graph in saved.meta_graphs:
        if "serve" in meta_graph.meta_info_def.tags:
            return meta_graph
    raise Refused('saved_model.pb has no graph with the tag "serve"')


def _nodes(graph: Any) -> Iterator[Any]:
    yield from graph.node
    for function in graph.library.function:
        yield from function.node_def


def _end_with_parent() -> None:
    """Ends this process when standard input does: the process that wants the answer has its other end."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        os._exit(3)

    threading.Thread(target=wait, daemon=True).start()


def main(arguments: Sequence[str]) -> int:
    _end_with_parent()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # the expected answers were computed on a CPU
    import warnings

    warnings.filterwarnings("ignore")
    model, request = map(Path, arguments)
    try:
        print(json.dumps({"passed": verify(model, json.loads(request.read_text(encoding="utf-8")))}))
    except Refused as refused:
        check, because = refused.args
        print(json.dumps({"failed": check, "because": because}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
