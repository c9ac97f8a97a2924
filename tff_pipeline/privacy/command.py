"""`tff-pipeline privacy`: what a configuration promises. `tff-pipeline ledger`: what its population has been charged."""

import argparse
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tff_pipeline import config as configuration
from tff_pipeline.artifacts import canonical_json, write_atomic
from tff_pipeline.config import Config
from tff_pipeline.errors import ArtifactError, ConfigError, PrivacyError
from tff_pipeline.privacy import account, distributed
from tff_pipeline.privacy.ledger import Ledger, require_same_charges
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
    from tff_pipeline.training import job

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
        from tff_pipeline.privacy.plot import svg

        write_atomic(Path(arguments.plot), svg(plan, epsilon).encode())
    population, _ = account.ledgers(config)[0]
    charged, spent = len(population.entries()), account.spent(population, config.privacy.delta)
    said = [] if plan is None else _said(config, plan)
    if arguments.json:
        print(json.dumps(_numbers(config, plan, epsilon, missing, said, population, charged, spent)))
        return 0
    for sentence in said:
        print(f"* {sentence}")
    for sentence in missing:
        print(f"* Missing: {sentence}")
    print(
        f"* Charged so far: {charged} rounds by all runs on population {config.population!r}, together {_together(spent, config.privacy.unit)} ({population.path})."
    )
    return 0


def _plan(config: Config, clients: int | None) -> tuple[PrivacyPlan | None, list[str]]:
    """The plan, as far as there is one, and what is missing for it."""
    if clients is not None:
        # Epsilon does not depend on the number of weights; only quanta do, and the noise's standard deviation in its last
        # digits. A head has some thousands.
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
        silos=len(config.silos),
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
        "epsilon": _finite(epsilon),
        "target_epsilon": privacy.target_epsilon,
        "budget_epsilon": privacy.budget_epsilon,
        "missing": missing,
        "statement": said,
        "ledger": {"path": str(population.path), "rounds": charged, "epsilon": _finite(spent)},
    }


def ledger(argv: Sequence[str] | None = None) -> int:
    """`tff-pipeline ledger`."""
    parser = argparse.ArgumentParser(
        prog="tff-pipeline ledger",
        description="What the configuration's population has been charged: show it, verify that no line was edited or lost (here and in the silos' own ledgers), or say what is left of the budget.",
    )
    parser.add_argument("what", choices=("show", "verify", "budget"))
    configuration.add_arguments(parser)
    arguments = parser.parse_args(argv)
    config = configuration.load(arguments.config, arguments.set)
    found, lines = {"show": _show, "verify": _verify, "budget": _budget}[arguments.what](config)
    if arguments.json:
        print(json.dumps(found))
    else:
        print("\n".join(lines))
    return 0


def _show(config: Config) -> tuple[dict[str, Any], list[str]]:
    population, _ = account.ledgers(config)[0]
    entries = population.entries()
    lines = [f"population {config.population}: {len(entries)} rounds charged ({population.path})"]
    charges = Counter((entry["run"], entry["draw"], canonical_json(entry["event"]).decode()) for entry in entries)
    for (run, draw, event), count in charges.items():
        times = [entry["time"] for entry in entries if (entry["run"], entry["draw"]) == (run, draw)]
        lines.append(f"  run {run}, draw {draw}: {count} rounds, {times[0]} to {times[-1]}, each {_plainly(event)}")
    return {"population": config.population, "path": str(population.path), "entries": list(entries)}, lines


def _verify(config: Config) -> tuple[dict[str, Any], list[str]]:
    accounts = [each for each, _ in account.ledgers(config)]
    for silo in accounts[1:]:
        require_same_charges(accounts[0], silo)
    found = [
        {"ledger": str(each.path), "silo": each.silo or None, "entries": len(each.entries()), "head": each.head}
        for each in accounts
    ]
    lines = [f"sound: {part['ledger']}, {part['entries']} lines, the last with hash {part['head']}" for part in found]
    lines.append(
        "Who can write to these files can forge them; keep the hashes elsewhere to notice. The next verification must find them again."
    )
    return {"sound": True, "ledgers": found}, lines


def _budget(config: Config) -> tuple[dict[str, Any], list[str]]:
    delta = config.privacy.delta
    if delta is None:
        raise PrivacyError(
            f'{config.path}: there is no privacy.delta to state a budget at (mechanism = "{config.privacy.mechanism}"); set one with --set, together with a mechanism.'
        )
    try:
        plan, missing = plan_of(config), None
    except ArtifactError as error:
        plan, missing = None, str(error)
    found, lines = [], []
    for each, budget in account.ledgers(config):
        spent = account.spent(each, delta)
        left = None
        if plan is not None and budget is not None:
            most = _rounds_within(each, budget, plan)
            left = most
        name = f"silo {each.silo}" if each.silo else f"population {each.population}"
        found.append(
            {
                "ledger": str(each.path),
                "silo": each.silo or None,
                "rounds": len(each.entries()),
                "epsilon": _finite(spent),
                "budget_epsilon": budget,
                "rounds_left": left,
            }
        )
        limit = f"of a budget of {budget:g}" if budget is not None else "and no budget is set"
        room = "" if left is None else f"; {left} more rounds of this configuration fit"
        lines.append(
            f"{name}: {len(each.entries())} rounds charged, {_together(spent, config.privacy.unit)} at delta {delta!r} {limit}{room}"
        )
    if missing:
        lines.append(f"How many rounds are left cannot be said: {missing}")
    return {"delta": delta, "ledgers": found, "missing": [missing] if missing else []}, lines


def _rounds_within(each: Ledger, budget: float, plan: PrivacyPlan) -> int:
    """How many new rounds of the plan fit what is left, counted up to ten thousand."""
    assert plan.delta is not None
    most = left = 0
    while left == most and most < 10_000:
        most = min(2 * most + 1, 10_000)
        left = max(0, each.rounds_left(budget, plan.delta, planned=plan.round_event, rounds=most))
    return left


def _plainly(event: str) -> str:
    facts = json.loads(event)
    if facts["kind"] == "none":
        return "without privacy"
    if facts["kind"] == "poisson_distributed_discrete_gaussian":
        worth = distributed.noise_multiplier(
            sensitivity_squared=facts["sensitivity_squared"],
            log2_share=facts["log2_share"],
            honest=facts["honest_silos"],
        )
        return f"a distributed discrete gaussian with sampling probability {facts['sampling_probability']:.6g}, worth a noise multiplier of {worth:g} by {facts['honest_silos']} silos' shares"
    if facts["kind"] == "tree":
        return f"of trees of {facts['rounds_per_tree']} rounds whose nodes have noise multiplier {facts['noise_multiplier']:g}"
    return f"a {facts['kind'].replace('_', ' ')} with sampling probability {facts['sampling_probability']:.6g} and noise multiplier {facts['noise_multiplier']:g}"


def _together(spent: float | None, unit: str) -> str:
    if spent is None:
        return "an epsilon that needs a delta to be stated"
    if math.isinf(spent):
        return "epsilon infinite, since a run had no privacy" + (
            ", or had it for clients only" if unit == "silo" else ""
        )
    return f"epsilon {rounded_up(spent)}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
