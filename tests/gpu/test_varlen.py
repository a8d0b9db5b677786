"""One kernel for all texts of a microbatch on a CUDA device, against the segments of the host in float32."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from learners.config import LearnConfig
from learners.core import varlen
from learners.core.batch import Batch
from learners.core.policy import Policy
from learners.core.segments import plan_of, segment_attention
from tests.architectures import ARCHITECTURES
from tests.unit.learner_builders import make_group, write_llama
from tests.unit.learners.test_sharing import mixed_groups

CUDA = torch.device("cuda:0")
PLAN = [(0, 0, 0, 300), (0, 300, 300, 420), (0, 300, 420, 421), (1, 0, 0, 500)]

pytestmark = pytest.mark.skipif(not varlen.has_kernel(CUDA), reason="this device has no kernel for texts of any length")


@pytest.mark.parametrize(("dtype", "window"), itertools.product(("bfloat16", "float16", "float32"), (None, 1, 64, 400)))
def test_outputs_and_gradients_are_those_of_segments_on_the_host(dtype: str, window: int | None):
    torch.manual_seed(0)
    narrow: torch.dtype = getattr(torch, dtype)
    inputs = [torch.randn(2, heads, 510, 64).to(narrow).float() for heads in (8, 2, 2)]
    weights = torch.randn(2, 510, 8, 64)
    found: list[list[Tensor]] = []
    for device, kind in (("cpu", torch.float32), ("cuda", narrow)):
        tensors = [one.to(device, kind).requires_grad_() for one in inputs]
        mixed = segment_attention(*tensors, plan_of(PLAN), sliding_window=window)
        gradients = torch.autograd.grad((mixed.float() * weights.to(device)).sum(), tensors)
        found.append([one.detach().float().cpu() for one in (mixed, *gradients)])
    bound = 1e-4 if dtype == "float32" else 0.02
    for expected, ours in zip(*found, strict=True):
        assert float((ours - expected).norm()) <= bound * float(expected.norm())


@pytest.mark.parametrize("name", ["llama", "mistral_window", "gemma3"])
def test_a_policy_in_16_bits_uses_it_and_gives_the_log_probs_of_the_host(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(ARCHITECTURES[name]()).save_pretrained(tmp_path)
    calls, attend = [], varlen.attend
    monkeypatch.setattr(varlen, "attend", lambda *given, **named: calls.append(1) or attend(*given, **named))
    batch, found = Batch.of(mixed_groups()), []
    for device, dtype in (("cpu", "float32"), ("cuda", "bfloat16")):
        config = LearnConfig(kl_coefficient=0.0, advantages="group", dtype=dtype, device=device)
        policy = Policy(config, model=str(tmp_path), temperature=1.0)
        layout = policy.layout if device == "cuda" else dataclasses.replace(policy.layout, dense=0)
        microbatch = layout.in_one(batch, range(batch.num_rollouts), policy.device)
        logprobs_M = policy.logprobs(microbatch).detach().cpu()
        found.append(torch.zeros(batch.num_tokens).index_add(0, microbatch.index_M.cpu(), logprobs_M))
    assert bool(calls) == all(head % 8 == 0 for head in [policy.base.config.get_text_config().head_dim])
    torch.testing.assert_close(found[1], found[0], atol=0.05, rtol=0.05)


def test_a_row_of_32768_tokens_takes_memory_in_proportion_to_its_length(tmp_path: Path):
    peaks: list[int] = []
    for length in (8192, 32768):
        config: dict[str, Any] = {"hidden_size": 256, "num_attention_heads": 8, "max_position_embeddings": length}
        model = write_llama(tmp_path / str(length), **config)
        settings = LearnConfig(kl_coefficient=0.0, advantages="group", device="cuda", max_tokens_per_microbatch=length)
        policy = Policy(settings, model=model, temperature=1.0)
        prompt, answer = [3 + n % 20 for n in range(length // 2)], [5 + n % 20 for n in range(length // 8)]
        batch = Batch.of([make_group(0, prompt, [answer] * 4, [0.0, 1.0, 2.0, 3.0])])
        microbatch = policy.layout.in_one(batch, range(4), policy.device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        policy.logprobs(microbatch).sum().backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] <= 4.5 * peaks[0]
