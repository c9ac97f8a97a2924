"""The signatures of an exported model: what it is asked, and what it answers.

For sequence classification, with B texts, C labels and S ids:

    serving_default   text string [B] -> label string [B], score float32 [B], probabilities float32 [B, C]
    tokens            input_ids int32 [B, S] -> the same. Ids with [CLS] and [SEP]; pad with the pad id, which alone
                      says what is padding, so that there is no attention mask to forget.
    classify          inputs string [B], serialized tf.Examples with a feature `text` -> classes string [B, C], scores
                      float32 [B, C]: what a server's Classify takes
    explain           text string [B], label string [B] -> tokens, their positions, and how much of the label's score each
                      of them made (integrated_gradients.py); only where export.explain_steps is above 0

and for token classification, over the words between white space (S: the most words, or ids, of a text in the batch):

    serving_default   text string [B] -> tokens string [B, S], labels string [B, S], scores float32 [B, S],
                      mask int32 [B, S], 1 for a word that has an answer: padding has none, nor has a word beyond the
                      model's max_length; their label is "" and their score 0
    tokens            input_ids int32 [B, S] -> labels, scores and mask of each id
"""

from typing import TypedDict

from tff_pipeline.export import integrated_gradients


class Signature(TypedDict):
    """Inputs and outputs: their types by name. The first dimension of each is the batch."""

    inputs: dict[str, str]
    outputs: dict[str, str]


def signatures(task: str, *, explain: bool) -> dict[str, Signature]:
    """The signatures of a task by name."""
    if task == "token_classification":
        outputs = {"labels": "string", "scores": "float32", "mask": "int32"}
        return {
            "serving_default": {"inputs": {"text": "string"}, "outputs": {"tokens": "string", **outputs}},
            "tokens": {"inputs": {"input_ids": "int32"}, "outputs": outputs},
        }
    outputs = {"label": "string", "score": "float32", "probabilities": "float32"}
    of_task: dict[str, Signature] = {
        "serving_default": {"inputs": {"text": "string"}, "outputs": outputs},
        "tokens": {"inputs": {"input_ids": "int32"}, "outputs": outputs},
        "classify": {"inputs": {"inputs": "string"}, "outputs": {"classes": "string", "scores": "float32"}},
    }
    if explain:
        of_task["explain"] = {"inputs": integrated_gradients.INPUTS, "outputs": integrated_gradients.OUTPUTS}
    return of_task
