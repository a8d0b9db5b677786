"""How judges are measured: intervals, agreement, calibration error, consistency."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solon.errors import InputError
from solon.feedback.quality.agreement import (
    agreement,
    codes,
    flips,
    kappa,
)
from solon.feedback.quality.consistency import (
    position_quality,
)
from solon.feedback.quality.intervals import effective_pairs, mcnemar, mean, rows, wilson
from solon.feedback.quality.metrics import brier, debiased_error, ece, ece_floor, nll, reliability, sigmoid

MARGINS = st.lists(st.floats(-30, 30), min_size=1, max_size=30)
SIDES = st.sampled_from([-1, 0, 1])


def make_rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def make_gold(num: int, *, sharpness: float = 1.0, seed: int = 0) -> tuple[Any, Any]:
    """Margins that are `sharpness` times as sure as they should be, and hard targets."""
    rng = make_rng(seed)
    honest = rng.normal(0, 2, num)
    return honest * sharpness, (rng.random(num) < sigmoid(honest)).astype(float)


# -- intervals -------------------------------------------------------------------------------------------------


def test_the_wilson_interval_matches_hand_computed_values():
    # z = 1.959964: centre (0.8 + z²/200) / (1 + z²/100) = 0.788902; half width
    # z * sqrt(0.8 * 0.2 / 100 + z²/40000) / (1 + z²/100) = 0.077731
    found = wilson(0.8, 100)
    assert (found.low, found.high) == pytest.approx((0.711171, 0.866633), abs=2e-6)
    assert wilson(0.0, 20).low == 0.0
    assert wilson(1.0, 20).high == 1.0
    # z² / (20 + z²) of 20 pairs may still be wrong although none was
    assert wilson(1.0, 20).low == pytest.approx(20 / (20 + 1.959964**2))


def test_1537_pairs_know_a_share_of_80_percent_to_two_points():
    found = wilson(0.8, 1537)
    assert (found.high - found.low) / 2 == pytest.approx(0.02, abs=1e-4)


def test_unequal_weights_count_as_fewer_pairs():
    assert effective_pairs([1, 1, 1, 1]) == 4
    assert effective_pairs([3, 1]) == pytest.approx(16 / 10)


def test_mcnemar_is_the_two_sided_coin():
    # 5 pairs only the first got right, 1 only the second: 2 * (1 + 6) / 64
    first = [1] * 5 + [0] + [1] * 9
    second = [0] * 5 + [1] + [1] * 9
    found = mcnemar(first, second)
    assert (found.only_first, found.only_second) == (5, 1)
    assert found.p == pytest.approx(14 / 64)
    assert mcnemar([1, 0], [1, 0]).p == 1.0


def test_the_bootstrap_interval_of_a_mean_matches_the_normal_distribution():
    values = make_rng(1).normal(3.0, 2.0, 400)
    found = mean(values).interval(make_rng(2), resamples=4000)
    error = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((found.value - error, found.value + error), abs=0.03)
    assert mean(values).interval(make_rng(2), resamples=50) == mean(values).interval(make_rng(2), resamples=50)


def test_resamples_in_pieces_are_as_many_as_asked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("solon.feedback.quality.intervals.MOST_CELLS", 1000)
    sizes = []
    statistic = mean(np.arange(300.0))
    spied = type(statistic)(300, lambda weights: (sizes.append(len(weights)), statistic.of_weights(weights))[1])
    spied.interval(make_rng(), resamples=10)
    assert sizes == [1, 3, 3, 3, 1]  # the value itself first


def test_pairs_of_one_prompt_are_drawn_together():
    values = np.repeat(make_rng(0).normal(0, 1, 50), 20)
    apart = mean(values).interval(make_rng(), resamples=300)
    together = mean(values).interval(make_rng(), clusters_N=np.repeat(np.arange(50), 20), resamples=300)
    assert (together.high - together.low) == pytest.approx(math.sqrt(20) * (apart.high - apart.low), rel=0.2)


def test_the_difference_of_two_figures_on_the_same_pairs_has_a_narrower_interval_than_either():
    values = make_rng(0).normal(0, 5, 200)
    difference = (mean(values + 0.5) - mean(values)).interval(make_rng(), resamples=100)
    assert difference.value == pytest.approx(0.5)
    assert difference.high - difference.low < 1e-9
    with pytest.raises(InputError, match="expected the same pairs"):
        mean([1.0]) - mean([1.0, 2.0])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"margins": [1.0, math.nan]}, r"margins: got nan at pair 1 \(1 in all\).*leave out invalid"),
        ({"margins": [1.0], "gold": [1.0, 2.0]}, "expected one number per pair"),
        ({"margins": []}, "at least one pair"),
    ],
)
def test_a_value_that_is_no_number_is_refused_before_measuring(columns: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        rows(**columns)


def test_weights_below_zero_are_refused():
    with pytest.raises(InputError, match="expected 2 of at least 0"):
        mean([1.0, 2.0]).value([1, -1])


# -- agreement -------------------------------------------------------------------------------------------------

# 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no
JUDGE = [1] * 25 + [-1] * 25
GOLD = [1] * 20 + [-1] * 5 + [1] * 10 + [-1] * 15


def test_agreement_counts_equal_codes_by_their_weights():
    assert agreement(JUDGE, GOLD).value == pytest.approx(0.7)
    found = agreement([1, -1, 0], [1, 1, 0], weights_N=[2, 1, 1])
    assert found.value == pytest.approx(0.75)
    assert found.pairs == round(16 / 6)


def test_kappa_matches_hand_computed_values():
    # both orders of the margins: 25/25 and 30/20, so chance is 0.5 * 0.6 + 0.5 * 0.4 = 0.5
    assert kappa(JUDGE, GOLD).value() == pytest.approx((0.7 - 0.5) / (1 - 0.5))
    # three ways: agree on 3 of 4; habits (2, 1, 1) and (1, 2, 1): chance (2 + 2 + 1) / 16
    assert kappa([1, 1, 0, -1], [1, 0, 0, -1]).value() == pytest.approx((3 / 4 - 5 / 16) / (1 - 5 / 16))
    assert kappa(JUDGE, GOLD).value([1.0] * 50) == kappa(JUDGE, GOLD).value([7.0] * 50)


def test_kappa_of_two_raters_of_one_word_is_not_defined():
    assert math.isnan(kappa([1, 1, 1], [1, 1, 1]).value())
    assert math.isnan(kappa([1, 1, 1], [1, 1, 1]).interval(make_rng(), resamples=9).low)


def test_kappa_s_interval_holds_its_value_and_a_paired_difference_tells_judges_apart():
    rng = make_rng(3)
    gold = rng.choice([-1, 1], 600)
    good, bad = (np.where(rng.random(600) < share, gold, -gold) for share in (0.9, 0.7))
    found = kappa(good, gold).interval(rng, resamples=300)
    assert found.low < found.value < found.high <= 1
    assert found.value == pytest.approx(0.8, abs=0.06)
    assert (kappa(good, gold) - kappa(bad, gold)).interval(rng, resamples=300).low > 0.2


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=20))
def test_kappa_is_symmetric_and_at_most_one(pairs: list[tuple[int, int]]):
    one, other = (list(side) for side in zip(*pairs, strict=True))
    found = kappa(one, other).value()
    assert math.isnan(found) or found <= 1 + 1e-12
    assert found == pytest.approx(kappa(other, one).value(), nan_ok=True)


def test_a_flip_is_the_opposite_answer_and_a_tie_flips_nothing():
    assert flips([1.0, -2.0, 0.0, 3.0], [0.1, 2.0, 5.0, -0.1]).value == 0.5
    assert codes([0.05, -0.2], tie_band=0.1).tolist() == [0, -1]


# -- calibration error -----------------------------------------------------------------------------------------

LOGIT_75, LOGIT_90 = math.log(3), math.log(9)


def test_likelihood_and_brier_score_match_hand_computed_values():
    margins, targets = [LOGIT_75, -LOGIT_75], [1.0, 1.0]
    assert nll(margins, targets).value() == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)
    assert brier(margins, targets).value() == pytest.approx((0.25**2 + 0.75**2) / 2)
    assert nll([0.0], [0.5]).value() == pytest.approx(math.log(2))
    assert nll([800.0], [0.0]).value() == 800.0


def test_calibration_error_matches_hand_computed_values():
    # claims 0.75 and is so in 1 of 2; claims 0.9 and is so in 2 of 2; as pairs and as questions alike
    margins, targets = [LOGIT_75, LOGIT_75, LOGIT_90, LOGIT_90], [1.0, 0.0, 1.0, 1.0]
    for folded in (True, False):
        assert ece(margins, targets, folded=folded, bins=2).value() == pytest.approx((0.25 + 0.1) / 2)
    # pairs: -1.1 with target 0 is the same pair as 1.1 with target 1. Questions: 0.25 is so in 0 of 2
    assert ece([-LOGIT_75, LOGIT_75], [0.0, 1.0], folded=True, bins=1).value() == pytest.approx(0.25)
    assert ece([-LOGIT_75, -LOGIT_75], [0.0, 0.0], folded=False, bins=1).value() == pytest.approx(0.25)
    weights = [3, 1, 2, 2]
    assert ece(margins, targets, folded=True, bins=2).value(weights) == pytest.approx((0.0 * 4 + 0.1 * 4) / 8)


def test_bins_show_claimed_and_true_probabilities():
    low, high = reliability([LOGIT_75, LOGIT_75, LOGIT_90, LOGIT_90], [1, 0, 1, 1], folded=True, bins=2)
    assert (low.claimed, low.true.value, low.mass) == pytest.approx((0.75, 0.5, 0.5))
    assert (high.claimed, high.true.value, high.mass) == pytest.approx((0.9, 1.0, 0.5))
    assert low.true.pairs == 2


def test_pairs_of_one_probability_share_a_bin_in_any_order():
    targets = np.repeat([0.0, 1.0], [250, 750])
    assert ece(np.full(1000, LOGIT_75), targets, folded=False).value() == pytest.approx(0.0, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_calibration_error_of_pairs_does_not_depend_on_which_answer_stands_first(data: st.DataObject):
    margins = np.array(data.draw(MARGINS))
    targets = np.array(data.draw(st.lists(st.floats(0, 1), min_size=len(margins), max_size=len(margins))))
    turned = np.array(data.draw(st.lists(st.booleans(), min_size=len(margins), max_size=len(margins))))
    found = ece(margins, targets, folded=True).value()
    other = ece(np.where(turned, -margins, margins), np.where(turned, 1 - targets, targets), folded=True).value()
    assert -1e-12 <= found <= 1 + 1e-12
    assert found == pytest.approx(other, abs=1e-9)
    assert -1e-12 <= ece(margins, targets, folded=False).value() <= 1 + 1e-12


@settings(max_examples=60, deadline=None)
@given(MARGINS)
def test_probabilities_of_both_sides_add_up_to_one(margins: list[float]):
    assert sigmoid(margins) + sigmoid(-np.array(margins)) == pytest.approx(np.ones(len(margins)), abs=1e-15)
    assert sigmoid([-1e4, 1e4]).tolist() == [0.0, 1.0]


def test_the_floor_is_what_a_perfectly_calibrated_judge_shows():
    shown = [ece(*make_gold(1000, seed=seed), folded=True).value() for seed in range(60)]
    floors = [ece_floor(make_gold(1000, seed=seed)[0], folded=True) for seed in range(60)]
    assert np.mean(shown) == pytest.approx(np.mean(floors), rel=0.1)


def test_the_debiased_error_is_zero_where_noise_is_all_there_is_and_right_where_there_is_more():
    # a bin that claims 0.75 and is right in 0.6: error 0.15, for any number of pairs
    for num, seeds in ((100, 80), (2000, 20)):
        squares = []
        for seed in range(seeds):
            targets = (make_rng(seed).random(num) < 0.6).astype(float)
            squares.append(debiased_error(np.full(num, LOGIT_75), targets, folded=False, bins=1) ** 2)
        assert np.mean(squares) == pytest.approx(0.15**2, rel=0.15)
    honest = [debiased_error(*make_gold(2000, seed=seed), folded=True) for seed in range(20)]
    plain = [ece(*make_gold(2000, seed=seed), folded=True).value() for seed in range(20)]
    assert np.mean(honest) < np.mean(plain) / 2


def test_the_interval_of_the_calibration_error_holds_the_truth_as_often_as_it_says():
    truth = ece(*make_gold(400_000, sharpness=2, seed=99), folded=True).value()
    held = 0
    for seed in range(40):
        found = ece(*make_gold(1000, sharpness=2, seed=seed), folded=True).interval(make_rng(seed), resamples=120)
        held += found.low <= truth <= found.high
    assert held >= 34  # 95 % of 40 stays above this with 99 % probability


def test_one_pair_per_bin_gives_no_estimate_of_noise():
    with pytest.raises(InputError, match="expected two in a bin"):
        debiased_error([1.0, 2.0], [1, 0], folded=False)


# -- consistency -----------------------------------------------------------------------------------------------


def test_position_quality_counts_what_both_orders_favour():
    # margin 2, offset 1: orders say 3 and 1. margin 1, offset 2: 3 and -1, the first place wins twice.
    found = position_quality([2.0, 1.0, -1.0, -3.0], [1.0, 2.0, -2.0, 1.0], rng=make_rng())
    assert found.consistent.value == 0.5
    assert found.first_place.value == 0.25
    assert found.last_place.value == 0.25
    assert found.offset.value == pytest.approx(0.5)
    assert found.offset.low < 0.5 < found.offset.high
