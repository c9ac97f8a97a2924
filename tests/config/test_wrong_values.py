"""What a wrong configuration says. The messages are compared, since somebody has to act on them."""

import pytest
from builders.configurations import failure

from tff_pipeline import config as configuration
from tff_pipeline.config import load
from tff_pipeline.errors import ConfigError


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
