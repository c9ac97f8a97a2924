"""What a run is: its settings and data, read and checked before anything is written or trained."""

import dataclasses
from pathlib import Path
from typing import Any

import msgspec

from tff_pipeline import artifacts
from tff_pipeline import config as configuration
from tff_pipeline.artifacts import Workdir
from tff_pipeline.config import Config
from tff_pipeline.data.snapshots import Snapshot, check_compatible, load_snapshot, union_labels
from tff_pipeline.data.tokenization import Tokenizer, checkpoint_identity
from tff_pipeline.errors import ArtifactError
from tff_pipeline.training.store import FORMAT


@dataclasses.dataclass(frozen=True)
class Job:
    """Everything a run is determined by, worked out before anything is written or trained."""

    config: Config
    snapshots: tuple[Snapshot, ...]
    tokenizer: Tokenizer
    labels: tuple[str, ...]

    @property
    def id(self) -> str:
        """The same for the same settings and data, so that a killed run is found again and a finished one is not repeated."""
        return artifacts.fingerprint({**self.settings(), "runtime": self.config.runtime.kind})

    @property
    def draws(self) -> str:
        """Names what a seeded run draws: other settings or data draw something else under the same seed.

        Otherwise two seeded runs would share their noise, which the difference of the two models would then lack. The
        runtime is left out: it changes nothing about the result, and so that `local` can be compared with `reference`.
        """
        return artifacts.fingerprint(self.settings())

    def settings(self) -> dict[str, Any]:
        """Everything that changes the result, but the runtime."""
        config = self.config
        parts: dict[str, Any] = {
            "format": FORMAT,
            **{
                name: msgspec.to_builtins(getattr(config, name))
                for name in ("model", "training", "privacy", "secure_sum")
            },
            "task": config.task.kind,
            "labels": self.labels,
            "max_length": config.prepare.max_length,
            "seed": config.pipeline.seed,
            "population": config.population,
            "snapshots": {snapshot.silo: snapshot.id for snapshot in self.snapshots},
            "tokenizer": self.tokenizer.fingerprint,
        }
        # What a path leads to counts, not the path; and how many states are kept changes nothing about the result.
        parts["model"] |= {"checkpoint": checkpoint_identity(config.model.checkpoint), "vocabulary": None}
        parts["training"].pop("keep_states")
        # A run that its budget stopped goes on when the budget is raised.
        parts["privacy"]["budget_epsilon"] = None
        # Whether a delta is refused says nothing about the runs that are not.
        parts["privacy"].pop("allow_large_delta")
        return parts

    @property
    def folder(self) -> Path:
        return Workdir(self.config.workdir).runs / self.id

    @property
    def units(self) -> int:
        """How many there are of what the guarantee is about, and a round samples: training clients, or silos."""
        return sum(self.units_of(snapshot) for snapshot in self.snapshots)

    def units_of(self, snapshot: Snapshot) -> int:
        """How many of them a silo has; as one, it counts whether it has any client or not."""
        return 1 if self.silo_is_client else snapshot.clients("train")

    @property
    def silo_is_client(self) -> bool:
        return self.config.privacy.unit == "silo"

    @property
    def largest_weight(self) -> float:
        """More than any client's number of instances in a round: what a weighted mean is bounded by."""
        prepare = self.config.prepare
        examples = (
            max(snapshot.count("train") for snapshot in self.snapshots)
            if self.silo_is_client
            else prepare.max_examples_per_client
        )
        # Of token classification every labelled token is one.
        instances = prepare.max_length if self.config.task.kind == "token_classification" else 1
        return float(max(1, examples) * instances * self.config.training.local_epochs)


@dataclasses.dataclass(frozen=True)
class SiloJob(Job):
    """A run as a silo in a process of its own knows it: its own data, and what it was told of the rest.

    Attributes:
      run: the run's id.
      seeded: what a run with a seed names its draws by.
      population: how many units there are in all silos.
      weight: what no client's weight is above.
    """

    run: str
    seeded: str
    population: int
    weight: float

    @property
    def id(self) -> str:
        return self.run

    @property
    def draws(self) -> str:
        return self.seeded

    @property
    def units(self) -> int:
        return self.population

    @property
    def largest_weight(self) -> float:
        return self.weight


def job(config: Config) -> Job:
    """Reads what `prepare` wrote and checks that it fits the configuration and itself.

    Raises:
      ArtifactError, ConfigError: saying which silo does not fit and what to run.
    """
    workdir = Workdir(config.workdir)
    snapshots = tuple(load_snapshot(workdir, silo.name) for silo in config.silos)
    tokenizer = Tokenizer.from_config(config.model, config.prepare.max_length)
    check_compatible(snapshots, tokenizer, config)
    labels = configuration.known_labels(config) or union_labels(snapshots)
    if len(labels) < 2:
        raise ArtifactError(
            f"the silos' snapshots hold {len(labels)} different label(s); expected at least 2 to tell apart. Look at silos[].label in {config.path}."
        )
    return Job(config, snapshots, tokenizer, labels)
