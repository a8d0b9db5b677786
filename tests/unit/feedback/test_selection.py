"""Which items are labelled: utilities, propensities that sum to the budget, draws that a restart repeats."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from solon.errors import InputError
from solon.feedback.selection.estimators import hajek
from solon.feedback.selection.policy import (
    AUDIT,
    Bandit,
    Plan,
    SelectionConfig,
    choose,
    plan,
    propensities,
    select,
    utility,
)
from solon.feedback.selection.worth import Signals, disagreement, divergence, diversity, impact, near_tie, uncertainty

LN2 = math.log(2)


def ids(number: int) -> list[str]:
    return [f"item-{i}" for i in range(number)]


def signals(margins: Any, **more: Any) -> Signals:
    """Of one proxy, or of several."""
    margins_KN = np.atleast_2d(np.array(margins, float))
    return Signals(num=margins_KN.shape[1], margins_KN=margins_KN, **more)


# -- utilities -------------------------------------------------------------------------------------------------


def test_uncertainty_is_the_entropy_of_the_verdict():
    found = uncertainty([0.0, math.log(3), 1000.0, -1000.0])
    by_hand = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert found == pytest.approx([LN2, by_hand, 0.0, 0.0], abs=1e-12)


def test_proxies_that_agree_on_a_tie_are_uncertain_but_do_not_disagree():
    margins = np.array([[0.0, 1.0], [0.0, -1.0]])
    assert disagreement(margins) == pytest.approx([0.0, 1.0])
    assert uncertainty(margins[0])[0] == pytest.approx(LN2)


def test_a_label_tells_nothing_about_which_of_two_sure_proxies_is_right_when_they_agree():
    margins = np.array([[0.0, 1000.0, 1000.0, math.log(3)], [0.0, -1000.0, 900.0, -math.log(3)]])
    quarter = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert divergence(margins) == pytest.approx([0.0, LN2, 0.0, LN2 - quarter], abs=1e-12)


def test_the_measure_of_disagreement_is_a_setting():
    both, config = signals([[0.0, 900.0], [0.0, 1000.0]]), SelectionConfig()
    assert utility("disagreement", both, config) == pytest.approx([0.0, 2500.0])
    assert utility("disagreement", both, SelectionConfig(disagreement="js")) == pytest.approx([0.0, 0.0])


def test_the_utility_of_a_near_tie_falls_with_the_margin():
    assert near_tie([0.0, -2.0], 2.0) == pytest.approx([1.0, math.exp(-1)])


def test_impact_needs_both_an_advantage_and_a_doubt():
    assert impact([2.0, -2.0, 0.0, 9.0], [0.0, 0.0, 0.0, 1000.0]) == pytest.approx([2 * LN2, 2 * LN2, 0.0, 0.0])


def test_every_cluster_expects_equally_many_labels():
    crowd, alone = np.zeros((9, 2)), np.full((1, 2), 5.0)
    found = diversity(np.concatenate([crowd, alone]), clusters=2)
    assert found == pytest.approx([1 / 9] * 9 + [1.0])


def test_more_clusters_than_distinct_points_are_one_each():
    assert diversity([[0.0], [0.0], [3.0]], clusters=7) == pytest.approx([0.5, 0.5, 1.0])


@pytest.mark.parametrize("policy", ["uncertainty", "disagreement", "near_tie", "impact", "diversity"])
def test_a_policy_names_the_signal_that_it_lacks(policy: Any):
    with pytest.raises(InputError, match=f"{policy}.* got no (margins|embeddings)"):
        utility(policy, Signals(num=3), SelectionConfig())


def test_one_proxy_cannot_disagree():
    with pytest.raises(InputError, match="two proxies"):
        utility("disagreement", signals([1.0, 2.0]), SelectionConfig())


@pytest.mark.parametrize("margins", [[[math.nan, 1.0]], [[1.0, 2.0, 3.0]]])
def test_signals_are_finite_and_one_per_item(margins: list[list[float]]):
    with pytest.raises(InputError, match="2 items"):
        Signals(num=2, margins_KN=np.array(margins))


# -- propensities ----------------------------------------------------------------------------------------------


def test_propensities_follow_the_utilities():
    assert propensities([1.0, 2.0, 3.0], rate=0.2, floor=0.01) == pytest.approx([0.1, 0.2, 0.3])


def test_budget_cut_off_at_the_top_is_spent_on_the_other_items():
    # 1 for the first; 0.5 is left for utilities 1 and 4.
    assert propensities([100.0, 1.0, 4.0], rate=0.5, floor=0.01) == pytest.approx([1.0, 0.1, 0.4])


def test_the_cost_of_the_floor_is_taken_from_the_other_items():
    # 0.1 for the first; 0.8 is left for utilities 3 and 5.
    assert propensities([0.0, 3.0, 5.0], rate=0.3, floor=0.1) == pytest.approx([0.1, 0.3, 0.5])


def test_sharpness_zero_is_random_and_more_of_it_is_greedier():
    assert propensities([1.0, 9.0], rate=0.4, floor=0.05, sharpness=0) == pytest.approx([0.4, 0.4])
    assert propensities([1.0, 3.0], rate=0.4, floor=0.05, sharpness=2) == pytest.approx([0.08, 0.72])


def test_items_without_utility_share_the_budget_that_the_others_cannot_spend():
    assert propensities([5.0, 0.0, 0.0, 0.0], rate=0.5, floor=0.05) == pytest.approx([1.0, 1 / 3, 1 / 3, 1 / 3])
    assert propensities([0.0, 0.0], rate=0.5, floor=0.05) == pytest.approx([0.5, 0.5])


@given(
    utilities=st.lists(st.floats(0, 1e12), min_size=1, max_size=60),
    rate=st.floats(0.02, 1),
    floor_share=st.floats(0, 1),
    sharpness=st.floats(0, 4),
)
def test_propensities_always_spend_the_budget(
    utilities: list[float], rate: float, floor_share: float, sharpness: float
):
    floor = floor_share * rate
    found = propensities(utilities, rate=rate, floor=floor, sharpness=sharpness)
    assert found.sum() == pytest.approx(rate * len(utilities), rel=1e-6)
    assert found.min() >= floor * (1 - 1e-12)
    assert found.max() <= 1
    order = np.argsort(utilities)
    assert (np.diff(found[order]) >= -1e-9).all()


@pytest.mark.parametrize("utilities", [[-1.0, 2.0], [math.nan, 1.0], [math.inf, 1.0]])
def test_a_utility_is_finite_and_not_negative(utilities: list[float]):
    with pytest.raises(InputError, match="at least 0"):
        propensities(utilities, rate=0.5, floor=0.1)


def test_a_floor_above_the_rate_is_refused():
    with pytest.raises(InputError, match="lower the floor"):
        propensities([1.0], rate=0.1, floor=0.2)
    with pytest.raises(ValidationError, match="overspend"):
        SelectionConfig(rate=0.04)


def test_no_items_are_no_propensities():
    assert len(propensities([], rate=0.5, floor=0.1)) == 0
    assert choose([], Signals(num=0), SelectionConfig(), seed=0) == []


# -- draws -----------------------------------------------------------------------------------------------------


def test_a_restart_selects_the_same_items_in_any_batch():
    config, names = SelectionConfig(), ids(200)
    whole = select(names, np.full(200, 0.5), config, seed=3)
    part = select(names[50:60], np.full(10, 0.5), config, seed=3)
    assert part == whole[50:60]
    assert 70 < sum(s.selected for s in whole) < 130


@pytest.mark.parametrize("change", [{"seed": 4}, {"turn": 1}])
def test_another_seed_or_turn_draws_other_items(change: dict[str, int]):
    config, names, wanted = SelectionConfig(), ids(400), np.full(400, 0.5)
    one = [s.selected for s in select(names, wanted, config, **({"seed": 3, "turn": 0}))]
    other = [s.selected for s in select(names, wanted, config, **({"seed": 3, "turn": 0} | change))]
    assert 140 < sum(a != b for a, b in zip(one, other, strict=True)) < 260


def test_a_selection_reports_its_counts():
    certain, rare = select(["a", "b"], [1.0, 1e-9], SelectionConfig(), seed=0, proxy_scores_N=[0.5, -1.0])
    assert (certain.selected, certain.weight, certain.proxy_score) == (True, 1.0, 0.5)
    assert (rare.selected, rare.weight, rare.proxy_score) == (False, 0.0, -1.0)


def test_weights_are_clipped():
    names = ids(3000)
    found = [s for s in select(names, np.full(3000, 0.01), SelectionConfig(weight_clip=20), seed=0) if s.selected]
    assert found
    assert {s.weight for s in found} == {20.0}


def test_ids_are_distinct_and_one_per_propensity():
    with pytest.raises(InputError, match="one of each per item"):
        select(["a", "a"], [0.5, 0.5], SelectionConfig(), seed=0)
    with pytest.raises(InputError, match="one of each per item"):
        select(["a", "b"], [0.5], SelectionConfig(), seed=0)


def test_the_policy_id_changes_with_every_setting():
    one, other = SelectionConfig(policy="uncertainty"), SelectionConfig(policy="uncertainty", sharpness=2)
    assert one.policy_id.startswith("uncertainty-")
    assert one.policy_id != other.policy_id
    assert one.policy_id == SelectionConfig(policy="uncertainty").policy_id


def test_chosen_labels_with_their_propensities_recover_the_mean_of_all():
    rng = np.random.default_rng(0)
    margins = rng.normal(size=8000) * 3
    right = rng.random(8000) < 1 / (1 + np.exp(-np.abs(margins)))  # the surer, the likelier right
    found = choose(ids(8000), signals(margins), SelectionConfig(policy="uncertainty"), seed=1)
    some = np.array([s.selected for s in found])
    estimate = hajek(right[some].astype(float), [s.propensity for s in found if s.selected]).mean
    assert some.mean() == pytest.approx(0.25, abs=0.02)
    assert right[some].mean() < right.mean() - 0.05
    assert estimate.low < right.mean() < estimate.high


# -- audit -----------------------------------------------------------------------------------------------------


def test_audit_items_bypass_the_policy_and_its_budget():
    # The audited item is the one that the policy would care for least.
    margins, names = np.array([50.0, *np.zeros(99)]), ids(100)
    config = SelectionConfig(policy="uncertainty", rate=0.1)
    audited = choose(names, signals(margins), config, seed=0, audit_ids=frozenset({"item-0"}))
    first = audited[0]
    assert (first.policy_id, first.selected, first.propensity, first.weight) == (AUDIT, True, 1.0, 1.0)
    assert audited[1:] == choose(names[1:], signals(margins[1:]), config, seed=0)
    assert sum(s.propensity for s in audited[1:]) == pytest.approx(9.9)


@pytest.mark.parametrize(
    "policy", ["random", "uncertainty", "disagreement", "near_tie", "impact", "diversity", "bandit"]
)
def test_every_policy_continues_when_all_items_are_audited(policy: Any):
    two = signals([[0.0, 1.0], [1.0, 2.0]], advantages_N=np.ones(2), embeddings_NH=np.eye(2))
    config = SelectionConfig(policy=policy)
    assert all(s.selected for s in choose(ids(2), two, config, seed=0, audit_ids=frozenset(ids(2))))
    assert sum(s.propensity for s in choose(ids(2), two, config, seed=0)) == pytest.approx(0.5)


@given(st.sets(st.integers(0, 19)))
def test_every_audited_item_is_labelled(chosen: set[int]):
    audit = frozenset(f"item-{i}" for i in chosen)
    config = SelectionConfig(policy="near_tie", rate=0.05)
    found = choose(ids(20), signals(np.linspace(-9, 9, 20)), config, seed=0, audit_ids=audit)
    assert [s.item_id for s in found] == ids(20)
    assert all(s.selected and s.policy_id == AUDIT for s in found if s.item_id in audit)
    assert all(s.policy_id == config.policy_id for s in found if s.item_id not in audit)


# -- bandit ----------------------------------------------------------------------------------------------------

BANDIT = SelectionConfig(policy="bandit", bandit_policies=("uncertainty", "disagreement"), rate=0.2, floor=0.02)


def test_a_new_bandit_trusts_all_its_policies_alike_and_keeps_a_uniform_share():
    made = plan(signals([[0.0, 9.0, 1.0, 4.0], [0.0, 1.0, 1.2, 4.0]]), BANDIT)
    by_hand = 0.15 * 0.2 + 0.85 * (made.by_policy_KN[0] + made.by_policy_KN[1]) / 2
    assert made.propensities_N == pytest.approx(by_hand)
    assert made.propensities_N.sum() == pytest.approx(0.8)


def test_a_bandit_moves_to_the_policy_whose_labels_surprise():
    # Policy 0 prefers the first two items, policy 1 the last two; only the last two surprise.
    by_policy_KN = np.array([[0.4, 0.4, 0.1, 0.1], [0.1, 0.1, 0.4, 0.4]])
    made = Plan(propensities_N=by_policy_KN.mean(0), by_policy_KN=by_policy_KN)
    after = Bandit((0.0, 0.0)).learned(made, [True] * 4, [0.0, 0.0, 1.0, 1.0], rate=1.0)
    # Gains 0.2 and 0.8: the odds of the second are exp(0.6).
    assert after.shares_K[1] / after.shares_K[0] == pytest.approx(math.exp(0.6))


def test_a_bandit_learns_nothing_from_invalid_labels():
    made = Plan(propensities_N=np.full(2, 0.5), by_policy_KN=np.full((2, 2), 0.5))
    bandit = Bandit((0.3, 0.0))
    assert bandit.learned(made, [True, False], [math.nan, 1.0], rate=1.0) == bandit


def test_the_floor_stays_however_confident_the_bandit_is():
    made = plan(signals([[0.0, 9.0, 9.0, 9.0], [0.0, 1.0, 2.0, 9.0]]), BANDIT, Bandit((0.0, -500.0)))
    assert made.propensities_N.min() >= 0.15 * 0.2


def test_a_bandit_over_other_policies_is_refused():
    with pytest.raises(InputError, match="over 3 policies"):
        plan(signals([[0.0, 1.0], [1.0, 0.0]]), BANDIT, Bandit((0.0, 0.0, 0.0)))
    with pytest.raises(ValidationError, match="distinct"):
        SelectionConfig(policy="bandit", bandit_policies=("random", "random"))
