"""Which tokens may be sampled: the filters of an engine's sampler, computed from logits alone.

The engine that samples and the learner that weights the samples use the same functions, so both use the same
distribution: softmax over the allowed tokens. Every filter keeps tokens at or above a threshold, so that tokens with
equal logits are kept or dropped together.

Shapes: N positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from solon.records import Filters

if TYPE_CHECKING:
    from torch import Tensor

FLOOR = -1e30
"""Logit of an excluded token: probability 0 in every precision, and finite, so that 0 times it is 0."""
HEAD = 1024
"""Number of most likely tokens in which `top_p` is searched before the whole vocabulary is sorted."""
ELEMENTS = 1 << 24
"""Most logits that are sorted at once: sorting needs several times their memory."""


def allowed_tokens(
    logits_NV: Tensor, filters: Filters, *, place_N: Tensor | None = None, end_ids: Sequence[int] = ()
) -> Tensor:
    """True for the tokens that may be sampled, [N, V]; no gradient.

    In vLLM's order: `min_tokens`, `min_p`, `top_k`, `top_p`, each applied to the result of the previous one. At least
    one token is allowed at every position. logits_NV: divided by the temperature. place_N: tokens of the answer before
    each position, and end_ids: tokens that end it; both for `min_tokens`.
    """
    import torch

    with torch.no_grad():
        allowed_NV = torch.empty_like(logits_NV, dtype=torch.bool)
        rows = max(1, ELEMENTS // logits_NV.shape[-1])
        for start in range(0, len(logits_NV), rows):
            part = slice(start, start + rows)
            chunk = logits_NV[part].detach()
            if filters.min_tokens and end_ids:
                assert place_N is not None, "min_tokens needs the place of every position in its answer"
                chunk = chunk.clone()
                early = (place_N[part] < filters.min_tokens)[:, None]
                ends = torch.tensor(list(end_ids), device=chunk.device)
                chunk[:, ends] = chunk[:, ends].masked_fill(early, -math.inf)
            allowed_NV[part] = (chunk >= _threshold(chunk, filters)) & (chunk > -math.inf)
        return allowed_NV


def _threshold(logits_NV: Tensor, filters: Filters) -> Tensor:
    """The lowest allowed logit, [N, 1]."""
    import torch

    lowest_N1 = torch.full_like(logits_NV[:, :1], -math.inf)
    if filters.min_p:
        lowest_N1 = logits_NV.amax(-1, keepdim=True) + math.log(filters.min_p)
    top_k = filters.top_k if 0 < filters.top_k < logits_NV.shape[-1] else None
    if top_k:
        lowest_N1 = torch.maximum(lowest_N1, logits_NV.topk(top_k, dim=-1).values[:, -1:])
    if filters.top_p < 1:
        kept_NV = logits_NV.masked_fill(logits_NV < lowest_N1, -math.inf)
        lowest_N1 = torch.maximum(lowest_N1, _nucleus(kept_NV, filters.top_p, most=top_k))
    return lowest_N1


def _nucleus(logits_NV: Tensor, top_p: float, *, most: int | None) -> Tensor:
    """The lowest logit of the most likely tokens that together reach `top_p`, [N, 1]. most: number of finite tokens."""
    vocabulary = logits_NV.shape[-1]
    total_N1 = logits_NV.logsumexp(-1, keepdim=True)
    for width in (min(most or HEAD, vocabulary), vocabulary):
        everything = width == vocabulary
        values_NK = logits_NV.sort(-1, descending=True).values if everything else logits_NV.topk(width, -1).values
        probs_NK = (values_NK - total_N1).exp()
        before_NK = probs_NK.cumsum(-1) - probs_NK
        reached = before_NK[:, -1] + probs_NK[:, -1] >= top_p
        if most or everything or bool(reached.all()):
            break
    number_N1 = (before_NK < top_p).sum(-1, keepdim=True).clamp(min=1)
    return values_NK.gather(-1, number_N1 - 1)
