"""The types of the configuration file: a frozen type for each section, with every key, its default and its bounds.

A bound of one key stands in its type as `Meta`, whose `description` is what an error says was expected. What depends on
several keys is in validation.py.
"""

from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

from tff_pipeline.errors import ConfigError

SPLITS = ("train", "validation", "test")

_NAME_WORDS = "letters, digits, '.', '_' and '-', since it names a folder"
Name = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]*\Z", description=_NAME_WORDS)]
NameOrEmpty = Annotated[str, Meta(pattern=r"\A([A-Za-z0-9][A-Za-z0-9._-]*)?\Z", description=_NAME_WORDS)]
AtLeastOne = Annotated[int, Meta(ge=1, description="at least 1")]
Positive = Annotated[float, Meta(gt=0, description="a number above 0")]
Fraction = Annotated[float, Meta(ge=0, le=1, description="a fraction between 0 and 1")]
LearningRate = Annotated[
    float, Meta(gt=0, le=1e6, description="a number above 0 and at most 1e6, which float32 represents")
]
BatchSizes = Annotated[
    tuple[Annotated[int, Meta(ge=1, le=1024)], ...],
    Meta(
        min_length=1,
        max_length=16,
        description="one to sixteen different batch sizes of 1 to 1024, as the server is asked",
    ),
]
Devices = Annotated[
    Literal["auto", "CPU"]
    | Annotated[tuple[Annotated[str, Meta(pattern=r"\A(GPU|CPU):\d+\Z")], ...], Meta(min_length=1)],
    Meta(description='"auto", "CPU" or a list such as ["GPU:0"]'),
]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class PipelineSection(_Section, frozen=True, kw_only=True):
    name: Name
    workdir: str = "workdir"
    seed: int | None = None


class TaskSection(_Section, frozen=True, kw_only=True):
    kind: Literal["sequence_classification", "token_classification"] = "sequence_classification"
    labels: str | tuple[str, ...] = "auto"


class SiloSection(_Section, frozen=True, kw_only=True):
    name: Name
    input: str | tuple[str, ...] | dict[str, str | tuple[str, ...]]
    format: Literal["csv", "tsv", "jsonl", "parquet", "conll"]
    text: str = "text"
    label: str = "label"
    client: str = ""
    group: str = ""
    columns: tuple[str, ...] = ()
    quoting: bool = True
    budget_epsilon: (
        Annotated[
            float,
            Meta(gt=0, description='a number above 0, and nothing with mechanism = "none", which would exceed any'),
        ]
        | None
    ) = None

    @property
    def inputs_by_split(self) -> dict[str, tuple[str, ...]]:
        """Glob patterns by split; the key "" means that clients are split by the hash of their id."""
        by_split = self.input if isinstance(self.input, dict) else {"": self.input}
        return {split: (globs,) if isinstance(globs, str) else tuple(globs) for split, globs in by_split.items()}


class PrepareSection(_Section, frozen=True, kw_only=True):
    max_length: Annotated[int, Meta(ge=8, le=512, description="8 to 512 tokens")] = 128
    max_examples_per_client: AtLeastOne = 100
    splits: dict[str, float] = msgspec.field(default_factory=lambda: {"train": 0.8, "validation": 0.1, "test": 0.1})
    max_reject_share: Fraction = 0.05
    max_row_bytes: Annotated[
        int,
        Meta(
            ge=1024,
            le=2**30,
            description="1,024 to 1,073,741,824 bytes (1 GiB), the largest row that is read: memory grows with it",
        ),
    ] = 4 * 2**20
    max_labels: Annotated[int, Meta(ge=2, description="at least 2 different labels")] = 1000
    shards: AtLeastOne = 1
    workers: Annotated[
        int,
        Meta(
            ge=0,
            description="at least 1 process that reads and writes a silo, or 0 for as many as make preparation faster",
        ),
    ] = 0


class ModelSection(_Section, frozen=True, kw_only=True):
    checkpoint: str
    pooling: Literal["mean", "pooler"] = "mean"
    trainable: Literal["full", "lora", "head"] = "head"
    lora_rank: AtLeastOne = 8
    lora_alpha: Positive = 16.0
    lora_targets: Annotated[
        tuple[Literal["query", "key", "value", "output"], ...],
        Meta(min_length=1, description="at least one of query, key, value, output"),
    ] = ("query", "value")
    vocabulary: str = ""
    lower_case: bool | None = None
    hidden_size: AtLeastOne = 64
    num_hidden_layers: AtLeastOne = 2
    num_attention_heads: AtLeastOne = 2
    intermediate_size: AtLeastOne = 128


