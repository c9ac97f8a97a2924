"""csv and tsv whose quotes are damaged: nobody's text ends up in another person's row, and every line is accounted for."""

import csv
import io
import random
import re
import tracemalloc

import pytest

from beam_jobs import formats, lines, reading
from beam_jobs.formats.quoting import Quotes
from beam_jobs.formats.table import Table
from tff_pipeline.config import SiloSection
from tff_pipeline.errors import InputError

GLUED = "quoted line breaks that look like rows"
COLUMNS = ("text", "label", "client")


def source(
    *columns: str, limit: int = 2**22, labels: frozenset[str] | None = None, form: str = "csv"
) -> reading.Source:
    client = "client" if "client" in (columns or COLUMNS) else ""
    return reading.Source(
        SiloSection(name="bank", input="unused", format=form, client=client), "data.csv", limit, labels
    )


def read(data: str | bytes, at: reading.Source):
    """Rows as (line, text, label, client), rejects, and what became of the lines."""
    rows, rejects, counts = [], [], reading.LineCounts()
    for part in formats.read_columns(io.BytesIO(data.encode() if isinstance(data, str) else data), at):
        rows += zip(part.lines, part.texts, part.labels, part.clients, strict=True)
        rejects += part.rejects
        counts = counts.plus(part.counts)
    return rows, rejects, counts


def people(count: int, *, first: int = 0) -> str:
    return "".join(f"my card {number},{'xyz'[number % 3]},c{number}\n" for number in range(first, first + count))


# -- fields with line breaks that are rows -----------------------------------------------------------------------------


def test_rows_between_a_stray_quote_and_the_next_are_rejected_with_all_of_their_lines():
    """What an attacker found: 67 rows, of which the 17th opens a quote and the 67th closes it."""
    data = "text,label,client\n" + people(15) + '"lost 1,x,c15\n' + people(50, first=16) + 'lost 2",y,c66\n'

    rows, rejects, counts = read(data, source())

    assert [row[3] for row in rows] == [f"c{number}" for number in range(15)]
    assert rejects == [reading.Reject(line=17, reason=GLUED, rows=52)]
    assert len(rows) + sum(reject.rows for reject in rejects) == 67
    assert counts == reading.LineCounts(read=68, rows=15, rejected=52, header=1)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("block", [16, 100, 2**18])
@pytest.mark.parametrize(
    ("columns", "opening", "closing"),
    [
        (("text", "label", "client"), '"help,x,anna', 'thanks",y,bob'),  # in the first column
        (("client", "text", "label"), 'anna,"help,x', 'bob,thanks",y'),  # between two
        (("client", "label", "text"), 'anna,x,"help', 'bob,y,thanks"'),  # in the last one
        (("text", "label", "client"), 'help,x,"anna', 'thanks,y,bob"'),  # in a column of ids
        (("client", "text", "label"), '"anna,help,x', 'bob",thanks,y'),
        (("text", "label", "client"), '"help ""me"",x,anna', 'thanks",y,bob'),  # with quotes that are part of the text
        (("text", "label"), '"help,x', 'thanks",y'),
        (("label", "text"), 'x,"help', 'y,thanks"'),
        (("label", "text"), 'x,"help', 'y,thanks, and help"'),  # whose own quotes are gone too
    ],
)
@pytest.mark.parametrize("between", [0, 1, 30])
def test_wherever_the_quotes_are(monkeypatch, columns, opening, closing, between, block, end):
    """Good rows before and after stay; nothing of the rows between the quotes does."""
    monkeypatch.setattr(lines, "BLOCK_BYTES", block)
    values = {"text": "secret", "label": "x", "client": "carl"}
    good = [",".join({**values, "text": "fine", "label": label}[column] for column in columns) for label in "xyxyxy"]
    swallowed = [",".join(values[column] for column in columns)] * between
    data = end.join([",".join(columns), *good, opening, *swallowed, closing, *good, ""])

    rows, rejects, counts = read(data, source(*columns))

    assert [row[1] for row in rows] == ["fine"] * 12
    assert rejects == [reading.Reject(8, GLUED, between + 2)]
    assert (counts.read, counts.missing) == (len(good) * 2 + 3 + between, 0)


def test_a_quote_that_closes_before_other_text_rejects_the_lines_behind_it_as_well():
    """Line 3 opens a quote that line 6 seems to close, where it opens a field of its own, of two lines."""
    data = 'text,label,client\nmy card,x,anna\n"help,x,anna\nlost,y,ben\nlost,z,carl\n"thanks\nfor this",y,dora\nfine,x,emma\n'

    rows, rejects, counts = read(data, source())

    assert [row[3] for row in rows] == ["anna", "emma"]
    assert rejects == [reading.Reject(3, "broken quoting", 5)]
    assert counts == reading.LineCounts(read=8, rows=2, rejected=5, header=1)


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_a_field_of_many_lines_is_looked_at_line_by_line(end):
    """Not as a list of all of their parts, which takes a hundred times as much memory as the field."""
    lines_ = ['anna,"x y', *["x y"] * 100_000, 'z",d']
    record = [line + end for line in lines_]
    table = Table(["client", "text", "label"], source(), ",")

    tracemalloc.start()
    try:
        glued = table.glued(record, ["anna", end.join(["x y", *["x y"] * 100_000, "z"]), "d"])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert not glued
    assert peak < 4 * 2**20


