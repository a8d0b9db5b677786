"""Replies that end with their client, and results sent as server-sent events while others are still being made."""

from __future__ import annotations

import asyncio
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from serve_apps.web import ItemError, UnavailableError, problem

_log = logging.getLogger(__name__)
HEAD = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store"}
DONE = b"data: [DONE]\n\n"


class EndsWithClient(Response, ABC):
    """A reply whose work is cancelled when its client goes away."""

    def __init__(self) -> None:
        self.background = None
        self.status_code = 200

    @abstractmethod
    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the whole reply."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the reply. Raises what `answer` raises."""
        work = asyncio.ensure_future(self.answer(scope, receive, send))
        gone = asyncio.ensure_future(_client_is_gone(receive))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                work.cancel()
            with suppress(asyncio.CancelledError):
                await work
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)


class Events(EndsWithClient):
    """Messages as events, then `[DONE]`. messages: a context that gives them; what it raises before the first message
    is the status of the reply, and later an event."""

    def __init__(self, messages: Callable[[], AbstractAsyncContextManager[AsyncIterator[Mapping[str, Any]]]]) -> None:
        super().__init__()
        self._messages = messages

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        has_begun = False
        try:
            async with self._messages() as messages:
                async for message in messages:
                    if not has_begun:
                        has_begun = True
                        await send_head(send, {})
                    await send_part(send, event(message))
            await send_part(send, DONE)
        except Exception as error:
            if not has_begun:
                raise
            await send_part(send, event(_problem(error)))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def event(message: Mapping[str, Any]) -> bytes:
    """A message as one event."""
    return b"data: " + json.dumps(message).encode() + b"\n\n"


async def send_head(send: Send, extra: Mapping[str, str]) -> None:
    """Begin a stream of events."""
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in {**HEAD, **extra}.items()]
    await send({"type": "http.response.start", "status": 200, "headers": raw})


async def send_part(send: Send, part: bytes) -> None:
    """Send a part of a stream that has begun."""
    await send({"type": "http.response.body", "body": part, "more_body": True})


def _problem(error: Exception) -> dict[str, Any]:
    if isinstance(error, ItemError):
        return problem(422, str(error), param=error.place, code="invalid_item")
    if isinstance(error, UnavailableError):
        return problem(503, str(error), code="unavailable")
    _log.error("a stream failed", exc_info=error)
    return problem(500, "the service failed; its log says why", code="internal")


async def _client_is_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
