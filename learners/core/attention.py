"""Attention as plain matrix products, for many short rows on a processor.

PyTorch's fused kernel is the faster one for long rows, and in float32. For short rows in bfloat16 these products are
two to three times as fast, forward and backward (nine heads: 16 rows of 160 tokens 19 ms against 47, one row of 1,024
tokens 35 against 29). There are two uses:

- `use_plain_attention` for teaching: forward too, with scores that are rounded to bfloat16;
- `use_plain_backward` for policies, whose log-probs are compared with an engine's: the forward pass stays the fused
  kernel's, bit for bit, and only the gradients are computed by plain products.

B rows, H heads, K heads of keys and values, T token positions, D width of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from learners.core.segments import NAME as SEGMENTS
from learners.core.segments import use_with_plans

NAME = "solon_plain"


def use_plain_attention(network: Any) -> None:
    """Let a Hugging Face model compute its attention by `plain_attention`."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, plain_attention)
    network.set_attn_implementation(NAME)


def plain_attention(
    _layer: Any,
    query_BHTD: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **settings: Any,
) -> tuple[Tensor, None]:
    """The attention function of a layer, as Hugging Face models call it; [B, T, H, D].

    attention_mask: added to the scores, [B, 1, T, T]. Raises ValueError without a mask, with dropout, and for a layer
    that bounds its scores or has sinks.
    """
    if unknown := sorted(name for name in ("softcap", "s_aux") if settings.get(name) is not None):
        raise ValueError(f"got {', '.join(unknown)}, expected a layer of plain attention")
    if attention_mask is None or dropout:
        raise ValueError("got no attention mask, or dropout; expected an additive mask and no dropout")
    rows, heads, width, size = query_BHTD.shape
    shared = rows * key_BKTD.shape[1]
    # Heads that share keys stand below one another, so that keys and values are never repeated.
    query = (query_BHTD * scaling).reshape(shared, -1, size)
    key, value = key_BKTD.reshape(shared, width, size), value_BKTD.reshape(shared, width, size)
    scores = torch.bmm(query, key.transpose(1, 2))
    scores = scores.view(rows, heads, width, width).add_(attention_mask)
    weights = torch.softmax(scores, dim=-1).view(shared, -1, width)
    mixed_BHTD = torch.bmm(weights, value).view(rows, heads, width, size)
    return mixed_BHTD.transpose(1, 2).contiguous(), None


BACKWARD = "solon_plain_backward"
FUSED = frozenset({"sdpa", BACKWARD, SEGMENTS})
"""Implementations whose forward pass is the fused kernel's."""
WITH_PLANS = frozenset({BACKWARD, SEGMENTS})
"""Those that take what a row holds in place of a mask."""
LONGEST = 768
"""Longest row for which plain products are used: beyond it, the fused kernel is as fast."""
LARGEST = 2**25
"""Most weights of a layer for which plain products are used: four copies of them in float32 are 0.5 GiB."""


def use_plain_backward(network: Any) -> None:
    """Let a Hugging Face model with fused attention compute the gradients of short rows by plain products."""
    use_with_plans(network, BACKWARD, _attention)


def _attention(
    layer: Any, query_BHTD: Tensor, key_BKTD: Tensor, value_BKTD: Tensor, attention_mask: Tensor | None, **settings: Any
) -> Tensor:
    """Plain products behind the fused kernel where they are the faster ones, [B, T, H, D]."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    width, is_causal, kind = query_BHTD.shape[2], settings.get("is_causal"), query_BHTD.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query_BHTD.dtype
    short = dtype == torch.bfloat16 and width == key_BKTD.shape[2] <= LONGEST
    short &= query_BHTD.shape[0] * query_BHTD.shape[1] * width * width <= LARGEST
    short &= query_BHTD.shape[-1] == value_BKTD.shape[-1]
    plain = not settings.get("dropout") and settings.get("position_bias") is None and is_causal in (None, True)
    if not (short and plain and torch.is_grad_enabled() and getattr(layer, "is_causal", True)):
        fused = sdpa_attention_forward(layer, query_BHTD, key_BKTD, value_BKTD, attention_mask, **settings)
        mixed_BTHD: Tensor = fused[0]
        return mixed_BTHD
    heads = (one.to(dtype) for one in (query_BHTD, key_BKTD, value_BKTD))
    mixed_BHTD: Tensor = _PlainBackward.apply(  # type: ignore[no-untyped-call]
        *heads, attention_mask, settings.get("scaling")
    )
    return mixed_BHTD.transpose(1, 2).contiguous()


class _PlainBackward(torch.autograd.Function):
    """softmax(q k' s + mask) v: forward by the fused kernel, backward with the weights computed again."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, mask)
        ctx.scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        times = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=ctx.scaling
        )

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        """With weights w and outputs o = w v: dv = w' do, ds = w (do v' - row sum of w do v'), dq = ds k s,
        dk = ds' q s."""
        query, key, value, mask = ctx.saved_tensors
        rows, heads, width, size = query.shape
        shared = rows * key.shape[1]
        with torch.autocast(query.device.type, enabled=False):
            # Heads that share keys stand below one another, so that keys and values are never repeated.
            query_, slope_ = (one.reshape(shared, -1, size) for one in (query, slope.to(query.dtype)))
            key_, value_ = key.reshape(shared, width, size), value.reshape(shared, width, size)
            # In float32: rounded scores would change the weights by several percent.
            scores = torch.bmm(query_.float() * ctx.scaling, key_.float().transpose(1, 2))
            scores = scores.view(rows, heads, width, width)
            seen = torch.ones(width, width, dtype=torch.bool).tril() if mask is None else mask
            scores = scores.masked_fill_(~seen, -math.inf) if seen.dtype == torch.bool else scores.add_(seen)
            weights = torch.softmax(scores, dim=-1)
            if seen.dtype == torch.bool:
                weights = weights.masked_fill_(~seen, 0.0)  # where a query sees nothing, the softmax is not a number
            slope_of_weights = torch.bmm(slope_, value_.transpose(1, 2)).view_as(weights).float()
            slope_of_weights -= (slope_of_weights * weights).sum(-1, keepdim=True)
            slope_of_scores = slope_of_weights.mul_(weights).mul_(ctx.scaling).to(query.dtype).view(shared, -1, width)
            weights_ = weights.to(query.dtype).view(shared, -1, width)
            slope_of_query = torch.bmm(slope_of_scores, key_).view_as(query)
            slope_of_key = torch.bmm(slope_of_scores.transpose(1, 2), query_).view_as(key)
            slope_of_value = torch.bmm(weights_.transpose(1, 2), slope_).view_as(value)
        return slope_of_query, slope_of_key, slope_of_value, None, None
