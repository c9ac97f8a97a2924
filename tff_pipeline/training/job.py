"""The training stage: snapshots in, a run out. It sees a runtime only as `runtime.base.Runtime`.

Every random draw of a round follows from keys that are kept until the run is sealed (`run_keys`), and the state is saved
after every round; so a run that was killed goes on where it stopped, charges nothing twice and ends as it would have.
"""

import argparse
import contextlib
import csv
import dataclasses
import io
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tff_pipeline import artifacts
from tff_pipeline import config as configuration
from tff_pipeline.artifacts import Workdir, is_complete, read_json, seal, sha256_file, write_atomic, write_json
from tff_pipeline.config import Config
from tff_pipeline.data.snapshots import Snapshot, check_compatible, load_snapshot, union_labels
from tff_pipeline.data.tokenization import Tokenizer, checkpoint_identity
from tff_pipeline.errors import ArtifactError, TrainingError
from tff_pipeline.privacy import charges as account
from tff_pipeline.privacy import plan as planning
from tff_pipeline.privacy import statement
from tff_pipeline.privacy.draws import Draws
from tff_pipeline.privacy.plan import PrivacyPlan
from tff_pipeline.privacy.round import digest_of, start_of
from tff_pipeline.progress import Progress
from tff_pipeline.rounding import rounded_up
from tff_pipeline.training import secrets as run_keys
from tff_pipeline.training.store import FORMAT, StateStore, load_arrays, save_arrays

# Numbers of discrete Gaussian noise: how many a core draws, and how many a round pass without a word.
_NOISE_PER_S, _NOISE_IS_QUICK = 2e6, 1e7
_EPSILONS_SHOWN = 20  # how often a run works out the epsilon so far: half a second each time


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
        each = prepare.max_length if self.config.task.kind == "token_classification" else 1
        return float(max(1, examples) * each * self.config.training.local_epochs)


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
        run_keys.remove(Workdir(config.workdir), run.name)
        progress.event("train", f"run {run.name} is finished already", run=run.name, finished_before=True)
        return run
    with account.exclusively(config):
        _run(work, progress)
    return run


def _run(work: Job, progress: Progress) -> None:
    """1. base weights  2. plan and budget  3. description  4. process and runtime  5. rounds  6. seal."""
    from tff_pipeline.model.network import base_network

    config, run = work.config, work.folder
    if is_complete(run / "trained") and (run / "run.json").exists():
        # Nothing is drawn any more: whatever has become of the keys, the rounds are done and charged.
        _finish(work, read_json(run / "run.json"), progress)
        return
    network = base_network(
        config.model, work.tokenizer, labels=len(work.labels), task=config.task.kind, seed=config.pipeline.seed
    )
    if not is_complete(run / "base"):
        save_arrays(
            run / "base",
            [variable.numpy() for variable in network.variables],
            kind="weights",
            checkpoint=config.model.checkpoint,
        )
    base, _ = load_arrays(run / "base", kind="weights")
    network.set_weights(base)
    initial = base[-len(network.trained_variables(config.model.trainable)) :]

    plan = planning.make(config, clients=work.units, dimension=sum(array.size for array in initial))
    store = StateStore(run, keep=config.training.keep_states)
    draws = run_keys.draws_of(work, plan, _network_digest(network, base), progress)
    charges = account.opened(config, plan, run=run.name, draw=draws.name, done=store.rounds_done())
    for note in charges.notes:
        progress.event("ledger", note)
    facts = _describe(work, plan)
    progress.event(
        "privacy",
        facts["guarantee"]["statement"][0],
        epsilon=facts["guarantee"]["epsilon"],
        delta=plan.delta,
        noise_multiplier=plan.noise_multiplier,
    )
    if plan.unit == "silo" and plan.private:
        progress.event("cost", statement.cost(plan), noise_over_clip=round(plan.noise_over_clip, 3))
    if plan.integers and plan.integers.silos * plan.integers.length > _NOISE_IS_QUICK:
        drawn = plan.integers.silos * plan.integers.length
        progress.event(
            "noise",
            f"the silos draw {drawn / 1e6:.0f} million numbers of noise each round, which takes about {drawn / _NOISE_PER_S:.0f} s; "
            'fewer weights (model.trainable = "lora" or "head") take less',
            numbers=drawn,
        )

    if plan.integers:
        progress.event("metrics", statement.NO_METRICS)

    if not is_complete(run / "trained"):
        with (
            _repeatable_operations(config),
            _compiled_runtime(work, network, plan, initial, progress) as (compiled, runtime),
        ):
            _rounds(work, store, draws, charges, compiled, runtime, initial, progress)
    _finish(work, facts, progress)


