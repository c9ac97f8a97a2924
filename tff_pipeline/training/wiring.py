"""Puts a run's runtime together: the model, the compiled process, every silo's clients, and what runs them."""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tff_pipeline import artifacts
from tff_pipeline.artifacts import Workdir, is_complete
from tff_pipeline.config import Config
from tff_pipeline.errors import ConfigError
from tff_pipeline.learning import process
from tff_pipeline.learning.process import Compiled
from tff_pipeline.model.learner import FeatureLearner, TextLearner, freeze
from tff_pipeline.model.network import Network, network_of
from tff_pipeline.privacy.draws import Draws
from tff_pipeline.privacy.plan import PrivacyPlan
from tff_pipeline.progress import Progress
from tff_pipeline.runtime.base import Charges, Runtime
from tff_pipeline.runtime.clients import Clients, TextClients, TextSilo
from tff_pipeline.runtime.determinism import deterministic_operations
from tff_pipeline.runtime.devices import choose_devices
from tff_pipeline.runtime.features import feature_clients
from tff_pipeline.training import secrets
from tff_pipeline.training.job import Job


@contextlib.contextmanager
def running(
    work: Job,
    network: Network,
    initial: Sequence[np.ndarray],
    draws: Draws,
    charges: Charges,
    progress: Progress,
) -> Iterator[Runtime]:
    """A runtime for the run, over every silo's clients."""
    with repeatable_operations(work.config), contextlib.ExitStack() as stack:
        compiled = compiled_of(work, network, initial, draws.plan, progress)
        clients = clients_of(work, network, stack, progress)
        yield stack.enter_context(_runtime(work, compiled, clients, draws, charges))


def repeatable_operations(config: Config) -> contextlib.AbstractContextManager[None]:
    """Has a round that is repeated after a crash give the same sum, on a GPU too; around building the process and its rounds."""
    if config.runtime.kind == "reference":
        return contextlib.nullcontext()
    return deterministic_operations(choose_devices(config.runtime.devices))


def compiled_of(
    work: Job, network: Network, initial: Sequence[np.ndarray], plan: PrivacyPlan, progress: Progress
) -> Compiled:
    """The learning process of a run."""
    started = time.monotonic()
    shapes = [array.shape for array in initial]
    compiled = process.build(
        _model(work, network), work.config.training, plan, shapes, largest_weight=work.largest_weight
    )
    seconds = time.monotonic() - started
    progress.event("compile", f"learning process built and checked in {seconds:.1f} s", seconds=round(seconds, 2))
    return compiled


def _model(work: Job, network: Network) -> Callable[[], Any]:
    """What makes the model that clients train, from scratch, in whatever graph is current."""
    config = work.config
    if config.model.trainable == "head":
        return lambda: FeatureLearner(hidden_size=network.hidden_size, labels=len(work.labels))

    def build() -> Network:
        return network_of(config.model, work.tokenizer, labels=len(work.labels), task=config.task.kind)

    frozen = None
    if config.model.trainable == "lora":
        frozen = secrets.frozen_folder(Workdir(config.workdir), work.id)
        if is_complete(frozen):
            artifacts.read_manifest(frozen, check_files=True)
        else:
            _freeze(work, network, frozen)
    return lambda: TextLearner(build, trainable=config.model.trainable, frozen=frozen)


def refreeze(work: Job, network: Network) -> None:
    """Writes the weights that are not trained again, where graphs read them from files: the network has others now."""
    frozen = secrets.frozen_folder(Workdir(work.config.workdir), work.id)
    if is_complete(frozen):
        shutil.rmtree(frozen)
        _freeze(work, network, frozen)


def _freeze(work: Job, network: Network, folder: Path) -> None:
    config = work.config

    def build() -> Network:
        return network_of(config.model, work.tokenizer, labels=len(work.labels), task=config.task.kind)

    weights = [variable.numpy() for variable in network.variables]
    freeze(build, weights, trainable=config.model.trainable, directory=folder)


def clients_of(work: Job, network: Network, stack: contextlib.ExitStack, progress: Progress) -> list[Clients]:
    """The training clients of every silo whose snapshot is here; their files are closed with `stack`."""
    config, training = work.config, work.config.training
    maps = {snapshot.silo: snapshot.label_map(work.labels) for snapshot in work.snapshots}
    if config.model.trainable == "head":
        with progress.bar("encode", sum(snapshot.count("train") for snapshot in work.snapshots)) as bar:
            return [
                feature_clients(
                    snapshot,
                    network,
                    maps[snapshot.silo],
                    secrets.features_folder(Workdir(config.workdir), snapshot.silo, work.id),
                    batch_size=training.batch_size,
                    epochs=training.local_epochs,
                    bar=bar,
                    as_one=work.silo_is_client,
                )
                for snapshot in work.snapshots
            ]
    options: dict[str, Any] = {
        "pad_id": work.tokenizer.pad_id,
        "batch_size": training.batch_size,
        "epochs": training.local_epochs,
        "token_labels": config.task.kind == "token_classification",
    }
    if work.silo_is_client:
        return [
            TextSilo(snapshot.silo, snapshot.shards("train"), maps[snapshot.silo], **options)
            for snapshot in work.snapshots
        ]
    return [
        TextClients(snapshot.silo, stack.enter_context(snapshot.reader("train")), maps[snapshot.silo], **options)
        for snapshot in work.snapshots
    ]


def _runtime(work: Job, compiled: Compiled, clients: Sequence[Clients], draws: Draws, charges: Charges) -> Runtime:
    if work.config.runtime.kind == "network":
        raise ConfigError(
            f'{work.config.path}: runtime.kind is "network", whose silos are in other processes; expected "local" or "reference" here. Start `tff-pipeline coordinator` and a `tff-pipeline silo` for each silo.'
        )
    if work.config.runtime.kind == "reference":
        from tff_pipeline.runtime.reference import ReferenceRuntime

        return ReferenceRuntime(compiled, clients, draws=draws, charges=charges)
    from tff_pipeline.runtime.local import LocalRuntime

    return LocalRuntime(
        compiled,
        clients,
        draws=draws,
        charges=charges,
        devices=work.config.runtime.devices,
        clients_in_parallel=work.config.runtime.clients_in_parallel,
        session=work.id,
    )
