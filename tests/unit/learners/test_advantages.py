"""Advantages against hand numbers and a plain recursion."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.policy_gradient.advantages import GAE, GroupRelative, token_rewards, whiten

number = st.floats(-5, 5, allow_nan=False, width=32)


def test_gae_matches_hand_computed_values():
    # r = (0, 0, 1), V = (0.5, 0.6, 0.8), gamma 0.9, lam 0.5
    # delta = (0.54 - 0.5, 0.72 - 0.6, 1 - 0.8) = (0.04, 0.12, 0.2); gamma lam = 0.45
    mask = torch.ones(1, 3, dtype=torch.bool)
    advantages, returns = GAE(gamma=0.9, lam=0.5)(
        torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.6, 0.8]]), mask
    )
    assert advantages[0].tolist() == pytest.approx([0.04 + 0.45 * 0.21, 0.21, 0.2])
    assert returns[0].tolist() == pytest.approx([0.5 + 0.04 + 0.45 * 0.21, 0.81, 1.0])


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.lists(st.tuples(number, number), min_size=1, max_size=6), min_size=1, max_size=4),
    st.floats(0.5, 1.0),
    st.floats(0.0, 1.0),
)
def test_ragged_gae_matches_a_recursion_per_rollout(rollouts, gamma, lam):
    width = max(map(len, rollouts))
    # Padding is full of rubbish: it must not leak.
    rewards = torch.full((len(rollouts), width), 1e3)
    values = torch.full((len(rollouts), width), float("nan"))
    mask = torch.zeros(len(rollouts), width, dtype=torch.bool)
    for i, rollout in enumerate(rollouts):
        rewards[i, : len(rollout)] = torch.tensor([r for r, _ in rollout])
        values[i, : len(rollout)] = torch.tensor([v for _, v in rollout])
        mask[i, : len(rollout)] = True
    advantages, returns = GAE(gamma=gamma, lam=lam)(rewards, values, mask)
    for i, rollout in enumerate(rollouts):
        following, next_value = 0.0, 0.0
        for t in range(len(rollout) - 1, -1, -1):
            reward, value = rollout[t]
            following = reward + gamma * next_value - value + gamma * lam * following
            next_value = value
            assert advantages[i, t].item() == pytest.approx(following, rel=1e-3, abs=1e-3)
            assert returns[i, t].item() == pytest.approx(following + value, rel=1e-3, abs=1e-3)
    assert bool((advantages[~mask] == 0).all())
    assert bool((returns[~mask] == 0).all())


def test_the_reward_lands_on_the_last_token_and_the_penalty_on_every_one():
    mask = torch.tensor([[True, True, True], [True, False, False]])
    rewards = token_rewards(torch.tensor([1.0, -2.0]), torch.full((2, 3), 0.1), mask)
    torch.testing.assert_close(rewards, torch.tensor([[-0.1, -0.1, 0.9], [-2.1, 0.0, 0.0]]))


def test_group_relative_matches_hand_computed_values():
    assert GroupRelative(divide_by_std=False)([1.0, 2.0, 6.0]) == [-2.0, -1.0, 3.0]
    assert GroupRelative(epsilon=0.0)([0.0, 2.0]) == [-1.0, 1.0]


def test_group_relative_leaves_missing_rewards_out_of_mean_and_deviation():
    assert GroupRelative()([1.0, None, 3.0, None]) == [
        *GroupRelative()([1.0, 3.0])[:1],
        None,
        *GroupRelative()([1.0, 3.0])[1:],
        None,
    ]
    assert GroupRelative()([None, None]) == [None, None]
    assert GroupRelative()([5.0, None]) == [0.0, None]


@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), number), min_size=1, max_size=8))
def test_group_relative_sums_to_zero_and_keeps_the_order(rewards):
    advantages = GroupRelative()(rewards)
    assert [a is None for a in advantages] == [r is None for r in rewards]
    valid = [(r, a) for r, a in zip(rewards, advantages, strict=True) if r is not None]
    assert sum(a for _, a in valid) == pytest.approx(0.0, abs=1e-6)
    assert [a for _, a in sorted(valid)] == sorted(a for _, a in valid)


def test_rewards_that_differ_by_noise_give_small_advantages():
    assert max(map(abs, GroupRelative()([0.5, 0.5 + 1e-7]))) < 1e-3


def test_whitening_sees_only_the_mask():
    whitened = whiten(torch.tensor([1.0, 3.0, 1e6]), torch.tensor([True, True, False]))
    torch.testing.assert_close(whitened, torch.tensor([-1.0, 1.0, 0.0]))
    assert whiten(torch.full((3,), 2.0)).tolist() == [0.0, 0.0, 0.0]
