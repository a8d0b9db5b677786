"""A judge that decides by position is warned of: with labels, at the end of a run, and by `solon doctor`."""

from __future__ import annotations

import pytest

from solon.feedback.quality.position import Pair, PositionCount, pairs_of
from solon.protocols import LabelReport
from solon.records import Label
from solon.telemetry.totals import RunTotals
from solon.verdicts import Status, Verdict

BY_PLACE: Pair = (0.04, 1.1, False)
BY_TEXT: Pair = (2.0, 0.3, True)


def warning(*pairs: Pair) -> str | None:
    count = PositionCount()
    count.add(pairs)
    return count.warning()


def test_a_judge_whose_two_orders_never_agree_decides_by_position():
    said = warning(*[BY_PLACE] * 27)
    assert said is not None
    assert "100% of 27" in said
    assert "+1.10 nats against a mean margin of 0.04" in said
    assert "solon judges test" in said


@pytest.mark.parametrize(
    "pairs",
    [
        [],
        [BY_PLACE] * 3,  # too few to say
        [BY_TEXT] * 100,
        [BY_PLACE, BY_TEXT] * 50,  # like coin flips
        [(0.0, 0.0, None)] * 50,  # exact ties
        [(0.1, None, None)] * 50,  # one order, nothing known of the offset
    ],
)
def test_no_warning_without_evidence_of_position_bias(pairs: list[Pair]):
    assert warning(*pairs) is None


def test_four_pairs_that_all_contradict_themselves_are_enough():
    assert warning(*[BY_PLACE] * 4) is not None


def test_pairs_asked_in_one_order_count_by_the_usual_offset():
    count = PositionCount()
    # The pairs that are asked twice because they are close contradict themselves; the many others are decided by texts.
    count.add([BY_PLACE] * 20 + [(-3.0, None, None)] * 80)
    assert (count.pairs, count.by_position, count.warning()) == (100, 20, None)
    count.add([(0.5, None, None)] * 180)
    assert (count.pairs, count.by_position) == (280, 200)
    assert count.warning() is not None


def test_only_valid_comparisons_are_counted():
    good = Label(
        task="pairwise",
        principle_id="p",
        rollouts=(0, 1),
        verdict=Verdict(status=Status.OK, margin=1.0, raw_margin=2.0),
    )
    single = Label(
        task="pointwise", principle_id="p", rollouts=(0,), verdict=Verdict(status=Status.OK, margin=1.0, raw_margin=2.0)
    )
    bad = Label(
        task="pairwise", principle_id="p", rollouts=(0, 1), verdict=Verdict(status=Status.LOW_MASS, margin=None)
    )
    assert pairs_of([good, single, bad]) == ((2.0, None, None),)


def report(*pairs: Pair) -> LabelReport:
    return LabelReport(
        ordinal=0, attempt=0, num_rollouts=2, num_valid=2, reward_mean=0.0, labels=len(pairs), invalid=0, questions=0,
        cache_hits=0, prompt_tokens=0, cached_tokens=0, nbytes=0, pairs=pairs,
    )  # fmt: skip


def test_a_run_warns_of_its_judge_at_its_end_also_after_a_resume():
    counts = {"admitted": 0, "committed": 0, "dropped": 0, "held": 0}
    first, second = (RunTotals(staleness_bound=1, total_steps=1) for _ in range(2))
    first.labelled(report(*[BY_PLACE] * 10))
    second.restore(first.state())
    second.labelled(report(*[BY_PLACE] * 10))
    (said,) = second.summary(status="completed", counts=counts, attested=0)["warnings"]
    assert "100% of 20" in said
    sound = RunTotals(staleness_bound=1, total_steps=1)
    sound.labelled(report(*[BY_TEXT] * 20))
    assert sound.summary(status="completed", counts=counts, attested=0)["warnings"] == []
