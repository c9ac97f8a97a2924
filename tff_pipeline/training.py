"""The training stage: snapshots in, a run out. It sees a runtime only as `runtime.base.Runtime`.

Every random draw of a round follows from secrets that are kept until the run is finished, and the state is saved after
every round; so a run that was killed goes on where it stopped, charges nothing twice and ends as it would have.
"""

import argparse
import contextlib
import csv
import dataclasses
import functools
import hashlib
import io
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tff_pipeline import artifacts
from tff_pipeline import config as configuration
from tff_pipeline.artifacts import Workdir, is_complete, read_json, seal, secret, write_atomic, write_json
from tff_pipeline.config import Config
from tff_pipeline.errors import ArtifactError, TrainingError
from tff_pipeline.privacy import account, randomness, shares, statement
from tff_pipeline.privacy import plan as planning
from tff_pipeline.privacy.distributed import Integers
from tff_pipeline.privacy.plan import PrivacyPlan
from tff_pipeline.progress import Progress
from tff_pipeline.sampling import cohort, cohort_of_tree
from tff_pipeline.silos import Snapshot, check_compatible, load_snapshot, union_labels
from tff_pipeline.state import FORMAT, StateStore, load_arrays, save_arrays
from tff_pipeline.tokenization import Tokenizer, checkpoint_identity

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
        return artifacts.fingerprint({**self._settings(), "runtime": self.config.runtime.kind})

    @property
    def draws(self) -> str:
        """Names what a seeded run draws: other settings or data draw something else under the same seed.

        Otherwise two seeded runs would share their noise, which the difference of the two models would then lack. The
        runtime is left out: it changes nothing about the result, and so that `local` can be compared with `reference`.
        """
        return artifacts.fingerprint(self._settings())

    def _settings(self) -> dict[str, Any]:
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
        progress.event("train", f"run {run.name} is finished already", run=run.name, finished_before=True)
        return run
    with account.exclusively(config):
        _run(work, progress)
    return run


def _run(work: Job, progress: Progress) -> None:
    """1. base weights  2. plan and budget  3. description  4. process and runtime  5. rounds  6. seal."""
    from tff_pipeline.model.network import base_network

    config, run = work.config, work.folder
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
    secrets = _Secrets(work)
    charges = account.opened(config, plan, run=run.name, draw=secrets.draw)
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

    if not is_complete(run / "trained"):
        with (
            _repeatable_operations(config),
            _compiled_runtime(work, network, plan, initial, progress) as (compiled, runtime),
        ):
            _rounds(work, plan, secrets, charges, compiled, runtime, initial, progress)
    _finish(work, facts)
    progress.event("train", f"run {run.name} is finished", run=run.name, rounds=plan.rounds)


