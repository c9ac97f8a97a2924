"""Which split a client is in and which examples it keeps: the same when data grows, and in whatever order rows come."""

from builders.prepare_helpers import GOOD, VOCABULARY, examples_in, manifest_of, many, rejected_of, words_by_client


def test_growing_data_moves_no_client(case):
    case.silo["input"] = "*.csv"
    case.write("b.csv", many(80))
    before = words_by_client(case.prepare_it())
    case.write("a.csv", many(160))
    after = words_by_client(case.prepare_it())

    assert sum(map(len, before.values())) == 80
    assert sum(map(len, after.values())) == 160
    for split, clients in before.items():
        assert clients.keys() <= after[split].keys()


def test_rows_that_are_clients_stay_themselves_when_files_grow(case):
    case.silo |= {"input": "*.csv", "client": ""}
    case.write("b.csv", GOOD)
    before = words_by_client(case.prepare_it())
    case.write("a.csv", GOOD)
    case.write("b.csv", GOOD + "lost,lost,anna\n")
    after = words_by_client(case.prepare_it())

    assert sum(map(len, before.values())) == 4
    assert sum(map(len, after.values())) == 9
    for split, clients in before.items():
        assert clients.items() <= after[split].items()


def test_the_bound_keeps_the_same_examples_in_whatever_order_the_rows_come(case):
    case.prepare["max_examples_per_client"] = 3
    rows = [f"{first} {second},{second},anna" for first in VOCABULARY[4:11] for second in VOCABULARY[4:8]]
    case.write("data.csv", "\n".join(["text,label,client", *rows]))
    first = case.prepare_it()
    case.write("data.csv", "\n".join(["text,label,client", *reversed(rows)]))
    second = case.prepare_it()

    assert first != second
    assert examples_in(first) == examples_in(second)
    assert len(examples_in(first)) == 3
    assert manifest_of(first)["over_bound"] == {"clients": 1, "examples_dropped": 25}
    assert manifest_of(first)["accepted"] == 28


def test_a_client_in_the_files_of_several_splits_stays_with_what_is_held_out(case):
    case.silo["input"] = {"train": "train.csv", "test": "test.csv"}
    case.prepare["max_reject_share"] = 0.5
    case.write("train.csv", "text,label,client\nhelp,x,ben\nmy card,x,anna\nlost,x,carl\n")
    case.write("test.csv", "text,label,client\nthanks,y,anna\n")

    snapshot = case.prepare_it()
    manifest = manifest_of(snapshot)

    assert manifest["rejects"] == {"client in several splits": 1}
    assert rejected_of(snapshot / "rejected.jsonl") == [("train.csv", 3, "client in several splits")]
    assert [manifest["splits"][split]["clients"] for split in ("train", "validation", "test")] == [2, 0, 1]


def test_seeds_and_silos_make_different_clients(case):
    """A seed makes the key; without one it comes from the operating system and is kept."""
    case.write("data.csv", GOOD)
    seeded = words_by_client(case.prepare_it())
    case.workdir = "again"
    assert words_by_client(case.prepare_it()) == seeded
    case.workdir, case.seed = "random", None
    first = case.prepare_it()

    assert words_by_client(first) != seeded
    assert case.prepare_it() == first
    assert (case.silo_folder / "keys" / "clients.key").stat().st_mode & 0o777 == 0o600
