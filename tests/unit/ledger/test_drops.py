"""Groups that are dropped for one reason are reported once, with a remedy."""

from __future__ import annotations

import pytest

from solon.doctor.goal import end_failure, end_warnings
from solon.errors import RunFailedError
from solon.ledger.drops import Drops, explain, kind_of, summary
from solon.ledger.ledger import Ledger, LedgerConfig
from solon.ledger.staleness import StalenessConfig
from solon.records import StepReport
from solon.telemetry.movement import Movement
from solon.verdicts import Status

LOW = "fewer than 2 rollouts with a valid label (low_mass {}, refusal 1)"


def test_forty_drops_of_one_kind_are_three_lines_with_a_remedy():
    drops = Drops()
    said = [text for n in range(40) if (text := drops.add(LOW.format(n + 2))) is not None]
    assert [text.partition(" dropped")[0] for text in said] == ["1 group", "4 groups", "16 groups"]
    assert "the judge is unsure (low_mass)" in said[-1]
    assert "feedback.template" in said[-1]
    assert drops.add("a prompt that kills engines: lost 3 times") == (
        "1 group dropped: a prompt that kills engines: lost 3 times"
    )


def test_the_most_frequent_status_is_the_cause():
    assert kind_of("fewer than 2 rollouts with a valid label (refusal 3, low_mass 2)") == "refusal"
    assert kind_of("lost 3 times, last: gone") == kind_of("lost 12 times, last: gone")


@pytest.mark.parametrize("status", [status for status in Status if not status.valid])
def test_every_status_without_a_label_has_a_cause_and_a_remedy(status: Status):
    text = explain(f"fewer than 2 rollouts with a valid label ({status} 8)")
    assert "; " in text
    assert "fewer than" not in text


def test_a_run_that_fails_by_its_drops_names_remedies():
    ledger = Ledger(LedgerConfig(batch_groups=50), StalenessConfig(), total_groups=1000)
    ledger.reserve(50, now=0)
    for n in range(39):
        ledger.drop(n, 0, LOW.format(n + 2))
    with pytest.raises(RunFailedError) as caught:
        ledger.drop(39, 0, LOW.format(2))
    message = str(caught.value)
    assert "40 of 40 finished groups were dropped" in message
    assert "40 because the judge is unsure (low_mass)" in message
    assert "smaller feedback.min_mass" in message
    assert len(message) < 600


def test_the_advice_on_an_unsure_judge_holds_for_a_constitution_without_tests():
    assert "where the constitution has `tests`, `solon check --tests`" in explain(LOW.format(3))


def test_a_short_run_that_dropped_most_of_its_groups_causes_a_warning_and_a_longer_one_fails():
    moved = Movement()
    moved.add(StepReport(step=0, metrics={}))
    short, long = {LOW.format(2): 17}, {LOW.format(2): 30}
    assert end_failure(moved, short, 4, allowed=0.05) is None
    (warning,) = end_warnings(moved, short, 4, allowed=0.05)
    assert warning.startswith(
        "17 of 21 finished groups were dropped, more than ledger.max_dropped_share = 5% allows: 17"
    )
    assert "feedback.template" in warning
    # Those of before the 40th finished group count at the end as well.
    failure = end_failure(moved, long, 16, allowed=0.05)
    assert failure is not None
    assert failure.startswith("30 of 46 finished groups were dropped")
    assert end_warnings(moved, long, 16, allowed=0.05, failure=f"the run failed: {failure}") == []
    assert end_failure(moved, {"a": 2}, 38, allowed=0.05) is None
    assert end_warnings(moved, {"a": 1}, 19, allowed=0.05) == []


def test_reasons_are_added_up_by_kind():
    found = summary({LOW.format(3): 2, LOW.format(4): 3, "lost 3 times": 4})
    assert [count for _, count in found] == [5, 4]
