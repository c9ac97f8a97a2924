"""The configuration: one TOML file, read once into frozen types. configs/README.md explains every key.

Unknown keys are errors that name the nearest known key. Relative paths are relative to the file.
"""

import argparse
import difflib
import os
import re
import tomllib
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from tff_pipeline.errors import ConfigError

SPLITS = ("train", "validation", "test")


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class PipelineSection(_Section, frozen=True, kw_only=True):
    name: str
    workdir: str = "workdir"
    seed: int | None = None


class TaskSection(_Section, frozen=True, kw_only=True):
    kind: Literal["sequence_classification", "token_classification"] = "sequence_classification"
    labels: str | tuple[str, ...] = "auto"


class SiloSection(_Section, frozen=True, kw_only=True):
    name: str
    input: str | tuple[str, ...] | dict[str, str | tuple[str, ...]]
    format: Literal["csv", "tsv", "jsonl", "parquet", "conll"]
    text: str = "text"
    label: str = "label"
    client: str = ""
    group: str = ""
    columns: tuple[str, ...] = ()
    quoting: bool = True
    budget_epsilon: float | None = None

    @property
    def inputs_by_split(self) -> dict[str, tuple[str, ...]]:
        """Glob patterns by split; the key "" means that clients are split by the hash of their id."""
        given = self.input if isinstance(self.input, dict) else {"": self.input}
        return {split: (globs,) if isinstance(globs, str) else tuple(globs) for split, globs in given.items()}


class PrepareSection(_Section, frozen=True, kw_only=True):
    max_length: int = 128
    max_examples_per_client: int = 100
    splits: dict[str, float] = msgspec.field(default_factory=lambda: {"train": 0.8, "validation": 0.1, "test": 0.1})
    max_reject_share: float = 0.05
    max_row_bytes: int = 4 * 2**20
    max_labels: int = 1000
    shards: int = 1
    workers: int = 0  # 0: as many as pay


class ModelSection(_Section, frozen=True, kw_only=True):
    checkpoint: str
    pooling: Literal["mean", "pooler"] = "mean"
    trainable: Literal["full", "lora", "head"] = "head"
    lora_rank: int = 8
    lora_alpha: float = 16.0
    lora_targets: tuple[Literal["query", "key", "value", "output"], ...] = ("query", "value")
    vocabulary: str = ""
    lower_case: bool | None = None
    hidden_size: int = 64
    num_hidden_layers: int = 2
    num_attention_heads: int = 2
    intermediate_size: int = 128


class TrainingSection(_Section, frozen=True, kw_only=True):
    rounds: int
    clients_per_round: float
    local_epochs: int = 1
    batch_size: int = 16
    algorithm: Literal["fedavg", "fedprox"] = "fedavg"
    proximal_strength: float | None = None
    weighting: Literal["uniform", "examples"] = "uniform"
    client_optimizer: Literal["sgd", "adam"] = "sgd"
    client_learning_rate: float = 0.1
    server_optimizer: Literal["sgd", "adam"] = "sgd"
    server_learning_rate: float = 1.0
    server_momentum: float = 0.9
    keep_states: int = 3


class PrivacySection(_Section, frozen=True, kw_only=True):
    mechanism: Literal["gaussian", "distributed_discrete_gaussian", "tree", "none"]
    unit: Literal["client", "silo"] = "client"
    clip_norm: float | None = None
    clipping: Literal["fixed", "adaptive"] = "fixed"
    clip_quantile: float | None = None
    clip_count_stddev: float | None = None
    noise_multiplier: float | None = None
    target_epsilon: float | None = None
    delta: float | None = None
    allow_large_delta: bool = False
    tolerated_silos: int | None = None
    population: str = ""
    budget_epsilon: float | None = None
    metrics: Literal["withheld", "released", "noised"] = "withheld"
    metrics_stddev: float | None = None


class SecureSumSection(_Section, frozen=True, kw_only=True):
    bits: Literal[16, 32] = 32


class RuntimeSection(_Section, frozen=True, kw_only=True):
    kind: Literal["local", "reference"] = "local"
    devices: str | tuple[str, ...] = "auto"
    clients_in_parallel: int = 0


class ExportSection(_Section, frozen=True, kw_only=True):
    name: str = ""
    base_path: str = ""
    examples: tuple[str, ...] = ()
    warmup_batch_sizes: tuple[int, ...] = (1, 8, 32)
    intended_use: str = ""
    explain_steps: int = 50
    weights: Literal["float32", "float16", "int8"] = "float32"


