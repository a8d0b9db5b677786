"""`solon inspect MODEL`: sizes, cache and memory of a model by role, from its files alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from solon.cli.names import resolver
from solon.cli.tables import print_table
from solon.engines.base import EngineOptions
from solon.engines.memory import CONTEXT, GIB, PROCESS, engine_memory
from solon.errors import InputError
from solon.models.facts import ModelFacts, model_folder, read_facts
from solon.models.sizes import BYTES, ModelSizes, sizes_of

MIB = 1 << 20


def run_inspect(
    model: str, *, dtype: str, length: int | None, concurrency: int, on_gpu: bool, as_json: bool
) -> dict[str, Any]:
    """length: tokens of a sequence; None: the model's context, 32,768 at most. Loads nothing. Raises InputError for a
    model that is not on this machine or is no ordinary decoder."""
    path = resolver([model], progress=not as_json)(model)
    folder = model_folder(path)
    if folder is None:
        raise InputError(f"{model} is not on this machine, expected a model directory or a hub name in the cache")
    try:
        facts = _facts(folder)
    except InputError as error:
        raise InputError(f"{model}: {error}") from None
    sizes = sizes_of(facts)
    if sizes is None:
        raise InputError(
            f"{model} ({facts.architecture or facts.model_type}) is not an ordinary decoder, expected one without "
            "experts or an encoder: its sizes are not known"
        )
    longest = length or min(int(facts.text.get("max_position_embeddings") or 4096), 32_768)
    result = describe(facts, sizes, dtype=dtype, length=longest, concurrency=concurrency, on_gpu=on_gpu)
    if not as_json:
        _show(model, result)
    return result


def describe(
    facts: ModelFacts, sizes: ModelSizes, *, dtype: str, length: int, concurrency: int, on_gpu: bool
) -> dict[str, Any]:
    """All figures, bytes."""
    width = BYTES[dtype]
    return {
        "architecture": facts.architecture or facts.model_type,
        "attention": attention_of(sizes),
        "layers": sizes.layers,
        "heads": sizes.heads,
        "kv_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "hidden": sizes.hidden,
        "vocabulary": sizes.vocabulary,
        "quantisation": facts.quantisation,
        "parameters": sizes.parameters,
        "dtype": dtype,
        "weights": sizes.weights(width),
        "length": length,
        "concurrency": concurrency,
        "cache": [
            {"attention": name, "kv_heads": heads, **_cache(sizes, heads, width, length, concurrency)}
            for name, heads in variants(sizes).items()
        ],
        "roles": _roles(sizes, dtype=dtype, length=length, on_gpu=on_gpu),
        "device": "gpu" if on_gpu else "cpu",
    }


def _facts(folder: Path) -> ModelFacts:
    """Also of a folder with a configuration alone: what a model would need is a question before it is fetched."""
    if any(folder.glob("*.safetensors")):
        return read_facts(folder)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"config.json cannot be read ({error}), expected that of a model") from None
    if not isinstance(config, dict):
        raise InputError("config.json holds no object, expected that of a model")
    return ModelFacts(path=folder, config=config, tokenizer_config={}, generation={})


def attention_of(sizes: ModelSizes) -> str:
    """`multi-head`, `grouped-query` or `multi-query`."""
    if sizes.kv_heads == sizes.heads:
        return "multi-head"
    return "multi-query" if sizes.kv_heads == 1 else "grouped-query"


def variants(sizes: ModelSizes) -> dict[str, int]:
    """Heads of keys and values: of the model, and of the two ends of the scale."""
    found = {attention_of(sizes): sizes.kv_heads}
    return found | {
        name: heads for name, heads in (("multi-head", sizes.heads), ("multi-query", 1)) if name not in found
    }


def _cache(sizes: ModelSizes, kv_heads: int, width: int, length: int, concurrency: int) -> dict[str, Any]:
    token = replace(sizes, kv_heads=kv_heads).cached_elements * width
    return {
        "per_token": token,
        "per_sequence": token * length,
        "at_concurrency": token * length * concurrency,
        "ratio": kv_heads / sizes.heads,
    }


def _roles(sizes: ModelSizes, *, dtype: str, length: int, on_gpu: bool) -> list[dict[str, Any]]:
    """Memory of the actors that could host the model, each with its defaults."""
    from learners.config import LearnConfig
    from learners.core.config import LoraConfig
    from learners.memory import learner_memory

    options = EngineOptions(dtype=dtype, max_model_len=length, kv_cache_gib=4.0 if on_gpu else 0.5)
    rollout = engine_memory(sizes, options, on_gpu=on_gpu, reloads=True)
    judge = engine_memory(sizes, options, on_gpu=on_gpu, reloads=False)
    found = [
        {"role": f"rollout engine, {options.kv_cache_gib:g} GiB of cache", "bytes": rollout.total},
        {"role": f"judge, {options.kv_cache_gib:g} GiB of cache", "bytes": judge.total},
    ]
    narrow = "bfloat16" if dtype != "float32" else "float32"
    learners: dict[str, dict[str, Any]] = {
        "learner, group_relative, all weights": {"objective": "group_relative"},
        "learner, ppo, all weights": {"objective": "ppo"},
        "learner, online_dpo, all weights": {"objective": "online_dpo"},
        "learner, group_relative, LoRA of rank 16": {"objective": "group_relative", "lora": LoraConfig()},
    }
    for role, settings in learners.items():
        config = LearnConfig(dtype=narrow, **settings)
        memory = learner_memory(sizes, config, on_gpu=on_gpu, longest=length, runtime=CONTEXT if on_gpu else PROCESS)
        found.append({"role": role, "bytes": memory.total})
    return found


def _show(model: str, found: dict[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"{model}: {found['architecture']}, {found['parameters'] / 1e6:,.1f} M parameters, {found['layers']} layers, "
        f"{found['attention']} attention ({found['heads']} heads, {found['kv_heads']} of keys and values, "
        f"{found['head_dim']} wide), vocabulary {found['vocabulary']:,}"
        + (f", {found['quantisation']}" if found["quantisation"] else ""),
        markup=False,
    )
    console.print(f"weights in {found['dtype']}: {_size(found['weights'])}", markup=False)
    cache = Table(box=SIMPLE_HEAD, title="key-value cache", title_justify="left")
    for column in ("attention", "per token", f"{found['length']:,} tokens", f"{found['concurrency']} of them", "ratio"):
        cache.add_column(column, justify="left" if column == "attention" else "right")
    for row in found["cache"]:
        mark = " (this model)" if row["attention"] == found["attention"] else ""
        cache.add_row(
            f"{row['attention']}{mark}",
            _size(row["per_token"]),
            _size(row["per_sequence"]),
            _size(row["at_concurrency"]),
            f"{row['ratio']:.3f}",
        )
    print_table(console, cache)
    roles = Table(box=SIMPLE_HEAD, title=f"memory by role, on a {found['device'].upper()}", title_justify="left")
    roles.add_column("role")
    roles.add_column("estimate", justify="right")
    for row in found["roles"]:
        roles.add_row(row["role"], _size(row["bytes"]))
    print_table(console, roles)


def _size(count: int) -> str:
    if count >= GIB:
        return f"{count / GIB:,.1f} GiB"
    return f"{count / MIB:,.1f} MiB" if count >= MIB else f"{count / 1024:,.1f} KiB"
