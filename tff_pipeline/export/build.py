"""A finished run as a version that a model server loads: raw text in, labels out, checked before it appears.

What comes in is a run; what goes out is `<base>/<version>/`, a SavedModel with the tokenizer in its graph:

    serving_default   text string [B] -> label string [B], score float32 [B], probabilities float32 [B, C]
    tokens            input_ids int32 [B, S] -> the same. Ids with [CLS] and [SEP]; pad with the pad id, which alone
                      says what is padding, so that there is no attention mask to forget.
    classify          inputs string [B], serialized tf.Examples with a feature `text` -> classes string [B, C], scores
                      float32 [B, C]: what a server's Classify takes
    explain           text string [B], label string [B] -> tokens, where they stand, and how much of the label's score each
                      of them made (explanation.py)

and for token classification, over the words between white space (S: the most words, or ids, of a text in the batch):

    serving_default   text string [B] -> tokens string [B, S], labels string [B, S], scores float32 [B, S],
                      mask int32 [B, S], 1 for a word that has an answer: padding has none, nor has a word beyond the
                      model's max_length; their label is "" and their score 0
    tokens            input_ids int32 [B, S] -> labels, scores and mask of each id

The version is built beside its place, asked golden texts in a fresh process (verification.py) and renamed. It carries
warm-up requests and golden pairs (golden.py). MODEL_CARD.md (card.py), manifest.json and COMPLETE lie at its top, where TensorFlow Serving ignores them: it reads only names that it knows.
"""

import base64
import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tff_pipeline import __version__
from tff_pipeline.artifacts import (
    fingerprint,
    model_versions,
    read_json,
    read_manifest,
    staged,
    version_numbers,
)
from tff_pipeline.data.tokenization import checkpoint_identity
from tff_pipeline.errors import ArtifactError, ExportError
from tff_pipeline.evaluation.evaluate import evaluation_file
from tff_pipeline.evaluation.weight_change import measure_weight_change
from tff_pipeline.export import golden, verification
from tff_pipeline.export import integrated_gradients as explanation
from tff_pipeline.export import model_card as card
from tff_pipeline.export import weight_precision as precision
from tff_pipeline.progress import Progress
from tff_pipeline.training.store import config_of, load_trained

if TYPE_CHECKING:
    import tensorflow as tf

    from tff_pipeline.config import Config, ExportSection
    from tff_pipeline.data.tokenization import Tokenizer
    from tff_pipeline.model.network import Network
    from tff_pipeline.training.store import Trained

TIMEOUT_S = 600.0
_SUMMARY = (
    "examples",
    "clients",
    "accuracy",
    "accuracy_interval",
    "macro_f1",
    "entity_f1",
    "majority_accuracy",
    "loss",
)
_SUMMARY += ("calibration_error",)

# Nobody's texts. What a server meets: plain, empty, blank, Chinese, emoji, special tokens, long, control characters,
# bytes that are not UTF-8 (two whole and one cut), a word that is too long for the vocabulary, another script.
GOLDEN_TEXTS: tuple[bytes, ...] = (
    b"My card was stolen yesterday, please block it.",
    b"",
    b" \t\n ",
    "我的卡丢了，请帮我。".encode(),
    "thanks \U0001f600\U0001f44d\U0001f3fd".encode(),
    b"[CLS] [MASK] [SEP] [PAD] ##ing",
    b"why was I charged a fee of $3.50? " * 300,
    b"before\x00after \x07 end",
    b"caf\xe9 \xff\xfe broken",
    b"cut \xe6\x88",
    b"x" * 10_000,
    "Größe, naïve, İstanbul, ｆｕｌｌ ｗｉｄｔｈ, ½ ﬁne".encode(),
    "карта украдена".encode(),
    b"ok",
)
# Those of them whose explanation is compared: plain, empty, Chinese, special tokens, not UTF-8, other lengths than their
# lower case. An explanation costs about a hundred predictions, so the long ones are left to the tests.
EXPLAINED_TEXTS = frozenset({0, 1, 3, 5, 8, 11})
LARGEST_GAP = 0.01  # between the sum of attributions and what they should add up to; beyond it the export says so


