"""Three companies that train together, each with its own files: a coordinator and silos in this process, over a loopback link."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from builders import compiled
from builders.tiny import Row, quiet, vocabulary
from tff_pipeline.config import parties as settings
from tff_pipeline.config.parties import CoordinatorFile, SiloFile

THREE: dict[str, list[Row]] = {
    "bank": [("a", "lost my card", "card"), ("b", "send money", "money"), ("c", "my card", "card")],
    "insurer": [("d", "lost my card", "card"), ("e", "money to anna", "money")],
    "shop": [("f", "where is my parcel", "parcel"), ("g", "money to paris", "money")],
}
PROCESS = """
silos = [{silos}]
[pipeline]
name = "tiny"
{seed}
[prepare]
max_length = 16
[model]
checkpoint = "random"
vocabulary = "vocab.txt"
hidden_size = 16
intermediate_size = 32
trainable = "{trainable}"
[training]
rounds = {rounds}
clients_per_round = 4
client_learning_rate = 0.5
server_momentum = 0.0
[privacy]
{privacy}
"""
GAUSSIAN = 'mechanism = "gaussian"\nclip_norm = 1.0\nnoise_multiplier = 1.0\ndelta = 1e-3'
DISTRIBUTED = GAUSSIAN.replace("gaussian", "distributed_discrete_gaussian") + "\ntolerated_silos = 1"


@dataclasses.dataclass(frozen=True)
class Parties:
    """The parties' files. `link` makes the silos' services from them, as their processes would.

    Attributes:
      folder: of all parties' folders; each party looks into its own.
      silos: the silos' files, by name.
      coordinator: the coordinator's file.
      keys: the silos' identity keys, by name.
      running: the newest service of each silo, by name.
    """

    folder: Path
    silos: Mapping[str, SiloFile]
    coordinator: CoordinatorFile
    keys: Mapping[str, Ed25519PrivateKey]
    running: dict[str, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def roster(self) -> dict[str, bytes]:
        return {name: key.public_key().public_bytes_raw() for name, key in self.keys.items()}

    def config_of(self, name: str) -> Any:
        return settings.silo_config(self.silos[name])

    def prepare(self) -> None:
        """Each silo prepares its own text."""
        from beam_jobs.prepare_silo import prepare

        compiled.share()  # all parties of a process compile the same
        for name in self.silos:
            prepare(self.config_of(name), name, progress=quiet())

    def service(self, name: str) -> Any:
        """The silo's service, as a new process has it."""
        from tff_pipeline.federation.silo import Identity, SiloParty

        if name in self.running:
            self.running.pop(name).close()  # what the end of its process does
        own = self.silos[name]
        party = SiloParty(self.config_of(name), Identity(name, self.keys[name], self.roster), own.policy, quiet())
        self.running[name] = party
        return party

    def link(self, **options: Any) -> Any:
        from tff_pipeline.runtime.network.loopback import LoopbackLink

        return LoopbackLink({name: functools.partial(self.service, name) for name in self.silos}, **options)

    def coordinate(self, link: Any, progress: Any = None, **patience: Any) -> Path:
        """Runs the coordinator to the end."""
        from tff_pipeline.config import Patience
        from tff_pipeline.federation.coordinator import Consortium, Coordinator

        config = settings.coordinator_config(self.coordinator)
        waits = Patience(**{"stage": 5.0, "work": 60.0, "silos": 0.0, **patience})
        who = Consortium(self.roster, self.coordinator.threshold)
        return Coordinator(config, who, link, waits, progress or quiet()).run()

    def approve(self) -> list[str]:
        """Every data steward approves what waits; gives the digests."""
        from tff_pipeline.federation.approvals import Approvals

        approved = []
        for own in self.silos.values():
            approvals = Approvals(Path(own.workdir))
            if pending := approvals.pending():
                approvals.approve(pending["process"])
                approved.append(pending["process"])
        return approved


def parties(
    folder: Path,
    rows: Mapping[str, Sequence[Row]] = THREE,
    *,
    privacy: str = GAUSSIAN,
    trainable: str = "head",
    rounds: int = 3,
    seed: int | None = 3,
    threshold: int = 2,
    policy: str = "",
) -> Parties:
    """The files of a consortium, the silos prepared."""
    vocabulary(folder)
    said = "" if seed is None else f"seed = {seed}"
    names = ", ".join(f'"{name}"' for name in rows)
    process = PROCESS.format(silos=names, seed=said, trainable=trainable, rounds=rounds, privacy=privacy)
    (folder / "process.toml").write_text(process)
    silos = {}
    for name, own in rows.items():
        home = folder / name
        home.mkdir()
        lines = ["client,text,label", *(",".join(row) for row in own)]
        (home / "rows.csv").write_text("\n".join(lines) + "\n")
        path = home / "silo.toml"
        path.write_text(
            f"""
            name = "{name}"
            process = "../process.toml"
            workdir = "work"
            site = "kit"
            [data]
            input = {{ train = "rows.csv" }}
            format = "csv"
            client = "client"
            [policy]
            threshold = {threshold}
            {policy}
            [runtime]
            devices = "CPU"
            """
        )
        silos[name] = settings.read_silo(path)
    (folder / "coordinator").mkdir()
    path = folder / "coordinator" / "coordinator.toml"
    path.write_text(f'process = "../process.toml"\nworkdir = "work"\nsite = "kit"\nthreshold = {threshold}\n')
    keys = {name: Ed25519PrivateKey.generate() for name in rows}
    made = Parties(folder, silos, settings.read_coordinator(path), keys)
    made.prepare()
    return made
