"""Log-probs in chunks and attention by segments on a CUDA device."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from learners.config import LearnConfig
from learners.core import head
from learners.core.batch import Batch
from learners.core.policy import Policy
from tests.architectures import ARCHITECTURES, VOCABULARY
from tests.unit.learners.test_sharing import mixed_groups


@pytest.mark.parametrize("name", ["llama", "mistral_window", "gemma3", "cohere2"])
def test_chunks_and_segments_on_the_device_give_the_numbers_of_masks_and_whole_logits_on_the_host(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(ARCHITECTURES[name]()).save_pretrained(tmp_path)
    batch, found = Batch.of(mixed_groups()), []
    for device, dense, rows in (("cpu", 10**6, 10**6), ("cuda", 0, 5)):
        monkeypatch.setitem(head.CHUNK, device, rows * VOCABULARY)
        config = LearnConfig(kl_coefficient=0.0, advantages="group", dtype="float32", device=device)
        policy = Policy(config, model=str(tmp_path), temperature=0.7)
        assert policy.layout.segments
        layout = dataclasses.replace(policy.layout, dense=dense)
        microbatch = layout.in_one(batch, range(batch.num_rollouts), policy.device)
        logprobs_M = policy.logprobs(microbatch)
        (torch.linspace(-1, 1, batch.num_tokens, device=device)[microbatch.index_M] @ logprobs_M).backward()
        gradient = torch.cat([p.grad.flatten().cpu() for p in policy.model.parameters() if p.grad is not None])
        logprobs_N = torch.zeros(batch.num_tokens).index_add(0, microbatch.index_M.cpu(), logprobs_M.detach().cpu())
        found.append((logprobs_N, gradient))
    (expected_N, expected), (found_N, gradient) = found
    torch.testing.assert_close(found_N, expected_N, atol=1e-3, rtol=1e-3)
    assert float((gradient - expected).norm()) <= 1e-3 * float(expected.norm())
