"""Snapshots as clients and batches: what a reader finds, and what is refused."""

import dataclasses

import numpy as np
import pytest
from builders.serving_fixtures import LABELS, SILOS, TAGGED_SILOS, config, write_snapshot

from tff_pipeline.artifacts import Workdir, write_json
from tff_pipeline.data.records import IGNORED, decode_client
from tff_pipeline.data.snapshots import check_compatible, load_snapshot, map_labels, union_labels
from tff_pipeline.data.tokenization import Tokenizer
from tff_pipeline.errors import ArtifactError


@pytest.fixture
def tokenizer(tmp_path):
    return Tokenizer.from_config(config(tmp_path).model, max_length=24)


@pytest.fixture
def bank(tmp_path, tokenizer):
    write_snapshot(tmp_path, "bank", SILOS["bank"], tokenizer)
    return load_snapshot(Workdir(tmp_path), "bank")


def test_snapshot_says_what_it_holds(bank):
    assert (bank.silo, bank.id, bank.task) == ("bank", "0001", "sequence_classification")
    assert (bank.labels, bank.groups) == (("card", "fees"), ("app", "phone"))
    assert (bank.clients("test"), bank.count("test"), bank.clients("train")) == (3, 6, 2)


def test_reader_finds_one_client(bank, tokenizer):
    with bank.reader("test") as reader:
        client = decode_client(reader.read(1))

    assert len(reader) == 3
    np.testing.assert_array_equal(client["tokens"], tokenizer.encode(["我 的 卡 丢 了"])[0])


def test_a_split_without_clients_is_empty(bank, tmp_path, tokenizer):
    write_snapshot(tmp_path, "insurer", SILOS["insurer"], tokenizer)
    insurer = load_snapshot(Workdir(tmp_path), "insurer")

    for snapshot, split in ((insurer, "test"), (bank, "validation")):
        assert (len(snapshot.reader(split)), snapshot.clients(split), snapshot.count(split)) == (0, 0, 0)
        assert list(snapshot.examples(split, snapshot.label_map(LABELS), pad_id=0)) == []


@pytest.mark.parametrize(("batch_size", "window"), [(256, 1000), (2, 1000), (2, 1), (1, 3)])
def test_batches_hold_every_example_once(bank, tokenizer, batch_size, window):
    """Whatever the batches and windows: each example with its own tokens, label, group and client."""
    texts = [example for client in SILOS["bank"].splits["test"] for example in client]
    owners = [row for row, client in enumerate(SILOS["bank"].splits["test"]) for _ in client]
    seen = {}
    for batch in bank.examples(
        "test", bank.label_map(LABELS), pad_id=tokenizer.pad_id, batch_size=batch_size, window=window
    ):
        assert batch.tokens.dtype == np.int32
        assert len(batch.tokens) <= batch_size
        assert (batch.tokens != tokenizer.pad_id).sum(axis=1).max() == batch.tokens.shape[1]
        for row, position in enumerate(batch.positions.tolist()):
            assert position not in seen
            ids = batch.tokens[row][batch.tokens[row] != tokenizer.pad_id].tolist()
            seen[position] = ids, LABELS[batch.labels[row]], bank.groups[batch.groups[row]], int(batch.clients[row])

    expected = {
        position: (tokenizer.encode([text])[0].tolist(), label, group, owners[position])
        for position, (text, label, group) in enumerate(texts)
    }
    assert seen == expected


def test_a_batch_holds_texts_of_similar_length(bank, tokenizer):
    widths = [batch.tokens.shape[1] for batch in bank.examples("test", bank.label_map(LABELS), pad_id=0, batch_size=2)]

    assert widths == sorted(widths, reverse=True)
    assert widths[0] > widths[-1]


