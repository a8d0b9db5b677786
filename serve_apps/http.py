"""The feedback service over HTTP: scores, preferences, critiques and revisions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from math import exp
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response

from serve_apps.admission import Admission
from serve_apps.config import ServiceFile
from serve_apps.events import Events
from serve_apps.forwarding import ChatBody, forwarded
from serve_apps.policy_service import ServedPolicy
from serve_apps.service import FeedbackService
from serve_apps.web import BEARER, ItemError, UnknownNameError, new_app, new_id
from serve_apps.writer import Job, Writer, total
from solon.client.wire import (
    CritiquesReply,
    CritiquesRequest,
    Health,
    JudgeCard,
    Judges,
    Message,
    Preference,
    PreferencesReply,
    PreferencesRequest,
    RevisionsReply,
    RevisionsRequest,
    Score,
    ScoresReply,
    ScoresRequest,
    TextUsage,
    Usage,
    Verdict,
)
from solon.feedback.reward import preference_margin
from solon.records import Feedback, Label


def build_app(service: FeedbackService, *, starts: bool = True) -> FastAPI:
    """The application. starts: the judges are started and ended with it."""
    app = new_app("Solon feedback", service, service.file, starts=starts)
    _add_routes(app, service)
    return app


def _add_routes(app: FastAPI, service: FeedbackService) -> None:
    file, admission = service.file, Admission(service.file.max_waiting)
    guarded = APIRouter(prefix="/v1", dependencies=[Depends(BEARER)])

    @app.get("/health", response_model=Health)
    async def health() -> Any:
        """Whether every judge is ready. Needs no key."""
        troubles = service.troubles()
        is_well = all(trouble == "ready" for trouble in troubles.values())
        body = Health(status="ok" if is_well else "unavailable", judges=troubles)
        return body if is_well else JSONResponse(body.model_dump(mode="json"), status_code=503)

    @guarded.get("/models")
    async def judges() -> Judges:
        """Judges and writers."""
        return Judges(data=service.cards())

    @guarded.get("/models/{name}")
    async def judge(name: str) -> JudgeCard:
        """One of them."""
        found = next((card for card in service.cards() if card.id == name), None)
        if found is None:
            raise UnknownNameError(f"got the name {name[:80]!r}, expected a judge or a writer", param="model")
        return found

    @guarded.post("/scores")
    async def scores(body: ScoresRequest, request: Request) -> ScoresReply:
        """Score answers: each item is one answer to a conversation."""
        _check_items(body.items, file)
        caller, request_id = request.state.caller, new_id("scores")
        with admission.room_for(len(body.items)):
            found = await service.scores(body.judge, body.items, caller=caller, request_id=request_id)
        results = [Score(reward=one.rewards_G[0], verdicts=_verdicts(one)) for one in found]
        return ScoresReply(id=request_id, judge=body.judge, results=results, usage=_usage(found))

    @guarded.post("/preferences")
    async def preferences(body: PreferencesRequest, request: Request) -> PreferencesReply:
        """Compare answers: each item is two answers to a conversation."""
        _check_items(body.items, file)
        caller, request_id = request.state.caller, new_id("preferences")
        with admission.room_for(len(body.items)):
            found = await service.preferences(body.judge, body.items, caller=caller, request_id=request_id)
        results = [_preference(service, body.judge, one) for one in found]
        return PreferencesReply(id=request_id, judge=body.judge, results=results, usage=_usage(found))

    @guarded.post("/critiques", response_model=CritiquesReply)
    async def critiques(body: CritiquesRequest) -> Any:
        """Criticise answers, each by one principle of the writer's constitution."""
        _check_items(body.items, file)
        writer, request_id = service.writer(body.writer), new_id("critiques")
        return await _written(CritiquesReply, writer, writer.critiques(body.items), admission, request_id, body.stream)

    @guarded.post("/revisions", response_model=RevisionsReply)
    async def revisions(body: RevisionsRequest) -> Any:
        """Revise answers, each by one principle of the writer's constitution."""
        _check_items(body.items, file)
        writer, request_id = service.writer(body.writer), new_id("revisions")
        return await _written(RevisionsReply, writer, writer.revisions(body.items), admission, request_id, body.stream)

    def find(model: str, _: str) -> tuple[ServedPolicy, str]:
        return service.writer(model, param="model").policy, ""

    @guarded.post("/chat/completions")
    async def chat(body: ChatBody, request: Request) -> Response:
        """Answer a conversation by a writer."""
        return forwarded(find, admission, request, "/v1/chat/completions", body)

    app.include_router(guarded)


async def _written(
    reply: type[CritiquesReply] | type[RevisionsReply],
    writer: Writer,
    jobs: Sequence[Job[Any]],
    admission: Admission,
    request_id: str,
    stream: bool,
) -> Any:
    """All results when all are made, or each one as an event."""
    if stream:
        return _written_as_made(writer, jobs, admission, request_id)
    with admission.room_for(len(jobs)):
        found, usage = await writer.together(jobs)
    return reply(id=request_id, writer=writer.name, results=found, usage=usage)


def _written_as_made(writer: Writer, jobs: Sequence[Job[Any]], admission: Admission, request_id: str) -> Events:
    """Each result as an event when it is made, then what all cost."""

    @asynccontextmanager
    async def messages() -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        with admission.room_for(len(jobs)):
            async with writer.as_made(jobs) as made:
                yield told(made)

    async def told(made: AsyncIterator[tuple[int, Message, TextUsage]]) -> AsyncIterator[dict[str, Any]]:
        spent = []
        async for place, result, used in made:
            spent.append(used)
            yield {"id": request_id, "writer": writer.name, "index": place, "result": result.model_dump(mode="json")}
        yield {"id": request_id, "writer": writer.name, "usage": total(spent).model_dump(mode="json")}

    return Events(messages)


def _check_items(items: Sequence[Any], file: ServiceFile) -> None:
    if len(items) > file.max_items:
        raise ItemError("items", f"got {len(items)} items, expected at most {file.max_items}; send several requests")


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
