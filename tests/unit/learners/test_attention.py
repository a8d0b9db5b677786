"""Attention as plain matrix products."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from learners.core.attention import plain_attention, use_plain_attention

CONFIG = LlamaConfig(
    vocab_size=50, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=6,
    num_key_value_heads=2, max_position_embeddings=64,
)  # fmt: skip


def test_outputs_and_gradients_are_those_of_the_fused_kernel():
    torch.manual_seed(0)
    network = LlamaForCausalLM(CONFIG)
    ids_BT = torch.randint(0, 50, (3, 20))
    sees_TT = torch.ones(20, 20, dtype=torch.bool).tril()
    sees_TT[10:, 3:7] = False
    bias_B1TT = torch.zeros(3, 1, 20, 20).masked_fill(~sees_TT, torch.finfo(torch.float32).min)
    found = []
    for plain in (False, True):
        if plain:
            use_plain_attention(network)
        network.zero_grad()
        logits_BTV = network(input_ids=ids_BT, attention_mask=bias_B1TT, use_cache=False).logits
        logits_BTV.square().mean().backward()
        found.append([logits_BTV.detach(), *(weight.grad.clone() for weight in network.parameters())])
    for fused, own in zip(*found, strict=True):
        torch.testing.assert_close(own, fused, rtol=1e-4, atol=1e-6)


def test_a_missing_mask_dropout_and_bounded_scores_are_refused():
    heads = torch.zeros(1, 2, 4, 8)
    with pytest.raises(ValueError, match="no attention mask"):
        plain_attention(None, heads, heads, heads, None, 1.0)
    with pytest.raises(ValueError, match="dropout"):
        plain_attention(None, heads, heads, heads, torch.zeros(1, 1, 4, 4), 1.0, dropout=0.1)
    with pytest.raises(ValueError, match="got softcap"):
        plain_attention(None, heads, heads, heads, torch.zeros(1, 1, 4, 4), 1.0, softcap=50.0)
