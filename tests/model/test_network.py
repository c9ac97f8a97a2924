"""Checkpoints that no BERT can be built from are refused in a sentence."""

import json
from pathlib import Path

import pytest

from tff_pipeline.config import ModelSection
from tff_pipeline.data.tokenization import Tokenizer
from tff_pipeline.errors import ConfigError
from tff_pipeline.model.network import bert_config

SIZES = {"model_type": "bert", "vocab_size": 6, "max_position_embeddings": 16, "hidden_size": 8}


def refusal(folder: Path, *, max_length: int = 16) -> str:
    tokenizer = Tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b"], lower_case=True, max_length=max_length)
    with pytest.raises(ConfigError) as caught:
        bert_config(ModelSection(checkpoint=str(folder)), tokenizer)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "config.json cannot be read (OSError); expected a BERT's configuration. Download the checkpoint again"),
        (json.dumps(SIZES | {"model_type": "gpt2"}), "is a 'gpt2' model; expected a BERT. Name another checkpoint."),
        (
            json.dumps(SIZES | {"vocab_size": 5}),
            "has 6 entries, the checkpoint embeds 5; expected the checkpoint's own",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_says_why(tmp_path, content, said):
    (tmp_path / "config.json").write_text(content)

    assert said in refusal(tmp_path)


def test_texts_longer_than_the_checkpoint_has_positions_for(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SIZES))

    message = refusal(tmp_path, max_length=17)

    assert "prepare.max_length is 17, the checkpoint has 16 positions; expected at most that. Lower" in message
