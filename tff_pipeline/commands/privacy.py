"""`tff-pipeline privacy`: what a configuration promises, in sentences, and what its population has been charged."""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tff_pipeline import config as configuration
from tff_pipeline.artifacts import write_atomic
from tff_pipeline.config import Config
from tff_pipeline.errors import ArtifactError, ConfigError
from tff_pipeline.privacy import charges as account
from tff_pipeline.privacy.ledger import Ledger
from tff_pipeline.privacy.plan import PrivacyPlan, make
from tff_pipeline.privacy.statement import sentences
from tff_pipeline.rounding import rounded_up

_HEAD = 2**14  # weights that are planned for where the labels are not known yet


def plan_of(config: Config) -> PrivacyPlan:
    """The plan of a configuration whose silos are prepared.

    Raises:
      ArtifactError: naming the silo that is not.
    """
    from tff_pipeline.model.network import network_of
    from tff_pipeline.training.job import job

    work = job(config)
    network = network_of(config.model, work.tokenizer, labels=len(work.labels), task=config.task.kind)
    trained = network.trained_variables(config.model.trainable)
    return make(config, clients=work.units, dimension=sum(variable.numpy().size for variable in trained))


def main(argv: Sequence[str] | None = None) -> int:
    """`tff-pipeline privacy`."""
    parser = argparse.ArgumentParser(
        prog="tff-pipeline privacy",
        description="The guarantee of a configuration in sentences. It depends on how many clients there are: prepare the silos first, or say it with --clients.",
    )
    configuration.add_arguments(parser)
    parser.add_argument(
        "--clients", type=int, metavar="N", help="plan for N training clients, without looking at prepared data"
    )
    parser.add_argument("--plot", metavar="FILE", help="draw epsilon against rounds and against noise, as an SVG file")
    arguments = parser.parse_args(argv)
    config = configuration.load(arguments.config, arguments.set)
    if arguments.clients is not None and config.privacy.unit == "silo":
        raise ConfigError(
            f'--clients {arguments.clients}: with privacy.unit = "silo" there are as many as [[silos]] tables; expected no --clients.'
        )
    if arguments.clients is not None and arguments.clients < 1:
        raise ConfigError(f"--clients {arguments.clients}: expected the number of training clients, at least 1.")

    plan, missing = _plan(config, arguments.clients)
    if arguments.plot and plan is None:
        raise ArtifactError(
            f"--plot needs the number of training clients, and {missing[0]} Or say how many there will be with --clients N."
        )
    epsilon = plan.epsilon() if plan else math.inf
    if arguments.plot and plan:
        from tff_pipeline.commands.plot import svg

        write_atomic(Path(arguments.plot), svg(plan, epsilon).encode())
    population, _ = account.ledgers(config)[0]
    charged, spent = len(population.entries()), account.spent(population, config.privacy.delta)
    problems = [problem.text for problem in account.compared(config).problems]
    said = [] if plan is None else _said(config, plan)
    if arguments.json:
        numbers = _numbers(config, plan, epsilon, missing, said, population, charged, spent)
        numbers["ledger"]["problems"] = problems
        print(json.dumps(numbers))
        return 0
    for sentence in said:
        print(f"* {sentence}")
    for sentence in missing:
        print(f"* Missing: {sentence}")
    print(
        f"* Charged so far: {charged} rounds by all runs on population {config.population!r}, together {together(spent, config.privacy.unit)} ({population.path})."
    )
    for problem in problems:
        print(f"* That may be too little, and no run starts before it is put right: {problem}")
    return 0


def _plan(config: Config, clients: int | None) -> tuple[PrivacyPlan | None, list[str]]:
    """The plan, as far as there is one, and what is missing for it."""
    if clients is not None:
        # Epsilon does not depend on the number of weights; only the quantization step does, and the noise's standard
        # deviation in its last digits. A head has some thousands.
        return make(config, clients=clients, dimension=_HEAD), [
            f"this plans for {clients} clients (--clients); what the guarantee rests on is the number that preparation finds."
        ]
    try:
        return plan_of(config), []
    except ArtifactError as error:
        return None, [str(error)]


def _said(config: Config, plan: PrivacyPlan) -> list[str]:
    return sentences(
        plan,
        seeded=config.pipeline.seed is not None,
        reference=config.runtime.kind == "reference",
        metrics=config.privacy.metrics,
    )


def _numbers(
    config: Config,
    plan: PrivacyPlan | None,
    epsilon: float,
    missing: list[str],
    said: list[str],
    population: Ledger,
    charged: int,
    spent: float | None,
) -> dict[str, Any]:
    privacy = config.privacy
    known: dict[str, Any] = {
        "mechanism": privacy.mechanism,
        "unit": privacy.unit,
        "delta": privacy.delta,
        "rounds": config.training.rounds,
        "clip_norm": privacy.clip_norm,
        "noise_multiplier": privacy.noise_multiplier,
        "sampling_probability": None,
        **(plan.as_json() if plan else {}),
    }
    if plan and missing:
        known |= dict.fromkeys(("dimension", "sensitivity", "noise_stddev", "grain", "integers"))
    return {
        **known,
        "epsilon": finite(epsilon),
        "target_epsilon": privacy.target_epsilon,
        "budget_epsilon": privacy.budget_epsilon,
        "missing": missing,
        "statement": said,
        "ledger": {"path": str(population.path), "rounds": charged, "epsilon": finite(spent)},
    }


def together(spent: float | None, unit: str) -> str:
    """What all charges cost, in words."""
    if spent is None:
        return "an epsilon that needs a delta to be stated"
    if math.isinf(spent):
        return "epsilon infinite, since a run had no privacy" + (
            ", or had it for clients only" if unit == "silo" else ""
        )
    return f"epsilon {rounded_up(spent)}"


def finite(value: float | None) -> float | None:
    """The value as JSON can hold it."""
    return value if value is not None and math.isfinite(value) else None
