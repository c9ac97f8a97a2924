"""EXAMPLE: invents messages that customers of a bank, an insurer and a shop might write, each with its intent.

    python -m examples.customer_messages OUTDIR [--seed N] [--clients N]

writes three silos as three organisations would keep them, and a small vocabulary for a BERT that is trained from
scratch:

    OUTDIR/bank/messages.csv         quoted where needed; some fields hold line breaks
    OUTDIR/insurer/messages.jsonl    one object a line
    OUTDIR/shop/messages.tsv.gz      no quoting: a quotation mark there is a quotation mark (19" monitor)
    OUTDIR/vocabulary.txt            wordpieces, one a line

The same seed and number of clients give the same bytes. There are ten intents, with frequencies that differ between silos,
some in one silo only. A customer writes one to thirty messages, mostly about a few matters, in a wording that depends on the
channel (app, mail, phone); about one in fourteen writes Chinese. Intents are not always distinct: some messages mention a
second matter, and some are so vague ("it has not arrived yet") that several intents fit. About one row in a hundred is broken
on purpose: bytes that are not UTF-8, an empty text, a wrong number of fields, JSON that is cut short.

Every name, address and number is invented.
"""

import argparse
import csv
import gzip
import io
import json
import random
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from examples import phrases

CLIENTS = 900
BROKEN_SHARE = 0.01
VAGUE_SHARE = 0.11
SECOND_MATTER_SHARE = 0.09
CHINESE_SHARE = 0.07
CHANNELS = ("app", "mail", "phone")

# How often each intent occurs in each silo, in relative numbers. An intent that is not listed does not occur there.
SILOS: dict[str, dict[str, float]] = {
    "bank": {
        "lost_card": 22,
        "transfer_status": 22,
        "disputed_charge": 20,
        "login_problem": 16,
        "change_address": 10,
        "cancel": 6,
        "refund": 4,
    },
    "insurer": {
        "report_damage": 28,
        "claim_status": 28,
        "cancel": 18,
        "change_address": 12,
        "login_problem": 8,
        "refund": 4,
        "disputed_charge": 2,
    },
    "shop": {
        "delivery_status": 30,
        "refund": 26,
        "report_damage": 14,
        "cancel": 12,
        "login_problem": 8,
        "disputed_charge": 6,
        "change_address": 4,
    },
}
_SILO_SHARES = {"bank": 0.45, "insurer": 0.2, "shop": 0.35}


class Message(NamedTuple):
    client: str
    channel: str
    text: str
    intent: str


def messages(silo: str, *, clients: int, seed: int) -> list[Message]:
    """All messages of a silo, in the order in which they came in."""
    source = random.Random(f"customer messages/{seed}/{silo}")
    intents = list(SILOS[silo])
    written = []
    for client in source.sample(range(10_000, 10_000 + 20 * clients), clients):
        # Few write much: the median customer writes five messages, the busiest thirty.
        count = min(30, max(1, round(source.lognormvariate(1.6, 0.9))))
        # Each customer has matters of their own: the silo's frequencies, varied by customer.
        weights = [SILOS[silo][intent] * source.gammavariate(0.5, 1) for intent in intents]
        channels = [source.gammavariate(0.5, weight) for weight in (3, 1.2, 1)]
        chinese, typos = source.random() < CHINESE_SHARE, source.choice((0, 0, 0.2, 0.6))
        for intent in source.choices(intents, weights, k=count):
            channel = source.choices(CHANNELS, channels)[0]
            text = _chinese(source, intent) if chinese else _english(source, intent, channel, silo, typos)
            written.append(Message(f"{silo[0].upper()}{client}", channel, text, intent))
    source.shuffle(written)
    return written


