"""Refuses models whose log-probs would differ between engine and learner, before an engine is built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from solon.errors import InputError

ONE_MORE = ("cohere2",)
"""vLLM lets their windowed layers attend to one token more than Transformers does."""
ALL_OR_NONE = ("qwen2", "qwen3")
"""vLLM applies their window in all layers or in none."""


def require_same_numbers(settings: Mapping[str, Any], *, backend: str, max_model_len: int) -> None:
    """settings: the model's config.json. Raises InputError when the engine would compute other log-probs than
    Transformers, which the learner trains with."""
    text = settings.get("text_config") or settings
    kind = text.get("model_type") or settings.get("model_type")
    for rope_type, length in _length_dependent(text):
        if max_model_len > length:
            raise InputError(
                f"its rotary positions (rope_type {rope_type!r}) change for all tokens of a batch when one text is "
                f"longer than {length} tokens, so that engine and learner would disagree; set max_model_len = {length} "
                f"or less, got {max_model_len}"
            )
    window = text.get("sliding_window")
    if backend != "vllm" or not isinstance(window, int):
        return
    if kind in ONE_MORE and max_model_len > window:
        raise InputError(
            f"vLLM lets the windowed layers of {kind} see {window + 1} tokens where Transformers, which trains them, "
            f'lets them see {window}; set backend = "transformers", or max_model_len = {window} or less, got '
            f"{max_model_len}"
        )
    layers, windowless = text.get("num_hidden_layers"), text.get("max_window_layers")
    windowed = _windowed_layers(text)
    if kind in ALL_OR_NONE and text.get("use_sliding_window") and windowed and layers and windowed < layers:
        raise InputError(
            f"{windowed} of its {layers} layers have a sliding window (max_window_layers = {windowless}), vLLM takes "
            f'all or none of {kind}; set backend = "transformers"'
        )


def _length_dependent(text: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Kinds of rotary positions that depend on the longest text, with the length up to which they do not."""
    rope = text.get("rope_parameters") or text.get("rope_scaling")
    if not isinstance(rope, Mapping):
        return
    parts = [part for part in rope.values() if isinstance(part, Mapping)] or [rope]
    for part in parts:
        kind = part.get("rope_type") or part.get("type")
        original = part.get("original_max_position_embeddings") or text.get("original_max_position_embeddings")
        length = text.get("max_position_embeddings") if kind == "dynamic" else original
        if kind in ("dynamic", "longrope", "su") and isinstance(length, int):
            yield kind, length


def _windowed_layers(text: Mapping[str, Any]) -> int:
    kinds = text.get("layer_types")
    if isinstance(kinds, list):
        return kinds.count("sliding_attention")
    return max(0, int(text.get("num_hidden_layers") or 0) - int(text.get("max_window_layers") or 0))
