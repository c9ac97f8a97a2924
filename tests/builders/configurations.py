"""A small configuration file, and what loading a wrong one says."""

from pathlib import Path

import pytest

from tff_pipeline.config import load
from tff_pipeline.errors import ConfigError

MINIMAL = """
[pipeline]
name = "small"

[[silos]]
name = "bank"
input = "data/*.csv"
format = "csv"

[model]
checkpoint = "random"
vocabulary = "vocabulary.txt"

[training]
rounds = 2
clients_per_round = 3

[privacy]
mechanism = "gaussian"
clip_norm = 1.0
noise_multiplier = 1.0
delta = 1e-5
"""


def failure(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    return str(caught.value)
