"""What a finished run recorded, against its claim: its charges, cohorts and starts, and the noise in its states.

Its keys are gone. But the states of its last rounds are kept, and what an update holds beside noise can only make it
longer: an update that is shorter than the noise alone should be was not noised as planned. So is a tensor of it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from tff_pipeline.artifacts import is_complete, read_json, read_manifest
from tff_pipeline.audit import exact
from tff_pipeline.audit.criteria import SIGNIFICANCE, Check, at_least, at_most, probable
from tff_pipeline.config import Config
from tff_pipeline.privacy import charges as account
from tff_pipeline.privacy.plan import PrivacyPlan
from tff_pipeline.training.store import config_of, load_arrays

_TRAINED = "global_model_weights/trainable/"
_RESOLVED = 8  # float32 steps that the noise on a weight must be worth, so that it did not vanish in rounding


def plan_of_run(run: Path) -> PrivacyPlan:
    """The plan a run was trained with."""
    return PrivacyPlan.from_json(read_json(run / "run.json")["plan"])


def uncharged(run: Path) -> list[int]:
    """The run's rounds that its population's ledger does not hold as the plan has them."""
    facts = read_json(run / "run.json")
    population, _ = account.ledgers(config_of(run))[0]
    charged = {
        entry["round"]
        for entry in population.entries()
        if (entry["run"], entry["event"]) == (facts["id"], facts["plan"]["round_event"])
    }
    return [number for number in range(1, facts["rounds"] + 1) if number not in charged]


def checks(run: Path, plan: PrivacyPlan, config: Config) -> Iterator[Check]:
    """Yields what can be checked of the run in this folder; nothing where it kept no state."""
    states = _states(run)
    if not states:
        return
    manifest = read_manifest(states[max(states)])
    history = manifest.get("history", [])
    starts = [start for start in manifest.get("starts", []) if start]
    repeated = len(starts) - len(set(starts))
    yield at_most("recorded starts", repeated, 0, "rounds of the run that started from where another one had")
    # One round of each tree: within a tree a client that has its turn in one round has none in another.
    entries = history[:: plan.mechanism.period]
    sizes = [
        entry["clients"] for entry in entries if entry.get("clients") is not None
    ]  # none where silos add the noise
    if sizes:
        total = exact.binomial(np.array(sum(sizes)), plan.clients * len(sizes), plan.sampling_probability)
        yield probable("recorded cohorts", float(total), "how many clients the run sampled in all")
        table, clients = np.array(sizes)[:, np.newaxis], np.array([plan.clients])
        vary = exact.spread(table, clients, plan.sampling_probability)
        yield probable("recorded cohort sizes", vary, "how much the run's cohort sizes vary")
    yield from _noise(run, plan, config, states, history)


def _states(run: Path) -> dict[int, Path]:
    folders = (path for path in (run / "states").glob("round-*") if is_complete(path))
    return {int(path.name.removeprefix("round-")): path for path in folders}


def _noise(
    run: Path, plan: PrivacyPlan, config: Config, states: Mapping[int, Path], history: list[dict[str, Any]]
) -> Iterator[Check]:
    training = config.training
    if training.server_optimizer != "sgd":  # Adam's steps are not proportional to the sums
        return
    weights = {number: _weights(path) for number, path in states.items()}
    if 1 in weights and is_complete(run / "base"):
        base, _ = load_arrays(run / "base", kind="weights")
        weights[0] = [np.asarray(part, np.float64) for part in base[-len(weights[1]) :]]
    ratios, numbers = [], []
    for number in sorted(weights):
        update = _update(weights, number, training.server_momentum)
        if update is None:
            continue
        # The sum is in units of the round's clip where that is adaptive; the history has the clip of such runs only.
        clip = history[number - 1].get("clip_norm", 1.0)
        expected = plan.noise_stddev * clip / plan.denominator * training.server_learning_rate
        for step, weight in zip(update, weights[number], strict=True):
            # What float32 cannot hold beside the weight was never added.
            if expected > _RESOLVED * np.spacing(np.float32(np.abs(weight).max(initial=0.0))):
                ratios.append(float(np.square(step / expected).sum()))
                numbers.append(step.size)
    if not ratios:
        return
    # Every tensor has as many degrees of freedom as coordinates, and so a bound of its own.
    bounds = stats.chi2.ppf(SIGNIFICANCE["recorded noise"] / len(ratios), numbers)
    over = np.array(ratios) / bounds
    yield at_least(
        "recorded noise",
        over.min(),
        1.0,
        "squared length of a tensor's update in the run's last rounds, over the least that the noise makes it",
    )


def _weights(state: Path) -> list[np.ndarray]:
    arrays, manifest = load_arrays(state, kind="state")
    names = manifest["names"]
    return [np.asarray(part, np.float64) for name, part in zip(names, arrays, strict=True) if _TRAINED in name]


def _update(weights: Mapping[int, list[np.ndarray]], number: int, momentum: float) -> list[np.ndarray] | None:
    """What the server stepped by in a round, without what momentum adds of the rounds before; None where it is not kept.

    v_t = m v_(t-1) + g_t and w_t = w_(t-1) - rate v_t, so rate g_t is the difference of weights less m times the one before.
    """
    if number - 1 not in weights:
        return None
    now = [before - after for before, after in zip(weights[number - 1], weights[number], strict=True)]
    if not momentum or number == 1:
        return now
    if number - 2 not in weights:
        return None
    last = [before - after for before, after in zip(weights[number - 2], weights[number - 1], strict=True)]
    return [step - momentum * earlier for step, earlier in zip(now, last, strict=True)]
