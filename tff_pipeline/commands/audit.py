"""`tff-pipeline audit`: attacks a run's mechanism, looks at what the run recorded, and says what came of it."""

import argparse
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tff_pipeline.artifacts import is_complete
from tff_pipeline.audit import attack
from tff_pipeline.audit.attack import Finding
from tff_pipeline.audit.recorded import plan_of_run, uncharged
from tff_pipeline.errors import ConfigError, PrivacyError
from tff_pipeline.privacy.plan import PrivacyPlan
from tff_pipeline.privacy.statement import rounded_up
from tff_pipeline.progress import Progress

_DESCRIPTION = """\
Attack the mechanism of a trained run, and compare what the attack proves with what the run claims.

The run's plan (mechanism, clip, noise, sampling, unit, silos, secure sum, client optimizer) is played with canaries: clients
whose updates are as bad as they can be, in silos of their own, on a small model with as many tensors as the run's. Keys,
draws, compiled process, runtime and rounds are those of training. Three things are looked at:

1. Checks. Does any client move the noiseless sum by more than the sensitivity? Is the noise there, on every tensor, in every
   round, as large as planned, and never the same twice? Is every client sampled by itself? Is every report masked? Are draws
   new when a key is? Equalities are checked to the last digit; statistical tests refute a sound run, all together, in
   fewer than 5 of 10,000 audits.
2. Guesses. The attacker says of every canary in every round whether it took part. How often it errs bounds the noise, and so
   epsilon, from below, with the confidence that --confidence sets.
3. The run's records: charged rounds, sizes of cohorts, and the noise that the kept states differ by.
"""
_EPILOG = """\
Exit code 5 if the claim is refuted or a round was not charged. A claim that stands is not proven: an attack can only refute.
It takes some minutes; rounds are played without the run's texts, its silos and its keys, of which nothing is needed.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """`tff-pipeline audit`; exit code 5 where the claim is refuted or a round was not charged."""
    from tff_pipeline.commands.choose_run import add_run_arguments, chosen_run

    parser = argparse.ArgumentParser(
        prog="tff-pipeline audit",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_run_arguments(parser)
    parser.add_argument(
        "--observations",
        type=int,
        default=attack.GUESSES,
        metavar="N",
        help=f"guesses of the attacker, some 500 in each round that is played; more give a tighter bound (default {attack.GUESSES})",
    )
    parser.add_argument(
        "--confidence",
        type=float,
        default=attack.CONFIDENCE,
        metavar="C",
        help=f"of the bound, below 1: a sound run is refuted by it with a probability of at most 1 - C (default {attack.CONFIDENCE})",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    arguments = parser.parse_args(argv)
    if arguments.observations < 1 or not 0.5 <= arguments.confidence < 1:
        raise ConfigError(
            f"--observations {arguments.observations} --confidence {arguments.confidence}: expected at least one observation, and a confidence of at least 0.5 and below 1."
        )
    run, _ = chosen_run(arguments)
    finding = audit_run(run, observations=arguments.observations, confidence=arguments.confidence, progress=Progress())
    missing = uncharged(run)
    if arguments.json:
        print(json.dumps(_as_json(run, finding, missing)))
    else:
        print("\n".join(_sentences(run, plan_of_run(run), finding, missing)))
    return PrivacyError.exit_code if finding.refuted or missing else 0


def audit_run(run: Path, *, observations: int, confidence: float, progress: Progress, **options: Any) -> Finding:
    """Attacks the plan of a run with the run's own settings, and checks what the run recorded.

    Raises:
      PrivacyError: if the run claims nothing.
    """
    from tff_pipeline.audit import recorded
    from tff_pipeline.training.store import config_of, load_arrays

    plan, config = plan_of_run(run), config_of(run)
    if is_complete(run / "trained"):
        weights, _ = load_arrays(run / "trained", kind="weights")
        options["shapes"] = [weight.shape for weight in weights]
    with progress.bar("audit", attack.rounds_for(plan, observations)) as bar:
        finding = attack.audit(
            plan,
            training=config.training,
            observations=observations,
            confidence=confidence,
            bar=bar,
            **options,
        )
    return dataclasses.replace(finding, checks=(*finding.checks, *recorded.checks(run, plan, config)))


def _as_json(run: Path, finding: Finding, missing: Sequence[int]) -> dict[str, Any]:
    numbers = {name: _finite(value) for name, value in dataclasses.asdict(finding).items() if name != "checks"}
    listed = [{name: _finite(value) for name, value in dataclasses.asdict(check).items()} for check in finding.checks]
    return {
        "run": str(run),
        **numbers,
        "checks": listed,
        "failed": finding.failed,
        "refuted": finding.refuted,
        "rounds_not_charged": list(missing),
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _sentences(run: Path, plan: PrivacyPlan, finding: Finding, missing: Sequence[int]) -> list[str]:
    claim = (
        f"run {run.name}: claims epsilon {rounded_up(finding.claimed)} at delta {plan.delta:g} for {plan.rounds} rounds with noise multiplier {plan.noise_multiplier:g} "
        f"and sampling probability {plan.sampling_probability:.4g}."
    )
    attacked = (
        f"attack: {finding.rounds} rounds, {finding.observations} guesses; with confidence {finding.confidence:g} the noise multiplier is at most {finding.noise_multiplier_at_most:.4g}, "
        f"the sampling probability at least {finding.sampling_probability_at_least:.4g}, and so epsilon at least {finding.at_least:.4g}."
    )
    width = max(len(check.name) for check in finding.checks)
    table = [
        f"  {'passed' if check.passed else 'FAILED'}  {check.name:{width}}  {check.statistic:.4g}: {check.meaning} {check.bound:.4g}"
        for check in finding.checks
    ]
    said = [claim, attacked, "checks:", *table]
    if finding.noise_found_again:
        said.append(f"an attacker knows the noise: {finding.noise_found_again}.")
    if finding.turns_in_a_tree > 1:
        said.append(f"the sampler drew a client {finding.turns_in_a_tree} times in one tree; the claim assumes once.")
    if missing:
        said.append(f"the ledger lacks {len(missing)} of the run's rounds, round {missing[0]} first.")
    said.append(
        "the claim is REFUTED."
        if finding.refuted
        else "the claim stands; an attack can only refute it, never prove it."
    )
    return said
