"""How much better than expected every token was. Each estimator is one small class.

R: rollouts, T: response token positions, right-padded; `mask_RT` is True where there is a token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def token_rewards(rewards_R: Tensor, penalty_RT: Tensor, mask_RT: Tensor) -> Tensor:
    """Reward of every token, [R, T]: minus its penalty, and on the last token the rollout's reward."""
    rewards_RT = -penalty_RT.masked_fill(~mask_RT, 0.0)
    last_R = mask_RT.sum(1) - 1
    rewards_RT[torch.arange(len(rewards_R), device=rewards_R.device), last_R] += rewards_R
    return rewards_RT


@dataclass(frozen=True, slots=True)
class GAE:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16).

    delta_t = r_t + gamma V_{t+1} - V_t, A_t = delta_t + gamma lam A_{t+1}; a rollout ends in a state worth 0.
    """

    gamma: float = 1.0
    lam: float = 1.0

    def __call__(self, rewards_RT: Tensor, values_RT: Tensor, mask_RT: Tensor) -> tuple[Tensor, Tensor]:
        """Advantages and returns (advantage + value), [R, T] each, 0 where there is no token."""
        values_RT = values_RT.masked_fill(~mask_RT, 0.0)
        rewards_RT = rewards_RT.masked_fill(~mask_RT, 0.0)
        advantages_RT = torch.zeros_like(values_RT)
        # Padding is on the right and all zeros, so it gives the last token a zero next value and advantage.
        next_value_R = next_advantage_R = torch.zeros_like(values_RT[:, 0])
        for t in range(values_RT.shape[1] - 1, -1, -1):
            delta_R = rewards_RT[:, t] + self.gamma * next_value_R - values_RT[:, t]
            next_advantage_R = delta_R + self.gamma * self.lam * next_advantage_R
            next_value_R = values_RT[:, t]
            advantages_RT[:, t] = next_advantage_R
        return advantages_RT, (advantages_RT + values_RT).masked_fill(~mask_RT, 0.0)


@dataclass(frozen=True, slots=True)
class GroupRelative:
    """A rollout's reward against its group's mean, in standard deviations (Shao et al. 2024, GRPO).

    >>> GroupRelative()([1.0, None, 3.0])
    [-0.9999000099990001, None, 0.9999000099990001]
    """

    divide_by_std: bool = True
    epsilon: float = 1e-4
    """Added to the deviation, in reward: rewards that differ by less are noise and stay small."""

    def __call__(self, rewards_G: Sequence[float | None]) -> list[float | None]:
        """Advantages of one group; a rollout without a reward gets none and moves no mean or deviation."""
        valid = [reward for reward in rewards_G if reward is not None]
        if not valid:
            return [None] * len(rewards_G)
        if min(valid) == max(valid):
            # The mean is a rounded sum, and Adam would make a full step of its rounding.
            return [None if reward is None else 0.0 for reward in rewards_G]
        mean = math.fsum(valid) / len(valid)
        scale = 1.0
        if self.divide_by_std:
            scale = math.sqrt(math.fsum((r - mean) ** 2 for r in valid) / len(valid)) + self.epsilon
        return [None if reward is None else (reward - mean) / scale for reward in rewards_G]


def whiten(x_N: Tensor, mask_N: Tensor | None = None) -> Tensor:
    """Shifted and scaled to mean 0 and deviation 1 over the tokens that the mask keeps; 0 elsewhere, and 0
    everywhere when they are all the same."""
    if mask_N is None:
        mask_N = torch.ones_like(x_N, dtype=torch.bool)
    kept = x_N[mask_N]
    if not len(kept) or bool(kept.min() == kept.max()):
        return torch.zeros_like(x_N)
    whitened_N = (x_N - kept.mean()) * torch.rsqrt(kept.var(correction=0) + 1e-8)
    return whitened_N.masked_fill(~mask_N, 0.0)
