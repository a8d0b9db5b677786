"""Methods over seeds: intervals that hold the truth, and advice that the numbers bear."""

from __future__ import annotations

import numpy as np
import pytest

from solon.evaluation.methods import Changes, Cost, MethodRow, advice, over_seeds


def changes(rng: np.random.Generator, true: float, spread: float, *, seeds: int = 3, prompts: int = 120) -> Changes:
    seeds_S = rng.normal(true, spread, seeds)
    found: Changes = seeds_S[:, None] + rng.normal(0, 0.4, (seeds, prompts))
    return found


def row(name: str, changes_SP: Changes, **more: object) -> MethodRow:
    known = {
        "cost": Cost(human_labels=0, ai_labels=100, seconds=60.0),
        "kl": 1.0,
        "degenerate": 0.0,
        "words": 9.0,
    } | more
    by_seed = tuple(float(one) for one in changes_SP.mean(1))
    return MethodRow(name=name, change=over_seeds(changes_SP), by_seed=by_seed, **known)  # type: ignore[arg-type]


@pytest.mark.parametrize("spread", [0.0, 0.03, 0.1])
def test_the_interval_over_three_seeds_holds_the_true_change_at_least_nine_times_in_ten(spread: float):
    rng, trials = np.random.default_rng(0), 120
    held = 0
    for trial in range(trials):
        found = over_seeds(changes(rng, 0.1, spread), seed=trial)
        held += found.low <= 0.1 <= found.high
    assert held / trials > 0.91


def test_one_seed_has_the_interval_of_its_prompts_and_is_said_to_say_little():
    found = changes(np.random.default_rng(0), 0.2, 0.0, seeds=1)
    one = row("dpo", found)
    assert 0 < one.change.low < 0.2 < one.change.high
    assert np.isnan(one.spread)
    assert "One seed says nothing of the next one" in " ".join(advice([one], {"dpo": found}))


def test_prompts_without_a_score_are_left_out():
    found = np.array([[0.2, np.nan, 0.4], [0.2, np.nan, 0.4]])
    assert over_seeds(found).value == pytest.approx(0.3)


def test_the_cheapest_of_the_methods_that_cannot_be_told_apart_is_named():
    rng = np.random.default_rng(0)
    some = {name: changes(rng, true, 0.02) for name, true in (("ppo", 0.3), ("dpo", 0.29), ("sft", 0.05))}
    costs = {"ppo": 90.0, "dpo": 40.0, "sft": 10.0}
    rows = [
        row(name, found, cost=Cost(human_labels=0, ai_labels=9, seconds=costs[name])) for name, found in some.items()
    ]
    said = " ".join(advice(rows, some))
    assert "cannot be told from it" in said
    assert "Of these dpo is the cheapest: 40 s, ppo 90 s." in said or "dpo improves the policy most" in said


def test_methods_that_gain_nothing_or_break_answers_are_named():
    rng = np.random.default_rng(0)
    some = {"dpo": changes(rng, 0.3, 0.01), "noise": changes(rng, 0.0, 0.05)}
    rows = [row("dpo", some["dpo"], degenerate=0.2), row("noise", some["noise"])]
    said = " ".join(advice(rows, some))
    assert "Of noise no improvement is shown: the interval holds 0." in said
    assert "More than 5 % of the answers of dpo are degenerate" in said
    assert "All others are worse, by more than chance explains." in said


def test_nothing_is_called_worse_or_better_that_the_numbers_do_not_show():
    rng = np.random.default_rng(3)
    some = {"a": changes(rng, 0.05, 0.06), "b": changes(rng, 0.04, 0.06)}
    said = " ".join(advice([row(name, found) for name, found in some.items()], some))
    assert "No method is shown to improve the policy" in said
    assert "cannot be told from it" in said
    assert "worse, by more than chance" not in said


def test_a_method_that_harms_is_said_to_harm():
    rng = np.random.default_rng(0)
    some = {"good": changes(rng, 0.3, 0.01), "bad": changes(rng, -0.3, 0.01)}
    rows = [row("good", some["good"]), row("bad", some["bad"], is_off_budget=True)]
    said = " ".join(advice(rows, some))
    assert "bad made the policy worse." in said
    assert "the interval holds 0" not in said
    assert "bad missed the budget" in said
    alone = {"bad": some["bad"]}
    assert "improves" not in " ".join(advice([row("bad", some["bad"])], alone))


def test_reward_models_and_people_cost_no_ai_labels():
    rng = np.random.default_rng(0)
    some = {"ppo": changes(rng, 0.3, 0.02), "people": changes(rng, 0.3, 0.02)}
    rows = [
        row("ppo", some["ppo"]),
        row("people", some["people"], cost=Cost(human_labels=90, ai_labels=0, seconds=9.0)),
    ]
    assert "Without AI labels: people." in " ".join(advice(rows, some))