class GatesSection(_Section, frozen=True, kw_only=True):
    min_accuracy: float | None = None
    max_drop: float | None = None
    max_worst_silo_drop: float | None = None
    other_data: Literal["refuse", "compare"] = "refuse"
    max_changed: float | None = None
    texts: str = ""


class Config(_Section, frozen=True, kw_only=True):
    """A whole configuration, checked. `path` is the file it came from."""

    path: str
    pipeline: PipelineSection
    silos: tuple[SiloSection, ...]
    model: ModelSection
    training: TrainingSection
    privacy: PrivacySection
    task: TaskSection = TaskSection()
    prepare: PrepareSection = PrepareSection()
    secure_sum: SecureSumSection = SecureSumSection()
    runtime: RuntimeSection = RuntimeSection()
    export: ExportSection = ExportSection()
    gates: GatesSection = GatesSection()

    @property
    def workdir(self) -> Path:
        return Path(self.pipeline.workdir)

    @property
    def population(self) -> str:
        """The name under which the clients' privacy budget is kept."""
        return self.privacy.population or self.pipeline.name

    @property
    def tolerated_silos(self) -> int:
        """How many silos' shares of the noise the guarantee does without, where silos add shares."""
        if self.privacy.mechanism != "distributed_discrete_gaussian":
            return 0
        given = self.privacy.tolerated_silos
        return min(1, len(self.silos) - 1) if given is None else given

    @property
    def model_name(self) -> str:
        return self.export.name or self.pipeline.name

    def silo(self, name: str) -> SiloSection:
        for silo in self.silos:
            if silo.name == name:
                return silo
        known = ", ".join(silo.name for silo in self.silos)
        raise ConfigError(f"{self.path}: there is no silo {name!r}; the file names {known}.")


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads `path`, applies `--set` overrides ("section.key=value", value in TOML or a bare word), checks everything.

    Raises:
      ConfigError: naming the file and key, what was found, what was expected and what to do.
    """
    path = Path(path)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file. --config takes a TOML file; configs/quickstart.toml is one to start from."
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror or type(error).__name__}). Check that it is a file and that this account may read it."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}.") from None
    for override in overrides:
        _override(raw, override)
    raw["path"] = str(path)
    config = _convert(raw, path)
    _check(config)
    return _absolute(config, path.resolve().parent)


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    remove = not text.strip()
    if not equals or not key.strip():
        raise ConfigError(f"--set {override!r}: expected section.key=value, as in --set training.rounds=5.")
    try:
        value = None if remove else tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    *parents, last = key.strip().split(".")
    place: Any = raw
    for parent in parents:
        if isinstance(place, list):
            if not parent.isdigit() or int(parent) >= len(place):
                raise ConfigError(
                    f"--set {override!r}: {parent!r} is not an index below {len(place)}, as in silos.0.input."
                )
            place = place[int(parent)]
        else:
            place = place.setdefault(parent, {})
        if not isinstance(place, dict | list):
            raise ConfigError(f"--set {override!r}: {parent!r} is a value, not a section.")
    if not isinstance(place, dict):
        raise ConfigError(f"--set {override!r}: expected an index and a key, as in silos.0.input.")
    if remove:
        place.pop(last, None)
    else:
        place[last] = value


def _convert(raw: Mapping[str, Any], path: Path) -> Config:
    try:
        return msgspec.convert(raw, Config)
    except msgspec.ValidationError as error:
        message = str(error)
        where = match.group(1) if (match := re.search(r"at `\$\.?(.*?)`$", message)) else ""
        message = re.sub(r" - at `\$.*`$", "", message)
        hint = ""
        if match := re.search(r"unknown field `(.*?)`", message):
            unknown, known = match.group(1), _known_keys(where)
            near = difflib.get_close_matches(unknown, known, n=1)
            hint = f" Did you mean `{near[0]}`?" if near else f" Known keys there: {', '.join(known)}."
            message = f"there is no key `{unknown}`" + (f" in [{where}]" if where else "")
        elif where:
            message = f"{where}: {message[:1].lower()}{message[1:]}"
        else:
            message = message[:1].lower() + message[1:]
        raise ConfigError(f"{path}: {message}.{hint} configs/README.md explains every key.") from None


def _known_keys(where: str) -> list[str]:
    section: Any = Config
    for part in filter(None, re.split(r"[.\[]", where)):
        if part.rstrip("]").isdigit() or part == "...]":
            continue
        hints = {field.name: field.type for field in msgspec.structs.fields(section)}
        found = hints.get(part, Config)
        section = SiloSection if part == "silos" else found
        if not (isinstance(section, type) and issubclass(section, msgspec.Struct)):
            return []
    return [field.name for field in msgspec.structs.fields(section) if field.name != "path"]


def _check(config: Config) -> None:
    """Everything the types cannot say."""

    def require(condition: bool, key: str, found: object, expected: str) -> None:
        if not condition:
            raise ConfigError(f"{config.path}: {key} is {found!r}; expected {expected}.")

    name = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
    for key, value in (
        ("pipeline.name", config.pipeline.name),
        ("privacy.population", config.population),
        ("export.name", config.model_name),
    ):
        require(bool(name.fullmatch(value)), key, value, "letters, digits, '.', '_' and '-', since it names a folder")
    require(bool(config.silos), "silos", [], "at least one [[silos]] table")
    names = [silo.name for silo in config.silos]
    for index, silo in enumerate(config.silos):
        require(
            bool(name.fullmatch(silo.name)),
            f"silos[{index}].name",
            silo.name,
            "letters, digits, '.', '_' and '-', since it names a folder",
        )
        require(
            names.count(silo.name) == 1, f"silos[{index}].name", silo.name, "a name of its own: another silo has it too"
        )
        for split in silo.inputs_by_split:
            require(
                split in ("", *SPLITS),
                f"silos[{index}].input",
                split,
                f"a glob, or globs by split with the keys {', '.join(SPLITS)}",
            )
        require(
            (silo.format == "conll") == (config.task.kind == "token_classification"),
            f"silos[{index}].format",
            silo.format,
            "conll for task.kind = token_classification, and only there",
        )

    prepare, training, model = config.prepare, config.training, config.model
    require(8 <= prepare.max_length <= 512, "prepare.max_length", prepare.max_length, "8 to 512 tokens")
    require(
        prepare.max_examples_per_client >= 1,
        "prepare.max_examples_per_client",
        prepare.max_examples_per_client,
        "at least 1",
    )
    require(prepare.shards >= 1, "prepare.shards", prepare.shards, "at least 1")
    require(
        prepare.workers >= 0,
        "prepare.workers",
        prepare.workers,
        "at least 1 process that reads and writes a silo, or 0: as many as pay",
    )
    require(
        0 <= prepare.max_reject_share <= 1,
        "prepare.max_reject_share",
        prepare.max_reject_share,
        "a share between 0 and 1",
    )
    require(
        1024 <= prepare.max_row_bytes <= 2**30,
        "prepare.max_row_bytes",
        prepare.max_row_bytes,
        "1,024 bytes to 1,073,741,824 (1 GiB): what one row may take, and memory grows with",
    )
    require(
        prepare.max_labels >= 2,
        "prepare.max_labels",
        prepare.max_labels,
        "at least 2 different labels",
    )
    require(
        set(prepare.splits) <= set(SPLITS)
        and prepare.splits.get("train", 0) > 0
        and abs(sum(prepare.splits.values()) - 1) < 1e-9
        and min(prepare.splits.values()) >= 0,
        "prepare.splits",
        prepare.splits,
        f"shares of {', '.join(SPLITS)} that add up to 1, with some for train",
    )
    require(training.rounds >= 1, "training.rounds", training.rounds, "at least 1")
    require(
        training.clients_per_round > 0,
        "training.clients_per_round",
        training.clients_per_round,
        "above 0: the expected number of clients in a round",
    )
    require(training.local_epochs >= 1, "training.local_epochs", training.local_epochs, "at least 1")
    require(training.batch_size >= 1, "training.batch_size", training.batch_size, "at least 1")
    require(training.keep_states >= 1, "training.keep_states", training.keep_states, "at least 1")
    for key in ("client_learning_rate", "server_learning_rate"):
        rate = getattr(training, key)
        require(0 < rate <= 1e6, f"training.{key}", rate, "above 0 and at most 1e6, which float32 holds")
    require(
        0 <= training.server_momentum < 1,
        "training.server_momentum",
        training.server_momentum,
        "at least 0 and below 1",
    )
    require(
        (training.algorithm == "fedprox") == (training.proximal_strength is not None)
        and (training.proximal_strength or 1) > 0,
        "training.proximal_strength",
        training.proximal_strength,
        'a number above 0 with algorithm = "fedprox", and nothing with "fedavg"',
    )
    require(model.lora_rank >= 1, "model.lora_rank", model.lora_rank, "at least 1")
    require(model.lora_alpha > 0, "model.lora_alpha", model.lora_alpha, "above 0")
    require(
        bool(model.lora_targets), "model.lora_targets", model.lora_targets, "at least one of query, key, value, output"
    )
    if model.checkpoint == "random":
        require(
            bool(model.vocabulary),
            "model.vocabulary",
            model.vocabulary,
            'a vocabulary file (one wordpiece a line) with checkpoint = "random"',
        )
        require(
            model.hidden_size % model.num_attention_heads == 0,
            "model.hidden_size",
            model.hidden_size,
            "a multiple of model.num_attention_heads",
        )
    require(
        config.runtime.clients_in_parallel >= 0,
        "runtime.clients_in_parallel",
        config.runtime.clients_in_parallel,
        "0 (as many as fit the machine) or more",
    )
    sizes = config.export.warmup_batch_sizes
    require(
        0 < len(sizes) <= 16 and len(set(sizes)) == len(sizes) and all(1 <= size <= 1024 for size in sizes),
        "export.warmup_batch_sizes",
        list(sizes),
        "one to sixteen different batch sizes of 1 to 1024, as the server is asked",
    )
    require(
        0 <= config.export.explain_steps <= 1000,
        "export.explain_steps",
        config.export.explain_steps,
        "steps of 1 to 1000, or 0 for a version without the signature explain",
    )
    for key in ("min_accuracy", "max_drop", "max_worst_silo_drop", "max_changed"):
        value = getattr(config.gates, key)
        require(value is None or 0 <= value <= 1, f"gates.{key}", value, "a share between 0 and 1")
    require(
        (config.gates.max_changed is None) == (not config.gates.texts),
        "gates.texts",
        config.gates.texts,
        "a file with a text a line together with gates.max_changed, which compares two versions' labels of them; else nothing",
    )
    devices = config.runtime.devices
    require(
        devices in ("auto", "CPU")
        or (
            not isinstance(devices, str)
            and len(devices) > 0
            and all(re.fullmatch(r"(GPU|CPU):\d+", device) for device in devices)
        ),
        "runtime.devices",
        devices,
        '"auto", "CPU" or a list such as ["GPU:0"]',
    )
    _check_privacy(config, require)


def _check_privacy(config: Config, require: Any) -> None:
    privacy = config.privacy
    for index, silo in enumerate(config.silos):
        require(
            silo.budget_epsilon is None or (silo.budget_epsilon > 0 and privacy.mechanism != "none"),
            f"silos[{index}].budget_epsilon",
            silo.budget_epsilon,
            'a number above 0, and nothing with mechanism = "none", which would pass any',
        )
    shares = privacy.mechanism == "distributed_discrete_gaussian"
    require(
        privacy.tolerated_silos is None or (shares and 0 <= privacy.tolerated_silos < len(config.silos)),
        "privacy.tolerated_silos",
        privacy.tolerated_silos,
        f'0 to {len(config.silos) - 1} (one silo at least has to be honest), and nothing with another mechanism than "distributed_discrete_gaussian"',
    )
    require(
        shares or config.secure_sum.bits == 32,
        "secure_sum.bits",
        config.secure_sum.bits,
        '32 with another mechanism than "distributed_discrete_gaussian"',
    )
    adaptive = privacy.clipping == "adaptive"
    require(
        not adaptive or privacy.mechanism == "gaussian",
        "privacy.clipping",
        privacy.clipping,
        '"fixed" with another mechanism than "gaussian"',
    )
    require(
        privacy.clip_quantile is None or (adaptive and 0 < privacy.clip_quantile < 1),
        "privacy.clip_quantile",
        privacy.clip_quantile,
        'a share between 0 and 1 with clipping = "adaptive", and nothing with "fixed"',
    )
    require(
        privacy.clip_count_stddev is None or (adaptive and privacy.clip_count_stddev > 0),
        "privacy.clip_count_stddev",
        privacy.clip_count_stddev,
        'a number of clients above 0 with clipping = "adaptive", and nothing with "fixed"',
    )
    require(
        not shares or privacy.metrics == "withheld",
        "privacy.metrics",
        privacy.metrics,
        '"withheld" with "distributed_discrete_gaussian": there nothing leaves a silo but its noised sum, so that there are no metrics to release',
    )
    noised = privacy.metrics == "noised"
    require(
        not noised or privacy.mechanism == "gaussian",
        "privacy.metrics",
        privacy.metrics,
        '"withheld" or "released" with another mechanism than "gaussian"',
    )
    require(
        privacy.metrics_stddev is None or (noised and privacy.metrics_stddev > 0),
        "privacy.metrics_stddev",
        privacy.metrics_stddev,
        'a number of clients above 0 with metrics = "noised", and nothing else',
    )
    numbers = {
        key: getattr(privacy, key)
        for key in ("clip_norm", "noise_multiplier", "target_epsilon", "delta", "budget_epsilon")
    }
    if privacy.mechanism == "none":
        require(
            not privacy.allow_large_delta,
            "privacy.allow_large_delta",
            privacy.allow_large_delta,
            'false with mechanism = "none", which has no delta',
        )
        for key, value in numbers.items():
            require(
                value is None or key == "clip_norm",
                f"privacy.{key}",
                value,
                'nothing with mechanism = "none", which promises nothing',
            )
        return
    for key in ("clip_norm", "delta"):
        require(
            numbers[key] is not None,
            f"privacy.{key}",
            numbers[key],
            f'a number with mechanism = "{privacy.mechanism}". For a run without privacy, write mechanism = "none"',
        )
    for key, value in numbers.items():
        require(value is None or value > 0, f"privacy.{key}", value, "a number above 0")
    require(
        privacy.delta is None or privacy.delta < 1,
        "privacy.delta",
        privacy.delta,
        "below 1, and below one in the number of clients",
    )
    require(
        (privacy.noise_multiplier is None) != (privacy.target_epsilon is None),
        "privacy.noise_multiplier",
        privacy.noise_multiplier,
        "exactly one of privacy.noise_multiplier and privacy.target_epsilon",
    )
    require(
        config.training.weighting == "uniform",
        "training.weighting",
        config.training.weighting,
        '"uniform" with privacy on: a weight is something a client can change beyond its clip',
    )


def _absolute(config: Config, base: Path) -> Config:
    """Makes every path in the configuration absolute; addresses with a scheme (gs://, s3://) stay as they are."""

    def path(value: str) -> str:
        return value if not value or "://" in value else os.path.normpath(base / Path(value).expanduser())

    def globs(value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        return path(value) if isinstance(value, str) else tuple(map(path, value))

    def silo_input(value: Any) -> Any:
        return {split: globs(each) for split, each in value.items()} if isinstance(value, dict) else globs(value)

    replace = msgspec.structs.replace
    labels, checkpoint = config.task.labels, config.model.checkpoint
    if isinstance(labels, str) and labels != "auto":
        labels = path(labels)
    if checkpoint.startswith(("./", "../", "/", "~")) or (base / checkpoint).is_dir():
        checkpoint = path(checkpoint)
    return replace(
        config,
        path=str(Path(config.path).resolve()),
        pipeline=replace(config.pipeline, workdir=path(config.pipeline.workdir)),
        task=replace(config.task, labels=labels),
        silos=tuple(replace(silo, input=silo_input(silo.input)) for silo in config.silos),
        model=replace(config.model, checkpoint=checkpoint, vocabulary=path(config.model.vocabulary)),
        export=replace(config.export, base_path=path(config.export.base_path)),
        gates=replace(config.gates, texts=path(config.gates.texts)),
    )


def known_labels(config: Config) -> tuple[str, ...] | None:
    """The labels the configuration lists (in place or in a file, one a line), or None for "auto".

    Raises:
      ConfigError: if the file cannot be read, or a label is empty or listed twice.

    Labels are stripped, and composed as Unicode's NFC has them, as prepare does with those of the rows.
    """
    labels = config.task.labels
    if labels == "auto":
        return None
    if isinstance(labels, str):
        try:
            labels = tuple(
                line.strip() for line in Path(labels).read_text(encoding="utf-8").splitlines() if line.strip()
            )
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f'{config.path}: task.labels names {labels!r}, which cannot be read ({type(error).__name__}); expected "auto", a list, or a file with one label a line.'
            ) from None
    labels = tuple(unicodedata.normalize("NFC", label.strip()) for label in labels)
    if not labels or len(set(labels)) != len(labels) or not all(labels):
        raise ConfigError(
            f"{config.path}: task.labels holds {len(labels)} labels, {len(set(labels))} of them different; expected at least one, none empty, none twice."
        )
    return labels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--config, --set and --json, which every command takes."""
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="the configuration, a TOML file; configs/README.md explains every key",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one key, as in training.rounds=5, or leave it out, as in privacy.delta=; may be given several times",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
