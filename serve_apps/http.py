"""The feedback service over HTTP: keys, admission, bounds, and replies in the form of OpenAI's interface.

Every reply that is no success has the body `{"error": {message, type, param, code}}`. No reply shows a stack trace, a
path of this machine or anything of another caller.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from math import exp
from pathlib import Path
from typing import Any

import fastapi
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_apps.admission import Admission, BusyError
from serve_apps.config import ServiceFile
from serve_apps.keys import Keys
from serve_apps.service import FeedbackService, ItemError, UnavailableError, UnknownJudgeError
from solon import __version__
from solon.client.wire import (
    Failure,
    Health,
    JudgeCard,
    Judges,
    Preference,
    PreferencesReply,
    PreferencesRequest,
    Problem,
    Score,
    ScoresReply,
    ScoresRequest,
    Usage,
    Verdict,
)
from solon.errors import InputError
from solon.feedback.reward import preference_margin
from solon.records import Feedback, Label

BODY_TIMEOUT_S = 30.0
"""Between two parts of a request."""
RETRY_AFTER_S = 5
"""While a judge is started again."""
FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": Failure} for status in (400, 401, 404, 405, 413, 422, 429, 500, 503)
}
"""What any call may answer, for the interface's description."""
_log = logging.getLogger(__name__)


def build_app(service: FeedbackService, *, starts: bool = True) -> FastAPI:
    """The application. starts: the judges are started and ended with it."""
    file = service.file
    keys = Keys.load(Path(file.keys)) if file.keys else None
    admission = Admission(file.max_waiting)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if starts:
            await service.start()
        try:
            yield
        finally:
            if starts:
                await service.close()

    app = FastAPI(title="Solon feedback", version=__version__, lifespan=lifespan, responses=FAILURES)
    app.add_middleware(BoundedBodies, most=int(file.max_body_mib * 2**20))
    _add_handlers(app)
    _add_routes(app, service, admission, keys)
    return app


def _add_routes(app: FastAPI, service: FeedbackService, admission: Admission, keys: Keys | None) -> None:
    file = service.file

    def authorised(request: Request) -> None:
        """Keeps the caller's name. Raises HTTPException 401."""
        if keys is None:
            request.state.caller = ""
            return
        kind, _, key = request.headers.get("authorization", "").partition(" ")
        name = keys.caller(key.strip() if kind.lower() == "bearer" else "")
        if name is None:
            raise HTTPException(401, "the key is missing or wrong, expected `Authorization: Bearer KEY`")
        request.state.caller = name

    guarded = APIRouter(prefix="/v1", dependencies=[Depends(authorised)])

    @app.get("/health", response_model=Health)
    async def health() -> Any:
        """Whether every judge is ready. Needs no key."""
        troubles = service.troubles()
        is_well = all(trouble == "ready" for trouble in troubles.values())
        body = Health(status="ok" if is_well else "unavailable", judges=troubles)
        return body if is_well else JSONResponse(body.model_dump(mode="json"), status_code=503)

    @guarded.get("/models")
    async def judges() -> Judges:
        """The judges."""
        return Judges(data=service.cards())

    @guarded.get("/models/{name}")
    async def judge(name: str) -> JudgeCard:
        """One judge."""
        return service.judge(name).card()

    @guarded.post("/scores")
    async def scores(body: ScoresRequest, request: Request) -> ScoresReply:
        """Score answers: each item is one answer to a conversation."""
        _check_items(body.items, file)
        caller, request_id = request.state.caller, _new_id("scores")
        with admission.room_for(len(body.items)):
            found = await service.scores(body.judge, body.items, caller=caller, request_id=request_id)
        results = [Score(reward=one.rewards_G[0], verdicts=_verdicts(one)) for one in found]
        return ScoresReply(id=request_id, judge=body.judge, results=results, usage=_usage(found))

    @guarded.post("/preferences")
    async def preferences(body: PreferencesRequest, request: Request) -> PreferencesReply:
        """Compare answers: each item is two answers to a conversation."""
        _check_items(body.items, file)
        caller, request_id = request.state.caller, _new_id("preferences")
        with admission.room_for(len(body.items)):
            found = await service.preferences(body.judge, body.items, caller=caller, request_id=request_id)
        results = [_preference(service, body.judge, one) for one in found]
        return PreferencesReply(id=request_id, judge=body.judge, results=results, usage=_usage(found))

    app.include_router(guarded)


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
        await _failure(413, self._message)(scope, receive, send)


