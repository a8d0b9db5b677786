"""Facts about a checkpoint that an engine needs before it loads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from solon.engines.base import EngineConfig
from solon.errors import InputError


def require_model(config: EngineConfig) -> None:
    """Raises InputError when `config.model` cannot be a model: no such directory, or one without a model."""
    path = Path(config.model).expanduser()
    if (path / "config.json").is_file():
        return
    if path.exists():
        raise InputError(
            f"{config.model!r} has no config.json, expected a model in Hugging Face format; "
            "point `model` at the directory that holds config.json and *.safetensors"
        )
    if config.model.startswith((".", "/", "~")) or config.model.count("/") != 1:
        raise InputError(
            f"there is no model directory {config.model!r}, expected one (or a hub name `org/model`); check the path"
        )


def model_settings(config: EngineConfig) -> dict[str, Any]:
    """The model's config.json. Raises InputError when it is not available."""
    return _read(config, "config.json")


def architecture(config: EngineConfig) -> str:
    """The model's class in Transformers, as in `LlamaForCausalLM`; empty: not stated, or the model is not here."""
    try:
        listed = model_settings(config).get("architectures")
    except InputError:
        return ""
    return str(listed[0]) if isinstance(listed, list) and listed else ""


def stop_token_ids(config: EngineConfig, eos_token_id: int) -> tuple[int, ...]:
    """Tokens that end an answer: the tokenizer's own, and those named by the checkpoint.

    Chat models often end a turn with a different token than the one that ends a text.
    """
    try:
        generation = _read(config, "generation_config.json")
    except InputError:
        generation = {}
    more = generation.get("eos_token_id")
    if more is None:
        more = model_settings(config).get("eos_token_id")
    listed = more if isinstance(more, list) else [] if more is None else [more]
    return tuple(dict.fromkeys([eos_token_id, *(int(token) for token in listed)]))


def is_quantised(config: EngineConfig) -> bool:
    """Whether the checkpoint stores quantised weights, which a new policy version cannot replace."""
    return bool(model_settings(config).get("quantization_config"))


def _read(config: EngineConfig, name: str) -> dict[str, Any]:
    path = Path(config.model).expanduser() / name
    try:
        if not path.is_file() and not path.parent.exists():
            from huggingface_hub import hf_hub_download

            path = Path(hf_hub_download(config.model, name))
        settings: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{name} of model {config.model!r} cannot be read ({error}); check the name, or download the model "
            "and give its directory"
        ) from error
    return settings
