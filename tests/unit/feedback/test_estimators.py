"""Estimates for all items from labelled ones: Hajek, LURE, doubly robust rewards."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solon.errors import InputError
from solon.feedback.selection.estimators import (
    Control,
    doubly_robust,
    fit_control,
    hajek,
    lure,
    lure_weights,
    valid_propensities,
)

NAN = math.nan


def population(number: int, correlation: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels with mean 0.5 and deviation 1, and a proxy of them on the same scale."""
    rng = np.random.default_rng(seed)
    labels = rng.normal(size=number)
    labels = (labels - labels.mean()) / labels.std()
    noise = rng.normal(size=number)
    noise -= labels * (labels @ noise) / (labels @ labels)
    noise = (noise - noise.mean()) / noise.std()
    proxies = correlation * labels + math.sqrt(1 - correlation**2) * noise
    return labels + 0.5, proxies + 0.5


# -- Hajek -----------------------------------------------------------------------------------------------------


def test_hajek_weighs_by_one_over_the_propensity():
    found = hajek([1.0, 4.0], [0.5, 0.25])  # weights 2 and 4
    assert found.mean.value == pytest.approx((2 * 1 + 4 * 4) / 6)
    assert found.n_eff == pytest.approx(36 / 20)
    # variance (1/3) * 2^2 + (2/3) * 1^2 = 2, times n_eff / (n_eff - 1) = 1.8 / 0.8
    assert found.std == pytest.approx(math.sqrt(2 * 1.8 / 0.8))
    # sum of shares^2 * residuals^2: (1/9) * 4 + (4/9) * 1 = 8/9
    assert found.mean.high - found.mean.value == pytest.approx(1.959964 * math.sqrt(8 / 9 * 1.8 / 0.8), rel=1e-6)


def test_hajek_of_equal_propensities_is_the_plain_mean_with_its_usual_interval():
    values = np.random.default_rng(0).normal(size=400)
    found = hajek(values, np.full(400, 0.25))
    assert found.mean.value == pytest.approx(values.mean())
    assert found.std == pytest.approx(values.std(ddof=1))
    assert found.n_eff == pytest.approx(400)
    assert found.mean.high - found.mean.value == pytest.approx(1.959964 * values.std(ddof=1) / 20, rel=1e-6)


def test_hajek_corrects_a_biased_choice_and_its_interval_covers():
    labels, _ = population(4000, 0.0)
    propensities = np.clip(0.25 * np.exp(labels - 0.5), 0.05, 1)  # good items are selected more often
    rng, plain, inside, errors = np.random.default_rng(1), [], 0, []
    for _ in range(300):
        some = rng.random(len(labels)) < propensities
        found = hajek(labels[some], propensities[some])
        plain.append(labels[some].mean())
        errors.append(found.mean.value - 0.5)
        inside += found.mean.low <= 0.5 <= found.mean.high
    assert np.mean(plain) > 0.9
    assert abs(np.mean(errors)) < 0.01
    assert inside >= 0.92 * 300


def test_one_label_gives_no_interval():
    found = hajek([2.0], [0.5])
    assert found.mean.value == 2.0
    assert found.mean.low == -math.inf
    assert found.std == math.inf


def test_clipped_weights_are_counted():
    found = hajek([0.0, 1.0], [0.5, 0.01], weight_clip=20)
    assert found.clipped == 1
    assert found.mean.value == pytest.approx(20 / 22)


@pytest.mark.parametrize("propensities", [[0.0, 0.5], [-0.1, 0.5], [0.5, 1.1]])
def test_an_invalid_propensity_is_refused(propensities: list[float]):
    with pytest.raises(InputError, match="above 0 and at most 1"):
        hajek([1.0, 2.0], propensities)


def test_an_invalid_label_is_no_value():
    with pytest.raises(InputError, match="leave out invalid"):
        hajek([1.0, NAN], [0.5, 0.5])


# -- LURE ------------------------------------------------------------------------------------------------------


def test_lure_weights_match_the_formula_by_hand():
    # N = 4, M = 2: v_1 = 1 + 2/3 (1 / (4 * 0.5) - 1) = 2/3, v_2 = 1 + 2/2 (1 / (3 * 0.25) - 1) = 4/3
    assert lure_weights([0.5, 0.25], 4) == pytest.approx([2 / 3, 4 / 3])


