"""Tiny configurations of the architectures that Solon trains, windows included.

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(ARCHITECTURES["gemma3"]())

Weights drawn with `initializer_range` 0.3 make every token depend on what attention sees: a wrong mask shows. Sizes may
be given: `ARCHITECTURES["gemma3"](head_dim=32)`; vLLM takes fewer of them than Transformers.
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
NOT_IN_GPT2 = {"intermediate_size", "num_key_value_heads", "head_dim"}


def _config(model_type: str, **changes: Any) -> Callable[[], Any]:
    def make(**sizes: Any) -> Any:
        from transformers import AutoConfig

        return AutoConfig.for_model(model_type, **(SIZES | changes | sizes))

    return make


def _gpt2(**sizes: Any) -> Any:
    from transformers import GPT2Config

    wanted = SIZES | {"tie_word_embeddings": True, "bos_token_id": 1} | sizes
    names = {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
    }
    taken = {names.get(key, key): value for key, value in wanted.items() if key not in NOT_IN_GPT2}
    return GPT2Config(**taken, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)


ARCHITECTURES: dict[str, Callable[..., Any]] = {
    "llama": _config("llama"),
    "llama_tied": _config("llama", tie_word_embeddings=True),
    "llama3_rope": _config(
        "llama", rope_parameters={"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
                                  "high_freq_factor": 4.0, "original_max_position_embeddings": 16},
    ),
    "mistral_window": _config("mistral", sliding_window=WINDOW),
    "qwen2": _config("qwen2"),
    "qwen2_window": _config("qwen2", use_sliding_window=True, sliding_window=WINDOW, max_window_layers=0),
    "qwen2_some_windows": _config("qwen2", use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    "qwen3": _config("qwen3", head_dim=8),
    "gemma": _config("gemma", head_dim=8, tie_word_embeddings=True),
    "gemma2": _config(
        "gemma2", head_dim=8, sliding_window=WINDOW, final_logit_softcapping=3.0, tie_word_embeddings=True
    ),
    "gemma3": _config(
        "gemma3_text", head_dim=8, sliding_window=WINDOW, layer_types=MIXED, tie_word_embeddings=True
    ),
    "phi3": _config("phi3"),
    "phi3_window": _config("phi3", sliding_window=WINDOW),
    "olmo2": _config("olmo2"),
    "olmo3": _config("olmo3", sliding_window=WINDOW, layer_types=MIXED),
    "smollm3": _config("smollm3", no_rope_layers=[1, 0]),
    "starcoder2_window": _config("starcoder2", sliding_window=WINDOW),
    "glm4": _config("glm4", head_dim=8),
    "exaone4": _config("exaone4", sliding_window=WINDOW, layer_types=MIXED),
    "gpt_neox": _config("gpt_neox"),
    "granite": _config("granite", attention_multiplier=0.3, logits_scaling=2.0, residual_multiplier=0.5),
    "cohere2": _config("cohere2", sliding_window=WINDOW, layer_types=MIXED),
    "gpt2": _gpt2,
    "mixtral": _config("mixtral", num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": _config("qwen3_moe", head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32),
    "gpt_oss": _config(
        "gpt_oss", head_dim=8, sliding_window=WINDOW, layer_types=MIXED, num_local_experts=4, num_experts_per_tok=2
    ),
    "llama4": _config(
        "llama4_text", head_dim=8, attention_chunk_size=WINDOW, layer_types=["chunked_attention", "full_attention"],
        num_local_experts=2, num_experts_per_tok=1, intermediate_size_mlp=64, moe_layers=[], no_rope_layers=[1, 0],
    ),
}  # fmt: skip
"""Constructors by name; `..._window` where the architecture has the window only when it is asked for."""

ORIGINAL_LENGTH = 32
LENGTH_DEPENDENT: dict[str, Callable[..., Any]] = {
    "phi3_longrope": _config(
        "phi3", original_max_position_embeddings=ORIGINAL_LENGTH,
        rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 16,
                         "long_factor": [2.0] * 16, "original_max_position_embeddings": ORIGINAL_LENGTH},
    ),
    "llama_dynamic": _config(
        "llama", max_position_embeddings=ORIGINAL_LENGTH,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    ),
}  # fmt: skip
"""Their rotary positions depend on the longest text of a batch, beyond `ORIGINAL_LENGTH`; heads are 32 wide."""