def export(
    run: Path,
    destination: Path,
    *,
    version: int | None = None,
    settings: "ExportSection | None" = None,
    progress: Progress,
) -> Path:
    """Builds, verifies and places a version of the run's model.

    Without `version` the next free number is taken; and if a complete version of this very model is there already, with
    the run's evaluation and the same settings, nothing is built and that one is returned, so that an interrupted pipeline
    does not repeat a finished export.

    Args:
      run: the folder of a finished run.
      destination: the model's base path; versions are numbered folders in it.
      version: the number to give it.
      settings: how to export it; without them as the run's configuration says.

    Returns:
      The folder of the version, complete.

    Raises:
      ArtifactError: if the run is not finished, or is damaged.
      ExportError: if the number is taken, or the model does not pass its verification; nothing is left behind.
    """
    settings = settings if settings is not None else config_of(run).export
    if version is None and (found := _exported(run, destination, settings)):
        progress.event("export", f"{found} is this run's model already", path=str(found), finished_before=True)
        return found
    taken = version_numbers(destination)
    number = version if version is not None else max(taken, default=0) + 1
    if number in taken:
        raise ExportError(
            f"{destination / str(number)}: is there already; versions are never overwritten. Leave --version out to get {max(taken) + 1}."
        )
    if number < 1:
        raise ExportError(f"--version is {number}; expected a number above 0.")

    trained = load_trained(run)
    facts: dict[str, Any] = {}
    final = destination / str(number)
    with staged(final, lambda: facts) as aside:
        progress.event("export", f"building version {number}", version=number)
        try:
            weights = _weights(run, trained)
            save(trained, aside, settings)
            rounded = _round(run, trained, weights, settings, progress)
            request = verification_request(run, trained, settings, weights=weights)
            golden.write(aside, request, batch_sizes=settings.warmup_batch_sizes)
        except OSError as error:
            raise ExportError(
                f"{aside}: the model could not be written ({error}). Make room or choose another --to."
            ) from error
        progress.event("export", "verifying in a fresh process", version=number)
        checks = check(aside, request)
        explained = _explained(request, settings.explain_steps, trained.tokenizer)
        if explained and explained["largest_gap"] > LARGEST_GAP:
            progress.event(
                "export",
                f"attributions of `explain` miss the score by up to {explained['largest_gap']:.2g}; "
                f"expected at most {LARGEST_GAP:g}. Raise export.explain_steps",
                **explained,
            )
        facts |= _manifest(run, trained, number, settings)
        facts |= {"verification": checks, "explain": explained or None, "stored_weights": rounded}
        (aside / card.NAME).write_text(card.card(facts), encoding="utf-8")
    progress.event("export", f"version {number} is in {final}", version=number, path=str(final))
    return final


def _weights(run: Path, trained: "Trained") -> list[np.ndarray]:
    """The trained weights in the network's order, from the run's files; with adapters merged, from memory."""
    from tff_pipeline.training.store import load_arrays

    base, _ = load_arrays(run / "base", kind="weights")
    tail, _ = load_arrays(run / "trained", kind="weights")
    weights = [*base[: len(base) - len(tail)], *tail]
    if len(weights) != len(trained.network.variables):
        # Adapters were merged into the encoder's kernels when the model was loaded.
        weights = [variable.numpy() for variable in trained.network.variables]
    return weights


def _round(
    run: Path, trained: "Trained", weights: Sequence[np.ndarray], settings: "ExportSection", progress: Progress
) -> dict[str, Any]:
    """Gives the model in memory the weights that the version computes with, and measures what that changes.

    Raises:
      ExportError: if there is nobody to measure it on.
    """
    kind: dict[str, Any] = {"kind": settings.weights}
    if settings.weights == "float32":
        return kind
    stored = precision.store(trained.network, weights, settings.weights)
    change = partial(trained.network.set_weights, [each.restored for each in stored])
    measured = measure_weight_change(run, trained, change, progress=progress)
    if measured is None:
        raise ExportError(
            f'export.weights is "{settings.weights}", but no client is held out (split "test") on whom to measure what that changes; expected '
            'some. Set prepare.splits, or export.weights = "float32".'
        )
    size = sum(each.size for each in stored) / sum(value.nbytes for value in weights)
    progress.event("export", f"weights as {settings.weights}", size_ratio=size, **measured)
    return kind | {"size_ratio": size, **measured}


