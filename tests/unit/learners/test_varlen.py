"""Segments laid end to end for one kernel, with loops in place of the kernel, which only a GPU has."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from learners.core import segments, varlen
from learners.core.segments import plan_of, segment_attention
from learners.core.varlen import Packed, has_kernel, packed_attention

PLAN = [(0, 0, 0, 5), (0, 5, 5, 12), (0, 5, 12, 13), (1, 0, 0, 9)]


def loops(
    query: Tensor, key: Tensor, value: Tensor, found: Packed, *, scale: float | None, window: int | None
) -> Tensor:
    """As the kernel's documentation has it: the last query of a text stands at its last key."""
    mixed = torch.zeros_like(query)
    ends_q, ends_k = found.ends_q.tolist(), found.ends_k.tolist()
    for number in range(len(ends_q) - 1):
        own, of = slice(ends_q[number], ends_q[number + 1]), slice(ends_k[number], ends_k[number + 1])
        asked, known = own.stop - own.start, of.stop - of.start
        assert asked <= found.longest_q
        assert known <= found.longest_k
        sees = torch.ones(asked, known).tril(known - asked).triu(known - asked - (window or 10**6) + 1) > 0
        keys, values = (one[of].repeat_interleave(query.shape[1] // key.shape[1], 1) for one in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query[own], keys) * (scale or 1 / math.sqrt(query.shape[2]))
        mixed[own] = torch.einsum("hqk,khd->qhd", scores.masked_fill(~sees, -math.inf).softmax(-1), values)
    return mixed


@pytest.mark.parametrize("window", [None, 1, 3, 6, 40])
def test_texts_end_to_end_give_the_attention_and_gradients_of_segments(
    window: int | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(varlen, "attend", loops)
    torch.manual_seed(0)
    tensors = [torch.randn(2, heads, 14, 4, requires_grad=True) for heads in (4, 2, 2)]
    expected = segment_attention(*tensors, plan_of(PLAN), sliding_window=window)
    found = packed_attention(*tensors, tuple(PLAN), scale=None, window=window)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    sides = [torch.autograd.grad((side * weights).sum(), tensors) for side in (found, expected)]
    for ours, theirs in zip(*sides, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_keys_of_a_prompt_are_repeated_for_its_answers_and_padding_is_left_out():
    found = varlen.packed(tuple(PLAN), 2, 14, None, torch.device("cpu"))
    assert found.query_P is not None
    assert (len(found.query_P), len(found.key_N)) == (13 + 9, 13 + 9 + 2 * 5)
    assert found.ends_q.tolist() == [0, 5, 12, 13, 22]
    assert found.ends_k.tolist() == [0, 5, 17, 23, 32]
    windowed = varlen.packed(tuple(PLAN), 2, 14, 3, torch.device("cpu"))
    assert windowed.ends_k.tolist() == [0, 5, 14, 17, 26]  # a window of 3 reaches two tokens back
    assert varlen.packed(((0, 0, 0, 4), (1, 0, 0, 4)), 2, 4, None, torch.device("cpu")).query_P is None


def test_the_kernel_is_used_where_it_exists_and_loops_of_segments_elsewhere(monkeypatch: pytest.MonkeyPatch):
    assert not has_kernel(torch.device("cpu"))
    monkeypatch.setattr(varlen, "has_kernel", lambda _: True)
    head = torch.zeros(1, 2, 3, 64)
    assert [varlen.takes(head, head, dtype) for dtype in (torch.bfloat16, torch.float16, torch.float32)] == [
        True,
        True,
        False,
    ]
    for width, of_values in ((60, 60), (512, 512), (64, 32)):
        query, value = torch.zeros(1, 2, 3, width), torch.zeros(1, 2, 3, of_values)
        assert not varlen.takes(query, value, torch.bfloat16)
    calls = []
    monkeypatch.setattr(varlen, "attend", lambda *given, **named: calls.append(1) or loops(*given, **named))
    tensors = [torch.randn(2, heads, 14, 8).bfloat16() for heads in (4, 2, 2)]
    used = segment_attention(*tensors, plan_of(PLAN))
    monkeypatch.setattr(segments, "takes", lambda *_: False)
    torch.testing.assert_close(used, segment_attention(*tensors, plan_of(PLAN)), atol=0.05, rtol=0.05)
    assert calls == [1]
