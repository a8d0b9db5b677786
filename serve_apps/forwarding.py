"""Forwards a request to a model's server and its answer back, whole or as a stream of events."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Annotated, Any

import httpx
from fastapi import Body, Request
from fastapi.responses import Response
from pydantic import WithJsonSchema
from starlette.types import Receive, Scope, Send

from serve_apps.admission import Admission
from serve_apps.events import EndsWithClient, event, send_head, send_part
from serve_apps.policy_config import VERSION_MARK
from serve_apps.policy_service import Bound, ServedPolicy
from serve_apps.text_server import said_by
from serve_apps.web import RETRY_AFTER_S, ItemError, UnavailableError, failure, new_id, problem, retry

_log = logging.getLogger(__name__)
MOST_ANSWERS = 128
"""Most answers to one prompt (`n`), and most prompts of a request."""
MOST_USER = 256
"""Characters of a user's name."""
JSON = {"content-type": "application/json"}
LOST = "the model's server was lost while it answered; send the request again"

COMMON = {
    "model": {"type": "string", "minLength": 1, "description": "Name of a policy, or `NAME@VERSION`."},
    "max_tokens": {"type": ["integer", "null"], "minimum": 1},
    "temperature": {"type": ["number", "null"], "minimum": 0, "maximum": 2},
    "top_p": {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1},
    "n": {"type": ["integer", "null"], "minimum": 1, "maximum": MOST_ANSWERS},
    "seed": {"type": ["integer", "null"], "minimum": -(2**63), "maximum": 2**63 - 1},
    "stop": {"anyOf": [{"type": ["string", "null"]}, {"type": "array", "items": {"type": "string"}, "maxItems": 4}]},
    "stream": {"type": ["boolean", "null"]},
    "user": {"type": ["string", "null"], "maxLength": MOST_USER},
}
MESSAGE = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {"role": {"enum": ["system", "user", "assistant"]}, "content": {"type": "string"}},
}
CHAT = {"model": "policy", "messages": [{"role": "user", "content": "Hi!"}], "max_tokens": 32}
ChatBody = Annotated[
    dict[str, Any],
    Body(
        description="The body of OpenAI's chat completions; vLLM's further fields are passed on.",
        openapi_examples={"hi": {"value": CHAT}},
    ),
    WithJsonSchema(
        {
            "type": "object",
            "required": ["model", "messages"],
            "properties": COMMON | {"messages": {"type": "array", "minItems": 1, "items": MESSAGE}},
        }
    ),
]
TextBody = Annotated[
    dict[str, Any],
    Body(
        description="The body of OpenAI's completions; vLLM's further fields are passed on.",
        openapi_examples={"once": {"value": {"model": "policy", "prompt": "Once", "max_tokens": 32}}},
    ),
    WithJsonSchema(
        {"type": "object", "required": ["model", "prompt"], "properties": COMMON | {"prompt": {"type": "string"}}}
    ),
]
Find = Callable[[str, str], tuple[ServedPolicy, str]]
"""The policy of a model's name and a user's name, and the version if it names one."""


def forwarded(find: Find, admission: Admission, request: Request, path: str, body: dict[str, Any]) -> Forwarded:
    """The answer to a request, bound to a version once there is room. Raises ItemError, UnknownNameError."""
    name, request_id = _model(body), new_id("request")
    user = body.get("user") or request.headers.get("x-session-id") or request_id
    if not isinstance(user, str) or len(user) > MOST_USER:
        raise ItemError("user", f"user is not a text of at most {MOST_USER} characters; send one, or none")
    policy, label = find(name, user)
    _check(body)
    content = _encoded(body | {"model": policy.name})
    if policy.name != name.partition(VERSION_MARK)[0]:
        _log.info("%s: %s is answered by %s", request_id, name, policy.name)

    @asynccontextmanager
    async def bound() -> AsyncIterator[Bound]:
        with admission.room_for(1):
            async with policy.bound(label) as found:
                yield found

    def headers(found: Bound) -> Mapping[str, str]:
        return {
            "x-request-id": request_id,
            "x-solon-policy": found.policy,
            "x-solon-version": found.version.label,
            "x-solon-digest": found.version.digest,
        }

    return Forwarded(bound, path, content, bool(body.get("stream")), headers)


def _model(body: Mapping[str, Any]) -> str:
    name = body.get("model")
    if not isinstance(name, str) or not name:
        raise ItemError("model", "model is missing, expected the name of a policy; GET /v1/models lists them")
    return name


def _check(body: Mapping[str, Any]) -> None:
    """Bounds that the model's server does not have."""
    number = body.get("n")
    if number is not None and (not isinstance(number, int) or isinstance(number, bool)):
        raise ItemError("n", f"n is not a whole number, expected 1 to {MOST_ANSWERS}")
    if number is not None and number > MOST_ANSWERS:
        raise ItemError("n", f"n is above {MOST_ANSWERS}; send several requests for more answers")
    prompts = body.get("prompt")
    if isinstance(prompts, list) and not all(type(one) is int for one in prompts) and len(prompts) > MOST_ANSWERS:
        raise ItemError("prompt", f"prompt has more than {MOST_ANSWERS} texts; send several requests")
    if not isinstance(body.get("stream", False), bool | None):
        raise ItemError("stream", "stream is neither true nor false")


def _encoded(body: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(body, allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise ItemError("", "the body holds a number that is not finite, or is nested too deeply") from None


class Forwarded(EndsWithClient):
    """The answer of a server. bound: gives the server, and keeps it while its answer is sent.

    A client that goes away ends the request at the server. Raises what `bound` raises, before anything is sent.
    """

    def __init__(
        self,
        bound: Callable[[], AbstractAsyncContextManager[Bound]],
        path: str,
        content: bytes,
        streams: bool,
        headers: Callable[[Bound], Mapping[str, str]],
    ) -> None:
        super().__init__()
        self._bound, self._path, self._content, self._streams, self._told = bound, path, content, streams, headers

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        async with self._bound() as target:
            server = target.server
            extra = dict(self._told(target))
            request = server.http.build_request("POST", self._path, content=self._content, headers=JSON)
            try:
                reply = await server.http.send(request, stream=True)
            except httpx.TransportError as error:
                raise UnavailableError(LOST) from error
            try:
                if reply.is_success and self._streams:
                    await self._stream(reply, extra, send)
                else:
                    answer = await _whole(reply)
                    answer.headers.update(extra)
                    await answer(scope, receive, send)
            finally:
                await reply.aclose()

    async def _stream(self, reply: httpx.Response, extra: Mapping[str, str], send: Send) -> None:
        await send_head(send, extra)
        async for chunk in _checked(reply):
            await send_part(send, chunk)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _checked(reply: httpx.Response) -> AsyncIterator[bytes]:
    """The bytes of a stream. One that ends without `[DONE]` ends with an error, which clients would not notice
    otherwise."""
    last = b""
    try:
        async for chunk in reply.aiter_raw():
            last = (last + chunk)[-64:]
            yield chunk
    except httpx.TransportError:
        last = b""
    if b"[DONE]" not in last:
        yield event(problem(503, LOST, code="unavailable"))


async def _whole(reply: httpx.Response) -> Response:
    """A complete answer: the server's own, or an error in the form of all others."""
    try:
        content = await reply.aread()
    except httpx.TransportError as error:
        raise UnavailableError(LOST) from error
    if reply.is_success:
        return Response(content, media_type="application/json")
    if reply.status_code >= 500:
        return retry(503, "the model's server failed to answer", RETRY_AFTER_S, code="unavailable")
    return failure(reply.status_code, said_by(content), code="invalid_request")
