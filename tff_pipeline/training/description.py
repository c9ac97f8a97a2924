"""run.json: what a run is made from, its plan, and the guarantee in sentences; for later stages, and for people."""

import math
from typing import Any

import msgspec

from tff_pipeline import artifacts
from tff_pipeline.artifacts import read_json, write_json
from tff_pipeline.privacy import statement
from tff_pipeline.privacy.plan import PrivacyPlan
from tff_pipeline.progress import Progress
from tff_pipeline.training.job import Job

# Numbers of discrete Gaussian noise: how many a core draws a second, and how many a round pass without a word.
_NOISE_PER_S, _NOISE_IS_QUICK = 2e6, 1e7


def describe(work: Job, plan: PrivacyPlan) -> dict[str, Any]:
    """Writes run.json, once; and which run is the newest."""
    config, run = work.config, work.folder
    path = run / "run.json"
    if not path.exists():
        epsilon = plan.epsilon()
        said = statement.sentences(
            plan,
            seeded=config.pipeline.seed is not None,
            reference=config.runtime.kind == "reference",
            metrics=config.privacy.metrics,
        )
        write_json(
            path,
            {
                "id": run.name,
                "name": config.pipeline.name,
                "created": artifacts.now(),
                "config": msgspec.to_builtins(config),
                "snapshots": {
                    snapshot.silo: {
                        "id": snapshot.id,
                        "path": str(snapshot.path),
                        "clients": snapshot.clients("train"),
                        "examples": snapshot.count("train"),
                    }
                    for snapshot in work.snapshots
                },
                "labels": list(work.labels),
                "tokenizer": work.tokenizer.fingerprint,
                "rounds": plan.rounds,
                "plan": plan.as_json() | {"round_event": plan.round_event},
                "guarantee": {
                    "mechanism": plan.mechanism.kind,
                    "epsilon": epsilon if math.isfinite(epsilon) else None,
                    "delta": plan.delta,
                    "statement": said,
                },
                "versions": artifacts.versions(),
            },
        )
    write_json(run.parent / "run.json", {"id": run.name})
    return read_json(path)


def announce(facts: dict[str, Any], plan: PrivacyPlan, progress: Progress) -> None:
    """Says before the first round what is promised, what it costs, and what will not be seen."""
    progress.event(
        "privacy",
        facts["guarantee"]["statement"][0],
        epsilon=facts["guarantee"]["epsilon"],
        delta=plan.delta,
        noise_multiplier=plan.noise_multiplier,
    )
    if plan.unit == "silo" and plan.private:
        progress.event("cost", statement.cost(plan), noise_over_clip=round(plan.noise_over_clip, 3))
    if plan.mechanism.silos_add_noise:
        drawn = plan.mechanism.numbers_drawn_by_silos(plan)
        if drawn > _NOISE_IS_QUICK:
            progress.event(
                "noise",
                f"the silos draw {drawn / 1e6:.0f} million numbers of noise each round, which takes about {drawn / _NOISE_PER_S:.0f} s; "
                'fewer weights (model.trainable = "lora" or "head") take less',
                numbers=drawn,
            )
        progress.event("metrics", statement.NO_METRICS)