def test_labels_that_the_configuration_lists_are_known_before_the_first_row():
    data = 'label,text\nx,"help\ny,thanks, and so on"\n'

    _, rejects, _ = read(data, source("label", "text", labels=frozenset("xy")))
    assert rejects == [reading.Reject(2, GLUED, 2)]


def test_a_quote_closed_at_the_end_of_the_file_and_one_never_closed():
    glued = "text,label,client\n" + people(6) + 'help,x,"anna\n' + people(5)

    assert read(glued + 'lost,y,ben"', source())[1] == [reading.Reject(8, GLUED, 7)]
    with pytest.raises(InputError, match="row that begins on line 8 is still open at the end of the file"):
        read(glued + "lost,y,ben", source())


# -- fields with line breaks that are text -----------------------------------------------------------------------------

LETTER = """Dear Sir or Madam,

I have lost my card, please help me.
It was worth 1,000 euros, which is a lot, as you know.

Kind regards,
Anna"""


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    "columns",
    [
        ("text", "label"),
        ("label", "text"),
        ("text", "label", "client"),
        ("client", "text", "label"),
        ("client", "label", "text"),
    ],
)
@pytest.mark.parametrize(
    "text",
    [LETTER, "help\nme", "\nhelp\n", "a, b\nc, d", 'he said "yes, please"\nthanks, Anna', "yes, please\nyes, thanks"],
)
def test_letters_stay_whole(columns, text, end):
    """In files of two and three columns, also where every line has a comma, and labels that begin lines of the text."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator=end)
    writer.writerow(columns)
    for number in range(20):
        values = {"text": text.replace("\n", end), "label": ["yes", "no"][number % 2], "client": f"c{number}"}
        writer.writerow([values[column] for column in columns])
        writer.writerow([{**values, "text": "fine, thanks"}[column] for column in columns])

    rows, rejects, counts = read(out.getvalue(), source(*columns))

    assert [row[1] for row in rows] == [text.replace("\n", end), "fine, thanks"] * 20
    assert rejects == []
    assert counts.rows == 20 * (text.count("\n") + 2) == counts.read - 1


def test_rows_whose_delimiters_are_followed_by_blanks_are_known_by_the_rows_before():
    data = (
        "text,label,client\n" + "fine, x, carl\n" * 5 + 'help, x, anna\n"lost, x, ben\nlost, x, dora\nlost", x, emma\n'
    )

    rows, rejects, _ = read(data, source())
    assert len(rows) == 6
    assert rejects == [reading.Reject(8, GLUED, 3)]


def test_no_text_of_two_rows_ever_meets():
    """4,000 files of seed 1, most of them with one quote too many or too few: whatever is read has the text of one row. Where
    nothing is damaged everything is read as Python's csv reads it, but for letters with lines that look like rows (under 1%)."""
    random_, rows_read, letters = random.Random(1), 0, 0
    for number in range(4000):
        order = random_.choice([("text", "label", "client"), ("client", "text", "label"), ("client", "label", "text")])
        data = _file(random_, order)
        expected = list(csv.DictReader(io.StringIO(data, newline="")))
        damaged = number % 4 > 0
        if damaged:
            data = _with_a_quote_more_or_less(random_, data)
        try:
            rows, rejects, counts = read(data, source(*order))
        except InputError:
            assert damaged
            continue
        assert counts.missing == 0
        assert all(len(set(re.findall(r"<\d+>", text + client))) <= 1 for _, text, _, client in rows)
        if not damaged:
            rows_read, letters = rows_read + len(expected), letters + len(rejects)
            assert [row[1] for row in rows] == [row["text"] for row in expected] or rejects

    assert letters < 0.01 * rows_read


WORDS = ["my", "card", "is", "lost", "please", "help,", "thanks,", "1,000", "bob", '"q"']


