"""The loss of the pairs of one forward pass, with its metrics. P pairs, R answers, M tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from learners.core.objective import Loss
from learners.direct.config import PreferenceSettings
from learners.direct.losses import gaps, preference_losses, smoothed
from learners.direct.rows import PairRows


def pair_loss(rows: PairRows, logprobs_M: Tensor, denominator: float, settings: PreferenceSettings) -> Loss:
    """Weighted sum of the losses of pairs over `denominator`, and its metrics. logprobs_M: of the policy."""
    answers, pairs = rows.answers, rows.pairs
    ratios_R = answers.sums(logprobs_M) - rows.reference_R
    first_P, second_P = (answers.places([getattr(one, side) for one in pairs]) for side in ("first", "second"))
    gaps_P = gaps(
        ratios_R[first_P],
        ratios_R[second_P],
        answers.tokens_R[first_P],
        answers.tokens_R[second_P],
        settings.preference_loss,
    )
    p_P = gaps_P.new_tensor([one.p for one in pairs])
    weights_P = gaps_P.new_tensor([one.weight for one in pairs]) / denominator
    losses_P = preference_losses(
        gaps_P, smoothed(p_P, settings.label_smoothing), beta=settings.beta, kind=settings.preference_loss
    )
    loss = (weights_P * losses_P).sum()
    better_P, worse_P = torch.where(p_P >= 0.5, first_P, second_P), torch.where(p_P >= 0.5, second_P, first_P)
    if settings.sft_weight:
        logprobs_P = answers.sums(logprobs_M)[better_P] / answers.tokens_R[better_P]
        loss = loss - settings.sft_weight * (weights_P * logprobs_P).sum()
    with torch.no_grad():
        agrees_P = ((gaps_P > 0) == (p_P > 0.5)).float()
        metrics = {
            "loss/mean": loss.detach(),
            "agreement/mean": (weights_P * agrees_P).sum(),
            "better_log_ratio/mean": (weights_P * ratios_R[better_P]).sum(),
            "worse_log_ratio/mean": (weights_P * ratios_R[worse_P]).sum(),
        }
    return loss, metrics
