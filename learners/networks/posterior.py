"""Uncertainty of a reward model's head: the disagreement of other heads that explain the labels as well.

N pairs, M labelled pairs, H hidden width, K heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from learners.networks.reward_model import PreferencePair, RewardModel, embed


def margins_of_draws(
    model: RewardModel,
    labelled: Sequence[PreferencePair],
    pairs: Sequence[PreferencePair],
    *,
    draws: int = 16,
    prior_precision: float = 1.0,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Margins by the model itself and by heads drawn from the posterior given the labelled pairs, [1 + draws, N].

    Laplace's approximation of the head alone (MacKay 1992; Kristiadi et al. 2020): the inverse covariance is
    prior_precision * 1 + sum of w p (1 - p) x x', with x the difference of a pair's features. Where these heads
    disagree there are too few labels, whether the pair is a tie or not. Costs one forward pass.
    """
    head_H = model.network.score.weight[0].detach().double().cpu().numpy()
    seen_MH, new_NH = _differences(model, labelled), _differences(model, pairs)
    p_M = 1 / (1 + np.exp(-np.clip(seen_MH @ head_H, -50, 50)))
    weights_M = np.array([pair.weight for pair in labelled]) * p_M * (1 - p_M)
    precision_HH = prior_precision * np.eye(len(head_H)) + (seen_MH * weights_M[:, None]).T @ seen_MH
    # precision = L L', so L'^-1 z has the covariance precision^-1.
    normal_HK = np.random.default_rng(seed).normal(size=(len(head_H), draws))
    moves_HK = np.linalg.solve(np.linalg.cholesky(precision_HH).T, normal_HK)
    heads_KH = head_H + np.concatenate([np.zeros((len(head_H), 1)), moves_HK], axis=1).T
    margins_KN: NDArray[np.float64] = heads_KH @ new_NH.T
    return margins_KN


def _differences(model: RewardModel, pairs: Sequence[PreferencePair]) -> NDArray[np.float64]:
    """Features of the first answer less those of the second, [N, H]."""
    first_NH, second_NH = np.split(embed(model, [*(p.first for p in pairs), *(p.second for p in pairs)]), 2)
    difference_NH: NDArray[np.float64] = first_NH - second_NH
    return difference_NH
