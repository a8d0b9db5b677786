"""A cascade of judges, and the threshold up to which its small one is believed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solon.errors import InputError
from solon.feedback.interfaces import Item
from solon.feedback.panels.cascade import (
    Cascade,
    CascadeConfig,
    fit_threshold,
    measured_against,
    uncertainty,
    upper_bound,
)
from solon.records import Message
from solon.verdicts import Status, Verdict

COSTS = {"questions": 2, "prompt_tokens": 30, "cached_tokens": 10, "output_tokens": 2, "cache_hits": 1, "usd": 0.5}


def make_item(name: str = "a") -> Item:
    asked = Message(role="user", content="what color is the sky ?")
    return Item(
        task="pairwise", conversation=(asked,), answers=(name, "b"), principle_id="kind", question="which is kinder ?"
    )


def said(margin: float, offset: float | None = None, raw: float | None = None) -> Verdict:
    return Verdict(status=Status.OK, margin=margin, raw_margin=raw, position_offset=offset)


class Says:
    """Gives each item the margin, or the failure, that its first answer names; records the questions."""

    def __init__(self, name: str, **replies: float | Status) -> None:
        self.name = name
        self.asked: list[list[str]] = []
        self._replies = replies

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        self.asked.append([item.answers[0] for item in items])
        return [self._verdict(self._replies[item.answers[0]], item.answers[0]) for item in items]

    def _verdict(self, reply: float | Status, name: str) -> Verdict:
        failed = isinstance(reply, Status)
        return Verdict(
            status=reply if failed else Status.OK,
            margin=None if failed else reply,
            judge=self.name,
            prompt_digests=(f"{self.name}/{name}",),
            **COSTS,  # type: ignore[arg-type]
        )


def threshold_at(margin: float) -> float:
    return uncertainty(said(margin))


async def run(cascade: Cascade, *names: str) -> list[tuple[Status, float | None, int]]:
    return [(v.status, v.margin, v.level) for v in await cascade.judge([make_item(name) for name in names])]


# --- uncertainty ------------------------------------------------------------------------------------------


def test_one_order_is_as_unsure_as_its_margin():
    assert uncertainty(said(0.0)) == 1.0
    # p = 3/4: 2 - 3/4 log2 3 bits
    assert uncertainty(said(math.log(3))) == pytest.approx(2 - 0.75 * math.log2(3))
    assert uncertainty(said(-math.log(3))) == pytest.approx(uncertainty(said(math.log(3))))


def test_both_orders_are_as_unsure_as_the_mean_of_their_probabilities():
    # One order gives 0.9, the other 0.6: log-odds log 9 and log 1.5, their mean probability is 3/4.
    margin, offset = (math.log(9) + math.log(1.5)) / 2, (math.log(9) - math.log(1.5)) / 2
    expected = 2 - 0.75 * math.log2(3)
    assert uncertainty(said(margin, offset, margin)) == pytest.approx(expected)
    assert uncertainty(said(-margin, offset, -margin)) == pytest.approx(expected)
    assert uncertainty(said(margin, -offset, margin)) == pytest.approx(expected)


def test_calibration_divides_the_position_offset_too():
    assert uncertainty(said(1.0, 3.0, 2.0)) == pytest.approx(uncertainty(said(1.0, 1.5, 1.0)))


def test_orders_that_contradict_each_other_are_doubt_however_sure_each_is():
    assert uncertainty(said(0.01, 20.0, 0.01)) == pytest.approx(1.0, abs=1e-3)
    assert uncertainty(said(5.0, 0.0, 5.0)) < 0.1


def test_judges_that_are_very_sure_are_still_ranked():
    doubts = [uncertainty(said(margin)) for margin in (5.0, 15.0, 16.0, 40.0, 800.0)]
    assert doubts == sorted(doubts, reverse=True)
    assert doubts[0] > doubts[1] > doubts[2] > doubts[3] > 0


@settings(max_examples=100, deadline=None)
@given(st.floats(-900, 900), st.none() | st.floats(-900, 900), st.floats(0.01, 100))
def test_uncertainty_is_bits_between_0_and_1(margin: float, offset: float | None, temperature: float):
    assert 0 <= uncertainty(said(margin, offset, margin * temperature)) <= 1 + 1e-12


@pytest.mark.parametrize("margin", [None, math.nan, math.inf])
def test_an_invalid_verdict_has_no_uncertainty(margin: float | None):
    verdict = Verdict(status=Status.TIMEOUT if margin is None else Status.OK, margin=margin)
    with pytest.raises(ValueError, match="expected a valid one"):
        uncertainty(verdict)


def test_only_pairs_that_could_be_accepted_and_checked_are_measured():
    failed = Verdict(status=Status.LOW_MASS, margin=None)
    verdicts = [said(2.0), said(-2.0), said(1.0), failed, said(3.0), said(math.nan), said(0.0)]
    uncertainties_N, errors_N = measured_against(verdicts, [1.0, 0.9, 0.5, 1.0, None, 1.0, 0.0])
    assert errors_N.tolist() == [0.0, 1.0, 1.0]
    assert uncertainties_N.tolist() == [uncertainty(said(margin)) for margin in (2.0, -2.0, 0.0)]
    assert [len(column) for column in measured_against([], [])] == [0, 0]
    with pytest.raises(InputError, match="one each"):
        measured_against(verdicts, [1.0])


# --- the threshold ----------------------------------------------------------------------------------------


def test_the_upper_bound_is_clopper_and_pearsons():
    assert upper_bound(0, 59, 0.05) == pytest.approx(1 - 0.05 ** (1 / 59))  # no error: (1 - b)^59 = 0.05
    # Two of two wrong, one of one wrong, none of none: no conclusion.
    assert upper_bound([2, 1, 0], [2, 1, 0], 0.05).tolist() == [1.0, 1.0, 1.0]
    # One of two wrong: P(at most one) = 1 - b^2 = 0.05
    assert upper_bound(1, 2, 0.05) == pytest.approx(math.sqrt(0.95))


def test_a_judge_that_never_errs_is_always_trusted():
    found = fit_threshold(np.linspace(0, 1, 200), np.zeros(200), 0.05, 0.05)
    assert (found.value, found.coverage, found.error, found.accepted) == (math.inf, 1.0, 0.0, 200)
    # A quarter of delta, for each of the four walks: (1 - b)^200 = 0.0125
    assert found.bound == pytest.approx(1 - 0.0125 ** (1 / 200))


def test_the_threshold_accepts_exactly_the_pairs_it_was_tested_on():
    uncertainties_N = np.arange(1000) / 1000
    errors_N = (np.arange(1000) >= 600).astype(float)  # right below 0.6, wrong from there on
    found = fit_threshold(uncertainties_N, errors_N, 0.05, 0.05)
    accepted = uncertainties_N <= found.value
    assert accepted.sum() == found.accepted == round(found.coverage * 1000)
    assert errors_N[accepted].mean() == found.error
    assert found.error < found.bound <= 0.05
    assert 0.55 < found.coverage < 0.64


def test_equal_uncertainties_are_accepted_together_or_not_at_all():
    uncertainties_N = np.repeat([0.1, 0.9], 300)
    errors_N = np.concatenate([np.zeros(300), np.tile([0.0, 1.0], 150)])
    found = fit_threshold(uncertainties_N, errors_N, 0.05, 0.05)
    assert (found.accepted, found.error) == (300, 0.0)
    assert 0.1 < found.value < 0.9


def test_too_few_pairs_or_a_judge_that_errs_are_refused_with_what_to_do():
    # Without an error 0.95^n <= 0.0125 takes 86 pairs.
    with pytest.raises(InputError, match="got 85 pairs, expected at least 86"):
        fit_threshold(np.linspace(0, 1, 85), np.zeros(85), 0.05, 0.05)
    assert fit_threshold(np.linspace(0, 1, 86), np.zeros(86), 0.05, 0.05).accepted == 86
    with pytest.raises(InputError, match=r"no threshold keeps the error at 0\.05"):
        fit_threshold(np.linspace(0, 1, 500), np.tile([0.0, 1.0], 250), 0.05, 0.05)


@pytest.mark.parametrize(
    ("uncertainties", "errors", "alpha"),
    [([0.1, 0.2], [0.0], 0.1), ([], [], 0.1), ([math.nan] * 200, [0.0] * 200, 0.1), ([0.1] * 200, [0.5] * 200, 0.1),
     ([0.1] * 200, [0.0] * 200, 1.0)],
)  # fmt: skip
def test_an_invalid_measurement_is_refused(uncertainties: list[float], errors: list[float], alpha: float):
    with pytest.raises(InputError, match="expected"):
        fit_threshold(uncertainties, errors, alpha, 0.05)


@pytest.mark.parametrize(("num", "steepness", "floor"), [(200, 2, 0.0), (600, 3, 0.02), (600, 1, 0.0)])
def test_the_true_error_exceeds_alpha_no_more_often_than_delta(num: int, steepness: int, floor: float):
    # A judge errs with probability floor + 0.4 u^k at uncertainty u, uniform in [0, 1]; accepted up to t, its true
    # error is the mean of that over [0, t].
    rng, runs, alpha, delta = np.random.default_rng(num + steepness), 250, 0.08, 0.1
    missed = found = 0
    for _ in range(runs):
        u_N = rng.random(num)
        errors_N = rng.random(num) < floor + 0.4 * u_N**steepness
        try:
            t = min(1.0, fit_threshold(u_N, errors_N, alpha, delta).value)
        except InputError:
            continue
        found += 1
        missed += floor + 0.4 * t**steepness / (steepness + 1) > alpha
    assert found > runs / 10
    # A tenth of 250 is 25; chance makes 19 more of it (four standard deviations) three times in a hundred thousand.
    assert missed <= 25 + 19


def test_picking_the_best_bound_without_a_walk_would_break_the_promise():
    """The same pairs, and the largest threshold whose own bound holds: the walks exist to avoid this."""
    rng, runs, alpha, delta = np.random.default_rng(0), 200, 0.08, 0.1
    missed = 0
    for _ in range(runs):
        wrong_N = np.cumsum(rng.random(600) < 0.081)  # the true error is above alpha at every threshold
        missed += bool((upper_bound(wrong_N[20:], np.arange(21, 601), delta) <= alpha).any())
    assert missed / runs > 2 * delta


# --- the judge --------------------------------------------------------------------------------------------


async def test_items_that_the_small_judge_is_sure_of_never_reach_the_large_one():
    small, large = Says("small", sure=3.0, unsure=0.2), Says("large", unsure=-2.0)
    cascade = Cascade([small, large], [threshold_at(1.0)])
    assert await run(cascade, "sure", "unsure", "sure") == [
        (Status.OK, 3.0, 0),
        (Status.OK, -2.0, 1),
        (Status.OK, 3.0, 0),
    ]
    assert (small.asked, large.asked) == ([["sure", "unsure", "sure"]], [["unsure"]])
    assert cascade.name == "small > large"


async def test_escalated_items_go_up_together_and_costs_add_up():
    small, large = Says("small", x=0.1, y=0.2), Says("large", x=4.0, y=0.05)
    verdicts = await Cascade([small, large], [threshold_at(1.0)]).judge([make_item("x"), make_item("y")])
    assert large.asked == [["x", "y"]]
    for verdict in verdicts:
        assert (verdict.questions, verdict.prompt_tokens, verdict.cached_tokens) == (4, 60, 20)
        assert (verdict.output_tokens, verdict.cache_hits, verdict.usd, verdict.judge) == (4, 2, 1.0, "large")
    assert verdicts[0].prompt_digests == ("small/x", "large/x")
    assert verdicts[1].margin == 0.05  # the last judge stands, unsure or not


async def test_an_uncertainty_at_the_threshold_is_accepted():
    cascade = Cascade([Says("small", x=1.0), Says("large", x=5.0)], [threshold_at(1.0)])
    assert await run(cascade, "x") == [(Status.OK, 1.0, 0)]


@pytest.mark.parametrize(
    "status", [Status.LOW_MASS, Status.REFUSAL, Status.TRUNCATED, Status.UNPARSABLE, Status.TIMEOUT, Status.ABSTAIN]
)
async def test_an_item_without_a_verdict_goes_to_the_next_judge_and_is_marked(status: Status):
    cascade = Cascade([Says("small", x=status), Says("large", x=2.0)], [math.inf])
    (verdict,) = await cascade.judge([make_item("x")])
    assert (verdict.status, verdict.margin, verdict.level) == (Status.OK, 2.0, 1)
    assert verdict.detail == f"small: {status}"


async def test_failures_are_escalated_only_once():
    judges = [Says("a", x=Status.REFUSAL), Says("b", x=Status.LOW_MASS), Says("c", x=2.0)]
    assert await run(Cascade(judges, [1.0, 1.0]), "x") == [(Status.LOW_MASS, None, 1)]
    assert await run(Cascade(judges, [1.0, 1.0], CascadeConfig(invalid_escalations=2)), "x") == [(Status.OK, 2.0, 2)]
    assert await run(Cascade(judges, [1.0, 1.0], CascadeConfig(invalid_escalations=0)), "x") == [
        (Status.REFUSAL, None, 0)
    ]


async def test_after_a_failure_an_unsure_verdict_is_still_escalated():
    judges = [Says("a", x=Status.REFUSAL), Says("b", x=0.1), Says("c", x=2.0)]
    assert await run(Cascade(judges, [0.2, 0.2]), "x") == [(Status.OK, 2.0, 2)]


async def test_an_unsure_verdict_does_not_become_good_because_the_large_judge_failed():
    cascade = Cascade([Says("small", x=0.1), Says("large", x=Status.TIMEOUT)], [0.2])
    (verdict,) = await cascade.judge([make_item("x")])
    assert (verdict.status, verdict.margin, verdict.level, verdict.questions) == (Status.TIMEOUT, None, 1, 4)


async def test_a_spent_budget_is_no_reason_to_spend_more():
    large = Says("large", x=1.0)
    assert await run(Cascade([Says("small", x=Status.BUDGET_SKIP), large], [1.0]), "x") == [
        (Status.BUDGET_SKIP, None, 0)
    ]
    assert large.asked == []


async def test_a_margin_that_is_no_number_is_no_verdict():
    cascade = Cascade([Says("small", x=math.nan, y=math.inf), Says("large", x=math.nan, y=2.0)], [math.inf])
    assert await run(cascade, "x", "y") == [(Status.ABSTAIN, None, 1), (Status.OK, 2.0, 1)]


async def test_a_judge_that_is_gone_is_not_covered_up():
    class Gone:
        name = "gone"

        async def judge(self, items: Sequence[Item]) -> list[Verdict]:
            raise RuntimeError("engine died")

    with pytest.raises(RuntimeError, match="engine died"):
        await Cascade([Gone(), Says("large", x=1.0)], [0.5]).judge([make_item("x")])


async def test_an_empty_call_asks_no_judge():
    small = Says("small")
    assert await Cascade([small, Says("large")], [0.5]).judge([]) == []
    assert small.asked == []


@pytest.mark.parametrize("thresholds", [[], [0.1, 0.2], [-0.1], [math.nan]])
def test_thresholds_that_do_not_fit_the_judges_are_refused(thresholds: list[float]):
    with pytest.raises(InputError, match="expected"):
        Cascade([Says("small"), Says("large")], thresholds)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=8), st.floats(0, 1))
def test_every_item_gets_the_verdict_of_the_first_judge_that_is_sure(
    margins: list[tuple[float, float]], threshold: float
):
    import asyncio

    names = [f"n{i}" for i in range(len(margins))]
    small = Says("small", **{name: m[0] for name, m in zip(names, margins, strict=True)})
    large = Says("large", **{name: m[1] for name, m in zip(names, margins, strict=True)})
    found = asyncio.run(run(Cascade([small, large], [threshold]), *names))
    for (first, second), (_, margin, level) in zip(margins, found, strict=True):
        is_sure = uncertainty(said(first)) <= threshold
        assert (margin, level) == ((first, 0) if is_sure else (second, 1))
