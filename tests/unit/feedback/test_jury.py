"""A jury of judges."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from solon.errors import InputError, RunFailedError
from solon.feedback.interfaces import Item
from solon.feedback.panels.jury import Jury, JuryConfig, JuryVerdict, weighted_median
from solon.records import Message
from solon.verdicts import Status, Verdict

ITEM = Item(
    task="pairwise",
    conversation=(Message(role="user", content="what color is the sky ?"),),
    answers=("blue", "green"),
    principle_id="truthful",
    question="which is true ?",
)


class Says:
    """Gives the same verdict to everything: a margin, or a failure."""

    def __init__(self, reply: float | Status, name: str = "juror") -> None:
        self.name = name
        self._reply = reply

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        failed = isinstance(self._reply, Status)
        return [
            Verdict(
                status=self._reply if isinstance(self._reply, Status) else Status.OK,
                margin=None if isinstance(self._reply, Status) else self._reply,
                mass=0.0 if failed else 0.9,
                judge=self.name,
                questions=2,
                prompt_tokens=50,
                usd=0.25,
                prompt_digests=(self.name,),
            )
            for _ in items
        ]


def jury_of(*replies: float | Status, **config: Any) -> Jury:
    judges = [Says(reply, f"juror-{n}") for n, reply in enumerate(replies)]
    return Jury(judges, JuryConfig(**config), name="jury")


async def verdict_of(*replies: float | Status, **config: Any) -> JuryVerdict:
    (verdict,) = await jury_of(*replies, **config).judge([ITEM])
    assert isinstance(verdict, JuryVerdict)
    return verdict


async def test_the_mean_is_of_the_calibrated_margins():
    verdict = await verdict_of(1.0, 2.0, -0.6)
    assert verdict.margin == pytest.approx(0.8)
    # Squared distances from 0.8: 0.04, 1.44, 1.96
    assert verdict.disagreement == pytest.approx(3.44 / 3)
    assert (verdict.status, verdict.judge, verdict.failed, verdict.mass) == (Status.OK, "jury", 0, 0.9)


async def test_weights_count():
    assert (await verdict_of(1.0, -1.0, weights=(3.0, 1.0))).margin == pytest.approx(0.5)
    assert (await verdict_of(1.0, 5.0, -2.0, method="median", weights=(1.0, 1.0, 5.0))).margin == -2.0
    assert (await verdict_of(1.0, 5.0, -2.0, method="majority", weights=(1.0, 1.0, 5.0))).margin < 0  # type: ignore[operator]


async def test_one_wild_juror_does_not_move_the_median():
    assert (await verdict_of(1.0, 1.2, -50.0, method="median")).margin == 1.0
    assert (await verdict_of(1.0, 2.0, method="median")).margin == 1.5


async def test_a_majority_counts_jurors_and_not_nats():
    verdict = await verdict_of(0.2, 0.2, -30.0, method="majority")
    # Two votes to one, half a vote added to each side.
    assert verdict.margin == pytest.approx(math.log(2.5 / 1.5))
    assert (await verdict_of(0.2, 0.2, 9.0, method="majority")).margin == pytest.approx(math.log(7))


async def test_a_juror_within_the_tie_band_does_not_vote():
    verdict = await verdict_of(0.05, 2.0, -2.0, method="majority")
    assert (verdict.status, verdict.margin, verdict.failed) == (Status.TIE, 0.0, 0)
    all_ties = await verdict_of(0.05, -0.02, 0.0, method="majority")
    assert (all_ties.status, all_ties.margin) == (Status.TIE, 0.0)


@pytest.mark.parametrize("method", ["mean", "median", "majority"])
async def test_a_juror_that_failed_is_left_out_and_counted(method: str):
    verdict = await verdict_of(2.0, Status.TIMEOUT, 2.0, method=method)
    alone = await verdict_of(2.0, 2.0, method=method)
    assert (verdict.margin, verdict.failed, alone.failed) == (alone.margin, 1, 0)
    assert verdict.detail == "juror-1: timeout"
    assert [juror.status for juror in verdict.jurors] == [Status.OK, Status.TIMEOUT, Status.OK]


async def test_too_few_jurors_give_no_number():
    verdict = await verdict_of(2.0, Status.LOW_MASS, Status.LOW_MASS, Status.REFUSAL)
    assert (verdict.status, verdict.margin, verdict.failed) == (Status.LOW_MASS, None, 3)
    assert verdict.disagreement is None
    alone = await verdict_of(2.0, Status.LOW_MASS, min_jurors=1)
    assert (alone.margin, alone.disagreement) == (2.0, None)


async def test_a_margin_that_is_no_number_is_a_failure():
    verdict = await verdict_of(math.nan, 1.0, 3.0)
    assert (verdict.margin, verdict.failed, verdict.jurors[0].status) == (2.0, 1, Status.ABSTAIN)
    assert (await verdict_of(math.nan, math.inf, 1.0)).margin is None


async def test_costs_are_those_of_all_jurors_failures_included():
    verdict = await verdict_of(1.0, Status.REFUSAL, 1.0)
    assert (verdict.questions, verdict.prompt_tokens, verdict.usd) == (6, 150, 0.75)
    assert verdict.prompt_digests == ("juror-0", "juror-1", "juror-2")


async def test_a_poll_shows_every_juror():
    said_JN = await jury_of(1.0, Status.TIMEOUT, -1.0).poll([ITEM, ITEM])
    assert [[v.margin for v in said_N] for said_N in said_JN] == [[1.0, 1.0], [None, None], [-1.0, -1.0]]


async def test_jurors_are_asked_side_by_side():
    both = asyncio.Barrier(2)

    class Waits(Says):
        async def judge(self, items: Sequence[Item]) -> list[Verdict]:
            await asyncio.wait_for(both.wait(), 5)
            return await super().judge(items)

    (verdict,) = await Jury([Waits(1.0), Waits(3.0)]).judge([ITEM])
    assert verdict.margin == 2.0


async def test_a_juror_that_is_gone_ends_the_call_with_its_own_error():
    class Gone(Says):
        async def judge(self, items: Sequence[Item]) -> list[Verdict]:
            raise RunFailedError("engine died")

    with pytest.raises(RunFailedError, match="engine died"):
        await Jury([Says(1.0), Gone(1.0)]).judge([ITEM])


async def test_an_empty_call_is_answered():
    assert await jury_of(1.0, 1.0).judge([]) == []


def test_juries_unable_to_decide_are_refused():
    with pytest.raises(InputError, match="min_jurors"):
        jury_of(1.0)
    with pytest.raises(InputError, match="one each"):
        jury_of(1.0, 1.0, weights=(1.0,))
    for weights in ((0.0, 1.0), (math.nan, 1.0), (-1.0, 1.0), (math.inf, 1.0)):
        with pytest.raises(ValidationError, match="above 0"):
            JuryConfig(weights=weights)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-20, 20), st.floats(0.1, 5)), min_size=2, max_size=7),
    st.sampled_from(["mean", "median", "majority"]),
)
def test_a_jury_is_fair_to_both_answers_and_to_the_order_of_its_jurors(jurors: list[tuple[float, float]], method: str):
    def decide(said: Sequence[tuple[float, float]], sign: int = 1) -> float:
        weights = tuple(weight for _, weight in said)
        jury = jury_of(*(sign * margin for margin, _ in said), method=method, weights=weights)
        (verdict,) = asyncio.run(jury.judge([ITEM]))
        assert verdict.margin is not None
        return verdict.margin

    margin = decide(jurors)
    assert decide(jurors, -1) == pytest.approx(-margin, abs=1e-9)
    assert decide(jurors[::-1]) == pytest.approx(margin, abs=1e-9)
    # Half a vote is added to either side, so that a majority is at most log(2 J + 1).
    bound = math.log(2 * len(jurors) + 1) if method == "majority" else max(abs(m) for m, _ in jurors)
    assert abs(margin) <= bound + 1e-9


def test_the_weighted_median_halves_the_weight():
    assert weighted_median([5.0], [2.0]) == 5.0
    assert weighted_median([1.0, 2.0], [1.0, 1.0]) == 1.5
    assert weighted_median([1.0, 2.0, 9.0], [1.0, 1.0, 2.0]) == 5.5
    assert weighted_median([9.0, 1.0, 2.0], [3.0, 1.0, 1.0]) == 9.0
