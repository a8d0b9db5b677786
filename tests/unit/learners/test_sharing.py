"""Every architecture, packed and shared, against one plain forward pass per answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from learners.build import build_learner
from learners.config import LearnConfig, LoraConfig
from learners.core.batch import Batch
from learners.core.policy import Policy
from tests.architectures import ARCHITECTURES, VOCABULARY, WINDOW
from tests.unit.learner_builders import make_group, write_tokenizer

CPU = torch.device("cpu")
TEMPERATURE = 0.7
# The fused kernel knows no soft cap and no sinks, and chunked layers have a mask of their own.
UNSHARED = {"gemma2", "gpt_oss", "llama4"}


def mixed_groups():
    """Prompts and answers shorter and longer than the window, groups that share and groups of one."""
    rng = np.random.default_rng(3)
    groups = []
    shapes = [(3 * WINDOW, [4, 5, 3]), (3, [4, 4]), (2, [3 * WINDOW]), (WINDOW, [WINDOW, 2]), (2, [3])]
    for ordinal, (prompt, answers) in enumerate(shapes):
        drawn = [rng.integers(1, VOCABULARY, length).tolist() for length in answers]
        groups.append(make_group(ordinal, rng.integers(1, VOCABULARY, prompt).tolist(), drawn, range(len(answers))))
    return groups


def one_by_one(model, batch):
    """Log-probs of the response tokens, [N], from a plain forward pass per answer."""
    pieces = []
    for rollout, start in enumerate(batch.start_R):
        prompt = batch.prompts[batch.group_R[rollout]]
        answer = batch.token_N[start : start + batch.length_R[rollout]]
        ids = torch.from_numpy(np.concatenate([prompt, answer]))
        logprobs = (model(input_ids=ids[None], use_cache=False).logits[0] / TEMPERATURE).log_softmax(-1)
        pieces.append(logprobs[len(prompt) - 1 : -1].gather(-1, ids[len(prompt) :, None])[:, 0])
    return torch.cat(pieces)


def gradient(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_shared_and_plain_rows_of_one_microbatch_equal_one_answer_at_a_time(tmp_path, name):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(ARCHITECTURES[name]()).save_pretrained(tmp_path)
    config = LearnConfig(kl_coefficient=0.0, advantages="group")
    policy = Policy(config, model=str(tmp_path), temperature=TEMPERATURE)
    layout = policy.layout
    assert layout.share == (name not in UNSHARED)
    batch = Batch.of(mixed_groups())
    microbatches = layout.microbatches(batch, range(batch.num_rollouts), CPU)
    assert len(microbatches) == 1
    assert (microbatches[0].mask_B1TT is not None) == layout.share
    expected = one_by_one(policy.model, batch)
    found = torch.zeros(batch.num_tokens).index_add(0, microbatches[0].index_M, policy.logprobs(microbatches[0]))
    assert (found - expected).abs().max().item() <= 1e-5
    weights = torch.linspace(-1, 1, batch.num_tokens)
    expected_gradient = gradient(policy.model, weights @ expected)
    difference = gradient(policy.model, weights @ found) - expected_gradient
    assert (difference.norm() / expected_gradient.norm()).item() <= 1e-5


@pytest.mark.parametrize("name", ["mistral_window", "gemma3"])
def test_a_window_hides_by_position_in_the_conversation_not_by_column(tmp_path, name):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(ARCHITECTURES[name]()).save_pretrained(tmp_path)
    config = LearnConfig(kl_coefficient=0.0, advantages="group")
    policy = Policy(config, model=str(tmp_path), temperature=1.0)
    layout = policy.layout
    assert layout.window == WINDOW
    assert layout.mask == ("windowed" if name == "mistral_window" else "by_kind")
    assert policy.base.config.sliding_window == WINDOW
    batch = Batch.of([make_group(0, [3, 4, 5, 6], [[7] * WINDOW, [8, 9, 10]], [0.0, 0.0])])
    (microbatch,) = layout.microbatches(batch, [0, 1], CPU)
    mask = microbatch.mask_B1TT
    windowed = mask if name == "mistral_window" else mask["sliding_attention"]
    # Columns: a prompt of 4, seven tokens of the first answer, two of the second at positions 4 and 5.
    assert windowed[0, 0, 11].nonzero().flatten().tolist() == [0, 1, 2, 3, 11]
    assert windowed[0, 0, 10].nonzero().flatten().tolist() == [3, 4, 5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("name", ["mistral_window", "gemma3", "qwen2_window"])
@pytest.mark.parametrize(
    "changes", [{}, {"lora": LoraConfig(r=2), "gradient_checkpointing": True}], ids=["all", "lora"]
)
def test_a_step_with_critic_and_reference_is_the_same_shared_and_apart(tmp_path, name, changes):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(ARCHITECTURES[name]()).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    found = []
    for share in (True, False):
        config = LearnConfig(share_prompts=share, minibatches=1, importance_cap=50.0, **changes)
        report, _ = build_learner(config, model=str(tmp_path), temperature=1.0, seed=0).step(0, mixed_groups())
        assert (report.metrics["learn/shared_prompt/share"] > 0) == share
        found.append(report.metrics)
    for key in ("grad_norm/max", "critic_grad_norm/max", "policy_loss/mean", "value_loss/mean", "mismatch_kl/mean"):
        assert found[0][f"learn/{key}"] == pytest.approx(found[1][f"learn/{key}"], rel=1e-3, abs=1e-6)
