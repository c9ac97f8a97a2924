"""Summaries of what was read: names that look like free text, rejected lines, percentiles, and merging."""

import pytest
from builders.tokenized_rows import TOKENIZER, batched, columns

from beam_jobs.reading import Reject
from beam_jobs.steps import summaries, tokens
from tff_pipeline.config import SiloSection
from tff_pipeline.errors import InputError

SILO = SiloSection(name="bank", input="unused", format="csv", label="intent", group="region")
CONLL = SiloSection(name="bank", input="unused", format="conll")


def summary_of(labels: int, rows: int, **keys) -> summaries.ReadSummary:
    return summaries.ReadSummary(
        rows={0: rows}, labels=[f"label {number}" for number in range(labels)], labelled=rows, groups=[""], **keys
    )


def check_names(read: summaries.ReadSummary, *, limit=1000, silo=SILO, **keys) -> None:
    summaries.check_names(read, silo, labels_listed=keys.pop("labels_listed", False), limit=limit, **keys)


@pytest.mark.parametrize(
    ("read", "limit", "words"),
    [
        (summary_of(11, 1000), 10, "has more than 10 different values; expected at most as many as prepare.max_labels"),
        (summary_of(60, 100), 1000, "has 60 different values in 100 rows; expected at least two rows for each"),
        (summary_of(21, 21), 1000, "has 21 different values in 21 rows"),
        (
            summaries.ReadSummary(rows={0: 9}, labels=["a" * 201], labelled=9),
            1000,
            "has a value of 201 characters; expected at most 200",
        ),
    ],
)
def test_labels_that_look_like_free_text_are_counted_and_not_shown(read, limit, words):
    with pytest.raises(InputError) as raised:
        check_names(read, limit=limit)
    assert f"silo 'bank': the label column 'intent' {words}" in str(raised.value)
    assert "Correct `label` of the silo, or list the labels in task.labels." in str(raised.value)
    assert not any(name in str(raised.value) for name in read.labels)
    check_names(read, limit=limit, labels_listed=True)


def test_labels_that_are_labels():
    check_names(summary_of(20, 20))
    check_names(summary_of(50, 100))
    check_names(summary_of(60, 100), complete=False)
    check_names(summaries.ReadSummary(rows={0: 30}, labels=[f"B-{n}" for n in range(25)], labelled=450), silo=CONLL)


def test_tags_are_compared_with_words_and_groups_with_rows():
    with pytest.raises(InputError, match="label column 'label' has 300 different values in 450 words"):
        check_names(
            summaries.ReadSummary(rows={0: 30}, labels=[f"B-{n}" for n in range(300)], labelled=450), silo=CONLL
        )
    with pytest.raises(InputError, match=r"group column 'region' has 60 different values in 100 rows.*Correct `group`"):
        check_names(summaries.ReadSummary(rows={0: 100}, labelled=100, groups=[f"g {n}" for n in range(60)]))


def test_a_reject_that_stands_for_several_rows_names_the_last():
    assert summaries.reject_line("a.csv", "line", Reject(7, "broken quoting", 3)) == (
        b'{"file":"a.csv","line":7,"last_line":9,"reason":"broken quoting"}\n'
    )
    assert b"last" not in summaries.reject_line("a.csv", "line", Reject(7, "empty text"))
    (batch,) = batched([columns((1, "help", "x", "anna", ""), rejects=[Reject(2, "broken quoting", 3)])])
    assert tokens.tokenize(batch, TOKENIZER).read == batch.read == 4


def test_percentiles_are_values_that_occur():
    """Values 1 (50 times), 2 (40 times), 3 (9 times), 9 (once)."""
    histogram = [0, 50, 40, 9, 0, 0, 0, 0, 0, 1]

    assert summaries.percentiles(histogram) == {"p50": 1, "p90": 2, "p99": 3, "max": 9}
    assert summaries.percentiles([0, 0, 1]) == {"p50": 2, "p90": 2, "p99": 2, "max": 2}
    assert summaries.percentiles([]) == {"p50": 0, "p90": 0, "p99": 0, "max": 0}


def test_merging_summaries_does_not_depend_on_their_order():
    first = summaries.ReadSummary(rows={0: 3}, reasons={"empty text": 1}, labels=["b"], groups=["g"])
    second = summaries.ReadSummary(
        rows={0: 2, 1: 4}, reasons={"empty text": 2, "not JSON": 1}, labels=["a", "b"], groups=[""]
    )

    assert summaries.merged([first, second]) == summaries.merged([second, first])
    assert summaries.merged([first, second]).rows == {0: 5, 1: 4}
    assert summaries.merged([first, second]).reasons == {"empty text": 3, "not JSON": 1}
    assert summaries.merged([first, second]).labels == ["a", "b"]
