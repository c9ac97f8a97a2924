"""One client does not move another's update: features and updates are compared bit for bit, with and without each other client.

The sensitivity counts what a client adds to a round's sum. It says nothing about what the client does to the numbers that
others add, so that has to be nothing at all, also in the last bit of a float32.
"""

import collections
import dataclasses
import functools
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders.cases import Case, full_case, head_case, lora_case, started
from builders.serving_fixtures import LABELS, TAGS, SiloData, config, write_snapshot
from builders.tiny import quiet

from tff_pipeline.artifacts import COMPLETE, Workdir, read_json, seal
from tff_pipeline.data.snapshots import load_snapshot
from tff_pipeline.data.tokenization import Tokenizer

EVERYBODY = range(5)
SEQUENCE, TOKEN = "sequence_classification", "token_classification"
WORDS = ("card", "lost", "stolen", "money", "transfer", "fee", "charged", "why", "account", "open", "close", "please")


def texts(client: int, task: str) -> list[tuple[str, str, str]]:
    """Unequal clients: 1 to 60 texts of 1 to 20 words; a long text makes batches wider, many texts take several calls."""
    random = np.random.default_rng(client)
    made, (count, longest) = [], ((1, 12), (8, 7), (3, 20), (2, 4), (60, 9))[client]
    for _ in range(count):
        words = random.choice(WORDS, random.integers(1, longest + 1)).tolist()
        labels = random.choice(TAGS, len(words)).tolist() if task == TOKEN else [str(random.choice(LABELS))]
        made.append((" ".join(words), " ".join(labels), ""))
    return made


class Encoder:
    """An encoder of real width, and snapshots of some of the clients to use it on."""

    def __init__(self, folder: Path, task: str, **model: Any):
        from tff_pipeline.model.network import base_network

        settings = config(folder, task=task, hidden_size=64, intermediate_size=256, **model)
        self.tokenizer = Tokenizer.from_config(settings.model, settings.prepare.max_length)
        self.labels = TAGS if task == TOKEN else LABELS
        self.network = base_network(settings.model, self.tokenizer, labels=len(self.labels), task=task, seed=3)  # type: ignore[arg-type]
        self._folder, self._task = folder, task

    def __call__(self, clients: Sequence[int], directory: Path | None = None) -> Any:
        """The `FeatureClients` of a silo with these clients; the features are in `directory`."""
        from tff_pipeline.runtime.features import feature_clients

        workdir = self._folder / "-".join(map(str, clients))
        if not workdir.exists():
            split = {"train": [texts(client, self._task) for client in clients]}
            data = SiloData(labels=self.labels, groups=("",), splits=split)
            write_snapshot(workdir, "bank", data, self.tokenizer, task=self._task)
        snapshot = load_snapshot(Workdir(workdir), "bank")
        label_map = snapshot.label_map(self.labels)
        directory = directory or workdir / "features"
        with quiet().bar("encode", snapshot.count("train")) as bar:
            return feature_clients(snapshot, self.network, label_map, directory, batch_size=8, epochs=1, bar=bar)


def fed(clients: Any, row: int) -> list[bytes]:
    return [np.asarray(part).tobytes() for part in clients.feed(row)]


@pytest.mark.parametrize(
    ("task", "pooling"), [(SEQUENCE, "mean"), (SEQUENCE, "pooler"), (TOKEN, "mean")], ids=["mean", "pooler", "tokens"]
)
def test_features_of_a_client_are_the_same_bits_without_each_other_client(tmp_path, task, pooling):
    encode = Encoder(tmp_path, task, pooling=pooling)
    together = encode(EVERYBODY)
    for absent in EVERYBODY:
        present = [client for client in EVERYBODY if client != absent]
        without = encode(present)
        for row, client in enumerate(present):
            assert fed(without, row) == fed(together, client), f"client {client} differs without client {absent}"


