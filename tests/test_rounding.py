"""What is shown of an upper bound is never below it."""

import io
import math
import struct
from decimal import Decimal

import numpy as np
import pytest
from builders.plans import plan
from builders.tiny import configured

from tff_pipeline.artifacts import seal
from tff_pipeline.cli import main
from tff_pipeline.commands import plot
from tff_pipeline.privacy import accounting, statement
from tff_pipeline.privacy import charges as account
from tff_pipeline.progress import Progress
from tff_pipeline.rounding import rounded_up


@pytest.mark.parametrize(
    ("exact", "shown"),
    [
        (3.9990000004, "4"),
        (3.99845, "3.999"),
        (4.0, "4"),
        (12.341, "12.35"),
        (0.010001, "0.01001"),
        (1234.5, "1235"),
        (12341.0, "12350"),
        (9999.5, "10000"),
        (99995.0, "100000"),
        (0.1, "0.1001"),  # the float is above a tenth, by 5.6e-18
        (0.0, "0"),
        (math.inf, "inf"),
    ],
)
def test_it_is_the_next_number_of_four_digits(exact, shown):
    assert rounded_up(exact) == shown


def test_no_float_is_shown_below_what_it_is_and_none_far_above():
    """10,000 floats over all magnitudes (any bits that are a positive number), 10,000 epsilons; the seed is fixed."""
    random = np.random.default_rng(11)
    bits = [struct.unpack("<d", word.tobytes())[0] for word in random.integers(0, 2**63, 10_000, dtype=np.int64)]
    epsilons = np.exp(random.uniform(-7, 7, 10_000)).tolist()
    # Epsilons that lie just above and just below what four digits hold.
    close = [math.nextafter(number / 1000, way) for number in range(1000, 2000) for way in (0, math.inf)]
    for value in (*bits, *epsilons, *close):
        if not math.isfinite(value):
            continue
        shown, exact = Decimal(rounded_up(value)), Decimal(value)
        assert exact <= shown
        assert len(shown.normalize().as_tuple().digits) <= 4
        # Less by one in the last digit is below the value: nothing smaller would do.
        last = Decimal(1).scaleb(exact.adjusted() - 3)
        assert shown - last < exact


def test_what_a_terminal_shows_is_not_rounded_again():
    """A terminal shows floats with four digits, to nearest; of a number of four digits that is the number."""
    for exact in (3.9990000004, 12.341, 0.010001, 12341.0):
        shown = io.StringIO()
        Progress(shown, interactive=True).event("privacy", epsilon=float(rounded_up(exact)))
        (word,) = [part for part in shown.getvalue().split() if part[0].isdigit()]
        assert Decimal(word) >= Decimal(exact)


PRIVATE = ("privacy.mechanism=gaussian", "privacy.clip_norm=1.0", "privacy.noise_multiplier=1.0", "privacy.delta=1e-3")


def test_every_epsilon_that_is_shown_is_at_least_what_was_worked_out(tmp_path, monkeypatch, capsys):
    """Wherever an epsilon is printed, one of 3.9990000004 is 4: statement, plot, rounds, ledger, list of versions."""
    from tff_pipeline.runtime.base import RoundResult
    from tff_pipeline.training.releases import _entry

    exact = 3.9990000004
    monkeypatch.setattr(accounting, "epsilon", lambda *_, **__: exact)
    made = plan()
    for unit in ("client", "silo"):
        said = " ".join(statement.sentences(plan(unit=unit), seeded=False))
        assert "3.999" not in said
        assert said.count("(4, 1e-05)-differentially private") == (2 if unit == "silo" else 1)
    drawn = plot.svg(made, made.epsilon())
    assert drawn.count(">4</text>") >= 2
    assert ">3.999<" not in drawn
    metrics = {"finite_clients": 0.0, "instances": 0.0}
    assert _entry(20, RoundResult([], metrics, {}), made, 0.1)["epsilon"] == 4.0

    (tmp_path / "bank.csv").write_text("client,text,label\na,lost,card\n")
    silo = '[[silos]]\nname = "bank"\ninput = "bank.csv"\nformat = "csv"\nclient = "client"\n'
    config = configured(tmp_path, silo)
    changes = [word for setting in PRIVATE for word in ("--set", setting)]
    monkeypatch.setattr(account, "spent", lambda *_: exact)
    for words in (["privacy", "--clients", "100"], ["ledger", "budget"]):
        assert main([*words, "--config", config.path, *changes]) == 0
        shown = capsys.readouterr().out
        assert "epsilon 4 " in shown
        assert "epsilon 3.9" not in shown

    version = tmp_path / "models" / "1"
    version.mkdir(parents=True)
    seal(version, {"kind": "model", "epsilon": exact, "run": "r", "evaluation": None})
    assert main(["list", "--to", str(version.parent)]) == 0
    assert "epsilon 4\t" in capsys.readouterr().out
