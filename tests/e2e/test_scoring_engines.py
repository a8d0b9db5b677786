"""Reward models of the common families: both backends give the head's own number at the true last token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from solon.engines.base import EngineConfig
from solon.engines.scoring import build_scoring_engine
from solon.errors import InputError
from tests.e2e.test_engines import FAMILIES, VOCAB
from tests.models import make_tokenizer

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]
END = 5
SEQUENCES = [[7, 8, 9, END], [7, 8, 9, 10, 11, 12, 13, END], [END], list(range(6, 60)), [7, 8, 9, END]]


def write(directory: Path, family: str) -> Any:
    """A random reward model whose padding token is the one that ends turns; returns the network."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.for_model(
        family.removesuffix("-tied"), vocab_size=VOCAB, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=256, bos_token_id=None,
        eos_token_id=END, pad_token_id=END, num_labels=1, **FAMILIES[family],
    )  # fmt: skip
    torch.manual_seed(0)
    network = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").float().eval()
    for name, parameter in network.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.1)
    network.save_pretrained(directory)
    make_tokenizer([f"w{n}" for n in range(VOCAB - 10)]).save_pretrained(directory)
    return network


@pytest.mark.parametrize(
    ("backend", "family"),
    [(backend, family) for backend in ("transformers", "vllm") for family in ("llama", "qwen3")]
    + [("transformers", "gemma3_text")],
)
def test_a_reward_is_the_head_at_the_last_token_before_any_activation(tmp_path: Path, family: str, backend: Any):
    import torch

    network = write(tmp_path, family)
    with torch.no_grad():
        expected = [
            float(network.score(network.base_model(input_ids=torch.tensor([ids]))[0][0, -1])) for ids in SEQUENCES
        ]
    assert max(map(abs, expected)) > 1, "a sigmoid would show"
    config = EngineConfig(model=str(tmp_path), backend=backend, max_model_len=128, dtype="float32")
    engine = build_scoring_engine(config, name="judge")
    try:
        assert engine.score(SEQUENCES) == pytest.approx(expected, abs=2e-4)
        assert engine.score(SEQUENCES[:1]) == pytest.approx(expected[:1], abs=2e-4)
        assert engine.max_tokens == 128
        assert engine.dtype == "float32"
    finally:
        engine.close()


def test_a_family_that_vllm_does_not_load_is_refused_with_the_backend_that_does(tmp_path: Path):
    write(tmp_path, "gemma3_text")
    with pytest.raises(InputError, match=r'cannot be loaded.*set backend = "transformers"'):
        build_scoring_engine(EngineConfig(model=str(tmp_path), max_model_len=128), name="judge")
