"""The gate's errors are those that it promises, in simulation, and its three outcomes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap

from compression.gate.bounds import bounds, by_prompt
from compression.gate.gate import ALPHA, WRITTEN, Figure, alpha_of, decide, needed
from compression.gate.thresholds import Thresholds

LIMITS = Thresholds()


def flips(rng: np.random.Generator, prompts: int, lost: float, gained: float) -> Figure:
    values = rng.choice([1.0, -1.0, 0.0], prompts, p=[lost, gained, 1 - lost - gained])
    names = tuple(str(number) for number in range(prompts))
    return Figure(name="net flips", kind="net_flips", values_P=values, prompts_P=names)


def verdicts(prompts: int, lost: float, gained: float, *, trials: int = 400) -> float:
    """Share of accepted models."""
    rng = np.random.default_rng(0)
    return sum(decide([flips(rng, prompts, lost, gained)], LIMITS).verdict == "accept" for _ in range(trials)) / trials


@pytest.mark.parametrize(("lost", "gained"), [(0.02, 0.0), (0.03, 0.01), (0.06, 0.04)])
def test_a_model_that_loses_exactly_the_threshold_is_accepted_in_at_most_one_of_forty_trials(
    lost: float, gained: float
):
    # Two standard errors of 400 trials above 0.025.
    assert verdicts(800, lost, gained) <= 0.025 + 2 * (0.025 * 0.975 / 400) ** 0.5


def test_of_several_copies_that_lose_the_threshold_one_is_accepted_in_at_most_one_of_forty_trials():
    rng, trials = np.random.default_rng(0), 400

    def is_accepted(candidate: int) -> bool:
        figure = flips(rng, 800, 0.03, 0.01)
        return decide([figure], LIMITS, alpha=alpha_of(candidate, recover=True)).verdict == "accept"

    accepted = sum(any(is_accepted(candidate) for candidate in (1, 2, 3, 4)) for _ in range(trials))
    assert accepted / trials <= 0.025 + 2 * (0.025 * 0.975 / trials) ** 0.5


def test_the_error_of_all_copies_stays_below_that_of_a_single_one():
    assert sum(alpha_of(candidate, recover=True) for candidate in range(1, 20)) < ALPHA
    assert alpha_of(1, recover=False) == ALPHA


def test_a_model_that_loses_nothing_is_accepted_and_one_that_loses_thrice_the_threshold_is_not():
    assert verdicts(800, 0.0, 0.0, trials=20) == 1.0
    assert verdicts(1200, 0.01, 0.01, trials=100) > 0.9
    assert verdicts(800, 0.06, 0.0, trials=100) == 0.0


def test_few_prompts_are_inconclusive_and_then_rejected_with_what_to_do():
    decision = decide([flips(np.random.default_rng(0), 60, 0.0, 0.0)], LIMITS)
    assert (decision.verdict, decision.look) == ("reject", 3)
    assert "times as many prompts" in decision.reason
    assert decision.rows[0].outcome == "inconclusive"


def test_too_few_answers_are_inconclusive_and_then_more_answers_are_asked_for():
    few = flips(np.random.default_rng(0), 60, 0.0, 0.0)
    written = Figure(name=WRITTEN, kind="degenerate", values_P=few.values_P, prompts_P=few.prompts_P)
    reason = decide([written], LIMITS).reason
    assert "raise --answers to " in reason
    assert "give pairs" not in reason
    assert "give pairs of" in decide([few, written], LIMITS).reason


def test_every_figure_must_pass_and_the_reason_names_the_one_that_does_not():
    rng = np.random.default_rng(1)
    good, bad = flips(rng, 900, 0.0, 0.0), flips(rng, 900, 0.2, 0.0)
    worst = Figure(name="net flips, harmless", kind="worst_tag", values_P=bad.values_P, prompts_P=bad.prompts_P)
    decision = decide([good, worst], LIMITS)
    assert decision.verdict == "reject"
    assert decision.reason.startswith("net flips, harmless +0.")
    assert decision.look == 1


def test_noise_of_the_model_against_itself_raises_its_threshold():
    figure = flips(np.random.default_rng(2), 900, 0.01, 0.01)
    assert decide([figure], LIMITS, noise={"net_flips": 0.05}).rows[0].threshold == 0.1


def test_bounds_agree_with_scipys_bootstrap():
    values = np.random.default_rng(3).gamma(1.0, 1.0, 200)
    found = bounds(values, 0.025)
    other = bootstrap((values,), np.mean, confidence_level=0.95, n_resamples=10_000, rng=1).confidence_interval
    assert found.low == pytest.approx(other.low, abs=0.02)
    assert found.high == pytest.approx(other.high, abs=0.02)


def test_pairs_of_a_prompt_count_as_one_and_nothing_flipped_is_not_certainty():
    assert by_prompt([1, 0, 0, 1], ["b", "a", "a", "b"]).tolist() == [1.0, 0.0]
    none = bounds(np.zeros(300), 0.025, are_flips=True)
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 300))
    assert needed(0.04, 0.02) == 785
