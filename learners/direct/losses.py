"""The losses of direct preference optimisation, as pure functions of log-ratios.

P pairs, R answers. The log-ratio of an answer is log pi(answer | prompt) - log pi_ref(answer | prompt), summed over its
tokens, nats. In every pair p is the probability that the first answer is the better one; a certain label has p = 1.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

DirectLoss = Literal["sigmoid", "sigmoid_norm", "ipo"]


def gaps(
    ratio_first_P: Tensor, ratio_second_P: Tensor, tokens_first_P: Tensor, tokens_second_P: Tensor, kind: DirectLoss
) -> Tensor:
    """By how much the policy prefers the first answer more than the reference does, nats: of whole answers for
    `sigmoid`, of a token on average for the other losses."""
    if kind == "sigmoid":
        return ratio_first_P - ratio_second_P
    return ratio_first_P / tokens_first_P - ratio_second_P / tokens_second_P


def preference_losses(gaps_P: Tensor, p_P: Tensor, *, beta: float, kind: DirectLoss) -> Tensor:
    """The loss of every pair, [P].

    `sigmoid`: -p log s(beta d) - (1 - p) log s(-beta d) (Rafailov et al. 2023, equation 7, with soft labels; the
    conservative form of Mitchell 2023 is p = 1 - label_smoothing); `sigmoid_norm`: the same of gaps per token
    (Lambert et al. 2024); `ipo`: p (d - 1/(2 beta))^2 + (1 - p) (d + 1/(2 beta))^2 (Azar et al. 2023, equation 17),
    of gaps per token.
    """
    if kind == "ipo":
        goal = 1 / (2 * beta)
        return p_P * (gaps_P - goal).square() + (1 - p_P) * (gaps_P + goal).square()
    return functional.binary_cross_entropy_with_logits(beta * gaps_P, p_P, reduction="none")


def smoothed(p_P: Tensor, label_smoothing: float) -> Tensor:
    """Probabilities when a share of the labels, `label_smoothing`, is wrong at random."""
    return p_P * (1 - label_smoothing) + (1 - p_P) * label_smoothing


def rating_losses(
    ratio_R: Tensor, good_R: Tensor, anchor: Tensor | float, *, beta: float, desirable: float, undesirable: float
) -> Tensor:
    """The loss of every rated answer, [R]: v D (1 - s(beta (a - z))) + (1 - v) U (1 - s(beta (z - a))), where v is the
    probability that the answer is good, a its log-ratio, z the `anchor`, and D and U are the weights `desirable` and
    `undesirable` (Ethayarajh et al. 2024, equation 8, with soft ratings)."""
    above_R = torch.sigmoid(beta * (ratio_R - anchor))
    return good_R * desirable * (1 - above_R) + (1 - good_R) * undesirable * above_R


def rating_anchor(mismatched_R: Tensor) -> Tensor:
    """z, an estimate of the KL from the reference, from log-ratios of answers to other prompts: never below 0, and no
    gradient flows through it."""
    return mismatched_R.detach().mean().clamp(min=0)