class TrainingSection(_Section, frozen=True, kw_only=True):
    rounds: AtLeastOne
    clients_per_round: Annotated[
        float, Meta(gt=0, description="a number above 0: the expected number of clients in a round")
    ]
    local_epochs: AtLeastOne = 1
    batch_size: AtLeastOne = 16
    algorithm: Literal["fedavg", "fedprox"] = "fedavg"
    proximal_strength: (
        Annotated[
            float, Meta(gt=0, description='a number above 0 with algorithm = "fedprox", and nothing with "fedavg"')
        ]
        | None
    ) = None
    weighting: Literal["uniform", "examples"] = "uniform"
    client_optimizer: Literal["sgd", "adam"] = "sgd"
    client_learning_rate: LearningRate = 0.1
    server_optimizer: Literal["sgd", "adam"] = "sgd"
    server_learning_rate: LearningRate = 1.0
    server_momentum: Annotated[float, Meta(ge=0, lt=1, description="at least 0 and below 1")] = 0.9
    keep_states: AtLeastOne = 3


class PrivacySection(_Section, frozen=True, kw_only=True):
    mechanism: Literal["gaussian", "distributed_discrete_gaussian", "tree", "none"]
    unit: Literal["client", "silo"] = "client"
    clip_norm: Positive | None = None
    clipping: Literal["fixed", "adaptive"] = "fixed"
    clip_quantile: (
        Annotated[
            float,
            Meta(
                gt=0,
                lt=1,
                description='a fraction between 0 and 1 with clipping = "adaptive", and nothing with "fixed"',
            ),
        ]
        | None
    ) = None
    clip_count_stddev: (
        Annotated[
            float,
            Meta(
                gt=0,
                description='a number of clients above 0 with clipping = "adaptive", and nothing with "fixed"',
            ),
        ]
        | None
    ) = None
    noise_multiplier: Positive | None = None
    target_epsilon: Positive | None = None
    delta: (
        Annotated[
            float,
            Meta(gt=0, lt=1, description="a number above 0 and below 1, and below one in the number of clients"),
        ]
        | None
    ) = None
    allow_large_delta: bool = False
    tolerated_silos: int | None = None
    population: NameOrEmpty = ""
    budget_epsilon: Positive | None = None
    metrics: Literal["withheld", "released", "noised"] = "withheld"
    metrics_stddev: (
        Annotated[
            float,
            Meta(
                gt=0,
                description='a number of clients above 0 with metrics = "noised", and nothing with other metrics',
            ),
        ]
        | None
    ) = None


class SecureSumSection(_Section, frozen=True, kw_only=True):
    bits: Literal[16, 32] = 32


class RuntimeSection(_Section, frozen=True, kw_only=True):
    kind: Literal["local", "reference", "network"] = "local"
    devices: Devices = "auto"
    clients_in_parallel: Annotated[int, Meta(ge=0, description="0 (as many as fit the machine) or more")] = 0


class ExportSection(_Section, frozen=True, kw_only=True):
    name: NameOrEmpty = ""
    base_path: str = ""
    examples: tuple[str, ...] = ()
    warmup_batch_sizes: BatchSizes = (1, 8, 32)
    intended_use: str = ""
    explain_steps: Annotated[
        int, Meta(ge=0, le=1000, description="1 to 1000 steps, or 0 for a version without the signature explain")
    ] = 50
    weights: Literal["float32", "float16", "int8"] = "float32"


class GatesSection(_Section, frozen=True, kw_only=True):
    min_accuracy: Fraction | None = None
    max_drop: Fraction | None = None
    max_worst_silo_drop: Fraction | None = None
    other_data: Literal["refuse", "compare"] = "refuse"
    max_changed: Fraction | None = None
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
        """Number of silos whose noise shares the guarantee does not count on; 0 where the silos add none."""
        if self.privacy.mechanism != "distributed_discrete_gaussian":
            return 0
        tolerated = self.privacy.tolerated_silos
        return min(1, len(self.silos) - 1) if tolerated is None else tolerated

    @property
    def model_name(self) -> str:
        return self.export.name or self.pipeline.name

    def silo(self, name: str) -> SiloSection:
        """The section of a silo.

        Raises:
          ConfigError: if the configuration names no such silo.
        """
        for silo in self.silos:
            if silo.name == name:
                return silo
        known = ", ".join(silo.name for silo in self.silos)
        raise ConfigError(
            f"{self.path}: there is no silo {name!r}; the file names {known}. Name one of these, or add a [[silos]] table for it."
        )


def description(kind: object) -> str:
    """What the type of a key says was expected, in words; "" where it says nothing.

    >>> description(GatesSection.__annotations__["max_drop"])
    'a fraction between 0 and 1'
    """
    for meta in getattr(kind, "__metadata__", ()):
        if isinstance(meta, Meta) and meta.description:
            return meta.description
    return next(filter(None, map(description, get_args(kind))), "")


def expected(section: type[msgspec.Struct], key: str) -> str:
    """What was expected of a key of `section`, in words."""
    return next(description(field.type) for field in msgspec.structs.fields(section) if field.name == key)