def test_lure_of_uniform_draws_and_of_the_whole_pool_is_the_plain_mean():
    assert lure_weights([1 / 5, 1 / 4, 1 / 3], 5) == pytest.approx([1, 1, 1])
    assert lure([1.0, 5.0], [0.9, 1.0], 2) == 3.0


def test_lure_is_exactly_unbiased_over_every_order_of_drawing():
    values, utilities = [3.0, -1.0, 10.0], [1.0, 2.0, 5.0]
    expected = 0.0
    for first in range(3):
        p_first = utilities[first] / sum(utilities)
        for second in {0, 1, 2} - {first}:
            p_second = utilities[second] / (sum(utilities) - utilities[first])
            expected += p_first * p_second * lure([values[first], values[second]], [p_first, p_second], 3)
    assert expected == pytest.approx(4.0)


def test_lure_is_unbiased_where_the_plain_mean_is_visibly_biased():
    rng = np.random.default_rng(3)
    losses = rng.exponential(size=60)
    utilities = losses * rng.uniform(0.3, 1.7, size=60)  # chosen by a fair guess of the loss
    plain, corrected = [], []
    for _ in range(1000):
        # Gumbel keys draw in turn, each with chances proportional to the utilities that are left.
        order = np.argsort(-(np.log(utilities) + rng.gumbel(size=60)))[:12]
        left = utilities.sum() - np.concatenate([[0.0], np.cumsum(utilities[order])[:-1]])
        plain.append(losses[order].mean())
        corrected.append(lure(losses[order], utilities[order] / left, 60))
    truth = losses.mean()
    assert np.mean(plain) > 1.4 * truth
    assert np.std(corrected) > 0.01
    assert abs(np.mean(corrected) - truth) < 4 * np.std(corrected) / math.sqrt(1000)


def test_more_draws_than_the_pool_holds_are_refused():
    with pytest.raises(InputError, match="pool of 2"):
        lure_weights([0.5, 0.5, 0.5], 2)


# -- doubly robust ---------------------------------------------------------------------------------------------


def test_rewards_are_the_proxys_corrected_where_there_is_a_label():
    found = doubly_robust([1.0, 1.0], [2.0, NAN], [0.25, 0.25], Control(slope=0.5, offset=0.1))
    assert found.rewards_N == pytest.approx([0.6 + (2.0 - 0.6) / 0.25, 0.6])
    assert found.clipped == 0


def test_with_certain_labelling_rewards_are_the_labels_for_any_proxy():
    assert doubly_robust([9.0, -9.0], [1.0, 2.0], [1.0, 1.0]).rewards_N == pytest.approx([1.0, 2.0])


@settings(max_examples=30, deadline=None)
@given(
    proxies=st.lists(st.floats(-5, 5), min_size=3, max_size=3),
    slope=st.floats(-2, 2),
    propensities=st.lists(st.floats(0.05, 1), min_size=3, max_size=3),
)
def test_rewards_are_exactly_unbiased_for_any_proxy(proxies: list[float], slope: float, propensities: list[float]):
    labels, expected = np.array([1.0, -2.0, 0.5]), np.zeros(3)
    for drawn in range(8):  # every outcome of three draws, times its probability
        selected = np.array([drawn >> i & 1 for i in range(3)], bool)
        chance = np.where(selected, propensities, 1 - np.array(propensities)).prod()
        rewards = doubly_robust(proxies, np.where(selected, labels, NAN), propensities, Control(slope), clip=1e9)
        expected += chance * rewards.rewards_N
    assert expected == pytest.approx(labels, abs=1e-9)


def test_a_good_proxy_more_than_halves_the_scatter_of_inverse_propensity_weighting():
    labels, proxies = population(20_000, 0.9)
    propensities = np.full(len(labels), 0.25)
    seen = np.where(np.random.default_rng(2).random(len(labels)) < propensities, labels, NAN)
    control = fit_control(proxies, labels, propensities)
    robust = doubly_robust(proxies, seen, propensities, control).rewards_N - labels
    plain = doubly_robust(proxies, seen, propensities, Control(0.0)).rewards_N - labels
    assert control.slope == pytest.approx(0.9, abs=0.01)
    # By hand: the scatter is sqrt((1 - pi) / pi * E residual^2) = sqrt(3 * 0.19) against sqrt(3 * (1 + 0.5^2)).
    assert robust.std() == pytest.approx(math.sqrt(3 * 0.19), rel=0.03)
    assert plain.std() == pytest.approx(math.sqrt(3 * 1.25), rel=0.03)
    assert abs(robust.mean()) < 0.02


