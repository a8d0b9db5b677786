"""Whether values of config.json have their type: a size, a rate, a token, a name that the library knows.

A value is checked under its key in any type of model. A missing key is the library's default, and null is accepted
where published models have it. Each check raises InputError.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from solon.errors import InputError, nearest, short
from solon.models.facts import ModelFacts
from solon.models.known import activations, causal_models, rope_types

SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("n_embd", "n_layer", "n_head", "n_inner", "intermediate_size", "ffn_dim"),
    *("max_position_embeddings", "n_positions", "original_max_position_embeddings"),
)
"""Whole numbers above 0, or a list with one for each layer."""
MOST_POSITIONS = 10**9
"""No model has more; tables of positions would fill any memory."""
_EPS = re.compile(r"norm(?:_eps|_epsilon)$")
_DROPOUT = re.compile(r"(?:dropout|pdrop|dropout_p|dropout_prob|dropout_rate|drop_prob)$")
_SWITCHES = ("tie_word_embeddings", "use_cache", "attention_bias", "mlp_bias", "is_encoder_decoder")
_ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function")
_TOKENS = ("eos_token_id", "pad_token_id", "bos_token_id")
_FLOATS = ("float", "float16", "float32", "float64", "bfloat16", "half", "double")
_DTYPES = (*_FLOATS, "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "int8", "uint8", "auto")
_OTHER_ROPES = ("default", "mrope", "su", "ntk", "deepseek_yarn", "deepseek_llama_scaling", "mllama4", "xdrope")
"""Kinds of position scaling in configurations beyond the library's own list."""
_SCALED = ("linear", "dynamic", "yarn", "llama3")
"""Kinds that cannot be computed without a factor."""


def check_values(facts: ModelFacts) -> None:
    """Values of the configuration, and of the generation configuration, must have their type."""
    inner = facts.config.get("text_config")
    if inner is not None and not isinstance(inner, dict):
        raise _wrong("text_config", inner, "an object")
    for part in (facts.config, *([inner] if inner else [])):
        _check_numbers(part, facts)
        _check_names(part, facts)
        for key in ("rope_parameters", "rope_scaling"):
            _check_rope(key, part.get(key), rope_types() if _is_of_the_library(facts) else None)
        _check_tokens("config.json", part, facts)
    _check_tokens("generation_config.json", facts.generation, facts)
    _check_containers(facts.config)


def check_inner_size(facts: ModelFacts) -> None:
    """The inner layer in the configuration must be as wide as the weights that make it."""
    for key, name, rows in _inner_rows(facts):
        size = facts.text.get(key)
        if type(size) is int and size != rows:
            raise InputError(
                f"config.json has {key} = {size}, the weights have {rows} rows for it ({name}); take both "
                "from one model"
            )


def check_biases(facts: ModelFacts) -> None:
    """Biases in the configuration must exist in the weights: the library would initialise a missing one at random."""
    for key, layer in (("attention_bias", "self_attn.q_proj"), ("mlp_bias", "mlp.up_proj")):
        names = [name for name in facts.tensors if f"{layer}." in name]
        is_plain = facts.model_type in _PLAIN and any(name.endswith(f"{layer}.weight") for name in names)
        if is_plain and facts.text.get(key) is True and not any(name.endswith(f"{layer}.bias") for name in names):
            raise InputError(
                f"config.json has {key} = true, and the weights hold no {layer}.bias: it would be random; take both "
                "from one model"
            )


def _inner_rows(facts: ModelFacts) -> Iterator[tuple[str, str, int]]:
    """(key, tensor, rows) of the first tensor of each name that shows the size."""
    key, endings = _INNER.get(facts.model_type, ("", ()))
    for ending in endings:
        for name, tensor in facts.tensors.items():
            if name.endswith(ending) and len(tensor.shape) == 2 and tensor.dtype in ("F32", "F16", "BF16"):
                yield key, name, tensor.shape[0]
                break


_GATED = ("intermediate_size", ("mlp.up_proj.weight", "mlp.gate_proj.weight"))
_PLAIN = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo2", "smollm3", "granite")
_INNER: dict[str, tuple[str, tuple[str, ...]]] = {
    **dict.fromkeys(_PLAIN, _GATED),
    "gpt_neox": ("intermediate_size", ("mlp.dense_h_to_4h.weight",)),
    "phi": ("intermediate_size", ("mlp.fc1.weight",)),
    "opt": ("ffn_dim", ("fc1.weight",)),
}
"""By type: the key, and endings of tensors that have a row for each number of the inner layer."""


