"""A silo's side of a run, behind a link: it tells facts about its data, agrees or refuses, and takes part in the rounds.

What the silo believes is its own: its copy of the process, its roster and policy, its ledger, what its data steward has
approved. The coordinator's word is only which run it is. Everything else that a run does is worked out here again, and the
digest of it has to be one that is approved.

What leaves is what `federation.messages` and `runtime.network.requests` list. A refusal has a reason that the coordinator is
told; what concerns the silo alone (its ledger, its files, its budget) is only in its own log.
"""

import contextlib
import dataclasses
import hmac
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

import msgspec
import numpy as np

from tff_pipeline import __version__
from tff_pipeline.artifacts import Workdir
from tff_pipeline.config import Config, Policy
from tff_pipeline.data.snapshots import Snapshot, check_compatible, load_snapshot
from tff_pipeline.data.tokenization import Tokenizer
from tff_pipeline.errors import PipelineError, ProtocolError, Refused
from tff_pipeline.federation import messages, policy
from tff_pipeline.federation.agreement import Agreement
from tff_pipeline.federation.approvals import Approvals
from tff_pipeline.privacy import plan as planning
from tff_pipeline.privacy import statement
from tff_pipeline.privacy.draws import draw_digest, draw_name
from tff_pipeline.privacy.ledger import Ledger
from tff_pipeline.privacy.party_charges import SiloAccount
from tff_pipeline.privacy.plan import PrivacyPlan
from tff_pipeline.privacy.round import round_name
from tff_pipeline.privacy.silo_draws import SiloDraws
from tff_pipeline.progress import Progress
from tff_pipeline.runtime.network import requests
from tff_pipeline.training import run as training
from tff_pipeline.training import secrets
from tff_pipeline.training.job import SiloJob

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from tff_pipeline.learning.process import Compiled
    from tff_pipeline.model.network import Network
    from tff_pipeline.runtime.network.silo_rounds import SiloRounds

M = TypeVar("M", bound=msgspec.Struct)


@dataclasses.dataclass(frozen=True)
class Identity:
    """Who the silo is, and whom it knows.

    Attributes:
      name: the silo's.
      key: its Ed25519 key, which never leaves it.
      roster: the Ed25519 public key of every silo, by name.
    """

    name: str
    key: "Ed25519PrivateKey"
    roster: Mapping[str, bytes]


@dataclasses.dataclass
class _Joined:
    """A run that the silo has joined."""

    terms: messages.Terms
    work: SiloJob
    plan: PrivacyPlan
    network: "Network"
    compiled: "Compiled"
    draws: SiloDraws
    open: contextlib.ExitStack
    draw: str = ""
    rounds: "SiloRounds | None" = None
    rounds_open: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)


