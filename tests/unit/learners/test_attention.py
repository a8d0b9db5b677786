"""Attention as plain matrix products."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from learners.core.attention import (
    LONGEST,
    _attention,
    _PlainBackward,
    plain_attention,
    use_plain_attention,
    use_plain_backward,
)

CONFIG = LlamaConfig(
    vocab_size=50, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=6,
    num_key_value_heads=2, max_position_embeddings=64,
)  # fmt: skip


def test_outputs_and_gradients_are_those_of_the_fused_kernel():
    torch.manual_seed(0)
    network = LlamaForCausalLM(copy.deepcopy(CONFIG))
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


@pytest.mark.parametrize("masked", [False, True])
def test_a_plain_backward_keeps_the_forward_pass_to_the_bit_and_has_the_gradients_of_float32(masked: bool):
    torch.manual_seed(0)
    network = LlamaForCausalLM(copy.deepcopy(CONFIG))
    ids_BT = torch.randint(0, 50, (3, 20))
    sees_TT = torch.ones(20, 20, dtype=torch.bool).tril()
    sees_TT[10:, 3:7] = False
    mask = sees_TT.expand(3, 1, 20, 20) if masked else None

    def run(*, autocast: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits_BTV = network(input_ids=ids_BT, attention_mask=mask, use_cache=False).logits
        logits_BTV.float().square().mean().backward()
        return logits_BTV.detach(), [weight.grad.clone() for weight in network.parameters()]

    _, exact = run(autocast=False)
    fused, rounded = run(autocast=True)
    use_plain_backward(network)
    own, found = run(autocast=True)
    assert torch.equal(own, fused)
    for gradient, of_fused, expected in zip(found, rounded, exact, strict=True):
        error, usual = (float((one - expected).norm() / expected.norm()) for one in (gradient, of_fused))
        assert error <= 1.5 * usual + 1e-3
    whole, found = run(autocast=False)
    assert torch.allclose(whole, run(autocast=False)[0])
    torch.testing.assert_close(found, exact)


def test_a_query_that_sees_nothing_has_gradients_that_are_numbers():
    heads = [torch.randn(1, 2, 4, 8, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    mask = torch.ones(4, 4, dtype=torch.bool).tril()
    mask[0] = False
    _PlainBackward.apply(*heads, mask[None, None], None).float().sum().backward()
    for one in heads:
        assert one.grad is not None
        assert one.grad.isfinite().all()


@pytest.mark.parametrize("size", [8, 12])
def test_values_may_be_narrower_than_queries(size: int):
    query, key = (torch.randn(1, 2, 4, 12, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    value = torch.randn(1, 2, 4, size, dtype=torch.bfloat16, requires_grad=True)
    mask = torch.ones(4, 4, dtype=torch.bool).tril()[None, None]
    mixed_BTHD = _attention(torch.nn.Identity(), query, key, value, mask)
    mixed_BTHD.float().sum().backward()
    assert value.grad is not None
    assert mixed_BTHD.shape == (1, 4, 2, size)


def test_a_row_that_is_too_long_for_plain_products_takes_the_fused_backward(monkeypatch: pytest.MonkeyPatch):
    network = LlamaForCausalLM(copy.deepcopy(CONFIG))
    use_plain_backward(network)
    monkeypatch.setattr("learners.core.attention._PlainBackward.apply", None)
    ids_BT = torch.zeros(1, LONGEST + 1, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16):
        network(input_ids=ids_BT, use_cache=False).logits.float().mean().backward()
        with pytest.raises(TypeError):
            network(input_ids=ids_BT[:, :8], use_cache=False)
