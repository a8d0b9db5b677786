"""Gold against the reward: windows, trends, the predicted peak, the gap, and the resulting alarms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solon.feedback.watching.audit import Audited
from solon.feedback.watching.drift import Window, agreement, decide, fallen, fit_peak, trend, window_of
from solon.feedback.watching.gap import Cusum, Gap


def make_window(step: float, gold: float, *, proxy: float = 0.0, num: int = 64, **changes: Any) -> Window:
    given: dict[str, Any] = {
        "first_step": int(step),
        "last_step": int(step) + 1,
        "proxy_std": 1.0,
        "gold_std": 1.0,
        "correlation": 0.5,
        "agreement": 0.7,
    }
    return Window(step=step, num=num, proxy=proxy, gold=gold, **(given | changes))


def make_audited(proxies: Sequence[float], golds: Sequence[float], step: int = 0) -> list[Audited]:
    return [
        Audited(step=step + i, ordinal=i, proxy=p, gold=g) for i, (p, g) in enumerate(zip(proxies, golds, strict=True))
    ]


# -- windows ---------------------------------------------------------------------------------------------------


def test_a_window_matches_hand_computed_values():
    window = window_of(make_audited([1.0, 2.0, 3.0], [0.0, 2.0, 1.0], step=4), distance=1.5)
    assert (window.first_step, window.last_step, window.step, window.num) == (4, 6, 5.0, 3)
    assert (window.proxy, window.gold, window.distance) == (2.0, 1.0, 1.5)
    assert (window.proxy_std, window.gold_std) == (1.0, 1.0)
    assert window.correlation == pytest.approx(0.5)  # (-1)(-1) + 0 + 1 * 0 over 2
    assert window.agreement == pytest.approx(2 / 3)


def test_a_judge_with_constant_verdicts_has_no_correlation():
    window = window_of(make_audited([1.0, 1.0], [0.0, 2.0]))
    assert math.isnan(window.correlation)
    assert math.isnan(window.agreement)
    with pytest.raises(ValueError, match="got 1 audited"):
        window_of(make_audited([1.0], [1.0]))


def test_agreement_counts_orders_and_leaves_out_pairs_undecided_by_either():
    assert agreement([1, 2, 3], [10, 20, 30]) == 1.0
    assert agreement([1, 2, 3], [3, 2, 1]) == 0.0
    assert agreement([1, 1, 2], [1, 5, 9]) == 1.0
    assert math.isnan(agreement([1, 1], [1, 2]))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=2, max_size=20))
def test_agreement_does_not_depend_on_the_scales(pairs: list[tuple[float, float]]):
    proxy, gold = zip(*pairs, strict=True)
    one, other = agreement(proxy, gold), agreement([4 * p for p in proxy], gold)
    assert one == other or (math.isnan(one) and math.isnan(other))


# -- trends ----------------------------------------------------------------------------------------------------


def test_a_trend_matches_hand_computed_values():
    windows = [make_window(step, gold) for step, gold in ((0, 1.0), (10, 3.0), (20, 2.0))]
    found = trend(windows, "gold")
    assert found.value == pytest.approx(0.05)  # (-10 * 1 + 10 * 2) / 200
    half = 1.645 * (1 / 8) / math.sqrt(200)  # noise of a mean of 64: 1/8
    assert (found.low, found.high) == (pytest.approx(0.05 - half), pytest.approx(0.05 + half))
    with pytest.raises(ValueError, match="different steps"):
        trend([make_window(3, 1.0), make_window(3, 2.0)], "gold")


def test_a_bound_of_a_trend_is_exceeded_one_time_in_twenty():
    rng = np.random.default_rng(0)
    exceeded = [
        trend([make_window(5.0 * i, rng.normal(0.01 * 5 * i, 1 / 8)) for i in range(5)], "gold").high < 0.01
        for _ in range(2000)
    ]
    assert np.mean(exceeded) == pytest.approx(0.05, abs=0.015)


# -- the peak --------------------------------------------------------------------------------------------------


def along(
    distances: Sequence[float], *, alpha: float, beta: float, origin: float = 0.0, noise: Any = None
) -> list[Window]:
    golds = [origin + d * (alpha - beta * math.log(d)) for d in distances]
    errors = noise if noise is not None else [0.0] * len(golds)
    return [
        make_window(10.0 * i, gold + error, proxy=0.1 * i, distance=d)
        for i, (d, gold, error) in enumerate(zip(distances, golds, errors, strict=True))
    ]


def test_the_curve_is_recovered_and_peaks_where_its_formula_says():
    fit = fit_peak(along([0.2, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0], alpha=1.2, beta=0.8, origin=-0.3))
    assert fit is not None
    assert (fit.origin, fit.alpha, fit.beta) == (pytest.approx(-0.3), pytest.approx(1.2), pytest.approx(0.8))
    assert fit.peak.value == pytest.approx(math.exp(1.2 / 0.8 - 1))
    assert fit.peak.low < fit.peak.value < fit.peak.high
    top = fit.gold(fit.peak.value)
    assert top > max(fit.gold(fit.peak.value * 0.9), fit.gold(fit.peak.value * 1.1))
    assert fit.past.value == pytest.approx(1.2 - 0.8 * (math.log(4.0) + 1))  # at the median of the last three
    assert fit.gold(0.0) == pytest.approx(-0.3)


def test_a_line_has_no_peak_and_few_or_equal_distances_have_no_curve():
    fit = fit_peak(along([0.5, 1.0, 1.5, 2.0, 2.5], alpha=0.5, beta=0.0))
    assert fit is not None
    assert fit.peak.high == math.inf
    assert fit_peak(along([0.5, 1.0, 1.5, 2.0], alpha=0.5, beta=0.2)) is None
    assert fit_peak(along([1.0] * 9, alpha=0.5, beta=0.2)) is None
    assert fit_peak([make_window(i, 1.0) for i in range(9)]) is None  # a run without a reference


def test_the_interval_of_the_peak_holds_it_nineteen_times_in_twenty():
    rng = np.random.default_rng(1)
    distances = np.linspace(0.3, 6.0, 14).tolist()
    truth = math.exp(1.5 / 1.0 - 1)
    fits = [fit_peak(along(distances, alpha=1.5, beta=1.0, noise=rng.normal(0, 1 / 8, 14))) for _ in range(400)]
    held = [fit.peak.low <= truth <= fit.peak.high for fit in fits if fit is not None]
    assert len(held) == 400
    assert 0.92 < np.mean(held) <= 0.995  # scatter beyond the noise widens it, so a little more than 95 %


# -- the gap ---------------------------------------------------------------------------------------------------


def test_the_cusum_raises_a_false_alarm_about_once_in_930_values():
    rng = np.random.default_rng(2)
    lengths = []
    for _ in range(300):
        cusum, length = Cusum(), 1
        while not cusum.add(rng.normal()):
            length += 1
        lengths.append(length)
    assert np.mean(lengths) == pytest.approx(930, abs=190)  # 3.5 standard errors


def test_the_cusum_finds_a_shift_of_one_standard_error_in_about_ten_values():
    rng = np.random.default_rng(3)
    lengths = []
    for _ in range(300):
        cusum, length = Cusum(), 1
        while not cusum.add(rng.normal(1.0)):
            length += 1
        lengths.append(length)
    assert np.mean(lengths) == pytest.approx(10.4, abs=1.2)


def make_pairs(rng: np.random.Generator, shift: float, *, num: int = 64, better: float = 0.0) -> Window:
    """A proxy of three times gold's scale, correlated 0.5; `shift` in its own standard deviations."""
    common, mine, its = rng.normal(size=(3, num))
    gold = common + its + better
    return window_of(make_audited(3 * (common + mine + better + shift * math.sqrt(2)), gold))