def _add_handlers(app: FastAPI) -> None:
    def handler(kind: type[Exception], answer: Callable[[Any], JSONResponse]) -> None:
        async def handle(_: Request, error: Exception) -> JSONResponse:
            return answer(error)

        app.add_exception_handler(kind, handle)

    handler(RequestValidationError, _invalid)
    handler(HTTPException, lambda error: _failure(error.status_code, str(error.detail), headers=error.headers))
    handler(UnknownJudgeError, lambda error: _failure(404, str(error), param="judge", code="unknown_judge"))
    handler(ItemError, lambda error: _failure(422, str(error), param=error.place, code="invalid_item"))
    handler(InputError, lambda error: _failure(422, str(error), code="invalid_request"))
    handler(BusyError, lambda error: _retry(429, str(error), error.retry_after_s, code="busy"))
    handler(UnavailableError, lambda error: _retry(503, str(error), RETRY_AFTER_S, code="unavailable"))
    handler(Exception, lambda _: _failure(500, "the service failed; its log says why", code="internal"))


def _invalid(error: RequestValidationError) -> JSONResponse:
    """The first mistakes, in the words of the checks and without the values."""
    found = []
    for one in error.errors()[:3]:
        if one["type"] == "json_invalid":
            return _failure(422, "the body is not JSON, expected an object", code="invalid_json")
        place = ".".join(str(part) for part in one["loc"] if part != "body")
        found.append((place, f"{place or 'the body'}: {one['msg']}"))
    text = "; ".join(message for _, message in found) or "the request is not valid"
    return _failure(422, text[:600], param=found[0][0] if found else "", code="invalid_request")


def _failure(status: int, message: str, *, param: str = "", code: str = "", headers: Any = None) -> JSONResponse:
    kind = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}.get(
        status, "invalid_request_error" if status < 500 else "server_error"
    )
    problem = Problem(message=message, type=kind, param=param or None, code=code or None)
    extra = {"www-authenticate": "Bearer"} if status == 401 else {}
    body = Failure(error=problem).model_dump(mode="json")
    return JSONResponse(body, status_code=status, headers={**(headers or {}), **extra})


def _retry(status: int, message: str, seconds: int, *, code: str) -> JSONResponse:
    return _failure(status, message, code=code, headers={"retry-after": str(seconds)})


def _check_items(items: Sequence[Any], file: ServiceFile) -> None:
    if len(items) > file.max_items:
        raise ItemError("items", f"got {len(items)} items, expected at most {file.max_items}; send several requests")


def _new_id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex[:24]}"


def _preference(service: FeedbackService, name: str, feedback: Feedback) -> Preference:
    judge = service.judge(name)
    config = judge.config("pairwise")
    margin = preference_margin(feedback, judge.constitution, config)
    preferred = None
    if margin is not None:
        preferred = "tie" if abs(margin) < config.tie_band else "first" if margin > 0 else "second"
    return Preference(
        margin=margin,
        probability=_sigmoid(margin),
        preferred=preferred,  # type: ignore[arg-type]  # one of the three
        verdicts=_verdicts(feedback),
    )


def _verdicts(feedback: Feedback) -> list[Verdict]:
    return [_verdict(label) for label in feedback.labels]


def _verdict(label: Label) -> Verdict:
    said = label.verdict
    return Verdict(
        principle=label.principle_id,
        question=label.question_id,
        status=said.status,
        margin=said.margin,
        probability=_sigmoid(said.margin),
        mass=said.mass,
        consistent=said.consistent,
        position_offset=said.position_offset,
        detail=said.detail,
    )


def _sigmoid(margin: float | None) -> float | None:
    if margin is None:
        return None
    return 1 / (1 + exp(-margin)) if margin >= 0 else exp(margin) / (1 + exp(margin))


def _usage(found: Sequence[Feedback]) -> Usage:
    said = [label.verdict for feedback in found for label in feedback.labels]
    return Usage(
        labels=len(said),
        questions=sum(one.questions for one in said),
        cache_hits=sum(one.cache_hits for one in said),
        prompt_tokens=sum(one.prompt_tokens for one in said),
        output_tokens=sum(one.output_tokens for one in said),
    )
