"""The generated example: the same every time, uneven, and with every defect that it promises."""

import csv
import gzip
import io
import json
from collections import Counter
from pathlib import Path

import pytest

from examples import customer_messages
from examples.customer_messages import BROKEN_SHARE, CHANNELS, SILOS, generate, main, messages, vocabulary

SHARES = {"bank": 405, "insurer": 180, "shop": 315}


@pytest.fixture(scope="module")
def everything() -> dict[str, list]:
    """All messages of the size that the quickstart uses."""
    return {silo: messages(silo, clients=clients, seed=7) for silo, clients in SHARES.items()}


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def test_a_seed_gives_the_same_bytes_and_another_seed_others(example_dir, tmp_path):
    generate(tmp_path / "again", seed=7, clients=60)
    generate(tmp_path / "other", seed=8, clients=60)

    first, again, other = files(example_dir), files(tmp_path / "again"), files(tmp_path / "other")
    assert again == first
    assert set(first) == {"bank/messages.csv", "insurer/messages.jsonl", "shop/messages.tsv.gz", "vocabulary.txt"}
    assert [name for name in first if other[name] == first[name]] == ["vocabulary.txt"]


def test_the_command_writes_the_same(example_dir, tmp_path):
    assert main([str(tmp_path), "--seed", "7", "--clients", "60"]) == 0
    assert files(tmp_path) == files(example_dir)


def test_too_few_clients_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--clients", "2"])

    assert "expected at least 3, one for each silo" in capsys.readouterr().err


def test_clients_are_several_hundred_and_very_unequal(everything):
    counts = [count for rows in everything.values() for count in Counter(row.client for row in rows).values()]

    assert len(counts) == 900
    assert 6000 <= sum(counts) <= 8000
    assert (min(counts), max(counts)) == (1, 30)
    assert sum(sorted(counts)[-90:]) > 0.25 * sum(counts)  # a tenth of the clients writes over a quarter


def test_the_silos_have_other_mixes_of_ten_intents_and_some_intents_in_one_silo_only(everything):
    found = {silo: Counter(row.intent for row in rows) for silo, rows in everything.items()}

    assert {silo: set(counts) for silo, counts in found.items()} == {
        silo: set(shares) for silo, shares in SILOS.items()
    }
    assert len(set().union(*found.values())) == 10
    only_one = [
        intent for intent in set().union(*found.values()) if sum(intent in counts for counts in found.values()) == 1
    ]
    assert sorted(only_one) == ["claim_status", "delivery_status", "lost_card", "transfer_status"]
    assert len({counts.most_common(1)[0][0] for counts in found.values()}) == 3


def test_some_messages_are_chinese_for_every_intent(everything):
    rows = [row for rows in everything.values() for row in rows]
    chinese = [row for row in rows if any("\u4e00" <= symbol <= "\u9fff" for symbol in row.text)]

    assert 0.04 < len(chinese) / len(rows) < 0.12
    assert len({row.intent for row in chinese}) == 10


def test_wordings_vary_and_no_template_is_left_open(everything):
    texts = [row.text for rows in everything.values() for row in rows]

    assert len(set(texts)) > 0.8 * len(texts)
    assert not [text for text in texts if set("(){}|") & set(text)]
    assert all(text.strip() for text in texts)


def test_some_messages_fit_several_intents(everything):
    """A model cannot reach 100%: the same words stand for different matters."""
    vague = [row.intent for rows in everything.values() for row in rows if "how much longer" in row.text.lower()]

    assert set(vague) == {"delivery_status", "transfer_status", "refund", "claim_status", "lost_card"}


def test_channels_are_the_groups(everything):
    for rows in everything.values():
        shares = Counter(row.channel for row in rows)
        assert set(shares) == set(CHANNELS)
        assert min(shares.values()) > 0.1 * len(rows)


class TestDefects:
    """About one row in a hundred is broken, in every way that a silo's format allows."""

    def test_bank(self, example_dir):
        content = (example_dir / "bank" / "messages.csv").read_bytes()
        rows = list(csv.reader(io.StringIO(content.decode("utf-8", "surrogateescape"), newline=""), strict=True))

        assert rows[0] == ["date", "customer", "channel", "message", "intent"]
        assert b"caf\xe9" in content
        assert any(len(row) == 3 for row in rows)
        assert any(len(row) == 5 and not row[3] for row in rows)
        assert any("\n" in row[3] for row in rows if len(row) == 5)  # no defect: what quoting is for

    def test_insurer(self, example_dir):
        lines = (example_dir / "insurer" / "messages.jsonl").read_bytes().splitlines()
        parsed, invalid = [], 0
        for line in lines:
            try:
                parsed.append(json.loads(line.decode("utf-8", "surrogateescape")))
            except json.JSONDecodeError:
                invalid += 1

        assert invalid
        assert any(b"d\xe9g\xe2t" in line for line in lines)
        assert any("body" not in row for row in parsed)
        assert any(not row.get("body", "x").strip() for row in parsed)

    def test_shop(self, example_dir):
        content = gzip.decompress((example_dir / "shop" / "messages.tsv.gz").read_bytes())
        rows = [line.split(b"\t") for line in content.splitlines()]

        assert rows[0] == [b"customer_no", b"channel", b"reason", b"text"]
        assert {len(row) for row in rows} == {2, 4, 5}
        assert any(len(row) == 4 and not row[3] for row in rows)
        assert b"pr\xe9nom" in content
        assert b'"' in content  # no defect: why the configuration says quoting = false

    def test_they_are_about_one_in_a_hundred(self, tmp_path):
        generate(tmp_path, seed=7, clients=900)
        rows = gzip.decompress((tmp_path / "shop" / "messages.tsv.gz").read_bytes()).splitlines()[1:]
        broken = [row for row in rows if row.count(b"\t") != 3 or row.endswith(b"\t") or b"\xe9nom" in row]

        assert len(broken) / len(rows) == pytest.approx(BROKEN_SHARE, rel=0.1)


def test_the_vocabulary_is_small_and_covers_the_messages(everything):
    from tff_pipeline.data.tokenization import Tokenizer

    words = vocabulary()
    assert words[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert len(words) == len(set(words)) < 1000

    texts = [row.text for rows in everything.values() for row in rows][:2000]
    tokens, _ = Tokenizer(words, lower_case=True, max_length=128).encode(texts)
    assert (tokens == 1).mean() < 0.01


def test_the_configurations_name_what_the_generator_writes(root, example_dir):
    """From the files' own folder: workdir/example beside configs/."""
    from tff_pipeline.config import load

    for name in ("quickstart", "ci"):
        for silo in load(root / "configs" / f"{name}.toml").silos:
            (glob,) = silo.inputs_by_split[""]
            assert list(example_dir.glob(str(Path(glob).relative_to(root / "workdir" / "example"))))


def test_it_says_that_it_is_an_example():
    assert (customer_messages.__doc__ or "").startswith("EXAMPLE")