def test_the_control_is_a_regression_weighted_by_the_factor_of_the_residuals():
    # kappa = 1 and 3: under weights 1/4 and 3/4 the line through both points is exact.
    control = fit_control([0.0, 2.0], [1.0, 5.0], [0.5, 0.25])
    assert (control.slope, control.offset) == (pytest.approx(2.0), pytest.approx(1.0))


def test_a_proxy_that_never_changes_is_only_an_offset():
    control = fit_control([1.0, 1.0], [2.0, 4.0], [0.5, 0.5])
    assert control == Control(slope=0.0, offset=3.0)


def test_with_everything_labelled_there_is_nothing_to_fit():
    assert fit_control([1.0, 2.0], [3.0, 1.0], [1.0, 1.0]) == Control()


def test_a_control_fitted_on_chosen_labels_is_that_of_all_items_when_they_are_weighted():
    rng = np.random.default_rng(5)
    proxies = rng.normal(size=60_000)
    labels = proxies**2 + 0.3 * rng.normal(size=len(proxies))  # not a line: which items are seen matters
    propensities = np.clip(0.3 * np.exp(proxies), 0.05, 1)
    some = rng.random(len(proxies)) < propensities
    whole = fit_control(proxies, labels, propensities)
    weighted = fit_control(proxies[some], labels[some], propensities[some], weights_M=1 / propensities[some])
    unweighted = fit_control(proxies[some], labels[some], propensities[some])
    assert weighted.slope == pytest.approx(whole.slope, abs=0.1)
    assert abs(unweighted.slope - whole.slope) > 0.3


def test_a_huge_correction_is_clipped_and_counted():
    found = doubly_robust([0.0, 0.0], [3.0, -1.0], [0.05, 0.5], clip=20)
    assert found.rewards_N == pytest.approx([20.0, -2.0])
    assert found.clipped == 1


# -- invalid labels --------------------------------------------------------------------------------------------


def test_an_invalid_label_counts_as_not_selected_within_its_stratum():
    selected = [True, True, True, True, False, True]
    valid = [True, False, True, True, False, True]
    strata = ["fact", "fact", "wish", "wish", "fact", "wish"]
    found = valid_propensities([0.5] * 6, selected, valid, strata)
    assert found == pytest.approx([0.25, 0.25, 0.5, 0.5, 0.25, 0.5])


def test_a_stratum_without_a_selected_item_keeps_its_propensities():
    assert valid_propensities([0.5, 0.1], [True, False], [True, False], ["a", "b"]) == pytest.approx([0.5, 0.1])


def test_rewards_stay_unbiased_when_a_judge_fails_more_often_on_one_kind():
    rng = np.random.default_rng(7)
    number = 40_000
    kind = rng.random(number) < 0.5
    labels = np.where(kind, 2.0, -1.0) + rng.normal(size=number)
    propensities = np.full(number, 0.4)
    selected = rng.random(number) < propensities
    valid = selected & (rng.random(number) < np.where(kind, 0.5, 0.95))
    seen, proxies = np.where(valid, labels, NAN), np.zeros(number)
    corrected = doubly_robust(proxies, seen, valid_propensities(propensities, selected, valid, kind.tolist()))
    ignored = doubly_robust(proxies, seen, propensities)
    assert corrected.rewards_N.mean() == pytest.approx(labels.mean(), abs=0.05)
    assert abs(ignored.rewards_N.mean() - labels.mean()) > 0.3


def test_batch_statistics_come_from_the_labels_since_corrections_only_add_scatter():
    labels, proxies = population(20_000, 0.9)
    propensities = np.clip(0.25 * np.exp(0.5 * proxies), 0.05, 1)
    some = np.random.default_rng(9).random(len(labels)) < propensities
    rewards = doubly_robust(proxies, np.where(some, labels, NAN), propensities).rewards_N
    found = hajek(labels[some], propensities[some])
    assert found.std == pytest.approx(1.0, abs=0.03)
    assert rewards.std() > 1.2
