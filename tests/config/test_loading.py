"""What a good configuration means: defaults, paths, `--set`, silos and labels; and the files in configs/."""

from pathlib import Path

import pytest

from tff_pipeline import config as configuration
from tff_pipeline.config import load
from tff_pipeline.errors import ConfigError


def test_defaults_are_filled_in(write):
    config = load(write())

    assert config.task.labels == "auto"
    assert config.prepare.max_length == 128
    assert config.privacy.delta == 1e-5
    assert config.silos[0].inputs_by_split[""] == (str(Path(config.path).parent / "data/*.csv"),)


def test_names_follow_from_the_pipelines_name(write):
    config = load(write())

    assert (config.population, config.model_name) == ("small", "small")


def test_relative_paths_are_relative_to_the_file_and_have_no_dots(write, monkeypatch, tmp_path):
    """Wherever the command runs."""
    path = write('"data/*.csv"', '"../raw/*.csv"')
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    config = load("../pipeline.toml", ['pipeline.workdir="out"'])

    assert config.silos[0].input == str(tmp_path.parent / "raw/*.csv")
    assert config.workdir == tmp_path / "out"
    assert config.model.vocabulary == str(tmp_path / "vocabulary.txt")
    assert config.path == str(path)


def test_addresses_stay_as_they_are(write):
    config = load(write('"data/*.csv"', '{ train = ["gs://bucket/a", "s3://bucket/b"], test = "c" }'))

    inputs = config.silos[0].inputs_by_split
    assert inputs["train"] == ("gs://bucket/a", "s3://bucket/b")
    assert inputs["test"] == (str(Path(config.path).parent / "c"),)


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("training.rounds=5", lambda config: config.training.rounds == 5),
        ("privacy.delta=1e-7", lambda config: config.privacy.delta == 1e-7),
        ("silos.0.input=/raw/bank/*.tsv", lambda config: config.silos[0].input == "/raw/bank/*.tsv"),
        ('runtime.devices=["GPU:0"]', lambda config: config.runtime.devices == ("GPU:0",)),
        ("runtime.kind = reference", lambda config: config.runtime.kind == "reference"),
        ("privacy.population=", lambda config: config.privacy.population == ""),
    ],
)
def test_set_takes_toml_or_a_bare_word(write, override, read):
    assert read(load(write(), [override]))


def test_the_last_of_two_sets_counts(write):
    assert load(write(), ["training.rounds=5", "training.rounds=7"]).training.rounds == 7


def test_a_silo_is_found_by_name(write):
    config = load(write())

    assert config.silo("bank").format == "csv"
    with pytest.raises(ConfigError, match=r"there is no silo 'bnak'; the file names bank\."):
        config.silo("bnak")


@pytest.mark.parametrize(
    ("given", "labels"), [('"auto"', None), ('["b", "a"]', ("b", "a")), ('"labels.txt"', ("x", "y z"))]
)
def test_labels_come_from_the_data_a_list_or_a_file(write, tmp_path, given, labels):
    (tmp_path / "labels.txt").write_text("x\n\n y z \n")

    assert configuration.known_labels(load(write(), [f"task.labels={given}"])) == labels


# -- the files in configs/ -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["quickstart", "multidogo", "ci"])
def test_the_configurations_load(root, name):
    config = load(root / "configs" / f"{name}.toml")

    assert config.pipeline.name == name
    if config.privacy.delta is not None:
        assert config.privacy.delta < 1e-3
    configuration.known_labels(config)


def test_every_configuration_is_tested(root):
    assert {path.stem for path in (root / "configs").glob("*.toml")} == {"quickstart", "multidogo", "ci"}


def test_multidogo_lists_the_intents_of_its_training_turns(root, data_dir):
    """All of them that stand alone, and nothing else."""
    import csv

    intents = set()
    for path in (data_dir / "multidogo").glob("*/train.tsv"):
        with path.open(newline="", encoding="utf-8") as file:
            intents |= {row["intent"] for row in csv.DictReader(file, delimiter="\t")}

    listed = configuration.known_labels(load(root / "configs" / "multidogo.toml"))
    assert set(listed or ()) == {intent for intent in intents if "<div>" not in intent}
