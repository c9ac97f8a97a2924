"""The keys of a run: where each party keeps its own, what binds them into one draw, and when they are removed.

    runs/<id>/keys/noise.key                  the server's
    silos/<silo>/keys/sampling-<id>.key       a silo's, with what it has reported

They are kept until the run is sealed, so that a killed run goes on with the same draws. `tff-pipeline abandon` removes those
of runs that will not be finished; what these were charged stays charged.
"""

import contextlib
import hashlib
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from tff_pipeline.artifacts import Workdir, canonical_json, is_complete
from tff_pipeline.config import Config
from tff_pipeline.errors import ConfigError
from tff_pipeline.privacy import charges as account
from tff_pipeline.privacy import randomness
from tff_pipeline.privacy.draws import Draws
from tff_pipeline.privacy.keys import PartyKey
from tff_pipeline.privacy.plan import PrivacyPlan
from tff_pipeline.privacy.round import round_name
from tff_pipeline.privacy.server_draws import ServerDraws
from tff_pipeline.privacy.silo_draws import SiloDraws
from tff_pipeline.progress import Progress
from tff_pipeline.training.job import Job

_SILO_KEY = re.compile(r"sampling-(?P<run>[0-9a-f]{16})\.")


def draws_of(work: Job, plan: PrivacyPlan, network: str, progress: Progress) -> Draws:
    """The draws of a run, from the keys that are there, or new ones.

    A silo's key file that lacks a round which the ledgers were charged for is an older copy: what it would refuse to repeat it
    has forgotten. The key is drawn anew, and with it everything. (In a run with a seed keys follow from the seed, whatever
    was lost; its guarantee holds only against those who do not know it.)

    Args:
      work: the run.
      plan: what is drawn.
      network: a digest of the network that training begins with.
      progress: for a word about a key that is drawn anew.

    Raises:
      ArtifactError, PrivacyError: if a key or a ledger is damaged.
    """
    draws = _read(work, plan, network)
    if not plan.private or work.config.runtime.kind != "local" or work.config.pipeline.seed is not None:
        return draws
    ledgers = [ledger for ledger, _ in account.ledgers(work.config)]
    # Of all of them: a kill may have kept a charge from a silo's.
    charges = [entry for ledger in ledgers for entry in ledger.charges_of(run=work.id, draw=draws.name)]
    names = {round_name(draws.digest, entry["round"] - 1, entry.get("start", "")) for entry in charges}
    for silo, key in ((silo, own.key) for silo, own in draws.silos.items()):
        missing = sum(not key.knows(name) for name in names)
        if missing:
            progress.event(
                "keys",
                f"silo {silo}: {key.path} lacks {missing} of the rounds that its ledger was charged for, as an older copy would; "
                "all keys of the run are drawn anew, and the rounds that follow are charged as new ones",
                silo=silo,
                missing=missing,
            )
            key.renew()
            return _read(work, plan, network)
    return draws


def _read(work: Job, plan: PrivacyPlan, network: str) -> Draws:
    silos = {
        name: SiloDraws(name, plan, silo_key_of(work, name)) for name in (snapshot.silo for snapshot in work.snapshots)
    }
    return Draws(ServerDraws(plan, server_key_of(work)), silos, origin(work, network))


def server_key_of(work: Job) -> PartyKey:
    """The server's key of a run, made on first use."""
    return _key(work, server_key(work.folder), "noise")


def silo_key_of(work: Job, silo: str) -> PartyKey:
    """A silo's key of a run, made on first use."""
    return _key(work, silo_key(Workdir(work.config.workdir), silo, work.id), f"sampling/{silo}")


def _key(work: Job, path: Path, purpose: str) -> PartyKey:
    seed, named = work.config.pipeline.seed, f"{work.draws}/{purpose}"
    return PartyKey(path, None if seed is None else lambda: randomness.seeded_secret(seed, named))


def origin(work: Job, network: str) -> str:
    """A digest of what the run starts from: settings, network, and every silo's training data: contents, order, labels."""
    # With a seed both runtimes draw the same, so that they can be compared.
    runtime = work.config.runtime.kind if work.config.pipeline.seed is None else None
    data = {
        snapshot.silo: {
            "files": snapshot.checksums("train"),
            "split": snapshot.manifest["splits"].get("train"),
            "labels": snapshot.labels,
        }
        for snapshot in work.snapshots
    }
    parts = {"settings": work.settings(), "runtime": runtime, "network": network, "data": data}
    return hashlib.sha256(canonical_json(parts)).hexdigest()


def server_key(run: Path) -> Path:
    return run / "keys" / "noise.key"


def silo_key(workdir: Workdir, silo: str, run: str) -> Path:
    return workdir.silo_keys(silo) / f"sampling-{run}.key"


def remove(workdir: Workdir, run: str) -> list[Path]:
    """Removes the keys of a run and what was computed for it alone; returns what was there. Can be done again."""
    removed = unfinished_files(workdir, run)
    for path in removed:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return removed


def unfinished_files(workdir: Workdir, run: str) -> list[Path]:
    """What a run keeps only until it is finished: its keys, what was computed for it alone, and what a kill left of that."""
    paths = [workdir.runs / run / "keys", frozen_folder(workdir, run)]
    for silo in sorted(workdir.root.glob("silos/*/")):
        paths += sorted(silo.glob(f"keys/sampling-{run}.*"))
        paths.append(features_folder(workdir, silo.name, run))
        paths += sorted(silo.glob(f"features/.staging-{run}-*"))
    return [path for path in paths if path.exists()]


def frozen_folder(workdir: Workdir, run: str) -> Path:
    """Weights that a run with adapters does not train, as its graphs read them."""
    return workdir.runs / run / "frozen"


def features_folder(workdir: Workdir, silo: str, run: str) -> Path:
    """What a frozen encoder says about a silo's training texts."""
    return workdir.silo(silo) / "features" / run


def unfinished(workdir: Workdir) -> list[str]:
    """The runs that are not sealed and have a key somewhere, also those whose folder is gone."""
    runs = {path.parent.parent.name for path in workdir.runs.glob("*/keys/noise.key")}
    for path in workdir.root.glob("silos/*/keys/sampling-*"):
        if match := _SILO_KEY.match(path.name):
            runs.add(match["run"])
    return sorted(run for run in runs if not is_complete(workdir.runs / run))


def abandon(config: Config, runs: Sequence[str]) -> dict[str, list[str]]:
    """Removes the keys of unfinished runs, so that nothing can be drawn under them again.

    What they were charged stays charged. Their states stay too: a run that is started again all the same goes on from the
    newest, with new draws.

    Returns:
      For each run what was removed.

    Raises:
      ConfigError: if one of them is not an unfinished run with keys.
      PrivacyError: if a run is training there right now.
    """
    workdir = Workdir(config.workdir)
    known = unfinished(workdir)
    for run in runs:
        if run not in known:
            listed = ", ".join(known) or "none"
            raise ConfigError(
                f"{workdir.runs / run}: is not an unfinished run with keys in {workdir.root}; expected one of: {listed}."
            )
    populations, silos = account.workdir_ledgers(config)
    with contextlib.ExitStack() as stack:
        for ledger in (*populations.values(), *silos.values()):
            stack.enter_context(ledger.exclusively())
        return {run: [str(path) for path in remove(workdir, run)] for run in runs}