def _english(source: random.Random, intent: str, channel: str, silo: str, typos: float) -> str:
    core = _core(source, intent)
    if source.random() < SECOND_MATTER_SHARE:
        # The labelled matter may come first or second.
        other = source.choice([label for label in SILOS[silo] if label != intent])
        core = source.choice(phrases.JOINS).join(
            source.sample([core, _filled(source, source.choice(phrases.ENGLISH[other]))], 2)
        )
    text = source.choice(phrases.OPENERS[channel]) + core
    if channel == "mail":
        text = text[:1].upper() + text[1:]
    text = (text + source.choice(phrases.CLOSERS[channel])).replace("?.", "?")
    if channel == "phone":  # as in a transcript
        text = re.sub(r"[^\w\s'.,£€-]", "", text.replace(". ", " ").replace(", ", " ")).lower()
    elif source.random() < 0.35:
        text = text.lower()
    elif source.random() < 0.04:
        text = text.upper()
    if channel != "phone" and source.random() < typos:
        text = _mistyped(source, text)
    return text


def _core(source: random.Random, intent: str) -> str:
    vague = [templates for intents, templates in phrases.VAGUE if intent in intents]
    templates = source.choice(vague) if source.random() < VAGUE_SHARE else phrases.ENGLISH[intent]
    return _filled(source, source.choice(templates))


def _chinese(source: random.Random, intent: str) -> str:
    return (
        source.choice(phrases.CHINESE_OPENERS)
        + _filled(source, source.choice(phrases.CHINESE[intent]))
        + source.choice(phrases.CHINESE_CLOSERS)
    )


def _filled(source: random.Random, template: str) -> str:
    """A template with every choice made, innermost first."""
    while match := re.search(r"\(([^()]*)\)|\{(\w+)\}", template):
        choices = match[1].split("|") if match[2] is None else phrases.SLOTS[match[2]]
        template = template[: match.start()] + source.choice(choices) + template[match.end() :]
    return template


def _mistyped(source: random.Random, text: str) -> str:
    """The text with about one typing error in every twenty-five characters: letters swapped, dropped or doubled."""
    letters = list(text)
    for _ in range(1 + len(letters) // 25):
        at = source.randrange(len(letters) - 1) if len(letters) > 1 else 0
        if "".join(letters[at : at + 2]).isalpha():
            first, second = letters[at : at + 2]
            letters[at : at + 2] = source.choice(([second, first], [first], [first, first, second]))
    return "".join(letters)


# -- three formats -----------------------------------------------------------------------------------------------------


def bank_csv(rows: Sequence[Message], source: random.Random) -> bytes:
    """date,customer,channel,message,intent, quoted where needed; mails hold line breaks."""

    def line(row: Message) -> bytes:
        text = (
            re.sub(r"(?<=[a-z,.!]), (?=[A-Z])|\. (?=[A-Z])", lambda match: match[0].rstrip() + "\r\n", row.text)
            if row.channel == "mail"
            else row.text
        )
        return _csv_row(_date(source), row.client, row.channel, text, row.intent)

    broken: list[Callable[[Message], bytes]] = [
        lambda row: line(row._replace(text="@@")).replace(b"@@", b"caf\xe9 M\xfcller"),
        lambda row: line(row._replace(text="")),
        lambda row: _csv_row(_date(source), row.client, row.text),
    ]
    return b"date,customer,channel,message,intent\r\n" + b"".join(_with_broken(rows, line, broken, source))


def insurer_jsonl(rows: Sequence[Message], source: random.Random) -> bytes:
    """An object with policyholder, received, via, body and topic on each line."""

    def line(row: Message) -> bytes:
        fields = {
            "policyholder": row.client,
            "received": _date(source),
            "via": row.channel,
            "body": row.text,
            "topic": row.intent,
        }
        return json.dumps(fields, ensure_ascii=False).encode() + b"\n"

    broken: list[Callable[[Message], bytes]] = [
        lambda row: line(row)[: 30 + len(row.client)] + b"\n",
        lambda row: line(row._replace(text="@@")).replace(b"@@", b"d\xe9g\xe2t des eaux"),
        lambda row: line(row._replace(text="   ")),
        lambda row: json.dumps({"policyholder": row.client, "topic": row.intent}).encode() + b"\n",
    ]
    return b"".join(_with_broken(rows, line, broken, source))


def shop_tsv_gz(rows: Sequence[Message], source: random.Random) -> bytes:
    """customer_no, channel, reason and text between tabs, without quoting, gzipped."""

    def line(row: Message) -> bytes:
        return "\t".join((row.client, row.channel, row.intent, row.text)).encode() + b"\n"

    broken: list[Callable[[Message], bytes]] = [
        lambda row: f"{row.client}\t{row.channel}\n".encode(),
        lambda row: line(row._replace(text="one\ttab too many")),
        lambda row: line(row._replace(text="")),
        lambda row: line(row._replace(text="@@")).replace(b"@@", b"pr\xe9nom"),
    ]
    text = b"customer_no\tchannel\treason\ttext\n" + b"".join(_with_broken(rows, line, broken, source))
    packed = io.BytesIO()
    # Without a time and a name, so that the bytes are the same every time.
    with gzip.GzipFile(fileobj=packed, mode="wb", filename="", mtime=0) as file:
        file.write(text)
    return packed.getvalue()


def _with_broken(
    rows: Sequence[Message],
    line: Callable[[Message], bytes],
    broken: Sequence[Callable[[Message], bytes]],
    source: random.Random,
) -> list[bytes]:
    """The rows as lines, with broken ones inserted: BROKEN_SHARE of them, but at least one of each kind."""
    lines = [line(row) for row in rows]
    for index in range(max(len(broken), round(BROKEN_SHARE * len(rows)))):
        lines.insert(source.randrange(len(lines) + 1), broken[index % len(broken)](source.choice(rows)))
    return lines


def _csv_row(*fields: str) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerow(fields)
    return text.getvalue().encode()


def _date(source: random.Random) -> str:
    return f"2026-{source.randint(1, 12):02d}-{source.randint(1, 28):02d}"


# -- the vocabulary ----------------------------------------------------------------------------------------------------


def vocabulary() -> list[str]:
    """BERT's special tokens, every letter alone and as a continuation, and the words of the templates.

    It is made from the templates and not from any silo's messages, so it reveals nothing about them.
    """
    groups = (phrases.SLOTS, phrases.ENGLISH, phrases.CHINESE, phrases.OPENERS, phrases.CLOSERS)
    texts = [text for group in groups for texts in group.values() for text in texts]
    texts += [text for _, texts in phrases.VAGUE for text in texts] + [
        *phrases.JOINS,
        *phrases.CHINESE_OPENERS,
        *phrases.CHINESE_CLOSERS,
    ]
    whole = re.sub(r"\{\w+\}", " ", " ".join(texts)).lower()
    ascii_symbols = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    pieces = ["##" + symbol for symbol in ascii_symbols if symbol.isalnum()]
    suffixes = ["##s", "##ed", "##er", "##ing", "##es", "##ly", "##tion"]
    words = sorted(set(re.findall(r"[a-z]{2,}", whole)))
    others = sorted({symbol for symbol in whole if not symbol.isascii()})
    return list(
        dict.fromkeys(
            ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *ascii_symbols, *pieces, *suffixes, *words, *others]
        )
    )


