"""Tiny configurations of the architectures that Solon trains, windows included.

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(ARCHITECTURES["gemma3"]())

Weights drawn with `initializer_range` 0.3 make every token depend on what attention sees: a wrong mask shows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

VOCABULARY = 32
WINDOW = 8
"""Positions that a windowed layer sees, its own included."""

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
    "tie_word_embeddings": False,
    "initializer_range": 0.3,
}
MIXED = ["sliding_attention", "full_attention"]


def _config(model_type: str, **changes: Any) -> Callable[[], Any]:
    def make() -> Any:
        from transformers import AutoConfig

        return AutoConfig.for_model(model_type, **(SIZES | changes))

    return make


def _gpt2() -> Any:
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, pad_token_id=0, eos_token_id=1,
        bos_token_id=1, initializer_range=0.3, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip


ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "llama": _config("llama"),
    "llama_tied": _config("llama", tie_word_embeddings=True),
    "mistral_window": _config("mistral", sliding_window=WINDOW),
    "qwen2": _config("qwen2"),
    "qwen2_window": _config("qwen2", use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    "qwen3": _config("qwen3", head_dim=8),
    "gemma2": _config("gemma2", head_dim=8, sliding_window=WINDOW, final_logit_softcapping=3.0),
    "gemma3": _config("gemma3_text", head_dim=8, sliding_window=WINDOW, layer_types=MIXED),
    "phi3_window": _config("phi3", sliding_window=WINDOW),
    "olmo2": _config("olmo2"),
    "olmo3": _config("olmo3", sliding_window=WINDOW, layer_types=MIXED),
    "smollm3": _config("smollm3", no_rope_layers=[1, 0]),
    "granite": _config("granite", attention_multiplier=0.3, logits_scaling=2.0, residual_multiplier=0.5),
    "cohere2": _config("cohere2", sliding_window=WINDOW, layer_types=MIXED),
    "gpt2": _gpt2,
    "gpt_oss": _config(
        "gpt_oss", head_dim=8, sliding_window=WINDOW, layer_types=MIXED, num_local_experts=4, num_experts_per_tok=2
    ),
    "llama4": _config(
        "llama4_text", head_dim=8, attention_chunk_size=WINDOW, layer_types=["chunked_attention", "full_attention"],
        num_local_experts=2, num_experts_per_tok=1, intermediate_size_mlp=64, moe_layers=[], no_rope_layers=[1, 0],
    ),
}  # fmt: skip
"""Constructors by name; `..._window` where the architecture has the window only when it is asked for."""