def _exported(run: Path, destination: Path, settings: "ExportSection") -> Path | None:
    """The newest version that is whole and holds this run's weights and evaluation, exported in the same way."""
    if not (run / "trained").is_dir():
        return None
    weights, evaluation = _weights_digest(run), _held_out_evaluation(run)
    for number in reversed(model_versions(destination)):
        path = destination / str(number)
        try:
            manifest = read_manifest(path, check_files=True)
        except ArtifactError:
            continue
        how = manifest.get("stored_weights", {}).get("kind"), (manifest.get("explain") or {}).get("steps")
        steps = settings.explain_steps if manifest.get("task") == "sequence_classification" else 0
        wanted = settings.weights, steps or None
        is_of_run = manifest.get("weights") == weights and manifest.get("run") == run.name
        if is_of_run and how == wanted and _says(manifest, evaluation, settings):
            return path
    return None


def _says(manifest: Mapping[str, Any], evaluation: Mapping[str, Any] | None, settings: "ExportSection") -> bool:
    """Whether a version carries this evaluation, whenever it was made, and was exported with these settings."""
    held = manifest.get("evaluation")
    if held is None or evaluation is None:
        is_same = held is evaluation
    else:
        expected = _summary(evaluation)
        # As JSON, so that a number that is none equals itself.
        is_same = json.dumps(expected) == json.dumps({key: held.get(key) for key in expected})
    # A version of an earlier release does not say its batch sizes.
    sizes = manifest.get("warmup_batch_sizes", list(settings.warmup_batch_sizes))
    return (
        is_same and manifest.get("intended_use") == settings.intended_use and sizes == list(settings.warmup_batch_sizes)
    )


def _explained(request: Mapping[str, Any], steps: int, tokenizer: "Tokenizer") -> dict[str, Any]:
    """What a reader of `explain` must know; nothing where there is no such signature."""
    found = [each for each in request.get("expected", {}).get("explain", ()) if each is not None]
    if not found:
        return {}
    largest = max(abs(each["gap"]) for each in found)
    return {"steps": steps, "baseline": tokenizer.unknown_word, "texts": len(found), "largest_gap": largest}


def _weights_digest(run: Path) -> str:
    return read_manifest(run / "trained")["files"]["arrays.npz"]["sha256"]


def _manifest(run: Path, trained: "Trained", version: int, settings: "ExportSection") -> dict[str, Any]:
    """What a version says of itself. No silo is named in it: it goes where the model goes."""
    facts, tokenizer, network = trained.facts, trained.tokenizer, trained.network
    guarantee = facts["guarantee"]
    evaluation = _held_out_evaluation(run)
    held_out: dict[str, Any] = {}
    if evaluation is not None:
        held_out = evaluation["silos"]
        evaluation = {
            **_summary(evaluation),
            "created": evaluation["created"],
            # It tells whether two versions were asked about the same.
            "data": fingerprint([evaluation["split"], sorted(each["id"] for each in facts["snapshots"].values())]),
        }
    return {
        "kind": "model",
        "name": settings.name or config_of(run).pipeline.name,
        "version": version,
        "run": run.name,
        "rounds": facts["rounds"],
        "weights": _weights_digest(run),
        "task": network.task,
        "labels": list(trained.labels),
        "max_length": tokenizer.max_length,
        "max_tokens": network.transformer.config.max_position_embeddings,
        "tokenizer": {
            "fingerprint": tokenizer.fingerprint,
            "lower_case": tokenizer.lower_case,
            "pad_id": tokenizer.pad_id,
            "cls_id": tokenizer.cls_id,
            "sep_id": tokenizer.sep_id,
        },
        "signatures": _signatures(network.task, explain=settings.explain_steps > 0),
        "epsilon": guarantee["epsilon"],
        "delta": guarantee["delta"],
        "mechanism": guarantee["mechanism"],
        "statement": guarantee["statement"],
        "evaluation": evaluation,
        "data": {"silos": _data(facts["snapshots"], held_out)},
        "training": _training(config_of(run)),
        "training_metrics": _training_metrics(run),
        "code": code(),
        "intended_use": settings.intended_use,
        "warmup_batch_sizes": list(settings.warmup_batch_sizes),
    }


