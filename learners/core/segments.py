"""Attention of rows that hold several texts, without a mask over the whole row.

A mask of a row has the square of its length: 32,768 tokens need 1 GiB of booleans, and attention under a mask computes
also what the mask hides. Here every text of a row, its segment, is computed by itself:

- on a GPU in 16 bits, all segments by one kernel (`learners.core.varlen`);
- else the prompt, and a row with one answer, causal over itself: the fused kernel, no mask at all;
- and an answer: its queries over the keys of the prompt and its own. On a GPU the fused kernel takes that form; on a
  CPU, and where a layer has a window, a few queries at a time, whose masks are views of one matrix for all of them.

The microbatch says what a row holds (`plan_of`) in place of its mask, so that it reaches every layer unchanged, also
when activations are recomputed.

B rows, H heads, K heads of keys and values, T positions, D width of a head, S segments, Q queries, C queries of a
block.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from learners.core.varlen import Segment, packed_attention, takes

NAME = "solon_segments"
Attention = Callable[..., Tensor]
"""Of a layer, query, key, value, mask and settings: [B, T, H, D]."""
BLOCK = 256
"""Queries of a block: with fewer, a processor reads the keys more often than their products hide."""


def plan_of(segments: Iterable[Segment]) -> Tensor:
    """What the rows of a microbatch hold, in place of an attention mask: int64 on the CPU, [1, 1, S, 4].

    Models pass a tensor of four axes to their layers as it is.
    """
    return torch.tensor([one for one in segments if one[3] > one[2]], dtype=torch.int64)[None, None]


def is_plan(attention_mask: Tensor | None) -> bool:
    return attention_mask is not None and attention_mask.dtype == torch.int64 and attention_mask.dim() == 4


def use_segments(network: Any) -> None:
    """Let a Hugging Face model with fused attention take plans; masks work as before."""
    use_with_plans(network, NAME, _fused)


def use_with_plans(network: Any, name: str, attention: Attention) -> None:
    """Let a Hugging Face model with fused attention take plans, and compute attention under masks by a function, which
    is registered under a name. A model that calls no attention function by name stays as it is."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    if not network._can_set_attn_implementation():
        return

    def attend(
        layer: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
    ) -> tuple[Tensor, None]:
        if attention_mask is not None and is_plan(attention_mask):
            return segment_attention(query, key, value, attention_mask, **settings), None
        return attention(layer, query, key, value, attention_mask, **settings), None

    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, sdpa_mask)
    network.set_attn_implementation(name)


def _fused(
    layer: Any, query_BHTD: Tensor, key_BKTD: Tensor, value_BKTD: Tensor, attention_mask: Tensor | None, **settings: Any
) -> Tensor:
    """The fused kernel, as it is without plans."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    mixed_BTHD: Tensor = sdpa_attention_forward(layer, query_BHTD, key_BKTD, value_BKTD, attention_mask, **settings)[0]
    return mixed_BTHD


def segment_attention(
    query_BHTD: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    plan: Tensor,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **settings: Any,
) -> Tensor:
    """Attention within the segments, [B, T, H, D]; 0 at padding. sliding_window: positions that a query sees, its own
    included. Raises ValueError for a layer with dropout, a position bias, a soft cap or sinks."""
    if unknown := sorted(
        name for name in ("dropout", "position_bias", "softcap", "s_aux") if settings.get(name) not in (None, 0.0)
    ):
        raise ValueError(f"got {', '.join(unknown)}, expected a layer of plain attention")
    kind = query_BHTD.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query_BHTD.dtype
    segments: list[Segment] = [(row, prompt, first, end) for row, prompt, first, end in plan[0, 0].tolist()]
    window = sliding_window or None
    if takes(query_BHTD, value_BKTD, dtype):
        query, key, value = (one.to(dtype) for one in (query_BHTD, key_BKTD, value_BKTD))
        return packed_attention(query, key, value, tuple(segments), scale=scaling, window=window)
    by_row: dict[int, list[Segment]] = {}
    for segment in segments:
        by_row.setdefault(segment[0], []).append(segment)
    rows = []
    # Disjoint pieces by `split`: the gradient of a slice would be a whole tensor for every piece.
    pieces = (torch.split(one.to(dtype), 1) for one in (query_BHTD, key_BKTD, value_BKTD))
    for row, (query, key, value) in enumerate(zip(*pieces, strict=True)):
        rows.append(_row(query, key, value, by_row[row], scaling, window))
    return torch.cat(rows).transpose(1, 2).contiguous()


def _row(
    query: Tensor, key: Tensor, value: Tensor, segments: list[Segment], scale: float | None, window: int | None
) -> Tensor:
    """One row, [1, H, T, D]."""
    width = query.shape[2]
    sizes = [end - first for _, _, first, end in segments]
    padding = width - sum(sizes)
    queries, keys, values = (torch.split(one, [*sizes, padding], dim=2) for one in (query, key, value))
    mixed = []
    for number, (_, prompt, _, _) in enumerate(segments):
        own_keys, own_values = keys[number], values[number]
        # A window that no query of this segment looks back beyond sees the end of the prompt only.
        seen = prompt if window is None else min(prompt, window - 1)
        if seen:
            own_keys = torch.cat([keys[0][:, :, prompt - seen :], own_keys], dim=2)
            own_values = torch.cat([values[0][:, :, prompt - seen :], own_values], dim=2)
        mixed.append(_causal(queries[number], own_keys, own_values, scale, window))
    return functional.pad(torch.cat(mixed, dim=2), (0, 0, 0, padding))


def _causal(query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: int | None) -> Tensor:
    """Attention of the last Q of the keys' positions, each over the keys up to its own, [1, H, Q, D]."""
    from torch.nn.attention.bias import causal_lower_right

    asked, known = query.shape[2], key.shape[2]
    grouped = query.shape[1] != key.shape[1]
    options: dict[str, Any] = {"scale": scale, "enable_gqa": grouped}
    if window is None or known <= window:
        if asked == known:
            return functional.scaled_dot_product_attention(query, key, value, is_causal=asked > 1, **options)
        if query.device.type == "cuda":
            mask: Any = causal_lower_right(asked, known)
            return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, **options)
    if grouped and query.device.type == "cuda":  # no fused kernel takes both a mask and shared heads there
        key, value = (one.repeat_interleave(query.shape[1] // one.shape[1], 1) for one in (key, value))
        options["enable_gqa"] = False
    reach = window or 1 << (known - 1).bit_length()
    band = _band(BLOCK, reach, query.dtype, query.device)
    mixed = []
    for block, first in zip(torch.split(query, BLOCK, dim=2), range(0, asked, BLOCK), strict=True):
        size = block.shape[2]
        end = known - asked + first + size
        start = max(0, end - size - reach + 1)
        mask = band[None, None, :size, reach - 1 + size - (end - start) : reach - 1 + size]
        keys, values = key[:, :, start:end], value[:, :, start:end]
        mixed.append(functional.scaled_dot_product_attention(block, keys, values, attn_mask=mask, **options))
    return torch.cat(mixed, dim=2)


@functools.lru_cache(maxsize=4)
def _band(block: int, reach: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What a block of queries adds to its scores: 0 for the `reach` keys that end at a query's own, [C, reach - 1 + C].

    Column `reach - 1 + c` is the key of query c, so that the mask of any block is a view of this matrix.
    """
    sees = torch.ones(block, reach - 1 + block, dtype=torch.bool, device=device).tril_(reach - 1).triu_()
    return torch.zeros(sees.shape, dtype=dtype, device=device).masked_fill_(~sees, -math.inf)
