"""The id of a snapshot: a program that is brought up to date still finds the snapshots that it made before."""

import hashlib
import json

from builders.prepare_helpers import VOCABULARY

from beam_jobs import planning
from tff_pipeline.data.tokenization import Tokenizer

ROWS = "text,label,client\nmy card is lost,lost,anna\n"


def test_an_id_is_the_fingerprint_of_what_is_written_here(case):
    """Every key of the identity, by hand: whoever renames a key or adds one makes all snapshots of all silos anew."""
    case.write("data.csv", ROWS)
    configuration = case.config()

    secret = hashlib.sha256(b"7/bank/clients").digest()  # of the seed and the silo
    identity = {
        "format": 1,
        "rules": 2,
        "inputs": [["data.csv", "", hashlib.sha256(ROWS.encode()).hexdigest()]],
        "settings": {
            "task": "sequence_classification",
            "labels": "auto",
            "format": "csv",
            "text": "text",
            "label": "label",
            "client": "client",
            "group": "",
            "columns": [],
            "quoting": True,
            "max_length": 128,
            "max_examples_per_client": 100,
            "splits": {"train": 0.8, "validation": 0.1, "test": 0.1},
            "max_row_bytes": 4194304,
            "shards": 1,
        },
        "tokenizer": Tokenizer(VOCABULARY, lower_case=True, max_length=128).fingerprint,
        "client_key": hashlib.sha256(b"fingerprint" + secret).hexdigest(),
    }
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()

    assert planning.plan_job(configuration, configuration.silo("bank")).id == hashlib.sha256(canonical).hexdigest()[:16]


def test_a_silo_split_by_files_has_an_id_without_fractions(case):
    """The fractions of `prepare.splits` change nothing there, so they are no part of the id; the files' splits are."""
    case.write("data.csv", ROWS)

    def identity(silo_input: object, splits: dict[str, float]) -> str:
        case.silo["input"], case.prepare["splits"] = silo_input, splits
        configuration = case.config()
        return planning.plan_job(configuration, configuration.silo("bank")).id

    halves, thirds = {"train": 0.5, "test": 0.5}, {"train": 0.7, "test": 0.3}
    assert identity("data.csv", halves) != identity("data.csv", thirds)
    assert identity({"train": "data.csv"}, halves) == identity({"train": "data.csv"}, thirds)
    assert identity({"train": "data.csv"}, halves) != identity({"test": "data.csv"}, halves)


def test_text_is_estimated_by_the_ending_of_a_files_name():
    """A compressed file or a parquet holds about eight times as much text as it has bytes."""
    entries = [{"name": "a.csv", "bytes": 100}, {"name": "b.jsonl", "bytes": 10}, {"name": "c.csv.gz", "bytes": 1}]

    assert planning.text_bytes(entries) == 100 + 10 + 8