def _describe(work: Job, plan: PrivacyPlan) -> dict[str, Any]:
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


def _repeatable_operations(config: Config) -> contextlib.AbstractContextManager[None]:
    """Has a round that is repeated after a crash give the same sum, on a GPU too; around building the process and its rounds."""
    if config.runtime.kind == "reference":
        return contextlib.nullcontext()
    from tff_pipeline.runtime.determinism import deterministic_operations
    from tff_pipeline.runtime.local import choose_devices

    return deterministic_operations(choose_devices(config.runtime.devices))


@contextlib.contextmanager
def _compiled_runtime(
    work: Job, network: Any, plan: PrivacyPlan, initial: Sequence[np.ndarray], progress: Progress
) -> Iterator[tuple[Any, Any]]:
    """The compiled process and a runtime for it, over every silo's clients."""
    from tff_pipeline.learning import process as learning
    from tff_pipeline.model.learner import FeatureLearner, TextLearner, freeze
    from tff_pipeline.model.network import Network, network_of

    config = work.config
    started = time.monotonic()
    shapes = [array.shape for array in initial]
    if config.model.trainable == "head":

        def model() -> Any:
            return FeatureLearner(hidden_size=network.hidden_size, labels=len(work.labels))
    else:

        def build() -> Network:
            return network_of(config.model, work.tokenizer, labels=len(work.labels), task=config.task.kind)

        frozen = None
        if config.model.trainable == "lora":
            frozen = run_keys.frozen_folder(Workdir(config.workdir), work.id)
            if is_complete(frozen):
                artifacts.read_manifest(frozen, check_files=True)
            else:
                weights = [variable.numpy() for variable in network.variables]
                freeze(build, weights, trainable=config.model.trainable, directory=frozen)

        def model() -> Any:
            return TextLearner(build, trainable=config.model.trainable, frozen=frozen)

    compiled = learning.build(model, config.training, plan, shapes, largest_weight=work.largest_weight)
    progress.event(
        "compile",
        f"learning process built and checked in {time.monotonic() - started:.1f} s",
        seconds=round(time.monotonic() - started, 2),
    )
    with contextlib.ExitStack() as stack:
        silos = _silo_clients(work, network, stack, progress)
        if config.runtime.kind == "reference":
            from tff_pipeline.runtime.reference import ReferenceRuntime

            runtime: Any = ReferenceRuntime(compiled, silos)
        else:
            from tff_pipeline.runtime.local import LocalRuntime

            runtime = LocalRuntime(
                compiled,
                silos,
                devices=config.runtime.devices,
                clients_in_parallel=config.runtime.clients_in_parallel,
                session=work.id,
            )
        yield compiled, stack.enter_context(runtime)


