"""An engine's memory, estimated before it starts from the sizes of its model and its settings.

Amounts that depend on libraries, such as the CUDA context, are constants below. They are assumptions, on the high side.
"""

from __future__ import annotations

from dataclasses import dataclass

from solon.engines.adapter_names import room_for
from solon.engines.base import AdapterRoom, EngineOptions
from solon.models.sizes import BYTES, ModelSizes

GIB = 1 << 30
CPU_CACHE_GIB = 0.5
"""Default key-value cache on a CPU."""
BATCHED_TOKENS = 8192
"""Default for the most tokens computed in one step. vLLM's own default for an engine that is stepped by its owner is
2,048, which splits a judge's questions into many small steps."""
CONTEXT = int(0.6 * GIB)
"""CUDA context, kernel code and library workspaces of every process on a device."""
GRAPHS = int(0.75 * GIB)
"""CUDA graphs and the memory held after compilation, without `enforce_eager`."""
PROCESS = int(0.5 * GIB)
"""Resident memory of a process on a CPU that has imported torch and Transformers (measured: 0.46 GiB)."""
ENGINE_PROCESS = int(1.1 * GIB)
"""The same of a vLLM engine that has started, its weights, cache and working memory not counted (measured in runs: 1.01
to 1.15 GiB; 0.70 of them once vLLM is imported)."""
LOGITS_COPIES = 4
"""Float32 copies of the logits of all running requests that the sampler holds at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMemory:
    """Bytes of one engine, by purpose."""

    weights: int
    cache: int
    activations: int
    """One step with `max_batched_tokens` tokens, and the sampler's logits."""
    runtime: int
    """Context, kernels, graphs."""
    reload: int
    """A second copy during a load of new weights, or room for adapters; 0 for judges."""

    @property
    def total(self) -> int:
        """Sum of all parts, bytes."""
        return self.weights + self.cache + self.activations + self.runtime + self.reload


def engine_memory(
    sizes: ModelSizes,
    options: EngineOptions,
    *,
    on_gpu: bool,
    reloads: bool,
    adapters: AdapterRoom | None = None,
    device: int | None = None,
) -> EngineMemory:
    """The estimate for one engine. reloads: it gets all weights again; adapters: it has room for these beside them.
    device: bytes of the GPU's memory.

    With `kv_cache_gib` the cache has that size. Without it, an engine on a GPU takes `gpu_memory_utilization` of the
    device in total, and the cache gets the rest, which is negative if nothing is left; 0 for an unknown device.
    """
    width = element_bytes(sizes, options, on_gpu=on_gpu)
    weights = sizes.weights(width)
    tokens = options.max_batched_tokens or BATCHED_TOKENS
    of_layer = 4 * sizes.hidden + (sizes.heads + 2 * sizes.kv_heads) * sizes.head_dim + 3 * sizes.intermediate
    activations = tokens * of_layer * width + options.max_running * sizes.vocabulary * 4 * LOGITS_COPIES
    graphs = GRAPHS if on_gpu and not options.enforce_eager else 0
    runtime = CONTEXT + graphs if on_gpu else ENGINE_PROCESS
    reload = weights if reloads else 0
    if adapters is not None:
        reload += adapters.versions * adapter_elements(sizes, room_for(adapters.rank)) * width
    if options.kv_cache_gib is not None:
        cache = int(options.kv_cache_gib * GIB)
    elif not on_gpu:
        cache = int(CPU_CACHE_GIB * GIB)
    elif device is None:
        cache = 0
    else:
        cache = int(options.gpu_memory_utilization * device) - (weights + activations + runtime + reload)
    return EngineMemory(weights=weights, cache=cache, activations=activations, runtime=runtime, reload=reload)


def adapter_elements(sizes: ModelSizes, rank: int) -> int:
    """Elements of an adapter: the factors of every linear layer."""
    attention = 4 * sizes.hidden + 2 * (sizes.heads + sizes.kv_heads) * sizes.head_dim
    of_layer = attention + sizes.matrices * (sizes.hidden + sizes.intermediate)
    return rank * sizes.layers * of_layer


def element_bytes(sizes: ModelSizes, options: EngineOptions, *, on_gpu: bool) -> int:
    """Bytes of one element in the engine's computing type."""
    if options.dtype != "auto":
        return BYTES[options.dtype]
    return min(2, sizes.own_bytes) if on_gpu else 4


def request_cache(sizes: ModelSizes, options: EngineOptions, *, on_gpu: bool) -> int:
    """Bytes of the key-value cache for one request of full length."""
    return sizes.cached_elements * element_bytes(sizes, options, on_gpu=on_gpu) * options.max_model_len
