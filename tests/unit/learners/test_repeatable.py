"""Scoring a policy twice gives the same result, with any dropout in its configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from learners.config import LearnConfig, LoraConfig
from learners.core.loading import require_repeatable
from learners.core.policy import Policy
from solon.errors import InputError
from tests.unit.learner_builders import VOCABULARY

SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
DROPOUTS: dict[str, Callable[[], Any]] = {
    "starcoder2": lambda: tf.Starcoder2Config(
        **SMALL, intermediate_size=48, num_key_value_heads=2, residual_dropout=0.1, embedding_dropout=0.1,
        attention_dropout=0.1,
    ),
    "opt": lambda: tf.OPTConfig(
        vocab_size=VOCABULARY, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        word_embed_proj_dim=32, max_position_embeddings=64, dropout=0.1, attention_dropout=0.1,
    ),
    "falcon": lambda: tf.FalconConfig(**SMALL, hidden_dropout=0.1, attention_dropout=0.1),
    "bloom": lambda: tf.BloomConfig(
        vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, hidden_dropout=0.1, attention_dropout=0.1
    ),
    "gpt_bigcode": lambda: tf.GPTBigCodeConfig(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4),
    "gpt2": lambda: tf.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4),
    "granite": lambda: tf.GraniteConfig(**SMALL, intermediate_size=48, attention_dropout=0.1),
}  # fmt: skip


@pytest.mark.parametrize("name", DROPOUTS)
def test_recomputing_activations_turns_no_dropout_on_and_leaves_the_configuration(name: str, tmp_path: Path):
    torch.manual_seed(0)
    config = DROPOUTS[name]()
    tf.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    learn = LearnConfig(gradient_checkpointing=True, lora=LoraConfig(r=2) if name == "opt" else None)
    policy = Policy(learn, model=str(tmp_path), temperature=1.0, backbone=True)  # raises where two scores differ
    require_repeatable(policy.backbone, policy.device)
    plain = Policy(LearnConfig(), model=str(tmp_path), temperature=1.0)
    ids_BT = torch.arange(12)[None]
    ours, theirs = (p.model(input_ids=ids_BT).logits for p in (policy, plain))
    torch.testing.assert_close(ours, theirs)
    saved = tf.AutoConfig.from_pretrained(tmp_path).to_dict()
    kept = policy.base.config.to_dict()
    assert {k: v for k, v in kept.items() if "drop" in k} == {k: v for k, v in saved.items() if "drop" in k}


def test_activations_are_recomputed_in_the_backward_pass(tmp_path: Path):
    tf.AutoModelForCausalLM.from_config(DROPOUTS["starcoder2"]()).save_pretrained(tmp_path)
    policy = Policy(LearnConfig(gradient_checkpointing=True), model=str(tmp_path), temperature=1.0)
    calls: list[bool] = []
    attention = policy.base.model.layers[0].self_attn
    attention.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    policy.model(input_ids=torch.arange(12)[None]).logits.sum().backward()
    assert len(calls) == 2


def test_a_model_that_is_not_repeatable_is_refused(tmp_path: Path):
    model = tf.AutoModelForCausalLM.from_config(DROPOUTS["opt"]()).train()
    with pytest.raises(InputError, match="second time"):
        require_repeatable(model, torch.device("cpu"))
