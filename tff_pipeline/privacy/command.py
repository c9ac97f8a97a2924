"""`tff-pipeline privacy`: what a configuration promises, before and after it is trained."""

import argparse
import json
import math
from collections.abc import Sequence

from tff_pipeline import config as configuration
from tff_pipeline.artifacts import Workdir
from tff_pipeline.config import Config
from tff_pipeline.privacy.ledger import Ledger
from tff_pipeline.privacy.plan import PrivacyPlan, make
from tff_pipeline.privacy.statement import sentences


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
    return make(config, clients=work.clients, dimension=sum(variable.numpy().size for variable in trained))


def main(argv: Sequence[str] | None = None) -> int:
    """`tff-pipeline privacy`."""
    parser = argparse.ArgumentParser(
        prog="tff-pipeline privacy",
        description="The guarantee of a configuration in sentences; the silos have to be prepared, since it depends on how many clients they have.",
    )
    configuration.add_arguments(parser)
    arguments = parser.parse_args(argv)
    config = configuration.load(arguments.config, arguments.set)
    plan = plan_of(config)
    epsilon = plan.epsilon()
    ledger = Ledger(Workdir(config.workdir).ledger(config.population), config.population)
    charged = ledger.entries()
    spent = ledger.epsilon(plan.delta) if plan.delta is not None and charged else 0.0
    said = sentences(
        plan,
        seeded=config.pipeline.seed is not None,
        silos=len(config.silos),
        reference=config.runtime.kind == "reference",
    )
    if arguments.json:
        numbers = {**plan.as_json(), "epsilon": epsilon if math.isfinite(epsilon) else None}
        print(
            json.dumps(
                {
                    **numbers,
                    "statement": said,
                    "ledger": {"path": str(ledger.path), "rounds": len(charged), "epsilon": spent},
                }
            )
        )
        return 0
    for sentence in said:
        print(f"* {sentence}")
    print(
        f"* Charged so far: {len(charged)} rounds by all runs on population {config.population!r}, together epsilon {spent:.4g} ({ledger.path})."
    )
    return 0