def _describe(work: Job, plan: PrivacyPlan) -> dict[str, Any]:
    """Writes run.json, once; and which run is the newest."""
    config, run = work.config, work.folder
    path = run / "run.json"
    if not path.exists():
        epsilon = plan.epsilon()
        said = statement.sentences(
            plan,
            seeded=config.pipeline.seed is not None,
            silos=len(work.snapshots),
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
                    "mechanism": plan.mechanism,
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
    from tff_pipeline import learning
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
            frozen = _frozen_folder(work)
            if not is_complete(frozen):
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
                    _features_folder(work, snapshot),
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
    plan: PrivacyPlan,
    secrets: "_Secrets",
    charges: account.Account,
    compiled: Any,
    runtime: Any,
    initial: Sequence[np.ndarray],
    progress: Progress,
) -> None:
    from tff_pipeline.runtime.base import clip_of, noise_places, rotation_places, share_places, weights_of, with_weights

    run, config = work.folder, work.config
    hidden = {*noise_places(compiled), *rotation_places(compiled), *share_places(compiled)}
    kept = [place for place in range(len(compiled.state_names)) if place not in hidden]
    names = [compiled.state_names[place] for place in kept]
    store = StateStore(run, keep=config.training.keep_states)
    state = with_weights(compiled, runtime.initial_state(), initial)
    history: list[dict[str, Any]] = []
    if saved := store.latest(names):
        for place, array in zip(kept, saved[0], strict=True):
            state[place] = array
        history = saved[1]
        progress.event(
            "resume", f"going on after round {len(history)} of {plan.rounds}", round=len(history), rounds=plan.rounds
        )
    board = _TensorBoard(run / "tensorboard")
    with progress.bar("train", plan.rounds) as bar:
        bar.advance(len(history))
        for number in range(len(history), plan.rounds):
            started = time.monotonic()
            cohorts = {
                snapshot.silo: _cohort(
                    plan, secrets.sampling(snapshot.silo), number=number, clients=work.units_of(snapshot)
                )
                for snapshot in work.snapshots
            }
            charges.charge(number + 1)
            clip = clip_of(compiled, state)
            filled, drawn = _with_inputs(compiled, state, secrets, number, plan)
            result = runtime.run_round(filled, cohorts, round_number=number, shares=drawn)
            sampled = sum(len(rows) for rows in cohorts.values())
            _note_placement(run, runtime, progress)
            # A silo that is a client and has no text takes its turn, and adds nothing.
            at_work = sum(len(cohorts[snapshot.silo]) for snapshot in work.snapshots if snapshot.count("train"))
            _require_usable(number + 1, at_work, result.metrics, weights_of(compiled, result.state), run)
            state = result.state
            entry = _entry(number + 1, sampled, result, plan, time.monotonic() - started)
            if plan.metrics_stddev:
                entry["released_accuracy"] = _released_accuracy(result.metrics, secrets.metrics(number, plan), plan)
            if clip is not None:
                entry["clip_norm"] = round(clip, 6)
            history.append(entry)
            store.save(number + 1, [state[place] for place in kept], names, history)
            _write_history(run / "rounds.csv", history)
            board.write(entry)
            bar.advance(
                **{
                    key: entry[key]
                    for key in ("round", "loss", "accuracy", "clients", "epsilon", "seconds")
                    if entry[key] is not None
                },
                rounds=plan.rounds,
                left_s=round(_left(history, plan.rounds)),
            )
    save_arrays(run / "trained", weights_of(compiled, state), kind="weights", rounds=plan.rounds)


def _cohort(plan: PrivacyPlan, silo_secret: bytes, *, number: int, clients: int) -> np.ndarray:
    """The rows of a silo's clients that take part in a round, drawn as the plan's accounting assumes."""
    draw = functools.partial(cohort_of_tree, rounds_per_tree=plan.rounds_per_tree) if plan.rounds_per_tree else cohort
    return draw(silo_secret, round_number=number, clients=clients, probability=plan.sampling_probability)


def _with_inputs(
    compiled: Any, state: list[np.ndarray], secrets: "_Secrets", number: int, plan: PrivacyPlan
) -> tuple[list[np.ndarray], Callable[[str, np.ndarray | None], np.ndarray] | None]:
    """The state with what the server draws for the round, and what the silos draw, where they do."""
    from tff_pipeline.runtime.base import noise_places, with_noise, with_rotation

    if plan.integers:
        return with_rotation(compiled, state, secrets.rotation(number)), functools.partial(
            secrets.share, number=number, integers=plan.integers
        )
    if noise_places(compiled):
        state = with_noise(compiled, state, secrets.noise(number, plan, compiled.shapes))
    return state, None