# -- the command -------------------------------------------------------------------------------------------------------


def generate(folder: Path, *, seed: int = 7, clients: int = CLIENTS) -> None:
    """Writes the three silos and the vocabulary into `folder`; existing files of the same names are replaced."""
    files = {
        "bank": ("messages.csv", bank_csv),
        "insurer": ("messages.jsonl", insurer_jsonl),
        "shop": ("messages.tsv.gz", shop_tsv_gz),
    }
    for silo, (name, encode) in files.items():
        rows = messages(silo, clients=max(1, round(clients * _SILO_SHARES[silo])), seed=seed)
        path = folder / silo / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(rows, random.Random(f"rows/{seed}/{silo}")))
    (folder / "vocabulary.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.customer_messages", description="Writes example messages of three organisations."
    )
    parser.add_argument(
        "outdir", type=Path, metavar="OUTDIR", help="the folder to write into; created if it does not exist"
    )
    parser.add_argument("--seed", type=int, default=7, metavar="N", help="other messages for another seed (default: 7)")
    parser.add_argument(
        "--clients",
        type=int,
        default=CLIENTS,
        metavar="N",
        help=f"customers of the three together (default: {CLIENTS})",
    )
    arguments = parser.parse_args(argv)
    if arguments.clients < 3:
        parser.error("--clients: expected at least 3, one for each silo")
    generate(arguments.outdir, seed=arguments.seed, clients=arguments.clients)
    return 0


if __name__ == "__main__":
    sys.exit(main())
