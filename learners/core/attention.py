"""Attention as plain matrix products, for many short rows on a processor.

PyTorch's fused kernel is the faster one for long rows, and in float32. For short rows in bfloat16 these products are
two to three times as fast, forward and backward (nine heads: 16 rows of 160 tokens 19 ms against 47, one row of 1,024
tokens 35 against 29). The scores are rounded to bfloat16, which the fused kernel avoids, so this is for teaching, not
for log-probs that are compared with an engine's.

B rows, H heads, K heads of keys and values, T token positions, D width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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
