"""The policy service as a user runs it: the nursery's policy behind the stock OpenAI client, and a killed engine."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import psutil
import pytest

from tests.e2e.conftest import environment, solon_command

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.timeout(400)]
ASKED = [{"role": "user", "content": "what color is the crow ?"}]


@pytest.fixture(scope="module")
def service(nursery: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running service, and its address."""
    folder = tmp_path_factory.mktemp("policy")
    command = solon_command(
        "serve", "policy", str(nursery.policy), "--set", "port=0", "--set", "engine.max_model_len=128"
    )
    process = subprocess.Popen(
        command, cwd=folder, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith("policy service on "):
            break
    assert process.poll() is None, "".join(said)
    yield process, said[-1].split()[3].rstrip(",")
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def test_the_stock_client_talks_waits_and_streams(service: tuple[subprocess.Popen[str], str]):
    _, address = service
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
    reply = client.chat.completions.create(model="policy", messages=ASKED, max_tokens=16, seed=1, logprobs=True)
    assert reply.choices[0].message.content
    assert reply.choices[0].logprobs
    assert reply.system_fingerprint
    stream = client.chat.completions.create(model="policy", messages=ASKED, max_tokens=16, seed=1, stream=True)
    parts = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert "".join(parts) == reply.choices[0].message.content
    text = client.completions.create(model="policy", prompt="it is", max_tokens=4, stop=["."], logprobs=1)
    assert text.choices[0].finish_reason in ("stop", "length")

    async def many() -> list[str]:
        other = openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none")
        asked = [other.chat.completions.create(model="policy", messages=ASKED, max_tokens=8) for _ in range(32)]
        return [one.choices[0].message.content for one in await asyncio.gather(*asked)]

    assert all(asyncio.run(many()))
    with pytest.raises(openai.NotFoundError, match="expected one of policy"):
        client.chat.completions.create(model="other", messages=ASKED)


def test_a_killed_engine_is_said_to_be_unavailable_and_is_replaced(service: tuple[subprocess.Popen[str], str]):
    process, address = service
    body = {"model": "policy", "messages": ASKED, "max_tokens": 8}
    engines = [one for one in psutil.Process(process.pid).children(recursive=True) if "EngineCore" in one.name()]
    engines = engines or [
        one for one in psutil.Process(process.pid).children(recursive=True) if "EngineCore" in " ".join(one.cmdline())
    ]
    assert engines, "vLLM's engine process was not found"
    os.kill(engines[0].pid, signal.SIGKILL)
    seen: list[int] = []
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not (seen[-1:] == [200] and 503 in seen):
        seen.append(httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60).status_code)
        time.sleep(0.25)
    assert set(seen) <= {200, 503}, seen
    assert seen[-1] == 200


def test_the_service_ends_at_a_signal(service: tuple[subprocess.Popen[str], str]):
    process, _ = service
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert [one for one in children if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []
