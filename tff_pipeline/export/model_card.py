"""Writes a version's model card: MODEL_CARD.md, after Mitchell et al. 2019, "Model Cards for Model Reporting".

It is made from the version's manifest and from nothing else, so that it says nothing that is not recorded there: no silo
by name, no text. What the manifest does not have (a metric that was withheld, an evaluation that was not made) is left out
or said to be missing; nothing is made up for it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

NAME = "MODEL_CARD.md"
_TASKS = {
    "sequence_classification": "puts a text under one of its labels, with a probability for each",
    "token_classification": "gives each word of a text one of its labels, with a probability",
}
_METRICS = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "entity_f1": "entity F1",
    "majority_accuracy": "accuracy of always answering the commonest label",
    "loss": "cross-entropy, nats",
    "calibration_error": "calibration error",
}


def card(manifest: Mapping[str, Any]) -> str:
    """The card of a version as Markdown, from its manifest."""
    return "\n".join(_lines(manifest)) + "\n"


def _lines(manifest: Mapping[str, Any]) -> Iterator[str]:
    yield f"# {_text(manifest['name'])}, version {manifest['version']}"
    yield ""
    yield f"A BERT that {_TASKS[manifest['task']]}, trained by federated learning on the texts of {_counted(len(manifest['data']['silos']), 'organisation')}"
    yield "(silos) that did not share them. This card follows Mitchell et al. 2019 and is made from manifest.json beside it."
    yield ""
    yield from _use(manifest)
    yield from _data(manifest["data"]["silos"])
    yield from _metrics(manifest["evaluation"])
    yield from _training_metrics(manifest.get("training_metrics"))
    yield from _weights(manifest.get("stored_weights"))
    yield "## Privacy"
    yield ""
    yield from (f"- {sentence}" for sentence in manifest["statement"])
    yield ""
    yield from _limits(manifest)
    yield "## How to make it again"
    yield ""
    yield from (f"- {name}: {_text(value)}" for name, value in _origin(manifest))
    yield ""
    yield "The same settings on the same data give a model of the same kind, not the same numbers: sampling and noise are drawn"
    yield "anew, and must be."


def _use(manifest: Mapping[str, Any]) -> Iterator[str]:
    labels = manifest["labels"]
    yield "## Intended use"
    yield ""
    yield manifest["intended_use"] or (
        "The configuration does not say (export.intended_use). Ask those who made it before using it for anything that matters to somebody."
    )
    yield ""
    yield f"- Input: text, of which at most {manifest['max_length']} word pieces are read; the rest is cut off."
    yield f"- Output: one of {_counted(len(labels), 'label')}: {', '.join(f'`{_text(label)}`' for label in labels)}."
    yield "- It always answers with one of these labels, also to a text that has nothing to do with any of them."
    yield "- Not for deciding about people without a person who answers for the decision."
    yield ""


def _data(silos: Sequence[Mapping[str, int | None]]) -> Iterator[str]:
    yield "## Data"
    yield ""
    yield "A client is whose data the guarantee is about (a customer, a patient, a conversation). Silos are not named."
    yield ""
    counts = ("clients", "examples", "held_out_clients", "held_out_examples")
    yield from _table(
        ("silo", "training clients", "training examples", "held-out clients", "held-out examples"),
        [(number, *(_count(silo[key]) for key in counts)) for number, silo in enumerate(silos, 1)],
    )
    yield ""


def _metrics(evaluation: Mapping[str, Any] | None) -> Iterator[str]:
    yield "## How good it is"
    yield ""
    if evaluation is None:
        yield "It was not evaluated before it was exported. Run `tff-pipeline evaluate`, and export again."
        yield ""
        return
    yield f"On clients that were kept out of training (split `{evaluation['split']}`), {_count(evaluation['clients'])} of them, {_count(evaluation['examples'])} examples:"
    yield ""
    measures = [(title, _number(evaluation[key])) for key, title in _METRICS.items() if evaluation.get(key) is not None]
    yield from _table(("measure", "value"), measures or [("all", "withheld or not measured")])
    yield ""
    if interval := evaluation.get("accuracy_interval"):
        yield f"Accuracy lies between {interval[0]:.3f} and {interval[1]:.3f} with 95 % confidence, if the held-out clients are a random sample of"
        yield "those it will meet (Wilson's interval; examples of one client are not counted as independent of each other)."
    for key, part in (("over_silos", "silo"), ("over_groups", "group")):
        if spread := evaluation.get(key):
            yield (
                f"Over {_counted(spread['count'], part)} accuracy is {spread['least']:.3f} at the least, {spread['median']:.3f} in the median, {spread['most']:.3f} at the most."
            )
    yield ""


def _training_metrics(metrics: Mapping[str, float] | None) -> Iterator[str]:
    if not metrics:
        return
    if "released_accuracy" in metrics:
        yield f"In the last round of training the accuracy of the training clients that took part was {metrics['released_accuracy']:.3g} in the mean: with noise, and"
        yield "covered by the privacy guarantee."
    else:
        yield f"In the last round of training ({', '.join(f'{name} {value:.3g}' for name, value in metrics.items())}): sums over the training clients of that"
        yield "round, without noise; the privacy guarantee does not cover them."
    yield ""


def _weights(facts: Mapping[str, Any] | None) -> Iterator[str]:
    if not facts or facts["kind"] == "float32":
        return
    yield "## Stored weights"
    yield ""
    yield f"Weights are stored as {facts['kind']}, {facts['size_ratio']:.0%} of the size they have as float32. Measured on the held-out"
    yield f"examples against the model with float32 weights: {facts['changed_labels']:.2%} of the labels changed, no probability by more than"
    yield f"{facts['largest_probability_change']:.2g}; accuracy {_signed(facts['accuracy_difference'])}."
    yield ""


def _limits(manifest: Mapping[str, Any]) -> Iterator[str]:
    yield "## Limits"
    yield ""
    yield "- What the texts of the silos do not hold, it has not learnt: other kinds of customers, other languages, later events."
    yield "- Noise and clipping cost rare labels and small groups more than common ones (Bagdasaryan et al. 2019)."
    evaluation = manifest["evaluation"] or {}
    worst = (evaluation.get("over_silos") or {}).get("least")
    if worst is not None and evaluation.get("accuracy") is not None and worst < evaluation["accuracy"]:
        yield f"- One silo's clients are served worse than the rest: accuracy {worst:.3f}, against {evaluation['accuracy']:.3f} over all."
    if manifest["mechanism"] == "none":
        yield "- It was trained without differential privacy: what it says may tell what a client wrote."
    if explain := manifest.get("explain"):
        yield (
            f"- Its explanations compare a text with the same text of `{explain['baseline']}` pieces; another baseline gives others. They say what the "
            "model reacts to, not what is true."
        )
    yield "- What the public checkpoint it started from had been trained on is not known here, and not covered by the guarantee."
    yield ""


def _origin(manifest: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    training, code = manifest["training"], manifest["code"]
    yield "run", f"{manifest['run']}, {_counted(manifest['rounds'], 'round')}"
    yield "checkpoint", f"{training['checkpoint']}, trained: {training['trainable']}"
    settings = (f"{key} {value}" for key, value in sorted(training.items()) if key not in ("checkpoint", "trainable"))
    yield "settings", ", ".join(settings)
    commit = f"commit {code['commit']}{', with changes' if code['changed'] else ''}" if code["commit"] else "installed"
    yield "code", f"tff-pipeline {code['version']}, {commit}"
    yield "tokenizer", manifest["tokenizer"]["fingerprint"]
    yield "commands", "`tff-pipeline run --config FILE`, `tff-pipeline export --config FILE`"


def _table(head: tuple[object, ...], rows: Sequence[tuple[object, ...]]) -> Iterator[str]:
    for row in (head, ("---",) * len(head), *rows):
        yield "| " + " | ".join(map(str, row)) + " |"


def _text(value: Any) -> str:
    """A name that others chose, without what would be markup or begin a line."""
    return str(value).replace("`", "'").replace("|", "/").replace("\n", " ")


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _number(value: float) -> str:
    return f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "not measured" if value is None else f"{value:+.4f}"