def _file(random_: random.Random, order: tuple[str, ...]) -> str:
    """20 to 60 rows, a fifth of them with line breaks; each text and client says the number of its row."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator=random_.choice(["\n", "\r\n"]))
    writer.writerow(order)
    for number in range(random_.randint(20, 60)):
        words = [random_.choice(WORDS) for _ in range(random_.randint(2, 9))]
        text = random_.choice([" ", " ", " ", " ", "\n"]).join(words) + f" <{number}>"
        values = {"text": text, "label": random_.choice(["question", "complaint"]), "client": f"<{number}>"}
        writer.writerow([values[column] for column in order])
    return out.getvalue()


def _with_a_quote_more_or_less(random_: random.Random, data: str) -> str:
    """Takes away a quote, or puts one before or behind a field, in the second half of a file."""
    quotes = [match.start() for match in re.finditer('"', data) if match.start() > len(data) / 2]
    if quotes and random_.random() < 0.5:
        at = random_.choice(quotes)
        return data[:at] + data[at + 1 :]
    borders = [match.start() for match in re.finditer(r"[,\r\n]", data) if match.start() > len(data) / 2]
    at = random_.choice(borders) + random_.choice([0, 1])
    return data[:at] + '"' + data[at:]


# -- other oddities ----------------------------------------------------------------------------------------------------


def test_columns_beside_a_header_row_are_refused():
    given = reading.Source(SiloSection(name="bank", input="unused", format="csv", columns=COLUMNS), "data.csv")

    with pytest.raises(InputError, match=r"the first line is a header \(it holds 3 of the 3 names in `columns`\)"):
        read("text,label,client\nhelp,x,anna\n", given)
    with pytest.raises(InputError, match="the first line is a header"):
        read("\nclient,label,text\nanna,x,help\n", given)
    assert len(read("help,x,anna\ntext,y,ben\n", given)[0]) == 2


def test_a_long_unquoted_field_costs_its_row():
    data = "text,label,client\nfine,x,anna\n" + "a" * 5000 + ",x,ben\nfine,y,carl\n"

    rows, rejects, counts = read(data, source(limit=1024))
    assert [row[3] for row in rows] == ["anna", "carl"]
    assert rejects == [reading.Reject(3, "too long", 1)]
    assert counts.missing == 0


@pytest.mark.parametrize("block", [100, 2**18])
def test_a_long_quoted_field_costs_its_row(monkeypatch, block):
    """One, since its lines are text; the rows after its end are read, whether it is one long line, many short ones, or both."""
    monkeypatch.setattr(lines, "BLOCK_BYTES", block)
    for long in (
        "a\n" * 2000,
        "a" * 5000,
        "a\n" + "b" * 5000 + "\nc",
        '""' * 3000 + "\n,",
        "a" * 1000 + "\n" + "b" * 1000,
    ):
        data = 'text,label,client\nfine,x,anna\n"' + long + '",x,ben\nfine,"y\n",carl\n'

        rows, rejects, counts = read(data, source(limit=1024))
        assert [row[3] for row in rows] == ["anna", "carl"]
        assert rejects == [reading.Reject(3, "too long")]
        assert (counts.missing, counts.rejected) == (0, long.count("\n") + 1)


@pytest.mark.parametrize("block", [100, 2**18])
@pytest.mark.parametrize("long", ["", "a" * 3000 + "\n"])
def test_rows_in_a_field_that_is_too_long_are_counted(monkeypatch, block, long):
    """A quote that is closed 200 rows later, above the limit: 202 rejects, and one more for a long line among them."""
    monkeypatch.setattr(lines, "BLOCK_BYTES", block)
    data = (
        "text,label,client\n"
        + people(6)
        + '"lost,x,ben\n'
        + people(100)
        + long
        + people(100)
        + 'help",y,dora\n'
        + people(3)
    )

    rows, rejects, counts = read(data, source(limit=1024))
    assert [row[3] for row in rows] == ["c0", "c1", "c2", "c3", "c4", "c5", "c0", "c1", "c2"]
    assert rejects == [reading.Reject(8, "too long", 202 + len(long) // 3000)]
    assert counts.missing == 0


def test_without_quoting_a_long_line_is_a_line():
    silo = SiloSection(name="bank", input="unused", format="tsv", quoting=False)
    data = 'text\tlabel\n"a\tx\n' + '"' * 5000 + '\tx\n"b\ty\n'

    rows, rejects, _ = read(data, reading.Source(silo, "data.tsv", 1024))
    assert [row[1] for row in rows] == ['"a', '"b']
    assert rejects == [reading.Reject(3, "too long")]


def test_a_header_that_cannot_be_read():
    with pytest.raises(InputError, match=r"the header, on line 1, cannot be read \(too long\)"):
        read("a" * 3000 + ",label\n", source(limit=1024))
    with pytest.raises(InputError, match=r"the header, on line 1, cannot be read \(broken quoting\)"):
        read('"text"s,label\nhelp,x\n', source())


def test_quotes_are_followed_as_pythons_csv_follows_them():
    """Seed 0: of 3,000 texts of quotes, delimiters and line breaks, in pieces cut anywhere, whether a field is open at the end."""
    random_ = random.Random(0)
    for _ in range(3000):
        text = "".join(random_.choice('",a\n') for _ in range(random_.randint(1, 12)))
        quotes = Quotes(",")
        cut = random_.randint(0, len(text))
        quotes.feed(text[:cut])
        quotes.feed(text[cut:])

        rows, open_ = csv.reader(io.StringIO(text, newline=""), strict=True), False
        while True:
            try:
                next(rows)
            except StopIteration:
                break
            except csv.Error as error:
                open_ = "unexpected end" in str(error)
                if open_:
                    break
        # A quote behind the last character may have closed the field or be the first of two; csv takes it for the end.
        assert quotes.open == open_, repr(text)