def _check_numbers(part: Mapping[str, Any], facts: ModelFacts) -> None:
    for key in SIZES:
        _check_size(key, part.get(key))
    for key, value in part.items():
        # Some types have both kinds of norm in their configuration, with null for the unused one.
        is_eps = _EPS.search(key) is not None and (value is not None or facts.model_type in _PLAIN)
        if is_eps and not (_is_number(value) and value > 0):
            raise _wrong(key, value, "a number above 0")
        is_rate = _DROPOUT.search(key) is not None and value is not None and not isinstance(value, bool)
        if is_rate and not (_is_number(value) and 0 <= value < 1):
            raise _wrong(key, value, "a probability from 0 to below 1")
    if not _is_number(theta := part.get("rope_theta", 1)) or theta <= 0:
        raise _wrong("rope_theta", theta, "a number above 0")
    for key in ("initializer_range", "sliding_window", "pretraining_tp"):
        if isinstance(value := part.get(key), str | dict):
            raise _wrong(key, value, "a number")


def _check_size(key: str, value: Any) -> None:
    if value is None:
        return
    sizes = value if isinstance(value, list) else [value]
    if not all(type(size) is int and size > 0 for size in sizes if size is not None):
        raise _wrong(key, value, "a whole number above 0")
    if "position" in key and any(size > MOST_POSITIONS for size in sizes if size is not None):
        raise _wrong(key, value, f"at most {MOST_POSITIONS}")


def _check_names(part: Mapping[str, Any], facts: ModelFacts) -> None:
    known = activations() if _is_of_the_library(facts) else None
    for key in _ACTIVATIONS:
        value = part.get(key)
        if value is None:
            continue
        if not isinstance(value, str):
            raise _wrong(key, value, "the name of an activation function")
        if known is not None and value not in known:
            raise InputError(
                f"config.json has {key} = {short(value)}, which the installed Transformers does not know"
                f"{nearest(value, known)}; take config.json from the model's own files"
            )
    for key in ("dtype", "torch_dtype"):
        value = part.get(key)
        if value is None or isinstance(value, dict):
            continue
        if not isinstance(value, str) or value.removeprefix("torch.") not in _DTYPES:
            raise _wrong(key, value, "a dtype of torch, as in 'bfloat16'")
    for key in _SWITCHES:
        if part.get(key) is not None and not isinstance(part[key], bool):
            raise _wrong(key, part[key], "true or false")


def _is_of_the_library(facts: ModelFacts) -> bool:
    """A model that only the engine knows, or with its own code, may have other activations and position scalings."""
    return facts.model_type in (causal_models() or {}) and not facts.config.get("auto_map")


def _check_containers(config: Mapping[str, Any]) -> None:
    if "architectures" in config:
        listed = config["architectures"]
        if not isinstance(listed, list) or not listed or not all(isinstance(name, str) and name for name in listed):
            raise _wrong("architectures", listed, "a list with the name of the model's class")
    found = config.get("quantization_config")
    if found is not None and not (isinstance(found, dict) and found):
        raise _wrong("quantization_config", found, "an object that names its quant_method, or no such key")
    kinds = config.get("layer_types")
    if kinds is not None and not (isinstance(kinds, list) and all(isinstance(kind, str) for kind in kinds)):
        raise _wrong("layer_types", kinds, "a list of names")


def _check_rope(key: str, value: Any, known: frozenset[str] | None) -> None:
    """One scaling for all layers, or one for each kind of layer."""
    if value is None:
        return
    if not isinstance(value, dict):
        raise _wrong(key, value, "an object")
    inner = [part for part in value.values() if isinstance(part, dict)]
    for part in inner or [value]:
        kind = part.get("rope_type", part.get("type"))
        if kind is not None and not isinstance(kind, str):
            raise _wrong(f"{key}.rope_type", kind, "the name of a kind of position scaling")
        if kind is not None and known is not None and kind not in (names := known | set(_OTHER_ROPES)):
            raise InputError(
                f"config.json has {key}.rope_type = {short(kind)}, which the installed Transformers does not know"
                f"{nearest(kind, names)}; take config.json from the model's own files"
            )
        if kind in _SCALED and part.get("factor") is None:
            raise InputError(f"config.json has {key}.rope_type = {short(kind)} without a factor, expected one; add it")
        for name in ("rope_theta", "factor"):
            if part.get(name) is not None and not (_is_number(part[name]) and part[name] > 0):
                raise _wrong(f"{key}.{name}", part[name], "a number above 0")


def _check_tokens(file: str, part: Mapping[str, Any], facts: ModelFacts) -> None:
    rows = facts.embedding[0] if facts.embedding else None
    for key in _TOKENS:
        value = part.get(key)
        listed = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(token) is int and token >= -1 for token in listed):
            raise _wrong(key, value, "the id of a token, or a list of them", file=file)
        # Some name tokens of a larger relative beside their own, or for a beginning or padding that is never used; the
        # embedding is made with the padding of config.json.
        is_used = key == "eos_token_id" or (key == "pad_token_id" and file == "config.json")
        if rows is not None and listed and is_used and all(token >= rows for token in listed):
            raise InputError(f"{file} has {key} = {short(value)}, the embedding {rows} rows; take both from one model")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _wrong(key: str, value: Any, expected: str, *, file: str = "config.json") -> InputError:
    return InputError(f"{file} has {key} = {short(value)}, expected {expected}; fetch it again")
