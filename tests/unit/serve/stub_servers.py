"""Servers of models in tests: they answer with their version, can be lost, and fail to start on request."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from serve_apps.policy_config import PolicySection
from serve_apps.text_server import TextServer
from serve_apps.versions import Version
from solon.engines.base import EngineConfig
from solon.errors import AttestationError, RunFailedError
from solon.pipeline.canaries import Canaries


class StubServer(TextServer):
    """Implements what the service uses, without a process."""

    def __init__(self, name: str, version: Version, folder: Path) -> None:
        config = EngineConfig(model=version.path)
        super().__init__(config, (name,), label=version.label, log=folder / "log", on_gpu=False)
        self.version = version
        self.lost = ""
        self.closed = False
        self.loads_nothing = False
        self.fingerprint = version.label
        self.hangs = False
        self.asked: list[dict[str, Any]] = []
        self.status = 200

    async def start(self) -> None:
        if (Path(self.version.path) / "broken").exists():
            raise RunFailedError("the model's server ended with exit code 1")
        self._http = httpx.AsyncClient(transport=httpx.MockTransport(self._answer), base_url="http://model")

    async def load(self, path: str, *, label: str) -> None:
        if self.loads_nothing or (Path(path) / "broken").exists():
            raise RunFailedError(f"the server of {self.name} could not load {label}; its log says why")
        self.fingerprint = label
        self.version = replace(self.version, path=path, label=label.rpartition("@")[2])

    async def attest(self, canaries: Canaries, *, who: str) -> float:
        if canaries.noise < 0:
            raise AttestationError(f"{who} computes other log-probs")
        return 0.0

    async def answers(self) -> bool:
        return not self.hangs

    def failure(self) -> str:
        return self.lost

    async def close(self) -> None:
        self.closed = True

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        self.asked.append(body)
        if self.lost:
            raise httpx.ReadError("gone")
        if self.status != 200:
            return httpx.Response(self.status, json={"error": {"message": "the model refuses"}})
        if body.get("stream"):
            end = b"" if body.get("user") == "cut" else b"data: [DONE]\n\n"
            return httpx.Response(200, content=_pieces(b'data: {"choices": []}\n\n', end))
        text = f"{self.name} {self.version.label}"
        message = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 3, "completion_tokens": 2}
        whole = {"system_fingerprint": self.fingerprint, "choices": [message], "usage": usage}
        return httpx.Response(200, json=whole)


async def _pieces(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


class StubServers:
    """Makes them: `PolicyService(file, StubServers().open)`."""

    def __init__(self) -> None:
        self.made: list[StubServer] = []

    def open(self, name: str, _: PolicySection, version: Version, folder: Path) -> TextServer:
        self.made.append(StubServer(name, version, folder))
        return self.made[-1]
