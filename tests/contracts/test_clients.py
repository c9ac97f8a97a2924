"""The contract of every kind of clients: what a runtime feeds for one client is that client's, all of it, and nothing else."""

import dataclasses
import inspect
import itertools
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tff_pipeline.data import records
from tff_pipeline.runtime import clients as module
from tff_pipeline.runtime.clients import Clients, FeatureClients, FeatureSilo, TextClients, TextSilo

PAD = 0
WIDTH = 4
LABEL_MAP = np.array([2, 0, 1])  # the silo's own order of labels to the global one
# Examples by client. An example is its tokens, of which no two are alike, and its label in the silo's order.
Example = tuple[tuple[int, ...], int]
CLIENTS: list[list[Example]] = [
    [((2, 7, 3), 0), ((2, 8, 9, 10, 3), 1), ((2, 11, 3), 2)],
    [],
    [((2, 12, 13, 3), 1)],
    [((2, 20 + number, 3), number % 3) for number in range(5)],
]
Batch = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Kind:
    """An implementation, and how it is told what its clients have."""

    type: type
    whole_silo: bool = False
    token_labels: bool = False

    def example(self, tokens: tuple[int, ...], label: int) -> tuple[Any, ...]:
        """What a batch holds of an example: tokens or features, and the global label, or a label for each token."""
        known = int(LABEL_MAP[label])
        if issubclass(self.type, FeatureClients):
            return (*features_of(tokens).tolist(), known)
        return tokens, (records.IGNORED, *[known] * (len(tokens) - 1)) if self.token_labels else known

    def expected(self, held: Sequence[Sequence[Example]]) -> list[list[tuple[Any, ...]]]:
        """The examples of each client that a runtime sees, in the order of the records."""
        by_client = [[self.example(*example) for example in examples] for examples in held]
        return [list(itertools.chain.from_iterable(by_client))] if self.whole_silo else by_client

    def examples(self, batches: Sequence[Batch]) -> list[tuple[Any, ...]]:
        """The examples in some batches, without padding."""
        rows = [row for given, labels in batches for row in zip(given.tolist(), labels.tolist(), strict=True)]
        if issubclass(self.type, FeatureClients):
            return [(*features, label) for features, label in rows]
        lengths = [len(tokens) - tokens.count(PAD) for tokens, _ in rows]
        return [
            (tuple(tokens[:length]), tuple(label[:length]) if self.token_labels else label)
            for (tokens, label), length in zip(rows, lengths, strict=True)
        ]


KINDS: Mapping[str, Kind] = {
    "texts": Kind(TextClients),
    "texts, labels of words": Kind(TextClients, token_labels=True),
    "texts of a silo": Kind(TextSilo, whole_silo=True),
    "texts of a silo, labels of words": Kind(TextSilo, whole_silo=True, token_labels=True),
    "features": Kind(FeatureClients),
    "features of a silo": Kind(FeatureSilo, whole_silo=True),
}


def features_of(tokens: Sequence[int]) -> np.ndarray:
    """Features that say which text they are of."""
    return np.array([*tokens, *[0] * WIDTH][:WIDTH], np.float32) / 8


class Made:
    """Clients of one kind in a folder of their own, and the reader of their records where there is one."""

    def __init__(self, kind: Kind, folder: Path, held: Sequence[Sequence[Example]], *, batch_size: int, epochs: int):
        folder.mkdir()
        self.kind, self.reader = kind, None
        sizes = {"batch_size": batch_size, "epochs": epochs}
        if issubclass(kind.type, FeatureClients):
            self.clients: Clients = kind.type("bank", *_feature_arrays(folder, held), **sizes)
            return
        shards = _shards(folder, held, token_labels=kind.token_labels)
        options = {"pad_id": PAD, "token_labels": kind.token_labels, **sizes}
        if kind.whole_silo:
            self.clients = kind.type("bank", [folder / shard for shard in shards], LABEL_MAP, **options)
        else:
            self.reader = records.ClientReader(folder, "train", shards)
            self.clients = kind.type("bank", self.reader, LABEL_MAP, **options)

    def close(self) -> None:
        if self.reader:
            self.reader.close()

    def fed(self, row: int) -> list[tf.Tensor]:
        return [
            tf.constant(value, spec.dtype)
            for value, spec in zip(self.clients.feed(row), self.clients.specs(), strict=True)
        ]

    def batches(self, row: int) -> list[Batch]:
        return [(given.numpy(), labels.numpy()) for given, labels in self.clients.batches(self.fed(row))]

    def in_a_session(self, rows: Sequence[int]) -> list[list[Batch]]:
        """The batches of several clients, one after the other through the same graph, as the local runtime has it."""
        with tf.Graph().as_default():
            fed = [tf.compat.v1.placeholder(spec.dtype, spec.shape) for spec in self.clients.specs()]
            iterator = tf.compat.v1.data.make_initializable_iterator(self.clients.batches(fed))
            following, of_rows = iterator.get_next(), []
            with tf.compat.v1.Session() as session:
                for row in rows:
                    session.run(iterator.initializer, dict(zip(fed, self.clients.feed(row), strict=True)))
                    of_rows.append(list(_until_the_end(session, following)))
        return of_rows


