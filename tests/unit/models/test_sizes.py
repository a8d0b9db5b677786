"""Sizes from config.json alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from solon.engines.memory import adapter_elements
from solon.models.facts import ModelFacts
from solon.models.sizes import ModelSizes, sizes_of

PLAIN = {
    "gpt2": ({"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257, "n_positions": 1024}, 124_439_808),
    "opt": (
        {"hidden_size": 768, "ffn_dim": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "vocab_size": 50272,
         "max_position_embeddings": 2048, "word_embed_proj_dim": 768},
        125_239_296,
    ),
    "gpt_neox": (
        {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 8,
         "vocab_size": 50304, "tie_word_embeddings": False},
        70_426_624,
    ),
    "phi": (
        {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 32,
         "vocab_size": 51200, "tie_word_embeddings": False},
        1_418_270_720,
    ),
    "bloom": ({"n_embed": 1024, "n_layer": 24, "num_attention_heads": 16, "vocab_size": 250880}, 559_214_592),
}  # fmt: skip
"""Shapes of the published models, and the parameters that they have (the smallest of each kind)."""
QWEN3 = {
    "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "head_dim": 128,
    "num_attention_heads": 16, "num_key_value_heads": 8, "vocab_size": 151936, "tie_word_embeddings": True,
}  # fmt: skip


def sizes(config: dict[str, object]) -> ModelSizes | None:
    return sizes_of(ModelFacts(path=Path("model"), config=config, tokenizer_config={}, generation={}))


@pytest.mark.parametrize("kind", PLAIN)
def test_models_without_a_gate_have_two_matrices_and_biases(kind: str):
    config, parameters = PLAIN[kind]
    found = sizes({"model_type": kind, **config})
    assert found is not None
    assert (found.parameters, found.matrices) == (parameters, 2)


def test_a_kind_whose_layers_are_not_known_has_no_size_without_its_weights():
    assert sizes(QWEN3 | {"model_type": "falcon"}) is None
    assert sizes({"model_type": "opt"} | PLAIN["opt"][0] | {"word_embed_proj_dim": 512}) is None


def test_an_adapter_has_the_factors_of_every_linear_layer():
    found = sizes(QWEN3)
    assert found is not None
    assert found.matrices == 3
    # q 1024 + 2048, k and v 1024 + 1024, o 2048 + 1024, gate and up 1024 + 3072, down 3072 + 1024.
    of_layer = 3072 + 2 * 2048 + 3072 + 3 * 4096
    assert adapter_elements(found, 8) == 8 * 28 * of_layer
