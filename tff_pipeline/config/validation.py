"""What the types of schema.py cannot say: keys that depend on each other.

A validator for each section, then those that look at several. Each yields what is wrong; the first problem is raised.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tff_pipeline.config.schema import (
    SPLITS,
    Config,
    ExportSection,
    GatesSection,
    ModelSection,
    PrepareSection,
    PrivacySection,
    SiloSection,
    TrainingSection,
    expected,
)
from tff_pipeline.errors import ConfigError


class Problem(NamedTuple):
    """A key, its value, and what was expected there."""

    key: str
    value: object
    expected: str


def check(config: Config) -> None:
    """Refuses combinations that make no sense.

    Raises:
      ConfigError: naming the file and key, what was found and what was expected.
    """
    problems = itertools.chain(
        _silos(config.silos),
        _prepare(config.prepare),
        _training(config.training),
        _model(config.model),
        _export(config.export),
        _gates(config.gates),
        _clipping(config.privacy),
        _metrics(config.privacy),
        _numbers(config.privacy),
        _formats(config),
        _silo_budgets(config),
        _secure_sum(config),
        _weighting(config),
    )
    for problem in problems:
        raise ConfigError(
            f"{config.path}: {problem.key} is {problem.value!r}; expected {problem.expected}. configs/README.md explains every key."
        )


def _silos(silos: Sequence[SiloSection]) -> Iterator[Problem]:
    if not silos:
        yield Problem("silos", [], "at least one [[silos]] table")
    names = [silo.name for silo in silos]
    for index, silo in enumerate(silos):
        if names.count(silo.name) > 1:
            yield Problem(f"silos[{index}].name", silo.name, "a name of its own: another silo has it too")
        for split in silo.inputs_by_split:
            if split not in ("", *SPLITS):
                yield Problem(
                    f"silos[{index}].input", split, f"a glob, or globs by split with the keys {', '.join(SPLITS)}"
                )


def _prepare(prepare: PrepareSection) -> Iterator[Problem]:
    fractions = prepare.splits
    known = set(fractions) <= set(SPLITS)
    complete = abs(sum(fractions.values()) - 1) < 1e-9
    if not (known and complete and fractions.get("train", 0) > 0 and min(fractions.values()) >= 0):
        yield Problem(
            "prepare.splits", fractions, f"fractions for {', '.join(SPLITS)} that add up to 1, above 0 for train"
        )


def _training(training: TrainingSection) -> Iterator[Problem]:
    if (training.algorithm == "fedprox") != (training.proximal_strength is not None):
        yield Problem(
            "training.proximal_strength", training.proximal_strength, expected(TrainingSection, "proximal_strength")
        )


def _model(model: ModelSection) -> Iterator[Problem]:
    if model.checkpoint != "random":
        return
    if not model.vocabulary:
        yield Problem(
            "model.vocabulary",
            model.vocabulary,
            'a vocabulary file (one wordpiece a line) with checkpoint = "random"',
        )
    if model.hidden_size % model.num_attention_heads:
        yield Problem("model.hidden_size", model.hidden_size, "a multiple of model.num_attention_heads")


def _export(export: ExportSection) -> Iterator[Problem]:
    sizes = export.warmup_batch_sizes
    if len(set(sizes)) < len(sizes):
        yield Problem("export.warmup_batch_sizes", list(sizes), expected(ExportSection, "warmup_batch_sizes"))


def _gates(gates: GatesSection) -> Iterator[Problem]:
    if (gates.max_changed is None) != (not gates.texts):
        yield Problem(
            "gates.texts",
            gates.texts,
            "a file with a text a line together with gates.max_changed, which compares two versions' labels of them; else nothing",
        )


def _clipping(privacy: PrivacySection) -> Iterator[Problem]:
    adaptive = privacy.clipping == "adaptive"
    if adaptive and privacy.mechanism != "gaussian":
        yield Problem("privacy.clipping", privacy.clipping, '"fixed" with another mechanism than "gaussian"')
    for key, value in (
        ("clip_quantile", privacy.clip_quantile),
        ("clip_count_stddev", privacy.clip_count_stddev),
    ):
        if value is not None and not adaptive:
            yield Problem(f"privacy.{key}", value, expected(PrivacySection, key))


def _metrics(privacy: PrivacySection) -> Iterator[Problem]:
    metrics = privacy.metrics
    if metrics != "withheld" and privacy.mechanism == "distributed_discrete_gaussian":
        yield Problem(
            "privacy.metrics",
            metrics,
            '"withheld" with "distributed_discrete_gaussian": there nothing leaves a silo but its noised sum, so that there are no metrics to release',
        )
    if metrics == "noised" and privacy.mechanism != "gaussian":
        yield Problem("privacy.metrics", metrics, '"withheld" or "released" with another mechanism than "gaussian"')
    if privacy.metrics_stddev is not None and metrics != "noised":
        yield Problem("privacy.metrics_stddev", privacy.metrics_stddev, expected(PrivacySection, "metrics_stddev"))


def _numbers(privacy: PrivacySection) -> Iterator[Problem]:
    """The numbers of the guarantee: all of them with a mechanism, none without one."""
    noise = {"noise_multiplier": privacy.noise_multiplier, "target_epsilon": privacy.target_epsilon}
    if privacy.mechanism == "none":
        if privacy.allow_large_delta:
            yield Problem("privacy.allow_large_delta", True, 'false with mechanism = "none", which has no delta')
        for key, value in (noise | {"delta": privacy.delta, "budget_epsilon": privacy.budget_epsilon}).items():
            if value is not None:
                yield Problem(f"privacy.{key}", value, 'nothing with mechanism = "none", which promises nothing')
        return
    for key, value in (("clip_norm", privacy.clip_norm), ("delta", privacy.delta)):
        if value is None:
            yield Problem(
                f"privacy.{key}",
                value,
                f'a number with mechanism = "{privacy.mechanism}". For a run without privacy, write mechanism = "none"',
            )
    if sum(value is not None for value in noise.values()) != 1:
        yield Problem(
            "privacy.noise_multiplier",
            privacy.noise_multiplier,
            "exactly one of privacy.noise_multiplier and privacy.target_epsilon",
        )


def _formats(config: Config) -> Iterator[Problem]:
    for index, silo in enumerate(config.silos):
        if (silo.format == "conll") != (config.task.kind == "token_classification"):
            yield Problem(
                f"silos[{index}].format", silo.format, "conll for task.kind = token_classification, and only there"
            )


def _silo_budgets(config: Config) -> Iterator[Problem]:
    for index, silo in enumerate(config.silos):
        if silo.budget_epsilon is not None and config.privacy.mechanism == "none":
            yield Problem(
                f"silos[{index}].budget_epsilon", silo.budget_epsilon, expected(SiloSection, "budget_epsilon")
            )


def _secure_sum(config: Config) -> Iterator[Problem]:
    """What only silos that add noise shares have: silos that may be curious, and a small ring."""
    noise_shares = config.privacy.mechanism == "distributed_discrete_gaussian"
    tolerated, most = config.privacy.tolerated_silos, len(config.silos) - 1
    if tolerated is not None and not (noise_shares and 0 <= tolerated <= most):
        yield Problem(
            "privacy.tolerated_silos",
            tolerated,
            f'0 to {most} (one silo at least has to be honest), and nothing with another mechanism than "distributed_discrete_gaussian"',
        )
    if config.secure_sum.bits != 32 and not noise_shares:
        yield Problem(
            "secure_sum.bits", config.secure_sum.bits, '32 with another mechanism than "distributed_discrete_gaussian"'
        )


def _weighting(config: Config) -> Iterator[Problem]:
    if config.training.weighting != "uniform" and config.privacy.mechanism != "none":
        yield Problem(
            "training.weighting",
            config.training.weighting,
            '"uniform" with privacy on: a weight is something a client can change beyond its clip',
        )
