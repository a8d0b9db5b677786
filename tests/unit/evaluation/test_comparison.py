"""Figures of policies on the same prompts, and texts that are no answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from solon.evaluation.comparison import by_principle, change, mean, win_rate
from solon.evaluation.degenerate import degenerate, distinct_pairs

ROOT = Path(__file__).resolve().parents[3]


def test_a_paired_difference_is_narrower_than_that_of_two_samples():
    rng = np.random.default_rng(0)
    hard_P = rng.normal(0, 1, 200)
    before_P, after_P = hard_P + rng.normal(0, 0.1, 200), hard_P + 0.05 + rng.normal(0, 0.1, 200)
    paired, one, two = change(before_P, after_P), mean(before_P), mean(after_P)
    assert paired.low > 0.02
    assert paired.high - paired.low < (one.high - one.low) / 4
    assert paired.value == pytest.approx(two.value - one.value)


def test_the_interval_of_a_difference_holds_it_nineteen_times_in_twenty():
    rng, held = np.random.default_rng(1), 0
    for trial in range(150):
        before_P = (rng.random(120) < 0.5).astype(float)
        after_P = (rng.random(120) < 0.6).astype(float)
        found = change(before_P, after_P, seed=trial)
        held += found.low <= 0.1 <= found.high
    assert 0.89 < held / 150 <= 1.0


def test_prompts_to_which_a_principle_does_not_apply_are_left_out():
    scores = by_principle([{"a": 1.0}, {"b": 0.0}, {"a": 0.0, "b": 1.0}])
    assert mean(scores["a"]).value == 0.5
    assert mean(scores["a"]).pairs == 2
    assert change(scores["a"], [0.0, 1.0, 1.0]).pairs == 2
    assert np.isnan(mean([np.nan]).value)


def test_ties_count_half_and_invalid_verdicts_not_at_all():
    found = win_rate([2.0, -0.05, 0.05, -3.0, None, 1.0], tie=0.1)
    assert (found.wins, found.ties, found.losses) == (2, 2, 1)
    assert found.rate.value == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("", "empty"),
        (" \n ", "empty"),
        ("I love my dog. " * 12, "repeats"),
        ("la " * 30, "repeats"),
        ("How do I boil an egg in a pot of cold water?", "copies"),
        ("Boil the egg for seven minutes, then cool it in cold water and peel it.", ""),
        ("Yes.", ""),
        ("No, no, no.", ""),
    ],
)
def test_texts_that_are_no_answers_are_named(answer: str, kind: str):
    assert degenerate(answer, "How do I boil an egg in a pot of cold water?") == kind


def test_long_prose_and_code_are_no_repetition():
    for path in ("docs/security.md", "docs/feedback.md", "solon/loop.py", "solon/cli/evaluate.py"):
        assert degenerate((ROOT / path).read_text()) == "", path


def test_a_loop_within_a_long_answer_and_one_without_spaces_are_found():
    assert degenerate((ROOT / "docs/align.md").read_text()[:1500] + "and so on and on " * 60) == "repeats"
    assert degenerate("你好吗" * 60) == "repeats"


def test_a_margin_of_zero_is_a_tie_whatever_the_band():
    found = win_rate([0.0, 0.0, 1.0], tie=0.0)
    assert (found.wins, found.ties, found.losses) == (1, 2, 0)


def test_variety_is_compared_over_equally_many_pairs():
    short, long = ["a b c d"], ["a b c d", "a b c d", "a b c d"]
    assert distinct_pairs(short) == 1
    assert distinct_pairs(long) == pytest.approx(1 / 3)
    assert distinct_pairs(long, most=3) == 1
