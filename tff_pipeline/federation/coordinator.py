"""A run from the coordinator's side: it brings the silos together, runs the rounds, and seals the run.

    1. hello     every silo tells facts about its data; they make the run: its labels, its population, its id
    2. join      every silo agrees to the run's terms, and commits to its key
    3. base      every silo is sent the weights to start from, and prepares what its clients are fed with
    4. rounds    as in any runtime: the loop, the server and the store are those of training
    5. finish    the run is sealed; every silo removes its keys

The coordinator's files are the population's ledger, the server's key, and the run. It never has a silo's text, sum, cohort or
key, and no path of a silo. A run that was killed goes on where it stopped: the silos are brought together again from the
same files, and so find the same run.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np

from tff_pipeline import __version__, artifacts
from tff_pipeline import config as configuration
from tff_pipeline.artifacts import Workdir, is_complete, read_json
from tff_pipeline.config import Config, Patience
from tff_pipeline.data.snapshots import RemoteSnapshot, check_compatible, union_labels
from tff_pipeline.data.tokenization import Tokenizer
from tff_pipeline.errors import ArtifactError, ProtocolError, TrainingError
from tff_pipeline.federation import messages
from tff_pipeline.federation.agreement import Agreement
from tff_pipeline.privacy import plan as planning
from tff_pipeline.privacy.draws import draw_digest, draw_name
from tff_pipeline.privacy.ledger import Ledger
from tff_pipeline.privacy.party_charges import PopulationAccount
from tff_pipeline.privacy.plan import PrivacyPlan
from tff_pipeline.privacy.round import Round
from tff_pipeline.privacy.server_draws import ServerDraws
from tff_pipeline.progress import Progress
from tff_pipeline.runtime.network import requests
from tff_pipeline.runtime.network.link import Answer, Link, Refusal
from tff_pipeline.runtime.network.server_rounds import NetworkRuntime, SecureRounds
from tff_pipeline.training import run as training
from tff_pipeline.training import secrets
from tff_pipeline.training.description import announce, describe
from tff_pipeline.training.job import Job
from tff_pipeline.training.store import StateStore

if TYPE_CHECKING:
    from tff_pipeline.learning.process import Compiled

M = TypeVar("M", bound=msgspec.Struct)


@dataclasses.dataclass(frozen=True)
class Consortium:
    """Who takes part.

    Attributes:
      roster: the Ed25519 public key of every silo, by name.
      threshold: the number of silos without which nothing is unmasked.
    """

    roster: Mapping[str, bytes]
    threshold: int


class Coordinator:
    """Runs one configuration over a link.

    Args:
      config: the process, as the coordinator has it; its silos are those of the consortium.
      consortium: who takes part.
      link: to the silos.
      patience: how long to wait for them.
      progress: for events.
    """

    def __init__(self, config: Config, consortium: Consortium, link: Link, patience: Patience, progress: Progress):
        self._config, self._consortium, self._link = config, consortium, link
        self._patience, self._progress = patience, progress
        # What a silo that was restarted is told again.
        self._terms: messages.Terms | None = None
        self._start: messages.Base | None = None
        self._ready: dict[str, messages.Ready] = {}

    def run(self) -> Path:
        """Trains, or goes on training, the run of this configuration and these silos' data.

        Returns:
          The run's folder, complete.

        Raises:
          PrivacyError: if the plan cannot be accounted for, or the budget does not suffice.
          TrainingError: if silos are missing or refuse, or a round's result cannot be used; the last good state is kept.
        """
        work = self._job()
        if is_complete(work.folder):
            self._progress.event("train", f"run {work.id} is finished already", run=work.id, finished_before=True)
        else:
            ledger = self._ledger()
            with ledger.exclusively():
                facts = self._train(work, ledger)
                training.finish(work, facts, self._progress)
        self._finish(work)
        return work.folder

    def _job(self) -> Job:
        """What the silos' facts make: the run, found again from the same data."""
        config = self._config
        hello = messages.Hello(version=messages.VERSION, software=__version__)
        told = self._all("hello", dict.fromkeys(self._consortium.roster, hello), messages.Facts)
        snapshots = []
        for name, facts in sorted(told.items()):
            if facts.silo != name:
                raise TrainingError(
                    f"silo {name}: says that it is silo {facts.silo!r}; expected the silo that its connection belongs to. Correct the name in its own file."
                )
            snapshots.append(RemoteSnapshot.told(id=facts.snapshot, **_fields(facts, without=("snapshot",))))
        ordered = tuple(sorted(snapshots, key=lambda own: [silo.name for silo in config.silos].index(own.silo)))
        tokenizer = Tokenizer.from_config(config.model, config.prepare.max_length)
        check_compatible(ordered, tokenizer, config)
        labels = configuration.known_labels(config) or union_labels(ordered)
        if len(labels) < 2:
            raise ArtifactError(
                f"the silos' snapshots hold {len(labels)} different label(s); expected at least 2 to tell apart."
            )
        return Job(config, ordered, tokenizer, labels)

    def _train(self, work: Job, ledger: Ledger) -> Mapping[str, Any]:
        from tff_pipeline.training.wiring import compiled_of

        config, run = self._config, work.folder
        if is_complete(run / "trained") and (run / "run.json").exists():
            return read_json(run / "run.json")
        network, base = training.base_of(work)
        initial = base[-len(network.trained_variables(config.model.trainable)) :]
        plan = planning.make(config, clients=work.units, dimension=sum(array.size for array in initial))
        compiled = compiled_of(work, network, initial, plan, self._progress)
        commitments = self._join(work, compiled, plan)
        server = ServerDraws(plan, secrets.server_key_of(work))
        digest_of_network = training.network_digest(network, base)
        origin = secrets.origin(work, digest_of_network)
        draw = draw_digest(origin, server.key.commitment, commitments)
        fed = self._base(work, server, commitments, origin, digest_of_network, base)
        store = StateStore(run, keep=config.training.keep_states)
        account = PopulationAccount(
            ledger, config.privacy.budget_epsilon, plan, run=run.name, draw=draw_name(draw), done=store.rounds_done()
        )
        facts = describe(work, plan)
        announce(facts, plan, self._progress)
        rounds = SecureRounds(
            self._link,
            self._consortium.roster,
            self._consortium.threshold,
            session=work.id,
            charges=account,
            folder=run,
            patience=self._patience,
            tell=self._progress.event,
            rejoin=self._rejoin,
        )
        self._rounds(work, compiled, initial, server, _Draws(plan, draw), rounds, store, fed)
        return facts

    def _rounds(
        self,
        work: Job,
        compiled: "Compiled",
        initial: Sequence[np.ndarray],
        server: ServerDraws,
        draws: "_Draws",
        rounds: SecureRounds,
        store: StateStore,
        fed: str,
    ) -> None:
        from tff_pipeline.training.loop import Loop, Position
        from tff_pipeline.training.releases import Releases

        with NetworkRuntime(compiled, server, rounds) as runtime, self._progress.bar("train", draws.plan.rounds) as bar:
            position = Position.newest(store, runtime.initial_state().with_weights(initial))
            releases = Releases(work.folder, server, self._progress, bar)
            releases.resumed(len(position.history))
            loop = Loop(
                draws=draws,
                charges=_ChargedInTheRound(),
                runtime=runtime,
                store=store,
                releases=releases,
                fed=fed,
                silos_with_text=frozenset(),
                run=work.folder,
            )
            releases.weights(loop.rounds(position).weights)

    def _join(self, work: Job, compiled: "Compiled", plan: PrivacyPlan) -> dict[str, str]:
        """Every silo's commitment, once it has agreed."""
        silos, threshold = tuple(sorted(self._consortium.roster)), self._consortium.threshold
        agreement = Agreement.of(compiled, plan, labels=work.labels, silos=silos, threshold=threshold)
        terms = messages.Terms(
            run=work.id,
            seeded=work.draws,
            silos=silos,
            threshold=threshold,
            labels=work.labels,
            units=work.units,
            largest_weight=work.largest_weight,
            process=agreement.digest,
        )
        self._terms = terms
        joined = self._all("join", dict.fromkeys(silos, terms), messages.Joined)
        return {name: answer.commitment for name, answer in joined.items()}

    def _base(
        self,
        work: Job,
        server: ServerDraws,
        commitments: Mapping[str, str],
        origin: str,
        network: str,
        base: Sequence[np.ndarray],
    ) -> str:
        """Sends every silo what the run starts from; gives a digest of what clients are fed with."""
        message = messages.Base(
            run=work.id,
            origin=origin,
            server=server.key.commitment,
            silos=dict(commitments),
            network=network,
            weights=requests.arrays_of(base),
        )
        ready = self._all("base", dict.fromkeys(commitments, message), messages.Ready)
        self._start, self._ready = message, ready
        frozen = {artifacts.canonical_json(answer.frozen) for answer in ready.values()}
        if len(frozen) > 1:
            raise TrainingError(
                "the silos have made different files of the weights that are not trained; expected the same of all, since they were sent the same. Do all run the same versions?"
            )
        features = [ready[snapshot.silo].features for snapshot in work.snapshots]
        return artifacts.canonical_json([*features, *(answer.frozen for answer in [*ready.values()][:1])]).decode()

    def _rejoin(self, name: str) -> bool:
        """Brings a silo that was restarted into the run again, if it is what it was: its key, and what its clients are fed with."""
        if self._terms is None or self._start is None:
            return False
        try:
            for stage, message, kind, expected in (
                ("join", self._terms, messages.Joined, messages.Joined(commitment=self._start.silos[name])),
                ("base", self._start, messages.Ready, self._ready[name]),
            ):
                ((_, outcome),) = self._once(stage, {name: message})
                if not isinstance(outcome, Answer):
                    return False
                if requests.decode(outcome.content, kind, where=f"answer of silo {name} to {stage}") != expected:
                    self._progress.event(
                        "rejoin",
                        f"silo {name} is back with another key, or other data, than it began the run with; it stays out. Start the coordinator again: everything is then drawn anew",
                        silo=name,
                    )
                    return False
        except ProtocolError as error:
            self._progress.event("rejoin", str(error), silo=name)
            return False
        self._progress.event("rejoin", f"silo {name} is back in the run", silo=name)
        return True

    def _finish(self, work: Job) -> None:
        """Has the silos remove their keys. One that is not there does so when it is asked for the next run, or by `abandon`."""
        finish = messages.Finish(run=work.id)
        for name, answer in self._once(
            "finish", dict.fromkeys(self._link.silos() & self._consortium.roster.keys(), finish)
        ):
            if not isinstance(answer, Answer):
                self._progress.event(
                    "finish",
                    f"silo {name} keeps its key of run {work.id}; `tff-pipeline abandon` there removes it",
                    silo=name,
                )

    def _ledger(self) -> Ledger:
        config = self._config
        path = Workdir(config.workdir).ledger(config.population)
        return Ledger(path, config.population, unit=config.privacy.unit)

    def _all(self, stage: str, asked: Mapping[str, msgspec.Struct], kind: type[M]) -> dict[str, M]:
        """The answers of all silos; they are waited for, and asked again where they refuse.

        Raises:
          TrainingError: naming the silos that have not answered in time, and why.
        """
        answers: dict[str, M] = {}
        reasons = dict.fromkeys(asked, "is not connected")
        end, said = time.monotonic() + self._patience.silos, ""
        while True:
            connected = self._link.silos()
            waiting = {name: message for name, message in asked.items() if name not in answers and name in connected}
            reasons |= dict.fromkeys(asked.keys() - answers.keys() - connected, "is not connected")
            for name, outcome in self._once(stage, waiting):
                if isinstance(outcome, Answer):
                    answers[name] = requests.decode(outcome.content, kind, where=f"answer of silo {name} to {stage}")
                elif isinstance(outcome, Refusal):
                    reasons[name] = f"refuses: {outcome.reason}"
                else:
                    reasons[name] = f"did not answer ({outcome.how})"
            missing = {name: reasons[name] for name in sorted(asked.keys() - answers.keys())}
            if not missing:
                return answers
            sentence = "; ".join(f"silo {name} {reason}" for name, reason in missing.items())
            if time.monotonic() > end:
                raise TrainingError(
                    f"{stage}: not all silos of the consortium take part in the run: {sentence}. Nothing was trained. Start the run again when that is put right: it goes on from here."
                )
            if sentence != said:
                self._progress.event("waiting", f"{stage}: {sentence}", stage=stage, silos=sorted(missing))
                said = sentence
            time.sleep(min(1.0, max(0.0, end - time.monotonic())))

    def _once(self, stage: str, asked: Mapping[str, msgspec.Struct]) -> Sequence[tuple[str, Any]]:
        """Every silo's outcome. A run's messages are no round's: they have number 0."""
        if not asked:
            return []
        encoded: dict[int, bytes] = {}
        sent = {
            name: encoded.setdefault(id(message), msgspec.msgpack.encode(message)) for name, message in asked.items()
        }
        return list(self._link.ask(stage, 0, sent, self._patience.work if stage != "hello" else self._patience.stage))


class _Draws:
    """The run's draw, as the loop of rounds asks for it. The silos' own draws are theirs."""

    def __init__(self, plan: PrivacyPlan, digest: str):
        self.plan, self._digest = plan, digest

    def round(self, starts: Sequence[str]) -> Round:
        return Round(self._digest, tuple(starts))

    def begin(self, at: Round) -> None:
        """The silos note a round when they are asked to advertise keys."""


class _ChargedInTheRound:
    """The population and the silos are charged within the round's protocol, before anything is computed."""

    def charge(self, round_number: int, *, start: str = "") -> None:
        """Nothing is charged here."""


def _fields(struct: msgspec.Struct, *, without: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(struct, name) for name in struct.__struct_fields__ if name not in without}
