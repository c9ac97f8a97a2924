"""What a run keeps on disk: its description, its base weights, its state by round, and the trained model.

    runs/<id>/
      run.json                what the run is made from: configuration, snapshots, labels, plan, guarantee
      base/                   the network's weights before training
      keys/                   the server's key; removed when the run is finished
      states/round-00012/     the server's state after 12 rounds; the newest k are kept
      rounds.csv              metrics by round, a view of what the newest state holds; tensorboard/ is another
      trained/                the weights after the last round
      evaluation.json         written by `evaluate`

Every directory that holds arrays has its own manifest and checksums, and is renamed into place when it is whole.
"""

import dataclasses
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from tff_pipeline.artifacts import is_complete, read_json, read_manifest, staged
from tff_pipeline.config import Config
from tff_pipeline.data.tokenization import Tokenizer
from tff_pipeline.errors import ArtifactError

if TYPE_CHECKING:
    from tff_pipeline.model.network import Network

FORMAT = 2


def save_arrays(
    directory: Path, arrays: Sequence[np.ndarray], *, kind: str, names: Sequence[str] | None = None, **facts: Any
) -> None:
    """Writes arrays and their manifest as one atomic artifact. Bytes become fixed-length strings; nothing is pickled."""

    def manifest() -> Mapping[str, Any]:
        return {"kind": kind, "format": FORMAT, "names": list(names) if names is not None else None, **facts}

    with staged(directory, manifest) as aside:
        plain = {
            f"{index:05d}": np.asarray(array)
            if np.asarray(array).dtype != object
            else np.asarray(array).astype(np.bytes_)
            for index, array in enumerate(arrays)
        }
        np.savez(aside / "arrays.npz", **plain)


def load_arrays(directory: Path, *, kind: str) -> tuple[list[np.ndarray], dict[str, Any]]:
    """The arrays and the manifest, after comparing checksums.

    Raises:
      ArtifactError: if the artifact is incomplete, damaged, or of another kind or format.
    """
    manifest = read_manifest(directory, check_files=True)
    if (manifest.get("kind"), manifest.get("format")) != (kind, FORMAT):
        raise ArtifactError(
            f"{directory}: holds {manifest.get('kind')!r} of format {manifest.get('format')!r}; expected {kind!r} of format {FORMAT}."
        )
    with np.load(directory / "arrays.npz") as stored:
        return [stored[key] for key in sorted(stored.files)], manifest


class StateStore:
    """The server's state by round, newest last; older than the newest `keep` are removed."""

    def __init__(self, run: Path, *, keep: int):
        self._states, self._keep = run / "states", keep

    def save(
        self,
        round_number: int,
        arrays: Sequence[np.ndarray],
        names: Sequence[str],
        history: Sequence[Mapping[str, Any]],
        starts: Sequence[str],
    ) -> None:
        """Saves the state after `round_number` rounds, in the foreground: a save that fails fails the run.

        The metrics of all rounds so far are saved with it, so that they are never ahead of the state or behind it; and what
        each of these rounds started from (`draws.digest_of`), to which its noise is bound.
        """
        directory = self._states / f"round-{round_number:05d}"
        if is_complete(directory):
            return
        save_arrays(
            directory, arrays, kind="state", names=names, round=round_number, history=list(history), starts=list(starts)
        )
        for old in sorted(self._folders())[: -self._keep]:
            shutil.rmtree(self._states / f"round-{old:05d}")

    def rounds_done(self) -> int:
        """How many rounds the newest state is of."""
        newest = self._newest()
        return newest[1]["round"] if newest else 0

    def latest(self, names: Sequence[str]) -> tuple[list[np.ndarray], list[dict[str, Any]], list[str]] | None:
        """The newest state, the metrics of its rounds (one entry a round), and what they started from; None before the first.

        Raises:
          ArtifactError: if it is damaged or renamed, or was made by a process with another state.
        """
        newest = self._newest()
        if newest is None:
            return None
        directory, manifest = newest
        arrays, _ = load_arrays(directory, kind="state")
        if manifest["names"] != list(names):
            raise ArtifactError(
                f"{directory}: holds the state of another learning process (its fields differ); expected that of this configuration and version. Start a new run."
            )
        return arrays, manifest["history"], manifest["starts"]

    def _newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest state's folder and manifest, which agree on how many rounds it is of: what is charged next follows from it."""
        folders = self._folders()
        if not folders:
            return None
        number = max(folders)
        manifest = read_manifest(folders[number])
        history = manifest.get("history", [])
        # Versions that did not bind draws to it did not keep what rounds started from.
        starts = manifest.setdefault("starts", [""] * len(history))
        if not number == manifest.get("round") == len(history) == len(starts):
            raise ArtifactError(
                f"{folders[number]}: its name, its round ({manifest.get('round')}), its metrics ({len(history)} rounds) and what its rounds started from ({len(starts)}) disagree; "
                f"expected {number} each. Was it renamed or edited? Remove it: the run goes on from the state before it."
            )
        return folders[number], manifest

    def _folders(self) -> dict[int, Path]:
        """Every complete state by the number in its name; a copy under another name is none."""
        paths = (path for path in self._states.glob("round-*") if re.fullmatch(r"round-\d{5,}", path.name))
        return {int(path.name.removeprefix("round-")): path for path in paths if is_complete(path)}


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained model as later stages use it. `facts` is run.json."""

    network: "Network"
    tokenizer: Tokenizer
    labels: tuple[str, ...]
    facts: dict[str, Any]


def config_of(run: Path) -> Config:
    """The configuration a run was made with, as it was then."""
    return msgspec.convert(read_json(run / "run.json")["config"], Config)


def load_trained(run: Path) -> Trained:
    """The model of a finished run; adapters are merged into its weights.

    Raises:
      ArtifactError: if training has not finished, or something is damaged or does not fit.
    """
    from tff_pipeline.model.network import network_of

    facts, config = read_json(run / "run.json"), config_of(run)
    if not is_complete(run / "trained"):
        raise ArtifactError(
            f"{run}: training has not finished here (there is no complete trained/). Run `tff-pipeline train` with the run's configuration; it goes on where it stopped."
        )
    base, _ = load_arrays(run / "base", kind="weights")
    trained, _ = load_arrays(run / "trained", kind="weights")
    tokenizer = Tokenizer.from_config(config.model, config.prepare.max_length)
    if tokenizer.fingerprint != facts["tokenizer"]:
        raise ArtifactError(
            f"{run}: was trained with tokenizer {facts['tokenizer']}, the checkpoint's is now {tokenizer.fingerprint}; expected the same vocabulary. Restore the checkpoint."
        )
    labels = tuple(facts["labels"])
    network = network_of(config.model, tokenizer, labels=len(labels), task=config.task.kind)
    # What was not trained comes first in the network's order, and is as it was.
    network.set_weights([*base[: len(base) - len(trained)], *trained])
    return Trained(network.merged(), tokenizer, labels, facts)