def test_features_are_the_same_bits_on_a_busy_machine(tmp_path):
    """TensorFlow has one pool of threads for everything; how much of it others use decides nothing but the time."""
    import tensorflow as tf

    encode = Encoder(tmp_path, SEQUENCE)
    alone = encode(EVERYBODY, tmp_path / "alone")
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            tf.matmul(matrix, matrix).numpy()

    matrix = tf.random.normal([400, 400], seed=1)
    others = [threading.Thread(target=work) for _ in range(4)]
    for other in others:
        other.start()
    try:
        for attempt in range(5):
            busy = encode(EVERYBODY, tmp_path / str(attempt))
            for client in EVERYBODY:
                assert fed(busy, client) == fed(alone, client)
    finally:
        done.set()
        for other in others:
            other.join()


@pytest.mark.parametrize(
    ("task", "pooling"), [(SEQUENCE, "mean"), (SEQUENCE, "pooler"), (TOKEN, "mean")], ids=["mean", "pooler", "tokens"]
)
def test_features_are_those_of_the_padded_texts(tmp_path, task, pooling):
    """To rounding: what the head is trained on is what it sees when it serves. Texts of 1 to 22 tokens in several calls."""
    import tensorflow as tf

    encode = Encoder(tmp_path, task, pooling=pooling)
    clients = encode(EVERYBODY)
    for client in EVERYBODY:
        features, labels = clients.feed(client)
        own = texts(client, task)
        if task == SEQUENCE:
            padded = encode.tokenizer.ragged([text for text, *_ in own]).to_tensor(encode.network.pad_id)
            expected = encode.network.features(tf.cast(padded, tf.int32)).numpy()
            assert [LABELS[label] for label in labels] == [label for _, label, _ in own]
        else:
            # A word's first piece carries its tag, as far as the text was not cut off.
            rows, tags = [], []
            for text, words_tags, _ in own:
                ids, first = encode.tokenizer.encode_words(text.split())
                vectors = encode.network.features(tf.constant(ids[np.newaxis], tf.int32)).numpy()[0]
                rows.append(vectors[first >= 0])
                tags += np.array(words_tags.split())[first[first >= 0]].tolist()
            expected = np.concatenate(rows)
            assert [TAGS[label] for label in labels] == tags
        np.testing.assert_allclose(features, expected, atol=2e-5)


def test_features_of_another_format_or_encoder_are_computed_again(tmp_path):
    encode, folder = Encoder(tmp_path, SEQUENCE), tmp_path / "features"
    first = encode(EVERYBODY, folder)
    right = [fed(first, client) for client in EVERYBODY]
    made = (folder / COMPLETE).stat().st_ino

    encode(EVERYBODY, folder)
    assert (folder / COMPLETE).stat().st_ino == made, "finished features of the same kind are used"

    np.save(folder / "features.npy", np.load(folder / "features.npy") + 1)
    facts = read_json(folder / "manifest.json")
    seal(folder, {key: facts[key] for key in ("kind", "silo", "snapshot", "instances")} | {"format": 1})
    again = encode(EVERYBODY, folder)
    assert [fed(again, client) for client in EVERYBODY] == right

    kernel = encode.network.encoder_variables[0]
    kernel.assign(2 * kernel)
    other = encode(EVERYBODY, folder)
    assert all(fed(other, client) != right[client] for client in EVERYBODY)


