"""The real judge about some items, a proxy about all: rewards that are right on average."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from solon.feedback.config import FeedbackConfig
from solon.feedback.interfaces import Item
from solon.feedback.panels.selective import SelectiveJudge, reward_clip
from solon.feedback.selection.estimators import Control
from solon.feedback.selection.policy import SelectionConfig
from solon.records import Message
from solon.verdicts import Status, Verdict
from tests.unit.feedback.test_label_run import LengthJudge


def item(length: int) -> Item:
    return Item(
        task="pointwise",
        conversation=(Message(role="user", content="hi"),),
        answers=("a" * length,),
        principle_id="long",
        question="is it long?",
    )


ITEMS = [item(n) for n in range(1, 7)]
TRUTH = np.array([n - 4 for n in range(1, 7)], float)


class Wrong(LengthJudge):
    """A proxy that is off by a constant and by its own noise."""

    def _verdict(self, asked: Item):  # type: ignore[no-untyped-def]
        verdict = super()._verdict(asked)
        return type(verdict)(status=Status.OK, margin=0.5 * (verdict.margin or 0.0) + 1.5, judge="proxy", questions=1)


@pytest.mark.parametrize("policy", ["random", "uncertainty", "near_tie"])
async def test_margins_are_right_on_average_for_any_proxy(policy: str):
    config = SelectionConfig(policy=policy, rate=0.3, floor=0.1)
    judge = SelectiveJudge(LengthJudge(), Wrong(), config, clip=5.0)
    found = np.array([[v.margin for v in await judge.judge(ITEMS)] for _ in range(1200)])
    assert judge.selected / judge.asked == pytest.approx(0.3, abs=0.03)
    spread = found.std(0) / np.sqrt(len(found))
    assert (np.abs(found.mean(0) - TRUTH) < 5 * spread + 0.02).all()


@pytest.mark.parametrize("control", [Control(), Control(slope=0.0), Control(slope=-5.0, offset=20.0)], ids=str)
@pytest.mark.parametrize("floor", [0.05, 0.01])
def test_with_the_defaults_the_mean_over_draws_is_the_judges_margin_however_wrong_the_proxy(
    control: Control, floor: float
):
    """By exact enumeration of both draws, up to margins at the clip and propensities at the floor."""
    config = FeedbackConfig(select={"proxy": "small", "floor": floor})
    clip, bound = config.margin_clip, reward_clip(config.margin_clip, config.select)
    judge = SelectiveJudge(LengthJudge(), Wrong(), config.select, clip=clip)
    largest = 0.0
    for proxy, label, propensity in itertools.product((-50.0, -3.0, 0.2, 3.0), (-50.0, -3.0, 1.0, 3.0), (floor, 0.3)):
        said, judged = (Verdict(status=Status.OK, margin=margin, judge="j") for margin in (proxy, label))
        drawn, passed = (judge._combined(said, verdict, propensity, control).margin for verdict in (judged, None))
        assert drawn is not None
        assert passed is not None
        largest = max(largest, abs(drawn), abs(passed))
        seen, unseen = (max(-bound, min(bound, margin)) for margin in (drawn, passed))  # as rewards are made of them
        assert propensity * seen + (1 - propensity) * unseen == pytest.approx(max(-clip, min(clip, label)))
    assert largest <= bound + 1e-9


async def test_a_proxy_on_the_right_scale_makes_corrections_small():
    config = SelectionConfig(rate=0.3, floor=0.1)
    judge = SelectiveJudge(LengthJudge(), Wrong(), config, clip=5.0)
    for _ in range(60):
        await judge.judge(ITEMS)
    found = np.array([[v.margin for v in await judge.judge(ITEMS)] for _ in range(100)])
    assert np.abs(found - TRUTH).max() < 0.05  # a linear proxy is corrected to the judge itself


async def test_items_not_sent_to_the_judge_are_marked_and_cost_only_the_proxy():
    judge = SelectiveJudge(LengthJudge(usd=1.0), Wrong(), SelectionConfig(rate=0.5, floor=0.1), clip=5.0)
    verdicts = [v for _ in range(20) for v in await judge.judge(ITEMS)]
    unasked = [v for v in verdicts if v.source == "proxy"]
    assert 30 < len(unasked) < 90
    assert all(v.usd == 0 and v.judge == "proxy" for v in unasked)
    assert all(0 < v.propensity < 1 for v in verdicts)


async def test_a_failed_label_is_no_number_and_a_silent_proxy_sends_its_item_to_the_judge():
    failing = SelectiveJudge(
        LengthJudge(fails=lambda _: Status.TIMEOUT), Wrong(), SelectionConfig(rate=0.5, floor=0.1), clip=5.0
    )
    verdicts = [v for _ in range(20) for v in await failing.judge(ITEMS)]
    assert {v.status for v in verdicts if v.source != "proxy"} == {Status.TIMEOUT}
    silent = SelectiveJudge(
        LengthJudge(), LengthJudge(fails=lambda _: Status.REFUSAL), SelectionConfig(rate=0.2, floor=0.1), clip=5.0
    )
    assert [v.margin for v in await silent.judge(ITEMS)] == list(TRUTH)


def test_a_policy_that_needs_more_than_a_margin_is_refused_in_a_stream():
    with pytest.raises(ValueError, match="needs more than one margin"):
        FeedbackConfig(select={"proxy": "m", "policy": "diversity"})
    with pytest.raises(ValueError, match="expected at most one"):
        FeedbackConfig(select={"proxy": "m"}, cascade={"judge": "n"})
