"""Judges that fail on purpose, and the components behind them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, get_args

import pytest

from solon.feedback.config import FeedbackConfig
from solon.feedback.interfaces import Item
from solon.feedback.judges.engine_judge import EngineJudge
from solon.feedback.panels.cascade import Cascade
from solon.feedback.panels.jury import Jury, JuryConfig
from solon.feedback.prompting.templates import ASSISTANT
from solon.feedback.prompting.text_prompts import TextPrompts
from solon.feedback.questions import Answer, Question
from solon.feedback.trials.faults import FAULTS, Fault, FaultPlan, FaultyAsk, FaultyJudge
from solon.records import Message
from solon.verdicts import Status, Verdict


def make_item(number: int = 0) -> Item:
    asked = Message(role="user", content=f"what color is sky {number} ?")
    return Item(
        task="pairwise", conversation=(asked,), answers=("it is blue", "no"), principle_id="kind", question="which ?"
    )


def question(number: int) -> Question:
    return Question((number, 1, 2), (8, 9))


class Steady:
    """One margin for everything; counts the items that reach it."""

    name = "steady"

    def __init__(self) -> None:
        self.reached = 0

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        self.reached += len(items)
        return [Verdict(status=Status.OK, margin=1.0, mass=0.8, judge="steady", questions=2) for _ in items]


class Engine:
    """Answers A to everything, with odds of ninety to ten; counts the items that reach it."""

    def __init__(self) -> None:
        self.reached = 0

    async def __call__(self, questions: Sequence[Question]) -> list[Answer]:
        self.reached += len(questions)
        return [Answer((math.log(0.9), math.log(0.1)), prompt_tokens=5, top="A") for _ in questions]


def test_the_faults_are_the_documented_ones():
    assert set(FAULTS) == {"timeout", "transport_error", "garbage", "nan", "low_mass", "refusal"}
    assert get_args(Fault) == FAULTS


@pytest.mark.parametrize(
    ("fault", "status", "questions"),
    [
        ("timeout", Status.TIMEOUT, 0),
        ("transport_error", Status.TRANSPORT_ERROR, 0),
        ("garbage", Status.UNPARSABLE, 2),
        ("low_mass", Status.LOW_MASS, 2),
        ("refusal", Status.REFUSAL, 2),
    ],
)
async def test_a_fault_of_a_judge_is_a_verdict_without_a_number(fault: Fault, status: Status, questions: int):
    inner = Steady()
    (verdict,) = await FaultyJudge(inner, {fault: 1.0}).judge([make_item()])
    assert (verdict.status, verdict.margin, verdict.judge) == (status, None, "steady")
    # A lost call reached no judge; one that was answered badly has been paid for.
    assert (verdict.questions, inner.reached) == (questions, questions // 2)
    assert verdict.detail == f"injected fault: {fault}"


async def test_nan_claims_to_be_valid():
    (verdict,) = await FaultyJudge(Steady(), {"nan": 1.0}).judge([make_item()])
    assert verdict.status is Status.OK
    assert verdict.margin is not None
    assert math.isnan(verdict.margin)


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ("timeout", Status.TIMEOUT),
        ("transport_error", Status.TRANSPORT_ERROR),
        ("garbage", Status.ABSTAIN),
        ("nan", Status.ABSTAIN),
        ("low_mass", Status.LOW_MASS),
        ("refusal", Status.REFUSAL),
    ],
)
async def test_no_fault_of_an_engine_becomes_a_number(fault: Fault, status: Status):
    ask = FaultyAsk(Engine(), {fault: 1.0})
    judge = EngineJudge(
        ask, name="judge", prompts=TextPrompts(ASSISTANT), config=FeedbackConfig(), max_prompt_tokens=1000
    )
    (verdict,) = await judge.judge([make_item()])
    assert (verdict.status, verdict.margin) == (status, None)
    assert ask.faults.injected[fault] >= 2  # both orders


async def test_faults_strike_at_their_rates_and_leave_the_others_alone():
    rates: dict[Fault, float] = {"timeout": 0.1, "nan": 0.05, "refusal": 0.2}
    inner = Steady()
    judge = FaultyJudge(inner, rates, seed=3)
    verdicts = await judge.judge([make_item(n) for n in range(4000)])
    for fault, rate in rates.items():
        assert judge.faults.injected[fault] / 4000 == pytest.approx(rate, abs=0.02)
    struck = judge.faults.injected.total()
    assert sum(v.margin == 1.0 for v in verdicts) == 4000 - struck
    assert inner.reached == 4000 - judge.faults.injected["timeout"]


async def test_the_same_seed_gives_the_same_faults_however_the_items_are_cut_into_calls():
    async def statuses(size: int, seed: int) -> list[Status]:
        judge = FaultyJudge(Steady(), {"timeout": 0.3, "low_mass": 0.3}, seed=seed)
        items = [make_item(n) for n in range(200)]
        return [v.status for start in range(0, 200, size) for v in await judge.judge(items[start : start + size])]

    assert await statuses(200, 1) == await statuses(7, 1)
    assert await statuses(200, 1) != await statuses(200, 2)


async def test_an_item_that_is_asked_again_may_come_through():
    judge = FaultyJudge(Steady(), {"transport_error": 0.5})
    tries = [(await judge.judge([make_item()]))[0].status for _ in range(40)]
    assert set(tries) == {Status.OK, Status.TRANSPORT_ERROR}


async def test_an_ask_fails_question_by_question_and_in_their_order():
    engine = Engine()
    ask = FaultyAsk(engine, {"timeout": 0.5}, seed=1)
    answers = await ask([question(n) for n in range(100)])
    lost = [answer.failure for answer in answers]
    assert set(lost) == {None, Status.TIMEOUT}
    assert engine.reached == lost.count(None)
    assert all(answer.logprobs == () for answer in answers if answer.failure)


async def test_a_failure_behind_a_fault_stays_what_it_was():
    async def gone(questions: Sequence[Question]) -> list[Answer]:
        return [Answer((), failure=Status.ENGINE_ERROR) for _ in questions]

    (answer,) = await FaultyAsk(gone, {"nan": 1.0})([question(1)])
    assert answer.failure is Status.ENGINE_ERROR
    twice = FaultyJudge(FaultyJudge(Steady(), {"refusal": 1.0}), {"nan": 1.0})
    (verdict,) = await twice.judge([make_item()])
    assert (verdict.status, verdict.margin) == (Status.REFUSAL, None)


async def test_a_cascade_loses_only_what_both_of_its_judges_lose():
    rates: dict[Fault, float] = dict.fromkeys(FAULTS, 0.05)
    judges = [FaultyJudge(Steady(), rates, seed=1), FaultyJudge(Steady(), rates, seed=2)]
    verdicts = await Cascade(judges, [1.0]).judge([make_item(n) for n in range(2000)])
    lost = sum(v.margin is None for v in verdicts) / 2000
    assert lost == pytest.approx(0.3 * 0.3, abs=0.02)
    assert {v.margin for v in verdicts} == {1.0, None}


async def test_a_jury_under_faults_never_counts_a_failure_as_a_vote():
    rates: dict[Fault, float] = dict.fromkeys(FAULTS, 0.1)
    jury = Jury([FaultyJudge(Steady(), rates, seed=n) for n in range(3)], JuryConfig(min_jurors=2))
    verdicts = await jury.judge([make_item(n) for n in range(2000)])
    assert {v.margin for v in verdicts} == {1.0, None}
    # At least two of three come through: 0.4^3 + 3 * 0.4^2 * 0.6 = 0.352.
    assert sum(v.status.valid for v in verdicts) / 2000 == pytest.approx(0.352, abs=0.03)


@pytest.mark.parametrize("rates", [{"flood": 0.1}, {"nan": 1.5}, {"nan": -0.1}, {"nan": 0.6, "timeout": 0.6}])
def test_rates_that_mean_nothing_are_refused(rates: Any):
    with pytest.raises(ValueError, match="expected"):
        FaultPlan(rates)
