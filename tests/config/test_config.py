"""Configurations: what they mean, and what a wrong one says. The messages are compared, since somebody has to act on them."""

import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec
import pytest

from tff_pipeline import config as configuration
from tff_pipeline.config import Config, load
from tff_pipeline.config.schema import description
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


@pytest.fixture
def write(tmp_path: Path):
    """Writes a configuration: MINIMAL with `old` replaced by `new`."""

    def written(old: str = "", new: str = "") -> Path:
        assert old in MINIMAL
        path = tmp_path / "pipeline.toml"
        path.write_text(MINIMAL.replace(old, new) if old else MINIMAL)
        return path

    return written


def failure(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    return str(caught.value)


# -- what a good one means -----------------------------------------------------------------------------------------------


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


# -- what a wrong one says ---------------------------------------------------------------------------------------------


def test_a_configuration_that_cannot_be_read(tmp_path):
    """A folder here, which no account can read as a file; a missing permission is said with the same sentence."""
    with pytest.raises(
        ConfigError, match=r"cannot be read \(Is a directory\)\. Check that it is a file and that this account"
    ):
        load(tmp_path)


def test_a_missing_file_says_where_to_start(tmp_path):
    assert "no such file. --config takes a TOML file; configs/quickstart.toml is one to start from." in failure(
        tmp_path / "nothing.toml"
    )


def test_what_is_not_toml_is_said_with_its_line(write):
    message = failure(write("rounds = 2", "rounds = = 2"))

    assert "pipeline.toml: not valid TOML" in message
    assert "line 15" in message


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("rounds = 2", "rouds = 2", "there is no key `rouds` in [training]. Did you mean `rounds`?"),
        ("[training]", "[trainig]", "there is no key `trainig`. Did you mean `training`?"),
        ("clip_norm = 1.0", "clipnorm = 1.0", "there is no key `clipnorm` in [privacy]. Did you mean `clip_norm`?"),
        ("[pipeline]", 'path = "x"\n[pipeline]', "there is no key `path`. Known keys there: pipeline, silos, model, "),
        ('format = "csv"', 'fromat = "csv"', "there is no key `fromat` in [silos[0]]. Did you mean `format`?"),
        ('name = "small"', 'name = "small"\nzzz = 1', "there is no key `zzz` in [pipeline]. Known keys there: name, workdir, seed."),
    ],
)  # fmt: skip
def test_an_unknown_key_names_the_nearest(write, old, new, said):
    assert said in failure(write(old, new))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.rounds=many", "training.rounds is 'many'; expected a whole number."),
        (
            'privacy.mechanism="gausian"',
            'privacy.mechanism is \'gausian\'; expected "gaussian", "distributed_discrete_gaussian", "tree" or "none".',
        ),
        ("training.rounds", "--set 'training.rounds': expected section.key=value, as in --set training.rounds=5."),
        ("silos.4.name=x", "'4' is not an index below 1, as in silos.0.input."),
        ("training.rounds.x=1", "'rounds' is a value, not a section."),
    ],
)
def test_a_wrong_set_is_said_so(write, override, said):
    assert said in failure(write(), override)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["pipeline.name=a/b"], "pipeline.name is 'a/b'; expected letters, digits"),
        (["silos=[]"], "silos is []; expected at least one [[silos]] table"),
        (["silos.0.format=conll"], "silos[0].format is 'conll'; expected conll for task.kind = token_classification, and only there"),
        (['silos.0.input={ trian = "x" }'], "silos[0].input is 'trian'; expected a glob, or globs by split with the keys train, validation, test"),
        (["prepare.max_length=4"], "prepare.max_length is 4; expected 8 to 512 tokens"),
        (["prepare.splits={ train = 0.5, test = 0.4 }"], "that add up to 1, above 0 for train"),
        (["prepare.splits={ test = 1.0 }"], "that add up to 1, above 0 for train"),
        (["training.rounds=0"], "training.rounds is 0; expected at least 1"),
        (["training.clients_per_round=0"], "above 0: the expected number of clients in a round"),
        (["training.server_momentum=1.0"], "expected at least 0 and below 1"),
        (["training.algorithm=fedprox"], "training.proximal_strength is None; expected a number above 0 with algorithm"),
        (["training.proximal_strength=0.1"], 'and nothing with "fedavg"'),
        (["model.vocabulary=''"], 'a vocabulary file (one wordpiece a line) with checkpoint = "random"'),
        (["model.hidden_size=65"], "model.hidden_size is 65; expected a multiple of model.num_attention_heads"),
        (["model.num_attention_heads=0"], "model.num_attention_heads is 0; expected at least 1"),
        (["runtime.devices=gpu"], 'runtime.devices is \'gpu\'; expected "auto", "CPU" or a list such as ["GPU:0"]'),
        (["task.labels=[]"], None),
    ],
)  # fmt: skip
def test_impossible_values_say_what_was_expected(write, overrides, said):
    if said is None:  # labels are looked at when they are needed
        with pytest.raises(ConfigError, match=r"task\.labels holds 0 labels"):
            configuration.known_labels(load(write(), overrides))
    else:
        assert said in failure(write(), *overrides)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("silos=3", "silos is 3; expected a list."),
        ("silos=[3]", "silos[0] is 3; expected a table."),
        ("model=3", "model is 3; expected a table."),
        ("model=[1]", "model is a list; expected a table."),
        ("pipeline.seed=x", "pipeline.seed is 'x'; expected a whole number."),
        ("silos.0.quoting=no", "silos[0].quoting is 'no'; expected true or false."),
        ("silos.0.input=3", "silos[0].input is 3; expected a text, a table or a list."),
        ("silos.0.input={ train = 3 }", "silos[0].input is {'train': 3}; expected a text or a list for each of its keys."),
        ('prepare.splits={ train = "most" }', "prepare.splits is {'train': 'most'}; expected a number for each of its keys."),
        ('model.lora_targets=["quer"]', 'model.lora_targets[0] is \'quer\'; expected "query", "key", "value" or "output".'),
        ("model.lora_targets=[]", "model.lora_targets is []; expected at least one of query, key, value, output."),
        ('runtime.devices=["GPU"]', 'runtime.devices is [\'GPU\']; expected "auto", "CPU" or a list such as ["GPU:0"].'),
        ("export.warmup_batch_sizes=[8, 0]", "export.warmup_batch_sizes is [8, 0]; expected one to sixteen different"),
        ("export.warmup_batch_sizes=[8, 8]", "export.warmup_batch_sizes is [8, 8]; expected one to sixteen different"),
        ("silos.0.name=", "silos[0].name is missing, and has no default; expected letters, digits"),
        ("model.checkpoint=", "model.checkpoint is missing, and has no default; expected a text."),
        ("training.client_learning_rate=nan", "training.client_learning_rate is nan; expected a number above 0 and at most 1e6"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_shown_with_what_was_expected(write, override, said):
    message = failure(write(), override)

    assert said in message
    assert message.endswith("configs/README.md explains every key.")


def test_two_silos_need_two_names(write):
    twice = '[[silos]]\nname = "bank"\ninput = "x"\nformat = "csv"\n\n[model]'

    assert "silos[0].name is 'bank'; expected a name of its own: another silo has it too" in failure(
        write("[model]", twice)
    )


class TestPrivacyIsNeverLeftOutByAccident:
    def test_there_is_no_default_mechanism(self, write):
        assert 'privacy.mechanism is missing, and has no default; expected "gaussian", ' in failure(
            write('mechanism = "gaussian"\n', "")
        )

    def test_a_missing_section_is_an_error(self, write):
        section = MINIMAL[MINIMAL.index("[privacy]") :]

        assert "the section [privacy] is missing; expected it, since not all" in failure(write(section, ""))

    @pytest.mark.parametrize("key", ["clip_norm = 1.0\n", "delta = 1e-5\n"])
    def test_a_mechanism_needs_its_numbers(self, write, key):
        message = failure(write(key, ""))

        assert f"privacy.{key.split(' ')[0]} is None; expected a number with mechanism" in message
        assert 'For a run without privacy, write mechanism = "none"' in message

    def test_no_mechanism_takes_no_numbers(self, write):
        message = failure(write(), "privacy.mechanism=none")

        assert 'expected nothing with mechanism = "none", which promises nothing' in message

    @pytest.mark.parametrize("change", ["noise_multiplier = 1.0\ntarget_epsilon = 2.0", ""])
    def test_noise_is_given_in_exactly_one_way(self, write, change):
        message = failure(write("noise_multiplier = 1.0", change))

        assert "exactly one of privacy.noise_multiplier and privacy.target_epsilon" in message

    @pytest.mark.parametrize("key", ["clip_norm", "noise_multiplier", "delta"])
    def test_zero_is_no_number_for_it(self, write, key):
        assert f"privacy.{key} is 0.0; expected a number above 0" in failure(write(), f"privacy.{key}=0.0")

    def test_weights_by_examples_are_refused(self, write):
        message = failure(write(), "training.weighting=examples")

        assert "a weight is something a client can change beyond its clip" in message

    @pytest.mark.parametrize(
        ("overrides", "said"),
        [
            (["privacy.tolerated_silos=0"], "privacy.tolerated_silos is 0; expected 0 to 0 .* nothing with another"),
            (["secure_sum.bits=16"], "secure_sum.bits is 16; expected 32 with another mechanism"),
            (["secure_sum.bits=24"], "secure_sum.bits is 24; expected 16 or 32"),
            (
                ["privacy.mechanism=distributed_discrete_gaussian", "privacy.tolerated_silos=1"],
                r"privacy.tolerated_silos is 1; expected 0 to 0 \(one silo at least has to be honest\)",
            ),
            (["privacy.mechanism=distributed_discrete_gaussian", "training.weighting=examples"], "beyond its clip"),
            (["privacy.mechanism=distributed_discrete_gaussian", "privacy.clip_norm="], "clip_norm is None"),
        ],
    )
    def test_noise_that_silos_add_has_keys_of_its_own(self, write, overrides, said):
        assert re.search(said, failure(write(), *overrides))

    @pytest.mark.parametrize(
        ("overrides", "said"),
        [
            (
                ["privacy.clipping=adaptive", "privacy.mechanism=tree"],
                'privacy.clipping is .adaptive.; expected "fixed" with another',
            ),
            (["privacy.clip_quantile=0.5"], 'clip_quantile is 0.5; expected .* with clipping = "adaptive"'),
            (
                ["privacy.clipping=adaptive", "privacy.clip_quantile=1.0"],
                "clip_quantile is 1.0; expected a fraction between 0 and 1",
            ),
            (["privacy.clip_count_stddev=3"], 'clip_count_stddev is 3.0; expected .* with clipping = "adaptive"'),
            (["privacy.clipping=adaptive", "privacy.clip_norm="], "clip_norm is None"),
        ],
    )
    def test_a_clip_that_adapts_has_keys_of_its_own(self, write, overrides, said):
        assert re.search(said, failure(write(), *overrides))

    @pytest.mark.parametrize(
        ("overrides", "said"),
        [
            (
                ["privacy.metrics=noised", "privacy.mechanism=tree"],
                'metrics is .noised.; expected "withheld" or "released"',
            ),
            (
                ["privacy.metrics=released", "privacy.mechanism=distributed_discrete_gaussian"],
                'metrics is .released.; expected "withheld" with "distributed_discrete_gaussian": there nothing leaves',
            ),
            (["privacy.metrics_stddev=3"], 'metrics_stddev is 3.0; expected .* with metrics = "noised"'),
        ],
    )
    def test_metrics_with_noise_have_a_key_of_their_own(self, write, overrides, said):
        assert re.search(said, failure(write(), *overrides))

    @pytest.mark.parametrize(
        ("override", "said"),
        [
            ("training.weighting=examples", "beyond its clip"),
            ("privacy.clip_norm=", "clip_norm is None"),
            ("privacy.tolerated_silos=0", "tolerated_silos is 0"),
            ("secure_sum.bits=16", "secure_sum.bits is 16"),
        ],
    )
    def test_trees_take_what_the_gaussian_mechanism_takes(self, write, override, said):
        assert load(write(), ["privacy.mechanism=tree"]).privacy.mechanism == "tree"
        assert said in failure(write(), "privacy.mechanism=tree", override)

    def test_one_silo_may_be_curious_unless_it_is_alone(self, write, tmp_path):
        path = write()
        mechanism = "privacy.mechanism=distributed_discrete_gaussian"
        assert load(path, [mechanism]).tolerated_silos == 0
        path.write_text(MINIMAL + '[[silos]]\nname = "shop"\ninput = "x"\nformat = "csv"\n')
        assert load(path, [mechanism]).tolerated_silos == 1
        assert load(path, [mechanism, "privacy.tolerated_silos=0"]).tolerated_silos == 0
        assert load(path).tolerated_silos == 0

    def test_delta_is_a_probability(self, write):
        assert "privacy.delta is 1.5; expected a number above 0 and below 1" in failure(write(), "privacy.delta=1.5")

    def test_without_privacy_there_is_no_delta_to_insist_on(self, write):
        none = (
            "privacy.mechanism=none",
            *(f"privacy.{key}=" for key in ("noise_multiplier", "delta", "target_epsilon")),
        )
        said = failure(write(), *none, "privacy.allow_large_delta=true")
        assert 'privacy.allow_large_delta is True; expected false with mechanism = "none"' in said


# -- the types -----------------------------------------------------------------------------------------------------------


def bounds(kind: Any) -> list[msgspec.Meta]:
    """All bounds in the type of a key, of its elements too."""
    own = [meta for meta in getattr(kind, "__metadata__", ()) if isinstance(meta, msgspec.Meta)]
    return own + [meta for inner in get_args(kind) for meta in bounds(inner)]


def test_every_bound_says_in_words_what_was_expected():
    bounded = [
        (section.__name__, field.name, field.type)
        for section in sections().values()
        for field in msgspec.structs.fields(section)
        if bounds(field.type)
    ]

    assert len(bounded) > 30
    assert [(section, key) for section, key, kind in bounded if not description(kind)] == []


def test_every_default_is_within_its_bounds():
    """msgspec checks what it reads, and not what it fills in."""
    for section in sections().values():
        defaults = {
            field.name: msgspec.to_builtins(value)
            for field in msgspec.structs.fields(section)
            if (value := field.default) is not msgspec.NODEFAULT
        }
        kinds = {field.name: field.type for field in msgspec.structs.fields(section)}
        for name, value in defaults.items():
            msgspec.convert(value, kinds[name])


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


# -- configs/README.md ---------------------------------------------------------------------------------------------------


def sections() -> dict[str, type]:
    """Section name to its type, as the schema has them."""
    types: dict[str, type] = {}
    for field in msgspec.structs.fields(Config):
        kind: Any = get_args(field.type)[0] if get_origin(field.type) is tuple else field.type
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            types[field.name] = kind
    return types


def documented(root: Path) -> dict[str, dict[str, list[str]]]:
    """Section to key to the other cells of its row, as configs/README.md has them."""
    rows: dict[str, dict[str, list[str]]] = {}
    section = ""
    for line in (root / "configs" / "README.md").read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"## `\[+(\w+)\]+`", line):
            section = match[1]
            rows[section] = {}
        elif section and (match := re.match(r"\| `(\w+)` \|", line)):
            rows[section][match[1]] = [cell.strip() for cell in line.strip("|").split(" | ")][1:]
    return rows


def as_toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {as_toml(item)}" for key, item in value.items()) + " }"
    return str(value)


def default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "required"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()  # type: ignore[operator]
    return "none" if value is None else f"`{as_toml(value)}`"


def test_the_readme_explains_every_key_and_no_other(root):
    assert {name: list(rows) for name, rows in documented(root).items()} == {
        name: [field.name for field in msgspec.structs.fields(kind)] for name, kind in sections().items()
    }


def test_the_readme_gives_the_true_defaults(root):
    rows = documented(root)

    for name, kind in sections().items():
        for field in msgspec.structs.fields(kind):
            assert rows[name][field.name][0] == default(field), f"{name}.{field.name}"


def test_the_readme_gives_the_allowed_values_and_says_what_changes_the_guarantee(root):
    rows = documented(root)

    for name, kind in sections().items():
        for field in msgspec.structs.fields(kind):
            _, meaning, guarantee = rows[name][field.name]
            for value in get_args(field.type) if get_origin(field.type) is Literal else ():
                assert as_toml(value) in rows[name][field.name][0] + meaning, (
                    f"{name}.{field.name} does not mention {value}"
                )
            assert guarantee
