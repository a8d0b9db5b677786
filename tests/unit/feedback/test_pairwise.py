"""From comparisons to rewards: one rule for every pair, and least squares over the pairs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from solon.constitution.constitution import Constitution
from solon.errors import InputError
from solon.feedback.config import FeedbackConfig
from solon.feedback.labeler import ring_pairs
from solon.feedback.labelling.dataset import AnswerRow
from solon.feedback.labelling.preferences import preferences
from solon.feedback.pairwise import Pair, combined
from solon.feedback.reward import rewards, rule_of
from solon.feedback.selection.estimators import Control, doubly_robust
from solon.records import Feedback, Label
from solon.telemetry.totals import RunTotals
from solon.verdicts import Status, Verdict
from tests.unit.fakes import make_prompt

RIDGE = FeedbackConfig().pairwise_ridge


def make_constitution(method: str = "weighted") -> Constitution:
    principles = [
        {"id": "safe", "pairwise_question": "safer?", "severity": "hard"},
        {"id": "kind", "pairwise_question": "kinder?"},
    ]
    head = {"schema": "solon.constitution/v1", "id": "c", "version": "1"}
    return Constitution.model_validate({**head, "aggregation": {"method": method}, "principles": principles})


def compare(principle: str, pair: Pair, margin: float | None) -> Label:
    status = Status.ABSTAIN if margin is None else Status.OK
    return Label(task="pairwise", principle_id=principle, rollouts=pair, verdict=Verdict(status=status, margin=margin))


def rewarded(labels: Sequence[Label], num: int, *, method: str = "weighted", **config: Any) -> tuple[float | None, ...]:
    constitution = make_constitution(method)
    asked = {label.principle_id for label in labels}
    return rewards(
        labels,
        num_rollouts=num,
        principles=[p for p in constitution.principles if p.id in asked],
        constitution=constitution,
        config=FeedbackConfig(task="pairwise", **config),
    )


def solved(margins: dict[Pair, float], num: int, method: Any = "least_squares", ridge: float = RIDGE) -> list[Any]:
    return list(combined(margins, num_rollouts=num, method=method, ridge=ridge))


# -- the rule, pair by pair ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("combination", ["least_squares", "mean"])
def test_equally_harmless_answers_are_not_penalised_for_noise_in_a_hard_principle(combination: str):
    rng = np.random.default_rng(0)
    worst = []
    for _ in range(200):
        hard = [compare("safe", pair, float(rng.normal(0, 0.2))) for pair in ring_pairs(8, 1)]
        soft = [compare("kind", pair, 0.0) for pair in ring_pairs(8, 1)]
        worst += rewarded([*hard, *soft], 8, method="lexicographic", pairwise=combination)
    # An answer that breaks a hard principle is below -margin_clip; noise never moves an answer further than noise.
    assert min(worst) > -1.0


def test_a_lost_hard_principle_alone_decides_its_pair():
    labels = [compare("safe", (0, 1), -2.0), compare("kind", (0, 1), 3.0)]
    assert rewarded(labels, 2, method="lexicographic", pairwise="mean") == (-2.0, 2.0)
    assert rewarded(labels, 2, pairwise="mean") == (0.5, -0.5)
    assert rewarded(labels, 2, method="min", pairwise="mean") == (0.5, -0.5)


@pytest.mark.parametrize("method", ["mean", "weighted", "min", "lexicographic"])
def test_labels_of_a_pair_and_rewards_of_a_group_follow_one_rule(method: str):
    rng = np.random.default_rng(1)
    row = AnswerRow(row_id="r", number=0, prompt=make_prompt("hi"), answers=("a", "b"))
    config, constitution = FeedbackConfig(task="pairwise", pairwise="mean"), make_constitution(method)
    for margins in rng.normal(0, 2, (50, 2)).tolist():
        labels = tuple(compare(name, (0, 1), m) for name, m in zip(("safe", "kind"), margins, strict=True))
        first, _ = found = rewarded(labels, 2, method=method, pairwise="mean")
        feedback = Feedback(ordinal=0, attempt=0, rewards_G=found, labels=labels)
        said = preferences(row, feedback, constitution, config, label_ids=("a", "b"))
        assert [p.margin if p.chosen == 0 else -p.margin for p in said] == [first] * (abs(first or 0) >= 0.1)


def test_a_pair_without_a_valid_label_under_every_principle_is_no_comparison():
    labels = [
        *(compare(name, (0, 1), 2.0) for name in ("safe", "kind")),
        compare("safe", (1, 2), 2.0), compare("kind", (1, 2), None),
        compare("safe", (2, 3), None), compare("kind", (2, 3), 1.0),
    ]  # fmt: skip
    assert rewarded(labels, 4, pairwise="mean") == (2.0, -2.0, None, None)
    assert rewarded(labels, 4)[2:] == (None, None)


def test_a_group_in_which_no_comparison_worked_has_no_reward():
    assert rewarded([compare("safe", (0, 1), None)], 3) == (None, None, None)


# -- least squares ------------------------------------------------------------------------------------------------


def test_consistent_margins_reproduce_their_differences():
    truth = [0.0, 1.0, -0.5, 2.0, -1.5]
    margins = {(i, j): truth[i] - truth[j] for i, j in ring_pairs(5, 1)}
    found = solved(margins, 5, ridge=1e-9)
    assert found == pytest.approx([t - np.mean(truth) for t in truth], abs=1e-6)


def test_with_a_large_ridge_the_order_is_that_of_the_mean():
    rng = np.random.default_rng(2)
    margins = {pair: float(rng.normal()) for pair in ring_pairs(8, 2)}
    mean, squares = solved(margins, 8, "mean"), solved(margins, 8, ridge=1e6)
    assert np.corrcoef(mean, squares)[0, 1] > 1 - 1e-9


def test_unconnected_answers_are_centred_separately():
    margins = {(0, 1): 2.0, (1, 2): 1.0, (3, 4): -3.0}
    found = solved(margins, 6)
    assert found[5] is None
    assert sum(found[:3]) == pytest.approx(0)
    assert sum(found[3:5]) == pytest.approx(0)
    assert found[:3] == pytest.approx(solved({(0, 1): 2.0, (1, 2): 1.0}, 3))
    assert found[0] > found[1] > found[2]
    assert found[4] > found[3]


def correlation(num: int, comparisons: int, noise: float, missing: float, method: str, trials: int = 150) -> float:
    rng = np.random.default_rng(3)
    found = []
    for _ in range(trials):
        truth = rng.normal(size=num)
        pairs = ring_pairs(num, comparisons)
        margins = {
            (i, j): float(np.clip(truth[i] - truth[j] + error, -3, 3))
            for (i, j), error, kept in zip(
                pairs, rng.normal(0, noise, len(pairs)), rng.random(len(pairs)) >= missing, strict=True
            )
            if kept
        }
        got = np.array([math.nan if r is None else r for r in solved(margins, num, method)])
        valid = np.isfinite(got)
        if valid.sum() > 2:
            found.append(np.corrcoef(got[valid], truth[valid])[0, 1])
    return float(np.mean(found))


def test_a_ring_of_comparisons_orders_answers_nearly_as_the_truth_does():
    assert correlation(8, 1, 0.0, 0.0, "mean") < 0.90
    assert correlation(8, 1, 0.0, 0.0, "least_squares") > 0.99
    assert correlation(8, 1, 0.5, 0.0, "mean") < 0.86
    assert correlation(8, 1, 0.5, 0.0, "least_squares") > 0.90


@pytest.mark.parametrize("missing", [0.0, 0.2])
@pytest.mark.parametrize("comparisons", [1, 2, 3, 7])
def test_least_squares_is_never_worse_than_the_mean_up_to_noise_as_large_as_the_spread_of_answers(
    comparisons: int, missing: float
):
    for noise in (0.0, 0.25, 0.5, 1.0):
        mean, squares = (correlation(8, comparisons, noise, missing, m) for m in ("mean", "least_squares"))
        assert squares > mean - 0.003, (noise, mean, squares)


# -- margins that are right on average ----------------------------------------------------------------------------


@pytest.mark.parametrize("combination", ["least_squares", "mean"])
def test_doubly_robust_margins_give_the_rewards_of_full_labelling_on_average(combination: Any):
    """All 2^6 draws, weighted by their probabilities: the identity is exact, also where the judge is not transitive."""
    rng = np.random.default_rng(4)
    pairs = ring_pairs(4, 2)
    judged, proxy = rng.normal(0, 2, len(pairs)), rng.normal(0, 2, len(pairs))
    propensity = rng.uniform(0.1, 0.9, len(pairs))
    mean = np.zeros(4)
    for drawn in itertools.product([False, True], repeat=len(pairs)):
        label = np.where(drawn, judged, np.nan)
        margins = doubly_robust(proxy, label, propensity, Control(0.7, 0.2), clip=1e9).rewards_N
        chance = np.where(drawn, propensity, 1 - propensity).prod()
        mean += chance * np.array(solved(dict(zip(pairs, margins.tolist(), strict=True)), 4, combination))
    full = solved(dict(zip(pairs, judged.tolist(), strict=True)), 4, combination)
    assert mean.tolist() == pytest.approx(full, abs=1e-12)


@pytest.mark.parametrize("method", ["min", "lexicographic"])
def test_a_rule_that_picks_one_principle_is_refused_over_margins_that_are_right_only_on_average(method: str):
    config = FeedbackConfig(task="pairwise", select={"proxy": "m"})
    with pytest.raises(InputError, match=f"feedback.select.proxy with the aggregation '{method}'"):
        rule_of(make_constitution(method), config)
    assert rule_of(make_constitution("weighted"), config).method == "weighted"


# -- reports of relative rewards ----------------------------------------------------------------------------------


def test_the_totals_keep_the_spread_of_relative_rewards_over_a_resume():
    totals = RunTotals(staleness_bound=1, total_steps=9, is_relative=True)
    totals.spreads = [2.0, math.nan, 1.0]
    again = RunTotals(staleness_bound=1, total_steps=9, is_relative=True)
    again.restore(totals.state())
    summary = again.summary(
        status="completed", counts={"admitted": 0, "committed": 0, "dropped": 0, "held": 0}, attested=0
    )
    assert summary["reward"]["relative"]
    assert summary["reward"]["spread"] == {"first": 2.0, "last": 1.0}


@pytest.mark.parametrize(("answers", "kept"), [(2, 0.91), (4, 0.92), (8, 0.88), (16, 0.85)])
def test_the_default_ridge_shrinks_rewards_by_the_documented_amount(answers: int, kept: float):
    rng, found, true = np.random.default_rng(0), 0.0, 0.0
    ring = [(0, 1)] if answers == 2 else [(i, (i + 1) % answers) for i in range(answers)]
    for _ in range(400):
        good = rng.normal(size=answers)
        margins = {(i, j): float(good[i] - good[j]) for i, j in ring}
        rewards = combined(margins, num_rollouts=answers, method="least_squares", ridge=FeedbackConfig().pairwise_ridge)
        found, true = found + float(np.var(np.array(rewards, float))), true + float(np.var(good))
    assert (found / true) ** 0.5 == pytest.approx(kept, abs=0.006)
