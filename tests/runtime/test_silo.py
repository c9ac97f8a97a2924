"""A silo's report: in which order things happen, and what the silo refuses."""

import numpy as np
import pytest

from tff_pipeline.errors import PrivacyError
from tff_pipeline.privacy.round import Round
from tff_pipeline.runtime.base import Broadcast, NoLedgers, Report
from tff_pipeline.runtime.silo import Silo
from tff_pipeline.secagg.masking import Party, add_up, introduce

AT = Round("d" * 64, ("first",))
BROADCAST = Broadcast((np.ones(3, np.float32),))


class Clients:
    name = "bank"

    def __init__(self, name="bank"):
        self.name = name

    def __len__(self):
        return 4


class Recorder:
    """Draws, workers and ledgers of a silo in one: writes down who was asked, in order."""

    def __init__(self, *, refuse="", share=0):
        self.asked, self._refuse, self._share = [], refuse, share

    def _ask(self, name):
        self.asked.append(name)
        if name == self._refuse:
            raise PrivacyError(f"{name} refused")

    def require_charged(self, silo, at):
        self._ask("charged")

    def cohort(self, at, clients):
        self._ask("cohort")
        return np.array([0, 2])

    def sum(self, broadcast, clients, rows, on_client):
        self._ask("sum")
        return [np.array([10, 20], np.uint32), np.array([7], np.uint32)]

    def record(self, at, sums):
        self._ask("record")
        self.recorded = [part.tolist() for part in sums]

    def noise_share(self, at):
        self._ask("noise share")
        return None if self._share is None else np.array([self._share])


def silos(recorders, noised=()):
    """A silo for each recorder, by name, which know each other's keys."""
    parties = {name: Party(name, "s", noised=noised) for name in recorders}
    introduce(list(parties.values()))
    return [
        Silo(Clients(name), recorder, recorder, masks=parties[name], noised=noised, charges=recorder)
        for name, recorder in recorders.items()
    ]


def silo(recorder, noised=()):
    """A silo that is alone."""
    (alone,) = silos({"bank": recorder}, noised)
    return alone


def test_a_round_is_charged_before_anything_and_recorded_before_noise_and_mask():
    recorder = Recorder(share=5)
    made, cohorts = silo(recorder, noised=[1]), {}

    report = made.report(BROADCAST, AT, on_cohort=cohorts.__setitem__)

    assert recorder.asked == ["charged", "cohort", "sum", "record", "noise share"]
    assert recorder.recorded == [[10, 20], [7]]
    # Alone there is nobody to share a mask with.
    assert [part.tolist() for part in report.sums] == [[10, 20], [12]]
    assert cohorts["bank"].tolist() == [0, 2]


@pytest.mark.parametrize(("refuse", "asked"), [("charged", 1), ("cohort", 2), ("record", 4)])
def test_after_a_refusal_nothing_else_is_done_and_nothing_leaves(refuse, asked):
    recorder = Recorder(refuse=refuse)
    made = silo(recorder)

    with pytest.raises(PrivacyError, match=f"{refuse} refused"):
        made.report(BROADCAST, AT)

    assert len(recorder.asked) == asked


def test_without_its_noise_share_a_silo_reports_nothing():
    made = silo(Recorder(share=None), noised=[1])

    with pytest.raises(PrivacyError, match="noise for 0 of its 1 sums"):
        made.report(BROADCAST, AT)


def test_reports_of_all_silos_add_up_and_each_alone_is_masked():
    recorders = {name: Recorder() for name in ("bank", "insurer", "shop")}

    reports = [made.report(BROADCAST, AT) for made in silos(recorders)]

    assert all(isinstance(report, Report) for report in reports)
    assert all(report.sums[0].tolist() != [10, 20] for report in reports)
    assert [part.tolist() for part in add_up(report.sums for report in reports)] == [[30, 60], [21]]


def test_a_round_is_reported_once():
    made = silo(Recorder())
    made.report(BROADCAST, AT)

    with pytest.raises(PrivacyError, match="was masked before"):
        made.report(BROADCAST, AT)


def test_nobody_is_charged_for_synthetic_clients():
    NoLedgers().require_charged("bank", AT)