def _until_the_end(session: Any, following: Any) -> Iterator[Batch]:
    try:
        while True:
            yield session.run(following)
    except tf.errors.OutOfRangeError:
        return


def _shards(folder: Path, held: Sequence[Sequence[Example]], *, token_labels: bool) -> list[str]:
    """The clients in two shards, in turns, and their index."""
    names = [records.shard_name("train", shard, 2) for shard in range(2)]
    index = np.zeros((len(held), 4), np.int64)
    for shard, name in enumerate(names):
        with (folder / name).open("wb") as file:
            for row in range(shard, len(held), 2):
                lengths = [len(tokens) for tokens, _ in held[row]]
                tokens = [token for own, _ in held[row] for token in own]
                labels = [label for _, label in held[row]]
                if token_labels:  # [CLS] has none
                    labels = [
                        records.IGNORED if at == 0 else label for own, label in held[row] for at in range(len(own))
                    ]
                arrays = (np.array(values, np.int64) for values in (tokens, lengths, labels, [0] * len(lengths)))
                record = records.encode_client(f"{row:032x}", *arrays)
                index[row] = shard, file.tell(), len(record), len(held[row])
                records.write_frame(file, record)
    np.save(folder / records.index_name("train"), index)
    return names


def _feature_arrays(folder: Path, held: Sequence[Sequence[Example]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features as a memory map, labels, and where each client's begin."""
    examples = [example for own in held for example in own]
    features = np.array([features_of(tokens) for tokens, _ in examples], np.float32).reshape(-1, WIDTH)
    if not examples:  # an empty file cannot be mapped, so that a run of no texts has a row that nobody owns
        features = np.zeros((1, WIDTH), np.float32)
    np.save(folder / "features.npy", features)
    labels = LABEL_MAP[[label for _, label in examples]] if examples else np.zeros(0)
    starts = np.cumsum([0, *map(len, held)])
    return np.load(folder / "features.npy", mmap_mode="r"), labels.astype(np.int32), starts


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def make(request, tmp_path) -> Iterator[Any]:
    """Makes clients of each kind, with what they hold."""
    made: list[Made] = []

    def of(held: Sequence[Sequence[Example]] = CLIENTS, *, batch_size: int = 2, epochs: int = 1) -> Made:
        made.append(Made(request.param, tmp_path / str(len(made)), held, batch_size=batch_size, epochs=epochs))
        return made[-1]

    yield of
    for clients in made:
        clients.close()


def same(first: Sequence[Batch], second: Sequence[Batch]) -> bool:
    """To the last bit, padding and order too."""
    return len(first) == len(second) and all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for batches in zip(first, second, strict=True)
        for a, b in zip(*batches, strict=True)
    )


def test_every_kind_is_held_to_this():
    public = {
        value
        for name, value in vars(module).items()
        if inspect.isclass(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }
    assert {kind.type for kind in KINDS.values()} == public - {Clients}


def test_there_are_as_many_as_a_round_can_draw(make):
    """Clients without an example count: they are drawn and accounted for like others. A whole silo is one."""
    made = make()

    assert made.clients.name == "bank"
    assert len(made.clients) == len(made.kind.expected(CLIENTS)) == (1 if made.kind.whole_silo else 4)


def test_what_is_fed_has_the_shapes_and_types_that_were_said(make):
    made = make()

    for row in range(len(made.clients)):
        values = [np.asarray(value) for value in made.clients.feed(row)]
        for value, spec in zip(values, made.clients.specs(), strict=True):
            assert spec.shape.is_compatible_with(value.shape)
            assert spec.dtype == tf.string or spec.dtype.as_numpy_dtype == value.dtype


@pytest.mark.parametrize("row", [-1, 1000])
def test_a_client_that_is_not_there_is_refused(make, row):
    """And is neither the last one, nor an empty one, nor the whole silo."""
    made = make()

    with pytest.raises(IndexError, match=rf"silo 'bank' has no client {row}; expected 0 to {len(made.clients) - 1}"):
        made.clients.feed(row)
    with pytest.raises(IndexError, match=f"has no client {len(made.clients)};"):
        made.clients.feed(len(made.clients))


def test_the_batches_of_a_client_are_what_it_holds_and_only_that(make):
    made = make()

    for row, expected in enumerate(made.kind.expected(CLIENTS)):
        examples = made.kind.examples(made.batches(row))
        assert Counter(examples) == Counter(expected)
        if not made.kind.whole_silo:  # which takes its clients in turns
            assert examples == expected, "in the record's order"


def test_every_batch_of_an_epoch_is_full_but_the_last(make):
    made = make(batch_size=2)

    for row, expected in enumerate(made.kind.expected(CLIENTS)):
        sizes = [len(labels) for _, labels in made.batches(row)]
        assert sizes == [2] * (len(expected) // 2) + [1] * (len(expected) % 2)


def test_a_batch_may_be_larger_than_a_client(make):
    made = make(batch_size=64)

    for row, expected in enumerate(made.kind.expected(CLIENTS)):
        assert [len(labels) for _, labels in made.batches(row)] == ([len(expected)] if expected else [])


def test_epochs_come_one_after_the_other(make):
    """A batch never spans two."""
    once, three_times = make(epochs=1), make(epochs=3)

    for row in range(len(once.clients)):
        assert same(three_times.batches(row), once.batches(row) * 3)


def test_an_empty_client_has_no_batches(make):
    """In however many epochs; and a silo has none whose clients are all empty, or that has no client."""
    made = make([[], []], epochs=2)

    assert [made.batches(row) for row in range(len(made.clients))] == [[]] * len(made.clients)
    if made.kind.whole_silo:
        assert make([], epochs=2).batches(0) == []
    else:
        assert make(epochs=2).batches(1) == []


def test_a_second_read_is_the_first(make):
    """Whatever was read between, and from several threads at a time: a repeated round has to have the same sum."""
    made = make()
    rows = range(len(made.clients))
    first = [made.batches(row) for row in rows]

    assert all(same(made.batches(row), first[row]) for row in reversed(rows))
    many = [*rows] * 8
    with ThreadPoolExecutor(4) as pool:
        fed_by_threads = list(pool.map(made.clients.feed, many))
    for row, fed in zip(many, fed_by_threads, strict=True):
        for value, expected in zip(fed, made.clients.feed(row), strict=True):
            np.testing.assert_array_equal(value, expected)


def test_a_session_and_eager_execution_see_the_same(make):
    """The local runtime iterates in a graph, TFF's executor eagerly."""
    made = make(epochs=2)
    rows = [*range(len(made.clients)), 0]

    in_session = made.in_a_session(rows)
    assert all(same(batches, made.batches(row)) for row, batches in zip(rows, in_session, strict=True))


def test_no_client_changes_what_another_one_has(make):
    """To the last bit, padding too, whoever else is there: one client more changes its own update and no other."""
    everybody = make()
    if everybody.kind.whole_silo:
        with_more = make([*CLIENTS, [((2, 30, 3), 0)]])
        examples = Counter(with_more.kind.examples(with_more.batches(0)))
        assert examples - Counter(everybody.kind.examples(everybody.batches(0))) == {
            with_more.kind.example((2, 30, 3), 0): 1
        }
        return
    for row, examples in enumerate(CLIENTS):
        alone = make([examples])
        assert same(alone.batches(0), everybody.batches(row))


def test_closing_closes_what_reading_opened_and_what_is_read_later_is_the_same(make, tmp_path):
    """A memory map, which features are given as, is open from the start."""
    made = make()
    given = open_files_in(tmp_path)
    first = [made.batches(row) for row in range(len(made.clients))]
    made.in_a_session([0])

    made.close()
    assert open_files_in(tmp_path) == given
    assert all(same(made.batches(row), batches) for row, batches in enumerate(first))


def open_files_in(folder: Path) -> list[str]:
    """This process's open files there."""
    descriptors = Path("/proc/self/fd")
    names = []
    for number in os.listdir(descriptors):
        try:
            names.append(os.readlink(descriptors / number))
        except FileNotFoundError:  # the listing's own
            continue
    return [name for name in names if name.startswith(str(folder))]
