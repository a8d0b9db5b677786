"""Tiny GGUF files of real architectures, with byte-level or SentencePiece vocabularies.

network = tiny_network("llama_tied")
write_gguf(tmp_path / "tiny.gguf", network)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.architectures import ARCHITECTURES

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA_CHAT = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
ROWS = 300
FAMILIES = {"llama_tied": "llama", "llama": "llama", "llama3_rope": "llama", "qwen3": "qwen3", "gemma3": "gemma3"}
"""GGUF's architecture by the name in `tests/architectures.py`."""
SIZES = {
    "vocab_size": ROWS, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "initializer_range": 0.1, "rms_norm_eps": 1e-5,
}  # fmt: skip


def tiny_network(name: str, **changes: Any) -> Any:
    """A random model that a GGUF file can describe: its windows follow the rule of its architecture."""
    import torch
    from transformers import AutoModelForCausalLM

    if name == "gemma3":  # windows in five layers of six
        changes = {"num_hidden_layers": 6, "layer_types": None, **changes}
    if name == "llama3_rope":
        changes = {"head_dim": 64, "num_attention_heads": 1, **changes}
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(ARCHITECTURES[name](**SIZES | changes)).to(torch.float32).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 1:  # norms of a fresh model are all alike, so that a lost one would not show
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return network.requires_grad_(False)


def byte_level_words() -> tuple[list[str], list[int], list[str]]:
    """Tokens, their kinds, and merges."""
    from tokenizers.pre_tokenizers import ByteLevel

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    words = [*special, *sorted(ByteLevel.alphabet()), "he", "ll", "hell", "hello", "Ġw", "or", "ld", "12"]
    merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "l d", "1 2"]
    kinds = [CONTROL] * len(special) + [NORMAL] * (len(words) - len(special))
    return _filled(words, kinds), [*kinds, *[UNUSED] * (ROWS - len(kinds))], merges


def sentence_piece_words() -> tuple[list[str], list[int], list[float]]:
    """Tokens, their kinds, and scores."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    pieces = ["▁w", "he", "ll", "hell", "hello", "or", "ld", "▁", "h", "e", "l", "o", "w", "r", "d", "1"]
    words = [*special, "  ", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    kinds = [CONTROL] * 3 + [UNKNOWN] + [CONTROL] * 2 + [USER_DEFINED] + [BYTE] * 256 + [NORMAL] * len(pieces)
    scores = [0.0] * (len(words) - len(pieces)) + [-float(place) for place in range(len(pieces))]
    missing = ROWS - len(words)
    return _filled(words, kinds), [*kinds, *[UNUSED] * missing], [*scores, *[-1e4] * missing]


def _filled(words: list[str], kinds: list[int]) -> list[str]:
    assert len(words) == len(kinds) <= ROWS
    return [*words, *(f"[PAD{index}]" for index in range(len(words), ROWS))]


def write_gguf(
    path: Path,
    network: Any,
    *,
    architecture: str = "",
    template: str | None = CHAT,
    quantised: bool = False,
    pre: str = "smollm",
    change: Callable[[Any], None] | None = None,
    keep: Callable[[str], bool] = lambda name: True,
    eos: int | None = None,
    words: int = ROWS,
    add_bos: bool | None = None,
) -> Path:
    """quantised: matrices in Q8_0. change: adds metadata. keep: which tensors. words: length of the vocabulary."""
    import gguf

    kind = network.config.model_type.removesuffix("_text")
    writer = gguf.GGUFWriter(path, architecture or kind)
    config = network.config
    writer.add_name(f"Tiny {kind}")
    writer.add_license("apache-2.0")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(_base(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    writer.add_vocab_size(words)
    _add_words(writer, kind, words=words, pre=pre, eos=eos)
    if add_bos is not None:
        writer.add_add_bos_token(add_bos)
    if template is not None:
        writer.add_chat_template(template)
    if change is not None:
        change(writer)
    for name, array in _tensors(network, kind).items():
        if keep(name):
            if quantised and array.ndim == 2:
                stored = gguf.quantize(array, gguf.GGMLQuantizationType.Q8_0)
                writer.add_tensor(name, stored, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
            else:
                writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _base(config: Any) -> float:
    rope = config.rope_parameters
    return float((rope.get("full_attention") or rope)["rope_theta"])


def _add_words(writer: Any, kind: str, *, words: int, pre: str, eos: int | None) -> None:
    if kind == "gemma3":
        tokens, kinds, scores = sentence_piece_words()
        writer.add_tokenizer_model("llama")
        writer.add_token_scores(scores[:words])
        writer.add_add_space_prefix(False)
        writer.add_unk_token_id(3)
        bos, end, pad = 2, 1, 0
    else:
        tokens, kinds, merges = byte_level_words()
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("qwen2" if kind == "qwen3" else pre)
        writer.add_token_merges(merges)
        bos, end, pad = 1, 0, 3
    writer.add_token_list(tokens[:words])
    writer.add_token_types(kinds[:words])
    writer.add_bos_token_id(bos)
    writer.add_eos_token_id(end if eos is None else eos)
    writer.add_pad_token_id(pad)


def _tensors(network: Any, kind: str) -> dict[str, np.ndarray[Any, Any]]:
    """Arrays by GGUF's names, as converters write them."""
    from transformers.modeling_gguf_pytorch_utils import TensorProcessor, get_gguf_hf_weights_map

    state, config = network.state_dict(), network.config
    found = {}
    for name, own in get_gguf_hf_weights_map(network, TensorProcessor()).items():
        if name == "output.weight" and config.tie_word_embeddings:
            continue
        array = state[own].float().numpy()
        if kind == "llama" and (".attn_q." in name or ".attn_k." in name):
            heads = config.num_attention_heads if ".attn_q." in name else config.num_key_value_heads
            array = array.reshape(heads, 2, -1, array.shape[-1]).swapaxes(1, 2).reshape(array.shape)
        if kind == "gemma3" and name.endswith("norm.weight"):
            array = array + 1
        found[name] = np.ascontiguousarray(array)
    return found


def llama3_divisors(config: Any) -> np.ndarray[Any, Any]:
    """What converters store of Llama 3's scaled positions."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1 / _base(config) ** (np.arange(0, config.head_dim, 2) / config.head_dim)
    return np.asarray(plain / scaled.numpy(), np.float32)