def test_a_policy_that_gets_better_on_both_scales_widens_no_gap():
    rng = np.random.default_rng(4)
    false = 0
    for _ in range(20):
        gap = Gap([make_pairs(rng, 0.0) for _ in range(3)], tolerance=0.75, slack=0.5, limit=5.0)
        false += sum(gap.add(make_pairs(rng, 0.0, better=0.05 * i)) for i in range(50))
    assert false == 0  # in 1,000 windows


def test_a_reward_that_runs_away_from_gold_is_found_within_a_few_windows():
    rng = np.random.default_rng(5)
    waits = []
    for _ in range(50):
        gap = Gap([make_pairs(rng, 0.0) for _ in range(3)], tolerance=0.75, slack=0.5, limit=5.0)
        waits.append(next(i for i in range(1, 100) if gap.add(make_pairs(rng, 1.5))))
        assert gap.value == pytest.approx(1.5, abs=0.8)
    assert np.mean(waits) < 4


# -- decisions -------------------------------------------------------------------------------------------------


def rising_and_falling(proxy: float, gold: float, *, num: int = 5) -> list[Window]:
    return [make_window(5.0 * i, gold * i, proxy=proxy * i) for i in range(num)]


def test_it_acts_when_the_reward_rises_while_gold_falls_and_only_then():
    (reason,) = decide(rising_and_falling(0.2, -0.2))
    assert (reason.verdict, reason.kind) == ("act", "gold_falls")
    assert reason.value < reason.threshold == 0.0
    assert "steps 0 to 21" in reason.message
    assert decide(rising_and_falling(0.2, 0.2)) == []
    assert decide(rising_and_falling(-0.2, -0.2)) == []  # both fall: the policy is bad, but the judge sees it
    assert decide(rising_and_falling(0.2, -0.2)[:4]) == []
    assert decide([]) == []


