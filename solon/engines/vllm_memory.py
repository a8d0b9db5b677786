"""vLLM's memory on a GPU: computed before it starts, never measured by it.

vLLM would measure how far the *device's* free memory falls while it starts, attribute all of it to itself, and stop
with an assertion when another process frees memory meanwhile. On a shared device, a learner does both all the time.
With a given cache size vLLM does not measure.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from solon.engines.base import EngineConfig
from solon.engines.memory import GIB, EngineMemory, engine_memory, request_cache
from solon.errors import InputError
from solon.models.facts import model_folder, read_facts
from solon.models.sizes import ModelSizes, sizes_of

LARGEST_SHARE = 0.98
"""Largest share of the device that vLLM is asked to check for."""


def gpu_memory_arguments(config: EngineConfig, sizes: ModelSizes | None, total: int) -> tuple[dict[str, Any], int]:
    """(arguments of vLLM, bytes of the device that must be free). total: bytes of the device's memory.

    For a model of an unknown kind vLLM measures itself, if it has the device to itself. Raises InputError for one that
    shares the device, and for a cache that is too small for one request of full length.
    """
    if sizes is None:
        return _unknown(config)
    sizes = sizes.share(config.tensor_parallel)
    memory = engine_memory(sizes, config, on_gpu=True, reloads=config.reloads, adapters=config.adapters, device=total)
    needed = request_cache(sizes, config, on_gpu=True)
    if memory.cache < needed:
        raise InputError(
            f"{config.model!r}: a request of max_model_len = {config.max_model_len} tokens needs {needed / GIB:.2f} "
            f"GiB of cache, and {_left(config, memory, total)}; raise it, lower max_model_len, max_running or "
            "max_batched_tokens, or take a larger GPU"
        )
    if memory.total > total:
        raise InputError(
            f"{config.model!r} needs {memory.total / GIB:.1f} GiB on a GPU (weights {memory.weights / GIB:.1f}, cache "
            f"{memory.cache / GIB:.1f}), this one has {total / GIB:.1f}; lower kv_cache_gib, or take a larger GPU"
        )
    share = min(LARGEST_SHARE, memory.total / total)
    return {"kv_cache_memory_bytes": memory.cache, "gpu_memory_utilization": share}, memory.total


def sizes_of_model(model: str) -> ModelSizes | None:
    """Sizes from the model's files, downloaded for a hub name. Raises InputError for damaged ones."""
    folder = model_folder(model)
    if folder is None:
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors"]))
    return sizes_of(read_facts(folder))


def _unknown(config: EngineConfig) -> tuple[dict[str, Any], int]:
    if config.kv_cache_gib is not None:
        # vLLM checks that this share is free and uses it for nothing else.
        cache = int(config.kv_cache_gib * GIB)
        return {"kv_cache_memory_bytes": cache, "gpu_memory_utilization": 0.01}, cache
    if config.shares_device:
        raise InputError(
            f"{config.model!r} shares a GPU and its size does not follow from config.json, so neither can its cache; "
            "set kv_cache_gib, or give it its own GPU with num_gpus = 1"
        )
    return {"gpu_memory_utilization": config.gpu_memory_utilization}, 0


def _left(config: EngineConfig, memory: EngineMemory, total: int) -> str:
    if config.kv_cache_gib is not None:
        return f"kv_cache_gib is {config.kv_cache_gib:g}"
    rest = memory.activations + memory.runtime + memory.reload
    return (
        f"gpu_memory_utilization = {config.gpu_memory_utilization:g} of {total / GIB:.1f} GiB leaves "
        f"{max(0, memory.cache) / GIB:.2f} after weights of {memory.weights / GIB:.1f} and other {rest / GIB:.1f}"
    )
