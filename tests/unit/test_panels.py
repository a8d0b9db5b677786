"""Judges made of judges: cascades, juries, and judges that fail on purpose."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solon.errors import InputError
from solon.feedback.cascade import Cascade, doubt, entropy, fit_threshold
from solon.feedback.faults import FaultyAsk, FaultyJudge
from solon.feedback.judging import Item, Verdict
from solon.feedback.jury import Jury, disagreement
from solon.feedback.questions import Answer, Question
from solon.records import Message, Status

METHODS = ["mean", "median", "majority"]


def item(answer: str) -> Item:
    return Item(
        task="pointwise",
        conversation=(Message(role="user", content="hi"),),
        answers=(answer,),
        principle_id="kind",
        question="is it kind?",
    )


@dataclass
class Says:
    """Gives the margin that a rule reads off the answer; None is a refusal."""

    rule: Callable[[str], float | None]
    name: str = "judge"
    asked: list[Item] = field(default_factory=list)

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        self.asked += items
        return [self._verdict(self.rule(i.answers[0])) for i in items]

    def _verdict(self, margin: float | None) -> Verdict:
        status = Status.REFUSAL if margin is None else Status.OK
        return Verdict(status=status, margin=margin, judge=self.name, questions=1, prompt_tokens=10, mass=1.0)


# -- cascade ---------------------------------------------------------------------------------------------------


async def test_what_the_small_judge_is_sure_of_stands_and_the_rest_goes_on():
    small = Says(lambda a: {"sure": 5.0, "unsure": 0.2, "silent": None}[a], name="small")
    large = Says(lambda _: -3.0, name="large")
    cascade = Cascade([small, large], doubts=[0.5])
    verdicts = await cascade.judge([item("sure"), item("unsure"), item("silent")])
    assert [(v.margin, v.level, v.judge) for v in verdicts] == [
        (5.0, 0, "small"),
        (-3.0, 1, "large"),
        (-3.0, 1, "large"),
    ]
    assert [i.answers[0] for i in large.asked] == ["unsure", "silent"]
    assert [v.prompt_tokens for v in verdicts] == [10, 20, 20]
    assert cascade.asked == [3, 2]


async def test_a_large_judge_that_fails_leaves_a_valid_small_verdict():
    cascade = Cascade([Says(lambda a: 0.1 if a == "weak" else None), Says(lambda _: None)], doubts=[0.5])
    weak, none = await cascade.judge([item("weak"), item("x")])
    assert (weak.margin, weak.level, weak.questions) == (0.1, 0, 2)
    assert none.margin is None


def test_doubt_is_the_entropy_and_a_judge_that_is_sure_of_opposite_things_is_in_doubt():
    assert entropy(0.0) == 1.0
    assert entropy(math.log(3)) == pytest.approx(0.8113, abs=1e-4)
    sure = Verdict(status=Status.OK, margin=4.0, raw_margin=4.0, position_offset=0.0)
    split = Verdict(status=Status.OK, margin=0.5, raw_margin=0.5, position_offset=6.0)
    assert doubt(sure) < 0.2 < 0.9 < doubt(split)


def test_the_error_among_the_accepted_passes_its_bound_in_few_runs_only():
    broken = refused = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        true_p = rng.uniform(0, 0.5, 4000)  # error probability of each verdict, which is also its doubt
        wrong = rng.random(4000) < true_p
        try:
            fitted = fit_threshold(true_p[:1000], wrong[:1000], alpha=0.1, delta=0.05)
        except InputError:  # an unlucky start: nothing is promised
            refused += 1
            continue
        accepted = true_p[1000:] <= fitted.doubt
        broken += true_p[1000:][accepted].mean() > 0.1
        assert fitted.error <= fitted.bound <= 0.1
    assert broken <= 0.05 * 200
    assert refused <= 0.2 * 200


def test_a_judge_that_is_never_good_enough_and_too_few_pairs_are_refused():
    with pytest.raises(InputError, match="no threshold keeps"):
        fit_threshold(np.linspace(0, 1, 500), np.arange(500) % 2 == 0, alpha=0.05)
    with pytest.raises(InputError, match="got 20 gold pairs"):
        fit_threshold(np.zeros(20), np.zeros(20, bool), alpha=0.05)


# -- jury ------------------------------------------------------------------------------------------------------


def jury(*margins: float | None, **settings: object) -> Jury:
    return Jury([Says(lambda _, m=m: m, name=str(n)) for n, m in enumerate(margins)], **settings)  # type: ignore[arg-type]


async def test_the_three_ways_to_agree():
    for method, expected in (("mean", 2.0), ("median", 1.0), ("majority", 1.0)):
        (verdict,) = await jury(1.0, 6.0, 1.0, 0.0, method=method).judge([item("x")])
        assert verdict.margin == pytest.approx(expected)
        assert verdict.questions == 4
    (verdict,) = await jury(1.0, -5.0, method="majority").judge([item("x")])
    assert (verdict.status, verdict.margin) == (Status.TIE, 0.0)
    (verdict,) = await jury(1.0, -5.0, weights=(3.0, 1.0)).judge([item("x")])
    assert verdict.margin == pytest.approx(-0.5)


async def test_a_silent_juror_is_left_out_and_too_few_are_no_jury():
    (verdict,) = await jury(2.0, None, 4.0).judge([item("x")])
    assert verdict.margin == pytest.approx(3.0)
    (verdict,) = await jury(2.0, None, None).judge([item("x")])
    assert (verdict.status, verdict.margin) == (Status.REFUSAL, None)
    assert "1 of 3 jurors" in verdict.detail


async def test_disagreement_is_the_variance_of_the_margins():
    (said,) = await jury(1.0, 3.0, None).poll([item("x")])
    assert disagreement(said) == pytest.approx(1.0)
    assert disagreement(said[:1]) == 0


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.none() | st.floats(-50, 50), min_size=2, max_size=6), st.sampled_from(["mean", "median", "majority"])
)
def test_a_jury_is_odd_and_lies_within_its_jurors(margins: list[float | None], method: str):
    turned = [None if m is None else -m for m in margins]

    def agree(values: Sequence[float | None]) -> float | None:
        says = [Says(lambda _: None)._verdict(m) for m in values]
        return jury(*values, method=method).agree(says).margin

    found, other = agree(margins), agree(turned)
    valid = [m for m in margins if m is not None]
    if len(valid) < 2:
        assert found is other is None
    else:
        assert found is not None
        assert other == pytest.approx(-found)
        assert min([*valid, 0.0]) - 1e-9 <= found <= max([*valid, 0.0]) + 1e-9


# -- faults ----------------------------------------------------------------------------------------------------


async def test_faults_hit_their_share_every_time_the_same_and_leave_the_rest_alone():
    items = [item(f"answer {n}") for n in range(1000)]
    judge = FaultyJudge(Says(lambda a: float(len(a))), rate=0.2, seed=3)
    first, again = await judge.judge(items), await judge.judge(items)
    assert first == again
    lost = [v for v in first if not v.status.valid]
    assert 150 < len(lost) < 250
    assert len({v.status for v in lost}) == 8
    assert all(v.margin is None for v in lost)
    assert all(v.margin == len(i.answers[0]) for v, i in zip(first, items, strict=True) if v.status.valid)


async def test_spoilt_answers_are_failures_or_no_log_probs():
    async def ask(questions: Sequence[Question]) -> list[Answer]:
        return [Answer((-0.1, -3.0)) for _ in questions]

    answers = await FaultyAsk(ask, rate=0.5)([Question((n,), (1, 2)) for n in range(200)])
    kinds = {"nan" if a.logprobs and math.isnan(a.logprobs[0]) else a.failure or a.logprobs[0] for a in answers}
    assert {"nan", -0.1, -20.0, Status.TIMEOUT} <= kinds