def _silo_clients(work: Job, network: Any, stack: contextlib.ExitStack, progress: Progress) -> list[Any]:
    from tff_pipeline.runtime.clients import TextClients, TextSilo
    from tff_pipeline.runtime.features import feature_clients

    config, training = work.config, work.config.training
    maps = {snapshot.silo: snapshot.label_map(work.labels) for snapshot in work.snapshots}
    if config.model.trainable == "head":
        with progress.bar("encode", sum(snapshot.count("train") for snapshot in work.snapshots)) as bar:
            return [
                feature_clients(
                    snapshot,
                    network,
                    maps[snapshot.silo],
                    run_keys.features_folder(Workdir(config.workdir), snapshot.silo, work.id),
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


def _rounds(
    work: Job,
    store: StateStore,
    draws: Draws,
    charges: account.Account,
    compiled: Any,
    runtime: Any,
    initial: Sequence[np.ndarray],
    progress: Progress,
) -> None:
    from tff_pipeline.runtime.base import clip_of, noise_places, rotation_places, share_places, weights_of, with_weights
    from tff_pipeline.training import loop as rounds

    run, plan = work.folder, draws.plan
    hidden = {*noise_places(compiled), *rotation_places(compiled), *share_places(compiled)}
    kept = [place for place in range(len(compiled.state_names)) if place not in hidden]
    names = [compiled.state_names[place] for place in kept]
    state = with_weights(compiled, runtime.initial_state(), initial)
    history: list[dict[str, Any]] = []
    starts: list[str] = []
    if saved := store.latest(names):
        for place, array in zip(kept, saved[0], strict=True):
            state[place] = array
        history, starts = saved[1], saved[2]
        progress.event(
            "resume", f"going on after round {len(history)} of {plan.rounds}", round=len(history), rounds=plan.rounds
        )
    clients = {snapshot.silo: work.units_of(snapshot) for snapshot in work.snapshots}
    fed = _fed_from(work)
    board = _TensorBoard(run / "tensorboard")
    seconds: list[float] = []  # of the rounds of this process
    with progress.bar("train", plan.rounds) as bar:
        bar.advance(len(history))
        for number in range(len(history), plan.rounds):
            started = time.monotonic()
            starts.append(start_of([state[place] for place in kept], *names, fed, before=starts))
            drawn = draws.round(starts)
            drawn.begin()
            charges.charge(drawn.number + 1, start=drawn.start)
            clip = clip_of(compiled, state)
            result, cohorts = rounds.play(compiled, runtime, state, drawn, clients)
            sampled = sum(len(rows) for rows in cohorts.values())
            if not plan.integers:  # the first round with anybody in it would show
                _note_placement(run, runtime, progress)
            # A silo that is a client and has no text takes its turn, and adds nothing.
            at_work = sum(len(cohorts[snapshot.silo]) for snapshot in work.snapshots if snapshot.count("train"))
            _require_usable(number + 1, at_work, result.metrics, weights_of(compiled, result.state), run)
            state = result.state
            seconds.append(time.monotonic() - started)
            entry = _entry(number + 1, sampled, result, plan, seconds[-1])
            if plan.metrics_stddev:
                entry["released_accuracy"] = _released_accuracy(result.metrics, drawn.metrics_noise(), plan)
            if clip is not None:
                entry["clip_norm"] = round(clip, 6)
            history.append(entry)
            store.save(number + 1, [state[place] for place in kept], names, history, starts)
            _write_history(run / "rounds.csv", history)
            board.write(entry)
            bar.advance(
                **{
                    key: entry[key]
                    for key in ("round", "loss", "accuracy", "clients", "epsilon", "seconds")
                    if entry[key] is not None
                },
                rounds=plan.rounds,
                left_s=round(_left(seconds, plan.rounds - len(history))),
            )
    save_arrays(run / "trained", weights_of(compiled, state), kind="weights", rounds=plan.rounds)


def _fed_from(work: Job) -> str:
    """A digest of what was computed for the run and clients are fed with, beside their texts: features, frozen weights."""
    workdir = Workdir(work.config.workdir)
    folders = [run_keys.features_folder(workdir, snapshot.silo, work.id) for snapshot in work.snapshots]
    folders.append(run_keys.frozen_folder(workdir, work.id))
    # Of the files themselves: a manifest says of its files what whoever wrote it likes.
    contents = [{path.name: sha256_file(path) for path in sorted(folder.glob("*.*"))} for folder in folders]
    for content in contents:
        content.pop(artifacts.MANIFEST, None)  # it holds the time
    return artifacts.canonical_json(contents).decode()


def _network_digest(network: Any, base: Sequence[np.ndarray]) -> str:
    """A digest of the network as training begins with it: its weights, and how the encoder computes with them."""
    architecture = json.loads(network.transformer.config.to_json_string())
    for name in ("_name_or_path", "transformers_version"):  # where it lies, and what read it
        architecture.pop(name, None)
    return digest_of(base, artifacts.canonical_json(architecture).decode())


def _note_placement(run: Path, runtime: Any, progress: Progress) -> None:
    """Writes placement.json once clients have worked, and says so if a GPU was to work and the CPU did."""
    from tff_pipeline.runtime.base import off_device

    path = run / "placement.json"
    if path.exists() or not (placement := runtime.placement()):
        return
    elsewhere = off_device(placement, runtime.devices)
    write_json(path, {"devices": list(runtime.devices), "operations": placement, "elsewhere": elsewhere})
    if elsewhere:
        progress.event(
            "placement",
            f"{sum(elsewhere.values())} of the model's operations did not run on {', '.join(runtime.devices)}; {path} lists them",
            elsewhere=elsewhere,
        )


def _require_usable(
    number: int, at_work: int, metrics: Mapping[str, float], weights: Sequence[np.ndarray], run: Path
) -> None:
    """Stops a run that diverged, with the last good state on disk."""
    kept = f"The state after round {number - 1} is kept in {run}. Lower training.client_learning_rate or training.server_learning_rate, which starts a new run."
    if at_work and not metrics.get("finite_clients", at_work):
        raise TrainingError(
            f"round {number}: none of the {at_work} clients' updates was finite (the loss is not a number). {kept}"
        )
    if metrics.get("update_non_finite") or not all(np.isfinite(array).all() for array in weights):
        raise TrainingError(f"round {number}: the sum of the updates or the new weights are not finite. {kept}")


def _entry(number: int, sampled: int, result: Any, plan: PrivacyPlan, seconds: float) -> dict[str, Any]:
    """One round as the history keeps it. Epsilon is worked out now and then, and after the last round.

    Where the silos add the noise, nothing that tells how many clients took part is kept, nor how long their work took.
    """
    due = plan.private and (number == plan.rounds or number % max(1, plan.rounds // _EPSILONS_SHOWN) == 0)
    metrics = {} if plan.integers else result.metrics
    seen = metrics.get("instances", 0) > 0
    return {
        "round": number,
        "clients": None if plan.integers else sampled,
        "finite_clients": int(metrics["finite_clients"]) if metrics else None,
        "examples": int(metrics["instances"]) if metrics else None,
        "loss": metrics["loss"] if seen else None,
        "accuracy": metrics["accuracy"] if seen else None,
        "epsilon": float(rounded_up(plan.epsilon(number))) if due else None,
        "seconds": None if plan.integers else round(seconds, 3),
        # To and from each silo.
        "bytes_down": result.bytes_down,
        "bytes_up": result.bytes_up,
    }


def _released_accuracy(metrics: Mapping[str, float], noise: Sequence[float], plan: PrivacyPlan) -> float:
    """The mean of the clients' own accuracies from two noised sums, of which one client changes each by at most one."""
    from tff_pipeline.model.learner import MILLION

    sums = metrics["client_accuracy"] / MILLION, metrics["finite_clients"]
    accuracies, clients = (plan.on_metrics_grain(total + added) for total, added in zip(sums, noise, strict=True))
    return round(min(1.0, max(0.0, accuracies / max(1.0, clients))), 4)


def _left(seconds: Sequence[float], rounds: int) -> float:
    """Seconds left for `rounds` rounds, from the median of the last ten."""
    return float(np.median(seconds[-10:])) * rounds


def _write_history(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    table = io.StringIO()
    writer = csv.DictWriter(table, list(history[0]))
    writer.writeheader()
    writer.writerows(history)
    write_atomic(path, table.getvalue().encode())


class _TensorBoard:
    """Scalars by round, for `tensorboard --logdir`; nothing is opened before the first."""

    def __init__(self, folder: Path):
        self._folder, self._writer = folder, None

    def write(self, entry: Mapping[str, Any]) -> None:
        import tensorflow as tf

        writer = self._writer = self._writer or tf.summary.create_file_writer(str(self._folder))
        with writer.as_default(step=entry["round"]):
            for name, value in entry.items():
                if name != "round" and value is not None:
                    tf.summary.scalar(name, value)
        writer.flush()


def _finish(work: Job, facts: Mapping[str, Any], progress: Progress) -> None:
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
    run_keys.remove(Workdir(work.config.workdir), work.id)
    progress.event("train", f"run {work.id} is finished", run=work.id, rounds=facts["rounds"])


def main(argv: Sequence[str] | None = None) -> int:
    """`tff-pipeline train`."""
    parser = argparse.ArgumentParser(
        prog="tff-pipeline train",
        description="Train on prepared snapshots, or go on where an earlier call was stopped.",
    )
    configuration.add_arguments(parser)
    arguments = parser.parse_args(argv)
    config = configuration.load(arguments.config, arguments.set)
    run = train(config, progress=Progress())
    facts = read_json(run / "run.json")
    if arguments.json:
        print(
            json.dumps({"run": run.name, "path": str(run), "rounds": facts["rounds"], "guarantee": facts["guarantee"]})
        )
    else:
        print(f"run {run.name}: {facts['rounds']} rounds, in {run}")
        print(facts["guarantee"]["statement"][0])
    return 0
