"""Log-probs of sampled tokens. N tokens, V vocabulary.

The vocabulary is the widest axis of all, so that whole tensors of [N, V] cost more to move than to compute. Everything
here takes the logits in the dtype that the model gives, a few rows at a time, and computes in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

PIECE = {"cpu": 2**19, "cuda": 2**26}
"""Logits of one piece: on a CPU they stay in a core's cache, on a GPU they keep it busy."""


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
        for rows in _pieces(logits_NV):
            logprobs_RV = _scaled(logits_NV[rows], temperature).log_softmax(-1)
            logprobs_N[rows] = logprobs_RV.gather(-1, token_N[rows, None])[:, 0]
            if entropy_N is not None:
                entropy_N[rows] = -logprobs_RV.exp().mul_(logprobs_RV).sum(-1)
        ctx.save_for_backward(logits_NV, token_N, *([] if entropy_N is None else [entropy_N]))
        ctx.temperature = temperature
        # A loss that uses one of the two outputs passes no gradient of the other.
        ctx.set_materialize_grads(False)
        return logprobs_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        """d logprob / d logit = (is the token) - p, d entropy / d logit = -p (log p + entropy)."""
        logits_NV, token_N, *entropy = ctx.saved_tensors
        slope_N, entropy_slope_N = slopes
        if slope_N is None and entropy_slope_N is None:
            return None, None, None, None
        gradient_NV = torch.empty_like(logits_NV)
        for rows in _pieces(logits_NV):
            scaled_RV = _scaled(logits_NV[rows], ctx.temperature)
            if entropy_slope_N is None:
                assert slope_N is not None
                gradient_RV = scaled_RV.softmax(-1)
                gradient_RV *= -slope_N[rows, None]
            else:
                logprobs_RV = scaled_RV.log_softmax(-1)
                gradient_RV = logprobs_RV + entropy[0][rows, None]
                gradient_RV *= -entropy_slope_N[rows, None]
                if slope_N is not None:
                    gradient_RV -= slope_N[rows, None]
                gradient_RV *= logprobs_RV.exp_()
            if slope_N is not None:
                gradient_RV.scatter_add_(1, token_N[rows, None], slope_N[rows, None])
            gradient_NV[rows] = gradient_RV if ctx.temperature == 1.0 else gradient_RV.div_(ctx.temperature)
        return gradient_NV, None, None, None


def _pieces(logits_NV: Tensor) -> Iterator[slice]:
    """Slices of rows."""
    rows = max(1, PIECE.get(logits_NV.device.type, PIECE["cuda"]) // logits_NV.shape[1])
    for first in range(0, len(logits_NV), rows):
        yield slice(first, first + rows)


def _scaled(logits_RV: Tensor, temperature: float) -> Tensor:
    """In float32, over the temperature."""
    logits_RV = logits_RV.float()
    return logits_RV if temperature == 1.0 else logits_RV / temperature
