"""The size of a model: elements and bytes, from the headers of its weights, or else from config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Self

from solon.models.facts import ModelFacts
from solon.models.safetensors_header import bits_of

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}
"""Bytes of one element, by the names used in config.json."""
_WIDE = {"F64", "F32", "F16", "BF16"}
"""Stored types that an engine converts to its computing type; integers and eight-bit floats stay as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSizes:
    """Sizes of a decoder. Elements and widths are counts, `fixed` is bytes."""

    parameters: int
    """Elements of its weights, shared ones counted once; for a quantised model those of the original."""
    wide: int
    """Elements held in the computing type."""
    fixed: int
    """Bytes of the weights that stay compressed."""
    head: int
    """Elements of the output head if it is not the embedding; else 0."""
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    own_bytes: int
    """Bytes of an element in the model's own dtype."""
    matrices: int = 3
    """Of a feed-forward layer: three with a gate, else two."""

    @property
    def cached_elements(self) -> int:
        """Elements of one token in the key-value cache, over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    def share(self, ranks: int) -> Self:
        """The part that one of several ranks of an engine holds; what is small is whole on every rank. The logits of
        the whole vocabulary are computed on each."""
        if ranks == 1:
            return self
        names = ("parameters", "wide", "fixed", "head", "intermediate", "heads", "kv_heads")
        return replace(self, **{name: -(-getattr(self, name) // ranks) for name in names})

    def weights(self, bytes_per_element: int) -> int:
        """Bytes of the weights in an engine of this dtype."""
        return self.wide * bytes_per_element + self.fixed


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    """What a kind of model without a gate in its feed-forward layers has beside its matrices."""

    attention: int
    """Biases of its attention, as multiples of the hidden width."""
    norms: int = 2
    """Norms of a layer, each with a bias."""
    outside: int = 1
    """Norms outside of the layers."""
    positions: tuple[str, int] | None = None
    """The key of learned positions in config.json, and how many rows more there are."""
    head_bias: bool = False

    def elements(self, text: Mapping[str, Any], layers: int, hidden: int, intermediate: int, vocabulary: int) -> int:
        """Biases, norms and positions of the whole model."""
        of_layer = self.attention * hidden + intermediate + hidden + 2 * self.norms * hidden
        rows = (_count(text, self.positions[0]) or 0) + self.positions[1] if self.positions else 0
        head = vocabulary if self.head_bias else 0
        return layers * of_layer + 2 * self.outside * hidden + rows * hidden + head


PLAIN = {
    "gpt2": Plain(attention=4, positions=("n_positions", 0)),
    "opt": Plain(attention=4, positions=("max_position_embeddings", 2)),
    "gpt_neox": Plain(attention=4),
    "bloom": Plain(attention=4, outside=2),
    "phi": Plain(attention=4, norms=1, head_bias=True),
    "gptj": Plain(attention=0, norms=1, head_bias=True),
    "codegen": Plain(attention=0, norms=1, head_bias=True),
}
"""Kinds of models whose feed-forward layers have two matrices and biases; tests build each with Transformers."""
GATED = frozenset(
    (
        *("llama", "mistral", "ministral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "gemma3_text", "phi3"),
        *("smollm3", "olmo", "olmo2", "olmo3", "cohere", "cohere2", "stablelm", "granite", "glm", "glm4"),
        *("exaone4", "seed_oss", "hunyuan_v1_dense", "ernie4_5"),
    )
)
"""Kinds whose feed-forward layers have three matrices."""


def sizes_of(facts: ModelFacts) -> ModelSizes | None:
    """None if config.json does not describe an ordinary decoder: experts, other attention, unknown keys; and, where the
    weights are not here, a kind of model whose feed-forward layers are not known."""
    text = facts.text
    shape = [_count(text, *keys) for keys in _SHAPE]
    if facts.experts or facts.is_encoder_decoder or facts.head_size is None or None in shape:
        return None
    layers, hidden, heads, vocabulary = (int(value or 0) for value in shape)
    kv_heads = _count(text, "num_key_value_heads") or heads
    intermediate = _count(text, "intermediate_size", "n_inner", "ffn_dim") or 4 * hidden
    width = facts.head_size
    tied = bool(text.get("tie_word_embeddings", facts.config.get("tie_word_embeddings", True)))
    kind = str(text.get("model_type") or facts.model_type)
    plain = PLAIN.get(kind)
    if not facts.tensors and plain is None and kind not in GATED:
        return None  # its feed-forward layers are not known
    if text.get("word_embed_proj_dim", hidden) != hidden:
        return None  # OPT-350m: projections around the layers
    factors = 3 if plain is None else 2
    matrices = layers * (2 * hidden * width * (heads + kv_heads) + factors * hidden * intermediate)
    small = layers * (2 * hidden + _biases(text, kind, width * (heads + 2 * kv_heads))) + hidden
    if plain is not None:
        small = plain.elements(text, layers, hidden, intermediate, vocabulary)
    embeddings = vocabulary * hidden
    head = 0 if tied else embeddings
    if facts.tensors:
        # A file may store the tied head as well.
        stored = {n: t for n, t in facts.tensors.items() if not (tied and n.endswith("lm_head.weight"))}
        wide = sum(prod(t.shape) for t in stored.values() if t.dtype in _WIDE)
        fixed = sum(prod(t.shape) * bits_of(t.dtype) // 8 for t in stored.values() if t.dtype not in _WIDE)
        parameters = embeddings + head + matrices + small if facts.quantisation else wide
    else:
        parameters = embeddings + head + matrices + small
        bits = _quantised_bits(facts.config)
        wide = embeddings + head + small if bits else parameters
        fixed = matrices * bits // 8
    return ModelSizes(
        parameters=parameters,
        wide=wide,
        fixed=fixed,
        head=head,
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=width,
        vocabulary=vocabulary,
        matrices=factors,
        own_bytes=BYTES.get(str(text.get("dtype", text.get("torch_dtype", facts.config.get("torch_dtype")))), 4),
    )


_SHAPE = (
    ("num_hidden_layers", "n_layer"),
    ("hidden_size", "n_embd", "n_embed"),
    ("num_attention_heads", "n_head"),
    ("vocab_size",),
)


def _count(text: Mapping[str, Any], *keys: str) -> int | None:
    return next((value for key in keys if type(value := text.get(key)) is int and value > 0), None)


def _biases(text: Mapping[str, Any], model_type: str, width: int) -> int:
    """Elements of the biases of queries, keys and values in one layer."""
    return width if text.get("attention_bias", model_type == "qwen2") else 0


def _quantised_bits(config: Mapping[str, Any]) -> int:
    """Bits of a quantised weight; 0: the model is not quantised."""
    found = config.get("quantization_config") or config.get("compression_config")
    if not isinstance(found, dict):
        return 0
    groups = found.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict) and type(weights.get("num_bits")) is int:
            return int(weights["num_bits"])
    bits = found.get("bits")
    return bits if type(bits) is int else 8
