"""The training stage: snapshots in, a run out. It puts together what the loop of rounds needs, and seals the run after it.

Every random draw of a round follows from keys that are kept until the run is sealed (`secrets`), and the state is saved
after every round; so a run that was killed goes on where it stopped, charges nothing twice and ends as it would have.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tff_pipeline import artifacts
from tff_pipeline.artifacts import Workdir, is_complete, read_json, seal, sha256_file
from tff_pipeline.config import Config
from tff_pipeline.privacy import charges
from tff_pipeline.privacy import plan as planning
from tff_pipeline.privacy.round import digest_of
from tff_pipeline.progress import Progress
from tff_pipeline.training import secrets
from tff_pipeline.training.description import announce, describe
from tff_pipeline.training.job import Job, job
from tff_pipeline.training.store import FORMAT, StateStore, load_arrays, save_arrays

if TYPE_CHECKING:
    from tff_pipeline.model.network import Network
    from tff_pipeline.privacy.charges import Account
    from tff_pipeline.privacy.draws import Draws


def train(config: Config, *, progress: Progress) -> Path:
    """Trains, or goes on training, the run of this configuration; a finished one is left as it is.

    Returns:
      The run's folder, complete.

    Raises:
      PrivacyError: if the plan cannot be accounted for, or the budget does not suffice.
      TrainingError: if a round's result cannot be used; the last good state is kept.
    """
    work = job(config)
    run = work.folder
    if is_complete(run):
        # A kill may have left them behind after the run was sealed.
        secrets.remove(Workdir(config.workdir), run.name)
        progress.event("train", f"run {run.name} is finished already", run=run.name, finished_before=True)
        return run
    with charges.exclusively(config):
        if is_complete(run / "trained") and (run / "run.json").exists():
            # Nothing is drawn any more: whatever has become of the keys, the rounds are done and charged.
            facts = read_json(run / "run.json")
        else:
            facts = _train(work, progress)
        finish(work, facts, progress)
    return run


def _train(work: Job, progress: Progress) -> Mapping[str, Any]:
    """1. base weights  2. plan  3. draws and ledgers  4. description  5. rounds. Returns what run.json says."""
    config, run = work.config, work.folder
    network, base = base_of(work)
    initial = base[-len(network.trained_variables(config.model.trainable)) :]
    plan = planning.make(config, clients=work.units, dimension=sum(array.size for array in initial))
    store = StateStore(run, keep=config.training.keep_states)
    draws = secrets.draws_of(work, plan, network_digest(network, base), progress)
    account = charges.opened(config, plan, run=run.name, draw=draws.name, done=store.rounds_done())
    for note in account.notes:
        progress.event("ledger", note)
    facts = describe(work, plan)
    announce(facts, plan, progress)
    if not is_complete(run / "trained"):
        _rounds(work, network, initial, draws, account, store, progress)
    return facts


def base_of(work: Job) -> tuple["Network", list[np.ndarray]]:
    """The network, and its weights before training, which the run keeps."""
    from tff_pipeline.model.network import base_network

    config, folder = work.config, work.folder / "base"
    network = base_network(
        config.model, work.tokenizer, labels=len(work.labels), task=config.task.kind, seed=config.pipeline.seed
    )
    if not is_complete(folder):
        weights = [variable.numpy() for variable in network.variables]
        save_arrays(folder, weights, kind="weights", checkpoint=config.model.checkpoint)
    base, _ = load_arrays(folder, kind="weights")
    network.set_weights(base)
    return network, base


def _rounds(
    work: Job,
    network: "Network",
    initial: Sequence[np.ndarray],
    draws: "Draws",
    account: "Account",
    store: StateStore,
    progress: Progress,
) -> None:
    from tff_pipeline.training.loop import Loop, Position
    from tff_pipeline.training.releases import Releases
    from tff_pipeline.training.wiring import running

    with running(work, network, initial, draws, account, progress) as runtime:
        position = Position.newest(store, runtime.initial_state().with_weights(initial))
        with progress.bar("train", draws.plan.rounds) as bar:
            releases = Releases(work.folder, draws.server, progress, bar)
            releases.resumed(len(position.history))
            loop = Loop(
                draws=draws,
                charges=account,
                runtime=runtime,
                store=store,
                releases=releases,
                fed=_digest_of_fed(work),
                silos_with_text=frozenset(part.silo for part in work.snapshots if part.count("train")),
                run=work.folder,
            )
            releases.weights(loop.rounds(position).weights)


def _digest_of_fed(work: Job) -> str:
    """A digest of what was computed for the run and clients are fed with, beside their texts: features, frozen weights."""
    workdir = Workdir(work.config.workdir)
    folders = [secrets.features_folder(workdir, snapshot.silo, work.id) for snapshot in work.snapshots]
    folders.append(secrets.frozen_folder(workdir, work.id))
    return artifacts.canonical_json([contents_of(folder) for folder in folders]).decode()


def contents_of(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file in a folder, by name; nothing where there is none.

    Of the files themselves: a manifest says of its files what whoever wrote it likes.
    """
    contents = {path.name: sha256_file(path) for path in sorted(folder.glob("*.*"))}
    contents.pop(artifacts.MANIFEST, None)  # it holds the time
    return contents


def network_digest(network: "Network", base: Sequence[np.ndarray]) -> str:
    """A digest of the network as training begins with it: its weights, and how the encoder computes with them."""
    architecture = json.loads(network.transformer.config.to_json_string())
    for name in ("_name_or_path", "transformers_version"):  # where it lies, and what read it
        architecture.pop(name, None)
    return digest_of(base, artifacts.canonical_json(architecture).decode())


def finish(work: Job, facts: Mapping[str, Any], progress: Progress) -> None:
    """Seals the run, and only then removes its keys and what was computed for it alone.

    Without the keys a run that is not sealed would draw anew, and be charged anew.
    """
    seal(
        work.folder,
        {
            "kind": "run",
            "format": FORMAT,
            **{key: facts[key] for key in ("id", "name", "snapshots", "labels", "rounds", "plan", "guarantee")},
        },
        without=("keys", "frozen"),
    )
    secrets.remove(Workdir(work.config.workdir), work.id)
    progress.event("train", f"run {work.id} is finished", run=work.id, rounds=facts["rounds"])
