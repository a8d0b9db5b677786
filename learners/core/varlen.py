"""Attention of rows of several texts by one kernel, on a CUDA device in 16 bits.

The texts of all rows lie one after the other, without padding and without a mask; the kernel (flash attention, by
`torch.nn.attention.varlen`) computes each over its own keys. An answer that shares its prompt has a copy of the
prompt's keys before its own, and fewer queries than keys: the kernel aligns them at the end, so that the first query
sees the prompt.

B rows, H heads, K heads of keys and values, T positions, D width of a head, P positions that are not padding, S
segments, N keys of all segments.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

Segment = tuple[int, int, int, int]
"""(row, positions of its prompt that are seen, first position, position after the last); those of a row in order, the
prompt first."""
WIDEST = 256
"""Width of a head up to which the kernel works."""
OLDEST = (8, 0)
"""Compute capability from which on it does."""


@functools.lru_cache(maxsize=8)
def has_kernel(device: torch.device) -> bool:
    """Whether this build of torch and this device have the kernel."""
    has_device = device.type == "cuda" and torch.cuda.is_available()
    if not has_device or importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return False
    return torch.cuda.get_device_capability(device) >= OLDEST and torch.backends.cuda.is_flash_attention_available()


def takes(query_BHTD: Tensor, value_BKTD: Tensor, dtype: torch.dtype) -> bool:
    """Whether the kernel computes this attention in this dtype."""
    width = query_BHTD.shape[-1]
    fits = width <= WIDEST and width % 8 == 0 and width == value_BKTD.shape[-1]
    return fits and dtype in (torch.bfloat16, torch.float16) and has_kernel(query_BHTD.device)


@dataclass(frozen=True, slots=True)
class Packed:
    """Where the queries and the keys of all segments lie in B x T flat positions, and where segments end."""

    query_P: Tensor | None
    """None: every position, in order."""
    key_N: Tensor
    ends_q: Tensor
    """int32, [S + 1]."""
    ends_k: Tensor
    longest_q: int
    longest_k: int


@functools.lru_cache(maxsize=8)  # every layer asks for the same, or for one of two where some layers have a window
def packed(segments: tuple[Segment, ...], rows: int, width: int, window: int | None, device: torch.device) -> Packed:
    """The segments of a microbatch of `rows` rows of `width` positions. window: positions that a query sees, its own
    included; None: all."""
    query, key, sizes_q, sizes_k = list[Tensor](), list[Tensor](), [0], [0]
    for row, prompt, first, end in segments:
        at = row * width
        # A window that no query of this segment looks back beyond sees the end of the prompt only.
        seen = prompt if window is None else min(prompt, window - 1)
        query.append(torch.arange(at + first, at + end))
        key += [torch.arange(at + prompt - seen, at + prompt), query[-1]]
        sizes_q.append(end - first)
        sizes_k.append(seen + end - first)
    query_P = torch.cat(query)
    return Packed(
        query_P=None if len(query_P) == rows * width else query_P.to(device),
        key_N=torch.cat(key).to(device),
        ends_q=_ends(sizes_q, device),
        ends_k=_ends(sizes_k, device),
        longest_q=max(sizes_q),
        longest_k=max(sizes_k),
    )


def _ends(sizes: Iterable[int], device: torch.device) -> Tensor:
    return torch.tensor(list(accumulate(sizes)), dtype=torch.int32, device=device)


def packed_attention(
    query_BHTD: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    segments: tuple[Segment, ...],
    *,
    scale: float | None,
    window: int | None,
) -> Tensor:
    """Attention within the segments, [B, T, H, D]; 0 at padding. window: as in `packed`."""
    rows, heads, width, size = query_BHTD.shape
    found = packed(segments, rows, width, window, query_BHTD.device)
    query, key, value = (one.transpose(1, 2).flatten(0, 1) for one in (query_BHTD, key_BKTD, value_BKTD))
    mixed = attend(
        query if found.query_P is None else query[found.query_P],
        key[found.key_N],
        value[found.key_N],
        found,
        scale=scale,
        window=window,
    )
    if found.query_P is not None:
        mixed = mixed.new_zeros(rows * width, heads, size).index_copy(0, found.query_P, mixed)
    return mixed.view(rows, width, heads, size)


def attend(
    query: Tensor, key: Tensor, value: Tensor, found: Packed, *, scale: float | None, window: int | None
) -> Tensor:
    """The kernel, [P, H, D]."""
    from torch.nn.attention.varlen import varlen_attn

    found_THD = varlen_attn(
        query,
        key,
        value,
        found.ends_q,
        found.ends_k,
        found.longest_q,
        found.longest_k,
        scale=scale,
        # It counts the positions before the query's own.
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    mixed: Tensor = found_THD[0] if isinstance(found_THD, tuple) else found_THD
    return mixed
