"""A vLLM server that loads new weights computes exactly as one that was started with them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from serve_apps.text_server import TextServer
from solon.engines.base import EngineConfig
from solon.engines.server_weights import ROUTE
from solon.errors import RunFailedError

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.timeout(300)]


def changed(model: Path, target: Path, seed: int) -> Path:
    """A copy of a model with noise on all weights."""
    shutil.copytree(model, target)
    noise = torch.Generator().manual_seed(seed)
    for file in target.glob("*.safetensors"):
        tensors = load_file(file)
        for tensor in tensors.values():
            tensor += 0.2 * tensor.std() * torch.randn(tensor.shape, generator=noise)
        save_file(tensors, file, metadata={"format": "pt"})
    return target


async def logprobs(server: TextServer) -> list[float]:
    """Of a fixed prompt that is long enough for blocks in the prefix cache."""
    body = {
        "model": "policy", "prompt": list(range(20, 84)), "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0,
        "logprobs": 1,
    }  # fmt: skip
    choice = (await server.http.post("/v1/completions", json=body)).json()["choices"][0]
    rows = [next(iter(row.values()))["logprob"] for row in choice["prompt_logprobs"][1:]]
    greedy = (await server.http.post("/v1/completions", json=body | {"prompt_logprobs": None})).json()["choices"][0]
    return [*rows, *greedy["logprobs"]["token_logprobs"]]


async def test_a_server_that_loads_weights_computes_as_one_started_with_them(nursery: Any, tmp_path: Path):
    other = changed(Path(nursery.policy), tmp_path / "other", seed=1)

    def server(model: str | Path) -> TextServer:
        config = EngineConfig(model=str(model), max_model_len=128)
        return TextServer(config, ("policy",), label="first", log=tmp_path / "log", on_gpu=False)

    loading, started = server(nursery.policy), server(other)
    try:
        await loading.start()
        before = await logprobs(loading)
        await loading.load(str(other), label="second")
        after = await logprobs(loading)
        said = await loading.chat([{"role": "user", "content": "hi"}], max_tokens=4)
        assert said["system_fingerprint"] == "second"
        async with httpx.AsyncClient(base_url=loading.http.base_url) as stranger:
            refused = await stranger.post(ROUTE, json={"path": str(other), "label": "third"})
            assert refused.status_code == 401
            assert (await stranger.post("/collective_rpc", json={"method": "load_checkpoint"})).status_code == 404
        with pytest.raises(RunFailedError, match="could not load"):
            await loading.load(str(tmp_path / "none"), label="third")
        await loading.load(str(nursery.policy), label="first")
        assert await logprobs(loading) == before
        await loading.close()
        await started.start()
        assert after == await logprobs(started)
        assert max(abs(a - b) for a, b in zip(before, after, strict=True)) > 0.1
    finally:
        await loading.close()
        await started.close()