class _Secrets:
    """What the run's random draws follow from: a secret in each silo, for its sampling and its share of the noise where
    silos add it, and the server's, for the noise where the server does."""

    def __init__(self, work: Job):
        self._work, self._seed = work, work.config.pipeline.seed

    def sampling(self, silo: str) -> bytes:
        return self._secret(_sampling_key(self._work, silo), f"sampling/{silo}")

    def noise(self, number: int, plan: PrivacyPlan, shapes: Sequence[Sequence[int]]) -> list[np.ndarray]:
        if not plan.private:
            return [np.zeros(shape) for shape in shapes]
        key = self._server_key()
        if plan.rounds_per_tree:
            return randomness.tree_noise(
                key,
                round_number=number,
                rounds_per_tree=plan.rounds_per_tree,
                stddev=plan.noise_stddev,
                shapes=shapes,
            )
        return randomness.round_noise(
            key,
            round_number=number,
            stddev=plan.noise_stddev,
            shapes=shapes,
            count_stddev=plan.clip_count_stddev,
        )

    def metrics(self, number: int, plan: PrivacyPlan) -> list[float]:
        """The noise on the sums that a round's metrics are released as."""
        return randomness.metrics_noise(self._server_key(), round_number=number, stddev=plan.metrics_stddev)

    def share(self, silo: str, total: np.ndarray | None, *, number: int, integers: Integers) -> np.ndarray:
        """A silo's share of a round's noise, int64 [length], for its sum."""
        key = _sampling_key(self._work, silo)
        return shares.share(key, self.sampling(silo), total, silo=silo, round_number=number, integers=integers)

    def rotation(self, number: int) -> np.ndarray:
        """The public seed of a round's rotation, int64 [2]."""
        return randomness.uniform_words(randomness.derive(self._noise(), f"rotation/{number}"), 2).view(np.int64)

    @property
    def draw(self) -> str:
        """Identifies these secrets in the ledger without telling them."""
        keys = [self._noise(), *(self.sampling(snapshot.silo) for snapshot in self._work.snapshots)]
        return hashlib.sha256(b"draw" + b"".join(keys)).hexdigest()[:16]

    def _server_key(self) -> bytes:
        # From all secrets, not the server's alone: where one silo's was lost and a round is done again, its cohort is another,
        # and the difference of two sums with the same noise would be without any. In trees its clients have another turn.
        return randomness.derive(self._noise(), f"noise/{self.draw}")

    def _noise(self) -> bytes:
        return self._secret(self._work.folder / "keys" / "noise.key", "noise")

    def _secret(self, path: Path, purpose: str) -> bytes:
        seed = self._seed
        named = f"{self._work.draws}/{purpose}"
        return secret(path, None if seed is None else lambda: randomness.seeded_secret(seed, named))


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
    if at_work and not metrics["finite_clients"]:
        raise TrainingError(
            f"round {number}: none of the {at_work} clients' updates was finite (the loss is not a number). {kept}"
        )
    if metrics.get("update_non_finite") or not all(np.isfinite(array).all() for array in weights):
        raise TrainingError(f"round {number}: the sum of the updates or the new weights are not finite. {kept}")


def _entry(number: int, sampled: int, result: Any, plan: PrivacyPlan, seconds: float) -> dict[str, Any]:
    """One round as the history keeps it. Epsilon is worked out now and then, and after the last round."""
    due = plan.private and (number == plan.rounds or number % max(1, plan.rounds // _EPSILONS_SHOWN) == 0)
    metrics = result.metrics
    seen = metrics["instances"] > 0
    return {
        "round": number,
        "clients": sampled,
        "finite_clients": int(metrics["finite_clients"]),
        "examples": int(metrics["instances"]),
        "loss": metrics["loss"] if seen else None,
        "accuracy": metrics["accuracy"] if seen else None,
        "epsilon": round(plan.epsilon(number), 4) if due else None,
        "seconds": round(seconds, 3),
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


def _left(history: Sequence[Mapping[str, Any]], rounds: int) -> float:
    """Seconds left, from the median of the last ten rounds."""
    return float(np.median([entry["seconds"] for entry in history[-10:]])) * (rounds - len(history))


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


def _finish(work: Job, facts: Mapping[str, Any]) -> None:
    """Removes the run's secrets and features, and seals the run."""
    run = work.folder
    shutil.rmtree(run / "keys", ignore_errors=True)
    shutil.rmtree(_frozen_folder(work), ignore_errors=True)
    for snapshot in work.snapshots:
        key = _sampling_key(work, snapshot.silo)
        shares.memory(key).unlink(missing_ok=True)
        key.unlink(missing_ok=True)
        shutil.rmtree(_features_folder(work, snapshot), ignore_errors=True)
    seal(
        run,
        {
            "kind": "run",
            "format": FORMAT,
            **{key: facts[key] for key in ("id", "name", "snapshots", "labels", "rounds", "plan", "guarantee")},
        },
    )


def _sampling_key(work: Job, silo: str) -> Path:
    return Workdir(work.config.workdir).silo_keys(silo) / f"sampling-{work.id}.key"


def _frozen_folder(work: Job) -> Path:
    return work.folder / "frozen"


def _features_folder(work: Job, snapshot: Snapshot) -> Path:
    return Workdir(work.config.workdir).silo(snapshot.silo) / "features" / work.id


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