class SiloParty:
    """One silo, as a link calls it (`runtime.network.link.SiloService`). Close it when it is done with.

    Args:
      config: the process, as this silo has it.
      identity: who it is.
      agreed: its policy.
      progress: for events; they stay here.
    """

    def __init__(self, config: Config, identity: Identity, agreed: Policy, progress: Progress):
        self._config, self._identity, self._policy, self._progress = config, identity, agreed, progress
        self._workdir = Workdir(config.workdir)
        self.approvals = Approvals(config.workdir)
        self._run: _Joined | None = None
        self._moved = 0  # bytes of the round that is under way
        self._stages: dict[str, Callable[[bytes | memoryview], bytes]] = {
            "hello": self._hello,
            "join": self._join,
            "base": self._base,
            "finish": self._finish,
        }

    def answer(self, stage: str, round_number: int, request: bytes | memoryview) -> bytes:
        """The answer to a request.

        Raises:
          Refused: if the silo does not take part; with the reason that the coordinator is told.
        """
        try:
            policy.require_hours(self._policy, time.strftime("%H:%M"))
            if stage in self._stages:
                return self._stages[stage](request)
            return self._in_round(stage, round_number, request)
        except Refused:
            raise
        except ProtocolError as error:  # of the messages of others, which they know
            raise Refused(str(error)) from None
        except PipelineError as error:
            kind = type(error).__name__
            raise Refused(
                f"the silo cannot take part in stage {stage[:40]!r} ({kind}); its own log says why.", private=str(error)
            ) from None

    def close(self) -> None:
        """Gives up what is under way. Nothing is lost: the silo goes on from its files."""
        if self._run is not None:
            self._run.rounds_open.close()
            self._run.open.close()
            self._run = None

    # -- before the rounds

    def _hello(self, request: bytes | memoryview) -> bytes:
        hello = _decode(request, messages.Hello)
        if hello.version != messages.VERSION:
            raise Refused(
                f"the coordinator speaks version {hello.version} of the protocol (software {hello.software[:40]}); this silo speaks {messages.VERSION} (software {__version__}). Bring both to one version."
            )
        own = self._snapshot()
        return msgspec.msgpack.encode(
            messages.Facts(
                silo=own.silo,
                snapshot=own.id,
                task=own.task,
                tokenizer=own.manifest["tokenizer"]["fingerprint"],
                labels=own.labels,
                train=own.manifest["splits"].get("train"),
                checksums=own.checksums("train"),
            )
        )

    def _snapshot(self) -> Snapshot:
        return load_snapshot(self._workdir, self._identity.name)

    def _join(self, request: bytes | memoryview) -> bytes:
        terms = _decode(request, messages.Terms)
        policy.require_terms(self._policy, self._identity.roster.keys(), terms)
        if self._run is None or self._run.terms != terms:
            self.close()
            self._run = self._joined(terms)
        return msgspec.msgpack.encode(messages.Joined(commitment=self._run.draws.key.commitment))

    def _joined(self, terms: messages.Terms) -> _Joined:
        """Works out what the run would do, and joins it if that is approved."""
        from tff_pipeline.model.network import base_network
        from tff_pipeline.training.wiring import compiled_of, repeatable_operations

        config, own = self._config, self._snapshot()
        tokenizer = Tokenizer.from_config(config.model, config.prepare.max_length)
        check_compatible([own], tokenizer, config)
        own.label_map(terms.labels)  # refuses labels that the model would not know
        work = SiloJob(
            config,
            (own,),
            tokenizer,
            terms.labels,
            run=terms.run,
            seeded=terms.seeded,
            population=terms.units,
            weight=terms.largest_weight,
        )
        with contextlib.ExitStack() as stack:
            stack.enter_context(repeatable_operations(config))
            network = base_network(
                config.model, tokenizer, labels=len(terms.labels), task=config.task.kind, seed=config.pipeline.seed
            )
            initial = [variable.numpy() for variable in network.trained_variables(config.model.trainable)]
            plan = planning.make(config, clients=terms.units, dimension=sum(array.size for array in initial))
            self._require_tolerated(plan, terms)
            compiled = compiled_of(work, network, initial, plan, self._progress)
            agreement = Agreement.of(compiled, plan, labels=terms.labels, silos=terms.silos, threshold=terms.threshold)
            self._require_approved(agreement, terms)
            draws = SiloDraws(self._identity.name, plan, secrets.silo_key_of(work, self._identity.name))
            return _Joined(terms, work, plan, network, compiled, draws, stack.pop_all())

    def _require_tolerated(self, plan: PrivacyPlan, terms: messages.Terms) -> None:
        """Where silos add the noise, that of the silos that stay has to be worth what is promised."""
        may_be_missing = len(terms.silos) - terms.threshold + self._policy.colluding
        if plan.mechanism.silos_add_noise and self._config.tolerated_silos < may_be_missing:
            raise Refused(
                f"privacy.tolerated_silos is {self._config.tolerated_silos}; expected at least {may_be_missing}, since {len(terms.silos) - terms.threshold} of {len(terms.silos)} silos may drop out of a round and {self._policy.colluding} collude, and the noise of the others has to be enough."
            )

    def _require_approved(self, agreement: Agreement, terms: messages.Terms) -> None:
        mine = agreement.digest
        if not hmac.compare_digest(mine, terms.process):
            raise Refused(
                f"the coordinator's process is {terms.process[:16]}, and what this silo works out from its own copy is {mine[:16]}; expected the same. Compare the process's file, and the versions of the software."
            )
        if not self.approvals.approved(mine):
            sentences = statement.sentences(
                agreement.plan,
                seeded=self._config.pipeline.seed is not None,
                reference=False,
                metrics=self._config.privacy.metrics,
            )
            self.approvals.ask(
                mine,
                sentences,
                run=terms.run,
                silos=list(terms.silos),
                threshold=terms.threshold,
                labels=list(terms.labels),
            )
            raise Refused(
                f"process {mine[:16]} is not approved here; it is the turn of the silo's data steward: `tff-pipeline silo approve`.",
                private=f"{self._config.workdir}: process {mine} waits for approval",
            )

    def _base(self, request: bytes | memoryview) -> bytes:
        base = _decode(request, messages.Base)
        run = self._run
        if run is None or run.terms.run != base.run:
            raise Refused(
                f"this silo has not joined run {base.run[:16]}; expected stage 'join' before. It may have been restarted."
            )
        if (
            base.silos.keys() != self._identity.roster.keys()
            or base.silos[self._identity.name] != run.draws.key.commitment
        ):
            raise Refused(
                "the commitments are not those of this roster with this silo's own; expected them as they were sent. Start the run again."
            )
        self._take_weights(run, base)
        digest = draw_digest(base.origin, base.server, base.silos)
        self._require_key_is_newest(run, digest)
        if run.rounds is None or run.draw != digest:
            # The coordinator may have drawn its key anew: what is charged from now on is another draw.
            run.rounds_open.close()
            run.rounds, run.draw = None, digest
            run.rounds = self._rounds(run, digest)
        features = training.contents_of(secrets.features_folder(self._workdir, self._identity.name, run.work.id))
        frozen = training.contents_of(secrets.frozen_folder(self._workdir, run.work.id))
        return msgspec.msgpack.encode(messages.Ready(features=features, frozen=frozen))

    def _take_weights(self, run: _Joined, base: messages.Base) -> None:
        from tff_pipeline.training.wiring import refreeze

        weights = requests.to_arrays(base.weights, where="stage base: weights")
        expected = [(variable.shape.as_list(), variable.dtype.as_numpy_dtype) for variable in run.network.variables]
        if [(list(array.shape), array.dtype.type) for array in weights] != expected:
            raise Refused(
                "the weights are not of this network's shapes; expected those of the process that is approved."
            )
        if training.network_digest(run.network, weights) != base.network:
            raise Refused(
                "the weights are not those whose digest came with them; expected what the coordinator starts from."
            )
        before = [variable.numpy() for variable in run.network.variables]
        if not all(np.array_equal(one, other) for one, other in zip(before, weights, strict=True)):
            run.network.set_weights(weights)
            refreeze(run.work, run.network)

    def _require_key_is_newest(self, run: _Joined, digest: str) -> None:
        """Draws the key anew where it lacks a round that the ledger was charged for, as an older copy of the file would."""
        if not run.plan.private or self._config.pipeline.seed is not None:
            return
        charged = self._ledger().charges_of(run=run.work.id, draw=draw_name(digest))
        names = {round_name(digest, entry["round"] - 1, entry.get("start", "")) for entry in charged}
        missing = sum(not run.draws.key.knows(name) for name in names)
        if missing:
            run.draws.key.renew()
            self._progress.event(
                "keys",
                f"{run.draws.key.path} lacked {missing} of the rounds that the ledger was charged for; the key is drawn anew",
                missing=missing,
            )
            self.close()
            raise Refused(
                "this silo's key was an older copy, and is drawn anew; expected stage 'join' again. Start the run again."
            )

    def _ledger(self) -> Ledger:
        path = self._workdir.silo(self._identity.name) / "ledger.jsonl"
        return Ledger(path, self._config.population, silo=self._identity.name, unit=self._config.privacy.unit)

    def _rounds(self, run: _Joined, digest: str) -> "SiloRounds":
        """The silo's clients, workers and account, for the rounds of the run."""
        from tff_pipeline.runtime.devices import choose_devices
        from tff_pipeline.runtime.network.silo_rounds import Membership, SiloRounds
        from tff_pipeline.runtime.network.training_work import TrainingWork
        from tff_pipeline.runtime.silo import Silo
        from tff_pipeline.runtime.workers import ClientWorkers
        from tff_pipeline.training.wiring import clients_of

        config, stack = self._config, run.rounds_open
        ledger = self._ledger()
        stack.enter_context(ledger.exclusively())
        account = SiloAccount(ledger, self._policy.budget_epsilon, run.plan, run=run.work.id, draw=draw_name(digest))
        (clients,) = clients_of(run.work, run.network, stack, self._progress)
        workers = ClientWorkers(
            run.compiled,
            clients,
            devices=choose_devices(config.runtime.devices),
            in_parallel=config.runtime.clients_in_parallel,
        )
        stack.callback(workers.close)
        noised = run.compiled.noised_slots
        silo = Silo(clients, workers, run.draws, noised=noised, charges=account)
        rounds = SiloRounds(
            Membership(
                self._identity.name,
                self._identity.key,
                self._identity.roster,
                run.terms.threshold,
                self._policy.colluding,
            ),
            run.work.id,
            TrainingWork(silo, run.draws, account, draw=digest, noised=noised),
            run.work.folder / "rounds",
        )
        stack.callback(rounds.close)
        return rounds

    # -- rounds, and after them

    def _in_round(self, stage: str, number: int, request: bytes | memoryview) -> bytes:
        if self._run is None or self._run.rounds is None:
            raise Refused(
                f"this silo is in no run; expected stages 'join' and 'base' before {stage[:40]!r}. It was restarted: start the run again."
            )
        self._moved = (0 if stage == "advertise" else self._moved) + len(request)
        policy.require_bandwidth(self._policy, self._moved)
        started = time.monotonic()
        answer = self._run.rounds.answer(stage, number, request)
        self._moved += len(answer)
        policy.require_bandwidth(self._policy, self._moved)
        self._progress.event(
            "stage",
            round=number + 1,
            stage=stage,
            received=len(request),
            sent=len(answer),
            seconds=round(time.monotonic() - started, 3),
        )
        return answer

    def _finish(self, request: bytes | memoryview) -> bytes:
        finish = _decode(request, messages.Finish)
        if self._run is not None and self._run.terms.run == finish.run:
            self.close()
        if not (len(finish.run) == 16 and set(finish.run) <= set("0123456789abcdef")):
            raise Refused("the run's id is none; expected 16 hex digits.")
        removed = secrets.remove(self._workdir, finish.run)
        self._progress.event(
            "finish", f"run {finish.run} is over; {len(removed)} of its files were removed", run=finish.run
        )
        return msgspec.msgpack.encode(messages.Finished(run=finish.run))


def _decode(request: bytes | memoryview, kind: type[M]) -> M:
    return requests.decode(request, kind, where="request of the coordinator")