def test_within_the_noise_nothing_falls():
    # Five windows five steps apart, each mean known to 1/8: a slope is known to 1.645 / 8 / sqrt(250) = 0.013 a step.
    assert decide(rising_and_falling(0.2, -0.05)) == []
    assert decide(rising_and_falling(0.05, -0.2)) == []


def test_a_reward_that_compares_within_groups_need_not_rise():
    falling = rising_and_falling(0.0, -0.2, num=7)
    assert decide(falling) == []
    assert [r.kind for r in decide(falling, is_relative=True)] == ["gold_falls"]
    # Gold must be seen below its best level, which takes six windows, and twice.
    assert decide(falling[:6], is_relative=True) == []


def noisy(rng: np.random.Generator, num: int, *, slope: float = 0.0) -> list[Window]:
    """Windows of 64 rollouts whose gold changes by the given standard deviations of a rollout from one to the next."""
    noise = rng.normal(0, 1 / 8, (num, 2))
    return [make_window(10.0 * i, slope * i + noise[i, 0], proxy=noise[i, 1]) for i in range(num)]


def acts(windows: Sequence[Window], *, is_relative: bool) -> int:
    """At how many of the windows the run may be stopped."""
    seen = (decide(windows[: n + 1], is_relative=is_relative) for n in range(len(windows)))
    return sum(any(reason.verdict == "act" for reason in reasons) for reasons in seen)


def test_stationary_gold_of_a_pairwise_run_is_acted_on_at_five_in_a_thousand_windows_at_most():
    rng = np.random.default_rng(8)
    runs = [acts(noisy(rng, 40), is_relative=True) for _ in range(100)]
    assert sum(runs) <= 20  # of 4,000
    assert sum(map(bool, runs)) <= 5


def test_a_pairwise_run_whose_gold_falls_slowly_is_acted_on_all_the_same():
    rng = np.random.default_rng(9)
    assert all(acts(noisy(rng, 40, slope=-0.05), is_relative=True) for _ in range(20))


def test_stationary_gold_is_seldom_past_a_peak_however_far_the_policy_moves():
    rng = np.random.default_rng(11)
    acted = 0
    for _ in range(100):
        away = [2 * math.sqrt((i + 1) / 40) * math.exp(rng.normal(0, 0.1)) for i in range(40)]
        run = [replace(window, distance=d) for window, d in zip(noisy(rng, 40), away, strict=True)]
        seen = (decide(run[:n], is_relative=True) for n in range(5, 41))
        acted += any(reason.kind == "past_peak" for reasons in seen for reason in reasons)
    assert acted <= 1


def test_it_warns_before_the_predicted_peak_and_acts_behind_it():
    distances = np.linspace(0.3, 9.0, 30).tolist()
    peak = math.exp(3.0 / 1.5 - 1)  # 2.7
    assert decide(along([d for d in distances if d < 0.7 * peak], alpha=3.0, beta=1.5)) == []
    (near,) = decide(along([d for d in distances if d < peak], alpha=3.0, beta=1.5))
    assert (near.verdict, near.kind) == ("warn", "near_peak")
    assert near.value >= near.threshold == pytest.approx(0.8 * peak)
    found = {reason.kind: reason.verdict for reason in decide(along(distances, alpha=3.0, beta=1.5))}
    assert found == {"past_peak": "act", "gold_falls": "act"}


def test_how_far_gold_has_fallen_matches_hand_computed_values():
    windows = [make_window(5.0 * i, gold) for i, gold in enumerate([1.0, 2.0, 3.0, 1.0, 0.0, -1.0])]
    found = fallen(windows)
    assert found.value == pytest.approx(2.0)  # (1 + 2 + 3) / 3 less (1 + 0 - 1) / 3
    assert found.low == pytest.approx(2.0 - 2.326 / 8 * math.sqrt(2 / 3), abs=1e-3)  # one earlier level to compare with
    assert fallen(windows[:5]).low == -math.inf


def test_gold_at_its_ceiling_is_seldom_acted_on_though_the_curve_predicts_a_fall():
    rng = np.random.default_rng(6)
    acted = predicted = 0
    for _ in range(20):
        windows = []
        for i in range(40):
            gold, distance = (
                2.9 * (1 - math.exp(-i / 4)),
                (0.2 + 1.6 * (1 - math.exp(-i / 8))) * math.exp(rng.normal(0, 0.2)),
            )
            noise = rng.normal(0, 1 / 8, 2)
            windows.append(make_window(5.0 * i, gold + noise[0], proxy=gold + noise[1], distance=distance))
        kinds = [reason.kind for n in range(5, 41) for reason in decide(windows[:n])]
        predicted += "near_peak" in kinds
        acted += bool({"past_peak", "gold_falls"} & set(kinds))
    assert predicted > 10
    assert acted <= 1
