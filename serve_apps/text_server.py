"""One model that writes: vLLM's server in a process of its own, attested before it answers, and what is in flight.

The service in front forwards requests to it over loopback. A process of its own can be lost or replaced while the
service and its other models continue.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from serve_apps.web import UnavailableError
from solon.engines.base import EngineConfig
from solon.engines.openai_server import START_TIMEOUT_S, ModelServer
from solon.engines.server_weights import ROUTE
from solon.errors import RunFailedError
from solon.pipeline.canaries import Canaries

HEALTH_TIMEOUT_S = 10.0
LOOK_S = 0.5
"""Between two looks at a server that starts."""


class TextServer:
    """`server = TextServer(config, ("policy",), label="step-20", log=path); await server.start()`

    names: what clients may call the model; the first is used here. label: `system_fingerprint` of its answers.
    Raises InputError for settings that vLLM's server does not have.
    """

    def __init__(self, config: EngineConfig, names: Sequence[str], *, label: str, log: Path, on_gpu: bool) -> None:
        self.name = names[0]
        self.in_flight = 0
        self._config, self._on_gpu = config, on_gpu
        self._key = secrets.token_urlsafe(32)  # other accounts of this machine reach its port too
        self._server = ModelServer(config, on_gpu=on_gpu, log=log, names=names, label=label, key=self._key)
        self._idle = asyncio.Event()
        self._idle.set()
        self._http: httpx.AsyncClient | None = None

    async def start(self) -> None:
        """Raises RunFailedError with the end of its log when it does not start."""
        deadline = time.monotonic() + START_TIMEOUT_S
        self._server.launch()
        while not await asyncio.to_thread(self._server.is_ready):
            if time.monotonic() > deadline:
                raise RunFailedError(f"the server of {self._config.model} did not start in {START_TIMEOUT_S:.0f} s")
            await asyncio.sleep(LOOK_S)
        # The environment may name a proxy, which does not reach this machine's loopback address.
        # Idle connections are dropped before the server drops them (after 5 s).
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=256, keepalive_expiry=2.0)
        self._http = httpx.AsyncClient(
            base_url=self._server.address,
            headers={"authorization": f"Bearer {self._key}"},
            timeout=httpx.Timeout(None, connect=10.0),
            trust_env=False,
            limits=limits,
        )

    @property
    def http(self) -> httpx.AsyncClient:
        """Of the server. Raises UnavailableError before it has started and after it was closed."""
        if self._http is None or self._http.is_closed:
            raise UnavailableError(f"{self.name} is not ready")
        return self._http

    async def load(self, path: str, *, label: str) -> None:
        """Replace its weights by those of another directory while nothing is in flight. label: the new
        `system_fingerprint`. Raises RunFailedError; it must then not answer before it has loaded others."""
        try:
            reply = await self.http.post(ROUTE, json={"path": path, "label": label}, timeout=START_TIMEOUT_S)
        except (httpx.HTTPError, UnavailableError) as error:
            raise RunFailedError(f"the server of {self.name} could not load {label}: {error!r}") from None
        if not reply.is_success:
            raise RunFailedError(f"the server of {self.name} could not load {label}; its log says why")

    async def attest(self, canaries: Canaries, *, who: str) -> float:
        """Compare its log-probs with the learner's; returns the gap, nats. Raises AttestationError, RunFailedError."""
        body = {
            "model": self.name, "prompt": canaries.token_ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0,
        }  # fmt: skip
        try:
            reply = await self.http.post("/v1/completions", json=body)
            rows = [one["prompt_logprobs"] for one in reply.json()["choices"]]
            found = [
                [row[str(token)]["logprob"] for token, row in zip(tokens[1:], read[1:], strict=True)]
                for tokens, read in zip(canaries.token_ids, rows, strict=True)
            ]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise RunFailedError(f"{who} cannot be attested: its server gave no log-probs ({error!r})") from None
        return canaries.attest(found, dtype=self._dtype, who=who)

    @property
    def _dtype(self) -> str:
        chosen = self._config.dtype
        return "float32" if chosen == "float32" or (chosen == "auto" and not self._on_gpu) else chosen

    @contextmanager
    def in_use(self) -> Iterator[TextServer]:
        """It is not drained while the block runs."""
        self.in_flight += 1
        self._idle.clear()
        try:
            yield self
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self._idle.set()

    async def drained(self, timeout_s: float) -> bool:
        """Wait until nothing is in flight; False: something still was."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def answers(self) -> bool:
        """Whether it says that it is well."""
        try:
            return (await self.http.get("/health", timeout=HEALTH_TIMEOUT_S)).is_success
        except (httpx.HTTPError, UnavailableError):
            return False

    def failure(self) -> str:
        """How its process ended; empty while it runs."""
        return self._server.failure()

    async def chat(self, messages: Sequence[Mapping[str, str]], **settings: Any) -> dict[str, Any]:
        """One chat completion, as OpenAI's interface returns it. Raises UnavailableError when the server is lost,
        ValueError with its words when it refuses the conversation."""
        body = {"model": self.name, "messages": list(messages), **settings}
        with self.in_use():
            try:
                reply = await self.http.post("/v1/chat/completions", json=body)
            except httpx.TransportError as error:
                raise UnavailableError(f"{self.name} was lost and is started again") from error
        if reply.status_code >= 500:
            raise UnavailableError(f"{self.name} failed to answer")
        if not reply.is_success:
            raise ValueError(said_by(reply.content))
        found: dict[str, Any] = reply.json()
        return found

    async def close(self) -> None:
        """End it, whatever it is doing."""
        if self._http is not None:
            await self._http.aclose()
        await asyncio.to_thread(self._server.end)


def said_by(content: bytes) -> str:
    """The message of an error in OpenAI's form."""
    try:
        return str(json.loads(content)["error"]["message"])[:600]
    except (ValueError, KeyError, TypeError):
        return "the model's server refused the request"