class Reports:
    """What every client's work returned: the distinct answers by client, however often and beside whom it worked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        from tff_pipeline.runtime.graphs import SessionGraph

        self.of: dict[bytes, set[bytes]] = collections.defaultdict(set)
        self.count = 0
        call = SessionGraph.__call__

        def noted(graph: Any, parameters: Sequence[Any] = (), fed: Sequence[Any] = ()) -> list[Any]:
            results = call(graph, parameters, fed)
            if fed:
                client = b"".join(part if isinstance(part, bytes) else np.asarray(part).tobytes() for part in fed)
                self.of[client].add(b"".join(part.tobytes() for part in results))
                self.count += 1
            return results

        monkeypatch.setattr(SessionGraph, "__call__", noted)


def wild_head_case() -> Case:
    """One client more in each silo, whose update is not finite."""
    case = head_case()
    for silo in case.silos:
        silo._features = np.concatenate([silo._features, np.full_like(silo._features[:5], np.inf)])
        silo._labels = np.concatenate([silo._labels, np.arange(5, dtype=np.int32) % 3])
        silo._starts = np.append(silo._starts, len(silo._features))
    return case


def silo_case() -> Case:
    """The silos of the head's case as one client each, its features in a file."""
    from tff_pipeline.runtime.clients import FeatureSilo

    case, silos = head_case(), []
    for silo in case.silos:
        path = Path(tempfile.mkdtemp()) / "features.npy"
        np.save(path, silo._features)
        features = np.load(path, mmap_mode="r")
        silos.append(FeatureSilo(silo.name, features, silo._labels, silo._starts, batch_size=8, epochs=2))
    return dataclasses.replace(case, silos=silos)


@functools.cache
def shared(make: Callable[[], Case]) -> Case:
    return make()


@pytest.mark.parametrize(
    "make", [wild_head_case, lora_case, full_case, silo_case], ids=["head", "lora", "full", "silo"]
)
@pytest.mark.parametrize("workers", [1, 2])
def test_an_update_is_the_same_bits_without_each_other_client(make: Callable[[], Case], workers, monkeypatch):
    """The integers that a client's work returns: with everybody, without each other client, in another order, and alone."""
    from tff_pipeline.runtime.local import LocalRuntime
    from tff_pipeline.runtime.scripted import ScriptedRuntime

    case = shared(make)
    everybody = {silo.name: list(range(len(silo))) for silo in case.silos}
    reports = Reports(monkeypatch)
    with ScriptedRuntime(
        LocalRuntime, case.compiled, case.silos, clients_in_parallel=workers, session="test"
    ) as runtime:
        state = started(case, runtime)
        runtime.secure_sums(state, everybody)
        runtime.secure_sums(state, {name: rows[::-1] for name, rows in everybody.items()})
        for name, rows in everybody.items():
            for absent in rows:
                runtime.secure_sums(state, {**everybody, name: [row for row in rows if row != absent]})
                runtime.secure_sums(state, {name: [absent]})
    clients = sum(map(len, everybody.values()))
    assert reports.count == clients * (2 + (clients - 1) + 1)
    answers = list(reports.of.values())
    assert all(len(answer) == 1 for answer in answers), [len(answer) for answer in answers]
    assert len({next(iter(answer)) for answer in answers}) == len(answers) >= 2, "unequal clients answer differently"


@pytest.mark.parametrize("shift", [1, 4, 20, 32])
def test_where_features_lie_in_memory_changes_no_bit(shift, monkeypatch):
    """How many examples come before a client decides where its features lie, and processors have other code for odd addresses."""
    from tff_pipeline.runtime.local import LocalRuntime
    from tff_pipeline.runtime.scripted import ScriptedRuntime

    case = head_case()
    moved = []
    for silo in case.silos:
        features, labels, starts = silo._features, silo._labels, silo._starts
        kind = type(silo)
        moved.append(kind(silo.name, at_address(features, shift), labels, starts, batch_size=8, epochs=2))
    reports = Reports(monkeypatch)
    for silos in (case.silos, moved):
        with ScriptedRuntime(LocalRuntime, case.compiled, silos, clients_in_parallel=1, session="test") as runtime:
            runtime.secure_sums(started(case, runtime), {silo.name: range(len(silo)) for silo in silos})
    assert reports.count == 2 * len(reports.of) == 16
    assert all(len(answer) == 1 for answer in reports.of.values())


def at_address(values: np.ndarray, shift: int) -> np.ndarray:
    """A copy whose address is `shift` past a multiple of 64."""
    room = np.zeros(values.nbytes + 128, np.uint8)
    start = -room.ctypes.data % 64 + shift
    copy = room[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    copy[...] = values
    assert copy.ctypes.data % 64 == shift
    return copy
