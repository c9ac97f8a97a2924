"""What leaves a run for people: the metrics of its rounds and its trained weights. This is the only exit.

A round's metrics become an entry of the run's history here, and lose what must not be told: where the silos add the noise,
everything that shows how many clients took part or how long their work took.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tff_pipeline.artifacts import write_atomic, write_json
from tff_pipeline.privacy.mechanisms import NoisedMetrics
from tff_pipeline.privacy.plan import PrivacyPlan
from tff_pipeline.privacy.round import Round
from tff_pipeline.privacy.server_draws import ServerDraws
from tff_pipeline.progress import Bar, Progress
from tff_pipeline.rounding import rounded_up
from tff_pipeline.runtime.base import RoundResult, Runtime, off_device
from tff_pipeline.training.store import save_arrays

if TYPE_CHECKING:
    import tensorflow as tf

_EPSILONS_SHOWN = 20  # how often a run works out the epsilon so far: half a second each time
_SHOWN = ("round", "loss", "accuracy", "clients", "epsilon", "seconds")


class Releases:
    """The exit of one run.

    Args:
      run: its folder.
      draws: the server's, for the noise on metrics.
      progress: for events.
      bar: the run's, a step a round.
    """

    def __init__(self, run: Path, draws: ServerDraws, progress: Progress, bar: Bar):
        self._run, self._draws, self._plan, self._progress, self._bar = run, draws, draws.plan, progress, bar
        self._board = _TensorBoard(run / "tensorboard")
        self._seconds: list[float] = []  # of the rounds of this process

    def entry(self, at: Round, result: RoundResult, *, clip: float | None, seconds: float) -> dict[str, Any]:
        """A round as the history keeps it.

        Args:
          at: the round.
          result: what it gave.
          clip: its clip, where that is adaptive.
          seconds: how long it took.
        """
        self._seconds.append(seconds)
        entry = _entry(at.number + 1, result, self._plan, seconds)
        noised = self._plan.noised_metrics
        if noised is not None:
            entry["released_accuracy"] = _released_accuracy(result.metrics, self._draws.metrics_noise(at), noised)
        if clip is not None:
            entry["clip_norm"] = round(clip, 6)
        return entry

    def resumed(self, rounds_done: int) -> None:
        """Says how far the run was already."""
        if rounds_done:
            self._progress.event(
                "resume",
                f"going on after round {rounds_done} of {self._plan.rounds}",
                round=rounds_done,
                rounds=self._plan.rounds,
            )
        self._bar.advance(rounds_done)

    def round(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Releases the newest round of the history, whose state has been saved: as a table, to TensorBoard, on the terminal."""
        entry, rounds = history[-1], self._plan.rounds
        _write_history(self._run / "rounds.csv", history)
        self._board.write(entry)
        shown = {name: entry[name] for name in _SHOWN if entry[name] is not None}
        # From the median of the last ten.
        left = float(np.median(self._seconds[-10:])) * (rounds - len(history))
        self._bar.advance(**shown, rounds=rounds, left_s=round(left))

    def weights(self, weights: Sequence[np.ndarray]) -> None:
        """Releases the trained weights, in the model's order."""
        save_arrays(self._run / "trained", weights, kind="weights", rounds=self._plan.rounds)

    def placement(self, runtime: Runtime) -> None:
        """Writes placement.json once clients have worked, and says so if a GPU was to work and the CPU did."""
        if self._plan.mechanism.silos_add_noise:  # the first round in which anybody took part would show
            return
        path = self._run / "placement.json"
        if path.exists() or not (placement := runtime.placement()):
            return
        elsewhere = off_device(placement, runtime.devices)
        write_json(path, {"devices": list(runtime.devices), "operations": placement, "elsewhere": elsewhere})
        if elsewhere:
            self._progress.event(
                "placement",
                f"{sum(elsewhere.values())} of the model's operations did not run on {', '.join(runtime.devices)}; {path} lists them",
                elsewhere=elsewhere,
            )


def _entry(number: int, result: RoundResult, plan: PrivacyPlan, seconds: float) -> dict[str, Any]:
    """One round as the history keeps it. Epsilon is worked out now and then, and after the last round."""
    due = plan.private and (number == plan.rounds or number % max(1, plan.rounds // _EPSILONS_SHOWN) == 0)
    silent = plan.mechanism.silos_add_noise  # then nothing that tells of the cohort is kept
    metrics = {} if silent else result.metrics
    seen = metrics.get("instances", 0) > 0
    return {
        "round": number,
        "clients": None if silent or result.cohorts is None else sum(map(len, result.cohorts.values())),
        "finite_clients": int(metrics["finite_clients"]) if metrics else None,
        "examples": int(metrics["instances"]) if metrics else None,
        "loss": metrics["loss"] if seen else None,
        "accuracy": metrics["accuracy"] if seen else None,
        "epsilon": float(rounded_up(plan.epsilon(number))) if due else None,
        "seconds": None if silent else round(seconds, 3),
        # To and from each silo.
        "bytes_down": result.bytes_down,
        "bytes_up": result.bytes_up,
    }


def _released_accuracy(metrics: Mapping[str, float], noise: Sequence[float], noised: NoisedMetrics) -> float:
    """The mean of the clients' own accuracies from two noised sums, of which one client changes each by at most one."""
    from tff_pipeline.model.learner import MILLION

    sums = metrics["client_accuracy"] / MILLION, metrics["finite_clients"]
    accuracies, clients = (noised.released(total + added) for total, added in zip(sums, noise, strict=True))
    return round(min(1.0, max(0.0, accuracies / max(1.0, clients))), 4)


def _write_history(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    table = io.StringIO()
    writer = csv.DictWriter(table, list(history[0]))
    writer.writeheader()
    writer.writerows(history)
    write_atomic(path, table.getvalue().encode())


class _TensorBoard:
    """Scalars by round, for `tensorboard --logdir`; nothing is opened before the first."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._writer: tf.summary.SummaryWriter | None = None

    def write(self, entry: Mapping[str, Any]) -> None:
        import tensorflow as tf

        writer = self._writer = self._writer or tf.summary.create_file_writer(str(self._folder))
        with writer.as_default(step=entry["round"]):
            for name, value in entry.items():
                if name != "round" and value is not None:
                    tf.summary.scalar(name, value)
        writer.flush()
