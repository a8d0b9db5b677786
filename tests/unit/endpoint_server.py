"""A server on this machine that speaks just enough of the OpenAI protocol, and misbehaves on demand.

with EndpointServer(error(500), answer({"A": 0.7, "B": 0.2})) as server:
    ...  # the first request gets a 500, all further ones the answer
"""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as it arrived."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def is_chat(self) -> bool:
        return self.path.endswith("/chat/completions")


Write = Callable[[bytes], Awaitable[None]]
Behaviour = Callable[[Seen, Write], Awaitable[bool]]
"""Writes a reply; False: the connection is closed behind it."""


class EndpointServer:
    """Requests get the behaviours in turn, the last one for ever. Runs in a thread of its own."""

    def __init__(self, *behaviours: Behaviour) -> None:
        self._behaviours = list(behaviours)
        self.seen: list[Seen] = []
        self.open = 0
        """Connections that are open now."""
        self.most_open = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def behave(self, *behaviours: Behaviour) -> None:
        """From now on."""
        self._behaviours = list(behaviours)

    def __enter__(self) -> EndpointServer:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self.open -= 1
            self._tasks.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def write(data: bytes) -> None:
            writer.write(data)
            await writer.drain()

        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:] if line)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            seen = Seen(head[0].split()[1], headers, json.loads(body))
            self.seen.append(seen)
            behaviour = self._behaviours.pop(0) if len(self._behaviours) > 1 else self._behaviours[0]
            replying = asyncio.ensure_future(behaviour(seen, write))
            # A client that goes away while it waits is noticed; nothing of its next request may be read here.
            gone = asyncio.ensure_future(_end(reader))
            try:
                await asyncio.wait([replying, gone], return_when=asyncio.FIRST_COMPLETED)
                if not replying.done() or not replying.result() or gone.done():
                    return
            finally:
                replying.cancel()
                gone.cancel()
                await asyncio.gather(replying, gone, return_exceptions=True)


async def _end(reader: asyncio.StreamReader) -> None:
    while not reader.at_eof():  # noqa: ASYNC110  (only reading reveals the end)
        await asyncio.sleep(0.005)


def http(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    lines = {"content-length": str(len(body)), **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + body


def raw(body: bytes, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Behaviour:
    async def behave(_: Seen, write: Write) -> bool:
        await write(http(status, body, headers))
        return True

    return behave


def reply(body: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Behaviour:
    return raw(json.dumps(body).encode(), status=status, headers=headers)


def error(status: int, message: str = "no", *, code: str = "", headers: Mapping[str, str] | None = None) -> Behaviour:
    return reply({"error": {"message": message, "code": code}}, status=status, headers=headers)


def answer(
    shown: Mapping[str, float] | Callable[[Seen], Mapping[str, float]],
    *,
    usage: Mapping[str, Any] | None = None,
    after_s: float = 0.0,
    finish: str = "stop",
) -> Behaviour:
    """Probabilities of the likeliest tokens, in the format of whichever method was called."""

    async def behave(seen: Seen, write: Write) -> bool:
        await asyncio.sleep(after_s)
        probabilities = shown(seen) if callable(shown) else shown
        logs = {token: math.log(p) for token, p in probabilities.items()}
        best = max(logs, key=lambda token: logs[token])
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
        if seen.is_chat:
            entries = [{"token": token, "logprob": log} for token, log in logs.items()]
            choice["message"] = {"role": "assistant", "content": best}
            choice["logprobs"] = {"content": [{"token": best, "logprob": logs[best], "top_logprobs": entries}]}
        else:
            choice["text"] = best
            choice["logprobs"] = {"tokens": [best], "token_logprobs": [logs[best]], "top_logprobs": [logs]}
        if "logprobs" not in seen.body:
            choice["logprobs"] = None
        counted = {"prompt_tokens": 10, "completion_tokens": 1} if usage is None else usage
        await write(http(200, json.dumps({"choices": [choice], "usage": dict(counted)}).encode()))
        return True

    return behave


async def never(_: Seen, __: Write) -> bool:
    """Accepts connections and sends nothing."""
    await asyncio.sleep(3600)
    return False


async def drip(_: Seen, write: Write) -> bool:
    """A byte at a time, for ever."""
    await write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
    while True:
        await write(b" ")
        await asyncio.sleep(0.01)


async def hang_up(_: Seen, __: Write) -> bool:
    """Closes without a word."""
    return False


async def half(_: Seen, write: Write) -> bool:
    """Closes in the middle of a body."""
    await write(b'HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{"choices": [')
    return False


async def flood(_: Seen, write: Write) -> bool:
    """A body without an end."""
    await write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000000000\r\n\r\n")
    while True:
        await write(b" " * 65536)
