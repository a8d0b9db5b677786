"""What all services share over HTTP: keys, bounds on requests, and errors in the form of OpenAI's interface.

Every reply that is no success has the body `{"error": {message, type, param, code}}`. No reply shows a stack trace, a
path of this machine or anything of another caller.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import fastapi
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_apps.admission import BusyError
from serve_apps.config import ServiceBase
from serve_apps.keys import Keys
from solon import __version__
from solon.client.wire import Failure, Problem
from solon.errors import InputError

BODY_TIMEOUT_S = 30.0
"""Between two parts of a request."""
RETRY_AFTER_S = 5
"""While an engine is started again."""
FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": Failure} for status in (400, 401, 404, 405, 413, 422, 429, 500, 503)
}
"""What any call may answer, for the interface's description."""


class UnavailableError(Exception):
    """An engine is being started again."""


class UnknownNameError(Exception):
    """The service has no judge or policy of that name. `param`: the field that names it."""

    def __init__(self, message: str, *, param: str) -> None:
        super().__init__(message)
        self.param = param


class ItemError(Exception):
    """A part of a request that cannot be served. `place`: its field."""

    def __init__(self, place: str, message: str) -> None:
        super().__init__(message)
        self.place = place


class Service(Protocol):
    """What an application is made for."""

    async def start(self) -> None:
        """Raises InputError, RunFailedError."""
        ...

    async def close(self) -> None:
        """End all engines."""
        ...

    def troubles(self) -> dict[str, str]:
        """By name, `ready` where there is none."""
        ...


def new_app(title: str, service: Service, file: ServiceBase, *, starts: bool) -> FastAPI:
    """An application without routes. starts: engines are started and ended with it. Raises InputError for an unusable
    file of keys."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if starts:
            await service.start()
        try:
            yield
        finally:
            if starts:
                await service.close()

    # Its page of the interface is served from here: FastAPI's own loads scripts of another host.
    app = FastAPIOffline(title=title, version=__version__, lifespan=lifespan, responses=FAILURES, redoc_url=None)
    app.add_middleware(BoundedBodies, most=int(file.max_body_mib * 2**20))
    # The last one that is added is asked first.
    app.add_middleware(Guarded, keys=Keys.load(Path(file.keys)) if file.keys else None)
    _add_handlers(app)
    return app


BEARER = HTTPBearer(
    auto_error=False, description="A key that `solon serve key` made; none where the service has no keys."
)
"""For the interface's description; `Guarded` checks keys."""


class Guarded:
    """Middleware that refuses what is under /v1 without a right key, before its body is read. The caller's name is kept
    in `request.state.caller`; it is empty where the service has no keys."""

    def __init__(self, app: ASGIApp, keys: Keys | None) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1"):
            await self._app(scope, receive, send)
            return
        name: str | None = ""
        if self._keys is not None:
            kind, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
            name = self._keys.caller(key.strip() if kind.lower() == "bearer" else "")
        if name is None:
            refusal = failure(401, "the key is missing or wrong, expected `Authorization: Bearer KEY`")
            await refusal(scope, receive, send)
            return
        scope.setdefault("state", {})["caller"] = name
        await self._app(scope, receive, send)


class BoundedBodies:
    """Refuses a request body that is too large, before it is read where its length is given."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app, self._most = app, most
        self._message = f"the request is larger than {most / 2**20:.3g} MiB; send fewer items"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"content-length", b"")
        if given.isdigit() and int(given) > self._most:
            await self._refuse(scope, receive, send)
            return
        read, is_whole = 0, False

        async def bounded() -> Message:
            nonlocal read, is_whole
            if is_whole:
                return await receive()  # waits for the client's end
            try:
                message = await asyncio.wait_for(receive(), BODY_TIMEOUT_S)
            except TimeoutError:
                raise fastapi.HTTPException(
                    408, f"the request stopped for {BODY_TIMEOUT_S:.0f} s; send it again"
                ) from None
            read += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if read > self._most:
                # FastAPI lets its own exceptions pass while it reads a body, and no others.
                raise fastapi.HTTPException(413, self._message)
            return message

        await self._app(scope, bounded, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        await failure(413, self._message)(scope, receive, send)


def _add_handlers(app: FastAPI) -> None:
    def handler(kind: type[Exception], answer: Callable[[Any], JSONResponse]) -> None:
        async def handle(_: Request, error: Exception) -> JSONResponse:
            return answer(error)

        app.add_exception_handler(kind, handle)

    handler(RequestValidationError, _invalid)
    handler(HTTPException, lambda error: failure(error.status_code, str(error.detail), headers=error.headers))
    handler(UnknownNameError, lambda error: failure(404, str(error), param=error.param, code=f"unknown_{error.param}"))
    handler(ItemError, lambda error: failure(422, str(error), param=error.place, code="invalid_item"))
    handler(InputError, lambda error: failure(422, str(error), code="invalid_request"))
    handler(BusyError, lambda error: retry(429, str(error), error.retry_after_s, code="busy"))
    handler(UnavailableError, lambda error: retry(503, str(error), RETRY_AFTER_S, code="unavailable"))
    handler(Exception, lambda _: failure(500, "the service failed; its log says why", code="internal"))


def _invalid(error: RequestValidationError) -> JSONResponse:
    """The first mistakes, in the words of the checks and without the values."""
    found = []
    for one in error.errors()[:3]:
        if one["type"] == "json_invalid":
            return failure(422, "the body is not JSON, expected an object", code="invalid_json")
        place = ".".join(str(part) for part in one["loc"] if part != "body")
        found.append((place, f"{place or 'the body'}: {one['msg']}"))
    text = "; ".join(message for _, message in found) or "the request is not valid"
    return failure(422, text[:600], param=found[0][0] if found else "", code="invalid_request")


def failure(status: int, message: str, *, param: str = "", code: str = "", headers: Any = None) -> JSONResponse:
    """A reply that is no success."""
    extra = {"www-authenticate": "Bearer"} if status == 401 else {}
    body = problem(status, message, param=param, code=code)
    return JSONResponse(body, status_code=status, headers={**(headers or {}), **extra})


def problem(status: int, message: str, *, param: str = "", code: str = "") -> dict[str, Any]:
    """The body of such a reply."""
    kind = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}.get(
        status, "invalid_request_error" if status < 500 else "server_error"
    )
    found = Problem(message=message, type=kind, param=param or None, code=code or None)
    return Failure(error=found).model_dump(mode="json")


def retry(status: int, message: str, seconds: int, *, code: str) -> JSONResponse:
    """A reply that names the time after which another attempt makes sense."""
    return failure(status, message, code=code, headers={"retry-after": str(seconds)})


def new_id(kind: str) -> str:
    """Of a request."""
    return f"{kind}-{uuid.uuid4().hex[:24]}"
