"""Log-probs of sampled tokens. N tokens, V vocabulary.

The vocabulary is the widest axis of all, so that whole tensors of [N, V] cost more to move than to compute. Everything
here takes the logits in the dtype that the model gives, a few rows at a time, and computes in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from learners.core.config import PIECE


def logprobs_of(logits_NV: Tensor, token_N: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probs of the sampled tokens, float32, [N]."""
    logprobs_N: Tensor = _Sampled.apply(logits_NV, token_N, temperature, False)[0]  # type: ignore[no-untyped-call]
    return logprobs_N


def logprobs_and_entropy(logits_NV: Tensor, token_N: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probs of the sampled tokens and entropy of their distributions in nats, float32, [N] each."""
    logprobs_N, entropy_N = _Sampled.apply(logits_NV, token_N, temperature, True)  # type: ignore[no-untyped-call]
    return logprobs_N, entropy_N


class _Sampled(torch.autograd.Function):
    """Keeps only the logits for the backward pass, which computes the probabilities again."""

    @staticmethod
    def forward(
        ctx: Any, logits_NV: Tensor, token_N: Tensor, temperature: float, with_entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        logprobs_N = torch.empty(len(logits_NV), device=logits_NV.device)
        entropy_N = torch.empty_like(logprobs_N) if with_entropy else None
        for rows in pieces(logits_NV):
            logprobs_R, entropy_R = values_of(scaled(logits_NV[rows], temperature), token_N[rows], with_entropy)
            logprobs_N[rows] = logprobs_R
            if entropy_N is not None and entropy_R is not None:
                entropy_N[rows] = entropy_R
        ctx.save_for_backward(logits_NV, token_N, *([] if entropy_N is None else [entropy_N]))
        ctx.temperature = temperature
        # A loss that uses one of the two outputs passes no gradient of the other.
        ctx.set_materialize_grads(False)
        return logprobs_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        logits_NV, token_N, *entropy = ctx.saved_tensors
        if all(slope_N is None for slope_N in slopes):
            return None, None, None, None
        gradient_NV = torch.empty_like(logits_NV)
        for rows in pieces(logits_NV):
            slopes_R = tuple(None if slope_N is None else slope_N[rows] for slope_N in slopes)
            entropy_R = entropy[0][rows] if entropy else None
            gradient_RV = slope_of(scaled(logits_NV[rows], ctx.temperature), token_N[rows], slopes_R, entropy_R)
            gradient_NV[rows] = gradient_RV if ctx.temperature == 1.0 else gradient_RV.div_(ctx.temperature)
        return gradient_NV, None, None, None


def values_of(scaled_RV: Tensor, token_R: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor | None]:
    """Log-probs of the tokens, and entropy if requested, from the logits of a few rows over the temperature."""
    logprobs_RV = scaled_RV.log_softmax(-1)
    logprobs_R = logprobs_RV.gather(-1, token_R[:, None])[:, 0]
    return logprobs_R, -logprobs_RV.exp().mul_(logprobs_RV).sum(-1) if with_entropy else None


def slope_of(
    scaled_RV: Tensor, token_R: Tensor, slopes_R: tuple[Tensor | None, ...], entropy_R: Tensor | None
) -> Tensor:
    """The gradient of a few rows of logits over the temperature, float32, [R, V]. slopes_R: gradients of the log-probs
    and of the entropies, not both None; entropy_R: needed with the latter.

    d logprob / d logit = (is the token) - p, d entropy / d logit = -p (log p + entropy).
    """
    slope_R, entropy_slope_R = slopes_R
    if entropy_slope_R is None:
        assert slope_R is not None
        gradient_RV = scaled_RV.softmax(-1)
        gradient_RV *= -slope_R[:, None]
    else:
        assert entropy_R is not None
        logprobs_RV = scaled_RV.log_softmax(-1)
        gradient_RV = logprobs_RV + entropy_R[:, None]
        gradient_RV *= -entropy_slope_R[:, None]
        if slope_R is not None:
            gradient_RV -= slope_R[:, None]
        gradient_RV *= logprobs_RV.exp_()
    if slope_R is not None:
        gradient_RV.scatter_add_(1, token_R[:, None], slope_R[:, None])
    return gradient_RV


def pieces(logits_NV: Tensor) -> Iterator[slice]:
    """Slices of rows."""
    rows = max(1, PIECE.get(logits_NV.device.type, PIECE["cuda"]) // logits_NV.shape[1])
    for first in range(0, len(logits_NV), rows):
        yield slice(first, first + rows)


def scaled(logits_RV: Tensor, temperature: float) -> Tensor:
    """In float32, over the temperature."""
    logits_RV = logits_RV.float()
    return logits_RV if temperature == 1.0 else logits_RV / temperature
