"""Typed clients of the feedback service, with and without asyncio.

Labelling changes nothing, so every request may be repeated: connection errors, 429, 502, 503 and 504 are tried again,
after the time that the service names or after a growing one.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Any, TypeVar

import httpx

from solon.client.wire import (
    Answered,
    Compared,
    CritiquesReply,
    CritiquesRequest,
    Failure,
    JudgeCard,
    Judges,
    Message,
    PreferencesReply,
    PreferencesRequest,
    Revised,
    RevisionsReply,
    RevisionsRequest,
    Scored,
    ScoresReply,
    ScoresRequest,
)

TRIED_AGAIN = frozenset({429, 502, 503, 504})
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
R = TypeVar("R", bound=Message)


class ServiceError(Exception):
    """The service refused a request, or could not be reached. `status`: of HTTP; 0: not reached."""

    def __init__(self, message: str, *, status: int = 0, code: str = "", param: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


class _Client:
    def __init__(self, url: str, *, key: str, timeout_s: float, retries: int) -> None:
        self._url = url.rstrip("/").removesuffix("/v1")
        self._settings: dict[str, Any] = {
            "headers": {"authorization": f"Bearer {key}"} if key else {},
            "timeout": httpx.Timeout(timeout_s, connect=10.0),
        }
        self._retries = retries

    def _wait_s(self, attempt: int, reply: httpx.Response | None) -> float | None:
        """Seconds before the next attempt; None: there is none."""
        if attempt >= self._retries or (reply is not None and reply.status_code not in TRIED_AGAIN):
            return None
        named = reply.headers.get("retry-after", "") if reply is not None else ""
        if named.isdigit():
            return min(float(named), LONGEST_WAIT_S)
        return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0**attempt) * random.uniform(0.5, 1.0)


class FeedbackClient(_Client):
    """`FeedbackClient("http://127.0.0.1:8100", key=...)`; close it, or use it in a `with` block.

    timeout_s: for a whole reply. retries: further attempts. Every call raises ServiceError.
    """

    def __init__(
        self, url: str, *, key: str = "", timeout_s: float = 600.0, retries: int = 4, http: httpx.Client | None = None
    ) -> None:
        super().__init__(url, key=key, timeout_s=timeout_s, retries=retries)
        self._http = http or httpx.Client(**self._settings)

    def scores(self, items: Sequence[Scored], *, judge: str = "default") -> ScoresReply:
        """A score of each answer."""
        return self._post("/v1/scores", ScoresRequest(items=list(items), judge=judge), ScoresReply)

    def preferences(self, items: Sequence[Compared], *, judge: str = "default") -> PreferencesReply:
        """Which answer of each pair is better."""
        return self._post("/v1/preferences", PreferencesRequest(items=list(items), judge=judge), PreferencesReply)

    def critiques(self, items: Sequence[Answered], *, writer: str = "writer") -> CritiquesReply:
        """What is wrong with each answer by one principle."""
        return self._post("/v1/critiques", CritiquesRequest(items=list(items), writer=writer), CritiquesReply)

    def revisions(self, items: Sequence[Revised], *, writer: str = "writer") -> RevisionsReply:
        """Each answer revised by one principle."""
        return self._post("/v1/revisions", RevisionsRequest(items=list(items), writer=writer), RevisionsReply)

    def judges(self) -> list[JudgeCard]:
        """The judges of the service."""
        return self._call("GET", "/v1/models", None, Judges).data

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> FeedbackClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _post(self, path: str, body: Message, expected: type[R]) -> R:
        return self._call("POST", path, body.model_dump_json(), expected)

    def _call(self, method: str, path: str, body: str | None, expected: type[R]) -> R:
        attempt = 0
        while True:
            reply, error = None, None
            try:
                reply = self._http.request(method, self._url + path, content=body, headers=_JSON)
            except httpx.TransportError as failed:
                error = failed
            wait_s = None if reply is not None and reply.is_success else self._wait_s(attempt, reply)
            if wait_s is None:
                return _read(reply, error, expected)
            time.sleep(wait_s)
            attempt += 1


class AsyncFeedbackClient(_Client):
    """The same with asyncio: `async with AsyncFeedbackClient(...) as client: await client.scores(...)`"""

    def __init__(
        self,
        url: str,
        *,
        key: str = "",
        timeout_s: float = 600.0,
        retries: int = 4,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        super().__init__(url, key=key, timeout_s=timeout_s, retries=retries)
        self._http = http or httpx.AsyncClient(**self._settings)

    async def scores(self, items: Sequence[Scored], *, judge: str = "default") -> ScoresReply:
        """A score of each answer."""
        return await self._post("/v1/scores", ScoresRequest(items=list(items), judge=judge), ScoresReply)

    async def preferences(self, items: Sequence[Compared], *, judge: str = "default") -> PreferencesReply:
        """Which answer of each pair is better."""
        return await self._post("/v1/preferences", PreferencesRequest(items=list(items), judge=judge), PreferencesReply)

    async def critiques(self, items: Sequence[Answered], *, writer: str = "writer") -> CritiquesReply:
        """What is wrong with each answer by one principle."""
        return await self._post("/v1/critiques", CritiquesRequest(items=list(items), writer=writer), CritiquesReply)

    async def revisions(self, items: Sequence[Revised], *, writer: str = "writer") -> RevisionsReply:
        """Each answer revised by one principle."""
        return await self._post("/v1/revisions", RevisionsRequest(items=list(items), writer=writer), RevisionsReply)

    async def judges(self) -> list[JudgeCard]:
        """The judges of the service."""
        return (await self._call("GET", "/v1/models", None, Judges)).data

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncFeedbackClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _post(self, path: str, body: Message, expected: type[R]) -> R:
        return await self._call("POST", path, body.model_dump_json(), expected)

    async def _call(self, method: str, path: str, body: str | None, expected: type[R]) -> R:
        attempt = 0
        while True:
            reply, error = None, None
            try:
                reply = await self._http.request(method, self._url + path, content=body, headers=_JSON)
            except httpx.TransportError as failed:
                error = failed
            wait_s = None if reply is not None and reply.is_success else self._wait_s(attempt, reply)
            if wait_s is None:
                return _read(reply, error, expected)
            await asyncio.sleep(wait_s)
            attempt += 1


_JSON = {"content-type": "application/json"}


def _read(reply: httpx.Response | None, error: Exception | None, expected: type[R]) -> R:
    if reply is None:
        raise ServiceError(f"the service cannot be reached: {error}; check its address and that it runs") from error
    if reply.is_success:
        return expected.model_validate_json(reply.content)
    try:
        problem = Failure.model_validate_json(reply.content).error
    except ValueError:
        raise ServiceError(
            f"the service answered {reply.status_code} without a reason", status=reply.status_code
        ) from None
    raise ServiceError(problem.message, status=reply.status_code, code=problem.code or "", param=problem.param or "")
