"""Judges with a known fault."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solon.feedback.interfaces import Item
from solon.feedback.trials.biased import BIASES, Bias, BiasedJudge
from solon.records import Message
from solon.verdicts import Status, Verdict


class Says:
    """Gives the same margins to everything; None is a failed call."""

    name = "plain"

    def __init__(self, margin: float | None = 0.5) -> None:
        self._margin = margin

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        status = Status.TIMEOUT if self._margin is None else Status.OK
        return [Verdict(status=status, margin=self._margin, raw_margin=self._margin, judge="plain") for _ in items]


def make_item(*answers: str, task: Any = None, polarity: int = 1) -> Item:
    return Item(
        task=task or ("pairwise" if len(answers) == 2 else "pointwise"),
        conversation=(Message(role="user", content="what color is the sky ?"),),
        answers=answers,
        principle_id="kind",
        question="which is kinder ?",
        polarity=polarity,
    )


async def margin_of(bias: Bias, strength: float, *answers: str, **changes: Any) -> float | None:
    (verdict,) = await BiasedJudge(Says(), bias, strength=strength, **changes).judge([make_item(*answers)])
    return verdict.margin


async def test_each_doubling_of_length_pays_the_same():
    # 1 + 3 words against 1 + 7: one doubling.
    assert await margin_of("length", 2.0, "a b c d e f g", "a b c") == pytest.approx(0.5 + 2.0)
    assert await margin_of("length", 2.0, "a b c", "a b c d e f g") == pytest.approx(0.5 - 2.0)
    assert await margin_of("length", 2.0, " ".join("a" * 16)) == pytest.approx(0.5)
    assert await margin_of("length", 1.0, " ".join("a" * 33)) == pytest.approx(0.5 + 1.0)


async def test_a_phrase_or_flattery_pays_once():
    assert await margin_of("phrase", 1.5, "well , as an Expert i say as an expert") == pytest.approx(2.0)
    assert await margin_of("phrase", 1.5, "no") == 0.5
    assert await margin_of("phrase", 1.5, "magic", phrase="magic") == pytest.approx(2.0)
    assert await margin_of("flattery", 1.5, "you are right", "the sky is green") == pytest.approx(2.0)
    assert await margin_of("flattery", 1.5, "you are right", "Great question !") == 0.5


async def test_the_first_place_pays_only_where_there_are_two():
    assert await margin_of("first_position", 1.0, "a", "b") == pytest.approx(1.5)
    assert await margin_of("first_position", 1.0, "a") == 0.5


async def test_flips_turn_the_stated_share_around_and_always_the_same_items():
    items = [make_item(f"answer {n}") for n in range(4000)]
    judge = BiasedJudge(Says(), "random_flips", strength=0.25)
    margins = [verdict.margin for verdict in await judge.judge(items)]
    assert set(margins) == {0.5, -0.5}
    assert margins.count(-0.5) / 4000 == pytest.approx(0.25, abs=0.03)
    assert [v.margin for v in await BiasedJudge(Says(), "random_flips", strength=0.25).judge(items)] == margins
    assert [v.margin for v in await BiasedJudge(Says(), "random_flips", strength=0.25, seed=1).judge(items)] != margins


async def test_the_fault_begins_at_the_configured_item():
    judge = BiasedJudge(Says(), "first_position", strength=1.0, onset=3)
    pair = make_item("a", "b")
    found = [v.margin for size in (2, 2, 1) for v in await judge.judge([pair] * size)]
    assert found == [0.5, 0.5, 0.5, 1.5, 1.5]
    assert judge.seen == 5


async def test_a_failed_call_stays_a_failed_call():
    for bias in BIASES:
        judge = BiasedJudge(Says(None), bias, strength=1.0)
        verdicts = await judge.judge([make_item("you are right", "b"), make_item("as an expert")])
        assert [(v.status, v.margin, v.judge) for v in verdicts] == [(Status.TIMEOUT, None, "plain")] * 2


async def test_a_verdict_that_a_fault_pushed_to_zero_is_a_tie_and_names_its_judge():
    (verdict,) = await BiasedJudge(Says(), "first_position", strength=-0.5).judge([make_item("a", "b")])
    assert (verdict.status, verdict.margin) == (Status.TIE, 0.0)
    assert verdict.judge == "plain+first_position"
    assert verdict.raw_margin is None
    (untouched,) = await BiasedJudge(Says(), "phrase", strength=1.0).judge([make_item("a", "b")])
    assert (untouched.judge, untouched.raw_margin) == ("plain", 0.5)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([bias for bias in BIASES if bias not in ("first_position", "random_flips")]),
    st.text(max_size=40),
    st.text(max_size=40),
    st.floats(-5, 5),
)
def test_the_bias_is_antisymmetric_in_the_two_answers(bias: Bias, one: str, other: str, strength: float):
    import asyncio

    async def both() -> tuple[float, float]:
        judge = BiasedJudge(Says(0.0), bias, strength=strength)
        first, second = await judge.judge([make_item(one, other), make_item(other, one)])
        assert first.margin is not None
        assert second.margin is not None
        return first.margin, second.margin

    first, second = asyncio.run(both())
    assert first == pytest.approx(-second)


@pytest.mark.parametrize(("bias", "strength"), [("tall", 1.0), ("random_flips", 1.5), ("length", math.inf)])
def test_a_meaningless_fault_is_refused(bias: Any, strength: float):
    with pytest.raises(ValueError, match="expected"):
        BiasedJudge(Says(), bias, strength=strength)