def _summary(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """What a version says of an evaluation's results. Which silo is the worst stays with the run."""
    by_silo, by_group = (
        [part["accuracy"] for part in evaluation[kind].values() if part.get("accuracy") is not None]
        for kind in ("silos", "groups")
    )
    return {
        "split": evaluation["split"],
        **{key: evaluation["overall"].get(key) for key in _SUMMARY},
        "over_silos": _spread(by_silo),
        "over_groups": _spread(by_group),
        "worst_silo_accuracy": min(by_silo, default=None),
    }


def _held_out_evaluation(run: Path) -> dict[str, Any] | None:
    """The run's evaluation on held-out clients, or None where it was not evaluated.

    Raises:
      ExportError: if the file holds that of another split: a version goes where the model goes, and no guarantee covers
        scores on clients that it was trained on.
    """
    file = evaluation_file(run)
    if not file.exists():
        return None
    evaluation = read_json(file)
    if evaluation["split"] != "test":
        raise ExportError(
            f'{file}: holds an evaluation of the split {evaluation["split"]!r}; expected "test", the held-out clients, since a version carries it. '
            "Remove the file and run `tff-pipeline evaluate` again. No version was made."
        )
    return evaluation


def _training_metrics(run: Path) -> dict[str, float] | None:
    """The last round's, where `privacy.metrics` has them released; otherwise they stay in the run's folder."""
    kind = config_of(run).privacy.metrics
    if kind == "withheld":
        return None
    with (run / "rounds.csv").open(newline="", encoding="utf-8") as file:
        last = list(csv.DictReader(file))[-1]
    released = ("loss", "accuracy", "clients") if kind == "released" else ("released_accuracy",)
    return {key: float(last[key]) for key in released if last[key]}


def _spread(accuracies: Sequence[float]) -> dict[str, Any] | None:
    """Over silos or groups, without saying which is which."""
    if not accuracies:
        return None
    return {
        "count": len(accuracies),
        "least": min(accuracies),
        "median": float(np.median(accuracies)),
        "most": max(accuracies),
    }


def _data(snapshots: Mapping[str, Any], held_out: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Counts by silo, the largest first, so that the order does not tell their names' alphabet."""
    counts = [
        {
            "clients": snapshot.get("clients"),
            "examples": snapshot.get("examples"),
            "held_out_clients": held_out.get(silo, {}).get("clients"),
            "held_out_examples": held_out.get(silo, {}).get("examples"),
        }
        for silo, snapshot in snapshots.items()
    ]
    return sorted(counts, key=lambda silo: [-(value or 0) for value in silo.values()])


def _training(config: "Config") -> dict[str, Any]:
    """What a reader needs to make it again. No path, no seed: who knows the seed of a seeded run can take its noise away."""
    checkpoint = config.model.checkpoint
    if Path(checkpoint).is_absolute():
        checkpoint = (
            f"a folder with weights {checkpoint_identity(checkpoint)}" if Path(checkpoint).is_dir() else "a folder"
        )
    training = config.training
    names = ("rounds", "clients_per_round", "local_epochs", "batch_size", "algorithm", "weighting")
    names += ("client_optimizer", "client_learning_rate", "server_optimizer", "server_learning_rate", "server_momentum")
    return {
        "checkpoint": checkpoint,
        "trainable": config.model.trainable,
        **{name: getattr(training, name) for name in names},
    }


def code() -> dict[str, Any]:
    """Which code exports: the package's version, and where it runs from a checkout of its own, the commit.

    Without git, or installed as a package, `commit` is None.
    """
    package, facts = Path(__file__).parent, {"version": __version__, "commit": None, "changed": None}

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(package), *arguments], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # an installed package may lie in somebody's repository
        return facts | {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return facts


# -- the graph ---------------------------------------------------------------------------------------------------------


def save(trained: "Trained", directory: Path, settings: "ExportSection") -> None:
    """Writes the SavedModel: the network's weights, the vocabulary, the labels, and nothing else."""
    import tensorflow as tf

    network, tokenizer = trained.network, trained.tokenizer
    module: Any = tf.Module()
    stored = precision.store(network, [variable.numpy() for variable in network.variables], settings.weights)
    with _without_unused_pooler(network), precision.replaced(network, stored) as (module.weights, module.scales):
        functions = {
            "serving_default": _text_function(network, tokenizer, trained.labels),
            "tokens": _tokens_function(network, trained.labels),
        }
        if network.task == "sequence_classification":
            functions["classify"] = _examples_function(network, tokenizer, trained.labels)
            if settings.explain_steps:
                steps = settings.explain_steps
                functions["explain"] = explanation.function(network, tokenizer, trained.labels, steps=steps)
        signatures = {name: function.get_concrete_function() for name, function in functions.items()}
    tf.saved_model.save(module, str(directory), signatures=signatures)


@contextmanager
def _without_unused_pooler(network: "Network") -> Iterator[None]:
    """A graph that calls the pooler carries its weights, also where nobody reads what it says."""
    encoder = network.transformer.bert
    if network.task == "token_classification" or network.pooling == "pooler":
        yield
        return
    pooler, encoder.pooler = encoder.pooler, None
    try:
        yield
    finally:
        encoder.pooler = pooler


def _text_function(network: "Network", tokenizer: "Tokenizer", labels: Sequence[str]) -> Any:
    import tensorflow as tf

    def classify_text(text: tf.Tensor) -> dict[str, tf.Tensor]:
        tokens = tokenizer.ragged(text).to_tensor(default_value=tokenizer.pad_id)
        return _text_answer(network(tokens), labels)

    def classify_words(text: tf.Tensor) -> dict[str, tf.Tensor]:
        words = tf.strings.split(text)
        tokens, first_pieces = _word_tokens(words, tokenizer)
        # Words that were cut off have no answer, but are there: all outputs are as wide as the most words.
        width = words.bounding_shape(axis=1)
        mask = tf.sequence_mask(first_pieces.row_lengths(), maxlen=width, dtype=tf.int32)
        places = first_pieces.to_tensor(default_value=0, shape=tf.stack([words.nrows(), width]))
        answers = tf.gather(tf.nn.softmax(network(tokens)), places, batch_dims=1)
        return {"tokens": words.to_tensor(default_value=""), **_word_answer(answers, mask, labels)}

    function = classify_text if network.task == "sequence_classification" else classify_words
    return tf.function(function, input_signature=[tf.TensorSpec([None], tf.string, name="text")], autograph=False)


def _tokens_function(network: "Network", labels: Sequence[str]) -> Any:
    import tensorflow as tf

    def classify_tokens(input_ids: tf.Tensor) -> dict[str, tf.Tensor]:
        logits = network(input_ids)
        if network.task == "sequence_classification":
            return _text_answer(logits, labels)
        return _word_answer(tf.nn.softmax(logits), tf.cast(tf.not_equal(input_ids, network.pad_id), tf.int32), labels)

    return tf.function(
        classify_tokens, input_signature=[tf.TensorSpec([None, None], tf.int32, name="input_ids")], autograph=False
    )


def _examples_function(network: "Network", tokenizer: "Tokenizer", labels: Sequence[str]) -> Any:
    import tensorflow as tf

    def classify_examples(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        texts = tf.io.parse_example(inputs, {"text": tf.io.FixedLenFeature([], tf.string)})["text"]
        tokens = tokenizer.ragged(texts).to_tensor(default_value=tokenizer.pad_id)
        classes = tf.repeat(tf.constant([list(labels)]), tf.shape(texts)[0], axis=0)
        return {"classes": classes, "scores": tf.nn.softmax(network(tokens))}

    # A server's Classify knows no other name for its input.
    spec = [tf.TensorSpec([None], tf.string, name="inputs")]
    return tf.function(classify_examples, input_signature=spec, autograph=False)


def _text_answer(logits: "tf.Tensor", labels: Sequence[str]) -> dict[str, "tf.Tensor"]:
    import tensorflow as tf

    probabilities = tf.nn.softmax(logits)
    return {
        "label": tf.gather(tf.constant(list(labels)), tf.argmax(probabilities, axis=-1)),
        "score": tf.reduce_max(probabilities, axis=-1),
        "probabilities": probabilities,
    }


def _word_answer(probabilities: "tf.Tensor", mask: "tf.Tensor", labels: Sequence[str]) -> dict[str, "tf.Tensor"]:
    """float32 [B, S, C] and int32 [B, S] to labels, scores and mask, blank where the mask is 0."""
    import tensorflow as tf

    best = tf.gather(tf.constant(list(labels)), tf.argmax(probabilities, axis=-1))
    return {
        "labels": tf.where(mask > 0, best, tf.constant("")),
        "scores": tf.reduce_max(probabilities, axis=-1) * tf.cast(mask, tf.float32),
        "mask": mask,
    }


def _word_tokens(words: "tf.RaggedTensor", tokenizer: "Tokenizer") -> tuple["tf.Tensor", "tf.RaggedTensor"]:
    """`Tokenizer.encode_words` in a graph, for many sentences at once.

    Returns:
      ids int32 [B, S], padded; and the place of each word's first piece among them, int64 [B, (words that fit)].
    """
    import tensorflow as tf

    pieces = tokenizer.ragged_words(words.flat_values)
    counts = words.with_flat_values(pieces.row_lengths())
    starts = tf.cumsum(pieces.row_lengths(), exclusive=True)
    first_of_row = tf.gather(tf.concat([starts, [tf.size(pieces.flat_values, tf.int64)]], axis=0), words.row_starts())
    first_pieces = words.with_flat_values(starts - tf.gather(first_of_row, words.value_rowids()))
    room = tokenizer.max_length - 2
    first_pieces = tf.ragged.boolean_mask(first_pieces, first_pieces < room) + 1
    ragged: Any = tf.RaggedTensor
    ids = ragged.from_row_lengths(pieces.flat_values, tf.reduce_sum(counts, axis=1))[:, :room]
    rows = words.nrows(tf.int32)
    framed: Any = tf.concat([tf.fill([rows, 1], tokenizer.cls_id), ids, tf.fill([rows, 1], tokenizer.sep_id)], axis=1)
    return framed.to_tensor(default_value=tokenizer.pad_id), first_pieces


def _signatures(task: str, *, explain: bool) -> dict[str, dict[str, dict[str, str]]]:
    """Inputs and outputs by name and type; the first dimension of each is the batch."""
    if task == "sequence_classification":
        outputs = {"label": "string", "score": "float32", "probabilities": "float32"}
        classes = {"classes": "string", "scores": "float32"}
        words, more = {}, {"classify": {"inputs": {"inputs": "string"}, "outputs": classes}}
        more |= {"explain": explanation.SIGNATURE} if explain else {}
    else:
        outputs = {"labels": "string", "scores": "float32", "mask": "int32"}
        words, more = {"tokens": "string"}, {}
    return {
        "serving_default": {"inputs": {"text": "string"}, "outputs": words | outputs},
        "tokens": {"inputs": {"input_ids": "int32"}, "outputs": outputs},
        **more,
    }


# -- the verification --------------------------------------------------------------------------------------------------


def verification_request(
    run: Path,
    trained: "Trained",
    settings: "ExportSection | None" = None,
    *,
    weights: Sequence[np.ndarray] | None = None,
) -> dict[str, Any]:
    """What verification.py compares with: the run's stored weights, and the answers of the model in memory.

    `weights` are those that were trained, where the model in memory has others by now (`_round`).

    The answers take the way of preparation and training (`Tokenizer.encode`, eager network, one text at a time, CPU),
    not that of the exported graph.
    """
    import tensorflow as tf

    network, tokenizer = trained.network, trained.tokenizer
    settings = settings if settings is not None else config_of(run).export
    stored = precision.store(network, weights if weights is not None else _weights(run, trained), settings.weights)
    steps = settings.explain_steps
    signatures = _signatures(network.task, explain=steps > 0)
    tokens, expected = [], {signature: [] for signature in signatures}
    with tf.device("CPU"):
        for index, text in enumerate(GOLDEN_TEXTS):
            words = text.split()
            by_word = network.task == "token_classification"
            ids, first = tokenizer.encode_words(words) if by_word else (tokenizer.encode([text])[0], None)
            probabilities = tf.nn.softmax(network(tf.constant(ids[np.newaxis]))).numpy()[0]
            tokens.append(ids.tolist())
            expected["tokens"].append({"probabilities": probabilities.tolist()})
            answers = probabilities if first is None else probabilities[first >= 0]
            expected["serving_default"].append(
                {"probabilities": answers.tolist(), "words": [_base64(word) for word in words]}
            )
            if "classify" in expected:
                expected["classify"].append({"probabilities": answers.tolist()})
            if "explain" in expected:
                explain = partial(explanation.expected, network, tokenizer, text, labels=trained.labels, steps=steps)
                expected["explain"].append(explain() if index in EXPLAINED_TEXTS else None)
    return {
        "name": settings.name or config_of(run).pipeline.name,
        "labels": list(trained.labels),
        "pad_id": tokenizer.pad_id,
        "signatures": signatures,
        "stored_as": settings.weights,
        "weights": list(_expected_weights(network, stored)),
        "texts": [_base64(text) for text in GOLDEN_TEXTS],
        "tokens": tokens,
        "expected": expected,
    }


def _expected_weights(network: "Network", stored: Sequence[precision.Stored]) -> Iterator[dict[str, str]]:
    """The name in the file, the variable's name and the digest of each stored array."""
    scales = 0
    for index, (variable, each) in enumerate(zip(network.variables, stored, strict=True)):
        yield {"key": f"weights/{index}", "name": variable.name, "digest": verification.array_digest(each.value)}
        if each.scale is not None:
            digest = verification.array_digest(each.scale)
            yield {"key": f"scales/{scales}", "name": f"{variable.name}, scale", "digest": digest}
            scales += 1


def check(model: Path, request: Mapping[str, Any], *, timeout_s: float = TIMEOUT_S) -> dict[str, str]:
    """Runs verification.py on `model` in a fresh process, which ends when this one does.

    Returns:
      What each check saw.

    Raises:
      ExportError: naming the check that failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        file, errors = Path(folder) / "request.json", Path(folder) / "stderr"
        file.write_text(json.dumps(request), encoding="utf-8")
        script = [sys.executable, "-I", verification.__file__, str(model), str(file)]
        with (Path(folder) / "stdout").open("w+b") as output, errors.open("wb") as error_output:
            # Standard input stays open as long as this process lives; the child watches it.
            with subprocess.Popen(script, stdin=subprocess.PIPE, stdout=output, stderr=error_output) as child:
                try:
                    code = child.wait(timeout_s)
                except subprocess.TimeoutExpired:
                    raise ExportError(
                        f"the exported model did not pass its verification: it took longer than {timeout_s:g} s. No version was made."
                    ) from None
                finally:
                    child.kill()
            output.seek(0)
            lines = output.read().decode(errors="replace").splitlines()
        try:
            result = json.loads(lines[-1])
        except (IndexError, ValueError):
            last = errors.read_text(errors="replace").strip().splitlines()[-1:]
            raise ExportError(
                f"the verification of the exported model ended with code {code} and no result ({' '.join(last)[:300]}). No version was made."
            ) from None
    if "failed" in result:
        raise ExportError(
            f"the exported model did not pass its verification. {result['failed']}: {result['because']}. No version was made."
        )
    return result["passed"]


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()
