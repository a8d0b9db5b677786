"""Whether vLLM serves a compressed model: its own server loads it and writes a few tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import httpx

from compression.pairs import Tokens
from solon.engines.base import EngineConfig
from solon.engines.device import vllm_build
from solon.engines.openai_server import SERVED_NAME, served
from solon.errors import RunFailedError

TOKENS = 4
LEAST_LENGTH = 16
"""Of the context of an engine."""
TIMEOUT_S = 300.0


def check_in_vllm(model: Path, prompts: Sequence[Tokens], *, log: Path) -> None:
    """Raises RunFailedError when it does not start, or gives log-probs that are not finite."""
    length = max(LEAST_LENGTH, max(map(len, prompts)) + TOKENS)
    config = EngineConfig(model=str(model), max_model_len=length)
    body = {
        "model": SERVED_NAME, "prompt": [list(one) for one in prompts], "max_tokens": TOKENS, "temperature": 0,
        "logprobs": 1,
    }  # fmt: skip
    with served(config, on_gpu=vllm_build() == "gpu", log=log) as address, httpx.Client(trust_env=False) as http:
        reply = http.post(f"{address}/v1/completions", json=body, timeout=TIMEOUT_S)
    if not reply.is_success:
        raise RunFailedError(f"vLLM loads {model} and does not answer ({reply.status_code}); its log is {log}")
    found = [value for choice in reply.json()["choices"] for value in choice["logprobs"]["token_logprobs"]]
    if not found or not all(math.isfinite(value) for value in found):
        raise RunFailedError(f"vLLM gives log-probs that are not finite for {model}; its log is {log}")
