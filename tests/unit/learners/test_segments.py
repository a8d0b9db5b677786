"""Attention by segments against dense masks, against rows of one answer, and against loops."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from learners.config import LearnConfig
from learners.core import segments
from learners.core.batch import Batch
from learners.core.packing import Layout
from learners.core.policy import Policy
from learners.core.segments import is_plan, plan_of, segment_attention
from tests.architectures import ARCHITECTURES, WINDOW
from tests.unit.learner_builders import make_group, write_llama
from tests.unit.learners.test_sharing import CPU, TEMPERATURE, UNSHARED, gradient, mixed_groups, one_by_one

DIFFERENCES = 3e-5


def policy_of(folder: Path, name: str, **changes: Any) -> tuple[Policy, Layout]:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(ARCHITECTURES[name]()).save_pretrained(folder)
    config = LearnConfig(kl_coefficient=0.0, advantages="group", **changes)
    policy = Policy(config, model=str(folder), temperature=TEMPERATURE)
    return policy, policy.layout


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in UNSHARED])
def test_segments_give_the_log_probs_and_gradients_of_dense_masks_and_of_rows_apart(
    name: str, recompute: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if recompute and name not in {"llama", "gemma3", "mistral_window"}:
        pytest.skip("recomputing is the same code for every architecture; three stand for all")
    monkeypatch.setattr(segments, "BLOCK", 4)
    policy, layout = policy_of(tmp_path, name, gradient_checkpointing=recompute)
    assert layout.segments
    batch = Batch.of(mixed_groups())
    (dense,) = layout.microbatches(batch, range(batch.num_rollouts), CPU)
    (planned,) = dataclasses.replace(layout, dense=0).microbatches(batch, range(batch.num_rollouts), CPU)
    assert isinstance(planned.mask_B1TT, Tensor)
    assert is_plan(planned.mask_B1TT)
    assert isinstance(dense.mask_B1TT, dict) or not is_plan(dense.mask_B1TT)
    weights = torch.linspace(-1, 1, batch.num_tokens)
    expected = one_by_one(policy.model, batch)
    wanted = gradient(policy.model, weights @ expected)
    for microbatch in (dense, planned):
        found = torch.zeros(batch.num_tokens).index_add(0, microbatch.index_M, policy.logprobs(microbatch))
        assert (found - expected).abs().max().item() <= DIFFERENCES
        difference = gradient(policy.model, weights @ found) - wanted
        assert (difference.norm() / wanted.norm()).item() <= DIFFERENCES


def naive(query: Tensor, key: Tensor, value: Tensor, plan: list[tuple[int, ...]], window: int | None) -> Tensor:
    """Query by query, head by head, [B, T, H, D]."""
    heads, shared = query.shape[1], query.shape[1] // key.shape[1]
    mixed = torch.zeros(query.shape[0], query.shape[2], heads, query.shape[3])
    for row, prompt, first, end in plan:
        for at in range(first, end):
            seen = [*range(prompt), *range(first, at + 1)]
            seen = seen[-window:] if window else seen
            for head in range(heads):
                scores = torch.stack([query[row, head, at] @ key[row, head // shared, one] for one in seen])
                weights = (scores / math.sqrt(query.shape[3])).softmax(0)
                mixed[row, at, head] = sum(
                    w * value[row, head // shared, o] for w, o in zip(weights, seen, strict=True)
                )
    return mixed


@pytest.mark.parametrize("window", [None, 1, 3, 6, 40])
@pytest.mark.parametrize("block", [1, 3, 64])
def test_a_query_sees_the_prompt_and_its_own_segment_up_to_itself_within_the_window(
    window: int | None, block: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(segments, "BLOCK", block)
    plan = [(0, 0, 0, 5), (0, 5, 5, 12), (0, 5, 12, 13), (1, 0, 0, 9)]
    torch.manual_seed(0)
    tensors = [torch.randn(2, heads, 14, 4, requires_grad=True) for heads in (4, 2, 2)]
    found, expected = (
        segment_attention(*tensors, plan_of(plan), sliding_window=window),
        naive(*tensors, plan, window),
    )
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    sides = [torch.autograd.grad((side * weights).sum(), tensors) for side in (found, expected)]
    for ours, theirs in zip(*sides, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_long_plain_rows_of_a_window_have_no_mask_either_and_short_ones_are_the_models_own(tmp_path: Path):
    _, layout = policy_of(tmp_path, "mistral_window", share_prompts=False)
    assert (layout.share, layout.segments) == (False, True)
    batch = Batch.of(mixed_groups())
    (own,) = layout.microbatches(batch, range(batch.num_rollouts), CPU)
    assert own.mask_B1TT is None
    (planned,) = dataclasses.replace(layout, dense=WINDOW).microbatches(batch, range(batch.num_rollouts), CPU)
    assert isinstance(planned.mask_B1TT, Tensor)
    assert is_plan(planned.mask_B1TT)
    policy, _ = policy_of(tmp_path, "mistral_window")
    torch.testing.assert_close(policy.logprobs(planned), policy.logprobs(own), atol=1e-5, rtol=1e-5)


def test_a_layer_that_attends_in_its_own_way_is_refused():
    one = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ValueError, match="softcap"):
        segment_attention(one, one, one, plan_of([(0, 0, 0, 2)]), softcap=3.0)


def test_no_tensor_of_a_long_shared_row_has_the_square_of_its_length(tmp_path: Path):
    config = LearnConfig(kl_coefficient=0.0, advantages="group", max_tokens_per_microbatch=4096)
    policy = Policy(config, model=write_llama(tmp_path, max_position_embeddings=4096), temperature=1.0)
    rng = np.random.default_rng(0)
    answers = [rng.integers(3, 30, 900).tolist() for _ in range(3)]
    batch = Batch.of([make_group(0, rng.integers(3, 30, 1000).tolist(), answers, [0.0, 1.0, 2.0])])
    (microbatch,) = policy.layout.microbatches(batch, range(3), CPU)
    assert microbatch.input_BT.shape == (1, 1000 + 3 * 899)
    sizes: dict[int, int] = {}

    def kept(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor):
        policy.logprobs(microbatch)
    assert max(sizes.values()) <= 4 * segments.BLOCK * (2048 + segments.BLOCK)
