"""EXAMPLE: invents messages that customers of a bank, an insurer and a shop might write, and what each is about.

    python -m examples.customer_messages OUTDIR [--seed N] [--clients N]

writes three silos as three organisations would keep them, and a small vocabulary for a BERT that is trained from
nothing:

    OUTDIR/bank/messages.csv         quoted where needed; some fields hold line breaks
    OUTDIR/insurer/messages.jsonl    one object a line
    OUTDIR/shop/messages.tsv.gz      no quoting: a quotation mark there is a quotation mark (19" monitor)
    OUTDIR/vocabulary.txt            wordpieces, one a line

The same seed and number of clients give the same bytes. Ten intents, in other shares in each silo, some in one silo
only. Customers write from one message to thirty, each mostly about a few things, in a wording that depends on the
channel (app, mail, phone); about one in fourteen writes Chinese. The intents are not always told apart: some messages
mention a second matter, some are so vague ("it has not arrived yet") that several intents fit. About one row in a
hundred is broken on purpose: bytes that are not UTF-8, an empty text, a wrong number of fields, cut JSON.

Every name, address and number is made up by this file.
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

CLIENTS = 900
BROKEN_SHARE = 0.01
VAGUE_SHARE = 0.11
SECOND_MATTER_SHARE = 0.09
CHINESE_SHARE = 0.07
CHANNELS = ("app", "mail", "phone")

# How often each silo hears of each matter. What is not named does not occur there.
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

# (a|b|) is a choice, {name} a word from below. Both nest.
_SLOTS: dict[str, Sequence[str]] = {
    "city": ("Leeds", "Porto", "Graz", "Lyon", "Utrecht", "Aarhus", "Bilbao", "Gdansk"),
    "street": (
        "14 Mill Lane",
        "Rosenweg 3",
        "22 rue des Lilas",
        "8 Harbour Road",
        "51 Station Street",
        "Flat 6, Elm Court",
    ),
    "when": (
        "today",
        "yesterday",
        "last (monday|friday|week|month)",
        "two (days|weeks) ago",
        "on the {day}",
        "this morning",
        "tomorrow",
    ),
    "day": ("3rd", "5th", "12th", "17th", "21st", "28th"),
    "since": (
        "since {when}",
        "for (three|five|ten) days( now|)",
        "for (two|three) weeks( now|)",
        "for a week( now|)",
        "since the {day}",
    ),
    "amount": (
        "(20|35|49.90|80|120|230|15) (euros|eur|pounds|dollars)",
        "£(18|45|99|250)",
        "€(12|60|140)",
        "(200|450|1,300)",
    ),
    "shopname": (
        "a petrol station",
        "some web shop",
        "a hotel in {city}",
        "a streaming service",
        "a restaurant",
        "a shop I do not know",
    ),
    "thing": (
        "shoes",
        "jacket",
        "kettle",
        "headphones",
        "lamp",
        "desk",
        "phone case",
        'the 19" monitor',
        "coffee machine",
        "backpack",
    ),
    "insured": ("car", "bike", "kitchen", "bathroom", "roof", "phone", "laptop", "window", "fence", "washing machine"),
    "number": ("4711", "20881", "93120", "55-1207", "A7731", "K-40213"),
}

_ENGLISH: dict[str, Sequence[str]] = {
    "change_address": (
        "(I|we) (have moved|moved|just moved|am moving)( to {city}|) {when}, (please|can you|could you) (update|change) (my|our|the) address",
        "(my|our) new (address|place) is {street}( in {city}|)",
        "how do I (change|update) my (address|postal address|details|home address)( in the app| online|)?",
        "(your letters|the letters|all the post) still (go|goes) to my old (flat|house|address)",
        "(please send everything|send my post) to {street} from now on",
        "I got married, (please|can you) change my (last name|surname) and (my |)address",
        "I have a new (phone number|email address|mobile number), (please update it|where do I enter it)",
        "(you still have|there is still) the wrong (house number|street|postcode) (on file|in my profile)",
        "(moving house|moving to {city}) {when}, what do you need from me( for the new address|)?",
    ),
    "login_problem": (
        "I (cannot|can't|can not) (log in|sign in|get into my account)( {since}|)",
        "(the app|the website|your page) says (wrong password|my password is wrong|unknown user)( all the time|)",
        "(I forgot|I don't remember) my (password|pin for the app|user name)",
        "my account is (locked|blocked)( after three tries|), (please unlock it|how do I get back in)?",
        "(the code|the sms code|the confirmation code) (for logging in |)(never comes|does not arrive|comes too late)",
        "(the reset link|the password link) (does not work|has expired|leads nowhere)",
        "(the app|it) (throws|kicks) me out (as soon as|whenever) I (log in|open it)",
        "new phone, (now|and) the app (does not know me|wants to be activated|asks for a code I do not have)",
        "how (do|can) I (reset|change) my (password|pin)?",
    ),
    "cancel": (
        "(I want to|I would like to|please) (cancel|end|terminate) my (contract|account|policy|subscription|membership)( by the end of the month|)",
        "(please cancel|cancel) (order|contract|policy) {number}( at once|)",
        "how (do|can) I (cancel|close|quit)( my account| my contract|)?",
        "what is the notice period( for my contract|)?",
        "I (no longer need|do not need|don't want) (it|this|the contract|the order|the policy) any more( please cancel|)",
        "I found a (cheaper|better) offer (elsewhere|somewhere else) and want to leave",
        "(please confirm|did you get) my cancellation( of {when}|)?",
        "do not renew (it|my contract|my policy)( next year|)",
        "I ordered the {thing} (by mistake|twice), (please stop it|can you still stop the order)?",
    ),
    "disputed_charge": (
        "(there is|I see|I found) a (charge|payment|booking) of {amount} (that I did not make|I don't know|I never made|I cannot explain)",
        "I was charged (twice|two times)( for the same thing|)( {when}|)",
        "who is {shopname} and why did they take {amount}?",
        "(somebody|someone) (paid|bought something) with my (card|account)( {when}|)( at {shopname}|)",
        "{amount} (was|were) (taken|debited) from my account without my (permission|ok)",
        "the amount on my (statement|bill|invoice) is wrong( it should be {amount}|)",
        "I did not (authorise|approve) the payment (to {shopname}|of {amount})",
        "why (was|did you) (I billed|charge me) {amount} (instead of|and not) {amount}?",
        "(I dispute|please reverse|I object to) the (debit|charge|payment) (of|from) {when}",
    ),
    "lost_card": (
        "I (lost|have lost|can't find) my (card|debit card|credit card|wallet)( {when}|)( in {city}|)",
        "my (card|wallet|purse|bag) (was|got) stolen( {when}|)( on the train|)",
        "(please|can you) (block|freeze|lock) my card( immediately| right now|)",
        "(the cash machine|the atm) (kept|swallowed|ate) my card( {when}|)",
        "I (need|want|would like) a (new|replacement) card( please| mine is gone|)",
        "(left|forgot) my card (at {shopname}|in a taxi|in {city}), (what now|what should I do)?",
        "I found my card again, can you unblock it?",
        "how long does a (new|replacement) card take?",
        "my new card (has not come|did not come|is not here) yet",
    ),
    "transfer_status": (
        "(I sent|I transferred) {amount} {when} and (it has not arrived|nobody has got it|the other side sees nothing)",
        "where is my (transfer|standing order|bank transfer)( of {amount}|)?",
        "(the transfer|my payment to the landlord|the standing order) (is|has been) (pending|stuck|on hold) {since}",
        "how long does a transfer (to {city}|abroad|to another bank) take?",
        "I (typed|entered) the wrong (iban|account number), can (the transfer|it) be stopped?",
        "my (salary|pension|rent money) (is|has) not (on the account|come in|arrived)( yet|)",
        "the (transfer|wire) of {amount} (was|came back) (rejected|returned|without reason)",
        "did the {amount} to {city} (go out|leave my account)?",
        "(instant transfer|express payment) is (not instant at all|taking hours)",
    ),
    "report_damage": (
        "(I want to|I have to|I need to) (report|file) (a|some) (damage|claim)( to my {insured}|)",
        "(a pipe burst|water came through the ceiling|a storm hit us) {when} and the {insured} is (damaged|ruined|wet)",
        "(somebody|a van|the neighbour) (drove into|hit|scratched) my {insured}( {when}|)( in {city}|)",
        "my {insured} (was|got) (stolen|broken|smashed)( {when}|), (what do you need|how do I report it)?",
        "the {thing} (arrived|came|was delivered) (broken|damaged|scratched|in pieces|with a crack)",
        "the {thing} (stopped working|broke) after (two days|one week)",
        "(here are|I attach) (photos|pictures) of the (damage|broken {insured}|broken {thing})",
        "I (dropped|spilled coffee on) (the|my) (laptop|phone|headphones)( {when}|), is that (covered|insured)?",
        "(hail|the storm) (broke|destroyed) the {insured}( last night|)",
    ),
    "claim_status": (
        "what is the (status|state) of (my|the) claim( {number}|)?",
        "I (reported|filed) (the damage|the claim|my claim) {when} and (have heard nothing|nobody called me back)",
        "has (the expert|the assessor|your adjuster) (looked at|decided about) (my|the) {insured}( yet|)?",
        "when will you pay (for|the repair of) the {insured}?",
        "(did you get|have you received) (my|the) (photos|papers|invoice from the garage|repair bill)( for claim {number}|)?",
        "why was (my|the) claim (rejected|turned down|only paid in part)?",
        "claim {number} is (still open|still pending|being processed) {since}",
        "the (garage|workshop|plumber) is waiting for your (approval|ok)( {since}|)",
        "is there (any news|an update|any progress) (about|on) (my claim|the water damage|the accident)?",
    ),
    "delivery_status": (
        "where is my (order|parcel|package)( {number}|)?",
        "(my|the) (parcel|order|{thing}) (should have|was supposed to) (come|arrive) {when}",
        "the tracking (page|number|link) (shows nothing|has not changed {since}|does not work)",
        "when will (the|my) {thing} be (delivered|shipped|sent)?",
        "the driver (left it somewhere|did not ring|says nobody was home)",
        "it says delivered but (there is nothing here|I have nothing|nobody got it)",
        "(one|half) of the (things|items) (is missing|was not in the box)",
        "can you deliver (on {when}|to the neighbour|to a pick-up point|after six)?",
        "I (ordered|bought) (the|a) {thing} {when} and (it is not here|nothing came|no parcel so far)",
    ),
    "refund": (
        "(when|how soon) (do|will) I get my money (back|back for the {thing})?",
        "I (sent|gave) (the|back the) {thing} (back|) {when} and (there is no refund|the money is not there)",
        "how (do|can) I (return|send back) (the|my) {thing}?",
        "the {thing} (does not fit|is too small|is not what I ordered), I want (to return it|my money back)",
        "where is (my|the) refund( of {amount}| for order {number}|)?",
        "you (promised|owe) me {amount} back( {since}|)",
        "I (paid too much|overpaid)( by {amount}|), please (pay it back|send it back)",
        "(please refund|refund) (the fee|the shipping|the premium|the rest) (for|of) {when}",
        "do I have to pay for the return( label| shipping|)?",
    ),
}

# What fits several matters; nobody could tell which was meant.
_VAGUE: tuple[tuple[tuple[str, ...], Sequence[str]], ...] = (
    (
        ("delivery_status", "transfer_status", "refund", "claim_status", "lost_card"),
        (
            "it (still has not|has not|hasn't) arrived( yet|)",
            "(still waiting|I am still waiting)( {since}|)",
            "how much longer (will it|does it) take?",
            "(any news|is there any news)( about {number}|)?",
            "you said {when}, (nothing|so far nothing)",
        ),
    ),
    (
        ("disputed_charge", "refund", "transfer_status", "cancel"),
        (
            "I want my {amount} back",
            "(the money|the {amount}) is gone( {since}|)",
            "please give me back the money( of {when}|)",
            "(something|the amount) is wrong with my (payment|account)",
        ),
    ),
    (
        ("report_damage", "refund", "delivery_status", "cancel"),
        (
            "the {thing} is (not ok|bad|wrong), what now?",
            "I am not happy with the {thing}",
            "please take the {thing} back",
        ),
    ),
    (
        ("login_problem", "change_address", "lost_card"),
        (
            "(something|it) does not work in the app",
            "how do I change (it|this) in the app?",
            "I need a new (pin|code)",
            "please (update|unlock) my account",
        ),
    ),
    (
        ("change_address", "cancel", "claim_status", "report_damage"),
        (
            "did you get my (letter|mail|message)( of {when}|)?",
            "which form do I need?",
            "please call me back about {number}",
        ),
    ),
)

_CHINESE: dict[str, Sequence[str]] = {
    "change_address": (
        "我(上周|昨天|)搬家了，请(帮我|)(修改|更新)地址",
        "怎么(修改|更改)我的(地址|手机号|联系方式)？",
        "我的新地址在(上海|杭州|广州)",
    ),
    "login_problem": (
        "我(登录不了|无法登录)(账户|手机应用|)",
        "(密码|验证码)(错了|收不到|忘记了)，怎么办？",
        "账户被锁(定|)了，请(帮我|)解锁",
    ),
    "cancel": ("我(想|要)取消(订单|合同|保险)", "请(帮我|)(取消|停止)自动续费", "怎么(注销|关闭)(账户|我的账户)？"),
    "disputed_charge": (
        "(账单|账户)上有一笔(不是我的|我没有做过的)(付款|扣款)",
        "为什么扣了我(两次|一百元|五十元)？",
        "这笔(付款|扣款)不是我(做|同意)的",
    ),
    "lost_card": ("我的(银行卡|卡|钱包)(丢了|不见了|被偷了)", "请(马上|立刻|)冻结我的卡", "我(要|想)补办(一张|)新卡"),
    "transfer_status": ("我(昨天|上周)转的(钱|账)还没到", "转账(要多久|什么时候到)？", "(转账|汇款)被退回了，为什么？"),
    "report_damage": (
        "我的(车|手机|窗户)(坏了|被撞了)，(要|想)报(损|案)",
        "(东西|商品|杯子)收到时(坏了|破了)",
        "家里(漏水|进水)了，(怎么报案|能赔吗)？",
    ),
    "claim_status": (
        "我的理赔(到哪一步了|有结果了吗)？",
        "理赔款什么时候(到|付)？",
        "上周(报的案|的理赔)还没(消息|结果)",
    ),
    "delivery_status": ("我的(包裹|快递|订单)(到哪里了|在哪里)？", "(快递|包裹)还没(收到|到)", "什么时候(发货|送到)？"),
    "refund": ("什么时候(退款|退钱)？", "我想(退货|退款)，怎么办？", "(鞋|衣服)不合适，(要|想)退货"),
}
_CHINESE_OPENERS = ("", "", "你好，", "您好，", "请问，", "麻烦你，")
_CHINESE_CLOSERS = ("", "", "谢谢", "。谢谢！", "，急！", "。")

_OPENERS = {
    "app": ("", "", "", "hi, ", "hey ", "hello, ", "ok so ", "help!! ", "again: "),
    "mail": (
        "Dear Sir or Madam, ",
        "Hello, ",
        "Good morning, ",
        "Hi team, ",
        "To whom it may concern: ",
        "As I wrote before, ",
        "",
    ),
    "phone": ("", "yes hello ", "hi um ", "uh ", "good morning so ", "well ", "I was told to call you ", "yeah so "),
}
_CLOSERS = {
    "app": ("", "", "", "", " thx", " pls", " asap", " 😡", " 🙏", " 😭😭", " !!", " ...", " 👍"),
    "mail": (
        ". Kind regards",
        ". Thank you in advance",
        ". Please reply soon",
        ". Best wishes, a long-time customer",
        "",
        ". This is urgent",
        ". Yours sincerely",
    ),
    "phone": ("", "", " you know", " is that right", " thank you", " if you could look that up", " yeah", " please"),
}
_JOINS = (", and ", ". Also, ", " and now ", ", besides ", ". By the way ")


class Message(NamedTuple):
    client: str
    channel: str
    text: str
    intent: str


def messages(silo: str, *, clients: int, seed: int) -> list[Message]:
    """All messages of a silo, in the order in which they came in."""
    source = random.Random(f"customer messages/{seed}/{silo}")
    intents = list(SILOS[silo])
    found = []
    for client in source.sample(range(10_000, 10_000 + 20 * clients), clients):
        # Few write much: the median customer writes five messages, the busiest thirty.
        count = min(30, max(1, round(source.lognormvariate(1.6, 0.9))))
        # Everybody has matters of their own: the silo's shares, bent differently for each customer.
        shares = [SILOS[silo][intent] * source.gammavariate(0.5, 1) for intent in intents]
        channels = [source.gammavariate(0.5, weight) for weight in (3, 1.2, 1)]
        chinese, typos = source.random() < CHINESE_SHARE, source.choice((0, 0, 0.2, 0.6))
        for intent in source.choices(intents, shares, k=count):
            channel = source.choices(CHANNELS, channels)[0]
            text = _chinese(source, intent) if chinese else _english(source, intent, channel, silo, typos)
            found.append(Message(f"{silo[0].upper()}{client}", channel, text, intent))
    source.shuffle(found)
    return found


def _english(source: random.Random, intent: str, channel: str, silo: str, typos: float) -> str:
    core = _core(source, intent)
    if source.random() < SECOND_MATTER_SHARE:
        # The matter that counts may come first or second.
        other = source.choice([label for label in SILOS[silo] if label != intent])
        core = source.choice(_JOINS).join(source.sample([core, _filled(source, source.choice(_ENGLISH[other]))], 2))
    text = source.choice(_OPENERS[channel]) + core
    if channel == "mail":
        text = text[:1].upper() + text[1:]
    text = (text + source.choice(_CLOSERS[channel])).replace("?.", "?")
    if channel == "phone":  # as a transcript has it
        text = re.sub(r"[^\w\s'.,£€-]", "", text.replace(". ", " ").replace(", ", " ")).lower()
    elif source.random() < 0.35:
        text = text.lower()
    elif source.random() < 0.04:
        text = text.upper()
    if channel != "phone" and source.random() < typos:
        text = _mistyped(source, text)
    return text


def _core(source: random.Random, intent: str) -> str:
    vague = [templates for intents, templates in _VAGUE if intent in intents]
    templates = source.choice(vague) if source.random() < VAGUE_SHARE else _ENGLISH[intent]
    return _filled(source, source.choice(templates))


def _chinese(source: random.Random, intent: str) -> str:
    return (
        source.choice(_CHINESE_OPENERS)
        + _filled(source, source.choice(_CHINESE[intent]))
        + source.choice(_CHINESE_CLOSERS)
    )


def _filled(source: random.Random, template: str) -> str:
    """A template with every choice made, innermost first."""
    while match := re.search(r"\(([^()]*)\)|\{(\w+)\}", template):
        choices = match[1].split("|") if match[2] is None else _SLOTS[match[2]]
        template = template[: match.start()] + source.choice(choices) + template[match.end() :]
    return template


def _mistyped(source: random.Random, text: str) -> str:
    """One slip of the finger for about every twenty-five characters: two letters swapped, one dropped, one doubled."""
    letters = list(text)
    for _ in range(1 + len(letters) // 25):
        place = source.randrange(len(letters) - 1) if len(letters) > 1 else 0
        if "".join(letters[place : place + 2]).isalpha():
            first, second = letters[place : place + 2]
            letters[place : place + 2] = source.choice(([second, first], [first], [first, first, second]))
    return "".join(letters)


# -- the three ways of keeping them --------------------------------------------------------------------------------------


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
    """{"policyholder", "received", "via", "body", "topic"} on each line."""

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
    with gzip.GzipFile(
        fileobj=packed, mode="wb", filename="", mtime=0
    ) as file:  # no time, no name: the same bytes every time
        file.write(text)
    return packed.getvalue()


def _with_broken(
    rows: Sequence[Message],
    line: Callable[[Message], bytes],
    broken: Sequence[Callable[[Message], bytes]],
    source: random.Random,
) -> list[bytes]:
    """The rows as lines, and among them broken ones, BROKEN_SHARE of them but at least one of each kind."""
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


# -- the vocabulary ------------------------------------------------------------------------------------------------------


def vocabulary() -> list[str]:
    """BERT's special tokens, every letter alone and as a continuation, and what the templates above are made of.

    Made from the templates and not from any silo's messages, of which it therefore says nothing.
    """
    groups = (_SLOTS, _ENGLISH, _CHINESE, _OPENERS, _CLOSERS)
    texts = [text for group in groups for texts in group.values() for text in texts]
    texts += [text for _, texts in _VAGUE for text in texts] + [*_JOINS, *_CHINESE_OPENERS, *_CHINESE_CLOSERS]
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


# -- the command ---------------------------------------------------------------------------------------------------------


def generate(folder: Path, *, seed: int = 7, clients: int = CLIENTS) -> None:
    """Writes the three silos and the vocabulary into `folder`; what is there under the same names is replaced."""
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
    parser.add_argument("outdir", type=Path, metavar="OUTDIR", help="the folder to write into; made if it is not there")
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
