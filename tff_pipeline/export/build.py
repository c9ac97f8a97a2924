"""Makes a version that a model server loads from a finished run: raw text in, labels out, checked before it appears.

What comes in is a run; what goes out is `<base>/<version>/`, a SavedModel with the tokenizer in its graph (graph.py,
signatures.py). The version is built aside, asked golden texts in a fresh process (fresh_process.py, verification.py) and
renamed. It carries warm-up requests (warmup.py) and golden pairs (golden.py). MODEL_CARD.md (model_card.py),
manifest.json (manifest.py) and COMPLETE lie at its top, where TensorFlow Serving ignores them: it reads only names that
it knows.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tff_pipeline.artifacts import model_versions, read_manifest, staged, version_numbers
from tff_pipeline.errors import ArtifactError, ExportError
from tff_pipeline.evaluation.weight_change import measure_weight_change
from tff_pipeline.export import golden, model_card, warmup, weight_precision
from tff_pipeline.export.fresh_process import verify
from tff_pipeline.export.graph import save
from tff_pipeline.export.manifest import describe, held_out_evaluation, is_same_export, served_name
from tff_pipeline.export.verification_request import VerificationRequest, verification_request
from tff_pipeline.progress import Progress
from tff_pipeline.training.store import config_of, load_arrays, load_trained

if TYPE_CHECKING:
    from tff_pipeline.config import ExportSection
    from tff_pipeline.data.tokenization import Tokenizer
    from tff_pipeline.training.store import Trained

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
      ArtifactError: if the run is not finished, or is damaged; or if another export has made the version meanwhile.
      ExportError: if the number is taken, the run's evaluation is not that of the held-out clients, the version cannot be
        written, or the model does not pass its verification; nothing is left behind.
    """
    settings = settings if settings is not None else config_of(run).export
    try:
        return _export(run, destination, version, settings, progress)
    except OSError as error:
        raise ExportError(
            f"{destination}: the version could not be written ({error}). Check that this account may write there, make room, or choose another --to."
        ) from error


def _export(run: Path, destination: Path, version: int | None, settings: "ExportSection", progress: Progress) -> Path:
    evaluation = held_out_evaluation(run)
    if version is None and (finished := _finished_version(run, destination, settings, evaluation)):
        progress.event("export", f"{finished} is this run's model already", path=str(finished), finished_before=True)
        return finished
    number = _free_number(destination, version)
    trained = load_trained(run)
    final = destination / str(number)
    facts: dict[str, Any] = {}
    with staged(final, lambda: facts) as aside:
        progress.event("export", f"building version {number}", version=number)
        stored_weights, request = _build(aside, run, trained, settings, progress)
        progress.event("export", "verifying in a fresh process", version=number)
        facts |= {"verification": verify(aside, request)}
        facts |= {"explain": _explanations(request, settings.explain_steps, trained.tokenizer, progress)}
        facts |= describe(run, trained, number, settings, evaluation) | {"stored_weights": stored_weights}
        (aside / model_card.NAME).write_text(model_card.card(facts), encoding="utf-8")
    progress.event("export", f"version {number} is in {final}", version=number, path=str(final))
    return final


def _finished_version(
    run: Path, destination: Path, settings: "ExportSection", evaluation: Mapping[str, Any] | None
) -> Path | None:
    """The newest version that is whole and is what an export of the run would make."""
    if not (run / "trained").is_dir():
        return None
    for number in reversed(model_versions(destination)):
        path = destination / str(number)
        try:
            manifest = read_manifest(path, check_files=True)
        except ArtifactError:
            continue
        if is_same_export(manifest, run, settings, evaluation):
            return path
    return None


def _free_number(destination: Path, version: int | None) -> int:
    """`version`, or one more than the largest number that is taken."""
    taken = version_numbers(destination)
    number = version if version is not None else max(taken, default=0) + 1
    if number in taken:
        raise ExportError(
            f"{destination / str(number)}: is there already; versions are never overwritten. Leave --version out to get {max(taken) + 1}."
        )
    if number < 1:
        raise ExportError(f"--version is {number}; expected a number above 0.")
    return number


def _build(
    directory: Path, run: Path, trained: "Trained", settings: "ExportSection", progress: Progress
) -> tuple[dict[str, Any], VerificationRequest]:
    """Writes the model with its warm-up requests and golden pairs.

    Returns:
      How its weights are stored, and what it is to be verified with.
    """
    weights = _trained_weights(run, trained)
    save(trained, directory, settings)
    stored_weights = _round_weights(run, trained, weights, settings, progress)
    request = verification_request(trained, weights, settings, name=served_name(run, settings))
    warmup.write(directory, request, batch_sizes=settings.warmup_batch_sizes)
    golden.write(directory, request)
    return stored_weights, request


def _trained_weights(run: Path, trained: "Trained") -> list[np.ndarray]:
    """The weights as they were trained, in the network's order: from the run's files; with adapters merged, from memory."""
    base, _ = load_arrays(run / "base", kind="weights")
    tail, _ = load_arrays(run / "trained", kind="weights")
    weights = [*base[: len(base) - len(tail)], *tail]
    if len(weights) != len(trained.network.variables):
        # Adapters were merged into the encoder's kernels when the model was loaded.
        weights = [variable.numpy() for variable in trained.network.variables]
    return weights


def _round_weights(
    run: Path, trained: "Trained", weights: Sequence[np.ndarray], settings: "ExportSection", progress: Progress
) -> dict[str, Any]:
    """Gives the model in memory the weights that the version computes with, and measures what that changes.

    Raises:
      ExportError: if no client is held out on whom to measure it.
    """
    kind: dict[str, Any] = {"kind": settings.weights}
    if settings.weights == "float32":
        return kind
    stored = weight_precision.store(trained.network, weights, settings.weights)
    change = partial(trained.network.set_weights, [weight.restored for weight in stored])
    measured = measure_weight_change(run, trained, change, progress=progress)
    if measured is None:
        raise ExportError(
            f'export.weights is "{settings.weights}", but no client is held out (split "test") on whom to measure what that changes; expected '
            'some. Set prepare.splits, or export.weights = "float32".'
        )
    size_ratio = sum(weight.size for weight in stored) / sum(value.nbytes for value in weights)
    progress.event("export", f"weights as {settings.weights}", size_ratio=size_ratio, **measured)
    return kind | {"size_ratio": size_ratio, **measured}


def _explanations(
    request: VerificationRequest, steps: int, tokenizer: "Tokenizer", progress: Progress
) -> dict[str, Any] | None:
    """What a reader of `explain` must know; None where the version has no such signature."""
    answers = [answer for answer in request["expected"].get("explain", ()) if answer is not None]
    if not answers:
        return None
    largest_gap = max(abs(answer["gap"]) for answer in answers)
    facts = {"steps": steps, "baseline": tokenizer.unknown_word, "texts": len(answers), "largest_gap": largest_gap}
    if largest_gap > LARGEST_GAP:
        progress.event(
            "export",
            f"attributions of `explain` miss the score by up to {largest_gap:.2g}; "
            f"expected at most {LARGEST_GAP:g}. Raise export.explain_steps",
            **facts,
        )
    return facts