def test_tags_of_tokens_keep_their_places(tmp_path, tokenizer):
    write_snapshot(tmp_path, "paper", TAGGED_SILOS["paper"], tokenizer, task="token_classification")
    paper = load_snapshot(Workdir(tmp_path), "paper")
    (batch,) = paper.examples("test", paper.label_map(paper.labels), pad_id=0)
    row = batch.positions.tolist().index(0)

    tags = [paper.labels[label] for label in batch.labels[row] if label != IGNORED]
    assert tags == ["B-PER", "I-PER", "O", "B-ORG", "I-ORG"]
    assert batch.labels.shape == batch.tokens.shape
    assert batch.labels[row, 0] == IGNORED, "[CLS] carries no tag"


def test_silo_labels_become_the_models():
    """A silo with labels (other, fees) in a model with (card, fees, other): 0 -> 2, 1 -> 1."""
    np.testing.assert_array_equal(map_labels(np.array([0, 1, IGNORED, 0]), np.array([2, 1])), [2, 1, IGNORED, 2])


def test_label_map_and_union(bank, tmp_path, tokenizer):
    write_snapshot(tmp_path, "clinic", SILOS["clinic"], tokenizer)
    clinic = load_snapshot(Workdir(tmp_path), "clinic")

    assert union_labels([clinic, bank]) == union_labels([bank, clinic]) == LABELS
    np.testing.assert_array_equal(clinic.label_map(LABELS), [2, 1])
    with pytest.raises(
        ArtifactError, match=r"1 of the silo's 2 labels are not among the 2 expected, 'other' first.*task.labels"
    ):
        clinic.label_map(("card", "fees"))


def test_a_silo_that_was_not_prepared(tmp_path):
    with pytest.raises(ArtifactError, match=r"silo bank: has no prepared data .*tff-pipeline prepare"):
        load_snapshot(Workdir(tmp_path), "bank")


def test_a_snapshot_that_is_gone(bank, tmp_path):
    write_json(Workdir(tmp_path).current_snapshot("bank"), {"id": "0002"})

    with pytest.raises(ArtifactError, match="0002: not complete"):
        load_snapshot(Workdir(tmp_path), "bank")


@pytest.mark.parametrize("name", ["test-00000-of-00001.tfrecord", "test.index.npy", "COMPLETE", "manifest.json"])
def test_a_file_that_is_gone_or_cut_short(bank, tmp_path, name):
    """Found when the snapshot is opened, not when the file is needed."""
    path = bank.path / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] if name != "COMPLETE" else b"0")
    with pytest.raises(ArtifactError, match="changed since it was written"):
        load_snapshot(Workdir(tmp_path), "bank")
    path.unlink()
    with pytest.raises(ArtifactError, match=r"not complete|missing"):
        load_snapshot(Workdir(tmp_path), "bank")


def test_flipped_bits_are_found_on_reading(bank, tmp_path):
    """Sizes are right, so opening succeeds; the index is compared whole, records carry checksums."""
    for name in ("test.index.npy", "test-00000-of-00001.tfrecord"):
        path = bank.path / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
        snapshot = load_snapshot(Workdir(tmp_path), "bank")
        with pytest.raises(ArtifactError, match=r"changed since it was written|damaged"):
            list(snapshot.decoded_clients("test"))
        path.write_bytes(whole)


def test_another_tokenizer_or_task_is_refused(bank, tmp_path, tokenizer):
    configuration = config(tmp_path)
    check_compatible([bank], tokenizer, configuration)

    longer = Tokenizer(tokenizer.vocabulary, lower_case=True, max_length=48)
    with pytest.raises(
        ArtifactError,
        match=rf"silo bank was prepared with tokenizer {tokenizer.fingerprint}; the model's is {longer.fingerprint}",
    ):
        check_compatible([bank], longer, configuration)
    tagging = dataclasses.replace(bank, manifest={**bank.manifest, "task": "token_classification"})
    with pytest.raises(
        ArtifactError,
        match=r"prepared for token_classification; the configuration's task\.kind is sequence_classification",
    ):
        check_compatible([tagging], tokenizer, configuration)
