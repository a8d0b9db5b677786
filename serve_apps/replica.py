"""A service as a replica of Ray Serve: healthy while its engines are ready, so that Serve replaces one whose engine
cannot be started again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve import Application
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_apps.config import ServiceBase, as_mapping
from serve_apps.events import event
from serve_apps.keys import Keys
from serve_apps.web import RETRY_AFTER_S, BoundedBodies, Guarded, Service, failure, problem, retry
from solon.errors import InputError, RunFailedError

_log = logging.getLogger(__name__)
PASSED_ON = (
    "type",
    "asgi",
    "http_version",
    "method",
    "scheme",
    "path",
    "raw_path",
    "query_string",
    "root_path",
    "headers",
    "client",
    "server",
)
"""Of a request's scope; the rest belongs to the process that took it."""
ATTEMPTS = 2
LOST = "the replica that answered was lost; send the request again"
HEALTH_PERIOD_S, HEALTH_TIMEOUT_S = 5, 10
LONGEST_ANSWER_S = 600
LONGEST_DOWN_S = 300.0
"""After which an engine that is not ready makes its replica unhealthy."""
ARGUMENTS = ("settings", "replicas", "most_replicas", "busy_requests", "cpus", "gpus")
BUSY_REQUESTS = 32
"""Requests in flight for each replica above which another one is started."""

Make = Callable[[Mapping[str, Any]], Service]
"""A service of settings as plain values."""
Build = Callable[[Any], FastAPI]
"""Its application, whose engines the replica starts."""


class Replica:
    """One replica of the engines: the service and its application, asked by `Front`."""

    async def __init__(self, make: Make, build: Build, settings: Mapping[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        self.service = make(settings)
        self._app = build(self.service)
        self._since: dict[str, float] = {}
        await self.service.start()

    async def ask(self, scope: Scope, body: bytes) -> AsyncIterator[Message]:
        """Answer a request: the messages that its application sends. Ends the work when nothing waits for it."""
        messages: asyncio.Queue[Message | None] = asyncio.Queue(maxsize=16)
        is_read = False

        async def receive() -> Message:
            nonlocal is_read
            if is_read:
                await asyncio.Event().wait()  # the client's end arrives as a cancellation
            is_read = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def answer() -> None:
            try:
                await self._app(scope, receive, messages.put)
            finally:
                await messages.put(None)

        work = asyncio.create_task(answer())
        try:
            while (message := await messages.get()) is not None:
                yield message
            await work
        finally:
            work.cancel()

    async def check_health(self) -> None:
        """Raises RunFailedError for an engine that has not been ready for long: the service starts it again by itself,
        and Serve replaces the whole replica, with the engines that are well."""
        now, troubles = time.monotonic(), self.service.troubles()
        self._since = {name: self._since.get(name, now) for name, trouble in troubles.items() if trouble != "ready"}
        for name, since in self._since.items():
            if now - since > LONGEST_DOWN_S:
                raise RunFailedError(f"{name} is not ready: {troubles[name]}")

    async def __del__(self) -> None:
        await self.service.close()


class Front:
    """Takes requests from Serve's proxy and passes them to a replica. It holds no engine, so that it outlives one: the
    proxy would answer what a lost replica had accepted with a bare 500."""

    current: ClassVar[Front | None] = None
    """Of this process, which hosts one. Serve builds the application before its context knows the object."""

    def __init__(self, replicas: Any, settings: Mapping[str, Any]) -> None:
        self._replicas = replicas.options(stream=True)
        file = ServiceBase.model_validate({key: settings[key] for key in ServiceBase.model_fields if key in settings})
        bounded = BoundedBodies(self._forward, most=int(file.max_body_mib * 2**20))
        self.entrance: ASGIApp = Guarded(bounded, keys=Keys.load(Path(file.keys)) if file.keys else None)
        Front.current = self

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await _body(receive)
        except HTTPException as error:
            await failure(error.status_code, str(error.detail))(scope, receive, send)
            return
        plain = {key: scope[key] for key in PASSED_ON if key in scope}
        for _ in range(ATTEMPTS):
            held: list[Message] = []
            """Sent when they are the whole answer, or when a stream has its first event: until then another replica can
            answer instead."""
            has_begun = False
            try:
                async for message in self._replicas.ask.remote(plain, body):
                    held.append(message)
                    if has_begun or _is_event(held):
                        has_begun = True
                        await _send_all(held, send)
            except RayError:
                _log.warning("a replica was lost while it answered", exc_info=True)
                if has_begun:
                    last = event(problem(503, LOST, code="unavailable"))
                    await send({"type": "http.response.body", "body": last, "more_body": False})
                    return
                continue
            await _send_all(held, send)
            return
        await retry(503, LOST, RETRY_AFTER_S, code="unavailable")(scope, receive, send)


def _is_event(messages: list[Message]) -> bool:
    """Whether these messages are the start of a stream and its first event."""
    return len(messages) > 1 and any(
        name.lower() == b"content-type" and value.startswith(b"text/event-stream")
        for name, value in messages[0].get("headers", [])
    )


async def _send_all(held: list[Message], send: Send) -> None:
    while held:
        await send(held.pop(0))


async def _body(receive: Receive) -> bytes:
    """The whole body. Raises HTTPException for one that is too large or does not come."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HTTPException(400, "the client went away")
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def application(name: str, args: Mapping[str, str], load: type[ServiceBase], make: Make, build: Build) -> Application:
    """args: `settings`, the path of the service file; `replicas`, 1 by default; `cpus` and `gpus` of each. With
    `most_replicas` their number follows the requests in flight, queued ones included: `busy_requests` for each.

    Raises InputError.
    """
    if unknown := sorted(set(args) - set(ARGUMENTS)):
        raise InputError(f"got the argument {unknown[0]!r}, expected one of {', '.join(ARGUMENTS)}")
    if "settings" not in args:
        raise InputError("settings is missing, expected the path of a service file: settings=service.toml")
    settings = as_mapping(load.load(args["settings"]))
    engines = serve.deployment(
        Replica,
        name=f"{name}-engines",
        **_size(args),
        ray_actor_options={"num_cpus": _number(args, "cpus", 1.0), "num_gpus": _number(args, "gpus", 0.0)},
        max_ongoing_requests=1024,
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        graceful_shutdown_timeout_s=LONGEST_ANSWER_S,
    )
    front = serve.deployment(
        serve.ingress(_front_app)(Front),
        name=name,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=4096,
        graceful_shutdown_timeout_s=LONGEST_ANSWER_S,
    )
    return front.bind(engines.bind(make, build, settings), settings)


def _size(args: Mapping[str, str]) -> dict[str, Any]:
    fewest = int(_number(args, "replicas", 1, least=1))
    if "most_replicas" not in args:
        return {"num_replicas": fewest}
    most = int(_number(args, "most_replicas", fewest, least=fewest))
    busy = _number(args, "busy_requests", BUSY_REQUESTS, least=1)
    return {"autoscaling_config": {"min_replicas": fewest, "max_replicas": most, "target_ongoing_requests": busy}}


def _number(args: Mapping[str, str], name: str, default: float, *, least: float = 0) -> float:
    try:
        value = float(args.get(name, default))
    except (TypeError, ValueError):
        value = float("nan")
    if not least <= value < 1e6:  # also when it is not a number
        raise InputError(f"{name} is {args.get(name)!r}, expected a number from {least:g}")
    return value


def _front_app() -> FastAPI:
    front = Front.current
    assert front is not None, "Serve makes the object first"
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.mount("/", front.entrance)
    return app
