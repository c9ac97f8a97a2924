"""`tff-pipeline privacy` and `tff-pipeline ledger` as a privacy officer and a scheduler meet them."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from builders.tiny import PRIVATE, ROWS, configured, prepared, quiet

from tff_pipeline.cli import main
from tff_pipeline.commands import plot
from tff_pipeline.config import Config, load
from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy import accounting
from tff_pipeline.privacy.plan import make

SETTINGS = (*PRIVATE, "training.clients_per_round=2", "privacy.noise_multiplier=3.0")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return prepared(tmp_path_factory.mktemp("tiny"), ROWS, changes=SETTINGS)


def ask(config: Config, capsys: pytest.CaptureFixture[str], *words: str, settings: tuple[str, ...] = SETTINGS) -> str:
    changes = [word for setting in settings for word in ("--set", setting)]
    assert main([*words, "--config", config.path, *changes]) == 0
    return capsys.readouterr().out


def test_the_numbers_are_those_an_auditor_works_out(tiny, capsys):
    """Four clients, two of them expected in each of two rounds."""
    said = json.loads(ask(tiny, capsys, "privacy", "--json"))
    event = {"kind": "poisson_gaussian", "sampling_probability": 0.5, "noise_multiplier": 3.0}

    assert said["epsilon"] == pytest.approx(accounting.epsilon([(event, 2)], 1e-3), abs=1e-6)
    assert (said["delta"], said["noise_multiplier"]) == (1e-3, 3.0)
    assert (said["sampling_probability"], said["rounds"], said["clients"]) == (0.5, 2, 4)
    assert said["missing"] == []
    assert said["ledger"]["epsilon"] == 0


def test_a_population_that_is_not_prepared_gets_an_answer_that_says_what_is_missing(tmp_path, capsys):
    (tmp_path / "bank.csv").write_text("client,text,label\na,lost,card\n")
    config = configured(tmp_path, '[[silos]]\nname = "bank"\ninput = "bank.csv"\nformat = "csv"\nclient = "client"\n')

    said = json.loads(ask(config, capsys, "privacy", "--json"))
    assert said["epsilon"] is said["sampling_probability"] is None
    assert (said["delta"], said["noise_multiplier"], said["rounds"]) == (1e-3, 3.0, 2)
    assert "silo bank: has no prepared data" in said["missing"][0]
    assert "Missing: silo bank: has no prepared data" in ask(config, capsys, "privacy")

    planned = json.loads(ask(config, capsys, "privacy", "--json", "--clients", "4"))
    assert planned["sampling_probability"] == 0.5
    assert planned["epsilon"] > 0
    assert planned["noise_stddev"] is None
    assert "plans for 4 clients" in planned["missing"][0]

    assert "How many rounds are left cannot be said: silo bank" in ask(config, capsys, "ledger", "budget")
    assert main(["privacy", "--config", config.path, "--set", "privacy.mechanism=none", "--plot", "x.svg"]) == 4
    assert "how many there will be with --clients" in capsys.readouterr().err


def test_a_delta_at_or_above_one_in_the_number_of_clients_is_refused_unless_insisted_upon(tiny, capsys):
    """Of a hundred clients: a hundredth is refused, a little less is not; insisted upon, the statement says what it is worth."""

    def plan(delta: str, *words: str) -> tuple[int, str, str]:
        changes = [word for setting in (*SETTINGS, f"privacy.delta={delta}", *words) for word in ("--set", setting)]
        code = main(["privacy", "--config", tiny.path, "--clients", "100", *changes])
        return code, *capsys.readouterr()

    code, _, refused = plan("0.01")
    assert code == PrivacyError.exit_code
    assert "privacy.delta is 0.01, and the population has 100 training clients; expected a delta below one" in refused
    assert "publishing everything about one of the training clients, chosen at random" in refused
    assert "privacy.allow_large_delta = true" in refused
    code, said, _ = plan("0.0099")
    assert code == 0
    assert "Delta is not below" not in said
    code, said, _ = plan("0.01", "privacy.allow_large_delta=true")
    assert code == 0
    assert "Delta is not below one divided by the number of clients, 100" in said
    # Of silos there are two: no delta that anybody would set is refused for them, but this one is.
    config = load(tiny.path, [*SETTINGS, "privacy.unit=silo", "training.clients_per_round=1", "privacy.delta=0.5"])
    with pytest.raises(PrivacyError, match=r"delta is 0.5, and the population has 2 silos"):
        make(config, clients=2, dimension=51)


def test_the_plot_shows_both_curves_and_the_plan_on_them(tiny, tmp_path, capsys):
    file = tmp_path / "plot.svg"
    ask(tiny, capsys, "privacy", "--plot", str(file))
    drawn = ElementTree.parse(file).getroot()
    space = {"svg": "http://www.w3.org/2000/svg"}
    _, _, width, height = map(float, drawn.attrib["viewBox"].split())
    lines = drawn.findall("svg:polyline", space)
    assert len(lines) == len(drawn.findall("svg:circle", space)) == 2
    for line in lines:
        points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
        assert all(0 < x < width and 0 < y < height for x, y in points)
    # More rounds cost more, and more noise costs less: on paper y grows downwards.
    for line, sign in zip(lines, (-1, 1), strict=True):
        ys = [float(point.split(",")[1]) for point in line.attrib["points"].split()]
        assert sign * (ys[-1] - ys[0]) > 50


def test_curves_pass_through_the_plan(tiny):
    plan = make(load(tiny.path, SETTINGS), clients=4, dimension=51)
    found = plot.curves(plan)
    assert dict(found["rounds"])[2] == pytest.approx(plan.epsilon(), rel=1e-3)
    assert dict(found["noise_multiplier"])[3.0] == pytest.approx(plan.epsilon(), rel=1e-3)


def test_the_ledger_is_shown_verified_and_held_against_its_budget(tmp_path, capsys):
    from tff_pipeline.training.run import train

    config = prepared(tmp_path, ROWS, changes=SETTINGS)
    train(config, progress=quiet())

    shown = json.loads(ask(config, capsys, "ledger", "show", "--json"))
    assert [entry["round"] for entry in shown["entries"]] == [1, 2]
    assert "2 rounds, 20" in ask(config, capsys, "ledger", "show")

    sound = json.loads(ask(config, capsys, "ledger", "verify", "--json"))
    assert [part["silo"] for part in sound["ledgers"]] == [None, "bank", "shop"]
    assert [part["entries"] for part in sound["ledgers"]] == [2, 2, 2]

    event = {"kind": "poisson_gaussian", "sampling_probability": 0.5, "noise_multiplier": 3.0}
    six = accounting.epsilon([(event, 6)], 1e-3)
    budget = (*SETTINGS, f"privacy.budget_epsilon={six * 1.001}")
    left = json.loads(ask(config, capsys, "ledger", "budget", "--json", settings=budget))
    assert left["ledgers"][0]["rounds_left"] == 4
    assert left["ledgers"][0]["epsilon"] == pytest.approx(accounting.epsilon([(event, 2)], 1e-3))
    assert "4 more rounds of this configuration fit" in ask(config, capsys, "ledger", "budget", settings=budget)

    path = Path(shown["path"])
    path.write_text(path.read_text().replace('"round":2', '"round":3'))
    assert main(["ledger", "verify", "--config", config.path]) == 5
    assert "line 2 is damaged" in capsys.readouterr().err
