"""Which rollouts the gold judge reads, and how its verdicts are used."""

from __future__ import annotations

import pytest

from solon.feedback.watching.audit import chosen, excerpt, pair_up
from solon.records import Feedback
from tests.unit.fakes import make_group


def make_feedback(*rewards: float | None, ordinal: int = 0) -> Feedback:
    return Feedback(ordinal=ordinal, attempt=0, rewards_G=rewards, labels=())


def test_every_rollout_has_the_same_chance_wherever_it_stands():
    drawn = [chosen(ordinal, 0, 8, share=0.1, seed=0) for ordinal in range(5000)]
    total = sum(map(len, drawn))
    assert total / 40_000 == pytest.approx(0.1, abs=0.006)  # four standard errors
    by_place = [sum(place in rollouts for rollouts in drawn) / 5000 for place in range(8)]
    assert min(by_place) > 0.083
    assert max(by_place) < 0.117


def test_the_choice_is_repeatable_and_differs_between_runs_and_attempts():
    whole = range(400)
    same = [chosen(n, 0, 8, share=0.2, seed=3) for n in whole]
    assert same == [chosen(n, 0, 8, share=0.2, seed=3) for n in whole]
    assert same != [chosen(n, 0, 8, share=0.2, seed=4) for n in whole]
    assert same != [chosen(n, 1, 8, share=0.2, seed=3) for n in whole]


def test_a_share_of_one_takes_everything_and_a_larger_share_keeps_what_a_smaller_one_had():
    assert chosen(7, 0, 4, share=1.0, seed=0) == (0, 1, 2, 3)
    for ordinal in range(50):
        assert set(chosen(ordinal, 0, 8, share=0.1, seed=0)) <= set(chosen(ordinal, 0, 8, share=0.3, seed=0))


def test_gold_is_shown_the_chosen_rollouts_alone():
    group = make_group(3, texts=("a", "b", "c"))
    seen = excerpt(group, (0, 2))
    assert [rollout.text for rollout in seen.rollouts] == ["a", "c"]
    assert (seen.ordinal, seen.prompt) == (3, group.prompt)


def test_both_rewards_are_paired_and_unpaired_rollouts_are_counted():
    group = make_group(5, texts=("a", "b", "c", "d"), version=9)
    pairs, missing = pair_up(group, (0, 2, 3), make_feedback(1.0, 2.0, None, -1.0), make_feedback(0.5, 0.25, None))
    assert [(p.step, p.ordinal, p.proxy, p.gold) for p in pairs] == [(9, 5, 1.0, 0.5)]
    assert missing == 2


def test_feedback_on_other_rollouts_is_refused():
    group = make_group(texts=("a", "b"))
    with pytest.raises(ValueError, match="2 rewards and 2 of gold, expected 2 and 1"):
        pair_up(group, (1,), make_feedback(1.0, 2.0), make_feedback(1.0, 2.0))
